"""The service of tests/soak/rows.py: answers each row with itself, and takes a while now and then."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy.typing as npt

from virtex import Limits, Server, Tensor, TensorHandler, http_server

SHAPE = (64,)


class Identity(TensorHandler):
    """Answers its batch, a view of it or a copy, so that replies are encoded from rows that requests were read into."""

    inputs = Tensor("float32", SHAPE)

    def setup(self, worker: Any) -> None:
        self.random = random.Random(0)

    def run_inference(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        chance = self.random.random()
        if chance < 0.1:
            time.sleep(0.01)  # the ring fills, and clients leave that are in it
        return batch.copy() if chance > 0.9 else batch[::-1][::-1] if chance > 0.8 else batch


def service(executor: str) -> Server:
    return http_server(
        name="soak",
        handler=Identity,
        executor=executor,
        max_batch_size=32,
        max_time_on_queue=0.002,
        max_queue_size=96,  # less than the clients send at once: some requests are refused
        limits=Limits(answer_seconds=20.0),
    )


inline = service("inline")
thread = service("thread")
