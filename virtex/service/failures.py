"""What the client is told of a request that failed by no fault of its own, and what the log is told.

Rules: errors in, an error out; no exchange.
"""

from __future__ import annotations

import logging
from typing import Any

from ..errors import RETRY_SOON, HandlerError, ItemError, RequestError, VirtexError
from ..logs import Tracebacks

log = logging.getLogger("virtex")

_REASONS = {
    400: "message",
    404: "path",
    405: "path",
    406: "type",
    408: "slow",
    413: "size",
    415: "type",
    500: "handler",
}
_REASONS |= dict.fromkeys((414, 417, 431, 501, 505), "protocol")


def reason_of(error: VirtexError) -> str:
    """Why its request ends otherwise than with rows, in one word: of metrics.schema's DROPS or ERRORS."""
    if isinstance(error, ItemError):
        return "item"
    return error.dropped or _REASONS.get(error.status, "denied")  # authorize may say any other


def logged(error: Exception, tracebacks: Tracebacks, told: dict[str, Any]) -> RequestError:
    """A 500 that names the step and an id; the log has the cause under that id, its traceback now and then.

    told: request_id, and what else the line of the log has.
    """
    if not isinstance(error, HandlerError):
        raised, error = error, HandlerError(f"the message could not be handled: {type(error).__name__}")
        error.__cause__ = raised
    name = told["request_id"]
    cause, error.__cause__ = error.__cause__, None  # once per batch, whose requests may share the error
    told = {"event": "request_failure", **told}
    if cause is None:
        log.error("request %s: %s", name, error, extra=told)
    else:
        tracebacks.log(cause, "request %s: %s", name, error, **told)
    told_client = RequestError(500, f"{error}; request id {name}")
    told_client.index = error.index
    return told_client


def still_starting(time: int) -> RequestError:
    """A deadline passed before there was a handler. time: that it allowed, in ns."""
    return RequestError(503, f"still starting after {time / 1e9:g} s", RETRY_SOON, "deadline")


def no_answer(time: int, until: int, queued: int, ran: int) -> RequestError:
    """A deadline passed. In ns, time: that it allowed. until, queued, ran: ahead of the queue, in it, behind it."""
    stays = (until, "until it was queued"), (queued, "queued"), (ran, "with the model")
    where = ", ".join(f"{ns / 1e9:.3f} s {stay}" for ns, stay in stays if ns)
    return RequestError(504, f"no answer within {time / 1e9:g} s: {where}", (), "deadline")
