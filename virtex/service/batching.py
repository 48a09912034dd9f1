"""How the batches of a handler are made: who runs them, where its items wait; and what can't be, told at the start.

Rules: knows handlers and options; it makes things, and starts none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from functools import partial

from ..batch.arrays import ArrayRing, array_dtype
from ..batch.costs import CostRing
from ..batch.device import Device
from ..batch.executors import AsyncExecutor, Executor, InlineExecutor, ThreadExecutor
from ..batch.items import refuse_declared
from ..batch.ring import Ring
from ..batch.rows import RowRing, allocate, fitting
from ..batch.steps import async_methods
from ..handler import RequestHandler, TensorHandler, own_cost
from ..tensor import Tensor
from .bodies import Bodies
from .options import Options

BODY_IS_CUT = "service %r takes bodies of %d bytes at most, and not %d (limits.body): %s; say a larger max_bytes"


@contextmanager
def telling(bodies: Bodies) -> Iterator[None]:
    """Where limits.max_bytes leaves too little, have the MemoryError say where that number comes from."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{error}. max_bytes is {bodies.most}: {bodies.why}") from None


def executor_for(
    handler: RequestHandler,
    options: Options,
    thread: ThreadExecutor | None,
    loop: asyncio.AbstractEventLoop,
    context: Context,
) -> Executor:
    """Who runs its batches here: its thread, where it has one. Raises TypeError or ValueError for what can't be."""
    awaits = ", ".join(async_methods(handler))
    if thread is not None:
        if awaits:
            raise TypeError(f'executor="thread" runs plain methods; {awaits} of {type(handler).__name__} is async')
        return thread
    if awaits:
        return AsyncExecutor(loop, context)
    if options.watchdog is not None:
        raise ValueError('watchdog needs executor="thread" or async methods: inline, nothing can look after the model')
    return InlineExecutor(context)


def ring_for(handler: RequestHandler, options: Options) -> Ring:
    """Where the items of a handler wait that declares no inputs. Raises TypeError where it lacks a cost()."""
    most = options.max_batch_cost
    new: Callable[[int], Ring] = Ring
    if most is not None:
        name, cost = type(handler).__name__, own_cost(handler)
        if cost is None:
            raise TypeError(f"max_batch_cost={most!r}: expected {name}.cost(self, item), {name} has none")
        new = partial(CostRing, cost=cost, most=float(most))
    return new(options.queue) if array_dtype(handler) is None else ArrayRing(options.queue, new)


def row_ring_for(handler: TensorHandler, options: Options, device: Device | None, bodies: Bodies) -> RowRing:
    """The rows that the items of declared inputs wait in; their budget gets smaller by them. Raises MemoryError."""
    room = bodies.budget  # limits.max_bytes, or what the rows of other services leave of it
    size, capacity = options.max_batch_size, options.queue
    if options.max_queue_size is None:
        capacity = min(capacity, fitting(handler.inputs, size, room // 2))
    most = room - options.limits.body  # for a body must be room too
    with telling(bodies):
        if most <= 0:
            body = f"a body of {options.limits.body} bytes (limits.body)"
            raise MemoryError(f"{body} has to fit into limits.max_bytes beside the rows: say a smaller one")
        ring = RowRing(handler.inputs, size, capacity, most, allocate if device is None else device.allocate)
    bodies.budget = room - ring.slabs * ring.slab_bytes
    return ring


def buffers_of(ring: Ring) -> dict[str, int]:
    """What the log says of a ring's rows, where it has some."""
    if not isinstance(ring, RowRing):
        return {}
    taken = ring.slabs * ring.slab_bytes
    return {
        "buffers": ring.slabs,
        "rows": ring.max_batch_size,
        "buffer_bytes": ring.slab_bytes,
        "all_bytes": taken,
    }


def check_declared(handler: TensorHandler, options: Options) -> None:
    """Raise TypeError for what a handler with declared inputs, or the options beside it, says in vain."""
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
