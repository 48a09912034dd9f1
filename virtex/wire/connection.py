"""HTTP/1.1 on one connection: bytes in, requests out; answers in, bytes out, in order.

The head of a request is checked by llhttp (httptools), whose strictness is never lowered, and by grammar.py for what
llhttp leaves open. Bodies are delimited here: by counting, or by chunked.py. So every parser is fed exactly the bytes
that are its own, and the outcome does not depend on how the bytes were cut into segments.

Rules: one decision to refuse is one close; nothing is processed after it. An error is answered behind the answers of
earlier requests. The client that sends the same head again, as one in a loop does, does not have it parsed again.

Two lanes share all of this. A `Server` is called directly: no scope, no task, one write per answer. Any other
application is an ASGI 3 one (asgi_host.py), and serves one request of a connection at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import httptools

from ..batch.company import Peer
from ..errors import RequestError
from ..limits import Limits
from ..server import Server
from ..service.exchange import Exchange, Keeper
from ..service.seam import Head, Response, plain, refusal
from .answers import SKIPPED, Turn, Writer
from .asgi_host import AsgiExchange
from .chunked import ChunkedBody
from .connections import (
    BODY,
    CHUNKED,
    COUNTED,
    END,
    HEAD,
    NEVER,
    NEXT_HEAD,
    NOTHING,
    REST_OF_HEAD,
    TRAILING,
    UNWANTED,
    Connections,
    shared_by,
)
from .filler import Filler
from .grammar import Request, find_fault, has_method, parse_request, skip_empty_lines

log = logging.getLogger("virtex")

LARGE = 64 << 10  # bytes; a body with more to come than this is read by the kernel into its final place
HEAD_KEPT = 2048  # bytes; a longer head is parsed anew each time, so that idle connections stay small
FIELD_BYTES = 200  # that the objects of one header field take, about
UNTOLD = 64 << 10  # bytes unsent of which TLS does not tell pause_writing(); told of fewer, uvloop's never goes on
STEPS = 16  # requests of one connection that are read at a time; then others have their turn


class Reader(Writer):
    """The reading half of a connection."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        # Connection
        self._peer: Peer | None = Peer() if self._direct else None
        self._parser: httptools.HttpRequestParser | None = None
        self._admission: Keeper | None = None  # where the server takes requests in its present life
        self._known = b""  # the latest head, with what it says
        self._request: Request | None = None
        self._head: Head | None = None
        # Request being read
        self._body: ChunkedBody | None = None
        self._left = 0  # bytes of its body, as declared, that are still to come

    # --- asyncio.Protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._transport_write, self._when_answered = transport.write, self._on_answer  # made once, not for each answer
        transport.set_write_buffer_limits(UNTOLD if transport.get_extra_info("sslcontext") else 0)
        self._since = self._clock()
        if not self.connections.add(self):
            most = self._limits.connections
            self._refuse(RequestError(503, f"no room for more than {most} connections", ((b"retry-after", b"1"),)))
            self._flush()
            return
        self._watch(self._limits.idle_seconds)

    def data_received(self, data: bytes) -> None:
        self._read(data if type(data) is bytes else bytes(data), 0)

    def _read(self, data: bytes, at: int) -> None:
        self._corked = True
        try:
            if self._rest:
                self._hold_rest(self._rest[self._rest_at :] + data, 0)
            else:
                self._take_all(data, at)
        except RequestError as error:
            self._refuse(error)
        except Exception:
            self._fail()
        self._corked = False
        if self._ended:
            self._take_leave()
        if self._flushable:
            self._write_answers()
        if self._ended and not self._turns and not self._rest and self._wait != END:
            self._end()
        if self._rest:
            self._go_on_soon()

    def _take_all(self, data: bytes, at: int) -> None:
        """Take the bytes from `at` on, but only a few requests: each connection has its turn."""
        steps = 0
        while at < len(data):
            if steps == STEPS:
                self._hold_rest(data, at)
                return
            steps += 1
            at = self._take(data, at)

    def eof_received(self) -> bool:
        """A client may end its side and still read (RFC 9112 section 9.6): answer what it asked for, then close.

        Most have left, though: what waits behind a batch is given up.
        """
        self._ended = True
        self._take_leave()
        if self._flushable:
            self._flush()
        # TLS ends both directions at once
        return bool(self._turns or self._rest) and self._wait != END and not self.transport.get_extra_info("sslcontext")

    def _take_leave(self) -> None:
        """Nothing more comes, but what was held back: give up what would wait, and end behind the rest."""
        turns = self._turns
        unfinished = None if self._rest else self._current
        for at, turn in enumerate(turns):
            # RFC 9112 section 8: half a request is not one
            if turn is unfinished or (type(turn.answer) is not Response and turn.exchange.leaves()):  # type: ignore[union-attr]
                self._forget_from(at)
                break
        if turns and not self._rest:
            self._stop_at(turns[-1])

    def _forget_from(self, at: int) -> None:
        """Nobody waits for the answers to these requests."""
        for turn in self._turns[at:]:
            if turn.exchange is not None and type(turn.answer) is not Response:
                self._tell(turn.exchange.cancel, "the client left")
        del self._turns[at:]
        self._current = None
        self._drop_rest()
        self._account()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.remove(self)
        self._takes_for = NOTHING
        self._partial, self._head_cost, self._buffered = b"", 0, 0
        self._when_answered = None  # the two would keep each other
        self._resume_writer()
        self._forget_from(0)
        if self._peer is not None:
            self._tell(self.app.leave, self._peer)

    # --- reading: each takes bytes from a place on, and returns where the next is to begin ---------------------------

    def _take(self, data: bytes, at: int) -> int:
        takes_for = self._takes_for
        if takes_for == HEAD:
            return self._read_head(data, at)
        if takes_for == COUNTED:
            return self._read_length(data, at)
        if takes_for == CHUNKED:
            return self._read_chunks(data, at)
        if takes_for == UNWANTED:
            return self._skip_body(data, at)
        if takes_for == TRAILING:
            self._discard(data[at:])
        return len(data)

    def _read_head(self, data: bytes, at: int) -> int:
        if len(self._turns) >= self._most or self._stalled:
            self._hold_rest(data, at)
            return len(data)
        is_known = bool(self._known) and data.startswith(self._known, at) and not self._partial
        if is_known:
            at += len(self._known)
        else:
            at = self._take_head(data, at)
            if at < 0:
                return len(data)
        request, head = self._request, self._head
        assert request is not None and head is not None
        exchange: Any
        own: Exchange | None
        self.connections.requests += 1
        now = self._clock()
        self._current = turn = Turn(request, now)
        self._turns.append(turn)
        if not is_known:
            self._keep_head(turn, len(request.headers))
        admission = self._admission
        if admission is not None and admission.is_open and head.wants is not None:
            exchange = admission.open(head, now)
        else:
            exchange = self.app.open(head, now) if self._direct else self._open_asgi(head, now)
            if type(exchange) is Exchange and type(self.app).open is Server.open:
                self._admission = exchange.admission
        if type(exchange) is Response:
            self._decline(turn, exchange, len(data) - at)
            return at
        turn.exchange = exchange
        length = request.length
        if length is None or at + length > len(data):
            return self._begin_body(turn, data, at, now)
        end = at + length
        if length:
            own = exchange if type(exchange) is Exchange else None  # typed, so that C calls C
            if own is None:
                exchange.write(data[at:end])
            else:
                own.write(data[at:end])
        self._complete(turn)
        return end

    def _take_head(self, data: bytes, at: int) -> int:
        """Where the head that begins at `at` ends in `data`; -1 while it is not whole.

        llhttp sees each byte as it comes, so what can't be HTTP is refused before its end has come; but for the
        method, of which it does not say whether it was a token.
        """
        before = len(self._partial)
        fed = before if b" " in self._partial else 0
        if before:
            data, at = self._partial + data, 0  # nothing was taken of `data` yet
        if data[at] in b"\r\n":
            at, fed = skip_empty_lines(data, at), 0
        end = data.find(b"\r\n\r\n", at + max(0, before - 3)) + 4
        raw = data[at:end] if end > 3 else data[at:]
        fault = find_fault(raw, self._limits)
        seen = raw if fault is None else raw[: fault[0]]
        if fed or (seen != b"\r" and has_method(seen)):
            self._feed_head(seen[fed:])
        if fault is not None:
            raise fault[1]
        if end < 4:
            self._wait_for_head(raw)
            return -1
        self._partial = b""
        self._wait = NEXT_HEAD
        request = parse_request(raw, self._limits)
        path = request.path
        root = self.connections.root_path
        if root and (path == root or path.startswith(root + "/")):
            path = path[len(root) :] or "/"
        self._request = request
        self._head = Head(request.method, path, request.headers, request.length, self._peer)
        if request.length != 0:
            self._step_over_body(request, data, end)
        self._known = raw
        return end - before

    def _keep_head(self, turn: Turn, fields: int) -> None:
        """Charge a head that was parsed, for as long as it is kept; a long one only until it is answered."""
        turn.cost = self._head_cost = len(self._known) + FIELD_BYTES * fields
        if len(self._known) > HEAD_KEPT:
            self._known, self._head_cost = b"", 0
            self._request = self._head = None
        self._account()

    def _feed_head(self, piece: bytes) -> None:
        """Let llhttp check the next bytes of a head. Raises: RequestError."""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(None)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # RFC 9110 section 7.8: we ignore the offer, so the body is a body still; llhttp would take it for another
            # protocol, or, in a later segment, for a request of its own.
            self._parser = None
        except httptools.HttpParserInvalidMethodError:
            raise RequestError(501, "expected a method of HTTP at the start of the request line") from None
        except httptools.HttpParserError as error:
            reason = str(error)
            raise RequestError(
                505 if reason == "Invalid HTTP version" else 400, f"expected HTTP/1.1: {reason}"
            ) from None

    def _wait_for_head(self, raw: bytes) -> None:
        if self._wait != REST_OF_HEAD and raw not in (b"", b"\r"):
            self._wait = REST_OF_HEAD
            self._since = self._clock()
            self._watch(self._limits.header_seconds)
        self._partial = raw
        self._account()
        self.connections.bodies.charge(0)  # raises where there is no room

    def _step_over_body(self, request: Request, data: bytes, at: int) -> None:
        """Bring llhttp to the next head: over a short body that is here already, or by a new parser."""
        length = request.length
        if self._parser is not None and length is not None and length <= min(LARGE, len(data) - at):
            self._parser.feed_data(memoryview(data)[at : at + length])
        else:
            self._parser = None

    def _begin_body(self, turn: Turn, data: bytes, at: int, now: int) -> int:
        request, exchange = turn.request, turn.exchange
        assert request is not None and exchange is not None
        if type(exchange) is Exchange:
            exchange.await_rest(now)
        self._wait = BODY
        self._since = now
        self.received, self._seen = 0, -1
        self._watch(self._limits.body_grace_seconds)
        here = len(data) - at
        self._invites = request.expects and not here
        if self._invites and self._direct:  # an ASGI application invites by reading
            self._flushable = True
        if request.length is None:
            self._body = ChunkedBody(self._limits, exchange.write)
            self._takes_for = CHUNKED
        elif request.length - here > LARGE and not isinstance(exchange, AsgiExchange):
            self._fill(turn, exchange.buffer(request.length), memoryview(data)[at:])
            return len(data)
        else:
            self._left = request.length
            self._takes_for = COUNTED
        return at

    def _read_length(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._left]
        self.received += len(piece)
        self._left -= len(piece)
        turn = self._current
        assert turn is not None and turn.exchange is not None
        turn.exchange.write(piece)
        if not self._left:
            self._complete(turn)
        return at + len(piece)

    def _read_chunks(self, data: bytes, at: int) -> int:
        turn, body = self._current, self._body
        assert turn is not None and body is not None
        end = body.feed(data, at)
        self.received += end - at
        if body.complete:
            self._body = None
            self._complete(turn)
        return end

    def _fill(self, turn: Turn, view: memoryview, data: memoryview) -> None:
        """Let the transport read the rest of a large body into its final place: no copy is made of it on the way."""
        view[: len(data)] = data
        self._takes_for = COUNTED
        self._left = len(view) - len(data)
        self.received = len(data)
        turn.exchange.charge(len(data))  # type: ignore[union-attr]
        self.transport.set_protocol(Filler(self, turn, view))

    def charge(self, turn: Turn, nbytes: int) -> bool:
        """Bytes of a large body came; when there is no room for them, refuse it and say False."""
        self._left -= nbytes
        try:
            turn.exchange.charge(nbytes)  # type: ignore[union-attr]
        except RequestError as error:
            self.transport.set_protocol(self)
            self._refuse(error)
            self._flush()
            return False
        return True

    def filled(self, turn: Turn) -> None:
        self.transport.set_protocol(self)
        self._corked = True
        try:
            self._complete(turn)
        except Exception:
            self._fail()
        self._corked = False
        self._flush()

    def _skip_body(self, data: bytes, at: int) -> int:
        if self._body is None:
            size = min(self._left, len(data) - at)
            self._left -= size
            end = at + size
        else:
            try:
                end = self._body.feed(data, at)
            except RequestError:  # its request has its answer, and where it would end nobody knows now
                self._body, self._left, self._unread = None, 0, True
                end = len(data)
        self.received += end - at
        if not self._left and (self._body is None or self._body.complete):
            self._end_skipping()
        return end

    def _end_skipping(self) -> None:
        self._body = None
        if self._wait == END:
            self._end_our_side()
        else:
            self._wait = NEXT_HEAD
            self._takes_for = HEAD if self._last is None else TRAILING
            self._since = self._clock()

    def _complete(self, turn: Turn) -> None:
        """The request is all there: hand it over, and wait for the next."""
        request = turn.request
        exchange: Any = turn.exchange
        answer: Any
        own: Exchange | None
        assert request is not None
        own = exchange if type(exchange) is Exchange else None
        turn.answer = answer = exchange.complete() if own is None else own.complete()
        self._current = None
        if not request.keep_alive:
            self._stop_at(turn)
        elif self._wait != NEXT_HEAD:
            self._wait = NEXT_HEAD
            self._takes_for = HEAD
        if type(answer) is Response:
            self._flushable = True
        elif own is not None:
            own.add_done_callback(self._when_answered)
        elif answer is not None:
            answer.add_done_callback(self._when_answered)

    # --- refusing ---------------------------------------------------------------------------------------------

    def _decline(self, turn: Turn, response: Response, here: int) -> None:
        """The application answers without the body: skip what is left of it, and end the connection if that is long."""
        request = turn.request
        assert request is not None
        self._current = None
        self._flushable = True
        turn.answer = response
        length = request.length
        left = 0 if length is None else max(length - here, 0)
        if request.expects and (length is None or left):
            # RFC 9110 section 10.1.1: its client may or may not send the body now; only a close is clear
            self._stop_at(turn)
            self._unread = True
        elif length == 0:
            if not request.keep_alive:
                self._stop_at(turn)
        else:
            if not request.keep_alive or length is None or left > SKIPPED:
                self._last = turn
            self._body = ChunkedBody(self._limits, len) if length is None else None
            self._left = min(length or 0, NEVER)
            self._skip()

    def _skip(self) -> None:
        """Read the rest of a body that has its answer, and drop it; `_left` or `_body` says how much it is."""
        self._wait = BODY
        self._since = self._clock()
        self.received, self._seen = 0, -1
        self._takes_for = UNWANTED
        self._watch(self._limits.body_grace_seconds)

    def _refuse(self, error: RequestError) -> None:
        """Answer an error in place of the request that is being read, and read no other."""
        turn = self._current
        if turn is None:
            turn = Turn(None, self._clock())
            self._turns.append(turn)
        if turn.exchange is not None:
            self._tell(turn.exchange.cancel, error.reason)
            if isinstance(turn.exchange, AsgiExchange) and turn.exchange.started:
                self.abort()  # half of another answer is out
                return
        if self._direct:
            turn.answer = refusal(error.status, error.reason, error.headers)
        else:
            turn.answer = plain(error.status, error.reason, error.headers)
        goes_on = self._takes_for == COUNTED and self._left > 0
        self._stop_at(turn)
        if goes_on:
            self._skip()
        else:
            self._unread = True

    def _time_out(self, what: str) -> None:
        if self._takes_for == UNWANTED:  # its request has its answer, and that may wait for others'
            self._stop_at(self._turns[-1]) if self._turns else self.transport.close()
        else:
            self.transport.set_protocol(self)
            self._takes_for = TRAILING  # the rest of a body that did not come is not waited for
            self._refuse(RequestError(408, f"expected the rest of the {what} sooner"))
        self._flush()

    def _fail(self) -> None:
        log.exception("a request could not be read")
        self._refuse(RequestError(500, "the server failed to read the request"))

    def _stop_at(self, turn: Turn) -> None:
        self._last = turn
        self._current = None
        self._flushable = True
        self._partial = b""
        self._drop_rest()
        self._body = None
        self._account()
        self.received = 0
        self._wait = NEXT_HEAD  # there is none, but while an answer is out nothing is waited for
        self._takes_for = TRAILING

    # --- the ASGI lane ------------------------------------------------------------------------------------------

    def _open_asgi(self, head: Head, now: int) -> AsgiExchange | Response:
        turn = self._turns[-1]
        assert turn.request is not None
        if head.length is not None and head.length > self._limits.body:
            return plain(413, f"expected a body of at most {self._limits.body} bytes, got {head.length}")
        if self.connections.bodies.is_full():
            full = self.connections.bodies.refusal()
            return plain(full.status, full.reason, full.headers)
        return AsgiExchange(self, turn, turn.request)

    def must_close(self, turn: Turn) -> bool:
        """Whether the connection ends with this answer, as far as can be told when its head is written."""
        request = turn.request
        assert request is not None
        reads_on = turn is not self._current or (self._skips_rest() and not self._invites)
        ends = self.connections.closing or self._ended
        return not request.keep_alive or turn is self._last or (ends and not self._rest) or not reads_on

    def _skips_rest(self) -> bool:
        """Whether what is unread of the body is little enough to be read and dropped."""
        return self._body is None and self._left <= SKIPPED

    def _abandon_body(self, turn: Turn) -> None:
        """The application answered without waiting for all of the body."""
        if self._invites:
            self._stop_at(turn)
            self._unread = True
        else:
            self._current = None
            self._takes_for = UNWANTED


class HttpProtocol(Reader, asyncio.Protocol):
    """One connection; `loop.create_server(lambda: HttpProtocol(app), ...)` serves `app` in your own program.

    app: a `Server`, which starts itself on the first request, or any ASGI 3 application, whose lifespan is then your
    business (serve() runs both). limits: by default those of the `Server`. clock: nanoseconds, monotonic.
    connections: what all connections of one server share; by default one object per loop and app.
    """

    __slots__ = ()

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        loop: asyncio.AbstractEventLoop | None = None,
        connections: Connections | None = None,
    ) -> None:
        super().__init__(connections or shared_by(app, limits, clock, loop))
