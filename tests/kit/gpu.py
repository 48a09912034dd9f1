"""What the tests on a GPU share: a service, its answers, and work and marks on the present stream.

Where there is none, VIRTEX_GPU_TESTS=cpu has kit.here stand in for one: that tries the code of those files.
"""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import orjson
import pytest

from kit import here, needs
from kit.asks import ask_direct
from virtex import Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy
from virtex.service import model as models

torch = needs.library("torch")
STANDS_IN = os.environ.get("VIRTEX_GPU_TESTS") == "cpu"
if not STANDS_IN and not torch.cuda.is_available():
    pytest.skip(f"torch {torch.__version__} finds no CUDA device", allow_module_level=True)

DEVICE = "cuda"
TYPE = "cpu" if STANDS_IN else "cuda"  # where tensors really are
SHAPE = (3, 32, 32)
COUNT = torch.cuda.device_count()

real_only = pytest.mark.skipif(STANDS_IN, reason="needs a CUDA device: nothing stands in for what it does")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    if STANDS_IN:
        monkeypatch.setattr(models, "device_for", lambda name: None if name is None else here.Here())


def spin(milliseconds):
    """Work of the present stream, that long or a few times so."""
    if STANDS_IN:
        time.sleep(milliseconds / 1e3)
    else:
        torch.cuda._sleep(int(milliseconds * 1e6))


def mark():
    """A point in the work of the present stream, by its clock."""
    if STANDS_IN:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(one, other):
    """Milliseconds from one mark to the other; negative where that was ahead. Both are over."""
    return 1e3 * (other - one) if STANDS_IN else one.elapsed_time(other)


class Identity(TensorHandler):
    inputs = Tensor("float32", SHAPE)
    device = DEVICE

    def run_inference(self, batch):
        return batch


def body(*items):
    return orjson.dumps({"data": list(items)})


def served(handler, *bodies, **kw):
    """The answers to requests that are all put at once."""
    app = http_server("gpu", handler, executor="thread", **kw)

    async def main():
        await app.startup()
        try:
            return await asyncio.wait_for(asyncio.gather(*(ask_direct(app, one) for one in bodies)), 60)
        finally:
            await app.shutdown()

    return asyncio.run(main())


def rows(answer):
    assert answer.status == 200, answer.body
    return [decode_numpy(item) for item in answer.json["data"]]


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)
