"""One request, from its headers to its answer: Head, Response, Exchange.

Rules: an exchange is the ring's ticket of its request. It is completed or cancelled once, and answered once at most.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._codec import encode_npy
from .batcher import Peer
from .errors import RETRY_SOON, HandlerError, Headers, ItemError, RequestError
from .message import encode_data
from .ring import Ticket
from .tensor import Rows

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("virtex")

CROWDED = 64 << 10  # bytes of a body from which it is worth knowing how many values are in it
VALUE_BYTES = 100  # that a small Python object and its place in a list take, about

JSON: Headers = ((b"content-type", b"application/json"),)
NPY: Headers = ((b"content-type", b"application/x-npy"),)
ACCEPTS = "application/json, application/x-npy"
KEPT = 512  # bytes; clients send the same three headers again and again, so what those up to this say is kept


class Head:
    """A request at the end of its headers.

    path: percent-decoded, without query and root path. headers: names in lower case. length: of the body as declared,
    0 for none, None for chunked. peer: the connection, None where the shell can't tell.
    """

    __slots__ = ("headers", "length", "method", "path", "peer", "wants")

    def __init__(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], length: int | None, peer: Peer | None
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.length = length
        self.peer = peer
        self.wants: Wants | None = None  # what the server made of it: a shell may put the same head again


class Response:
    """An answer; the shell adds content-length, and protocol.py date, server and connection.

    headers: names in lower case. buffers: the body in pieces of bytes.
    """

    __slots__ = ("buffers", "headers", "status")

    def __init__(self, status: int, headers: Headers, buffers: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.buffers = buffers


def refusal(status: int, reason: str, headers: Headers = ()) -> Response:
    """An error as every client of Virtex reads it: {"data": [], "error": reason}."""
    body = b'{"data":[],"error":' + json.dumps(reason).encode() + b"}"
    return Response(status, JSON + headers, [body])


class Wants(NamedTuple):
    """What the headers say about the bodies: is the request's .npy, and is the reply's to be."""

    sends_npy: bool
    takes_npy: bool


def negotiate(content_type: bytes, content_encoding: bytes, accept: bytes) -> Wants:
    """Read the three headers (RFC 9110 sections 8.3, 8.4, 12.5.1); b"" where one is absent.

    Raises RequestError: 415 for a body that is neither JSON nor .npy or is compressed, 406 when neither may be sent.
    """
    if len(content_type) + len(content_encoding) + len(accept) <= KEPT:
        return _kept(content_type, content_encoding, accept)
    return _negotiate(content_type, content_encoding, accept)


def _negotiate(content_type: bytes, content_encoding: bytes, accept: bytes) -> Wants:
    kind = content_type.partition(b";")[0].strip().lower().decode("latin-1")
    if content_encoding.strip().lower() not in (b"", b"identity"):
        coding = content_encoding.decode("latin-1")
        raise RequestError(
            415, f"Content-Encoding {coding!r}: send the body as it is", ((b"accept-encoding", b"identity"),)
        )
    json_like = kind.endswith(("/json", "+json")) or kind in (
        "",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain",
    )
    if kind != "application/x-npy" and not json_like:
        raise RequestError(415, f"Content-Type {kind!r}: send one of {ACCEPTS}", ((b"accept", ACCEPTS.encode()),))
    return Wants(not json_like, _prefers_npy(accept.decode("latin-1").lower()))


_kept = lru_cache(256)(_negotiate)

# One search finds what concerns us in a long Accept; taking all of it apart would cost a worker 0.1 s for 60 KB.
_RANGE = re.compile(r"(?:^|,)\s*(application/x-npy|application/json|application/\*|\*/\*)\s*(?:;([^,]*))?(?=,|$)")


def _prefers_npy(accept: str) -> bool:
    """Whether .npy is named and JSON not preferred to it; wildcards mean JSON."""
    quality = {}
    for kind, parameters in _RANGE.findall(accept):
        q = next((p.strip()[2:] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
        quality[kind] = float(q) if re.fullmatch(r"[01](\.\d{0,3})?", q) else 1.0
    as_npy = quality.get("application/x-npy", 0.0)
    ranges = ("application/json", "application/*", "*/*")
    as_json = next((quality[r] for r in ranges if r in quality), 0.0)
    if accept.strip() and not as_npy and not as_json:
        raise RequestError(406, f"Accept {accept!r}: the answers are one of {ACCEPTS}")
    return as_npy > 0 and as_npy >= quality.get("application/json", 0.0)


class Exchange(Ticket):
    """One request whose headers were accepted, and the future of its answer. Made by Server.open().

    It has the calls of a future that the shells need. Its callbacks run at once, not in the loop's next iteration:
    answering a batch is one pass over it.
    """

    # fmt: off
    __slots__ = (
        "_arriving", "_body", "_callback", "_charged", "_head", "_response", "_server", "_view", "_wants", "begun",
    )
    # fmt: on

    def __init__(self, server: Server, head: Head, wants: Wants, begun: int) -> None:
        # The ticket's; without a call to its __init__, which would cost a tenth of all that the core does for a request
        self.items = self.rows = []
        self.count = self.taken = self.answered = self.born = 0
        self.resolved = False
        # The exchange's
        self.begun = begun  # when the headers were read, in the clock's nanoseconds
        self._server = server
        self._head = head
        self._wants = wants
        self._arriving = True
        self._body: bytes | bytearray | memoryview = b""
        self._charged = 0  # bytes of it that count against limits.max_bytes
        self._view: memoryview | None = None
        self._response: Response | None = None
        self._callback: Callable[[Exchange], object] | None = None

    def done(self) -> bool:
        """Whether there is an answer."""
        return self._response is not None

    def result(self) -> Response:
        """The answer. Raises asyncio.InvalidStateError while there is none."""
        if self._response is None:
            raise asyncio.InvalidStateError("not answered yet")
        return self._response

    def add_done_callback(self, callback: Callable[[Exchange], object]) -> None:
        """Call callback(exchange) when the answer is there; there can be one."""
        if self._response is None:
            self._callback = callback
        else:
            callback(self)

    def __await__(self) -> Generator[Any, None, Response]:
        if self._response is None:
            waiter = asyncio.get_running_loop().create_future()

            def wake(_: Exchange) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self._callback = wake
            yield from waiter
        return self.result()

    def write(self, data: bytes) -> None:
        """Take a piece of the body that has memory of its own; a single one is not copied.

        Raises RequestError when the body grows beyond limits.body (413), or all of them beyond limits.max_bytes (503);
        cancel() is still to be called.
        """
        self.charge(len(data))
        if not self._body:
            self._body = data
        else:
            self._grow(len(data))[:] = data

    def buffer(self, n: int) -> memoryview:
        """Where the next n bytes of the body go; charge() them as they come, all before the next call but cancel()."""
        if not self._body:
            self._body = self._server.bodies.take(n)
            return self._body
        return self._grow(n)

    def charge(self, n: int) -> None:
        """So many bytes of the body have arrived. Raises RequestError as write() does."""
        self._charged += n
        self._server.bodies.charge(n)
        if self._charged > self._server.limits.body:
            raise self._server.too_large(self._charged)

    def _grow(self, n: int) -> memoryview:
        if self._view is not None:
            self._view.release()
        body = self._body if isinstance(self._body, bytearray) else bytearray(self._body)
        at = len(body)
        body += bytes(n)
        self._body = body
        self._view = memoryview(body)[at:]
        return self._view

    def _charge_values(self) -> None:
        """Parsed JSON may take more than its text: "[[],[],[]" takes thirty times. Raises RequestError (503)."""
        text = bytes(self._body)
        values = sum(map(text.count, (b",", b"[", b"{")))  # each follows a comma or what opens a list or an object
        extra = max(VALUE_BYTES * values - len(text), 0)
        self._charged += extra
        self._server.bodies.charge(extra)

    def _drop_body(self) -> None:
        body, self._body = self._body, b""
        if body.__class__ is memoryview:
            # Later: the transport that has just written its end looks at it until its call is over.
            self._server.loop.call_soon(self._server.bodies.give_back, body)

    def _uncharge(self) -> None:
        self._server.bodies.held -= self._charged
        self._charged = 0

    def complete(self) -> Response | Exchange:
        """The body is all there: answer at once, or admit its items; then the exchange is the future of its answer."""
        self._arriving = False
        self._server.batcher.company.arrived()
        if self._server.is_starting:
            self._server.wait_for_start(self)
            return self
        return self._admit() or self

    def start(self) -> None:
        """The handler is there now: admit what waited for it."""
        if not self.resolved and self._admit() is not None and self._callback is not None:
            self._callback(self)

    def _admit(self) -> Response | None:
        server = self._server
        try:
            self.items = server.read(self._body, self._wants.sends_npy)
            if not len(self.items):
                return self._finish(self._reply([]))
            if self._charged > CROWDED and self.items.__class__ is list and not self._wants.sends_npy:
                self._charge_values()
            server.admit(self)
            self._drop_body()
            if not self.items:  # they are in rows, which were counted before; a list is held until it is answered
                self._uncharge()
            return None
        except Exception as error:  # whatever it is, the request is over and must be counted so
            refused = self._error(error)
        self.items = []  # they and the traceback, which is gone now, read the body
        return self._finish(refused)

    def cancel(self, reason: str) -> None:
        """Nobody waits for the answer any more: the client left, or the body broke off."""
        if self.resolved:
            return
        self.resolved = True
        server = self._server
        self._drop_body()
        self._uncharge()
        if self._arriving:
            self._arriving = False
            server.batcher.company.arrived()
            server.batcher.wake()
        else:
            server.batcher.cancel(self, reason)
            self.items = self.rows = []
        server.settled(self._head.peer)

    def expire(self) -> None:
        """The deadline passed: answer 504, or 503 while the handler is not even there."""
        server = self._server
        seconds = server.limits.answer_seconds
        if server.is_starting:
            error = RequestError(503, f"still starting after {seconds:g} s", RETRY_SOON)
        else:
            error = RequestError(504, f"no answer within {seconds:g} s")
        server.batcher.cancel(self, "deadline passed")
        self.resolve([], error)

    def deliver(self, rows: list[Any] | Rows, error: Exception | None) -> None:
        try:
            response = self._reply(rows) if error is None else self._error(error)
        except Exception as unsendable:  # whatever it is, the other requests of the batch are still to be answered
            response = self._error(unsendable)
        self._finish(response)
        if self._callback is not None:
            try:
                self._callback(self)
            except Exception:
                log.exception("a connection failed to take its answer")

    def _reply(self, rows: list[Any] | Rows) -> Response:
        if rows.__class__ is list and not self._wants.takes_npy:
            return Response(200, JSON, [b'{"data":%b,"error":null}' % encode_data(rows)])
        if isinstance(rows, Rows):
            document = rows.npy() if self._wants.takes_npy else None
            if document is not None:
                return Response(200, NPY, [document])
            return Response(200, JSON, [rows.json()])
        if self._wants.takes_npy and rows:
            stacked = _stacked(rows)
            if stacked is not None:
                return Response(200, NPY, [stacked])
        return Response(200, JSON, [b'{"data":', encode_data(rows), b',"error":null}'])

    def _error(self, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return refusal(error.status, error.reason, error.headers)
        if isinstance(error, ItemError):
            return refusal(error.status, str(error))
        if not isinstance(error, HandlerError):
            cause, error = error, HandlerError(f"the message could not be handled: {type(error).__name__}")
            error.__cause__ = cause
        return self._failure(error)

    def _failure(self, error: Exception) -> Response:
        """A 500 names the step and an id; the log has the cause under that id, its traceback once per batch."""
        request = next((v for k, v in self._head.headers if k == b"x-request-id"), b"")
        sound = re.fullmatch(rb"[\w.:/+=@-]{1,128}", request)
        name = request.decode() if sound else secrets.token_hex(8)
        cause, error.__cause__ = error.__cause__, None
        log.error("request %s: %s", name, error, exc_info=cause)
        return refusal(500, f"{error}; request id {name}")

    def _finish(self, response: Response) -> Response:
        self._response = response
        self.resolved = True
        server = self._server
        if self._body:
            self._drop_body()
        self._uncharge()
        now = server.settled(self._head.peer)
        if server.observer is not None:
            server.batcher.tell(server.observer.request_done, response.status, self.count, (now - self.begun) / 1e9)
        return response


def _stacked(rows: list[Any]) -> bytes | None:
    """The rows as one .npy document; None when they are not arrays of one dtype and shape."""
    if not all(isinstance(row, np.ndarray) for row in rows):
        return None
    try:
        return encode_npy(rows)
    except (TypeError, ValueError):
        return None
