"""What came of a try: a reply, or what kept it away; and the message that it means.

Rules: bytes and values; no connection, no clock.
"""

from __future__ import annotations

import gzip
import zlib

import httpcore2
import orjson

from ..message import HttpMessage

BROKEN = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)  # what a try may raise


class Unreadable(Exception):
    """A reply whose content coding is unknown, or whose coded bytes are broken or cut."""


class Outcome:
    """status: of the reply, 0 where none came; then `error` says why. headers, body: as they came.

    unsent: no byte of the request was written, so nobody can have acted on it.
    """

    def __init__(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        error: Exception | None = None,
        unsent: bool = False,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.error = error
        self.unsent = unsent

    def header(self, name: str) -> str:
        """The values of a header, joined; "" without one. name: in lower case."""
        wanted = name.encode()
        return ", ".join(value.decode("latin-1") for key, value in self.headers if key.lower() == wanted)

    @property
    def request_id(self) -> str | None:
        """Under what the server's log has the request."""
        return self.header("x-request-id") or None

    @property
    def redirect(self) -> str:
        """Where it leads; "" for no redirect."""
        return self.header("location") if self.status in (301, 302, 303, 307, 308) else ""

    def content(self) -> bytes:
        """What the body's bytes mean. Raises Unreadable."""
        content = self.body
        for coding in reversed(self.header("content-encoding").split(",")):
            try:
                content = _CODINGS[coding.strip().lower()](content)
            except KeyError:
                expected = "expected gzip, deflate or identity"
                raise Unreadable(f"content-encoding {coding.strip()!r}: {expected}") from None
            except (EOFError, OSError, zlib.error) as error:
                raise Unreadable(f"a {coding.strip()} answer that is broken or cut: {error}") from None
        return content


def _inflate(content: bytes) -> bytes:
    try:
        return zlib.decompress(content)
    except zlib.error:  # RFC 9110 section 8.4.1.2: some send it without the zlib format around it
        return zlib.decompress(content, -zlib.MAX_WBITS)


_CODINGS = {"gzip": gzip.decompress, "x-gzip": gzip.decompress, "deflate": _inflate, "identity": bytes, "": bytes}


def message_of(name: str, timeout: float | None, outcome: Outcome) -> tuple[int, HttpMessage]:
    """The message that an outcome means, or one whose error says what came instead; and the status, 0 without a reply.

    name: the URL. timeout: that of the post.
    """
    if outcome.error is not None:
        words = str(outcome.error) or "the connection broke before the answer came"
        if isinstance(outcome.error, httpcore2.TimeoutException):
            words = f"no answer within {timeout:g} s"
        return 0, failed(f"{name}: {words}")
    try:
        content = outcome.content()
    except Unreadable as error:
        return 0, failed(f"{name}: {error}")
    return outcome.status, reply_of(name, outcome.status, content, outcome.redirect, outcome.header("content-type"))


def failed(words: str) -> HttpMessage:
    """A message in place of an answer."""
    return HttpMessage(data=[], error=words)


def reply_of(name: str, status: int, body: bytes, redirect: str = "", kind: str = "") -> HttpMessage:
    """The message in the body of a reply, or one whose error says what came instead.

    name, redirect: URLs. kind: its Content-Type.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    match content:
        case {"error": error} if error is not None:
            words = error if isinstance(error, str) else orjson.dumps(error).decode()
            refused = failed(words or f"{name}: an error without words, status {status}")
            if type(index := content.get("index")) is int:
                refused["index"] = index
            return refused
        case {"data": list(data)} if 200 <= status < 300:
            return HttpMessage(data=data)
    return failed(f"{name}: expected a message, got status {status}{_came(body, redirect, kind)}")


def _came(body: bytes, redirect: str, kind: str) -> str:
    if redirect:
        return f", a redirect to {redirect}, which is not followed"
    of = f" of type {kind}" if kind and not kind.startswith("application/json") else ""
    return f" with {len(body)} bytes{of}: {body[:200].decode('utf-8', 'replace')!r}"
