"""The host of any ASGI 3 application: one request of a connection at a time, one task each.

    AsgiHost                                  the service that hosts the application
    AsgiExchange.write, .complete, .cancel    what a connection calls, as on any exchange
    receive, send                             what the application calls

Rules: of the connection it knows the stream that it answers to, by its public calls. The head of an answer waits for
the first piece of its body, so that a short answer is one write. An answer whose length the application does not say is
chunked, unless it is all there in one message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import RequestError, too_large
from ..limits import Limits, allowance
from ..logs import Tracebacks
from ..service.seam import BaseExchange, Budget, Head, Response, Service, Waiter, plain
from .grammar import Header, decoded
from .guests import Guests
from .lifespan import SPEC_VERSION, Lifespan, Message
from .replies import Framing, Start, check_field, framed, start_of
from .stream import Stream

log = logging.getLogger("virtex")

LATE_SECONDS = 0.5  # for the services inside an application that used up the time of its shutdown
HELD = 64 << 10  # bytes of a body that wait for the application; beyond, its connection is not read


class AsgiHost(Service):
    """A foreign application as a service.

    mode: "auto"; "on": an application without lifespan is an error; "off": it is not asked for one.
    """

    streams = True
    answers_early = False

    def __init__(
        self, app: Callable[..., Awaitable[None]], limits: Limits, clock: Callable[[], int], mode: str = "auto"
    ) -> None:
        super().__init__(limits, Budget(allowance(limits.max_bytes).max_bytes))
        self.app = app
        self.guests = Guests(limits.body)
        self.state: dict[str, Any] = {}
        self.tracebacks = Tracebacks(clock)
        self._lifespan = Lifespan(app, self.state, mode)

    def join(self, connection: Any) -> Stream:
        """A new connection."""
        return Stream(connection)

    def open(self, head: Head, now: int) -> Response | AsgiExchange:
        """Run the application for a request, unless it is too large or there is no room."""
        length = head.length
        if length is not None and length > self.guests.most_body:
            return self.refuse(too_large(length, self.guests.most_body))
        if self.budget.held > self.budget.budget:
            return self.refuse(self.budget.refusal())
        return taken(self, self.budget, head)

    def refuse(self, error: RequestError, head: Head | None = None) -> Response:
        """In plain text: nobody knows how the clients of this application read errors."""
        return plain(error.status, error.reason, error.headers)

    async def startup(self, worker: Any = None) -> None:
        """Returns when the services inside the application, and it itself, are ready.

        Raises what the start of a service raised, and RuntimeError when the application's failed.
        """
        self.guests.take(worker)
        await self.guests.started()
        await self._lifespan.startup()
        await self.guests.started()  # those that were made meanwhile, too

    def drain(self) -> None:
        """The services inside are unready from now on."""
        self.guests.drain()

    async def shutdown(self) -> None:
        """Tell the application, and wait until it is done; then end the services inside.

        Cancelled while the application takes too long, it still gives the services a moment to end.
        """
        try:
            await self._lifespan.shutdown()
        except asyncio.CancelledError:
            async with asyncio.timeout(LATE_SECONDS):
                await self.guests.shutdown()
            raise
        await self.guests.shutdown()


def _bytes(value: Any) -> bytes:
    return value if type(value) is bytes else bytes(value)


def _pairs(headers: Any) -> tuple[Header, ...]:
    """Pairs of bytes, as most applications give them already."""
    given = tuple(headers)
    for pair in given:
        if type(pair) is not tuple or len(pair) != 2:
            break
        if type(pair[0]) is not bytes or type(pair[1]) is not bytes:
            break
    else:
        return given
    return tuple([(bytes(name), bytes(value)) for name, value in given])


def taken(host: AsgiHost, budget: Budget, head: Head) -> AsgiExchange:
    """The exchange of a request that the application is to answer."""
    exchange: AsgiExchange = AsgiExchange.__new__(AsgiExchange)
    exchange._open(host, budget, head)
    return exchange


class AsgiExchange(BaseExchange):
    """One request of an ASGI application and its answer. `charged` is what waits of its body. Made by taken()."""

    def _open(self, host: AsgiHost, budget: Budget, head: Head) -> None:
        """In place of __init__, whose arguments would take a detour through Python."""
        self.begin(budget, None)
        self._host = host
        self._head = head
        self._stream: Stream = head.peer
        # the request's body
        self._body: list[bytes] = []
        self._complete = False
        self._half = False  # the client sends no more
        self._gone = False  # the client, or our interest in it
        self._told = False  # the application knows that the client left
        self._waiter: asyncio.Future[None] | None = None
        # the answer
        self._start: Start | None = None
        self._framing: Framing | None = None  # once its first bytes are written
        self._done = False
        loop = self._stream.loop
        if loop.get_task_factory() is None:
            self._task = asyncio.Task(self._run(), loop=loop, name="request")  # a tenth of a task is its numbered name
        else:
            self._task = loop.create_task(self._run())

    # --- what a connection calls ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._done:
            return
        self._body.append(data)
        self.charge(len(data))
        if self.charged > HELD:
            self._stream.hold(True)
        self._wake()

    def complete(self, body: bytes = b"", waiter: Waiter | None = None) -> BaseExchange:
        if body:
            self.write(body)
        self._complete = True
        self._wake()
        return self

    def cancel(self, reason: str) -> None:
        self._gone = True
        self._drop_body()
        self._wake()

    def leaves(self) -> bool:
        """The client sends no more. It has left, as far as the application hears; what that answers still is sent."""
        self._half = True
        self._wake()
        return False

    def _drop_body(self) -> None:
        if self._body:
            self._body.clear()
            self.release()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- running the application ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._host.app(self._scope(), self.receive, self.send)
        except (Exception, asyncio.CancelledError, SystemExit) as error:  # cancelled: a task that it awaited, say
            if self._gone or self._told:
                log.debug("the application gave up, for its client left: %r", error)
            else:
                self._host.tracebacks.log(error, "the application raised")
        else:
            if not self._done and not self._gone and not self._told:
                log.error("the application returned before its answer was complete")
        if self._done or self._gone:
            return
        if self.started:
            self._stream.abort()  # only a connection that breaks off tells the client that this was not all
        elif self._told:
            self._stream.close()
        else:
            start = start_of(500, ((b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")))
            framing = framed(start, self._head, b"Internal Server Error", True)
            self._emit(framing, framing.begins, True)

    def _scope(self) -> dict[str, Any]:
        head = self._head
        root, ends, is_secure = self._stream.where(head)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "http_version": "1.1" if head.minor else "1.0",
            "method": head.method,
            "scheme": "https" if is_secure else "http",
            "path": root + decoded(head.raw_path.decode("latin-1")) if root else head.path,
            "raw_path": root.encode() + head.raw_path if root else head.raw_path,
            "query_string": head.query,
            "root_path": root,
            "headers": head.headers[:],
            "client": ends.client,
            "server": ends.server,
            "state": dict(self._host.state),
        }

    # --- receive ------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if self._head.expects and not self._gone and not self._done:
            self._stream.invite()
        while not self._gone and not self._done:
            if self._body or self._complete:
                return self._take_body()
            if self._half:
                break
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._told = not self._done
        return {"type": "http.disconnect"}

    def _take_body(self) -> Message:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        more = not self._complete
        if self.charged > HELD:
            self._stream.hold(False)
        self._drop_body()
        if not more:
            self._complete = False  # once only: the next receive() waits for the client to leave
        return {"type": "http.request", "body": body, "more_body": more}

    # --- send -----------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self._done:
            raise RuntimeError(f"expected no message after the answer was complete, got {kind!r}")
        if kind == "http.response.start" and self._start is None:
            self._begin(message)
        elif kind == "http.response.body" and self._start is not None:
            if self._gone:
                raise ConnectionResetError("the client left")
            self._send_body(message)
            if self._stream.waiting.stalled and not self._done:
                await self._stream.flow()
        else:
            expected = "http.response.start" if self._start is None else "http.response.body"
            raise RuntimeError(f"expected the message {expected!r}, got {kind!r}")

    def _begin(self, message: Message) -> None:
        status, headers = message["status"], message.get("headers") or ()
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise RuntimeError(f"http.response.start: expected a status from 200 to 599, got {status!r}")
        # Checked here, while a 500 is still possible.
        self._start = start_of(status, self._usual(_pairs(headers)))

    def _usual(self, headers: tuple[Header, ...]) -> tuple[Header, ...]:
        """The headers without an id of this request: what the others come to is kept."""
        for at, header in enumerate(headers):
            if header[0] == b"x-request-id":
                check_field(header)
                self.request_id = header[1]
                return headers[:at] + headers[at + 1 :]
        return headers

    def _send_body(self, message: Message) -> None:
        body = _bytes(message.get("body", b""))
        end = not message.get("more_body", False)
        framing = self._framing
        if framing is None:
            assert self._start is not None
            framing = framed(self._start, self._head, body, end, self.request_id)
            piece = framing.begins
        else:
            piece = framing.piece(body, end)
        if end and framing.left > 0:
            raise RuntimeError(f"the answer has {framing.left} bytes less than its content-length")
        self._emit(framing, piece, end)

    def _emit(self, framing: Framing, piece: bytes, end: bool) -> None:
        self._framing = framing
        self._done = end
        if end:
            self._drop_body()
        is_first, self.started = not self.started, True
        self._stream.write(framing, piece, is_first, end)
        if end:
            self._wake()
