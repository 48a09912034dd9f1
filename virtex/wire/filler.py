"""How a large body is read: by the transport, into its final place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answers import Turn
    from .connection import Reader

READ_AT_ONCE = 256 << 10  # bytes; libuv repeats a full read, and other connections wait meanwhile


class Filler(asyncio.BufferedProtocol):
    """Stands in for a connection while the rest of a large body is read."""

    def __init__(self, connection: Reader, turn: Turn, view: memoryview) -> None:
        self._connection = connection
        self._turn = turn
        self._view = view
        self._at = connection.received

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._at : self._at + READ_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        self._connection.received = self._at
        if self._connection.charge(self._turn, nbytes) and self._at == len(self._view):
            self._connection.filled(self._turn)

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
