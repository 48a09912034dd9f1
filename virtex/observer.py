"""What a service tells about itself while it runs: Observer, which a user writes, and what one is told.

Rules: no clock, no asyncio; the service and the batcher call at fixed points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class BatchReport(NamedTuple):
    """One batch that came back, as the Observer gets it.

    size: items. cut: why it was cut, "full", "no company", "time" or "drain". waits: seconds that each item waited
    from its admission to the cut. seconds: how long each of the handler's steps took, by its name; decode_item counts
    to process_request, encode_item to process_response. ok: whether every request in it was answered with rows. cost:
    of its items, by the handler's cost(); None without max_batch_cost. retries: calls of the handler that were
    repeated, to find whose item failed.
    """

    size: int
    cut: str
    waits: list[float]
    seconds: dict[str, float]
    ok: bool
    cost: float | None = None
    retries: int = 0


class Observer:
    """What happens in a service, told at fixed points, on the event loop; override what you want to know.

    It must return at once: the loop waits. What it raises is logged and goes no further.
    """

    def request_done(self, status: int, items: int, seconds: float) -> None:
        """A request was answered. status: of HTTP. items: how many it held. seconds: since its headers were read."""

    def request_lost(self, reason: str, status: int, items: int, request_id: str) -> None:
        """A request ended otherwise than with rows: told once for each, with or without request_done().

        reason: one word, as the metrics count it: "full", "predicted", "deadline", "disconnect" or "draining" for what
        the moment brought; "protocol", "slow", "denied", "path", "type", "size", "message" or "item" for what the
        request is; "handler" for what the handler did; "server" for a fault of Virtex. status: of HTTP; 0 where nobody
        was left to be answered. items: how many it held, as far as that was known. request_id: of its answer, and in
        the log.
        """

    def batch_done(self, batch: BatchReport) -> None:
        """A batch came back from the handler. batch: what there is to say of it."""

    def dropped(self, reason: str, items: int) -> None:
        """Items that were in the queue or in a batch were left without an answer of the model.

        reason: "the client left", "deadline passed", or "the server gave the request up". items: how many.
        """


class _Several(Observer):
    """Tells each of several, in their order, whatever those before it raise."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def request_done(self, status: int, items: int, seconds: float) -> None:
        self._tell("request_done", status, items, seconds)

    def request_lost(self, reason: str, status: int, items: int, request_id: str) -> None:
        self._tell("request_lost", reason, status, items, request_id)

    def batch_done(self, batch: BatchReport) -> None:
        self._tell("batch_done", batch)

    def dropped(self, reason: str, items: int) -> None:
        self._tell("dropped", reason, items)

    def _tell(self, what: str, *args: Any) -> None:
        raised: list[Exception] = []
        for observer in self._observers:
            try:
                getattr(observer, what)(*args)
            except Exception as error:
                raised.append(error)
            except SystemExit as error:
                raised.append(RuntimeError(f"raised SystemExit: {error}"))
        if raised:
            raise raised[0] if len(raised) == 1 else ExceptionGroup("several observers raised", raised)


def as_one(given: Observer | Sequence[Observer] | None) -> Observer | None:
    """One observer in place of several; None for none."""
    if given is None or isinstance(given, Observer):
        return given
    return _Several(given) if len(given) > 1 else next(iter(given), None)
