"""The client's connections: who holds one, and one request and its reply over it.

One exchange, two drivers. `exchange` is a generator: it does every read and write itself, on a non-blocking socket,
and yields the socket and what it waits for. `drive` waits with poll(2), `drive_async` with the running loop. So one
pool serves both faces, no connection belongs to a loop or a thread, and closing one needs neither.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import weakref
from collections.abc import Generator, Iterable, Sequence
from ipaddress import ip_address
from itertools import islice
from math import ceil, inf
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    from ssl import SSLContext

READ, WRITE = select.POLLIN, select.POLLOUT
RECEIVE = 256 * 1024  # bytes asked of the kernel at a time

T = TypeVar("T")
Work = Generator[tuple[socket.socket, int], int | None, T]  # yields (socket, what to wait for); is sent what came
SocketAddress = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
Address = tuple[int, int, int, str, SocketAddress]  # an element of getaddrinfo()'s answer


class Origin(NamedTuple):
    """Where connections go; those of one origin are interchangeable."""

    scheme: str
    host: str
    port: int


class Reply:
    """What came back for one request; httptools calls the on_* methods."""

    __slots__ = ("_begun", "_body", "_framed", "_parser", "done", "encoding", "keep_alive", "location", "status")

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []
        self._begun = False  # its head is complete
        self._framed = False  # its body's end is told, not marked by the connection's end
        self.status = 0
        self.location = self.encoding = b""
        self.keep_alive = False
        self.done = False

    @property
    def body(self) -> bytes:
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            if not self.done:
                raise
            self.keep_alive = False  # bytes after the reply belong to no request: this connection is out of step

    def end(self) -> None:
        """The server closed its side."""
        if not self._begun:
            raise ConnectionError("the connection was closed before the answer came")
        if self._framed:
            raise ConnectionError("the connection was closed in the middle of the answer")
        self.done = True

    def on_message_begin(self) -> None:
        if self.done:
            raise ConnectionError("a reply without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length" | b"transfer-encoding":
                self._framed = True
            case b"content-encoding":
                self.encoding = value
            case b"location":
                self.location = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._begun = self.status >= 200

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._begun:  # not a 1xx, which only announces the reply
            self.done = True
            self.keep_alive = self._parser.should_keep_alive()


Outcome = Reply | Exception


class Pool:
    """A client's open sockets: the idle ones by origin, newest first out, and all, for a forked child to close."""

    def __init__(self, keep: int, ssl_context: SSLContext | None) -> None:
        self.keep = keep  # idle sockets per origin
        self.closed = False
        self._context = ssl_context
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = Lock()
        self._idle: dict[Origin, list[socket.socket]] = {}
        self._open: set[socket.socket] = set()

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.add(sock)

    def take(self, origin: Origin) -> socket.socket | None:
        """An idle connection that the server has not closed, or None."""
        while True:
            with self._lock:
                stack = self._idle.get(origin)
                if not stack:
                    return None
                sock = stack.pop()
            if not _wait([(sock, READ)], 0):
                return sock
            self.discard(sock)  # readable with nothing asked: its end, or bytes that belong to no request

    def give(self, origin: Origin, sock: socket.socket) -> None:
        with self._lock:
            stack = self._idle.setdefault(origin, [])
            if not self.closed and len(stack) < self.keep:
                stack.append(sock)
                return
        self.discard(sock)

    def discard(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
        sock.close()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            idle = [sock for stack in self._idle.values() for sock in stack]
            self._idle.clear()
        for sock in idle:
            self.discard(sock)

    def forget(self) -> None:
        """In a forked child: close its copies. That says nothing to the server, and the parent's go on."""
        mine = self._open
        self._reset()  # a lock held by a thread that the child does not have is never released
        for sock in mine:
            sock.close()

    def context(self) -> SSLContext:
        if self._context is None:
            from ssl import create_default_context

            self._context = create_default_context()
        return self._context


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)


def _literal(origin: Origin) -> list[Address]:
    """The address of a host that is one already: looking it up would cost a thread's turn."""
    try:
        version = ip_address(origin.host).version
    except ValueError:
        return []
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (origin.host, origin.port))]


def addresses(origin: Origin) -> Sequence[Address]:
    """Where to connect to, best first. Raises OSError for a name that has none."""
    return _literal(origin) or socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)


async def addresses_async(origin: Origin) -> Sequence[Address]:
    """The same, without blocking the running loop."""
    loop = asyncio.get_running_loop()
    return _literal(origin) or await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)


# The exchange


def exchange(
    pool: Pool, origin: Origin, way: socket.socket | Sequence[Address], request: Sequence[bytes]
) -> Work[Reply]:
    """Send a request and read its reply, on a connection of the pool or a new one to the first address that answers.

    Raises OSError or HttpParserError. Closing the generator early closes its connection.
    """
    sock = way if isinstance(way, socket.socket) else (yield from _connect(pool, origin, way))
    try:
        whole = yield from _send(sock, request)
        reply = Reply()
        yield from _receive(sock, reply)
    except BaseException:
        pool.discard(sock)
        raise
    if whole and reply.keep_alive:
        pool.give(origin, sock)
    else:
        pool.discard(sock)
    return reply


def _connect(pool: Pool, origin: Origin, targets: Sequence[Address]) -> Work[socket.socket]:
    refused: OSError = OSError(errno.EADDRNOTAVAIL, f"no address for {origin.host}")
    for family, kind, protocol, _, address in targets:
        sock = socket.socket(family, kind, protocol)
        pool.add(sock)
        try:
            return (yield from _handshake(pool, origin, sock, address))
        except OSError as error:
            pool.discard(sock)
            refused = error
        except BaseException:
            pool.discard(sock)
            raise
    raise refused


def _handshake(pool: Pool, origin: Origin, sock: socket.socket, address: SocketAddress) -> Work[socket.socket]:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        yield sock, WRITE
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    return (yield from _secure(pool, origin, sock)) if origin.scheme == "https" else sock


def _secure(pool: Pool, origin: Origin, plain: socket.socket) -> Work[socket.socket]:
    from ssl import SSLWantReadError, SSLWantWriteError

    sock = pool.context().wrap_socket(plain, server_hostname=origin.host, do_handshake_on_connect=False)
    pool.add(sock)
    pool.discard(plain)  # wrap_socket took its descriptor
    while True:
        try:
            sock.do_handshake()
            return sock
        except SSLWantReadError:
            yield sock, READ
        except SSLWantWriteError:
            yield sock, WRITE
        except BaseException:
            pool.discard(sock)
            raise


def _send(sock: socket.socket, request: Sequence[bytes]) -> Work[bool]:
    """Send all of it, unless the server answers or leaves before: its reply, if any, says why. Gives: was it all."""
    early = 0 if _is_tls(sock) else READ  # TLS has records of its own (tickets): there, readable is not yet a reply
    for part in request:
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[sock.send(rest) :]
            except BlockingIOError:
                if ((yield sock, WRITE | early) or 0) & early:
                    return False
            except (BrokenPipeError, ConnectionResetError):
                return False
            except OSError as error:
                yield sock, _wanted_by_tls(error)
    return True


def _receive(sock: socket.socket, reply: Reply) -> Work[None]:
    if not _is_tls(sock):
        yield sock, READ  # the answer takes a model's time: a recv() now would only fail
    while not reply.done:
        try:
            data = sock.recv(RECEIVE)
        except BlockingIOError:
            yield sock, READ
        except OSError as error:
            yield sock, _wanted_by_tls(error)
        else:
            reply.feed(data) if data else reply.end()


def _is_tls(sock: socket.socket) -> bool:
    return hasattr(sock, "do_handshake")  # by name, here and below, so that plain HTTP does not load ssl


def _wanted_by_tls(error: OSError) -> int:
    """What an SSLSocket needs before it can go on; any other error is raised again."""
    match type(error).__name__:
        case "SSLWantReadError":
            return READ
        case "SSLWantWriteError":
            return WRITE
        case _:
            raise error


# The drivers


class _Lane:
    """One exchange under poll(2), from its start to its outcome."""

    def __init__(self, work: Work[Reply], timeout: float | None) -> None:
        self.deadline = inf if timeout is None else monotonic() + timeout
        self.outcome: Outcome | None = None
        self._work = work
        self.step(None)

    def step(self, came: int | None) -> None:
        try:
            self.sock, self.events = self._work.send(came)
        except StopIteration as end:
            self.outcome = end.value
        except (OSError, HttpParserError) as error:
            self.outcome = error

    def expire(self) -> None:
        if monotonic() >= self.deadline:
            self.close()
            self.outcome = TimeoutError()

    def close(self) -> None:
        self._work.close()


def drive(works: Iterable[Work[Reply]], width: int, timeout: float | None) -> list[Outcome]:
    """Run exchanges, `width` of them at a time, each within `timeout` seconds of its start; outcomes in their order."""
    todo = iter(works)
    lanes: list[_Lane] = []
    waiting: list[_Lane] = []
    try:
        while True:
            fresh = [_Lane(work, timeout) for work in islice(todo, width - len(waiting))]
            lanes += fresh
            waiting = [lane for lane in waiting + fresh if lane.outcome is None]
            if waiting:
                _step(waiting)
                waiting = [lane for lane in waiting if lane.outcome is None]  # whoever ended makes room
            elif not fresh:
                return [lane.outcome for lane in lanes if lane.outcome is not None]
    finally:
        for lane in waiting:
            lane.close()


def _step(waiting: list[_Lane]) -> None:
    """Wait for the first of these to have something, and let all that have go on."""
    left = min(lane.deadline for lane in waiting) - monotonic()
    ready = _wait([(lane.sock, lane.events) for lane in waiting], None if left == inf else max(0.0, left))
    for lane in waiting:
        came = ready.get(lane.sock.fileno())
        if came:
            lane.step(came)
        else:
            lane.expire()


def _wait(wants: Iterable[tuple[socket.socket, int]], seconds: float | None) -> dict[int, int]:
    """poll(2): which descriptors are ready, and for what."""
    poller = select.poll()
    for sock, events in wants:
        poller.register(sock, events)
    return dict(poller.poll(None if seconds is None else ceil(seconds * 1000)))


async def drive_async(work: Work[Reply]) -> Reply:
    came: int | None = None
    try:
        while True:
            came = await _wait_async(*work.send(came))
    except StopIteration as end:
        return cast(Reply, end.value)
    finally:
        work.close()


async def _wait_async(sock: socket.socket, events: int) -> int:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    if events & READ:
        loop.add_reader(sock, _settle, future, READ)
    if events & WRITE:
        loop.add_writer(sock, _settle, future, WRITE)
    try:
        return await future
    finally:
        loop.remove_reader(sock)
        loop.remove_writer(sock)


def _settle(future: asyncio.Future[int], came: int) -> None:
    if not future.done():
        future.set_result(came)
