"""The answering half of a connection: answers in the order of the requests, clocks, flow control, the end.

connection.py is the reading half. What a connection waits for is `_wait`, and since when `_since`; connections.py asks,
at the time it was told, whether that has lasted too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import Any, NamedTuple

from ..service.seam import BaseExchange, Head, Response, refusal
from .connections import (
    BODY,
    CLOSE,
    END,
    FIRST_BYTE,
    HEAD,
    KEEP,
    KEEP_1_0,
    NEVER,
    NEXT_HEAD,
    REST_OF_HEAD,
    SECOND,
    TRAILING,
    UNWANTED,
    Connections,
    nanoseconds,
)
from .grammar import CONTINUE, end_of_head, has_body

log = logging.getLogger("virtex")

JOINED = 64 << 10  # bytes; answers up to this are copied into one write, larger ones are handed over in pieces
REST_KEPT = 64 << 10  # bytes of pipelined requests held for later; beyond, the connection is not read
SKIPPED = 64 << 10  # bytes of an unwanted body that are worth reading to keep the connection
LINGER_SECONDS = 2  # a connection that we ended is read until nothing comes for so long
DROP_SECONDS = 60  # and, as is the rest of an unwanted body, for so long at most: by then the answer was read
DRAIN_SECONDS = 0.5  # how long a connection at rest is still read while draining: its request may be on the way


class Ends(NamedTuple):
    """client: None on a unix socket, whose path is then server[0]."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    tls: bool


class Turn:
    """A request's place in the order of its connection: it is answered when all before it are."""

    def __init__(self, request: Head | None, begun: int) -> None:
        self.request = request  # None: what came was none
        self.begun = begun
        self.exchange: BaseExchange | None = None
        self.answer: Response | None = None  # None: it is not there, or comes in pieces
        self.cost = 0  # bytes that its head takes, where it is not the latest's again


class Writer:
    """Answers what connection.py has read."""

    def __init__(self, connections: Connections) -> None:
        # Server
        self.connections = connections
        self.app = connections.app
        self._direct = connections.direct
        self._limits = connections.limits
        self._clock = connections.clock
        self._keep_alive = nanoseconds(connections.limits.keep_alive_seconds)
        self._most = connections.limits.pipelined if connections.direct else 1
        # Connection
        self.transport: Any = None
        self._transport_write: Any = None  # its write
        self._when_answered: Any = None  # _on_answer
        self.watched_until = NEVER
        self._ends: Ends | None = None
        self._turns: list[Turn] = []
        self._last: Turn | None = None  # nothing is read after it, and the connection closes behind its answer
        self._corked = False  # answers are collected, and written when everything at hand has been read
        self._flushable = False  # there may be something to write
        self._ended = False  # the client sends no more; it may still read
        self._unread = False  # part of what the last answer is for is not here yet, and nobody knows how much
        # What it waits for
        self._wait = FIRST_BYTE
        self._since = 0
        self._stalled = 0  # since when the client has read nothing of what we wrote; 0: it reads
        self._unsent = 0
        self.writable: asyncio.Future[None] | None = None  # asgi_host.py awaits it while the client does not read
        # Reading, as far as it must be stopped and resumed
        self._takes_for = HEAD
        self._reading = True
        self._paused = 0  # since when, while it is not read
        self._rest = b""  # read, but not yet looked at from _rest_at on
        self._rest_at = 0
        self._rest_is_due = False  # it is looked at soon
        self._full = False
        self.received = 0  # bytes of the present body
        self._seen = self._seen_at = 0  # how many of them were there when the clock was looked at, and since when
        self._current: Turn | None = None  # the request that is being read
        self._invites = False  # its client waits for 100 Continue
        # What it holds, beside bodies and answers, which their exchanges account for: bytes
        self._partial = b""  # of the head that is being read
        self._head_cost = 0  # of the head that is known
        self._buffered = 0  # of answers that the transport keeps
        self._held = 0  # all that is charged

    # --- what the reading half does ---------------------------------------------------------------------------

    def _read(self, data: bytes, at: int) -> None:
        raise NotImplementedError

    def _time_out(self, what: str) -> None:
        raise NotImplementedError

    def _abandon_body(self, turn: Turn) -> None:
        raise NotImplementedError

    def must_close(self, turn: Turn) -> bool:
        raise NotImplementedError

    def _cancel(self, exchange: BaseExchange, reason: str) -> None:
        """An application that raises while it is told of an end must not keep others from being told."""
        try:
            exchange.cancel(reason)
        except Exception:
            log.exception("the application raised")

    # --- answering --------------------------------------------------------------------------------------------

    def _on_answer(self, answered: BaseExchange) -> None:
        """The answer of a request is there. Called while a whole batch is being answered, so it reads no other request.

        Where others wait too, they are written together, when the batch has been answered.
        """
        if self._corked:
            self._flushable = True
            return
        try:
            if len(self._turns) == 1 and self._turns[0].exchange is answered and not (self._stalled or self._rest):
                self._write_all()
            elif self._turns:
                answered.hold()
                self._flush_soon()
        except Exception:
            self._give_up()

    def _flush_soon(self) -> None:
        if not self._flushable:
            self._flushable = True
            (self.connections.loop or asyncio.get_running_loop()).call_soon(self._flush)

    def finish(self, last: bool, status: int, length: int, now: int) -> None:
        """The answer of the first turn was streamed by asgi_host.py, to its end."""
        turn = self._turns.pop(0)
        turn.exchange = None  # the two would be left to the garbage collector
        self._account()
        if self.connections.access is not None:
            self.connections.access(self, turn, status, length, now - turn.begun)
        if turn is self._current and turn.request is not None:
            self._abandon_body(turn)
        self._since = now
        if last or turn is self._last:
            self._end()
            return
        if self._wait == NEXT_HEAD and now + self._keep_alive < self.watched_until:
            self.connections.watch(self, now + self._keep_alive)
        self._go_on()

    def _flush(self) -> None:
        """Write what can be written; then look at what was held back until now."""
        self._write_answers()
        self._go_on()

    def _has_next(self) -> bool:
        """Whether bytes were held back whose turn it is: no new request while the client leaves answers unread."""
        if not self._rest:
            return False
        return self._takes_for != HEAD or (len(self._turns) < self._most and not self._stalled)

    def _go_on(self) -> None:
        """Look at what was held back, in the order in which it came."""
        if self._has_next() and not self._corked and not self._rest_is_due:
            data, at = self._rest, self._rest_at
            self._drop_rest()
            self._read(data, at)
            self._update_reading()
            self._account()

    def _go_on_soon(self) -> None:
        if self._has_next() and not self._rest_is_due:
            self._rest_is_due = True
            (self.connections.loop or asyncio.get_running_loop()).call_soon(self._rest_is_now)

    def _rest_is_now(self) -> None:
        self._rest_is_due = False
        self._go_on()

    def _give_up(self) -> None:
        log.exception("an answer could not be written; its connection is lost, and no other")
        self.abort()

    def _write_answers(self) -> None:
        self._flushable = False
        try:
            if self._turns:
                self._write_all()
        except Exception:
            self._give_up()

    def _write_all(self) -> None:
        """Write every answer whose turn it is, small ones in one go; none while the client leaves others unread."""
        now = self._clock()
        out: list[Any] = []
        last = False
        turns = self._turns
        shared = self.connections
        while turns and not last and not self._stalled:
            turn = turns[0]
            answer = turn.answer
            if answer is None and turn.exchange is not None:
                answer = turn.exchange.response
            if answer is None:
                if self._invites and self._direct and turn is self._current:
                    self._invites = False
                    out.append(CONTINUE)
                break
            del turns[0]
            last = turn is self._last or ((shared.closing or self._ended) and not (turns or self._rest))
            last = self._render(turn, answer, last, now, out)
            if turn.exchange is not None:
                turn.exchange.release()
                if answer.size() > JOINED:
                    self._write(out)
                    out = []
        if out:
            self._write(out)
        self._account()
        if last:
            self._end()
        elif not turns and self._wait == NEXT_HEAD:
            self._since = now
            if now + self._keep_alive < self.watched_until:
                shared.watch(self, now + self._keep_alive)

    def _render(self, turn: Turn, response: Response, last: bool, now: int, out: list[Any]) -> bool:
        """Append the bytes of an answer; returns whether it is the connection's last."""
        request = turn.request
        says = CLOSE if last else KEEP if request is None or request.minor else KEEP_1_0
        try:
            head = self.connections.head(response.status, response.headers, says, now)
        except ValueError:
            log.exception("an answer could not be sent")
            response, last = refusal(500, "the server made an answer that can't be sent"), True
            head = self.connections.head(500, response.headers, CLOSE, now)
        length = response.size()
        if has_body(response.status):
            out += (head, end_of_head(length))
            if request is None or request.method != "HEAD":
                out += response.buffers
        else:
            out.append(head)
        if self.connections.access is not None:
            self.connections.access(self, turn, response.status, length, now - turn.begun)
        return last

    def _write(self, out: list[Any]) -> None:
        size = 0
        for piece in out:
            size += len(piece)
        self._buffered += size  # the transport keeps all of it until the kernel has taken all of it
        if size <= JOINED or len(out) == 1:
            self.transport.write(b"".join(out))
        else:
            self.transport.writelines(out)
        if not self._stalled:
            self._buffered = 0

    # --- ending -----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Close behind the last answer: read what is left of its request, end our side, read until the client ends its.

        RFC 9112 section 9.6: closing with bytes unread makes a reset, which can destroy the answer on its way. A proxy
        may send all of a body before it reads, so there is no size after which it has surely read the answer.
        """
        if self._takes_for != UNWANTED:
            self._drop_rest()
        self._wait = END
        self._since = self._seen_at = self._clock()
        self.received = self._seen = 0
        unsent = self.transport.get_write_buffer_size()
        if unsent and not self._stalled:
            self._stalled, self._unsent = self._since, unsent
        self._watch(LINGER_SECONDS)
        if self._takes_for == UNWANTED:
            self._update_reading()
        else:
            self._end_our_side()

    def _linger_less(self) -> None:
        """Nothing came for LINGER_SECONDS, or too little for too long."""
        if self._takes_for == UNWANTED:
            self._unread = True
            self._end_our_side()
            self._watch(LINGER_SECONDS)
        else:
            self.transport.abort()

    def _end_our_side(self) -> None:
        self._takes_for = TRAILING
        if self.transport.can_write_eof() and not self._ended:
            self.transport.write_eof()
            self._update_reading()
        elif self._unread and not self._ended:  # TLS ends both directions at once, so the client ends them, or a clock
            self._update_reading()
        else:
            self.transport.close()

    def drain(self) -> None:
        """The server drains: answer what is here, and what comes at once, then close."""
        self._watch(DRAIN_SECONDS)

    def abort(self) -> None:
        """Break off. To a client that reads up to the end, only a reset says that what came was not whole.

        An answer that is all sent is left to arrive.
        """
        if self._turns or self._stalled or self.transport.get_write_buffer_size():
            self.reset()
        else:
            self.transport.abort()

    def reset(self) -> None:
        """End the connection as no answer ends."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:  # which has no resets
            with contextlib.suppress(OSError):  # it is closed
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # --- clocks and flow ----------------------------------------------------------------------------------------

    def _watch(self, seconds: float) -> None:
        self.connections.watch(self, self._clock() + nanoseconds(seconds))

    def check_clock(self, now: int) -> None:
        """Called by Connections when a wait may have lasted too long: end it, or say when to ask again."""
        stalled = self._until_stalled(now)
        waited = self._until_waited(now)
        if min(stalled, waited) > now:
            self.connections.watch(self, min(stalled, waited))
        elif stalled <= now:
            self.abort()
        elif self._wait == END:
            self._linger_less()
        elif self._wait in (FIRST_BYTE, NEXT_HEAD):
            self.transport.close()  # RFC 9112 section 9.5: no answer to what was not asked
        else:
            self._time_out("head" if self._wait == REST_OF_HEAD else "body")

    def _until_stalled(self, now: int) -> int:
        if not self._stalled:
            return NEVER
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._stalled, self._unsent = now, unsent
        if not unsent and self._wait == END:  # nobody else says so where there was too little to pause for
            self._stalled = 0
            self._since = self._seen_at = now
            return NEVER
        return self._stalled + nanoseconds(self._limits.write_stall_seconds)

    def _until_waited(self, now: int) -> int:
        wait, limits = self._wait, self._limits
        if wait in (REST_OF_HEAD, BODY) and not self._reading:
            return now + SECOND  # it is we who make it wait
        if wait == END and self._stalled:
            return NEVER
        if wait in (BODY, END):
            if self.received != self._seen:
                self._seen, self._seen_at = self.received, now
            slow, idle = max(limits.body_grace_seconds, self.received / limits.body_rate), limits.body_idle_seconds
            if wait == END:
                slow, idle = min(slow, DROP_SECONDS), LINGER_SECONDS
            return min(self._since + nanoseconds(slow), self._seen_at + nanoseconds(idle))
        if wait == REST_OF_HEAD:
            return self._since + nanoseconds(limits.header_seconds)
        if self._turns or self._stalled or self._rest:
            return NEVER
        if self.connections.draining:
            return max(self._since, self.connections.drain_since) + nanoseconds(DRAIN_SECONDS)
        return self._since + (self._keep_alive if wait == NEXT_HEAD else nanoseconds(limits.idle_seconds))

    def hold(self, full: bool) -> None:
        """asgi_host.py has as much of the body as it wants to keep, or room again."""
        self._full = full
        self._update_reading()

    def _update_reading(self) -> None:
        """Read, unless the client does not read, or we hold as much of what it sent as we want to."""
        rest = len(self._rest) - self._rest_at
        reading = rest <= REST_KEPT and (self._wait == END or not (self._stalled or self._full))
        if reading != self._reading and not self.transport.is_closing():
            self._reading = reading
            now = self._clock()
            if reading:
                if self._wait in (REST_OF_HEAD, BODY):
                    self._since += now - self._paused
                    self._seen_at += now - self._paused
                self.transport.resume_reading()
            else:
                self._paused = now
                self.transport.pause_reading()

    def _hold_rest(self, data: bytes, at: int) -> None:
        """Keep what came for later. Raises RequestError without room for it, unless its request has its answer."""
        self._rest, self._rest_at = data, at
        self._update_reading()
        self._account()
        if self._takes_for != UNWANTED:
            self.connections.budget.charge(0)

    def _drop_rest(self) -> None:
        self._rest, self._rest_at = b"", 0

    def _account(self) -> None:
        """Charge what the connection holds now. Called wherever that may have become more or less."""
        held = self._head_cost + len(self._partial) + len(self._rest) + self._buffered
        for turn in self._turns:
            held += turn.cost
        self.connections.budget.held += held - self._held
        self._held = held

    def _discard(self, data: bytes) -> bytes:
        """What comes after the last request is read, so that no reset destroys the answer, but never looked at."""
        self.received += len(data)
        return b""

    def pause_writing(self) -> None:
        self._stalled = self._clock()
        self._unsent = self.transport.get_write_buffer_size()
        self._buffered = max(self._buffered, self._unsent)
        self._account()
        self._watch(self._limits.write_stall_seconds)
        self._update_reading()

    def resume_writing(self) -> None:
        self._stalled = self._buffered = 0
        self._account()
        if self._wait == NEXT_HEAD:
            self._since = self._clock()  # while it read an answer, it was not idle
            self._watch(DRAIN_SECONDS if self.connections.draining else self._limits.keep_alive_seconds)
        elif self._wait == END:
            self._since = self._seen_at = self._clock()
            self._watch(LINGER_SECONDS)
        self._resume_writer()
        self._update_reading()
        if self._rest or self._turns:
            self._flush_soon()  # later: the transport is in the midst of writing

    def _resume_writer(self) -> None:
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)
        self.writable = None

    # --- what asgi_host.py asks --------------------------------------------------------------------------------------

    @property
    def ends(self) -> Ends:
        """The connection's two ends. Asked of the socket once: each time is a system call."""
        if self._ends is None:
            ask = self.transport.get_extra_info
            client, server = ask("peername"), ask("sockname")
            self._ends = Ends(
                (client[0], client[1]) if isinstance(client, tuple) else None,
                (server[0], server[1]) if isinstance(server, tuple) else (server, None) if server else None,
                ask("sslcontext") is not None,
            )
        return self._ends

    def invite(self, turn: Turn) -> None:
        """The application reads the body: now is the time for 100 Continue, if the client waits for it."""
        if self._invites and turn is self._current:
            self._invites = False
            self.transport.write(CONTINUE)

    def is_secure(self, request: Head) -> bool:
        """Whether the client speaks TLS, with us or with a proxy that is trusted to say so."""
        says = self.connections.secure
        return self.ends.tls or (says is not None and says(self.ends.client, request.headers))
