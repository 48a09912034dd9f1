"""The formats of messages: one row each for how it is read and how it is written; negotiation chooses two of them once.

Rules: values and functions of them; no clock, no batcher. A request has a format that reads its body and one that
writes its answer. They need not be the same, so a format that is only read or only written can have a row too. Bodies
that are no messages are in uploads.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np

from .._codec import decode_npy, encode_npy, items_of, scan, scan_npy, strings
from ..batch.arrays import rows_of_any, stacked
from ..errors import Headers, RequestError, VirtexError, quoted
from ..message import Account, Content, encode_data
from ..tensor import Inputs, Source, Tensor
from .codings import asked_for, coding_of
from .seam import JSON as JSON_HEADERS
from .seam import Response, refusal

Body = bytes | bytearray | memoryview

FEW = 64  # strings that need no charge beside that of their text
USUAL = 512  # bytes; clients send the same four headers again and again, so what those up to this say is kept


class Format:
    """How one kind of body is read and written. name: the media type by which clients ask for it."""

    name = ""

    def takes(self, kind: str) -> bool:
        """Whether this is how to read a body of that type; in lower case, without parameters."""
        return kind == self.name

    def items(self, body: Body, account: Account) -> list[Any]:
        """The items of a body for a list handler. Raises RequestError, also as the account does, or ItemError."""
        raise NotImplementedError

    def source(self, body: Body, inputs: Inputs, account: Account) -> Source:
        """The items of a body for declared inputs, not decoded yet. Raises as items() does."""
        raise NotImplementedError

    def array(self, body: Body, dtype: np.dtype[Any], account: Account) -> Any:
        """The items of a body as one array of that dtype, whatever their shape; [] for none. Raises as items() does."""
        values = self.items(body, account)
        return stacked(values, dtype, account.admit_items, len(body)) if values else values

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """The answer of these rows, a list or Rows. Raises HandlerError for what can't be sent.

        in_numbers: arrays of Rows that stand in JSON are lists of numbers there, not base64.
        """
        raise NotImplementedError

    def content(self, content: Content) -> Response:
        """The answer that is one Content, whose type was asked for."""
        return Response(200, ((b"content-type", content.type.encode()),), [content.body])

    def in_place(self, writes: Format) -> Format:
        """What writes the answer in place of this one, where the body says more of it. writes: as the body says."""
        return writes

    def refuse(self, error: VirtexError) -> Response:
        """The answer that says what went wrong."""
        return refusal(error.status, str(error), error.headers, error.index)


class Json(Format):
    """{"data": [...], "error": null}; any type that clients send such text as."""

    name = "application/json"

    def takes(self, kind: str) -> bool:
        """Whether it may be a message: no type at all, and what `curl -d` says, too."""
        return kind.endswith(("/json", "+json")) or kind in _TEXT

    def items(self, body: Body, account: Account) -> list[Any]:
        """JSON values. Raises RequestError as decode_message() and as the account does."""
        plain = strings(body)
        if plain is None:
            return account.parse(body)
        if len(plain) > FEW:
            account.admit_strings(len(plain))
        return plain

    def source(self, body: Body, inputs: Inputs, account: Account) -> Source:
        """Base64 of .npy or nested lists; objects of them where the inputs have names."""
        names = None if isinstance(inputs, Tensor) else tuple(inputs)
        items = scan(body, names, account)
        return items_of(account.parse(body), names) if items is None else items

    def array(self, body: Body, dtype: np.dtype[Any], account: Account) -> Any:
        """Lists of numbers go straight into it."""
        items = scan(body, None, account)
        shape = None if items is None else items.shape()
        if items is None or shape is None:
            return Format.array(self, body, dtype, account)
        return rows_of_any(items, shape, dtype, account.admit_items, len(body))

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """Values in a list, arrays as text or lists of numbers in it."""
        if type(rows) is list:
            return Response(200, JSON_HEADERS, [b'{"data":', encode_data(rows), b',"error":null}'])
        return Response(200, JSON_HEADERS, [rows.json(in_numbers)])


class Npy(Format):
    """Documents of .npy: in a request one for each item, in an answer one for all rows; JSON if they are no array."""

    name = "application/x-npy"

    def items(self, body: Body, account: Account) -> list[Any]:
        """Arrays. Raises ItemError for a document that is wrong, RequestError as the account does."""
        return decode_npy(body, account.admit_documents)

    def source(self, body: Body, inputs: Inputs, account: Account) -> Source:
        """A document with one more leading dimension than the input is several items."""
        if not isinstance(inputs, Tensor):
            raise RequestError(415, f"application/x-npy has one array an item; send JSON objects of {list(inputs)}")
        return scan_npy(body, len(inputs.shape), account.admit_documents)

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """One array whose leading dimension is the items."""
        document = _stacked(rows) if type(rows) is list else rows.npy()
        return JSON.reply(rows, in_numbers) if document is None else Response(200, _NPY_HEADERS, [document])


def _stacked(rows: list[Any]) -> bytes | None:
    """The rows as one .npy document; None when they are not arrays of one dtype and shape."""
    for row in rows:
        if not isinstance(row, np.ndarray):
            return None
    try:
        return encode_npy(rows) if rows else None
    except (TypeError, ValueError):
        return None


class Other(Format):
    """What is written where neither JSON nor .npy may be: nothing but a Content. why: all else is refused."""

    def __init__(self, why: str) -> None:
        self.why = why

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """Raises RequestError (406)."""
        raise RequestError(406, self.why)  # one that is raised again and again keeps what it passed each time


JSON, NPY = Json(), Npy()
FORMATS: tuple[Format, ...] = (JSON, NPY)  # the first where a client leaves it open; of two liked as well, the last
MESSAGES = tuple(each.name for each in FORMATS)

_NPY_HEADERS: Headers = ((b"content-type", NPY.name.encode()),)
_TEXT = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"})


class Kinds:
    """The kinds of bodies that a service takes, and of answers that it gives; as it is, messages.

    accepts, answers: their media types, as GET / shows them. gives_content: whether a Content may be among them.
    """

    def __init__(
        self,
        accepts: tuple[str, ...] = MESSAGES,
        answers: tuple[str, ...] = MESSAGES,
        gives_content: bool = False,
    ) -> None:
        self.accepts = accepts
        self.answers = answers
        self.gives_content = gives_content

    def read_by(self, content_type: bytes) -> Format:
        """The format that reads bodies of that type. Raises RequestError (415)."""
        kind = kind_of(content_type)
        for each in FORMATS:
            if each.takes(kind):
                return each
        raise self.refusal(kind)

    def refusal(self, kind: str) -> RequestError:
        """The answer to a body of another type."""
        taken = ", ".join(self.accepts)
        return RequestError(415, f"Content-Type {quoted(kind)!r}: send one of {taken}", ((b"accept", taken.encode()),))

    def written_by(self, accept: str) -> Format:
        """The format that is named and liked best; a wildcard means the first. Raises RequestError (406)."""
        quality = qualities(accept, _RANGES)
        best = max(reversed(FORMATS), key=lambda each: quality.get(each.name, 0.0))
        if quality.get(best.name):
            return best
        if accept.strip() and not json_quality(quality):
            why = f"Accept {quoted(accept)!r}: the answers are one of {', '.join(self.answers)}"
            if self.gives_content:  # so what the answer is will be seen when it is there
                return Other(why)
            raise RequestError(406, why)
        return JSON


def kind_of(content_type: bytes) -> str:
    """The media type of a Content-Type: in lower case, without parameters."""
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")


class Undecided(Kinds):
    """Those of a service whose handler is not there yet: nothing is refused that it may take."""

    def read_by(self, content_type: bytes) -> Format:
        """LATER: it is asked again once there is a handler."""
        return LATER


class Failed(Kinds):
    """Those of a service whose handler did not start. reason: why."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._reason = reason

    def read_by(self, content_type: bytes) -> Format:
        """Raises RequestError (503)."""
        raise self.why()

    def why(self) -> RequestError:
        """The answer to a request that waited for the handler: one of its own, for a program may raise it."""
        return RequestError(503, self._reason, (), "draining")


LATER = Format()  # reads nothing
KINDS = Kinds()
UNDECIDED = Undecided(gives_content=True)


# ---- negotiation


class Wants:
    """What the headers of a request say: the format that reads its body, and the one that writes its answer.

    accept: its Accept, in lower case. coding: what its body is still coded with. answers: the coding that it asks for.
    Both are "" for none, or names of codings.py.
    """

    def __init__(self, reads: Format, writes: Format, accept: str = "", coding: str = "", answers: str = "") -> None:
        self.reads = reads
        self.writes = writes
        self.accept = accept
        self.coding = coding
        self.answers = answers
        self._latest: tuple[Format, Wants] | None = None

    def answered_as(self, writes: Format) -> Wants:
        """The same, of a body that says how its answer is written. Clients say the same again and again: it is kept."""
        latest = self._latest
        if latest is None or latest[0] is not writes:
            wants = Wants(self.reads, self.writes.in_place(writes), self.accept, "", self.answers)
            latest = self._latest = writes, wants
        return latest[1]

    def inflated(self) -> Wants:
        """The same, of a body that was coded until now."""
        return Wants(self.reads, self.writes, self.accept, "", self.answers)

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """The answer of these rows, as Format.reply() has it, or the one Content. Raises RequestError (406) as well."""
        if type(rows) is list:
            values = rows
            if len(values) == 1 and type(values[0]) is Content:
                return self._content(values[0])
        return self.writes.reply(rows, in_numbers)

    def _content(self, content: Content) -> Response:
        if not likes(self.accept, content.type.partition(";")[0].strip().lower()):
            raise RequestError(406, f"Accept {quoted(self.accept)!r}: this answer is of type {content.type}")
        return self.writes.content(content)


def negotiate(headers: list[tuple[bytes, bytes]], kinds: Kinds = KINDS) -> Wants:
    """Read the four headers that say it (RFC 9110 sections 8.3, 8.4, 12.5.1, 12.5.3); names in lower case.

    kinds: what there is to choose from. Raises RequestError: 415 for a body of another type or coding, 406 when no
    format may be sent, 400 for a type whose parameters are wrong.
    """
    content_type = content_encoding = accept = accept_encoding = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"content-encoding":
            content_encoding = content_encoding + b"," + value if content_encoding else value
        elif name == b"accept-encoding":
            accept_encoding = accept_encoding + b"," + value if accept_encoding else value
    # Each form has a boundary of its own, so that nothing would be found again. `in` raises and catches a TypeError.
    size = len(content_type) + len(content_encoding) + len(accept) + len(accept_encoding)
    if size <= USUAL and content_type.find(b"boundary") < 0:
        return _usual(content_type, content_encoding, accept, accept_encoding, kinds)
    return _negotiated(content_type, content_encoding, accept, accept_encoding, kinds)


def _negotiated(
    content_type: bytes, content_encoding: bytes, accept: bytes, accept_encoding: bytes, kinds: Kinds
) -> Wants:
    coding = coding_of(content_encoding)
    liked = accept.decode("latin-1").lower()
    reads, writes = kinds.read_by(content_type), kinds.written_by(liked)
    return Wants(reads, writes, liked, coding, asked_for(accept_encoding))


_usual = lru_cache(256)(_negotiated)


# One search finds what concerns us in a long Accept; taking all of it apart would cost a worker 0.1 s for 60 KB.
def ranges_of(*names: str) -> re.Pattern[str]:
    """What finds these media types in an Accept, and the wildcards that mean application/json too."""
    named = "|".join(map(re.escape, names))
    return re.compile(rf"(?:^|,)\s*({named}|application/\*|\*/\*)\s*(?:;([^,]*))?(?=,|$)")


def qualities(accept: str, ranges: re.Pattern[str]) -> dict[str, float]:
    """How much an Accept, in lower case, likes each of the ranges that stand in it (RFC 9110 section 12.4.2)."""
    quality = {}
    for kind, parameters in ranges.findall(accept):
        q = next((p.strip()[2:] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
        quality[kind] = float(q) if re.fullmatch(r"[01](\.\d{0,3})?", q) else 1.0
    return quality


def json_quality(quality: dict[str, float]) -> float:
    """How much JSON is liked: the narrowest range that takes it says so."""
    return next((quality[kind] for kind in (JSON.name, "application/*", "*/*") if kind in quality), 0.0)


def likes(accept: str, kind: str) -> bool:
    """Whether an Accept, in lower case, takes that media type: the narrowest range that has it says so."""
    if accept.strip() in ("", "*/*"):
        return True
    ranges = (kind, kind.partition("/")[0] + "/*", "*/*")
    quality = qualities(accept, ranges_of(*ranges[:2]))
    return next((quality[each] > 0 for each in ranges if each in quality), False)


_RANGES = ranges_of(*MESSAGES)
