"""Requests: what comes on a connection, read and handed to the service.

Rules: one decision to refuse is one close; nothing is processed after it. An error is answered behind the answers of
earlier requests. Of the transport it only says which protocol reads it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..errors import RequestError
from ..service.seam import BaseExchange, Gate, Head, Response, without_root
from .answers import Answers, Turn
from .connections import Connections
from .into_place import BodyIntoPlace
from .reader import LARGE, Reader
from .waiting import (
    A_BODY,
    A_HEAD,
    CHUNKED,
    CHUNKS,
    COUNTED,
    DROPPED,
    GONE,
    HEAD,
    LAST,
    LINGER,
    NEXT,
    PLACED,
    SKIPPED,
    SKIPS,
    Waiting,
)

log = logging.getLogger("virtex")

WORTH_SKIPPING = 64 << 10  # bytes of an unwanted body that are worth reading to keep the connection
STEPS = 16  # requests of one connection that are read at a time; then others have their turn


class Requests:
    """The requests of one connection. unread: part of the last is not here, and nobody knows how much of it."""

    def __init__(
        self, connection: Any, connections: Connections, reader: Reader, waiting: Waiting, answers: Answers
    ) -> None:
        self._connection = connection
        self._connections = connections
        self._most = 1 if connections.service.streams else connections.limits.pipelined
        self.reader = reader
        self.waiting = waiting
        self._answers = answers
        self._peer: Any = None
        self._gate: Gate | None = None  # takes the next request, if it has the same head
        self._rest_is_due = False  # what was held back is looked at soon
        self.unread = False

    def begin(self) -> None:
        """The connection is there."""
        self._peer = self._connections.service.join(self._connection)

    def forget(self) -> None:
        """The connection is gone."""
        self.waiting.enter(GONE)
        self.reader.forget()
        self._give_up_from(0)
        peer, self._peer = self._peer, None
        try:
            self._connections.service.leave(peer)
        except Exception:
            log.exception("the service raised while a connection left")
        self._connection = None  # the two would keep each other

    # --- reading: each takes bytes from a place on, and returns where the next is to begin ---------------------------

    def receive(self, data: bytes, at: int) -> None:
        """Take bytes from `at` on: of requests, or what is to be skipped."""
        reader, answers = self.reader, self._answers
        answers.is_corked = True
        try:
            if reader.rest:
                self._hold_rest(reader.rest[reader.rest_at :] + data, 0)
            else:
                self._take_all(data, at)
        except RequestError as error:
            self.refuse(error)
        except Exception:
            self._fail()
        answers.is_corked = False
        if self.waiting.is_half:
            self.take_leave()
        if answers.is_due:
            answers.write()
        if reader.rest:
            self._go_on_soon()
        elif self.waiting.is_half and not answers.turns and self.waiting.clock != LINGER:
            self._connection.end()

    def _take_all(self, data: bytes, at: int) -> None:
        """Take the bytes from `at` on, but only a few requests: each connection has its turn."""
        steps = 0
        while at < len(data):
            if steps == STEPS:
                self._hold_rest(data, at)
                return
            steps += 1
            takes = self.waiting.takes
            if takes == A_HEAD:
                at = self._read_head(data, at)
            elif takes == A_BODY:
                at = self._read_counted(data, at)
            elif takes == CHUNKS:
                at = self._read_chunks(data, at)
            elif takes == SKIPS:
                at = self._skip(data, at)
            else:  # read, so that no reset destroys the answer, but never looked at
                self.waiting.received += len(data) - at
                return

    def _read_head(self, data: bytes, at: int) -> int:
        reader = self.reader
        if len(self._answers.turns) >= self._most or self.waiting.stalled:
            self._hold_rest(data, at)
            return len(data)
        at = reader.read_head(data, at)
        if at < 0:
            self._wait_for_head()
            return len(data)
        now = self._connections.clock()
        head = reader.head
        assert head is not None
        self._connections.heads_taken += 1
        self._answers.current = turn = self._answers.add(head, now)
        if reader.is_new:
            self._meet(turn, head)
        gate = self._gate
        if gate is not None and gate.is_open and head.wants is not None:
            opened = gate.open(head, now)
        else:
            opened = self._connections.service.open(head, now)
        if isinstance(opened, Response):
            self._decline(turn, opened, len(data) - at)
            return at
        turn.exchange = exchange = opened
        self._gate = exchange.gate
        length = -1 if head.length is None else head.length
        if length < 0 or length > len(data) - at:
            return self._begin_body(turn, data, at, now)
        self._complete(turn, data[at : at + length])
        return at + length

    def _wait_for_head(self) -> None:
        if self.waiting.state != HEAD and self.reader.has_begun():
            self.waiting.enter(HEAD)
            self.waiting.since = self._connections.clock()
            self._connection.watch(self._connections.limits.header_seconds)
        self._answers.account()
        self._connections.budget.charge(0)  # raises where there is no room

    def _meet(self, turn: Turn, head: Head) -> None:
        """A head that was parsed is charged for as long as it is kept; a long one only until it is answered."""
        self.waiting.enter(NEXT)
        head.path = without_root(head.path, self._connections.root_path)
        head.peer = self._peer
        self._gate = None  # it is another's, where several services share the connection
        turn.cost = self.reader.cost
        self.reader.forget_long()
        self._answers.account()

    def _begin_body(self, turn: Turn, data: bytes, at: int, now: int) -> int:
        head, exchange = turn.head, turn.exchange
        assert head is not None and exchange is not None
        exchange.await_rest(now)
        here = len(data) - at
        view = None
        if head.length is not None and head.length - here > LARGE:
            view = exchange.buffer(head.length)
        self.reader.begin_body(head.length, exchange)
        self.waiting.begin_body(CHUNKED if head.length is None else COUNTED if view is None else PLACED, now)
        self._connection.watch(self._connections.limits.body_grace_seconds)
        self._answers.invites = turn if head.expects and not here else None
        if head.expects:
            self._answers.is_due = True
        if view is None:
            return at
        self._place(exchange, view, memoryview(data)[at:])
        return len(data)

    def _read_counted(self, data: bytes, at: int) -> int:
        turn = self._answers.current
        assert turn is not None and turn.exchange is not None
        piece = self.reader.read_counted(data, at)
        self.waiting.received += len(piece)
        if self.reader.left:
            turn.exchange.write(piece)
        else:
            self._complete(turn, piece)
        return at + len(piece)

    def _read_chunks(self, data: bytes, at: int) -> int:
        turn = self._answers.current
        assert turn is not None
        end = self.reader.read_chunks(data, at)
        self.waiting.received += end - at
        if self.reader.is_over():
            self.reader.end_body()
            self._complete(turn, b"")
        return end

    def _place(self, exchange: BaseExchange, view: memoryview, data: memoryview) -> None:
        """Let the transport read the rest of a large body into its final place: no copy is made of it on the way."""
        here = len(data)
        view[:here] = data
        self.reader.left -= here
        self.waiting.received = here
        exchange.charge(here)
        self._connection.transport.set_protocol(BodyIntoPlace(self._connection, self, exchange, view))

    def placed(self, error: RequestError | None) -> None:
        """The body is all in its place, or found no room."""
        turn = self._answers.current
        assert turn is not None
        self._connection.transport.set_protocol(self._connection)
        self._answers.is_corked = True
        try:
            if error is not None:
                self.refuse(error)
            else:
                self._complete(turn, b"")
        except Exception:
            self._fail()
        self._answers.is_corked = False
        if self._answers.is_due:
            self._answers.flush()

    def _skip(self, data: bytes, at: int) -> int:
        """Read the rest of a body that has its answer, and drop it."""
        reader = self.reader
        try:
            end = reader.skip(data, at)
        except RequestError:  # where it would end nobody knows now
            reader.end_body()
            self.unread = True
            end = len(data)
        self.waiting.received += end - at
        if reader.is_over():
            reader.end_body()
            self._end_skipping()
        return end

    def _end_skipping(self) -> None:
        if self.waiting.state == DROPPED:
            self._connection.end_our_side()
        else:
            self.waiting.enter(NEXT if self._answers.last is None else LAST)
            self.waiting.since = self._connections.clock()

    def _complete(self, turn: Turn, body: bytes) -> None:
        """The request is all there: hand it over, and wait for the next."""
        head, exchange = turn.head, turn.exchange
        assert head is not None and exchange is not None
        answer = exchange.complete(body, self._answers)
        self._answers.current = None
        if not head.keep_alive:
            self.stop_at(turn)
        elif self.waiting.state != NEXT:
            self.waiting.enter(NEXT)
        if isinstance(answer, Response):
            turn.answer = answer
            self._answers.is_due = True

    # --- what is held back ----------------------------------------------------------------------------------------

    def _hold_rest(self, data: bytes, at: int) -> None:
        """Keep what came for later. Raises RequestError without room for it, unless its request has its answer."""
        self.reader.rest, self.reader.rest_at = data, at
        self._connection.update_reading()
        self._answers.account()
        if self.waiting.takes != SKIPS:
            self._connections.budget.charge(0)

    def _has_next(self) -> bool:
        """Whether bytes were held back whose turn it is: no new request while the client leaves answers unread."""
        if not self.reader.rest:
            return False
        return self.waiting.takes != A_HEAD or (len(self._answers.turns) < self._most and not self.waiting.stalled)

    def go_on(self) -> None:
        """Look at what was held back, in the order in which it came."""
        if self._has_next() and not self._answers.is_corked and not self._rest_is_due:
            data, at = self.reader.rest, self.reader.rest_at
            self.reader.drop_rest()
            self.receive(data, at)
            self._connection.update_reading()
            self._answers.account()

    def _go_on_soon(self) -> None:
        if self._has_next() and not self._rest_is_due:
            self._rest_is_due = True
            (self._connections.loop or asyncio.get_running_loop()).call_soon(self._rest_is_now)

    def _rest_is_now(self) -> None:
        self._rest_is_due = False
        self.go_on()

    # --- refusing and leaving -------------------------------------------------------------------------------------

    def _decline(self, turn: Turn, response: Response, here: int) -> None:
        """The service answers without the body: skip what is left of it, and end the connection if that is long."""
        head = turn.head
        assert head is not None
        self._answers.current = None
        self._answers.is_due = True
        turn.answer = response
        length = head.length
        left = 0 if length is None else max(length - here, 0)
        if head.expects and (length is None or left):
            # RFC 9110 section 10.1.1: its client may or may not send the body now; only a close is clear
            self.stop_at(turn)
            self.unread = True
        elif length == 0:
            if not head.keep_alive:
                self.stop_at(turn)
        else:
            if not head.keep_alive or length is None or left > WORTH_SKIPPING:
                self._answers.last = turn
            self.reader.begin_body(length, None)
            self._begin_skipping()

    def _begin_skipping(self) -> None:
        self.waiting.begin_body(SKIPPED, self._connections.clock())
        self._connection.watch(self._connections.limits.body_grace_seconds)

    def refuse(self, error: RequestError) -> None:
        """Answer an error in place of the request that is being read, and read no other."""
        turn = self._answers.current
        if turn is None:
            turn = self._answers.add(None, self._connections.clock())
        if turn.exchange is not None:
            self._answers.cancel(turn.exchange, error.reason)
            if turn.exchange.started:
                self._connection.abort()  # half of another answer is out
                return
        turn.answer = self._connections.service.refuse(error, turn.head or self.reader.refused())
        goes_on = self.waiting.state in (COUNTED, PLACED) and self.reader.left > 0
        self.stop_at(turn)
        if goes_on:
            self._begin_skipping()
        else:
            self.unread = True

    def _fail(self) -> None:
        log.exception("a request could not be read")
        self.refuse(RequestError(500, "the server failed to read the request", (), "server"))

    def time_out(self, what: str) -> None:
        """The rest of a request did not come in time."""
        answers = self._answers
        if self.waiting.state == SKIPPED:  # its request has its answer, and that may wait for others'
            if answers.turns:
                self.stop_at(answers.turns[-1])
            else:
                self._connection.transport.close()
        else:
            self._connection.transport.set_protocol(self._connection)
            self.waiting.enter(LAST)  # the rest of a body that did not come is not waited for
            self.refuse(RequestError(408, f"expected the rest of the {what} sooner"))
        answers.flush()

    def stop_at(self, turn: Turn) -> None:
        """Read no other request; the connection ends behind the answer to this one."""
        self._answers.last = turn
        self._answers.current = None
        self._answers.is_due = True
        self.reader.stop()
        self._answers.account()
        self.waiting.received = 0
        self.waiting.enter(LAST)

    def take_leave(self) -> None:
        """Nothing more comes, but what was held back: give up what would wait, and end behind the rest."""
        turns, rest = self._answers.turns, self.reader.rest
        unfinished = None if rest else self._answers.current
        for at, turn in enumerate(turns):
            # RFC 9112 section 8: half a request is not one
            if turn is unfinished or turn.leaves():
                self._give_up_from(at)
                break
        if turns and not rest:
            self.stop_at(turns[-1])

    def _give_up_from(self, at: int) -> None:
        """Nobody waits for the answers to these requests."""
        self._answers.give_up_from(at)
        self.reader.drop_rest()
        self._answers.account()
