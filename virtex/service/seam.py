"""What wire may know of a service: a request's Head, its Exchange, a Response, the Budget, and the Service itself.

Rules: values and bases; neither sockets nor a clock. Beside register.py it is the only file of this room that wire
imports, and it imports none of this room. Of batch it knows the ring's Ticket, so that one object is a request in the
ring and its exchange.

    Service.join(connection) -> peer              a connection begins; each Head that it sends has this peer
    Service.open(head, now) -> Response | Exchange    at the end of the headers: refuse, or take what follows
    Exchange.complete(body, waiter) -> Response | Exchange    the body is all there: answer, or tell the waiter later
    Exchange.write(data)                          of a longer body, ahead of complete(): a piece,
    Exchange.buffer(n), Exchange.charge(n)        or what was read into its place
    Exchange.cancel(reason)                       nobody waits for the answer any more
    Service.leave(peer)                           the connection is gone

An exchange is completed or cancelled once, and answered once at most. What raises RequestError is still to be
cancelled, and its error is the answer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Coroutine
from typing import Any

from ..batch.ring import Ticket
from ..errors import RETRY_SOON, Headers, RequestError, quoted
from ..limits import Limits

NEVER = 1 << 62  # ns: a time that does not come
LEFT = "the client left"  # why an exchange is cancelled; or what was wrong with its body,
CUT_OFF = "the server ended"  # or that the time is over in which it drained
JSON: Headers = ((b"content-type", b"application/json"),)
LAST = 255  # of the requests that the first part of an id is good for

_PATIENCE = re.compile(rb"[1-9][0-9]{0,8}")
_REQUEST_ID = re.compile(rb"[\w.:/+=@-]{1,128}")  # of ASCII: what may stand in a log and in a header as it is


class Head:
    """A request at the end of its headers.

    path: percent-decoded, without query and root path. headers: names in lower case. length: of the body as declared,
    0 for none, None for chunked. peer: what Service.join() gave for its connection, None where the shell can't tell.
    wants: what the service made of it; a shell may put the same head again. service: which one takes it, where several
    are served as one. patience: ns that its client waits for an answer, once the service has looked; 0: it did not say.
    request_id: its x-request-id; b"" where none came that can be repeated as it is.

    Where it came by a socket, more is known. target: as it came. raw_path: its path, not decoded. query: what follows
    its question mark. minor: of HTTP/1.minor. keep_alive: whether another request may follow. expects: whether the
    client waits for 100 Continue.
    """

    def __init__(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], length: int | None, peer: Any
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.length = length
        self.peer = peer
        self.wants: Any = None
        self.service: Service | None = None
        self.patience = 0
        self.request_id = id_in(headers)
        self.target = self.raw_path = self.query = b""
        self.minor = 1
        self.keep_alive = True
        self.expects = False

    def header(self, name: str) -> str:
        """The value of a field, one that came several times joined by ", "; "" where none came.

        name: in any case. Bytes are read as Latin-1, as RFC 9110 section 5.5 has it.
        """
        wanted = name.lower().encode("latin-1")
        return b", ".join([value for field, value in self.headers if field == wanted]).decode("latin-1")


def patience_in(headers: list[tuple[bytes, bytes]]) -> int:
    """For how many ns a client wants to wait for its answer: its x-request-timeout-ms. 0 where none came.

    Raises RequestError (400) for what is no whole number of milliseconds from 1 to 999999999.
    """
    for name, value in headers:
        if name == b"x-request-timeout-ms":
            if not _PATIENCE.fullmatch(value):
                sent = quoted(value.decode("latin-1"))
                raise RequestError(400, f"X-Request-Timeout-Ms {sent!r}: expected whole ms from 1 to 999999999")
            return int(value) * 1_000_000
    return 0


def id_in(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The id that a client gave its request; b"" for none, and for one that can't be repeated as it is."""
    for name, value in headers:
        if name == b"x-request-id":
            return value if _REQUEST_ID.fullmatch(value) else b""
    return b""


class Ids:
    """Ids for the requests that came without: 8 random bytes of this process, and a count, all in hexadecimal.

    The next one is `first` and two digits: those of last + 1, or, behind LAST, of 0 after turn(). Who answers counts so
    in place, for a call would be one more for each answer. One thread at a time: the interpreter's lock sees to it.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """This is another process: its ids are others."""
        self._process = os.urandom(8).hex().encode()
        self._turns = -1
        self.turn()

    def turn(self) -> None:
        """Begin the next LAST + 1 ids."""
        self._turns += 1
        self.first = b"%b%06x" % (self._process, self._turns)
        self.last = -1

    def next(self) -> bytes:
        """One that no other request has."""
        if self.last == LAST:
            self.turn()
        self.last += 1
        return b"%b%02x" % (self.first, self.last)


IDS = Ids()
os.register_at_fork(after_in_child=IDS.renew)


def without_root(path: str, root: str) -> str:
    """The path as the application knows it: what a proxy has put ahead of it is not its business."""
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


class Response:
    """An answer; the shell adds content-length, and the wire date, server and connection.

    headers: names in lower case. buffers: the body in pieces of bytes. size: how many bytes they are. request_id: what
    the log knows it by, where it is no exchange's; b"" for nothing.
    """

    def __init__(self, status: int, headers: Headers, buffers: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.buffers = buffers
        self.size = size_of(buffers)
        self.request_id = b""


def size_of(buffers: list[bytes]) -> int:
    """Bytes in all."""
    size = 0
    for buffer in buffers:
        size += len(buffer)
    return size


def refusal(status: int, reason: str, headers: Headers = (), index: object = None) -> Response:
    """An error as every client of Virtex reads it: {"data": [], "error": reason}, and "index" where it names an item.

    index: which item, as far as it is a whole number: a handler may have given anything.
    """
    at = b',"index":%d' % index if isinstance(index, int) else b""
    body = b'{"data":[],"error":' + json.dumps(reason).encode() + at + b"}"
    return Response(status, JSON + headers, [body])


def plain(status: int, reason: str, headers: Headers = ()) -> Response:
    """An error as clients of a foreign application read it: as plain text."""
    return Response(status, ((b"content-type", b"text/plain; charset=utf-8"), *headers), [reason.encode()])


class Budget:
    """At most `budget` bytes at a time; `held` says how many there are, whoever they are of.

    Whatever a client makes us hold counts, from the byte that arrives to the byte that the kernel has taken: heads,
    bodies and what they become, answers. A byte is charged when it has arrived, not when it was announced.
    parts: how many of them share the memory of the process.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self.parts = 1

    def charge(self, n: int) -> None:
        """So many bytes have arrived. Raises RequestError (503) when that is over the budget; they count anyway."""
        self.held += n
        if self.held > self.budget:
            raise self.refusal()

    def refusal(self) -> RequestError:
        """What to raise when there is no room.

        Its Retry-After is the least there is, for nobody knows when there will be room. Clients let go of bytes, as
        they finish bodies, read answers or leave, and how long a batch takes says nothing of that. Who comes too early
        costs a head.
        """
        reason = f"no room: requests and answers take more than {self.budget} bytes (limits.max_bytes)"
        return RequestError(503, reason, RETRY_SOON, "full")


class Waiter:
    """Who waits for answers, as their exchanges know it: a base, in place of a callback for each."""

    def on_answer(self, exchange: BaseExchange) -> None:
        """The answer is there. Called while a whole batch is being answered."""
        raise NotImplementedError


class BaseExchange(Ticket):
    """One request that was taken, and its answer. A base: what a connection calls.

    gate: who takes the next request with the same head. response: the answer, once it is there. ended: when that was,
    in the clock's nanoseconds. started: part of an answer is out already, so no other can take its place. charged:
    bytes that count against the budget for it. request_id: b"" until it was needed ahead of
    the answer.
    """

    def begin(self, budget: Budget, gate: Gate | None) -> None:
        """In place of __init__, whose arguments would take a detour through Python: 1 % of an answer's time."""
        self.items = self.rows = None
        self.count = self.taken = self.returned = self.born = self.weight = self.place = 0
        self.cut_at = self.batch_size = 0
        self.resolved = self.is_pending = False
        self.budget = budget
        self.gate = gate
        self.response: Response | None = None
        self.ended = 0
        self.charged = 0
        self.started = False
        self.request_id = b""

    def write(self, data: bytes) -> None:
        """Take a piece of the body that has memory of its own. Raises RequestError: 413, 503."""
        raise NotImplementedError

    def buffer(self, n: int) -> memoryview | None:
        """Where a body of n bytes goes, in place of write(); charge() them as they come. None: it is to be written."""
        return None

    def charge(self, n: int) -> None:
        """So many bytes of the body have arrived. Raises RequestError (503) when there is no room for them."""
        self.charged += n
        self.budget.held += n
        if self.budget.held > self.budget.budget:
            raise self.budget.refusal()

    def await_rest(self, now: int) -> None:
        """The body is not all there."""

    def complete(self, body: bytes = b"", waiter: Waiter | None = None) -> Response | BaseExchange:
        """The body is all there: answer at once, or call back with the exchange when `response` is.

        body: all of it where it came with its head, b"" where there is none or it was written. Raises as write().
        """
        raise NotImplementedError

    def leaves(self) -> bool:
        """Its client sends no more: whether it has left, for all one can tell."""
        return False

    def cancel(self, reason: str) -> None:
        """Nobody waits for the answer any more: the client left, or the body broke off."""
        raise NotImplementedError

    def hold(self) -> None:
        """The answer waits to be written: its bytes count, until release()."""

    def release(self) -> None:
        """The answer was written, as far as it concerns the exchange."""
        if self.charged:
            self.budget.held -= self.charged
            self.charged = 0


class Gate:
    """Who takes requests at once, without asking its service first, while is_open: those whose Head it knows."""

    def __init__(self) -> None:
        self.is_open = False

    def open(self, head: Head, now: int) -> Response | BaseExchange:
        """Take a request at the end of its headers, or refuse it; now: the clock, in nanoseconds."""
        raise NotImplementedError


class Service:
    """What connections, listeners and the worker serve: a base. All its calls come on the event loop's thread.

    streams: bodies go to it as it asks for them, and answers come in pieces; so of a connection it gets one request at
    a time. answers_early: there is an answer to every request while it starts, be it a refusal. name: for the log.
    loop: where it lives; None where it does not, in this process.
    """

    streams = False
    answers_early = True
    name = ""
    loop: Any = None

    def __init__(self, limits: Limits, budget: Budget) -> None:
        self.limits = limits
        self.budget = budget

    def join(self, connection: Any) -> Any:
        """A new connection: what the peer of its heads is. connection: its public side."""
        return None

    def leave(self, peer: Any) -> None:
        """A connection is gone, and its exchanges are cancelled: nobody waits for it any more."""

    def open(self, head: Head, now: int) -> Response | BaseExchange:
        """Refuse a request at the end of its headers, answer it if it has no body to wait for, or take it.

        now: the clock, in nanoseconds.
        """
        raise NotImplementedError

    def refuse(self, error: RequestError, head: Head | None = None) -> Response:
        """An error of the protocol as clients of this service read it. head: of its request, where one was read."""
        return refusal(error.status, error.reason, error.headers)

    def meet(self, worker: Any) -> None:
        """Somebody hosts the application that holds it, and sees to its life. worker: what startup() would be given."""

    def begin(self) -> Any:
        """Begin, where nobody has; until it is ready, requests wait. Gives the future of its start."""
        raise NotImplementedError

    def startup(self, worker: Any = None) -> Coroutine[Any, Any, None]:
        """Returns when requests can be answered. Raises what kept it from starting."""
        raise NotImplementedError

    def drain(self) -> None:
        """Be unready from now on; requests are still answered."""

    def shutdown(self) -> Coroutine[Any, Any, None]:
        """Answer what was taken, and end."""
        raise NotImplementedError
