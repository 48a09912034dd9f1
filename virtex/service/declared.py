"""Handlers with declared inputs: what can't be, told at the start.

Rules: knows handlers and options; makes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..batch.device import Device
from ..batch.items import refuse_declared
from ..batch.texts import has_text
from ..handler import TensorHandler
from ..tensor import Tensor
from .options import Options


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


def _check_device(handler: TensorHandler, options: Options, device: Device) -> None:
    if device.is_cuda and options.executor != "thread":
        raise ValueError(f'device={handler.device!r} needs executor="thread": waiting for it would block the loop')
    if has_text(handler.inputs):
        raise TypeError(f"device={handler.device!r}: text can't be copied to a device; its inputs declare some")
