"""What an exchange that answers in pieces, as a foreign application does, may ask of its connection.

Rules: it serves one request at a time, whose turn is the only one. It knows the parts of its connection, and the
exchange knows none of them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..service.seam import Head
from .answers import Answers, Turn
from .connections import Connections, Ends
from .reader import Reader
from .replies import CONTINUE, Framing
from .requests import WORTH_SKIPPING, Requests
from .waiting import SKIPPED, Waiting


class Stream:
    """One connection. loop: its event loop. waiting: its state, to be looked at."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._connections: Connections = connection.connections
        self._reader: Reader = connection.reader
        self.waiting: Waiting = connection.waiting
        self._answers: Answers = connection.answers
        self._requests: Requests = connection.requests
        self._ends: Ends | None = None
        self.loop: asyncio.AbstractEventLoop = self._connections.loop or asyncio.get_running_loop()

    # --- the request ----------------------------------------------------------------------------------------------

    def where(self, head: Head) -> tuple[str, Ends, bool]:
        """The prefix of paths that is not the application's business; the connection's ends; whether TLS is spoken.

        It is spoken with us, or with a proxy that is trusted to say so.
        """
        ends = self._ends
        if ends is None:
            ends = self._ends = self._connection.ends
        says = self._connections.secure
        return self._connections.root_path, ends, ends.tls or (says is not None and says(ends.client, head.headers))

    def invite(self) -> None:
        """The application reads the body: now is the time for 100 Continue, if the client waits for it."""
        turn, self._answers.invites = self._answers.invites, None
        if turn is not None and turn is self._answers.current:
            self._connection.transport.write(CONTINUE)

    def hold(self, full: bool) -> None:
        """There is as much of the body as is wanted for now, or room again."""
        self.waiting.full = full
        self._connection.update_reading()

    # --- the answer -----------------------------------------------------------------------------------------------

    def write(self, framing: Framing, piece: bytes, is_first: bool, is_last: bool) -> None:
        """Write a piece of the answer, as it is framed."""
        answers, now = self._answers, self._connections.clock()
        turn = answers.turns[0]
        if is_first and self._must_close(turn):
            framing.closes = True
        answers.stream(framing, piece, is_first, is_last, now)
        if is_last:
            if self.waiting.full:
                self.hold(False)
            self._end(turn, framing.closes, now)

    def _must_close(self, turn: Turn) -> bool:
        """Whether the connection ends with this answer, as far as can be told when its head is written."""
        answers, reader = self._answers, self._reader
        if turn.head is None or not turn.head.keep_alive or turn is answers.last:
            return True
        if (self._connections.closing or self.waiting.is_half) and not reader.rest:
            return True
        skips_rest = reader.body is None and reader.left <= WORTH_SKIPPING and turn is not answers.invites
        return turn is answers.current and not skips_rest

    def _end(self, turn: Turn, closes: bool, now: int) -> None:
        """The answer is out."""
        if turn is self._answers.current:
            self._abandon_body(turn, now)
        if closes or turn is self._answers.last:
            self._answers.give_up_from(0)  # an error may stand behind it, but this one has said that it is the last
            self._connection.end()
        elif self._reader.rest:
            self._requests.go_on()

    def _abandon_body(self, turn: Turn, now: int) -> None:
        """The application answered without waiting for all of the body."""
        if turn is self._answers.invites:
            self._requests.stop_at(turn)
            self._requests.unread = True
        else:
            self._answers.current = None
            self.waiting.enter(SKIPPED)
            self.waiting.since = now

    async def flow(self) -> None:
        """Returns when the client reads again, or is gone."""
        await asyncio.shield(self._connection.writable())

    def abort(self) -> None:
        """Break the connection off."""
        self._connection.abort()

    def close(self) -> None:
        """End the connection without an answer."""
        self._connection.transport.close()
