"""A dry run: the items of one message through the methods of a handler, as the server would run them, without one.

validate() is that; a warm-up and `virtex check` take parts of it, for a server that has no request yet.

Rules: knows steps and messages, and of a handler what Tried says; no queue, and nothing is counted.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Protocol

import orjson

from .batch.outputs import Rows
from .batch.steps import Outcome, Steps
from .errors import HandlerError
from .message import Content, HttpMessage, encode_data
from .service.request import Request


class Tried(Protocol):
    """What a handler has for this, of whichever kind it is."""

    accepts: Sequence[str]

    def _own_steps(self) -> Steps: ...
    def _work_of(self, items: list[Any]) -> Any: ...
    def _own_costs(self, work: Any) -> list[float]: ...
    def _have_numbers(self, items: list[Any]) -> bool: ...


def reply_to(handler: Tried, message: HttpMessage, request: Request | None) -> HttpMessage:
    """The reply to a message. Raises HandlerError and ItemError where there is none.

    request: who is to have asked; None: nobody in particular.
    """
    items = items_for(handler, message)
    if not items:
        return HttpMessage(data=[])
    steps, work = handler._own_steps(), handler._work_of(items)
    askers = [_asker(message, request)] if steps.asks else None
    handler._own_costs(work)  # which may refuse an item
    (outcome,) = _in_a_loop(steps, work, askers)
    if isinstance(outcome, list) and len(outcome) == 1 and type(outcome[0]) is Content:
        return HttpMessage(data=outcome)
    return HttpMessage(**orjson.loads(written_of(handler, items, outcome)))


def items_for(handler: Tried, message: HttpMessage) -> list[Any]:
    """A message's items as the handler would get them. Raises HandlerError for what can't be sent."""
    items = message.data
    if not isinstance(items, list):
        raise HandlerError(f"the message's data is of type {type(items).__name__}; expected a list")
    if handler.accepts and all(isinstance(item, bytes) for item in items):
        return items
    sent: list[Any] = orjson.loads(encode_data(items, "message"))
    return sent


def written_of(handler: Tried, items: list[Any], outcome: Outcome) -> bytes:
    """The reply to these items as JSON. Raises HandlerError and ItemError where there is none."""
    if isinstance(outcome, Exception):
        raise outcome
    if isinstance(outcome, Rows):
        return outcome.json(handler._have_numbers(items))
    return b'{"data":%b}' % encode_data(outcome)


def _asker(message: HttpMessage, request: Request | None) -> Request:
    """Who is to have asked, with what the message says beside its items."""
    asker = Request() if request is None else copy.copy(request)
    if "parameters" in message:
        (asker.parameters,) = orjson.loads(encode_data([message["parameters"]], "message"))
        if not isinstance(asker.parameters, dict):
            kind = type(message["parameters"]).__name__
            raise HandlerError(f"the message's parameters are of type {kind}; expected a dict")
    return asker


def _in_a_loop(steps: Steps, work: Any, askers: list[Any] | None) -> list[Outcome]:
    """The outcomes of a batch that runs as the server runs it: what asyncio refuses there, it refuses here too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _in_a_new_loop(steps, work, askers)
    if not steps.is_async:
        return steps.run(work, askers)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, _in_a_new_loop, steps, work, askers).result()


def _in_a_new_loop(steps: Steps, work: Any, askers: list[Any] | None) -> list[Outcome]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # given, or it would become the thread's own
        return runner.run(outcomes_of(steps, work, askers))


async def outcomes_of(steps: Steps, work: Any, askers: list[Any] | None) -> list[Outcome]:
    """One outcome for each request of a batch, whose steps may be async or not."""
    return await steps.run_async(work, askers) if steps.is_async else steps.run(work, askers)
