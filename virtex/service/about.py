"""What a service says of itself, as JSON: GET / of it, and of one of Services.

Rules: values in, bytes out; it runs nothing but example().
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from .. import __version__
from ..batch.arrays import array_dtype
from ..handler import RequestHandler, TensorHandler
from ..message import encode_data
from ..tensor import Tensor, describe
from .formats import KINDS, Kinds
from .options import Options

log = logging.getLogger("virtex")

MOST_EXAMPLE = 32 << 10  # bytes of the example that GET / shows: who polls it pays for them
ARRAYS = ["numbers", "base64"]


def described(options: Options, max_queue_size: int, kinds: Kinds = KINDS, more: dict[str, Any] | None = None) -> bytes:
    """What it was told, and what it takes and answers. more: what is known of its handler, once there is one."""
    about = {
        "name": options.name,
        "version": __version__,
        "accepts": kinds.accepts,
        "answers": kinds.answers,
        "max_batch_size": options.max_batch_size,
        "max_batch_cost": options.max_batch_cost,
        "max_time_on_queue": options.max_time_on_queue,
        "max_queue_size": max_queue_size,
        "limits": asdict(options.limits),
    }
    return json.dumps(about | (more or {})).encode()


def declared(handler: RequestHandler) -> dict[str, Any]:
    """What GET / says of declared inputs, and how arrays may stand in JSON: those of an answer as the request's."""
    if isinstance(handler, TensorHandler):
        return {"arrays": ARRAYS, "inputs": describe(handler.inputs), "outputs": describe(handler.outputs)}
    dtype = array_dtype(handler)
    return {} if dtype is None else {"arrays": ARRAYS, "inputs": {"dtype": str(dtype), "shape": None}}


async def example_shown(name: str, handler: RequestHandler, call: Callable[..., Awaitable[Any]]) -> dict[str, Any]:
    """The handler's example(); nothing where there is none, it is long, or it failed, which is logged.

    That of declared inputs is not even made where it would be long. name: of the service. call: runs a method where its
    batches run.
    """
    inputs = handler.inputs if isinstance(handler, TensorHandler) else {}
    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs.values()
    if sum(tensor.nbytes for tensor in tensors) > MOST_EXAMPLE:
        return {}
    try:
        items = await call(handler.example)
        if not isinstance(items, list):
            raise TypeError(f"expected a list of items, got a {type(items).__name__}")
        if handler.accepts and all(isinstance(item, bytes) for item in items):
            return {}  # files, which a message can't have
        text = encode_data(items, "example")
    except Exception as error:
        log.warning("service %r: example() failed, so the status page has none", name, exc_info=error)
        return {}
    return {"example": json.loads(text)} if items and len(text) <= MOST_EXAMPLE else {}
