"""What the shells and the server say to each other: a request's Head and what it wants, a Response.

Rules: pure values, and functions of them.
"""

from __future__ import annotations

import json
from typing import Any

from ..batch.company import Peer
from ..errors import Headers

JSON: Headers = ((b"content-type", b"application/json"),)


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
        self.wants: Any = None  # what the server made of it: a shell may put the same head again


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
