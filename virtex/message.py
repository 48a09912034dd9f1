"""HttpMessage, {"data": [...], "error": ...}, and its bytes: body -> items, rows -> body.

Rules: imports neither asyncio nor a socket. JSON means what orjson says it means, with two things it lets through made
errors here: integers beyond 64 bits, which it turns into floats, and NaN or infinity, which it writes as null.
"""

from __future__ import annotations

import gc
import logging
import math
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

import numpy as np
import orjson

from ._codec import big_int_offset, orjson_takes
from .errors import HandlerError, ItemError, RequestError, quoted
from .serial._foreign import plain
from .serial._json import json_value

log = logging.getLogger("virtex")


class HttpMessage(dict[str, Any]):
    """What client and server send each other: a list of JSON values in `data`, or words in `error`.

    data: list of items; after decode() any Python objects. error: what went wrong, or None. members: whatever else the
    object is to hold; a service ignores it.
    """

    def __init__(self, data: list[Any] | None = None, error: str | None = None, **members: Any) -> None:
        super().__init__(**members)
        self.data = [] if data is None else data
        self.error = error

    @property
    def data(self) -> list[Any]:
        """The items of a request or the answers to them, in order."""
        return self["data"]  # type: ignore[no-any-return]

    @data.setter
    def data(self, data: list[Any]) -> None:
        self["data"] = data

    @property
    def error(self) -> str | None:
        """What went wrong, in the server's words; None for an answer."""
        return self["error"]  # type: ignore[no-any-return]

    @error.setter
    def error(self, error: str | None) -> None:
        self["error"] = error

    def encode(self, f: Callable[..., Any], **kw: Any) -> None:
        """Replace each element of `data`, as by `encode(encode_numpy)`, in place.

        f: gets an element, and gives what to put in its place. kw: passed on to f. Raises what f raises.
        """
        self.data = [f(item, **kw) for item in self.data]

    def decode(self, f: Callable[..., Any], **kw: Any) -> None:
        """Replace each element of `data`, as by `decode(decode_numpy)`, in place.

        f: gets an element, and gives what to put in its place. kw: passed on to f. Raises what f raises.
        """
        self.data = [f(item, **kw) for item in self.data]

    def validate(self) -> bool:
        """Whether the message can be sent as JSON; if not, the log says why."""
        try:
            return bool(self.json)
        except TypeError as error:
            log.info("the message can't be sent as JSON: %s", error)
            return False

    @property
    def json(self) -> bytes:
        """The message as JSON (UTF-8); numpy scalars become numbers, arrays nested lists.

        Raises TypeError for what JSON can't carry: encode() it first.
        """
        return _dumps(self)


class Content:
    """An answer that is no JSON: an image, say. process_response() gives it for the one item of a request.

    body: its bytes, copied where they could be changed. type: its Content-Type, as "image/png" or
    "text/csv; charset=utf-8". Raises TypeError for another body or type, ValueError for what is no media type (RFC 9110
    section 8.3.1).
    """

    __slots__ = ("body", "type")

    def __init__(self, body: bytes | bytearray | memoryview, type: str) -> None:  # noqa: A002 (as HTTP calls it)
        if not isinstance(body, (bytes, bytearray, memoryview)):
            remedy = ": encode it, as in text.encode()" if isinstance(body, str) else ""
            raise TypeError(f"Content(body): expected bytes, got {body.__class__.__name__}{remedy}")
        if not isinstance(type, str):
            raise TypeError(f"Content(type): expected a media type, got {type.__class__.__name__}")
        if not _MEDIA_TYPE.fullmatch(type):
            raise ValueError(f"Content(type={quoted(type)!r}): expected a media type, as image/png")
        self.body = bytes(body)
        self.type = type

    def __repr__(self) -> str:
        return f"Content({len(self.body)} bytes, {self.type!r})"


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf'{_TOKEN}/{_TOKEN}(?: *; *{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))*')  # one line of ASCII


def decode_message(body: bytes | bytearray | memoryview, account: Account | None = None) -> list[Any]:
    """The items of a JSON request, in order; members but `data` are ignored, of duplicates the last wins.

    account: is given the member `parameters`, where there is one; None: it is ignored too.

    Raises RequestError (400) for what is not JSON, not an object with a list in `data`, or holds an integer that
    64 bits can't; for an account also for parameters that are no object.
    """
    try:
        message = orjson.loads(body) if len(body) < LONG else _loads_without_pause(body)
    except orjson.JSONDecodeError as error:
        raise not_json(error) from None
    if not isinstance(message, dict):
        raise RequestError(400, f'expected an object {{"data": [...]}}, got {_json_type(message)}')
    if "data" not in message:
        raise RequestError(400, 'expected an object {"data": [...]}, got one without "data"')
    data = message["data"]
    if not isinstance(data, list):
        raise RequestError(400, f'expected a list in "data", got {_json_type(data)}')
    offset = big_int_offset(body)
    if offset >= 0:
        raise RequestError(400, f"integer at byte {offset} does not fit 64 bits; send it as a string or a float")
    if account is not None and "parameters" in message:
        account.parameters = message["parameters"]
        if not isinstance(account.parameters, dict):
            raise RequestError(400, f'expected an object in "parameters", got {_json_type(account.parameters)}')
    return data


LONG = 64 << 10  # bytes of a body, from which on it may be so many lists that looking for cycles in them takes longest


def _loads_without_pause(body: bytes | bytearray | memoryview) -> Any:
    """orjson.loads(), but the garbage collector does not look again and again at what it makes: 3 times as fast.

    A JSON value has no cycles, and nothing else runs meanwhile. From Python 3.12 on it would not look anyway.
    """
    if not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def not_json(error: orjson.JSONDecodeError) -> RequestError:
    """The refusal of a body that is no JSON."""
    return RequestError(400, f"expected JSON: {error}")


class Account(Protocol):
    """Whom the contents of a body are charged to, before they take memory.

    parameters: what stands beside the items, by name; None where nothing does, or nobody wants to know.
    """

    parameters: dict[str, Any] | None

    def parse(self, body: bytes | bytearray | memoryview) -> list[Any]:
        """The items of a JSON body, as decode_message() finds them, charged before it is parsed.

        Raises RequestError as that does, and 413 for too many values, 503 where they find no room.
        """

    def admit_values(self, body: bytes | bytearray | memoryview) -> None:
        """Charge what a JSON text will become, before it is parsed. Raises RequestError: 413, 503."""

    def answer_as(self, writes: Any, patience: int) -> None:
        """The body says how its answer is to be written: by that format. patience: and for how many ns its client
        waits at most; 0 where it does not say."""

    def admit_strings(self, count: int) -> None:
        """So many strings were made, which nobody had counted before. Raises RequestError: 413, 503."""

    def admit_items(self, count: int, nbytes: int) -> None:
        """So many items there are by now, which take so many bytes more. Raises RequestError (503)."""

    def admit_documents(self, before: int, count: int) -> None:
        """Behind `before` others, so many arrays are about to be made. Raises RequestError (503)."""


def encode_data(rows: list[Any], step: str = "process_response") -> bytes:
    """The JSON list of a reply's rows; numpy scalars become numbers, arrays nested lists.

    Raises HandlerError naming the item that JSON can't carry.
    """
    finite = True
    for row in rows:
        if type(row) not in _FINITE:
            finite = False
            break
    try:
        data = orjson.dumps(rows, json_value, _NUMPY if finite or orjson_takes(rows) else _ASK)
    except TypeError:
        return _encode_carefully(rows, step)
    return data if finite or data.find(b"null") < 0 else _encode_carefully(rows, step)


def encode_row(row: Any, step: str = "process_response") -> orjson.Fragment:
    """One row of a reply as it is now, for encode_data() to take. Raises HandlerError for what JSON can't carry."""
    try:
        return orjson.Fragment(_dumps(row))
    except TypeError as error:
        raise _unsendable(row, step, error) from None


def _encode_carefully(rows: list[Any], step: str) -> bytes:
    try:
        return _dumps(rows)
    except TypeError as error:
        for i, row in enumerate(rows):
            if type(row) is Content:
                raise ItemError(f"its answer is of type {row.type}: send such items one by one", i) from None
            try:
                _dumps(row)
            except TypeError as cause:
                raise _unsendable(row, step, cause, i) from None
        raise HandlerError(f"{step} gave rows that can't be sent: {error}") from None


def _unsendable(row: Any, step: str, cause: TypeError, index: int | None = None) -> HandlerError:
    return HandlerError(f"{step} gave a {type(row).__name__} that can't be sent: {cause}", index)


_FINITE = frozenset({str, int, bool, orjson.Fragment})  # of these, no null can have been a float that is not finite
_ASK = orjson.OPT_PASSTHROUGH_DATACLASS
_NUMPY = _ASK | orjson.OPT_SERIALIZE_NUMPY


def _dumps(value: Any) -> bytes:
    """JSON. Raises TypeError for other types, and for a float that is not finite (RFC 8259 section 6 has none)."""
    try:
        data = orjson.dumps(value, json_value, _NUMPY if orjson_takes(value) else _ASK)
    except TypeError:
        # Of an array that it knows but does not take (big-endian), orjson does not ask: make it ask.
        data = _dumps_asking(value)
    # orjson writes null for NaN: only where a null stands can there have been one.
    if data.find(b"null") >= 0:  # `in` raises and catches a TypeError before it looks
        bad = _non_finite(value)
        if bad is not None:
            raise TypeError(f"{bad} is no JSON number")
    return data


def _dumps_asking(value: Any) -> bytes:
    try:
        return orjson.dumps(value, json_value, _ASK)
    except TypeError as error:
        if isinstance(error.__cause__, TypeError):  # what json_value() said
            raise error.__cause__ from None
        raise


def _non_finite(value: Any) -> float | None:
    """The first float in a JSON value that is not finite. Depth is bounded: orjson has written the value before."""
    value = plain(value)
    if isinstance(value, (float, np.floating)):
        return None if math.isfinite(value) else float(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        bad = value[~np.isfinite(value)]
        return float(bad[0]) if len(bad) else None
    if isinstance(value, (np.ndarray, np.generic)):  # of objects, fields, bfloat16 as well
        value = (value.tolist(),)
    elif isinstance(value, Enum):
        value = (value.value,)
    elif isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return None
    return next((found for found in map(_non_finite, value) if found is not None), None)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
