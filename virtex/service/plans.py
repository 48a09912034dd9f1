"""Where the items of a handler wait, and what can't be of one with declared inputs, told at the start.

Rules: knows handlers and options, neither a loop nor a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ..batch.arrays import ArrayRing
from ..batch.asked import methods_that_ask
from ..batch.costs import CostRing
from ..batch.device import Device
from ..batch.items import refuse_declared
from ..batch.ring import Ring
from ..batch.rows import tensors_of
from ..batch.texts import has_text
from ..handler import RequestHandler, TensorHandler, own_cost
from ..tensor import Tensor
from .options import Options, is_whole


def ring_for(handler: RequestHandler, options: Options, takes_arrays: bool) -> Ring | None:
    """Where the items of a handler wait that declares no inputs; None: where they wait anyway."""
    most = options.max_batch_cost
    new: Callable[[int], Ring] = Ring
    if most is not None:
        name, cost = type(handler).__name__, own_cost(handler)
        if cost is None:
            raise TypeError(f"max_batch_cost={most!r}: expected {name}.cost(self, item), {name} has none")
        new = partial(CostRing, cost=cost, most=float(most))
    if takes_arrays:
        return ArrayRing(options.queue, new)
    return None if most is None else new(options.queue)


def check_declared(handler: TensorHandler, options: Options, device: Device | None) -> None:
    """Raise TypeError or ValueError for what such a handler, or the options beside it, says in vain."""
    name = type(handler).__name__
    if not isinstance(getattr(handler, "inputs", None), (Tensor, Mapping)):
        raise TypeError(f"{name}.inputs: expected a Tensor or a dict of them")
    if type(handler).process_request is not TensorHandler.process_request:
        raise TypeError(f"{name}.process_request would never run: its inputs are declared")
    refuse_declared(handler)
    most = options.max_batch_cost
    if most is not None:
        raise TypeError(
            f"max_batch_cost={most!r} means nothing for {name}: its inputs are declared, so every row is as large as "
            "any other, and max_batch_size bounds a batch"
        )
    if device is not None:
        _check_device(handler, options, device)
    if len(handler.graphs):
        _check_graphs(handler, options, device)


def _check_device(handler: TensorHandler, options: Options, device: Device) -> None:
    if device.is_cuda and options.executor != "thread":
        raise ValueError(f'device={handler.device!r} needs executor="thread": waiting for it would block the loop')
    if has_text(handler.inputs):
        raise TypeError(f"device={handler.device!r}: text can't be copied to a device; its inputs declare some")
    for tensor in tensors_of(handler.inputs)[1]:
        device.check(tensor)


def _check_graphs(handler: TensorHandler, options: Options, device: Device | None) -> None:
    said = f"{type(handler).__name__}.graphs={handler.graphs!r}"
    if not all(is_whole(size, 1, options.max_batch_size) for size in handler.graphs):
        raise ValueError(f"{said}: expected whole numbers from 1 to max_batch_size={options.max_batch_size}")
    if device is None or not device.is_cuda:
        raise ValueError(f"{said} needs a CUDA device; device={handler.device!r} is none")
    if "run_inference" in methods_that_ask(handler):
        raise TypeError(f"{said}: a graph knows nobody who asks, and run_inference names `requests`")
