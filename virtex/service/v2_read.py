"""The body of an infer request of V2: its tensors become items.

    body = head | bytes of the tensors that have a binary_data_size, in their order

Rules: as of formats.py. The first dimension of each tensor is the items. Declared inputs go straight into rows, be they
numbers of JSON or bytes. Errors name the tensor, and where in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson

from .._codec import Items, blob_items, list_items, lists_in
from ..batch.arrays import rows_of_any, stacked
from ..errors import ItemError, RequestError, quoted
from ..limits import MOST
from ..message import Account
from ..serial._npy import named_dtype
from ..tensor import Inputs, Source, Tensor
from . import v2
from .codings import asked_for, coding_of
from .formats import USUAL, Body, Wants
from .seam import Head
from .v2_head import BYTES, NUMBERS, Call, Place, Served, check_size
from .v2_write import LENGTH, V2


def wants_of(served: Served, head: Head) -> Wants:
    """The formats of a request. Raises RequestError: 400, 404, 415, 501."""
    if v2.asked_of(head.path, served.name) != "/infer":
        raise v2.unknown(head.path, [served.name])
    coding = coding_of(head.header("content-encoding").encode("latin-1"))
    if served.missing:
        raise RequestError(501, f"V2 has no datatype for {', '.join(served.missing)} of {served.name!r}")
    infer = Infer(served, _length_in(head.headers))
    return Wants(infer, infer, "", coding, asked_for(head.header("accept-encoding").encode("latin-1")))


def _length_in(headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of the head; -1 where nothing says it. Raises RequestError (400)."""
    for name, value in headers:
        if name == LENGTH:
            if not value.isdigit() or len(value) > 18:
                said = quoted(value.decode("latin-1"))
                raise RequestError(400, f"Inference-Header-Content-Length {said!r}: expected a number of bytes")
            return int(value)
    return -1


class Columns:
    """The items of declared inputs: tensor.Source. Errors name the tensor."""

    def __init__(self, places: list[Place], columns: list[Any], is_one: bool) -> None:
        self.has_numbers = False  # an answer is as it was asked for
        self._places = places
        self._columns = columns
        self._is_one = is_one
        self._count = places[0].shape[0]

    def __len__(self) -> int:
        return self._count

    def into(self, rows: Any, start: int = 0, stop: int | None = None) -> None:
        """Decode items [start, stop). Raises ItemError, or RequestError (400) for what is no JSON."""
        at = 0
        try:
            if self._is_one:
                self._columns[0].into(rows, start, stop)
                return
            for at in range(len(self._columns)):
                self._columns[at].into(rows[at], start, stop)
        except (ItemError, RequestError) as error:
            raise _of_input(self._places[at].name, error) from None


class TextColumn:
    """The texts of a declared input, one after another, as rows of it. count: of items."""

    def __init__(self, texts: list[Any], tensor: Tensor, count: int) -> None:
        self._texts = texts
        self._kind = tensor.text
        self._each = math.prod(tensor.shape)
        self._count = count

    def into(self, rows: Any, start: int = 0, stop: int | None = None) -> None:
        """Put items [start, stop) into rows[0], rows[1], and so on. Raises ItemError for what is no UTF-8."""
        each = self._each
        flat = rows.reshape(-1)
        for at, text in enumerate(self._texts[start * each : (self._count if stop is None else stop) * each]):
            if type(text) is self._kind:
                flat[at] = text
            elif type(text) is str:
                flat[at] = text.encode()
            else:
                raise ItemError(f"expected UTF-8, got {quoted(text)}", start + at // each)


def _of_input(name: str, error: ItemError | RequestError) -> ItemError | RequestError:
    """The same error, of a tensor."""
    reason = f"input {quoted(name)!r}: {error.reason}"
    if isinstance(error, ItemError):
        return ItemError(reason, error.index, error.offset)
    return RequestError(error.status, reason, error.headers, error.dropped)


class Infer(V2):
    """Requests of one model with one length of their heads. length: in bytes; -1 where all of a body is its head."""

    def __init__(self, served: Served, length: int) -> None:
        self._served = served
        self._length = length

    def source(self, body: Body, inputs: Inputs, account: Account) -> Source:
        """The tensors as rows of the declared inputs."""
        call, body, text, lists = self._called(body, account)
        columns: list[Any] = []
        for place in call.places:
            _check_room(place, len(body), account)
            if place.text is None:
                columns.append(self._column(place, body, text, lists, account))
            else:
                columns.append(self._text_column(place, place.text, body, text, account))
        return Columns(call.places, columns, self._served.is_one)

    def _text_column(self, place: Place, tensor: Tensor, body: Body, text: Body, account: Account) -> TextColumn:
        try:
            return TextColumn(self._texts(place, body, text, account), tensor, place.shape[0])
        except (ItemError, RequestError) as error:
            raise _of_input(place.name, error) from None

    def items(self, body: Body, account: Account) -> list[Any]:
        """The one tensor's rows: texts, numbers, or lists of them."""
        call, body, text, lists = self._called(body, account)
        place = call.places[0]
        try:
            if place.datatype == v2.TEXT:
                return _rows_of_texts(place, self._texts(place, body, text, account))
            account.admit_strings(_values(place))
            values: list[Any] = _plain(self._array(place, body, text, lists, account)).tolist()
            return values
        except (ItemError, RequestError) as error:
            raise _of_input(place.name, error) from None

    def array(self, body: Body, dtype: np.dtype[Any], account: Account) -> Any:
        """The one tensor, as an array of that dtype."""
        call, body, text, lists = self._called(body, account)
        place = call.places[0]
        try:
            _check_room(place, len(body), account)
            if place.kind == BYTES:
                account.admit_strings(place.shape[0])
                rows = self._array(place, body, text, lists, account)
                values = [rows[i, ...] for i in range(place.shape[0])]  # rows[i] may be a scalar, which is no array
                return stacked(values, dtype, account.admit_items, len(body))
            column = self._column(place, body, text, lists, account)
            return rows_of_any(column, place.shape[1:], dtype, account.admit_items, len(body))
        except (ItemError, RequestError) as error:
            raise _of_input(place.name, error) from None

    def _called(self, body: Body, account: Account) -> tuple[Call, Body, Body, list[tuple[int, int]]]:
        """What the head says; the body, where its bytes are; and where in the head the lists are."""
        length = self._length
        if length > len(body):
            raise RequestError(400, f"Inference-Header-Content-Length {length}: the body has {len(body)} bytes")
        text = body if length < 0 else body[:length]
        found = lists_in(text)
        if found is None:
            account.admit_values(text)
            lists: list[tuple[int, int]] = []
            call = self._served.called(bytes(text), False)
        else:
            rest, lists = found
            if len(rest) <= USUAL:
                call = self._served.usual(rest)
            else:
                account.admit_values(rest)
                call = self._served.called(rest)
        if call.behind != len(body) - len(text):
            raise RequestError(
                400,
                f"expected {call.behind} bytes behind the head (binary_data_size of the inputs), got "
                f"{len(body) - len(text)}; the head has {len(text)} (Inference-Header-Content-Length)",
            )
        if call.parameters:
            account.parameters = dict(call.parameters)
        account.answer_as(call.asked, call.patience)
        return call, body, text, lists

    def _column(self, place: Place, body: Body, text: Body, lists: list[tuple[int, int]], account: Account) -> Items:
        count = place.shape[0]
        if place.kind == NUMBERS:
            start, end = lists[place.at]
            return list_items(text, start, end, count, place.each, account)
        if place.kind == BYTES:
            return blob_items(body, len(text) + place.at, count, place.signature)
        # A list with texts, or of a head that is not as clients write it: once more as it would be in one
        values = b" " * 8 + orjson.dumps(place.at)
        return list_items(values, 8, len(values), count, place.each, account)

    def _array(self, place: Place, body: Body, text: Body, lists: list[tuple[int, int]], account: Account) -> Any:
        """A tensor of numbers that is not declared, as an array."""
        dtype = _dtype(place)
        size = place.count * dtype.itemsize
        if place.kind == BYTES:
            check_size(place, size)
            account.admit_items(place.shape[0], size)
            return np.frombuffer(body, dtype.newbyteorder("<"), size // dtype.itemsize, len(text) + place.at).reshape(
                place.shape
            )
        _check_room(place, len(body), account)
        account.admit_items(place.shape[0], size)
        rows = np.empty(place.shape, dtype)
        self._column(place, body, text, lists, account).into(rows)
        return rows

    def _texts(self, place: Place, body: Body, text: Body, account: Account) -> list[Any]:
        """The texts of a tensor of BYTES, one after another."""
        count = place.count
        if place.kind == BYTES:
            start = len(text) + place.at
            return _texts_in(body[start : start + place.size], count, account)
        if place.kind == NUMBERS:
            raise ItemError("expected strings, got numbers")
        found: list[Any] = []
        if not _flattened(place.at, found) or len(found) != count:
            raise ItemError(f"expected {count} strings, for a shape of {quoted(list(place.shape))}, got {len(found)}")
        account.admit_items(place.shape[0], 0)
        return found


def _flattened(values: list[Any], found: list[Any]) -> bool:
    for value in values:
        if isinstance(value, list):
            _flattened(value, found)
        elif isinstance(value, str):
            found.append(value)
        else:
            raise ItemError(f"expected strings, got {quoted(value)!r} at [{len(found)}]")
    return True


def _texts_in(blob: Body, count: int, account: Account) -> list[Any]:
    """Each behind its length: str, or bytes where it is no UTF-8."""
    size, at = len(blob), 0
    if 4 * count > size:
        raise ItemError(f"expected {count} texts, each behind 4 bytes of its length, got {size} bytes")
    account.admit_strings(count)
    account.admit_items(0, 0 if bytes(blob).isascii() else 3 * size)
    texts: list[Any] = []
    for i in range(count):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "little")
        if at + 4 > size or end > size:
            raise ItemError(f"the length of text {i}, at byte {at}, goes beyond the {size} bytes of the tensor")
        text = bytes(blob[at + 4 : end])
        try:
            texts.append(text.decode())
        except UnicodeDecodeError:
            texts.append(text)
        at = end
    if at != size:
        raise ItemError(f"expected the end behind {count} texts, at byte {at}, got {size - at} bytes more")
    return texts


def _rows_of_texts(place: Place, texts: list[Any]) -> list[Any]:
    """Texts in lists, as deep as the shape."""
    for length in reversed(place.shape[1:]):
        texts = [texts[i : i + length] for i in range(0, len(texts), length)] if length else []
    if len(texts) != place.shape[0]:
        raise ItemError(f"expected dimensions of at least one, got {quoted(list(place.shape))}")
    return texts


def _plain(array: Any) -> Any:
    """What tolist() makes numbers of Python of."""
    return array.astype("f4") if array.dtype.name == "bfloat16" else array


def _bfloat16() -> np.dtype[Any]:
    try:
        return named_dtype("bfloat16")
    except ImportError:
        raise RequestError(501, "BF16 needs ml_dtypes, which is not installed here") from None


def _dtype(place: Place) -> np.dtype[Any]:
    dtype = v2.DTYPES.get(place.datatype)
    if dtype is None and place.datatype == "BF16":
        return _bfloat16()
    if dtype is None:
        raise RequestError(400, f"datatype {quoted(place.datatype)!r}: expected BYTES or one of {', '.join(v2.DTYPES)}")
    return dtype


def _values(place: Place) -> int:
    """How many values of Python a tensor becomes: its numbers, or lists of nothing, which no byte bounds."""
    return min(math.prod([max(length, 1) for length in place.shape]), MOST)


def _check_room(place: Place, length: int, account: Account) -> None:
    """Raise RequestError where so many numbers can't be in the body, or there are too many lists of nothing."""
    if not place.each:
        account.admit_strings(_values(place))
    elif place.kind != BYTES and place.count > length:
        wanted = f"{place.count} numbers, for a shape of {quoted(list(place.shape))}"
        raise RequestError(400, f"input {quoted(place.name)!r}: expected {wanted}, in a body of {length} bytes")
