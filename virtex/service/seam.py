"""What the shells and the server say to each other: a request's Head and what it wants, a Response.

Rules: pure values, and functions of them.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from ..batch.company import Peer
from ..errors import Headers, RequestError, quoted

JSON: Headers = ((b"content-type", b"application/json"),)
NPY: Headers = ((b"content-type", b"application/x-npy"),)
ACCEPTS = "application/json, application/x-npy"
KEPT = 512  # bytes; clients send the same three headers again and again, so what those up to this say is kept


class Head:
    """A request at the end of its headers.

    path: percent-decoded, without query and root path. headers: names in lower case. length: of the body as declared,
    0 for none, None for chunked. peer: the connection, None where the shell can't tell.
    """

    def __init__(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], length: int | None, peer: Peer | None
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.length = length
        self.peer = peer
        self.wants: Wants | None = None  # what the server made of it: a shell may put the same head again


class Response:
    """An answer; the shell adds content-length, and connection.py date, server and connection.

    headers: names in lower case. buffers: the body in pieces of bytes.
    """

    def __init__(self, status: int, headers: Headers, buffers: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.buffers = buffers


def refusal(status: int, reason: str, headers: Headers = ()) -> Response:
    """An error as every client of Virtex reads it: {"data": [], "error": reason}."""
    body = b'{"data":[],"error":' + json.dumps(reason).encode() + b"}"
    return Response(status, JSON + headers, [body])


def plain(status: int, reason: str, headers: Headers = ()) -> Response:
    """An error as one reads it whose application is not a service of ours."""
    return Response(status, ((b"content-type", b"text/plain; charset=utf-8"), *headers), [reason.encode()])


class Wants:
    """What the headers say about the bodies: is the request's .npy, and is the reply's to be."""

    def __init__(self, sends_npy: bool, takes_npy: bool) -> None:
        self.sends_npy = sends_npy
        self.takes_npy = takes_npy


def negotiate(content_type: bytes, content_encoding: bytes, accept: bytes) -> Wants:
    """Read the three headers (RFC 9110 sections 8.3, 8.4, 12.5.1); b"" where one is absent.

    Raises RequestError: 415 for a body that is neither JSON nor .npy or is compressed, 406 when neither may be sent.
    """
    if len(content_type) + len(content_encoding) + len(accept) <= KEPT:
        return _kept(content_type, content_encoding, accept)
    return _negotiate(content_type, content_encoding, accept)


def _negotiate(content_type: bytes, content_encoding: bytes, accept: bytes) -> Wants:
    kind = content_type.partition(b";")[0].strip().lower().decode("latin-1")
    if content_encoding.strip().lower() not in (b"", b"identity"):
        coding = content_encoding.decode("latin-1")
        raise RequestError(
            415, f"Content-Encoding {quoted(coding)!r}: send the body as it is", ((b"accept-encoding", b"identity"),)
        )
    json_like = kind.endswith(("/json", "+json")) or kind in (
        "",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain",
    )
    if kind != "application/x-npy" and not json_like:
        raise RequestError(
            415, f"Content-Type {quoted(kind)!r}: send one of {ACCEPTS}", ((b"accept", ACCEPTS.encode()),)
        )
    return Wants(not json_like, _prefers_npy(accept.decode("latin-1").lower()))


_kept = lru_cache(256)(_negotiate)

# One search finds what concerns us in a long Accept; taking all of it apart would cost a worker 0.1 s for 60 KB.
_RANGE = re.compile(r"(?:^|,)\s*(application/x-npy|application/json|application/\*|\*/\*)\s*(?:;([^,]*))?(?=,|$)")


def _prefers_npy(accept: str) -> bool:
    """Whether .npy is named and JSON not preferred to it; wildcards mean JSON."""
    quality = {}
    for kind, parameters in _RANGE.findall(accept):
        q = next((p.strip()[2:] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
        quality[kind] = float(q) if re.fullmatch(r"[01](\.\d{0,3})?", q) else 1.0
    as_npy = quality.get("application/x-npy", 0.0)
    ranges = ("application/json", "application/*", "*/*")
    as_json = next((quality[r] for r in ranges if r in quality), 0.0)
    if accept.strip() and not as_npy and not as_json:
        raise RequestError(406, f"Accept {quoted(accept)!r}: the answers are one of {ACCEPTS}")
    return as_npy > 0 and as_npy >= quality.get("application/json", 0.0)
