"""A service behind another's ASGI server: scopes and messages become heads and bodies, answers become messages.

Rules: the protocol is ASGI 3, HTTP specification 2.0 to 2.5. Everything of it is here but `Server.__call__` itself: a
coroutine function of a compiled module is taken for ASGI 2. One request costs two messages, one future and no task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ..errors import RequestError
from .admission import Admission
from .exchange import GIVEN_UP, Exchange
from .model import retrieve
from .seam import IDS, LEFT, BaseExchange, Head, Response, Waiter, without_root

log = logging.getLogger("virtex")

WATCH_AFTER = 0.05  # seconds, at least, until a request that waits gets a task that sees its client leave
WORTH_WATCHING = 100_000  # ns that an item computes, from which on it is cheaper to see its client leave: 20 us or so
BY_LIFESPAN = (
    "service %r is started and ended by another server's lifespan: setup() gets worker.index 0 of 1 in each process, "
    "and /health/ready stays 200 until that server has taken its last request (docs/fastapi.md)"
)
GONE = object()  # in place of an answer: the client is


class Wait(Waiter):
    """A request that waits for its answer.

    over: whether it has come; False when its client has left. watcher: sees its client leave.
    """

    def __init__(self, exchange: Exchange, receive: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.exchange = exchange
        self.receive = receive
        self.over: asyncio.Future[bool] = loop.create_future()
        self.watcher: asyncio.Task[None] | None = None

    def on_answer(self, exchange: BaseExchange) -> None:
        """The answer is there."""
        if not self.over.done():
            self.over.set_result(True)


class Shell:
    """The requests that came by ASGI, in one life of a service."""

    def __init__(self, admission: Admission, clock: Callable[[], int]) -> None:
        self._loop = admission.loop
        self._clock = clock
        self._admission = admission
        self._waits: set[Wait] = set()
        self._timer: asyncio.TimerHandle | None = None
        admission.batcher.on_long = self._watch_all

    async def respond(self, service: Any, scope: Any, receive: Any, send: Any) -> None:
        """Answer the request of a scope."""
        head = self.head_of(scope)
        now = self._clock()
        answer: Any = service.open(head, now)
        exchange: Exchange | None = None
        if answer.__class__ is Exchange:
            exchange = answer
            exchange.await_rest(now)
            try:
                answer = self.take(exchange, await receive())
                while answer is None:
                    answer = self.take(exchange, await receive())
                if answer is exchange:
                    wait = self.wait(exchange, receive)
                    try:
                        answer = exchange.result() if await wait.over else GONE
                    finally:
                        self.end(wait)
            except BaseException:
                exchange.cancel(GIVEN_UP)
                raise
        if answer is GONE:
            return
        try:
            request_id = exchange.request_id if exchange is not None else answer.request_id
            await send(start_of(answer, request_id or head.request_id or IDS.next()))
            await send(body_of(answer, head))
        except OSError as error:  # what an ASGI server may say where the client is gone
            log.debug("the client left while it was answered: %s", error)
        finally:
            if exchange is not None:
                exchange.release()

    def head_of(self, scope: Any) -> Head:
        """A request at the end of its headers."""
        path: str = path_of(scope) if scope.get("root_path") else scope["path"]
        length = None
        headers = []
        for name, value in scope["headers"]:
            if not name.islower():
                name = name.lower()  # they should be, and need not
            headers.append((name, value))
            if name == b"content-length" and value.isdigit() and len(value) < 19:
                length = int(value)
        method: str = scope["method"]
        if type(path) is not str or type(method) is not str:  # an HTTPMethod of http, say
            path, method = str.__str__(path), str.__str__(method)
        head = Head(method, path, headers, length, self._admission.peer(scope.get("client")))
        head.query = scope.get("query_string") or b""
        return head

    def take(self, exchange: Exchange, message: Any) -> Any:
        """A message of receive(): None when more must come, else the answer, or the exchange that will have it."""
        if message["type"] == "http.disconnect":
            exchange.cancel(LEFT)
            return GONE
        piece = message.get("body")
        if piece:
            try:
                exchange.write(piece if type(piece) is bytes else bytes(piece))
            except RequestError as error:
                return self._admission.break_off(exchange, error)
        return None if message.get("more_body") else exchange.complete()

    def wait(self, exchange: Exchange, receive: Any) -> Wait:
        """Wait for the answer, until end(). Whoever is answered quickly is not watched.

        Who came while the loop was held by a long batch may have left in the meantime, so it is watched at once, as
        are those who waited when it came back; unless to compute costs no more than to watch.
        """
        wait = Wait(exchange, receive, self._loop)
        self._waits.add(wait)
        exchange.tell(wait)
        if self._timer is None:
            self._timer = self._loop.call_later(WATCH_AFTER, self._watch_old)
        if self._admission.is_settling and self._is_worth_watching():
            self._watch(wait)
        return wait

    def end(self, wait: Wait) -> None:
        """Nobody waits any more."""
        self._waits.remove(wait)
        if wait.watcher is not None:
            wait.watcher.cancel()
            wait.watcher.add_done_callback(retrieve)

    def _watch_old(self) -> None:
        """Watch who waits for long; one timer does for all, and none runs while nobody waits."""
        self._timer = self._loop.call_later(WATCH_AFTER, self._watch_old) if self._waits else None
        since = self._clock() - round(WATCH_AFTER * 1e9)
        for wait in self._waits:
            if wait.exchange.begun <= since and wait.watcher is None:
                self._watch(wait)

    def _watch_all(self) -> None:
        """A long batch is back: who has left is to be known before the next is cut."""
        if self._is_worth_watching():
            for wait in self._waits:
                if wait.watcher is None and not wait.over.done():
                    self._watch(wait)

    def _is_worth_watching(self) -> bool:
        return self._admission.batcher.per_item >= WORTH_WATCHING

    def _watch(self, wait: Wait) -> None:
        wait.watcher = self._loop.create_task(_watch(wait))


async def _watch(wait: Wait) -> None:
    while (await wait.receive())["type"] != "http.disconnect":
        pass
    wait.exchange.cancel(LEFT)
    if not wait.over.done():
        wait.over.set_result(False)


def start_of(response: Response, request_id: bytes) -> dict[str, Any]:
    """The message that begins an answer."""
    headers = [*response.headers, (b"x-request-id", request_id), (b"content-length", b"%d" % response.size)]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def body_of(response: Response, head: Head) -> dict[str, Any]:
    """The message that ends it."""
    return {"type": "http.response.body", "body": b"" if head.method == "HEAD" else b"".join(response.buffers)}


async def answer(open_: Callable[[Head], Response], scope: Any, send: Any) -> None:
    """Answer a request that is for no model, whatever its body. open_: gives the answer."""
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    head = Head(str(scope["method"]), path_of(scope), headers, 0, None)
    response = open_(head)
    await send(start_of(response, head.request_id or IDS.next()))
    await send(body_of(response, head))


def path_of(scope: Any) -> str:
    """The path as the application knows it.

    FastAPI(root_path=) says what a proxy has put ahead of a path, and the proxy may have taken it away again. Then the
    root path of a mounted application begins with what the path has not: its app_root_path, as Starlette calls it.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if path == root or path.startswith(root + "/"):
        return without_root(path, root)
    return without_root(path, root.removeprefix(scope.get("app_root_path", "").rstrip("/")))


async def other_scope(service: Any, kind: str, receive: Any, send: Any) -> None:
    """Live a lifespan, end a websocket's handshake; anything else is refused by raising."""
    if kind == "lifespan":
        while await _lifespan_goes_on(service, (await receive())["type"], send):
            pass
    elif kind != "websocket":
        raise RuntimeError(f"scope type {kind!r}: Virtex serves http and lifespan")
    elif (await receive())["type"] == "websocket.connect":  # the client sees a 403
        await send({"type": "websocket.close", "code": 1000})


async def _lifespan_goes_on(service: Any, told: str, send: Any) -> bool:
    if told == "lifespan.startup":
        try:
            await service.startup()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return False
        if not service.is_hosted:
            log.info(BY_LIFESPAN, service.name, extra={"event": "lifespan", "service": service.name})
        await send({"type": "lifespan.startup.complete"})
    elif told == "lifespan.shutdown":
        await service.shutdown()
        await send({"type": "lifespan.shutdown.complete"})
        return False
    return True
