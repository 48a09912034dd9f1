"""Batches that nobody asked for: a service runs some ahead of its first request, and `virtex check` runs others.

Rules: knows a handler and its steps; neither the queue nor who counts. What runs here is no served batch: no metric has
it, no observer is told, and nothing is learnt from how long it took.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import cycle, islice
from typing import Any

from ..batch.costs import fitting
from ..batch.steps import Laps, Outcome, Steps
from ..dry_run import items_for, outcomes_of, written_of
from ..errors import HandlerError, ItemError
from ..handler import RequestHandler
from ..message import Content, HttpMessage
from .request import Request

NO_ITEMS = 'gives no items; define it: a list of what stands in a request\'s "data"'
Call = Callable[..., Awaitable[Any]]  # runs a function where the handler's methods run, on their thread and context


async def example_of(handler: RequestHandler, call: Call) -> list[Any]:
    """The items of example(), as a client would send them; none where it gives none.

    Raises what example() raises, and HandlerError for an item that can't be sent.
    """
    items = await call(handler.example)
    return items_for(handler, HttpMessage(data=items)) if isinstance(items, list) else []


async def rows_of(handler: RequestHandler, size: int, call: Call) -> Any:
    """So many rows of example(), over and over, as run_inference gets them. Raises as example_of(), and ItemError."""
    items = await example_of(handler, call)
    if not items:
        raise TypeError(f"{type(handler).__name__}.example() {NO_ITEMS}")
    return handler._work_of(list(islice(cycle(items), size)))[0]


def as_cut(handler: RequestHandler, items: list[Any], most: float | None) -> list[Any]:
    """As many of these as the server puts into one batch that costs `most` at most; None: all. Raises as costs_of()."""
    return items if most is None else items[: fitting(handler._own_costs(handler._work_of(items)), most)[0]]


async def run_batch(handler: RequestHandler, steps: Steps, items: list[Any], call: Call) -> Outcome:
    """Run items through the three methods, and make the answer, as if one request had them, and nobody else came.

    A Content is the whole answer of its request, and these are several requests as far as it goes. Raises HandlerError
    or ItemError where there would be no answer.
    """
    work = handler._work_of(items)
    askers = [Request()] if steps.asks else None
    outcome: Outcome
    isolates, steps.isolates = steps.isolates, False  # whether all of it goes well is asked, not what of it does
    try:
        if steps.is_async:
            (outcome,) = await call(outcomes_of, steps, work, askers)
        else:
            (outcome,) = await call(steps.run, work, askers)
    finally:
        steps.isolates = isolates
    if isinstance(outcome, list):
        outcome = [row for row in outcome if type(row) is not Content]
    written_of(handler, items, outcome)
    return outcome


async def warm_up(
    handler: RequestHandler, steps: Steps, items: list[Any], size: int, most: float | None, call: Call
) -> tuple[int, Outcome]:
    """Run a batch of so many, the items over and over; of as many as cost `most`, where that is bounded.

    Gives how many they were, and their rows. Raises HandlerError, which names the size and the step.
    """
    steps.laps = Laps()  # until it runs
    try:
        batch = await call(as_cut, handler, list(islice(cycle(items), size)), most)
        size = len(batch)
        return size, await run_batch(handler, steps, batch, call)
    except (HandlerError, ItemError) as error:
        step = "" if isinstance(error, HandlerError) else f"{_step_of(steps.laps)} refused "
        raise HandlerError(f"warm-up with a batch of {size}: {step}{error}") from (error.__cause__ or error)


def _step_of(laps: Laps) -> str:
    """The step that ran last."""
    if laps.process_response >= 0:
        return "process_response"
    return "process_request" if laps.run_inference < 0 else "run_inference"
