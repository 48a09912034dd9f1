"""examples/dlpack.py: the batch is the library's array in the same memory, and the answers are right."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys

import numpy as np
import pytest
from kit import needs
from kit.servers import ROOT

from virtex import http_server

torch = needs.library("torch")
sys.path.insert(0, str(ROOT / "examples"))


def softmax(rows):
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("name", ["numpy", "jax", "cupy"])
def test_the_library_reads_the_batch_in_place(name, monkeypatch):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    device = "cpu" if name == "numpy" or not torch.cuda.is_available() else "cuda"
    if name == "cupy" and device == "cpu":
        pytest.skip("CuPy needs a GPU")
    monkeypatch.setenv("LIBRARY", name)
    example = importlib.import_module("dlpack")
    places = []

    class Looks(example.Softmax):
        def computed(self, batch):
            rows = self.library.from_dlpack(batch)
            pointer = {"numpy": lambda: rows.ctypes.data, "jax": lambda: rows.unsafe_buffer_pointer()}
            places.append((batch.data_ptr(), pointer.get(name, lambda: rows.data.ptr)()))
            return super().computed(batch)

    Looks.device = device
    sent = np.random.default_rng(0).random((50, 4), np.float32)

    async def main():
        app = http_server("softmax", Looks, executor="thread", max_batch_size=8)
        await app.startup()
        answers = await asyncio.wait_for(asyncio.gather(*(app.submit([row]) for row in sent)), 60)
        await app.shutdown()
        return np.concatenate(answers)

    assert np.allclose(asyncio.run(main()), softmax(sent), rtol=1e-5)
    assert places and all(one == other for one, other in places)
