"""multipart/form-data (RFC 7578): the files of a form as items, its fields as parameters.

Rules: as of formats.py. The parser is multipart's, and is loaded by who takes forms. Each file is copied once, out of
the body. Its name is not looked at: nothing is ever stored by a name that a client chose.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import Any

from ..errors import RequestError, quoted
from ..message import Account
from .formats import Body, Format

FORM = "multipart/form-data"
# Security limits, as docs/limits.md has them; Starlette's are the same, but for headers
MOST_PARTS = 1000  # files and fields
MOST_FIELD = 1 << 20  # bytes of a field
MOST_HEADERS = 8  # of a part; RFC 7578 has three
MOST_HEADER = 4096  # bytes of one
PART_BYTES = 500  # that a part takes while it is read, about, and an item or parameter beside its data
PIECE = 64 << 10  # bytes of a large body that the parser gets at once

_BOUNDARY = re.compile(r"[!-~](?:[ -~]{0,68}[!-~])?")  # 1 to 70 characters: RFC 2046 section 5.1.1
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_AS_IT_IS = ("7bit", "8bit", "binary")


@cache
def load() -> Any:
    """The parser. Raises ImportError where another library has taken its name."""
    import multipart

    if not hasattr(multipart, "PushMultipartParser"):
        raise ImportError(
            f"forms need the library multipart, version 2; {multipart.__file__} is another: python-multipart before "
            "0.0.13 hides it, so upgrade that"
        )
    return multipart


class Form(Format):
    """The files of a form, whose parts this boundary parts. Raises RequestError (400) for what is none."""

    def __init__(self, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            got = f"one of {len(boundary)}, {quoted(boundary)!r}" if boundary else "none"
            raise RequestError(400, f"{FORM}: expected a boundary of 1 to 70 characters in Content-Type, got {got}")
        self._boundary = boundary

    def items(self, body: Body, account: Account) -> list[Any]:
        """Its files, each as bytes.

        Raises RequestError: 400 for no such form, 413 beyond a limit, 422 for one without files; and as account does.
        """
        library, parts = load(), Parts(account)
        parser = library.PushMultipartParser(
            self._boundary,
            max_header_size=MOST_HEADER,
            max_header_count=MOST_HEADERS,
            max_segment_count=MOST_PARTS,
        )
        try:
            for piece in _pieces(body):
                for event in parser.parse(piece):
                    parts.take(event)
            parser.close()
        except library.ParserLimitReached as error:
            limits = f"{MOST_PARTS} parts, {MOST_HEADERS} headers a part, {MOST_HEADER} bytes a header"
            raise RequestError(413, f"{FORM}: {error.args[0]}; the limits are {limits}") from None
        except library.MultipartError as error:
            raise RequestError(400, f"{FORM}: {error.args[0]}, in part {parts.count} or behind it") from None
        if not parts.files:
            raise RequestError(422, f"{FORM}: expected a file at least, got {len(parts.fields)} field(s) and no file")
        account.parameters = parts.fields
        return parts.files


def _pieces(body: Body) -> Iterator[bytes]:
    """The body as bytes, for the parser takes nothing else: a large one in pieces, so that it is never there twice."""
    if type(body) is bytes:
        yield body
        return
    for at in range(0, len(body), PIECE):
        yield bytes(body[at : at + PIECE])


class Parts:
    """What came of a form so far. count: parts that have begun; the rest as Form.items() gives it."""

    def __init__(self, account: Account) -> None:
        self.files: list[bytes] = []
        self.fields: dict[str, Any] = {}
        self.count = 0
        self._account = account
        self._name = ""
        self._is_file = self._is_empty = False  # the latter: a browser's file input in which nothing was chosen
        self._first = b""  # a part that came in one piece, as most do, is that piece
        self._rest: BytesIO | None = None

    def take(self, event: Any) -> None:
        """What the parser found: the headers of a part, a piece of its data, or None for its end."""
        if event is None:
            self._end()
        elif type(event) is bytes:
            self._add(event)
        else:
            self._begin(event)

    def _begin(self, part: Any) -> None:
        self.count += 1
        self._account.admit_items(len(self.files), PART_BYTES)
        self._name = part.name
        self._is_file = part.filename is not None
        self._is_empty = part.filename == ""
        self._first, self._rest = b"", None
        coding = part.header("Content-Transfer-Encoding", "binary")
        wrong = ""
        if any(_CONTROLS.search(value) for _, value in part.headerlist):
            wrong = "a control character in its headers"
        elif (part.content_type or "").startswith("multipart/"):
            wrong = f"a {quoted(part.content_type)} within a form: send its files as parts of their own"
        elif coding.strip().lower() not in _AS_IT_IS:
            wrong = f"Content-Transfer-Encoding {quoted(coding)!r}: send the bytes as they are (RFC 7578 section 4.7)"
        elif not self._is_file and not part.name:
            wrong = "a field without a name"
        if wrong:
            raise self._refusal(400, wrong)

    def _add(self, data: bytes) -> None:
        if not self._first:
            self._first = data
            return
        if self._rest is None:
            self._rest = BytesIO()
            self._rest.write(self._first)
        if not self._is_file and self._rest.tell() > MOST_FIELD:
            return  # it is refused at its end
        self._rest.write(data)

    def _end(self) -> None:
        data = self._first if self._rest is None else self._rest.getvalue()
        if not self._is_file:
            self._put(data)
        elif data or not self._is_empty:
            self.files.append(data)

    def _put(self, data: bytes) -> None:
        if len(data) > MOST_FIELD:
            raise self._refusal(413, f"a field of more than {MOST_FIELD} bytes: send it as a file")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise self._refusal(
                400, f"expected the field {quoted(self._name)!r} in UTF-8: {error.reason} at byte {error.start}"
            ) from None
        self._account.admit_items(len(self.files), sys.getsizeof(self._name) + sys.getsizeof(text))
        before = self.fields.get(self._name)
        if isinstance(before, list):
            before.append(text)
        else:
            self.fields[self._name] = text if before is None else [before, text]

    def _refusal(self, status: int, reason: str) -> RequestError:
        return RequestError(status, f"{FORM}, part {self.count}: {reason}")
