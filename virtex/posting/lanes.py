"""Lanes: each carries one exchange at a time over a connection of its own.

Rules: drives httpcore2, the connections of httpx2, and knows no message. An idle lane can be closed by anyone, one in
use by nobody, and no exchange pays for a pool's look at all the others.

httpcore2 gives each read and each write its own time. Here each gets what is left to the post's deadline, so a server
that drips its answer can't stretch it; and the first byte that is handed to the system is noted.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import httpcore2

from .outcomes import BROKEN, Outcome
from .retries import Post

if TYPE_CHECKING:
    from ssl import SSLContext

PIECE = 1 << 18  # bytes


def _left(post: Post | None) -> float | None:
    left = None if post is None else post.left()
    if left is not None and left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _as(late: type[Exception], broken: type[Exception]) -> Generator[None]:
    """What a socket raises, as httpcore2 says it."""
    try:
        yield
    except TimeoutError as error:
        raise late(error) from error
    except OSError as error:
        raise broken(error) from error


# Plain code


class Lane(httpcore2.NetworkBackend):
    """For one thread at a time. context: for https. expiry: seconds that its connection may idle. uds: a socket's path,
    in place of the URL's host and port.
    """

    def __init__(self, context: SSLContext, expiry: float | None, uds: str | None) -> None:
        self.post: Post | None = None
        self._pool = httpcore2.ConnectionPool(
            context, max_connections=None, keepalive_expiry=expiry, uds=uds, network_backend=self
        )

    def exchange(self, post: Post) -> Outcome:
        """Try a post once."""
        self.post = post
        try:
            response = self._pool.handle_request(post.begin())
            try:
                body = response.read()
            finally:
                response.close()
        except BROKEN as error:
            return Outcome(0, [], b"", error, not post.written)
        finally:
            self.post = None
        return Outcome(response.status, response.headers, body)

    def close(self) -> None:
        """Close its connection."""
        self._pool.close()

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore2.NetworkStream:
        """Called by the pool. Each address of a host has what is left; looking it up can't be bounded."""
        failed: Exception = httpcore2.ConnectError(f"{host} has no address")
        with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _name, address in addresses:
            try:
                return self._connected(socket.socket(family, kind, protocol), address)
            except httpcore2.ConnectError as error:
                failed = error
        raise failed

    def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> httpcore2.NetworkStream:
        """Called by the pool."""
        return self._connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)

    def _connected(self, sock: socket.socket, address: Any) -> httpcore2.NetworkStream:
        try:
            with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
                sock.settimeout(_left(self.post))
                sock.connect(address)
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return _Stream(sock, self)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, sock: socket.socket, lane: Lane) -> None:
        self._sock = sock
        self._lane = lane

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._sock.settimeout(_left(self._lane.post))
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        post, view = self._lane.post, memoryview(buffer)
        with _as(httpcore2.WriteTimeout, httpcore2.WriteError):
            while view:
                self._sock.settimeout(_left(post))
                sent = self._sock.send(view[:PIECE])
                if post is not None:
                    post.written = True
                view = view[sent:]

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        try:
            with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
                self._sock.settimeout(_left(self._lane.post))
                sock = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
        except BaseException:
            self._sock.close()
            raise
        return _Stream(sock, self._lane)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of an idle connection, which has ended if it can be read: nothing was asked
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            return bool(poll.poll(0))
        return getattr(self._sock, "_sslobj", None) if info == "ssl_object" else None


# Coroutines


class AsyncLane(httpcore2.AsyncNetworkBackend):
    """For one task of one loop at a time; arguments as of Lane. A context manager, which closes its connection."""

    def __init__(self, context: SSLContext, expiry: float | None, uds: str | None) -> None:
        self.post: Post | None = None
        self._network = httpcore2.AnyIOBackend()
        self._pool = httpcore2.AsyncConnectionPool(
            context, max_connections=None, keepalive_expiry=expiry, uds=uds, network_backend=self
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def exchange(self, post: Post) -> Outcome:
        """Try a post once."""
        self.post = post
        try:
            response = await self._pool.handle_async_request(post.begin())
            try:
                body = await response.aread()
            finally:
                await response.aclose()
        except BROKEN as error:
            return Outcome(0, [], b"", error, not post.written)
        finally:
            self.post = None
        return Outcome(response.status, response.headers, body)

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        """Called by the pool."""
        with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            return _AsyncStream(await self._network.connect_tcp(host, port, _left(self.post)), self)

    async def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        """Called by the pool."""
        with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            return _AsyncStream(await self._network.connect_unix_socket(path, _left(self.post)), self)


class _AsyncStream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream, lane: AsyncLane) -> None:
        self._stream = stream
        self._lane = lane

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as(httpcore2.ReadTimeout, httpcore2.ReadError):
            return await self._stream.read(max_bytes, _left(self._lane.post))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        post = self._lane.post
        with _as(httpcore2.WriteTimeout, httpcore2.WriteError):
            left = _left(post)
        written = True
        try:
            await self._stream.write(buffer, left)
        except httpcore2.WriteError:  # the transport was closed before it took any of this
            written = False
            raise
        finally:
            if post is not None and buffer:
                post.written |= written

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            left = _left(self._lane.post)
        return _AsyncStream(await self._stream.start_tls(ssl_context, server_hostname, left), self._lane)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
