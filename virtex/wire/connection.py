"""HTTP/1.1 on one connection: bytes in, requests out; answers in, bytes out, in order.

It has requests (read and handed to the service, by its reader), answers (turns to buffers) and a waiting (its state and
its clocks), and is what the transport and the clocks call. It serves any Service by the calls of seam.py.

Rules: it alone ends the connection. What its parts ask of it they ask by the methods without an underscore.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from ..errors import RETRY_SOON, RequestError
from ..service.seam import NEVER
from .answers import Answers
from .connections import Connections, Ends
from .reader import Reader
from .requests import Requests
from .waiting import (
    DRAIN_SECONDS,
    DROPPED,
    ENDED,
    HEAD,
    IDLE,
    KEEP_ALIVE,
    LINGER,
    LINGER_SECONDS,
    NEXT,
    SKIPPED,
    Waiting,
    nanoseconds,
)

UNTOLD = 64 << 10  # bytes unsent before TLS calls pause_writing(); with fewer, uvloop's never calls resume_writing()


class Connection:
    """One connection of a service."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.transport: Any = None
        self.reader = Reader(connections.limits)
        self.waiting = Waiting(connections.limits)
        self.answers = Answers(self, connections, self.reader, self.waiting)
        self.requests = Requests(self, connections, self.reader, self.waiting, self.answers)
        self._ends: Ends | None = None
        self._writable: asyncio.Future[None] | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.answers.begin(transport)
        self.requests.begin()
        transport.set_write_buffer_limits(UNTOLD if transport.get_extra_info("sslcontext") else 0)
        self.waiting.since = self.connections.clock()
        if self.connections.add(self):
            self.watch(self.connections.limits.idle_seconds)
        else:
            most = self.connections.limits.connections
            self.requests.refuse(RequestError(503, f"no room for more than {most} connections", RETRY_SOON, "full"))
            self.answers.flush()

    def data_received(self, data: bytes) -> None:
        self.requests.receive(data if type(data) is bytes else bytes(data), 0)

    def eof_received(self) -> bool:
        """A client may end its side and still read (RFC 9112 section 9.6): answer what it asked for, then close.

        Most have left, though: what waits behind a batch is given up.
        """
        self.waiting.is_half = True
        self.requests.take_leave()
        if self.answers.is_due:
            self.answers.flush()
        if self.waiting.clock == LINGER or self.transport.get_extra_info("sslcontext"):
            return False  # TLS ends both directions at once
        return bool(self.answers.turns or self.reader.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.remove(self)
        self.answers.forget()
        self._resume_writer()
        self.requests.forget()

    def pause_writing(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self.waiting.stall(unsent, self.connections.clock())
        self.answers.buffered = max(self.answers.buffered, unsent)
        self.answers.account()
        self.watch(self.connections.limits.write_stall_seconds)
        self.update_reading()

    def resume_writing(self) -> None:
        self.waiting.resume(self.connections.clock())
        self.answers.buffered = 0
        self.answers.account()
        if self.waiting.clock == LINGER:
            self.watch(LINGER_SECONDS)
        elif self.waiting.state == NEXT:
            self.watch(DRAIN_SECONDS if self.connections.draining else self.connections.limits.keep_alive_seconds)
        self._resume_writer()
        self.update_reading()
        self.answers.flush_soon()

    def _resume_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def writable(self) -> asyncio.Future[None]:
        """Done when the client reads again, or is gone."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()
        return self._writable

    def update_reading(self) -> None:
        """Read, unless the client does not read, or we hold as much of what it sent as we want to."""
        reading = self.waiting.wants(len(self.reader.rest) - self.reader.rest_at)
        if reading != self.waiting.reading and not self.transport.is_closing():
            self.waiting.turn(reading, self.connections.clock())
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def go_on(self) -> None:
        """An answer is out: look at what was held back."""
        self.requests.go_on()

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

    # --- ending -----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Close behind the last answer: read what is left of its request, end our side, read until the client ends its.

        RFC 9112 section 9.6: closing with bytes unread makes a reset, which can destroy the answer on its way. A proxy
        may send all of a body before it reads, so there is no size after which it has surely read the answer.
        """
        now = self.connections.clock()
        self.waiting.begin_end(now)
        unsent = self.transport.get_write_buffer_size()
        if unsent and not self.waiting.stalled:
            self.waiting.stall(unsent, now)
        self.watch(LINGER_SECONDS)
        if self.waiting.state == SKIPPED:
            self.waiting.enter(DROPPED)
            self.update_reading()
        else:
            self.reader.drop_rest()
            self.end_our_side()

    def end_our_side(self) -> None:
        """No more is written: what still comes is dropped, until the client ends its side, or a clock."""
        self.waiting.enter(ENDED)
        if self.transport.can_write_eof() and not self.waiting.is_half:
            self.transport.write_eof()
            self.update_reading()
        elif self.requests.unread and not self.waiting.is_half:  # TLS ends both directions at once, so the client does
            self.update_reading()
        else:
            self.transport.close()

    def _linger_less(self) -> None:
        """Nothing came for LINGER_SECONDS, or too little for too long."""
        if self.waiting.state == DROPPED:
            self.requests.unread = True
            self.end_our_side()
            self.watch(LINGER_SECONDS)
        else:
            self.transport.abort()

    def abort(self) -> None:
        """Break off. To a client that reads up to the end, only a reset says that what came was not whole.

        An answer that is all sent is left to arrive.
        """
        if self.answers.turns or self.waiting.stalled or self.transport.get_write_buffer_size():
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:  # which has no resets
                with contextlib.suppress(OSError):  # it is closed
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def drain(self) -> None:
        """The server drains: answer what is here, and what comes at once, then close."""
        self.watch(DRAIN_SECONDS)

    # --- clocks -----------------------------------------------------------------------------------------------

    def watch(self, seconds: float) -> None:
        """Ask for check_clock() after so many seconds, or sooner."""
        self.connections.watch(self, self.connections.clock() + nanoseconds(seconds))

    def check_clock(self, now: int) -> None:
        """Called by Connections when a wait may have lasted too long: end it, or say when to ask again."""
        waiting = self.waiting
        stalled = NEVER
        if waiting.stalled:
            stalled = waiting.until_stalled(self.transport.get_write_buffer_size(), now)
        busy = bool(self.answers.turns or self.reader.rest)
        waited = waiting.until(now, busy, self.connections.drain_since)
        if min(stalled, waited) > now:
            self.connections.watch(self, min(stalled, waited))
        elif stalled <= now:
            self.abort()
        elif waiting.clock == LINGER:
            self._linger_less()
        elif waiting.clock in (IDLE, KEEP_ALIVE):
            self.transport.close()  # RFC 9112 section 9.5: no answer to what was not asked
        else:
            self.requests.time_out("head" if waiting.state == HEAD else "body")
