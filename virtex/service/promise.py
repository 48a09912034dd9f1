"""An exchange as the future of its answer: Promise.

Rules: as of exchange.py, and neither the body nor what is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import Any

from .seam import IDS, BaseExchange, Head, Response, Waiter

log = logging.getLogger("virtex")


class _Sleeper(Waiter):
    """A coroutine that awaits an exchange."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_answer(self, exchange: BaseExchange) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Promise(BaseExchange):
    """It has the calls of a future that the shells need, and knows who asked: a base of Exchange."""

    _head: Head
    _waiter: Waiter | None

    @property
    def client(self) -> object:
        """Who sent it: the same for the requests of one connection; itself, where nobody knows of any."""
        peer = self._head.peer
        if peer is None:
            return self
        return peer if peer.first is None else peer.first

    def name(self) -> bytes:
        """The request's id, which its answer will have."""
        self.request_id = self.request_id or self._head.request_id or IDS.next()
        return self.request_id

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

    def _call_back(self) -> None:
        waiter, self._waiter = self._waiter, None  # it may lead back here: a cycle for the garbage collector
        if waiter is not None:
            try:
                waiter.on_answer(self)
            except Exception:
                log.exception("a connection failed to take its answer")
