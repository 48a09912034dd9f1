"""One array as JSON: a number, or nested lists of them.

What a service reads and writes for whoever sends no base64. No number becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._codec import big_int_offset, items_of, number_texts, scan
from ..errors import ItemError
from ._npy import named_dtype

__all__ = ["decode_json", "encode_json"]

_PREFIX = b'{"data":['


def decode_json(text: str | bytes | bytearray | memoryview, dtype: Any, shape: Sequence[int] = ()) -> NDArray[Any]:
    """The array that a JSON text writes as a number, or as nested lists of numbers.

    text: RFC 8259, one value, with whitespace where JSON has it. dtype: anything np.dtype takes, bfloat16 and the like
    by name where ml_dtypes is installed; bool is read from true and false. shape: of the lists, exactly.
    Returns: a new array. A float64 is the nearest to its decimals, ties to even; narrower floats are rounded once more,
    as np.asarray(list, dtype) does; -0 is the integer 0, -0.0 is not.
    Raises: ItemError (422) that says where: no JSON, another shape, text, null, booleans for numbers, floats for
    integers, integers beyond the dtype or beyond 64 bits, floats that would become infinite, as np.asarray lets them.
    """
    rows = np.empty((1, *shape), _dtype(dtype))
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    body = b"".join((_PREFIX, raw, b"]}"))
    alone = _Alone(text)
    items = scan(body, None, alone)
    if items is None or len(items) != 1 or not items.has_numbers:
        items = items_of(alone.parse(body))
    try:
        items.into(rows)
    except ItemError as error:
        error.index = None
        raise
    array: NDArray[Any] = rows[0, ...]
    return array


def encode_json(obj: ArrayLike) -> str:
    """An array as JSON: a number, or nested lists, without spaces.

    obj: an array of bool, integers or floats, or what np.asarray makes one of.
    Returns: for each float the shortest decimals that read back to the same float64 or, for narrower ones, float32; so
    decode_json of the same dtype and shape gives an equal array.
    Raises: TypeError for another dtype, and for a float that is not finite: JSON has none (RFC 8259 section 6).
    """
    array = np.asarray(obj)
    if array.dtype.kind == "V" and array.dtype.type.__module__ == "ml_dtypes":
        array = array.astype(np.int8 if "int" in array.dtype.name else np.float32)
    if array.dtype.kind not in "biuf" or array.dtype.char == "g":
        raise TypeError(f"expected an array of bool, integers or floats up to 64 bits, got {array.dtype}")
    if array.dtype.char == "e":
        array = array.astype(np.float32)
    try:
        texts = number_texts(array[None, ...])
    except ValueError:
        raise TypeError(f"{array[~np.isfinite(array)][0]} is no JSON number") from None
    assert texts is not None  # of these dtypes
    return texts[0].decode()


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        if not isinstance(dtype, str):
            raise
        return named_dtype(dtype)
    return found


class _Alone:
    """A text that is the one item of a body, as a parser sees it."""

    def __init__(self, text: str | bytes | bytearray | memoryview) -> None:
        self._text = text

    def parse(self, body: bytes | bytearray | memoryview) -> list[Any]:
        """The item, if it is a number or a list."""
        import orjson

        try:
            value = orjson.loads(self._text)
        except orjson.JSONDecodeError as error:
            raise ItemError(f"expected JSON: {error}") from None
        offset = big_int_offset(body)
        if offset >= 0:
            raise ItemError("expected integers of at most 64 bits", offset=offset - len(_PREFIX))
        if not isinstance(value, (list, int, float)):
            raise ItemError(f"expected a number, or nested lists of numbers; got {type(value).__name__}")
        return [value]
