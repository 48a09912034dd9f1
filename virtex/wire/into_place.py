"""How a large body is read: by the transport, into its final place.

Rules: stands in for its connection while the rest of the body comes; whatever else happens it passes on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..service.seam import BaseExchange

READ_AT_ONCE = 256 << 10  # bytes; libuv repeats a full read, and other connections wait meanwhile


class BodyIntoPlace(asyncio.BufferedProtocol):
    """The protocol of a transport while the rest of a body comes, which ends where `view` does.

    requests: is told when the body is all there, or when there is no room for it.
    """

    def __init__(self, connection: Any, requests: Any, exchange: BaseExchange, view: memoryview) -> None:
        self._connection = connection
        self._requests = requests
        self._reader = requests.reader
        self._waiting = requests.waiting
        self._exchange = exchange
        self._view = view

    def get_buffer(self, sizehint: int) -> memoryview:
        at = len(self._view) - self._reader.left
        return self._view[at : at + READ_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        exchange, reader = self._exchange, self._reader
        reader.left -= nbytes
        self._waiting.received += nbytes
        exchange.charged += nbytes
        budget = exchange.budget
        budget.held += nbytes
        if budget.held > budget.budget:
            self._requests.placed(budget.refusal())
        elif not reader.left:
            self._requests.placed(None)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()  # type: ignore[no-any-return]

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
