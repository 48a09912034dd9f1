"""serve(): an application on a socket, inside a program that has an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl as tls
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..limits import Limits
from .addresses import UnixSocket, bind_tcp
from .asgi_host import Lifespan
from .connection import HttpProtocol
from .connections import Connections

log = logging.getLogger("virtex")

YIELD_SECONDS = 0.005
QUICK_SECONDS = 0.5  # a startup that takes no longer has nobody refused: whoever connects meanwhile waits for it
RETRY_SECONDS = 0.5
AT_ONCE = 64  # connections that are taken in one turn of the loop
HANDSHAKE_SECONDS = 2.0  # for the TLS of a connection that was accepted just before the server stopped


class Share(Protocol):
    """What a process knows of others that listen on the same socket."""

    def may_accept(self) -> bool:
        """Whether it takes any connection now."""

    def has_more(self, connections: int) -> bool:
        """Whether this process, which has so many, is to let another one be quicker."""

    def waited_in_vain(self) -> None:
        """No other was quicker."""

    def has_company(self) -> bool:
        """Whether another one takes what this one leaves."""


class Acceptor:
    """Takes connections from a socket.

    share: given where other processes listen on it too. The loop's own server takes every connection that waits, so the
    first process to wake would have them all; this one gives a process that has fewer YIELD_SECONDS to be quicker.
    """

    def __init__(
        self,
        sock: socket.socket,
        backlog: int,
        connections: Connections,
        ssl: tls.SSLContext | None = None,
        share: Share | None = None,
    ) -> None:
        self.sock = sock
        self.joining: set[asyncio.Task[Any]] = set()  # accepted, but not among the connections yet
        self._backlog = backlog
        self._connections = connections
        self._ssl = ssl
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(backlog)
        self._loop.add_reader(sock, self._on_waiting)

    def close(self) -> None:
        """Stop, and take what waits already: in the queue of a closed socket it would be reset.

        It is left to the other processes that listen, if one of them is ready.
        """
        if self._share is None or (self._share.may_accept() and not self._share.has_company()):
            for _ in range(self._backlog + 1):  # no more than that waits; what comes meanwhile must not hold us up
                if not self._accept():
                    break
        if self._pause is None:
            self._loop.remove_reader(self.sock)
        else:
            self._pause.cancel()
        self.sock.close()

    def _on_waiting(self) -> None:
        if self._yields():
            self._stop_for(YIELD_SECONDS)
            return
        for _ in range(AT_ONCE):
            if not self._accept() or self._yields():
                return

    def _yields(self) -> bool:
        share = self._share
        if share is None:
            return False
        return not share.may_accept() or share.has_more(len(self._connections.open) + len(self.joining))

    def _stop_for(self, seconds: float) -> None:
        """The socket stays readable meanwhile, so without the pause the loop would spin."""
        if self._pause is None:
            self._loop.remove_reader(self.sock)
            self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        """Whoever else listens was not quicker, so this process takes one all the same."""
        self._pause = None
        self._loop.add_reader(self.sock, self._on_waiting)
        share = self._share
        if (share is None or share.may_accept()) and self._accept() and share is not None:
            share.waited_in_vain()

    def _accept(self) -> bool:
        """Returns whether there was a connection."""
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError:  # no file descriptors or memory left
            log.exception("no connection can be accepted for %g s", RETRY_SECONDS)
            self._stop_for(RETRY_SECONDS)
            return False
        sock.setblocking(False)
        task = self._loop.create_task(self._join(sock))
        self.joining.add(task)
        task.add_done_callback(self.joining.discard)
        return True

    async def _join(self, sock: socket.socket) -> None:
        connections = self._connections
        patience = None if self._ssl is None else connections.limits.idle_seconds
        try:
            _, protocol = await self._loop.connect_accepted_socket(
                lambda: HttpProtocol(connections.app, connections=connections),
                sock,
                ssl=self._ssl,
                ssl_handshake_timeout=patience,
            )
        except (OSError, tls.SSLError) as error:
            log.debug("a connection did not begin: %r", error)
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            if connections.draining:
                protocol.drain()


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
        self._acceptors: list[Acceptor] = []
        self._file: UnixSocket | None = None
        self._closed = asyncio.Event()
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
        share: Share | None = None,
    ) -> None:
        """Take connections from one more bound socket, which is the listener's from now on.

        share: given where other processes listen on it too, see Acceptor.
        """
        self._acceptors.append(Acceptor(sock, backlog, self.connections, ssl, share))

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
            self._stop_listening()
            connections.drain()
            await self._wait_joined(min(HANDSHAKE_SECONDS, deadline - time.monotonic()))
            if grace:
                await connections.wait_empty(max(0.0, deadline - time.monotonic()))
            connections.abort()
            await connections.wait_empty(1.0)
            left = max(1.0, deadline - time.monotonic())
            await asyncio.wait_for(self._lifecycle.shutdown(), left)
        except TimeoutError:
            log.warning("the application did not shut down within %g s", left)
        finally:
            self._closed.set()

    def _stop_listening(self) -> None:
        if self._file is not None:
            self._file.remove()  # first: from now on nobody can come whom the closing socket would reset
        for acceptor in self._acceptors:
            acceptor.close()

    async def _wait_joined(self, seconds: float) -> None:
        """Have those who were accepted last among the connections; give up those who take longer."""
        joining = [task for acceptor in self._acceptors for task in acceptor.joining]
        if joining:
            _, late = await asyncio.wait(joining, timeout=max(0.0, seconds))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

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
    answers 200, messages and /health/ready 503.
    app: what http_server() made, or any ASGI 3 application. Where: every address of `host`, and port (0: any free one),
    or `sock`, a bound socket, or `uds`, the path of a unix socket. Its file is replaced if nobody listens on it, is
    removed at the end, and has mode 0666, so that a proxy's user may connect if the folder lets it. ssl: serve https
    with it. backlog: connections that the kernel keeps until they are accepted. limits: by default those of the
    `Server`. clock: nanoseconds, monotonic. Raises what the app's startup raised, or OSError when the address can't be
    had.
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
