"""A batch as an array of JAX, CuPy or NumPy, in the memory in which it is: by DLPack, without a copy.

    virtex serve dlpack:app --chdir examples
    curl -d '{"data": [[1, 2, 3, 4]]}' localhost:8000      # answers [[0.0320..., 0.0871..., 0.2368..., 0.6439...]]

LIBRARY names one that is installed, numpy unless it says another; DEVICE a torch device, cpu unless it says another.
DLPack's exchange has the stream of the one wait for that of the other on the device, so the service goes on meanwhile.
What comes back refers to the memory of the batch as long as somebody needs it; the service does not use it again then.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

from virtex import Tensor, TensorHandler, http_server


class Softmax(TensorHandler):
    """Softmax of each row, by whichever library."""

    inputs = outputs = Tensor("float32", (4,))
    device = os.environ.get("DEVICE", "cpu")

    def setup(self, worker: Any) -> None:
        name = os.environ.get("LIBRARY", "numpy")
        self.library = importlib.import_module("jax.numpy" if name == "jax" else name)

    def run_inference(self, batch: torch.Tensor) -> torch.Tensor:
        if self.library.__name__ != "cupy":
            return self.computed(batch)
        stream = torch.cuda.current_stream(batch.device)
        with self.library.cuda.ExternalStream(stream.cuda_stream, batch.device.index):  # CuPy works on torch's stream
            return self.computed(batch)

    def computed(self, batch: torch.Tensor) -> torch.Tensor:
        rows = self.library.from_dlpack(batch)
        powers = self.library.exp(rows - rows.max(1, keepdims=True))
        return torch.from_dlpack(powers / powers.sum(1, keepdims=True))


app = http_server(name="softmax", handler=Softmax, executor="thread")
