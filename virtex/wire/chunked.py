"""A chunked body, taken apart by llhttp and delimited by us (RFC 9112 section 7.1).

llhttp checks every byte of the framing and hands out the data. Where the body ends is worked out here as well, so that
not one byte behind it is fed to this parser, and the next request begins exactly there: the two must agree, or the
connection is lost. Trailers are checked and dropped; they never become headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from ..errors import RequestError, too_large
from ..limits import Limits
from .grammar import CHUNKED_HEAD

_SIZE = re.compile(rb"[0-9A-Fa-f]*")
LINE_KEPT = 32  # bytes of a line; how it goes on says nothing that llhttp does not check
LINES_AT_ONCE = 4  # then other connections have their turn


class ChunkedBody:
    """One body. write: takes each piece of data, as bytes of its own."""

    def __init__(self, limits: Limits, write: Callable[[bytes], object]) -> None:
        self.on_body = write  # httptools looks the callbacks up by these names, once, when it is made
        self.complete = False
        self._length = 0  # bytes of data announced so far
        self._limits = limits
        self._framing = 0  # bytes so far that carry no data
        self._left = 0  # bytes of the present chunk, with its CRLF, that are still to come
        self._line = b""  # the beginning of the present line; of a size without the zeros ahead
        self._trailers = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(CHUNKED_HEAD)

    def on_message_complete(self) -> None:
        self.complete = True

    def feed(self, data: bytes, at: int = 0) -> int:
        """Take what belongs to this body, from `at` on, and return where it stopped; `complete` says if that was all.

        It stops early after many lines. Raises: RequestError 400 for bad framing, 413 for more than Limits.body.
        """
        view = memoryview(data)
        lines = 0
        while at < len(data) and not self.complete and lines < LINES_AT_ONCE:
            if self._left:
                end = min(at + self._left, len(data))
                self._left -= end - at
                self._parse(view[at:end])
            else:
                end = data.find(b"\n", at) + 1 or len(data)
                self._take_line(data[at:end])
                lines += 1
            at = end
        return at

    def _take_line(self, piece: bytes) -> None:
        over = self._framing + len(piece) - self._limits.framing
        self._parse(piece[: len(piece) - over] if over > 0 else piece)
        if over > 0:
            raise RequestError(400, f"expected at most {self._limits.framing} bytes of chunk framing and trailers")
        self._framing += len(piece)
        if len(self._line) < LINE_KEPT:
            start = piece if self._line or self._trailers else piece.lstrip(b"0")
            self._line += start[:LINE_KEPT]
        if not piece.endswith(b"\n"):
            return
        line, self._line = self._line, b""
        if not self._trailers:
            self._take_size(line)
        elif (line == b"\r\n") != self.complete:
            raise RequestError(400, "expected the trailers of a chunked body to end in an empty line")

    def _take_size(self, line: bytes) -> None:
        size = int(_SIZE.match(line)[0] or b"0", 16)  # type: ignore[index]  # that there are digits, llhttp saw
        self._length += size
        if self._length > self._limits.body:
            raise too_large(self._length, self._limits.body)
        self._trailers = size == 0
        self._left = size + 2 if size else 0

    def _parse(self, piece: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            raise RequestError(400, f"expected a chunked body: {error}") from None
