"""What Server.__call__ is made of: ASGI scopes and messages as heads and bodies, answers as messages.

Rules: the protocol is ASGI 3, HTTP specification 2.0 to 2.5. One request costs two messages, one future and no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..batch.batcher import Batcher
from ..batch.company import Peer
from ..errors import RequestError
from .exchange import Exchange
from .seam import Head, Response, refusal

WATCH_AFTER = 0.05  # seconds, at least, until a request that waits gets a task that sees its client leave
PEERS_KEPT = 1024  # clients that are remembered, before those that mean nothing any more are dropped
GONE = object()  # in place of an answer: the client is


class Wait:
    """A request that waits for its answer.

    over: whether it has come; False when its client has left. watcher: sees its client leave.
    """

    def __init__(self, exchange: Exchange, receive: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.exchange = exchange
        self.receive = receive
        self.over: asyncio.Future[bool] = loop.create_future()
        self.watcher: asyncio.Task[None] | None = None

    def answered(self, _: object) -> None:
        """The answer is there."""
        if not self.over.done():
            self.over.set_result(True)


class Shell:
    """The requests that came by ASGI, in one life of a server. remembers: whether clients are told apart."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int], batcher: Batcher, remembers: bool
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._batcher = batcher
        self._remembers = remembers
        self.peers: dict[Any, Peer] = {}
        self._peers_kept = PEERS_KEPT
        self._waits: set[Wait] = set()
        self._timer: asyncio.TimerHandle | None = None

    def head_of(self, scope: Any) -> Head:
        """A request at the end of its headers."""
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root:
            root = root.rstrip("/")
            if root and (path == root or path.startswith(root + "/")):
                path = path[len(root) :] or "/"
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
        return Head(method, path, headers, length, self.peer(scope.get("client")))

    def peer(self, client: Any) -> Peer | None:
        """The connection as ASGI lets us know it, by address and port; None behind a unix socket."""
        if not client or not client[1] or not self._remembers:
            return None
        key = (client[0], int(client[1]))  # granian gives the port as a string
        peer = self.peers.get(key)
        if peer is None:
            if len(self.peers) >= self._peers_kept:
                self._forget()
            peer = self.peers[key] = Peer()
        return peer

    def _forget(self) -> None:
        """ASGI does not say when a connection ends: forget those that nobody expects, once they are many."""
        self._batcher.company.until(self._clock())
        self.peers = {key: peer for key, peer in self.peers.items() if peer.open or peer.expected_since}
        self._peers_kept = max(PEERS_KEPT, 2 * len(self.peers))

    def take(self, exchange: Exchange, message: Any) -> Any:
        """A message of receive(): None when more must come, else the answer, or the exchange that will have it."""
        if message["type"] == "http.disconnect":
            exchange.cancel("the client left")
            return GONE
        piece = message.get("body")
        if piece:
            try:
                exchange.write(piece if type(piece) is bytes else bytes(piece))
            except RequestError as error:
                exchange.cancel(error.reason)
                return refusal(error.status, error.reason, error.headers)
        return None if message.get("more_body") else exchange.complete()

    def wait(self, exchange: Exchange, receive: Any) -> Wait:
        """Wait for the answer, until end(). Whoever is answered quickly is not watched.

        Who came while the loop was held by a long batch may have left in the meantime, so it is watched at once.
        """
        wait = Wait(exchange, receive, self._loop)
        self._waits.add(wait)
        exchange.add_done_callback(wait.answered)
        if self._timer is None:
            self._timer = self._loop.call_later(WATCH_AFTER, self._watch_old)
        if self._batcher.is_settling:
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

    def _watch(self, wait: Wait) -> None:
        wait.watcher = self._loop.create_task(_watch(wait))


async def _watch(wait: Wait) -> None:
    while (await wait.receive())["type"] != "http.disconnect":
        pass
    wait.exchange.cancel("the client left")
    if not wait.over.done():
        wait.over.set_result(False)


async def refuse_websocket(receive: Any, send: Any) -> None:
    """There is none here: end the handshake, which the client sees as a 403."""
    if (await receive())["type"] == "websocket.connect":
        await send({"type": "websocket.close", "code": 1000})


def retrieve(task: asyncio.Task[None]) -> None:
    """Look at a task's exception, which was logged or does not matter, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()


def start_of(response: Response) -> dict[str, Any]:
    """The message that begins an answer."""
    length = 0
    for buffer in response.buffers:
        length += len(buffer)
    headers = [*response.headers, (b"content-length", b"%d" % length)]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def body_of(response: Response, head: Head) -> dict[str, Any]:
    """The message that ends it."""
    return {"type": "http.response.body", "body": b"" if head.method == "HEAD" else b"".join(response.buffers)}
