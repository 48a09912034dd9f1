"""Bodies that are no messages: files and texts, where the handler's `accepts` takes their type.

Rules: as of formats.py. Such a body is one item, in memory of its own; forms.py has those that are several. What is
always a message stays one: nothing that `accepts` says takes JSON or .npy from its format.
"""

from __future__ import annotations

import codecs
import re
import sys
from typing import Any

from ..batch.items import declared
from ..batch.texts import has_text, source_of
from ..errors import RequestError, quoted
from ..handler import RequestHandler, TensorHandler, answers_json
from ..message import Account
from ..tensor import Inputs, Source, Tensor
from . import forms
from .formats import JSON, KINDS, NPY, USUAL, Body, Format, Json, Kinds, kind_of

_TOKEN = r"[!#$%&'+.^_`|~0-9a-z-]+"
_RANGE = re.compile(rf"\*/\*|{_TOKEN}/(?:\*|{_TOKEN})")
# Known by their form: whoever asks Python for names that there are not has it remember each of them.
_CHARSETS = re.compile(r"utf-?8|us-ascii|ascii|iso-?8859-\d\d?|latin-?1|windows-125\d|utf-(16|32)([lb]e)?")


class File(Format):
    """Any body as it is."""

    def items(self, body: Body, account: Account) -> list[Any]:
        """Its bytes."""
        return [body if type(body) is bytes else bytes(body)]


class Text(Format):
    """A text. charset: by its name in Python."""

    def __init__(self, charset: str) -> None:
        self._charset = charset

    def items(self, body: Body, account: Account) -> list[Any]:
        """A str. Raises RequestError (400) for what is not of that charset."""
        try:
            text = str(body, self._charset)
        except UnicodeDecodeError as error:
            raise RequestError(400, f"expected text in {self._charset}: {error.reason} at byte {error.start}") from None
        if not text.isascii():
            account.admit_items(1, sys.getsizeof(text))  # up to four times its body
        return [text]


class Untyped(Json):
    """A message, by a type that says nothing of it: what curl sends with a file whose type nobody named."""

    def __init__(self, ranges: tuple[str, ...]) -> None:
        self._ranges = ", ".join(ranges)

    def items(self, body: Body, account: Account) -> list[Any]:
        """JSON values. Raises RequestError as those of Json do; of what can't be a message it says how files come."""
        try:
            return super().items(body, account)
        except RequestError as error:
            if error.status != 400 or bytes(body[:64]).lstrip().startswith(b"{"):
                raise
            reason = f"{error.reason}; what is no JSON needs its Content-Type: {self._ranges}"
            raise RequestError(400, reason, error.headers) from None


FILE = File()


class Uploads(Kinds):
    """What a list handler takes and gives. ranges: of its `accepts`, in lower case."""

    def __init__(self, ranges: tuple[str, ...], answers: tuple[str, ...]) -> None:
        super().__init__((*KINDS.accepts, *ranges), answers, True)
        self._ranges = frozenset(ranges)
        self._untyped = Untyped(ranges)

    def read_by(self, content_type: bytes) -> Format:
        """The format that reads bodies of that type. Raises RequestError: 415; 400 where its parameters are wrong."""
        kind = kind_of(content_type)
        if _is_message(kind) or self._ranges.isdisjoint((kind, kind.partition("/")[0] + "/*", "*/*")):
            form = super().read_by(content_type)
            return self._untyped if form is JSON and not _is_message(kind) else form
        if kind == forms.FORM:
            return forms.Form(parameter(content_type, "boundary"))
        return _text(content_type) if kind.startswith("text/") else FILE


class Strings(Json):
    """A message for declared inputs of which some are text."""

    def source(self, body: Body, inputs: Inputs, account: Account) -> Source:
        """Strings, and what numbers and arrays the others are. Raises RequestError as the account does."""
        return source_of(account.parse(body), inputs)


STRINGS = Strings()


class StringKinds(Kinds):
    """What a TensorHandler takes that declares text: messages of JSON."""

    def read_by(self, content_type: bytes) -> Format:
        """The format that reads bodies of that type. Raises RequestError (415)."""
        if super().read_by(content_type) is not JSON:
            raise self.refusal(kind_of(content_type))
        return STRINGS


def kinds_of(handler: RequestHandler) -> Kinds:
    """What bodies a handler takes, and what its answers may be. Raises TypeError or ValueError for wrong `accepts`."""
    ranges = _checked(handler)
    if not isinstance(handler, TensorHandler):
        return Uploads(ranges, KINDS.answers if declared(handler, "encode_item") is None else (JSON.name,))
    gives_json = answers_json(handler)
    answers = KINDS.answers if gives_json or _is_one(handler.outputs) else (JSON.name,)
    if has_text(handler.inputs):
        return StringKinds((JSON.name,), answers, gives_json)
    return Kinds(KINDS.accepts if _is_one(handler.inputs) else (JSON.name,), answers, gives_json)


def _is_one(tensors: Any) -> bool:
    return tensors is None or (isinstance(tensors, Tensor) and tensors.text is None)


def _checked(handler: RequestHandler) -> tuple[str, ...]:
    """`accepts`, in lower case."""
    where, given = f"{type(handler).__name__}.accepts", handler.accepts
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{where}: expected a tuple of media types, got {given!r}")
    ranges = tuple(each.lower() if isinstance(each, str) else each for each in given)
    for each in ranges:
        if not isinstance(each, str) or not _RANGE.fullmatch(each):
            raise ValueError(f'{where}: expected media types as "image/png", "image/*" or "*/*", got {each!r}')
        if _is_message(each):
            raise ValueError(f"{where}: a body of {each} is always a message, so {each!r} means nothing there")
    if not {forms.FORM, "multipart/*", "*/*"}.isdisjoint(ranges):
        forms.load()
    return ranges


def _is_message(kind: str) -> bool:
    return kind in ("", NPY.name) or kind.endswith(("/json", "+json"))


def _text(content_type: bytes) -> Format:
    charset = parameter(content_type, "charset").lower() or "utf-8"
    if not _CHARSETS.fullmatch(charset):
        raise RequestError(415, f"charset {quoted(charset)!r}: send text in utf-8")
    try:
        codecs.lookup(charset)
    except LookupError:  # there is no ISO 8859-12
        raise RequestError(415, f"charset {charset!r}: send text in utf-8") from None
    return Text(charset)


_PARAMETER = re.compile(r';\s*([^\s=;"]+)=("(?:[^"\\]|\\.)*"|[^;\s"]*)')


def parameter(content_type: bytes, name: str) -> str:
    """A parameter of a Content-Type (RFC 9110 section 5.6.6); "" for none. Raises RequestError (400) for a long one."""
    if len(content_type) > USUAL:
        raise RequestError(400, f"a Content-Type of {len(content_type)} bytes; the limit is {USUAL}")
    for key, value in _PARAMETER.findall(content_type.decode("latin-1")):
        if key.lower() == name:
            return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else str(value)
    return ""
