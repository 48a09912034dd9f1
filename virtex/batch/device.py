"""Devices of torch: memory there and page-locked memory here, streams, events, and the copies between them.

Rules: knows torch and bytes, not the ring, and no order: pipeline.py says what waits for what. A Device runs one batch
at a time, here and now; a Cuda is that too, and what a Pipeline needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np

from ..extras import needs
from ..serial._npy import named_dtype
from ..tensor import Array, Tensor
from .outputs import on_host
from .rows import allocate, pages

# What torch takes from NumPy as plain bits: dtypes that it has under the same name, and NumPy only by ml_dtypes
_BY_BITS = {
    "bfloat16": "int16",
    "complex32": "int32",
    **dict.fromkeys(
        ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"],
        "int8",
    ),
}
_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device of the process


class Device:
    """A torch device, and the copies to it and back.

    Raises ImportError without torch, RuntimeError for a device that torch does not know or have.
    """

    def __init__(self, name: str) -> None:
        with needs(f"device={name!r}", "torch", "torch"):
            import torch
        self._torch: Any = torch
        try:
            self._device = torch.device(name)
            torch.empty(1, device=self._device)  # says now what is wrong with it
        except Exception as error:
            said = str(error).partition("\n")[0]
            raise RuntimeError(f"device={name!r}: torch {torch.__version__} can't use it: {said}") from error
        self.is_cuda = self._device.type == "cuda"
        self.copies = self._device.type != "cpu"

    def running(self) -> Any:
        """The context in which a model runs."""
        return self._torch.inference_mode()

    def infer(self, batch: Any, infer: Callable[[Any], Any]) -> Any:
        """What infer() gives for the batch on the device, its tensors as arrays in host memory."""
        with self.running():
            return self._back(infer(self.load(batch)))

    def load(self, batch: Array | Mapping[str, Array]) -> Any:
        """The batch, or each input of it, as a tensor on the device; on a CPU, in the same memory."""
        if isinstance(batch, Mapping):
            return {name: self._here(array).to(self._device) for name, array in batch.items()}
        return self._here(batch).to(self._device)

    def check(self, tensor: Tensor) -> None:
        """Raise TypeError for an input of which torch has no tensors."""
        dtype = tensor.dtype
        known = dtype.name in _BY_BITS or (dtype.kind in "biufc" and dtype.isnative)
        if not known or not hasattr(self._torch, dtype.name):
            raise TypeError(f"an input of {dtype} can't go to a device: torch has no tensors of it")

    def free(self) -> None:
        """Give back what is kept for later."""

    def allocate(self, tensor: Tensor, rows: int) -> Array:
        """An array of rows from which batches are copied there."""
        return allocate(tensor, rows)

    def _back(self, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: self._back(value) for name, value in given.items()}
        name = str(given.dtype).removeprefix("torch.") if isinstance(given, self._torch.Tensor) else ""
        if name not in _BY_BITS:
            return on_host(given)
        bits = given.detach().resolve_conj().cpu().contiguous().view(getattr(self._torch, _BY_BITS[name]))
        return bits.numpy().view(named_dtype(name))

    def _here(self, array: Array) -> Any:
        """The same memory as a tensor."""
        bits = _BY_BITS.get(array.dtype.name)
        tensor = self._torch.from_numpy(array.view(bits) if bits else array)
        return tensor.view(getattr(self._torch, array.dtype.name)) if bits else tensor


class Memory:
    """Bytes on a GPU. A tensor that torch makes of it refers to it as long as any view of that lives, and is counted.

    By the CUDA array interface, version 3: numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html.
    """

    def __init__(self, bytes_: Any) -> None:
        self.bytes = bytes_
        self.__cuda_array_interface__ = {
            "shape": (bytes_.numel(),),
            "typestr": "|u1",
            "data": (bytes_.data_ptr(), False),
            "strides": None,
            "version": 3,
        }


class Cuda(Device):
    """A GPU, as a Pipeline wants it: everything is asked of it at once, and done when its stream comes to it.

    Streams have wait_event(event), events record(stream) and synchronize(), which sleeps. A device without a number is
    the present one of the thread that makes this.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if self._device.index is None:
            self._device = self._torch.device("cuda", self._torch.cuda.current_device())
        self._pool: Any = None

    def stream(self) -> Any:
        """Work in order, beside that of other streams."""
        return self._torch.cuda.Stream(self._device)

    def event(self) -> Any:
        """A point in the work of a stream. Who waits for it sleeps, and does not spin: the loop needs the core."""
        return self._torch.cuda.Event(blocking=True)

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """What is asked of the device meanwhile is that stream's work."""
        cuda = self._torch.cuda
        # A stream's own context would leave this thread by making a context on the first device, where it had begun.
        with self._torch.inference_mode(), cuda.device(self._device), cuda.stream(stream):
            yield

    def current(self) -> Any:
        """The stream whose work this thread asks for now."""
        return self._torch.cuda.current_stream(self._device)

    def synchronize(self) -> None:
        """Wait until all streams have done all work."""
        self._torch.cuda.synchronize(self._device)

    def buffer(self, size: int) -> Memory:
        """Memory on the device, which the present stream may have used before."""
        return Memory(self._torch.empty(max(size, 1), dtype=self._torch.uint8, device=self._device))

    def allocate(self, tensor: Tensor, rows: int) -> Array:
        """An array of rows, page-locked: copies need no other buffer and no wait."""
        return self._locked(allocate(tensor, rows))

    def locked(self, size: int) -> Array:
        """Bytes in page-locked host memory."""
        return self._locked(np.ndarray(max(size, 1), np.uint8, pages(max(size, 1))))

    def _locked(self, array: Array) -> Array:
        """Lock its pages; torch's own page-locked memory comes in powers of two, which would be up to twice as much."""
        runtime, address = self._torch.cuda.cudart(), array.ctypes.data
        with self._torch.cuda.device(self._device):
            error = runtime.cudaHostRegister(address, max(array.nbytes, 1), _PORTABLE)
        if int(error):
            with suppress(RuntimeError):  # CUDA has it again for whoever launches next on this thread
                self._torch.ones(1, device=self._device)
            said = runtime.cudaGetErrorString(error)
            raise MemoryError(f"{array.nbytes} bytes of host memory can't be page-locked: {said}")
        weakref.finalize(array, runtime.cudaHostUnregister, address).atexit = False
        return array

    def rows(self, memory: Memory, tensor: Tensor, count: int) -> Any:
        """The first rows of the memory, as the tensor that a model gets."""
        bytes_ = self._torch.as_tensor(memory, device=self._device)[: count * tensor.nbytes]
        return bytes_.view(getattr(self._torch, tensor.dtype.name)).view(count, *tensor.shape)

    def send(self, array: Array, rows: Any) -> None:
        """Copy an array there."""
        rows.copy_(self._here(array), non_blocking=True)

    def is_tensor(self, value: Any) -> bool:
        """Whether it is a tensor of torch, wherever it is."""
        return isinstance(value, self._torch.Tensor)

    def form(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Dtype and shape of a tensor on a GPU, as NumPy has them; None for whatever keep() does not take."""
        return self._form(value) if self.is_tensor(value) and value.is_cuda else None

    def _form(self, tensor: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        if tensor.layout is not self._torch.strided or tensor.is_nested or tensor.is_quantized:
            return None
        dtype = _dtype(tensor.dtype)
        return None if dtype is None else (dtype, tuple(tensor.shape))

    def keep(self, value: Any, memory: Memory, start: int) -> None:
        """Copy what form() knows, from wherever it is and however it lies, into the memory from that byte on."""
        size = value.numel() * value.element_size()
        into = memory.bytes[start : start + size].view(value.dtype).view(value.shape)
        into.copy_(value.detach(), non_blocking=True)

    def fetch(self, memory: Memory, locked: Array, size: int) -> None:
        """Copy the first bytes of the memory here."""
        self._here(locked[:size]).copy_(memory.bytes[:size], non_blocking=True)

    def capture(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record what call() asks for instead of doing it; gives what does it, and what call() gave.

        That lies in the same memory each time; what graphs need beside it they share, so one runs at a time. Other
        threads may use CUDA meanwhile. Raises what torch does for work that can't be recorded.
        """
        cuda = self._torch.cuda
        self._pool = pool = self._pool or cuda.graph_pool_handle()
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph, pool=pool, stream=self.current(), capture_error_mode="thread_local"):
                given = call()
        except BaseException:
            self._pool = None
            self._end_recording(pool)
            raise
        return graph.replay, given

    def _end_recording(self, pool: Any) -> None:
        """What torch leaves out where a capture fails: no other could begin with the pool, and no cache be emptied."""
        own = self._torch._C
        with suppress(Exception):  # it had ended, or not begun
            own._cuda_endAllocateToPool(self._device.index, pool)
            own._cuda_releasePool(self._device.index, pool)

    def fill(self, rows: Any, batch: Any) -> None:
        """Copy the batch into the first of these rows, and its last row into all others."""
        count = len(batch)
        rows[:count].copy_(batch, non_blocking=True)
        if count < len(rows):
            rows[count:].copy_(batch[count - 1], non_blocking=True)

    def free(self) -> None:
        """Give back to the device what torch keeps for later."""
        self._torch.cuda.empty_cache()


def take_turn(name: str | None, index: int) -> None:
    """Have "cuda" without a number mean, on this thread, the GPU that is a worker's of that index."""
    if name == "cuda":
        import torch

        count = torch.cuda.device_count()
        if count:  # what is wrong where there is none, device_for() says
            torch.cuda.set_device(index % count)


def device_for(name: str | None) -> Device | None:
    """The device of that name: a Cuda where it is one. Raises as these do."""
    if name is None:
        return None
    device = Device(name)
    return Cuda(name) if device.is_cuda else device


@cache
def _dtype(dtype: Any) -> np.dtype[Any] | None:
    """NumPy's dtype of the same name, or that of ml_dtypes; None where there is none."""
    name = str(dtype).removeprefix("torch.")
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        return named_dtype(name)
    except (ValueError, TypeError, ImportError):
        return None
