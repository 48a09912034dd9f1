"""The lane for any ASGI 3 application: one request of a connection at a time, one task each; and the lifespan protocol.

    AsgiExchange.write(data), .complete(), .cancel(reason)    what connection.py calls, as on an Exchange
    receive, send                                             what the application calls

The head of an answer waits for the first piece of its body, so that a short answer is one write. An answer whose length
the application does not say is chunked, unless it is all there in one message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..service.seam import BaseExchange, Head
from .grammar import Header, decoded, end_of_head, has_body, render_head

if TYPE_CHECKING:
    from .answers import Turn
    from .connection import Reader

log = logging.getLogger("virtex")

Message = MutableMapping[str, Any]
HELD = 64 << 10  # bytes of a body that wait for the application; beyond, its connection is not read
SPEC_VERSION = "2.4"  # send() raises OSError once the client has left


class Start:
    """A message http.response.start, checked and rendered.

    lines: of the head, as sent. names: of its fields, in lower case. length: what it says of the body's, in bytes; -1:
    nothing. closes: it asks for the connection's end.
    """

    def __init__(self, status: int, lines: bytes, names: frozenset[bytes], length: int, closes: bool) -> None:
        self.status = status
        self.lines = lines
        self.names = names
        self.length = length
        self.closes = closes


@lru_cache(256)
def _prepare(status: int, headers: tuple[Header, ...]) -> Start:
    """An application answers with the same headers again and again, so what they come to is kept.

    What tells the body's end, and whether the connection goes on, is ours to write. Raises ValueError.
    """
    length, closes = -1, False
    kept: list[Header] = []
    for given, value in headers:
        name = given.lower()
        if name == b"content-length" and value.isdigit() and len(value) < 19:
            length = int(value)
        elif name == b"connection" and b"close" in value.lower():
            closes = True
        if name not in (b"transfer-encoding", b"connection", b"content-length"):
            kept.append((name, value))
    lines = render_head(status, tuple(kept), b"")
    return Start(status, lines, frozenset(name for name, _ in kept), length, closes)


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


class AsgiExchange(BaseExchange):
    """One request of an ASGI application and its answer."""

    def __init__(self, connection: Reader, turn: Turn, request: Head) -> None:
        super().__init__(connection.connections.budget)
        self._connection = connection
        self._turn = turn
        self._request = request
        # the request's body
        self._body: list[bytes] = []
        self._complete = False
        self._gone = False  # the client, or our interest in it
        self._told = False  # the application knows that the client left
        self._waiter: asyncio.Future[None] | None = None
        # the answer
        self._start: Start | None = None
        self._response_done = False
        self._chunked = False
        self._left = -1  # bytes that its content-length still promises; -1: it has none
        self._sent = 0  # bytes of its body
        self._last = False  # the connection closes behind it
        loop = connection.connections.loop or asyncio.get_running_loop()
        if loop.get_task_factory() is None:
            self._task = asyncio.Task(self._run(), loop=loop, name="request")  # a tenth of a task is its numbered name
        else:
            self._task = loop.create_task(self._run())

    # --- what connection.py calls ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._response_done:
            return
        self._body.append(data)
        self.charge(len(data))
        if self.charged > HELD:
            self._connection.hold(True)
        self._wake()

    def complete(self, body: bytes = b"", callback: Callable[[BaseExchange], object] | None = None) -> BaseExchange:
        if body:
            self.write(body)
        self._complete = True
        self._wake()
        return self

    def cancel(self, reason: str) -> None:
        self._gone = True
        self._drop_body()
        self._wake()

    def _drop_body(self) -> None:
        self._body.clear()
        self.release()

    def leaves(self) -> bool:
        """The client sends no more. It has left, as far as the application hears; what that answers still is sent."""
        self._wake()
        return False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- running the application ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        connection = self._connection
        try:
            await connection.app(self._scope(), self.receive, self.send)
        except (Exception, asyncio.CancelledError, SystemExit) as error:  # cancelled: a task that it awaited, say
            if self._gone or self._told:
                log.debug("the application gave up, for its client left: %r", error)
            else:
                connection.connections.tracebacks.log(error, "the application raised")
        else:
            if not self._response_done and not self._gone and not self._told:
                log.error("the application returned before its answer was complete")
        if self._response_done or self._gone:
            return
        if self.started:
            connection.abort()  # only a connection that breaks off tells the client that this was not all
        elif self._told:
            connection.transport.close()
        else:
            self._response_done = True
            self._sent = 0
            body = b"Internal Server Error"
            self._last = True
            self._start = _prepare(500, ((b"content-type", b"text/plain; charset=utf-8"),))
            now = connection._clock()
            self._emit(self._render(self._start, body, True, now), True, now)

    def _scope(self) -> dict[str, Any]:
        request, connection = self._request, self._connection
        shared = connection.connections
        root, ends = shared.root_path, connection.ends
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "http_version": "1.1" if request.minor else "1.0",
            "method": request.method,
            "scheme": "https" if connection.is_secure(request) else "http",
            "path": root + decoded(request.raw_path.decode("latin-1")) if root else request.path,
            "raw_path": root.encode() + request.raw_path if root else request.raw_path,
            "query_string": request.query,
            "root_path": root,
            "headers": request.headers[:],
            "client": ends.client,
            "server": ends.server,
            "state": dict(shared.state),
        }

    # --- receive ------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if self._connection._invites and not self._gone and not self._response_done:
            self._connection.invite(self._turn)
        while not self._gone and not self._response_done:
            if self._body or self._complete:
                return self._take_body()
            if self._connection._ended:
                break
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._told = not self._response_done
        return {"type": "http.disconnect"}

    def _take_body(self) -> Message:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        more = not self._complete
        if self.charged > HELD:
            self._connection.hold(False)
        self._drop_body()
        if not more:
            self._complete = False  # once only: the next receive() waits for the client to leave
        return {"type": "http.request", "body": body, "more_body": more}

    # --- send -----------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self._response_done:
            raise RuntimeError(f"expected no message after the answer was complete, got {kind!r}")
        if kind == "http.response.start" and self._start is None:
            self._begin(message)
        elif kind == "http.response.body" and self._start is not None:
            if self._gone:
                raise ConnectionResetError("the client left")
            self._send_body(message)
            if self._connection._stalled:
                await self._flow()
        else:
            expected = "http.response.start" if self._start is None else "http.response.body"
            raise RuntimeError(f"expected the message {expected!r}, got {kind!r}")

    def _begin(self, message: Message) -> None:
        status, headers = message["status"], message.get("headers") or ()
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise RuntimeError(f"http.response.start: expected a status from 200 to 599, got {status!r}")
        # Checked here, while a 500 is still possible.
        self._start = _prepare(status, _pairs(headers))

    def _send_body(self, message: Message) -> None:
        body = _bytes(message.get("body", b""))
        more = bool(message.get("more_body", False))
        now = self._connection._clock()
        if not self.started:
            assert self._start is not None
            data = self._render(self._start, body, not more, now)
        else:
            data = self._frame(body, not more)
        if not more:
            if self._left > 0:
                raise RuntimeError(f"the answer has {self._left} bytes less than its content-length")
            self._response_done = True
        self._emit(data, not more, now)

    def _emit(self, data: bytes, end: bool, now: int) -> None:
        connection = self._connection
        self.started = True
        if data:
            connection._write([data])
            if connection._stalled:
                connection._account()
        if end:
            self._drop_body()
            if connection._full:
                connection.hold(False)
            assert self._start is not None
            connection.finish(self._last, self._start.status, self._sent, now)
            self._wake()

    def _render(self, start: Start, body: bytes, end: bool, now: int) -> bytes:
        """The head of the answer and the first piece of its body (RFC 9112 section 6.3: how its end is told)."""
        request, connection = self._request, self._connection
        self._last = self._last or start.closes or connection.must_close(self._turn)
        told = has_body(start.status)
        bodiless = not told or request.method == "HEAD"
        if told:
            self._left = start.length
            if start.length < 0 and end and (body or not bodiless):
                self._left = len(body)
            elif start.length < 0 and not bodiless:
                self._chunked = request.minor > 0
                self._last = self._last or not self._chunked  # HTTP/1.0: the connection's end is the body's
        if self._left >= 0:
            framing = end_of_head(self._left)
        else:
            framing = b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        counted = self._left >= 0
        if bodiless:
            self._left = 0
        piece = b"" if bodiless else self._frame(body, end)  # before the head, which says whether it is the last
        head = connection.connections.asgi_head(start, self._last, request.minor, counted, now)
        return b"".join([head, framing, piece])

    def _frame(self, body: bytes, end: bool) -> bytes:
        self._sent += len(body)
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return piece + b"0\r\n\r\n" if end else piece
        if self._left < 0:
            return body
        if len(body) > self._left:
            if self._request.method != "HEAD" and self._start is not None and has_body(self._start.status):
                log.error("the application sent more than its content-length; the excess is dropped")
                self._last = True
            body = body[: self._left]
        self._left -= len(body)
        return body

    async def _flow(self) -> None:
        """Wait while the client does not read."""
        connection = self._connection
        if connection._stalled and not self._response_done:
            if connection.writable is None:
                connection.writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(connection.writable)


class Lifespan:
    """The lifespan of an ASGI application, for serve() and the worker: startup() and shutdown(), each once."""

    def __init__(self, app: Callable[..., Awaitable[None]], state: dict[str, Any], mode: str = "auto") -> None:
        self._app = app
        self._state = state
        self._mode = mode  # "auto", "on": an application without lifespan is an error, "off": it is not asked
        self._task: asyncio.Task[None] | None = None
        self._raised: BaseException | None = None
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    async def startup(self, worker: object = None) -> None:
        """Returns when the application is ready, or has no lifespan. Raises RuntimeError when its startup failed."""
        if self._mode == "off":
            return
        self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            answer = await self._ask("lifespan.startup")
        except asyncio.CancelledError:
            self._task.cancel()  # or it would be asked to shut down what never was up
            raise
        if answer is None and self._mode == "on":
            raise RuntimeError(f"expected the application to have a lifespan, but it raised {self._raised!r}")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"the application did not start: {answer.get('message') or 'it gave no reason'}")

    def drain(self) -> None:
        """An ASGI application is not told."""

    async def shutdown(self) -> None:
        if self._task is None or self._task.done():
            return
        answer = await self._ask("lifespan.shutdown")
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            log.error("the application did not shut down cleanly: %s", answer.get("message") or "it gave no reason")
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": SPEC_VERSION}, "state": self._state}
        try:
            await self._app(scope, self._inbox.get, self._answers.put)
        except (Exception, SystemExit) as error:
            # The specification lets an application that has no lifespan raise here; it is served without.
            self._raised = error
            log.debug("the application has no lifespan: %r", error)

    async def _ask(self, kind: str) -> Message | None:
        assert self._task is not None
        await self._inbox.put({"type": kind})
        answer = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()
