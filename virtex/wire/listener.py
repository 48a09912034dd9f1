"""serve(): an application on a socket, inside a program that has an event loop of its own.

Rules: knows sockets, connections, and when a service starts and ends. Of signals and processes it knows nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl as tls
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..limits import Limits
from .acceptor import Acceptor, Share
from .addresses import UnixSocket, bind_tcp
from .connections import Connections
from .protocol import hosted

log = logging.getLogger("virtex")

QUICK_START_SECONDS = 0.5  # a startup that takes no longer refuses nobody: who connects meanwhile waits for it
HANDSHAKE_SECONDS = 2.0  # for the TLS of a connection that was accepted just before the server stopped


class Listener:
    """An application and its listening sockets; `async with` drains it at the end. Made by serve(), which starts it."""

    def __init__(
        self,
        app: Any,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        lifespan: str = "auto",
    ) -> None:
        self._service = hosted(app, limits, clock, lifespan)
        self.connections = Connections(self._service, limits=limits, clock=clock, loop=asyncio.get_running_loop())
        self._acceptors: list[Acceptor] = []
        self._file: UnixSocket | None = None
        self._closed = asyncio.Event()
        self._hurried: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # by close()
        self._deadline = 0.0  # of what was taken, once it stops
        self._stopping: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def sockets(self) -> list[socket.socket]:
        return [acceptor.sock for acceptor in self._acceptors]

    @property
    def port(self) -> int:
        """The port of the first socket: the one chosen, where 0 was asked for."""
        name = self.sockets[0].getsockname()
        if not isinstance(name, tuple):
            raise ValueError(f"expected a TCP socket, but this listener is on {name!r}")
        return int(name[1])

    def begin(self, worker: Any = None) -> asyncio.Task[None]:
        """Begin the application's startup, which start() waits for. worker: what the handler's setup() gets."""
        return asyncio.get_running_loop().create_task(self._service.startup(worker))

    async def start(self, starting: asyncio.Task[None], listen: Callable[[], Awaitable[None]]) -> None:
        """Wait until the application has started, and listen. Raises what its startup raised.

        starting: what begin() gave. listen: called once, when it is time to call `Listener.listen` for each socket.

        A `Server` answers probes while it starts, so it listens meanwhile, unless its setup() holds the loop. Any other
        application listens when it has started.
        """
        try:
            await asyncio.wait({starting}, timeout=QUICK_START_SECONDS if self._service.answers_early else None)
            if starting.done():
                await starting
                await listen()
            else:
                await listen()
                await starting
        finally:
            starting.cancel()

    async def listen(
        self,
        sock: socket.socket,
        backlog: int,
        ssl: tls.SSLContext | None = None,
        share: Share | None = None,
    ) -> None:
        """Take connections from one more socket.

        sock: bound, and the listener's from now on. backlog: connections that the kernel keeps until they are accepted.
        ssl: serve https with it.
        share: given where other processes listen on it too, see Acceptor.
        """
        self._acceptors.append(Acceptor(sock, backlog, self.connections, ssl, share))

    async def stop(self, grace: float = 30.0, delay: float = 0.0, hands_over: bool = False) -> None:
        """End the connections as drain() does, which is left to shut the app down.

        Calling it again waits for the first call.

        grace: as there. delay: as there. hands_over: others serve on at these addresses. A check that was accepted is
        to find them served, so the app is unready only when those who were accepted are answered, or half of grace is
        over.
        """
        if self._stopping is None:
            self._deadline = time.monotonic() + grace
            self._stopping = asyncio.get_running_loop().create_task(self._stop(min(delay, grace), hands_over))
        await asyncio.shield(self._stopping)

    async def drain(self, grace: float = 30.0, delay: float = 0.0) -> None:
        """Stop: be unready at once, answer what was taken, cut what is left, shut the app down.

        Calling it again waits for the first call.

        grace: seconds after which what is not answered is cut.
        delay: so many of these seconds new connections are still taken, for a load balancer that takes a while to see
        that this server is unready.
        """
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(grace, delay))
        await asyncio.shield(self._draining)

    async def close(self) -> None:
        """Stop without waiting for answers, nor any longer where drain() waits for them."""
        self._deadline = 0.0
        if not self._hurried.done():
            self._hurried.set_result(None)
        self.connections.abort()
        await self.drain(0)

    async def wait_closed(self) -> None:
        """Returns when drain() or close() is done."""
        await self._closed.wait()

    async def _stop(self, delay: float, hands_over: bool) -> None:
        connections = self.connections
        if not hands_over:
            self._service.drain()
        connections.closing = True
        if delay:
            await asyncio.wait({self._hurried}, timeout=delay)
        self._stop_listening()
        connections.drain()
        if hands_over:
            await self._wait_answered(self._left() / 2)
            self._service.drain()
        await self._wait_answered(self._left())
        connections.abort()
        await connections.wait_empty(1.0)

    async def _drain(self, grace: float, delay: float) -> None:
        try:
            await self.stop(grace, delay)
            left = max(1.0, self._left())
            await asyncio.wait_for(self._service.shutdown(), left)
        except TimeoutError:
            log.warning("the application did not shut down within %g s", left)
        finally:
            self._closed.set()

    def _left(self) -> float:
        """Seconds of grace."""
        return max(0.0, self._deadline - time.monotonic())

    def _stop_listening(self) -> None:
        if self._file is not None:
            self._file.remove()  # first: from now on nobody can come whom the closing socket would reset
        for acceptor in self._acceptors:
            acceptor.close()

    async def _wait_answered(self, seconds: float) -> None:
        """Wait until those who were accepted are answered; give up those whose TLS takes longer than it may."""
        until = time.monotonic() + seconds
        joining = [task for acceptor in self._acceptors for task in acceptor.joining]
        if joining:
            joined: asyncio.Future[Any] = asyncio.gather(*joining, return_exceptions=True)
            most = min(HANDSHAKE_SECONDS, seconds)
            await asyncio.wait([joined, self._hurried], timeout=most, return_when=asyncio.FIRST_COMPLETED)
            joined.cancel()
            await asyncio.wait(joining)
        await self.connections.wait_empty(max(0.0, until - time.monotonic()))

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.drain()


async def serve(
    app: Any,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    sock: socket.socket | None = None,
    uds: str | None = None,
    ssl: tls.SSLContext | None = None,
    backlog: int = 2048,
    limits: Limits | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Listener:
    """Start `app` and serve it on the running event loop; returns when it is ready and listening.

    app: what http_server() made, or any ASGI 3 application. host: it listens on every address of that name. port: 0 is
    any free one. sock: a bound socket, in place of host and port. uds: the path of a unix socket, in place of them. Its
    file is replaced if nobody listens on it, is removed at the end, and has mode 0666, so that a proxy's user may
    connect if the folder lets it. ssl: serve https with it. backlog: connections that the kernel keeps until they are
    accepted. limits: by default those of the `Server`. clock: nanoseconds, monotonic.

    Where executor="thread" or an async setup() leaves the loop free, it listens while the app starts too: /health/live
    answers 200, messages and /health/ready 503.
    Raises what the app's startup raised, or OSError when the address can't be had.
    """
    listener = Listener(app, limits, clock)

    async def listen() -> None:
        if sock is not None:
            socks = [sock]
        elif uds is not None:
            listener._file = UnixSocket(uds)
            socks = [listener._file.sock]
        else:
            socks = bind_tcp(host, port)
        for bound in socks:
            await listener.listen(bound, backlog, ssl)

    try:
        await listener.start(listener.begin(), listen)
    except BaseException:
        await listener.close()
        raise
    return listener
