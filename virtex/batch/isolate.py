"""Who is to blame for what a handler's method raised: one request's item, one request, or nobody of them.

Rules: as of steps.py. Where process_request raises, it is called again with one request at a time, then, where it said
of no item, with one item at a time. So one request's bad item costs no other request its answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..errors import HandlerError, ItemError

if TYPE_CHECKING:
    from .steps import Outcome, Steps

log = logging.getLogger("virtex")


async def run_without_the_guilty(steps: Steps, requests: list[Any], error: Exception) -> list[Outcome]:
    """process_request raised: find for whom it does, one request at a time, and compute the others."""
    if len(requests) == 1:
        return [await _blamed(steps, requests[0], error)]
    outcomes: list[Outcome] = [[] for _ in requests]
    singly = []
    for i, items in enumerate(requests):
        try:
            singly.append(([i], await steps.again(steps.joined([items]))))
        except Exception as error:
            outcomes[i] = await _blamed(steps, items, error)
    for members, batch in await _regrouped(steps, singly, requests):
        counts = [len(requests[i]) for i in members]
        for i, outcome in zip(members, await steps.computed_async(batch, counts), strict=True):
            outcomes[i] = outcome
    return outcomes


async def _regrouped(
    steps: Steps, singly: list[tuple[list[int], Any]], requests: list[Any]
) -> list[tuple[list[int], Any]]:
    """The requests that are fine alone as one batch; where they don't stack, as they are."""
    if len(singly) < 2:
        return singly
    together = [i for (i,), _ in singly]
    try:
        return [(together, await steps.again(steps.joined([requests[i] for i in together])))]
    except Exception as error:
        # Shapes that differ, say: nobody is to blame, so each runs alone.
        log.info("process_request takes these %d requests singly only: %r", len(singly), error)
        return singly


async def _blamed(steps: Steps, items: Any, error: Exception) -> HandlerError | ItemError:
    """The error of one request whose process_request raised, with the index of its lowest failing item."""
    if not isinstance(error, ItemError):
        return failure("process_request", error)
    if error.index in range(len(items)):
        return error.at(error.index)
    for i in range(len(items)):
        try:
            await steps.again(steps.joined([items[i : i + 1]]))
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
