"""The services of the soak tests: rows that come back as they are, and answers as long as they are asked for."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy.typing as npt

from virtex import Limits, RequestHandler, Server, Tensor, TensorHandler, http_server

SHAPE = (64,)
BUDGET = 128 << 20


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


class Sized(RequestHandler):
    """Costs nothing to ask, and what is asked for to answer: a number with so many characters."""

    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        return model_input

    def process_response(self, item: Any) -> Any:
        return "x" * item if isinstance(item, int) else 0


def identity(executor: str) -> Server:
    return http_server(
        name="soak",
        handler=Identity,
        executor=executor,
        max_batch_size=32,
        max_time_on_queue=0.002,
        max_queue_size=96,  # less than the clients send at once: some requests are refused
        limits=Limits(answer_seconds=20.0),
    )


inline = identity("inline")
thread = identity("thread")

# What the handler makes of one batch is its own to bound: 16 answers of 2 MB, not 512.
sized = http_server(
    name="hostile", handler=Sized, max_batch_size=16, max_queue_size=1024, limits=Limits(max_bytes=BUDGET)
)
