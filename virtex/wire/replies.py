"""The bytes of a reply ahead of its body: its head, and how the end of the body is told.

Rules: bytes, and the second that a date is good for; no socket. A head is rendered once per second and kind of reply,
so that a request costs one look into a dict.
"""

from __future__ import annotations

import logging
import re
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from ..errors import STATUSES
from ..service.seam import IDS, LAST, Head, Response
from .grammar import Header
from .waiting import SECOND

log = logging.getLogger("virtex")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEADS_KEPT = 256  # of distinct statuses and header tuples within a second; more are rendered each time
KEEP, CLOSE, KEEP_1_0 = range(3)  # what a reply says of its connection
CONNECTION = (b"", b"connection: close\r\n", b"connection: keep-alive\r\n")  # HTTP/1.0 is told that it may go on

# RFC 9110 section 5.5: what a reply's field may hold; CR or LF here would let a caller write a reply of its own.
_FIELD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class Heads:
    """The heads of the present second, up to what differs: how the body's end is told.

    now: of each call, by the connections' clock, in ns.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[int, tuple[Header, ...], int] | Start, bytes] = {}
        self._until = 0
        self._date = b""
        self._latest = b""  # of the last reply; the next mostly has the same, and the dict takes a fifth of an answer
        self._named = self._latest_first = b""  # the same with the first part of an id, and that
        self._latest_status = self._latest_says = 0
        self._latest_headers: tuple[Header, ...] | None = None
        self._ids = IDS

    def render(
        self,
        response: Response,
        request: Head | None,
        closes: bool,
        now: int,
        out: list[bytes],
        request_id: bytes = b"",
    ) -> int:
        """Append a reply, its head and its body, to a request, or to what was none; returns how many bytes.

        request_id: b"" for a new one. Raises ValueError ahead of that.
        """
        if now >= self._until:
            self._turn_second(now)
        status, headers, ids = response.status, response.headers, self._ids
        says = says_of(closes, 1 if request is None else request.minor)
        if ids.last == LAST:
            ids.turn()
        if (
            headers is not self._latest_headers
            or status != self._latest_status
            or says != self._latest_says
            or ids.first is not self._latest_first
        ):
            self._latest = self._rendered(status, headers, says)
            self._latest_status, self._latest_headers, self._latest_says = status, headers, says
            self._latest_first = ids.first
            self._named = self._latest + ids.first
        if request_id or not has_body(status):
            return self._append_rest(response, request, request_id or ids.next(), out)
        ids.last += 1
        last = _LAST[ids.last]
        end = end_of_head(response.size)
        out.append(self._named)
        out.append(last)
        out.append(end)
        size = len(self._named) + len(last) + len(end)
        if request is None or request.method != "HEAD":
            out += response.buffers
            size += response.size
        return size

    def _append_rest(self, response: Response, request: Head | None, request_id: bytes, out: list[bytes]) -> int:
        """A reply with an id that is given, or without a body."""
        has = has_body(response.status)
        end = b"\r\ncontent-length: " + end_of_head(response.size) if has else b"\r\n\r\n"
        out.append(self._latest)
        out.append(request_id)
        out.append(end)
        size = len(self._latest) + len(request_id) + len(end)
        if has and (request is None or request.method != "HEAD"):
            out += response.buffers
            size += response.size
        return size

    def _rendered(self, status: int, headers: tuple[Header, ...], says: int) -> bytes:
        key = (status, headers, says)
        head = self._heads.get(key)
        if head is None:
            lines = b"date: %b\r\nserver: virtex\r\n%b" % (self._date, CONNECTION[says])
            head = render_head(status, headers, lines) + b"x-request-id: "
            if len(self._heads) < HEADS_KEPT:
                self._heads[key] = head
        return head

    def streamed(self, framing: Framing, now: int) -> bytes:
        """The head of an ASGI application's answer, with what it leaves to us, and how its body's end is told."""
        if now >= self._until:
            self._turn_second(now)
        start = framing.start
        is_usual = framing.counts and not framing.closes and framing.minor > 0
        head = self._heads.get(start) if is_usual else None
        if head is None:
            date = b"" if b"date" in start.names else b"date: %b\r\n" % self._date
            server = b"" if b"server" in start.names else b"server: virtex\r\n"
            head = start.lines + date + server + CONNECTION[says_of(framing.closes, framing.minor)]
            if framing.counts:
                head += b"content-length: "
            if is_usual and len(self._heads) < HEADS_KEPT:
                self._heads[start] = head
        return head + framing.told

    def _turn_second(self, now: int) -> None:
        wall = time.time()
        self._date = formatdate(wall, usegmt=True).encode()  # RFC 9110 section 5.6.7, IMF-fixdate
        self._heads.clear()
        self._latest_headers = None
        self._until = now + int((1 - wall % 1) * SECOND)


def says_of(closes: bool, minor: int) -> int:
    """What the reply to a request of HTTP/1.minor says of its connection."""
    return CLOSE if closes else KEEP if minor else KEEP_1_0


def render_head(status: int, headers: tuple[Header, ...], more: bytes) -> bytes:
    """The bytes of a reply's head up to, and without, the empty line. more: whole lines that the connection adds.

    Raises: ValueError as check_field(), ahead of anything being sent.
    """
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, _phrase(status)), more]
    for header in headers:
        check_field(header)
        lines.append(b"%b: %b\r\n" % header)
    return b"".join(lines)


def check_field(header: Header) -> None:
    """Raise ValueError for a name or value that is not one (RFC 9110 section 5)."""
    name, value = header
    if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"expected a header name and value without control characters, got {name!r}: {value!r}")


def end_of_head(length: int) -> bytes:
    """What follows `content-length: ` in the head of a reply."""
    return _ENDS[length] if length < len(_ENDS) else b"%d\r\n\r\n" % length


_ENDS = [b"%d\r\n\r\n" % length for length in range(1024)]  # formatting one costs a tenth of a small answer


_LAST = [b"%02x\r\ncontent-length: " % last for last in range(LAST + 1)]  # of an id, and the field that follows it


def _phrase(status: int) -> bytes:
    if status in STATUSES:
        return STATUSES[status].encode()
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""  # RFC 9112 section 4: the space before an absent reason phrase stays


def has_body(status: int) -> bool:
    """Whether a reply of this status has a body, and so a length (RFC 9110 sections 6.4.1 and 8.6)."""
    return status >= 200 and status not in (204, 304)


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
def start_of(status: int, headers: tuple[Header, ...]) -> Start:
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


def framed(start: Start, head: Head, body: bytes, end: bool, request_id: bytes = b"") -> Framing:
    """How the answer is sent whose first piece is `body`; end: it is the last, too. request_id: for its head."""
    framing: Framing = Framing.__new__(Framing)
    framing._begin(start, head, body, end)
    if request_id:
        framing.told = b"%bx-request-id: %b\r\n\r\n" % (framing.told[:-2], request_id)
    return framing


class Framing:
    """How the end of a body is told that comes in pieces (RFC 9112 section 6.3), and those pieces as they are sent.

    Made by framed(). begins: the first piece, as it is sent behind the head. closes: the connection ends behind it.
    counts: its length is known. told: what that comes to, at the end of the head. left: bytes that its length still
    promises; -1: it has none. sent: bytes of the body.
    """

    def _begin(self, start: Start, head: Head, body: bytes, end: bool) -> None:
        """In place of __init__, whose arguments would take a detour through Python."""
        self.start = start
        self.minor = head.minor
        self.closes = start.closes
        self.counts = False
        self.told = b"\r\n"
        self.left = -1
        self.sent = 0
        self._is_head = head.method == "HEAD"
        self._chunked = False
        self.begins = self._first(body, end)

    def _first(self, body: bytes, end: bool) -> bytes:
        has = has_body(self.start.status)
        bodiless = self._is_head or not has
        if has:
            self.left = self.start.length
            if self.left < 0 and end and (body or not bodiless):
                self.left = len(body)
            elif self.left < 0 and not bodiless:
                self._chunked = self.minor > 0
                self.closes = self.closes or not self._chunked  # HTTP/1.0: the connection's end is the body's
        self.counts = self.left >= 0
        if self.counts:
            self.told = end_of_head(self.left)
        elif self._chunked:
            self.told = b"transfer-encoding: chunked\r\n\r\n"
        if bodiless:
            self.left = 0
            return b""
        return self.piece(body, end)

    def piece(self, body: bytes, end: bool) -> bytes:
        """The next piece, as it is sent."""
        self.sent += len(body)
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return piece + b"0\r\n\r\n" if end else piece
        if self.left < 0:
            return body
        if len(body) > self.left:
            if not self._is_head and has_body(self.start.status):
                log.error("the application sent more than its content-length; the excess is dropped")
                self.closes = True
            body = body[: self.left]
        self.left -= len(body)
        return body
