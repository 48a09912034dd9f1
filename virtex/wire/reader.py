"""Bytes to heads, bodies and their ends: what comes on a connection, taken apart.

The head of a request is checked by llhttp (httptools), whose strictness is never lowered, and by grammar.py for what
llhttp leaves open. Bodies are delimited here: by counting, or by chunked.py. So every parser is fed exactly the bytes
that are its own, and the outcome does not depend on how the bytes were cut into segments. A client that sends the same
head again, as one in a loop does, does not have it parsed again.

Rules: knows bytes; neither a transport nor a clock. Each method takes bytes from a place on, and returns where the next
is to begin. What raises RequestError is the end of the connection: nothing is read after it.
"""

from __future__ import annotations

from typing import Any

import httptools

from ..errors import RequestError
from ..limits import MOST, Limits
from ..service.seam import Head
from .chunked import ChunkedBody
from .grammar import find_fault, has_method, parse_request, skip_empty_lines

LARGE = 64 << 10  # bytes; a body with more to come than this is read by the kernel into its final place
HEAD_KEPT = 2048  # bytes; a longer head is parsed anew each time, so that idle connections stay small
TOLD = 64  # bytes of a head that could not be read, which say where it goes
FIELD_BYTES = 200  # that the objects of one header field take, about


class Reader:
    """What is known of the requests of one connection.

    head: the latest that is whole. is_new: it is not the one before again, so it was parsed. cost: bytes that it takes.
    left: bytes of the present body, as declared, that are still to come. body: the present one, where it is chunked.
    rest: what came and is not looked at yet, from rest_at on.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.head: Head | None = None
        self.is_new = False
        self.cost = 0
        self._known = b""  # the bytes of `head`, where it is kept
        self._kept = 0  # bytes that `head` takes, where it is kept
        self._partial = b""  # the beginning of the next head
        self._parser: httptools.HttpRequestParser | None = None
        self.left = 0
        self.body: ChunkedBody | None = None
        self.rest = b""
        self.rest_at = 0

    def held(self) -> int:
        """Bytes that it keeps, beside bodies."""
        return self._kept + len(self._partial) + len(self.rest)

    # --- heads --------------------------------------------------------------------------------------------------

    def read_head(self, data: bytes, at: int) -> int:
        """Take a head: `head` is it; -1 while it is not whole. Raises RequestError for what is none."""
        known = self._known
        if known and data.startswith(known, at) and not self._partial:
            self.is_new = False
            return at + len(known)
        partial = self._partial
        try:
            return self._take_head(data, at)
        except RequestError:
            self._partial = partial + data[at : at + TOLD]
            raise

    def refused(self) -> Head | None:
        """Of a head that could not be read, where its request line says that it goes; None where it does not."""
        words = self._partial[:TOLD].split(b" ", 2)
        return Head("", words[1].decode("latin-1"), [], 0, None) if len(words) > 1 else None

    def _take_head(self, data: bytes, at: int) -> int:
        """llhttp sees each byte as it comes, so what can't be HTTP is refused before its end has come.

        But for the method, of which it does not say whether it was a token.
        """
        before = len(self._partial)
        fed = before if b" " in self._partial else 0
        if before:
            data, at = self._partial + data, 0  # nothing was taken of `data` yet
        if data[at] in b"\r\n":
            at, fed = skip_empty_lines(data, at), 0
        end = data.find(b"\r\n\r\n", at + max(0, before - 3)) + 4
        raw = data[at:end] if end > 3 else data[at:]
        fault = find_fault(raw, self._limits)
        seen = raw if fault is None else raw[: fault[0]]
        if fed or (seen != b"\r" and has_method(seen)):
            self._feed(seen[fed:])
        if fault is not None:
            raise fault[1]
        if end < 4:
            self._partial = raw
            return -1
        self._partial = b""
        head = parse_request(raw, self._limits)
        if head.length != 0:
            self._step_over(head.length, data, end)
        self._keep(head, raw)
        return end - before

    def _keep(self, head: Head, raw: bytes) -> None:
        self.head = head
        self.is_new = True
        self.cost = len(raw) + FIELD_BYTES * len(head.headers)
        is_short = len(raw) <= HEAD_KEPT
        self._known, self._kept = (raw, self.cost) if is_short else (b"", 0)

    def forget_long(self) -> None:
        """A head that is not kept is its request's alone."""
        if not self._known:
            self.head = None

    def has_begun(self) -> bool:
        """Whether part of a head is here: more than an empty line, which is ignored ahead of one."""
        return self._partial not in (b"", b"\r")

    def _feed(self, piece: bytes) -> None:
        """Let llhttp check the next bytes of a head. Raises: RequestError."""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(None)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # RFC 9110 section 7.8: we ignore the offer, so the body is a body still; llhttp would take it for another
            # protocol, or, in a later segment, for a request of its own.
            self._parser = None
        except httptools.HttpParserInvalidMethodError:
            raise RequestError(501, "expected a method of HTTP at the start of the request line") from None
        except httptools.HttpParserError as error:
            reason = str(error)
            raise RequestError(
                505 if reason == "Invalid HTTP version" else 400, f"expected HTTP/1.1: {reason}"
            ) from None

    def _step_over(self, length: int | None, data: bytes, at: int) -> None:
        """Bring llhttp to the next head: over a short body that is here already, or by a new parser."""
        if self._parser is not None and length is not None and length <= min(LARGE, len(data) - at):
            self._parser.feed_data(memoryview(data)[at : at + length])
        else:
            self._parser = None

    # --- bodies -------------------------------------------------------------------------------------------------

    def begin_body(self, length: int | None, exchange: Any) -> None:
        """A body is next, of so many bytes, or in chunks where that is None. exchange: takes them, if it is given."""
        self.left, self.body = min(length or 0, MOST), None
        if length is None:
            self.body = ChunkedBody(self._limits, len if exchange is None else exchange.write)

    def read_counted(self, data: bytes, at: int) -> bytes:
        """The part of the body that is here."""
        piece = data[at : at + self.left]
        self.left -= len(piece)
        return piece

    def read_chunks(self, data: bytes, at: int) -> int:
        """Hand over what is here of a chunked body, as far as one turn goes; then is_over() may be true."""
        assert self.body is not None
        return self.body.feed(data, at)

    def skip(self, data: bytes, at: int) -> int:
        """Step over what is here of a body that nobody wants."""
        if self.body is not None:
            return self.body.feed(data, at)
        size = min(self.left, len(data) - at)
        self.left -= size
        return at + size

    def is_over(self) -> bool:
        """Whether all of the body was here."""
        return not self.left and (self.body is None or self.body.complete)

    def end_body(self) -> None:
        """No body is read any more."""
        self.left, self.body = 0, None

    # --- what is not read -----------------------------------------------------------------------------------------

    def drop_rest(self) -> None:
        """Never look at what was held back."""
        self.rest, self.rest_at = b"", 0

    def stop(self) -> None:
        """No other request is read; the rest of a body that says its length may be skipped still."""
        self._partial = b""
        self.body = None
        self.drop_rest()

    def forget(self) -> None:
        """The connection is gone."""
        self.stop()
        self.head = None
        self._known, self._kept = b"", 0
