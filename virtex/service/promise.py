"""An exchange as the future of its answer: Promise.

Rules: as of exchange.py, and neither the body nor what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from .seam import BaseExchange, Response, Waiter


class _Sleeper(Waiter):
    """A coroutine that awaits an exchange."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_answer(self, exchange: BaseExchange) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Promise(BaseExchange):
    """It has the calls of a future that the shells need: a base of Exchange, which tells who waits."""

    _waiter: Waiter | None

    def done(self) -> bool:
        """Whether there is an answer."""
        return self.response is not None

    def result(self) -> Response:
        """The answer. Raises asyncio.InvalidStateError while there is none."""
        if self.response is None:
            raise asyncio.InvalidStateError("not answered yet")
        return self.response

    def tell(self, waiter: Waiter) -> None:
        """Tell who waits when the answer is there, in place of complete(); there can be one."""
        if self.response is None:
            self._waiter = waiter
        else:
            waiter.on_answer(self)

    def __await__(self) -> Generator[Any, None, Response]:
        if self.response is None:
            self._waiter = sleeper = _Sleeper()
            yield from sleeper.over
        self.release()
        return self.result()
