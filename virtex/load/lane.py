"""One connection of the load test, with one request at a time, over a socket that never blocks.

    closed -> connecting -> (handshake ->) idle <-> busy

Rules: knows a socket and one answer. What happened it returns; who sends next, and what is counted, drive.py knows.

httptools calls a Python function for each header that it is asked for, which costs as much as all the rest. So it is
asked for none: where an answer ends only with its connection (RFC 9112 section 6.3), the head's bytes are looked at.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple

import httptools

from ..posting.targets import headers_of
from .plan import Plan, split

MOST_HEAD = 256 << 10  # bytes: whoever sends more of a head than this sends garbage

KINDS = {
    "refused": "the connection was refused",
    "unreachable": "no connection could be made",
    "tls": "no agreement on TLS",
    "reset": "the connection was reset",
    "closed": "the connection ended before the whole answer was there",
    "dropped": "the service closed a kept connection without notice, in place of an answer",
    "garbage": "what came is no answer of HTTP",
    "timeout": "no whole answer in time",
    "unsent": "no connection was free in time",
    "3xx": "a redirect, which is not followed",
    "4xx": "refused as the client's fault",
    "5xx": "failed on the server",
    "message": "status 2xx, and a message that holds an error",
}  # of errors; a status stands beside them in Run.statuses


class Address(NamedTuple):
    """Where to connect, found once."""

    family: int
    where: Any
    tls_name: str | None


def addresses_of(url: str) -> list[Address]:
    """Every address of a URL's host, or of its socket. Raises OSError where there is none."""
    path, (target, _, _) = split(url)
    if path:
        return [Address(socket.AF_UNIX, path, None)]
    secure, host = target.scheme == b"https", target.host.decode()
    found = socket.getaddrinfo(host, target.port or (443 if secure else 80), type=socket.SOCK_STREAM)
    return [Address(family, where, host if secure else None) for family, _, _, _, where in found]


def reachable(addresses: Sequence[Address], timeout: float) -> Address:
    """The first address that takes a connection; the first of all where none does, and each request will find so."""
    for address in addresses if len(addresses) > 1 else ():
        with socket.socket(address.family) as sock:
            sock.settimeout(timeout)
            if sock.connect_ex(address.where) == 0:
                return address
    return addresses[0]


def requests_of(plan: Plan) -> list[bytes]:
    """The bytes of the request for each payload."""
    target, host = plan.where
    fields = {b"user-agent": b"virtex-loadtest", b"accept": b"application/json"} | headers_of(plan.headers)
    requests = []
    for payload in plan.payloads:
        every = {b"host": host, b"content-type": payload.content_type.encode()} | fields
        every[b"content-length"] = b"%d" % len(payload.body)
        lines = b"".join(b"%b: %b\r\n" % field for field in every.items())
        requests.append(b"POST %b HTTP/1.1\r\n%b\r\n%b" % (target, lines, payload.body))
    return requests


class Lane:
    """A connection. number: of the request that is under way, -1 where none is."""

    __slots__ = (
        "body",
        "came",
        "complete",
        "connected",
        "context",
        "deadline",
        "head",
        "headed",
        "keeps",
        "kept",
        "name",
        "number",
        "parser",
        "scheduled",
        "sent",
        "sock",
        "status",
        "unsent",
        "until_close",
        "view",
    )

    def __init__(self, address: Address, context: ssl.SSLContext | None, view: memoryview) -> None:
        self.view = view  # where received bytes are put, shared by all lanes
        self.context = context
        self.name = address.tls_name
        self.number = -1
        self.kept = False
        self.scheduled = self.sent = self.deadline = 0
        self.unsent: memoryview | bytes = b""
        self.connected = False
        self.parser: Any = httptools.HttpResponseParser(self)
        self.reset()
        self.sock = socket.socket(address.family)
        self.sock.setblocking(False)
        if address.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reset(self) -> None:
        """Forget the last answer."""
        self.complete = self.keeps = self.headed = self.until_close = False
        self.status = 0
        self.body: bytes | list[bytes] = b""
        self.head = b""

    # The connection

    def connect(self, address: Address) -> str:
        """Begin to connect; gives the kind of error, or ""."""
        code = self.sock.connect_ex(address.where)
        return "" if code in (0, errno.EINPROGRESS) else kind_of(code, connecting=True)

    def go_on(self) -> str | None:
        """Go on connecting and writing as far as it goes. Gives "" when all is written, a kind, or None: not yet."""
        try:
            if not self.connected:
                code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    return kind_of(code, connecting=True)
                if self.context is not None and not isinstance(self.sock, ssl.SSLSocket):
                    self.sock = self.context.wrap_socket(
                        self.sock, server_hostname=self.name, do_handshake_on_connect=False
                    )
                if isinstance(self.sock, ssl.SSLSocket):
                    self.sock.do_handshake()
                self.connected = True
            while self.unsent:
                written = self.sock.send(self.unsent)
                self.unsent = b"" if written == len(self.unsent) else memoryview(self.unsent)[written:]
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            return kind_of(error, connecting=not self.connected)
        return ""

    def receive(self) -> str:
        """Read what is there. Gives the kind of error, or ""; a whole answer makes `complete`."""
        try:
            count = self.sock.recv_into(self.view)
            while count:
                if self.number < 0:
                    return "garbage"  # nobody asked
                self.came = count
                self.parser.feed_data(self.view[:count])
                if self.complete:
                    return ""
                if not self.headed and not self._keep_head():
                    return "garbage"
                if not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
                    return ""
                count = self.sock.recv_into(self.view)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return ""
        except OSError as error:
            return kind_of(error)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return "garbage"
        return self._ended()

    def _keep_head(self) -> bool:
        """A head comes in pieces: keep them, for on_headers_complete to look at."""
        self.head += self.view[: self.came]
        return len(self.head) <= MOST_HEAD

    def _ended(self) -> str:
        if self.until_close and not self.complete:
            self.complete, self.keeps, self.status = True, False, self.parser.get_status_code()
            return ""
        return "dropped" if self.kept and not self.headed and not self.head else "closed"

    def close(self) -> None:
        self.parser = None  # it knows the lane: a circle
        self.sock.close()

    # What httptools calls

    def on_headers_complete(self) -> None:
        self.headed = True
        if not self.parser.should_keep_alive():
            head = (self.head + self.view[: self.came]).partition(b"\r\n\r\n")[0].lower()
            self.until_close = b"\ncontent-length:" not in head and b"\ntransfer-encoding:" not in head

    def on_body(self, piece: bytes) -> None:
        if not self.body:
            self.body = piece
        elif isinstance(self.body, list):
            self.body.append(piece)
        else:
            self.body = [self.body, piece]

    def on_message_complete(self) -> None:
        self.status = self.parser.get_status_code()
        if self.status < 200:  # RFC 9110 section 15.2: another one follows
            self.headed = False
        elif self.complete:
            self.complete = False
            raise ValueError("a second answer")  # which httptools makes an HttpParserError
        else:
            self.complete = True
            self.keeps = self.parser.should_keep_alive()


def kind_of(error: OSError | int, connecting: bool = False) -> str:
    """The kind of a fault of the system."""
    code = error if isinstance(error, int) else error.errno
    if isinstance(error, ssl.SSLError):
        return "tls" if connecting else "reset"
    if connecting:
        return {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset"}.get(code or 0, "unreachable")
    return "reset"
