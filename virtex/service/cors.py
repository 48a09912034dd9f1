"""Which pages of other origins may read the answers: the headers of https://fetch.spec.whatwg.org/#http-cors-protocol.

Rules: a head in, headers out; neither a queue nor a loop. Every answer says it, refusals included: else a page sees an
error of the network in place of what was wrong. Cookies are never asked for, so there is no Allow-Credentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..errors import Headers, RequestError, VirtexError, quoted
from ..message import Content
from .formats import Format, Wants
from .seam import Head, Response

ANY = "*"
VARIES: Headers = ((b"vary", b"Origin"),)  # RFC 9110 section 12.5.5: a cache keeps an answer for each origin

_EXPOSED: Headers = ((b"access-control-expose-headers", b"x-request-id, retry-after, inference-header-content-length"),)
_PREFLIGHT: Headers = (
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (
        b"access-control-allow-headers",
        b"content-type, content-encoding, accept, authorization, x-request-id, x-request-timeout-ms, "
        b"inference-header-content-length",
    ),
    (b"access-control-max-age", b"600"),
)


class Crossing(Format):
    """A format that writes answers as another one does, for a page of another origin. added: headers that say so."""

    def __init__(self, writes: Format, added: Headers) -> None:
        self._writes = writes
        self._added = added
        self._before = self._after = added  # of the last answer: the next mostly has the same

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """The answer of these rows. Raises as the other one."""
        response = self._writes.reply(rows, in_numbers)
        response.headers = self.joined(response.headers)
        return response

    def content(self, content: Content) -> Response:
        """The answer that is one Content."""
        response = self._writes.content(content)
        response.headers = response.headers + self._added
        return response

    def in_place(self, writes: Format) -> Format:
        """What writes the answer where the body says more of it, for the same page."""
        return Crossing(self._writes.in_place(writes), self._added)

    def refuse(self, error: VirtexError) -> Response:
        """The answer that says what went wrong."""
        response = self._writes.refuse(error)
        response.headers = self.joined(response.headers)
        return response

    def joined(self, headers: Headers) -> Headers:
        """These and those that are added: the same object for the same, by which the wire knows a head that it has."""
        if headers is not self._before:
            self._before, self._after = headers, headers + self._added
        return self._after


_crossing = lru_cache(64)(Crossing)


class Cors:
    """Those who may read the answers of one service. origins: as http_server() takes them."""

    def __init__(self, origins: Sequence[str]) -> None:
        is_any = ANY in origins
        varies = () if is_any else VARIES
        told = {origin.encode(): ((b"access-control-allow-origin", origin.encode()), *varies) for origin in origins}
        self._for_others: Headers = told[b"*"] + _EXPOSED if is_any else varies
        self._added = {origin: said + _EXPOSED for origin, said in told.items()}
        self._preflights = {origin: said + _PREFLIGHT for origin, said in told.items()}
        self._is_any = is_any

    def preflight(self, head: Head) -> Response | None:
        """The answer where a browser asks whether a page may; None for any other request.

        Raises RequestError (403) for an origin that may not.
        """
        if head.method != "OPTIONS" or not any(name == b"access-control-request-method" for name, _ in head.headers):
            return None
        origin = _origin(head)
        said = self._preflights.get(b"*" if self._is_any else origin)
        if not origin or said is None:
            shown = quoted(origin.decode("latin-1"))
            raise RequestError(403, f"Origin {shown!r} is none of those that may read the answers (cors=)")
        return Response(200, said, [])  # some browsers take a 204 for no answer

    def marked(self, response: Response, head: Head | None) -> Response:
        """The same response, with what it says of the origin of a request; head: None where none was read."""
        response.headers = response.headers + self._added_for(head)
        return response

    def wants(self, wants: Wants, head: Head) -> Wants:
        """The same formats; the answer's says whose page may read it."""
        writes = self.writes(wants.writes, head)
        return Wants(wants.reads, writes, wants.accept, wants.coding, wants.answers)

    def writes(self, writes: Format, head: Head) -> Format:
        """The format of an answer to this request."""
        return _crossing(writes, self._added_for(head))

    def _added_for(self, head: Head | None) -> Headers:
        if self._is_any or head is None:
            return self._for_others
        return self._added.get(_origin(head), self._for_others)


def _origin(head: Head) -> bytes:
    for name, value in head.headers:
        if name == b"origin":
            return value
    return b""
