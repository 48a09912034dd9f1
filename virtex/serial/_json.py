"""What JSON has no word for: the arrays and scalars of NumPy that orjson does not write, or writes wrong.

Rules: knows values of NumPy, not messages; _foreign.py makes such of other libraries' values.

orjson 3.13 aborts the process on a datetime of several units and writes a date for NaT, so it is given none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from sys import maxunicode
from typing import Any

import numpy as np
import orjson

from .._codec import orjson_takes
from ._foreign import plain, remedy
from ._npy import number_dtype

_YEARS = (1 - 1970, 9999 - 1970)  # that RFC 3339 and datetime have, as NumPy counts them
_NAT = np.iinfo("i8").min

# How ISO 8601 writes so many of a unit; of parts of a second, how many decimals they are.
_DURATIONS = {"Y": "P{}Y", "M": "P{}M", "W": "P{}W", "D": "P{}D", "h": "PT{}H", "m": "PT{}M"}
_FINEST = {"ps": 10**6, "fs": 10**9, "as": 10**12}  # in a microsecond
_DECIMALS = {"s": 0, "ms": 3, "us": 6, "ns": 9, "ps": 12, "fs": 15, "as": 18}


MOST_DIGITS = 5  # that tell a float of 16 bits from its neighbours
_WRITTEN = frozenset("?bhilqBHILQfd")  # characters of dtypes of which orjson writes the shortest text


def as_numbers(array: Any) -> Any:
    """The array, C-contiguous, as one that orjson writes in numbers or booleans; None where the dtype has none.

    The text is the shortest that reads back as the same value of that dtype: bfloat16's 0.10009765625 is 0.1.
    """
    dtype = array.dtype
    if dtype.char not in _WRITTEN:
        through = number_dtype(dtype)
        if through is None or through.itemsize > 8 or dtype.kind == "c" or dtype.name == "complex32":
            return None
        array = array.astype(dtype.newbyteorder("="), copy=False)
        array = array.astype("i1") if through.kind == "i" else decimals(dtype)[array.view(f"u{dtype.itemsize}")]
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


@lru_cache
def decimals(dtype: Any) -> Any:
    """For each value of a float of 16 bits or fewer, by its bits, the number of 64 bits that has its shortest text.

    Takes about 0.1 s, once for each dtype.
    """
    bits = np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}")
    values = bits.view(dtype.newbyteorder("="))
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype("f8")
        left = np.flatnonzero(np.isfinite(found) & (found != 0))
        for digits in range(MOST_DIGITS):
            exact = found[left]
            exponents = np.floor(np.log10(np.abs(exact))).astype("i8") - digits
            for away in (0, 1, -1):  # the nearest, or beside a power of two, where neighbours are not as far, another
                counts = np.rint(exact / 10.0**exponents) + away
                same = (counts * 10.0**exponents).astype(dtype).astype("f8") == exact
                texts = zip(counts[same].astype("i8").tolist(), exponents[same].tolist(), strict=True)
                found[left[same]] = [float(f"{count}e{exponent}") for count, exponent in texts]
                left, exact, exponents = left[~same], exact[~same], exponents[~same]
    return found


def json_value(value: Any) -> Any:
    """What stands for a value that orjson asks about: numbers, text, None, nested lists of them, and objects.

    Tensors become lists, Series and DataFrames as plain() says. Datetimes become RFC 3339 text, to the microsecond,
    timedeltas ISO 8601 durations, NaT of both None. Raises TypeError for what JSON can't carry, with the remedy where
    there is one.
    """
    if not isinstance(value, (np.ndarray, np.generic)):
        found = plain(value)
        if found is value:
            raise TypeError(f"{type(value).__name__} is no JSON value{remedy(value)}")
        if not isinstance(found, (np.ndarray, np.generic)):
            return found
        value = found
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError("a masked value has no JSON form: fill it first, as in array.filled(0)")
    if value.dtype.char in "gG":
        raise TypeError(f"{value.dtype} has no JSON form: convert it, as in array.astype('f8')")
    if value.dtype.kind == "U":
        check_text(value)
    if value.dtype.kind == "M":
        return _moments(value)
    if value.dtype.kind == "m":
        return _durations(value)
    if orjson_takes(value):  # asked about for the sake of another: the same text as without it
        with suppress(TypeError):  # another byte order, or gaps
            return orjson.Fragment(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    return value.tolist()


def check_text(array: Any) -> None:
    """Raise TypeError for code points that are none: NumPy makes a str of them, and orjson bytes of that."""
    codes = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if codes.size and codes.max() > maxunicode:
        raise TypeError("text of code points that Unicode does not have")


def _counted(value: Any) -> tuple[str, int]:
    """The unit of datetimes or timedeltas, and how many of it one count is."""
    unit, step = np.datetime_data(value.dtype)
    if unit == "generic" and not np.isnat(value).all():
        raise TypeError(f"{value.dtype} without a unit has no JSON form: convert it, as in astype('m8[s]')")
    return unit, step


def _moments(value: Any) -> Any:
    unit, step = _counted(value)
    if unit in _FINEST:  # which NumPy can't convert to years: they are months at most
        counts = value.astype("i8") // _FINEST[unit] * step
        return np.where(np.isnat(value), np.datetime64("NaT", "us"), counts.astype("M8[us]")).tolist()
    years = value.astype("M8[Y]").astype("i8")
    far = np.abs(value.astype("i8").astype("f8")) * step > 2.0**62  # beyond what the line above can multiply
    if (~np.isnat(value) & ((years < _YEARS[0]) | (years > _YEARS[1]) | far)).any():
        raise TypeError("a datetime before the year 1 or after 9999 has no JSON form (RFC 3339)")
    return value.astype("M8[us]").tolist()  # which orjson writes


def _durations(value: Any) -> Any:
    unit, step = _counted(value)

    def text(count: int) -> str | None:
        if count == _NAT:
            return None
        sign, number = "-" if count < 0 else "", abs(count) * step
        if unit in _DURATIONS:
            return sign + _DURATIONS[unit].format(number)
        decimals = _DECIMALS[unit]
        whole, part = divmod(number, 10**decimals)
        return f"{sign}PT{whole}" + (f".{part:0{decimals}}".rstrip("0") if part else "") + "S"

    return _each(text, value.astype("i8").tolist())


def _each(f: Callable[[int], Any], nested: Any) -> Any:
    return [_each(f, one) for one in nested] if isinstance(nested, list) else f(nested)
