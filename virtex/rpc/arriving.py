"""Messages that are not all there: how long each is waited for, and how many of them there may be.

grpc holds what has come of a message, and tells nobody how much that is. So one that takes its time is taken for as
large as a message may be, and only so many of them are waited for as fit into limits.max_bytes. One that comes at once
costs nothing here but a timer.

Rules: knows calls by their context, and limits; no services.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import RETRY_SOON, RequestError
from ..limits import Limits, allowance


class Arriving:
    """The messages of one server that are waited for. slow: how many of them take their time."""

    def __init__(self, limits: Limits) -> None:
        self._patience = limits.answer_seconds
        self._grace = min(limits.body_grace_seconds, limits.answer_seconds)
        self._most = max(1, allowance(limits.max_bytes).max_bytes // limits.body)
        self.slow = 0

    async def message(self, context: Any) -> Any:
        """The first message of a call. Raises RequestError: 408 where it does not come in the time of an answer.

        And 503 where it has not come within limits.body_grace_seconds, and there is no room for another such one.
        """
        arrival = _Arrival(self)
        # asyncio.timeout would do the same, for 10 us a call
        arrival.timer = asyncio.get_running_loop().call_later(self._grace, arrival.be_slow)
        try:
            return await context.read()
        except asyncio.CancelledError:
            if arrival.error is None or arrival.task.uncancel():
                raise
            raise arrival.error from None
        finally:
            arrival.timer.cancel()
            self.slow -= arrival.is_slow

    def refusal(self) -> RequestError | None:
        """Why another slow one is not waited for; None where it is."""
        if self._grace == self._patience:
            return self.too_late()
        if self.slow < self._most:
            return None
        reason = f"no room for a message that is not all there beside {self.slow} such ones (limits.max_bytes)"
        return RequestError(503, reason, RETRY_SOON, "full")

    def too_late(self) -> RequestError:
        """The refusal of one that has not come."""
        return RequestError(408, f"no message was all there within {self._patience:g} s (limits.answer_seconds)")

    @property
    def left(self) -> float:
        """Seconds for which a slow one is still waited for."""
        return self._patience - self._grace


class _Arrival:
    """One call that waits for its message."""

    __slots__ = ("all", "error", "is_slow", "task", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, all_: Arriving) -> None:
        self.all = all_
        self.task: Any = asyncio.current_task()
        self.error: RequestError | None = None
        self.is_slow = False

    def be_slow(self) -> None:
        """It has not come at once."""
        refusal = self.all.refusal()
        if refusal is not None:
            self.end(refusal)
        else:
            self.is_slow = True
            self.all.slow += 1
            self.timer = asyncio.get_running_loop().call_later(self.all.left, lambda: self.end(self.all.too_late()))

    def end(self, error: RequestError) -> None:
        """It is waited for no longer."""
        self.error = error
        self.task.cancel()
