"""A server that answers byte for byte what a test says, and the three faces of HttpClient: plain, asyncio, uvloop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from virtex.client import HttpClient
from virtex.message import HttpMessage

DEADLINE = 120.0  # seconds; nothing here takes one


@dataclass
class Link:
    """A connection as the peer sees it."""

    sock: socket.socket
    number: int

    def read(self) -> tuple[bytes, bytes] | None:
        """The next request, head and body; None where the client has left."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            if not byte:
                return None
            head += byte
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        body = bytearray()
        while len(body) < length:
            body += self.sock.recv(length - len(body))
        return head, bytes(body)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


@dataclass
class Peer:
    """A server for one test: `answer` runs once per connection, in a thread of its own."""

    answer: Callable[[Link], None]
    context: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    links: list[Link] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Peer]:
        with socket.create_server((self.host, 0), backlog=128) as self.listener, ThreadPoolExecutor(40) as threads:
            self.port = self.listener.getsockname()[1]
            threads.submit(self._accept, threads)
            try:
                yield self
            finally:
                self.listener.shutdown(socket.SHUT_RDWR)
                for link in self.links:
                    link.sock.close() if link.sock.fileno() < 0 else _hang_up(link.sock)

    def url(self, path: str = "/", scheme: str = "http") -> str:
        return f"{scheme}://{self.host}:{self.port}{path}"

    def _accept(self, threads: ThreadPoolExecutor) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(DEADLINE)
            threads.submit(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            with self.context.wrap_socket(sock, server_side=True) if self.context else sock as sock:
                link = Link(sock, len(self.links))
                self.links.append(link)
                self.answer(link)
        except OSError:
            pass  # the client left, as many of these tests want


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def reply(content: object, status: str = "200 OK", headers: str = "") -> bytes:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def echo(link: Link) -> None:
    while (request := link.read()) is not None:
        link.send(reply({"data": orjson.loads(request[1])["data"], "error": None}))


def always(answer: bytes) -> Callable[[Link], None]:
    def run(link: Link) -> None:
        while link.read() is not None:
            link.send(answer)

    return run


def once(answer: bytes) -> Callable[[Link], None]:
    """Answer one request and close the connection."""

    def run(link: Link) -> None:
        link.read()
        link.send(answer)

    return run


@contextmanager
def answering(answer: Callable[[Link], None], **options: Any) -> Iterator[Peer]:
    with Peer(answer, **options).running() as peer:
        yield peer


Face = Callable[..., Any]


def _plain(client: HttpClient, method: str, *args: Any) -> Any:
    return getattr(client, method)(*args)


def _on(run: Callable[[Coroutine[Any, Any, Any]], Any]) -> Face:
    return lambda client, method, *args: run(getattr(client, f"{method}_async")(*args))


FACES = {"plain": _plain, "asyncio": _on(asyncio.run), "uvloop": _on(uvloop.run)}


def message(*items: Any) -> HttpMessage:
    return HttpMessage(data=list(items))
