"""serve(): an application on a socket, inside a program that has an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl as tls
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .asgi import Lifespan
from .connections import Connections
from .limits import Limits
from .protocol import HttpProtocol

log = logging.getLogger("virtex")

YIELD_SECONDS = 0.005
QUICK_SECONDS = 0.5  # a startup that takes no longer has nobody refused: whoever connects meanwhile waits for it
RETRY_SECONDS = 0.5


class Acceptor:
    """Takes connections from a socket that other processes listen on too, one per turn of the loop.

    The loop's own server takes every connection that waits, so the first process to wake would have them all. has_more:
    told how many connections it has, says whether this process has more than another; then it gives that other
    YIELD_SECONDS to be quicker. may_accept: whether it takes any at all now.
    """

    def __init__(
        self,
        sock: socket.socket,
        connections: Connections,
        ssl: tls.SSLContext | None,
        has_more: Callable[[int], bool],
        may_accept: Callable[[], bool],
    ) -> None:
        self.sockets = (sock,)
        self._sock = sock
        self._connections = connections
        self._ssl = ssl
        self._has_more = has_more
        self._may_accept = may_accept
        self._loop = asyncio.get_running_loop()
        self._joining: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._on_waiting)

    def close(self) -> None:
        """Take what waits already, then stop: a connection left in the queue of a closed socket is reset."""
        while self._may_accept() and self._accept():
            pass
        if self._pause is None:
            self._loop.remove_reader(self._sock)
        else:
            self._pause.cancel()
        self._sock.close()

    def _on_waiting(self) -> None:
        if not self._may_accept() or self._has_more(len(self._connections.open) + len(self._joining)):
            self._stop_for(YIELD_SECONDS)
        else:
            self._accept()

    def _stop_for(self, seconds: float) -> None:
        """The socket stays readable meanwhile, so without the pause the loop would spin."""
        if self._pause is None:
            self._loop.remove_reader(self._sock)
            self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        """Whoever else listens was not quicker, so this process takes one all the same."""
        self._pause = None
        self._loop.add_reader(self._sock, self._on_waiting)
        if self._may_accept():
            self._accept()

    def _accept(self) -> bool:
        """Returns whether there was a connection."""
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError:  # no file descriptors or memory left
            log.exception("no connection can be accepted for %g s", RETRY_SECONDS)
            self._stop_for(RETRY_SECONDS)
            return False
        sock.setblocking(False)
        task = self._loop.create_task(self._join(sock))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return True

    async def _join(self, sock: socket.socket) -> None:
        connections = self._connections
        try:
            await self._loop.connect_accepted_socket(
                lambda: HttpProtocol(connections.app, connections=connections), sock, ssl=self._ssl
            )
        except (OSError, tls.SSLError) as error:
            log.debug("a connection did not begin: %r", error)
            sock.close()


class Listener:
    """An application and its listening sockets; `async with` drains it at the end. Made by serve(), which starts it."""

    def __init__(
        self,
        app: Any,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        lifespan: str = "auto",
    ) -> None:
        self.connections = Connections(app, limits=limits, clock=clock, loop=asyncio.get_running_loop())
        self._lifecycle = app if self.connections.direct else Lifespan(app, self.connections.state, lifespan)
        self._servers: list[asyncio.Server | Acceptor] = []
        self._closed = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    @property
    def sockets(self) -> list[Any]:
        return [sock for server in self._servers for sock in server.sockets]

    @property
    def port(self) -> int:
        """The port of the first socket: the one chosen, where 0 was asked for."""
        name = self.sockets[0].getsockname()
        if not isinstance(name, tuple):
            raise ValueError(f"expected a TCP socket, but this listener is on {name!r}")
        return int(name[1])

    def begin(self, worker: Any = None) -> asyncio.Task[None]:
        """The application's startup, begun; for start(). worker: what the handler's setup() gets."""
        return asyncio.get_running_loop().create_task(self._lifecycle.startup(worker))

    async def start(self, starting: asyncio.Task[None], listen: Callable[[], Awaitable[None]]) -> None:
        """Wait until the application has started, and call listen() once. Raises what its startup raised.

        A `Server` answers probes while it starts, so it listens meanwhile, unless its setup() holds the loop. Any other
        application listens when it has started.
        """
        try:
            await asyncio.wait({starting}, timeout=QUICK_SECONDS if self.connections.direct else None)
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
        has_more: Callable[[int], bool] | None = None,
        may_accept: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take connections from one more bound socket, which is the listener's from now on.

        has_more, may_accept: given where other processes listen on it too, see Acceptor.
        """
        connections = self.connections
        if has_more is not None:
            sock.listen(backlog)
            self._servers.append(Acceptor(sock, connections, ssl, has_more, may_accept))
            return
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpProtocol(connections.app, connections=connections), sock=sock, backlog=backlog, ssl=ssl
        )
        self._servers.append(server)

    async def drain(self, grace: float = 30.0, delay: float = 0.0) -> None:
        """Stop: be unready at once, answer what was taken, cut what is left after `grace` seconds, shut the app down.

        delay: so many of these seconds new connections are still taken, for a load balancer that takes a while to see
        that this server is unready. Calling it again waits for the first call.
        """
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(grace, min(delay, grace)))
        await asyncio.shield(self._draining)

    async def close(self) -> None:
        """Stop without waiting for answers."""
        await self.drain(0)

    async def wait_closed(self) -> None:
        """Returns when drain() or close() is done."""
        await self._closed.wait()

    async def _drain(self, grace: float, delay: float) -> None:
        connections = self.connections
        deadline = time.monotonic() + grace
        try:
            self._lifecycle.drain()
            connections.closing = True
            if delay:
                await asyncio.sleep(delay)
            await self._stop_listening()
            connections.drain()
            if grace:
                await connections.wait_empty(grace - delay)
            connections.abort()
            await connections.wait_empty(1.0)
            left = max(1.0, deadline - time.monotonic())
            await asyncio.wait_for(self._lifecycle.shutdown(), left)
        except TimeoutError:
            log.warning("the application did not shut down within %g s", left)
        finally:
            self._closed.set()

    async def _stop_listening(self) -> None:
        """Accept what the kernel has accepted already, or it would be reset; one turn of the loop takes all of it."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)

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

    Where executor="thread" or an async setup() leaves the loop free, it listens while the app starts too: /health/live
    answers 200, everything else 503.
    app: what http_server() made, or any ASGI 3 application. Where: host and port (0: any free one), or `sock`, a bound
    socket, or `uds`, the path of a unix socket. ssl: serve https with it. backlog: connections that the kernel keeps
    until they are accepted. limits: by default those of the `Server`. clock: nanoseconds, monotonic. Raises what the
    app's startup raised, or OSError when the address can't be had.
    """
    listener = Listener(app, limits, clock)
    try:
        await listener.start(listener.begin(), lambda: listener.listen(sock or _bind(host, port, uds), backlog, ssl))
    except BaseException:
        await listener.close()
        raise
    return listener


def _bind(host: str, port: int, uds: str | None) -> socket.socket:
    if uds is not None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address: Any = uds
    else:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"can't listen on {address!r}: {error.strerror}") from None
    sock.setblocking(False)
    return sock
