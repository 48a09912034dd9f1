"""Whether the model of a service is well, as /health/live says it: by what became of its batches, and by its own word.

Rules: neither a clock nor a loop. It is told of batches on the loop's thread; a handler speaks by its Worker, on any.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from ..batch.ring import Batch
from ..handler import Worker
from ..logs import event

log = logging.getLogger("virtex")


class Health:
    """That of one model. worker: what its setup() gets, and by which it may say that it is unhealthy: its own one.

    most: systemic failures in a row that make it unhealthy; None: any number is nothing. Only a failure of requests of
    more than one client counts: what one client sends must not have the process replaced. Any batch of which a request
    got rows ends the row; one that failed otherwise changes nothing.
    """

    def __init__(self, service: str, worker: Any, most: int | None) -> None:
        self.worker = copy.copy(worker) if isinstance(worker, Worker) else Worker(worker.index, worker.count)
        self.worker.service = service
        self._service = service
        self._most = most
        self._failed = 0  # in a row
        self._gone = ""

    @property
    def reason(self) -> str:
        """Why it is not well; "" where it is."""
        return self._gone or self.worker.why_unhealthy or (self._row if self._is_over else "")

    @property
    def _is_over(self) -> bool:
        return self._most is not None and self._failed >= self._most

    @property
    def _row(self) -> str:
        return f"batches of several clients that failed whole: {self._failed} in a row (unhealthy_after={self._most})"

    def breaks(self, reason: str) -> None:
        """What the model runs on is gone for good: no word of anybody makes it well again."""
        if not self._gone:
            self._gone = reason
            self._tell("unhealthy", f"is unhealthy, and /health/live says so: {reason}", logging.ERROR)

    def judge(self, batch: Batch, answered: int) -> None:
        """A batch came back. answered: how many of its spans got rows."""
        if answered:
            was_over, self._failed = self._is_over, 0
            if was_over:
                self._tell("healthy", "is healthy again: a batch was answered", logging.INFO)
        elif batch.laps is not None and batch.laps.systemic and _is_of_several(batch.spans):
            self._failed += 1
            if self._failed == self._most:
                self._tell("unhealthy", f"is unhealthy, and /health/live says so: {self._row}", logging.ERROR)

    def _tell(self, name: str, what: str, level: int) -> None:
        service = self._service
        event(log, f"service_{name}", f"service {service!r} {what}", {"service": service}, level)


def _is_of_several(spans: list[Any]) -> bool:
    """Whether exchanges of more than one client are in it."""
    return len({exchange.client for exchange, _, _ in spans}) > 1
