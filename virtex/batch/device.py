"""Batches on a torch device: pinned rows, one copy there, one back.

Rules: knows torch and copies, not the ring. Rows are allocated on the event loop; the copies run on the thread of the
model, which alone waits: for an event of the stream, blocked, not spinning. What was asked of a device is done when
running() is left, by an exception too: rows that a copy still reads must not be used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..tensor import Array, Tensor
from .rows import allocate

# What torch takes from NumPy as plain bits: dtypes that it has under the same name, and NumPy only by ml_dtypes
_BY_BITS = {"bfloat16": "int16", "float8_e4m3fn": "int8", "float8_e5m2": "int8"}


class Device:
    """A torch device, and the copies to it and back.

    Raises ImportError without torch, and what torch raises for a device that it does not have.
    """

    def __init__(self, name: str) -> None:
        try:
            import torch
        except ImportError:
            raise ImportError(f"device={name!r} needs torch: install the extra [torch]") from None
        self._torch: Any = torch
        self._device = torch.device(name)
        torch.empty(1, device=self._device)  # says now what is wrong with it
        self.is_cuda = self._device.type == "cuda"

    def allocate(self, tensor: Tensor, rows: int) -> Array:
        """An array of rows; page-locked where the device is a GPU, so that copies need no other buffer and no wait."""
        if not self.is_cuda:
            return allocate(tensor, rows)
        bytes_ = self._torch.empty(max(rows * tensor.nbytes, 1), dtype=self._torch.uint8, pin_memory=True)
        return np.ndarray((rows, *tensor.shape), tensor.dtype, bytes_.numpy())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Leave when the device has done all that was asked of it meanwhile, however that went."""
        try:
            with self._torch.inference_mode():
                yield
        finally:
            if self.is_cuda:
                done = self._torch.cuda.Event(blocking=True)
                done.record(self._torch.cuda.current_stream(self._device))
                done.synchronize()

    def load(self, batch: Array | Mapping[str, Array]) -> Any:
        """The batch, or each input of it, as a tensor on the device."""
        if isinstance(batch, Mapping):
            return {name: self._load(array) for name, array in batch.items()}
        return self._load(batch)

    def fetch(self, outputs: Any) -> Any:
        """Tensors in host memory, of what the model gave; the copies are done when running() is left."""
        if isinstance(outputs, Mapping):
            return {name: self.fetch(value) for name, value in outputs.items()}
        if not isinstance(outputs, self._torch.Tensor) or not outputs.is_cuda:
            return outputs
        host = self._torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
        return host.copy_(outputs.detach(), non_blocking=True)

    def _load(self, array: Array) -> Any:
        bits = _BY_BITS.get(array.dtype.name)
        tensor = self._torch.from_numpy(array.view(bits) if bits else array)
        if bits:
            tensor = tensor.view(getattr(self._torch, array.dtype.name))
        return tensor.to(self._device, non_blocking=True)
