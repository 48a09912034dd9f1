"""Who is to blame for what a handler's method raised: one request's item, one request, or nobody of them.

Rules: as of steps.py. Where process_request raises, it is called again with one request at a time, then, where it said
of no item, with one item at a time. So one request's bad item costs no other request its answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..errors import HandlerError, ItemError
from .asked import each

if TYPE_CHECKING:
    from .steps import Outcome, Steps

log = logging.getLogger("virtex")


async def run_without_the_guilty(
    steps: Steps, requests: list[Any], error: Exception, askers: list[Any] | None
) -> list[Outcome]:
    """process_request raised: find for whom it does, one request at a time, and compute the others."""
    if len(requests) == 1:
        return [await _blamed(steps, requests[0], error, askers)]
    outcomes: list[Outcome] = [[] for _ in requests]
    singly = []
    for i, items in enumerate(requests):
        try:
            singly.append(([i], await _again(steps, [items], _of([i], askers))))
        except Exception as error:
            outcomes[i] = await _blamed(steps, items, error, _of([i], askers))
    for members, batch in await _regrouped(steps, singly, requests, askers):
        several = [requests[i] for i in members]
        counts = [len(items) for items in several]
        asked = each(_of(members, askers), counts)
        for i, outcome in zip(members, await steps.computed_async(batch, several, counts, asked), strict=True):
            outcomes[i] = outcome
    return outcomes


async def _again(steps: Steps, requests: list[Any], askers: list[Any] | None) -> Any:
    return await steps.again(steps.joined(requests), each(askers, [len(items) for items in requests]))


def _of(members: list[int], askers: list[Any] | None) -> list[Any] | None:
    return None if askers is None else [askers[i] for i in members]


async def _regrouped(
    steps: Steps, singly: list[tuple[list[int], Any]], requests: list[Any], askers: list[Any] | None
) -> list[tuple[list[int], Any]]:
    """The requests that are fine alone as one batch; where they don't stack, as they are."""
    if len(singly) < 2:
        return singly
    together = [i for (i,), _ in singly]
    try:
        return [(together, await _again(steps, [requests[i] for i in together], _of(together, askers)))]
    except Exception as error:
        # Shapes that differ, say: nobody is to blame, so each runs alone.
        log.info("process_request takes these %d requests singly only: %r", len(singly), error)
        return singly


async def _blamed(steps: Steps, items: Any, error: Exception, askers: list[Any] | None) -> HandlerError | ItemError:
    """The error of one request whose process_request raised, with the index of its lowest failing item."""
    if not isinstance(error, ItemError):
        return failure("process_request", error)
    if error.index in range(len(items)):
        return error.at(error.index)
    for i in range(len(items)):
        try:
            await _again(steps, [items[i : i + 1]], askers)
        except ItemError as found:
            return found.at(i)
        except Exception as found:
            return failure("process_request", found, i)
    return error.at(None)


def response_failure(error: Exception, index: int) -> HandlerError | ItemError:
    """The error of a request of which process_response raised for that item."""
    if isinstance(error, (ItemError, HandlerError)):
        return error.at(index)
    return failure("process_response", error, index)


def failure(step: str, error: BaseException, index: int | None = None) -> HandlerError:
    """What a step raised, as the error of who asked: the name of the step, and the cause for the log."""
    failed = HandlerError(f"{step} raised {type(error).__name__}", index)
    failed.__cause__ = error
    return failed


def failure_of(error: BaseException) -> HandlerError:
    """The outcome of a whole batch that broke off: SystemExit, cancellation, out of memory between the steps."""
    return failure("the batch", error)
