"""What the codec does once per kind of array, not per array: dtypes to and from .npy headers; and lists to arrays.

Rules: knows dtypes, shapes and headers; texts and bodies are the codec's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, quoted

MAX_DIMS = 32  # this and the next two: what the grammar in csrc/npy.h takes
LISTS, LISTS_EACH = 128, 8  # that tolist() makes of an array, and for each element
HEADER_BYTES = 192  # a multiple of 3 (data begins on a base64 quantum) and of 64 (NumPy's rule for its own headers)

Shape = tuple[int, ...]

# The dtypes that ml_dtypes adds. np.save loses them ('<V2'); written by name they come back.
_NAMED = frozenset(
    (
        "bfloat16",
        "complex32",
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float6_e2m3fn",
        "float6_e3m2fn",
        "float4_e2m1fn",
        "int4",
        "uint4",
        "int2",
        "uint2",
    )
)
_LAST_BUILTIN = np.dtype("e").num  # the numbers above are those of dtypes that other packages register

# Which bits the bytes of a dtype's values may have, where that is not all; ml_dtypes looks at these alone.
_BITS = {"bool": 0x01, "int2": 0x03, "uint2": 0x03, "int4": 0x0F, "uint4": 0x0F}
_BITS |= {"float4_e2m1fn": 0x0F, "float6_e2m3fn": 0x3F, "float6_e3m2fn": 0x3F}
ANY, TEXT, SWAPPED_TEXT = 0xFF, 0x100, 0x101  # patterns, as in csrc/item.h


# -- a header's descr -> dtype


def named_dtype(name: str) -> np.dtype[Any]:
    """The dtype of ml_dtypes that a .npy document names. Raises ValueError for another name, TypeError for
    one that the installed ml_dtypes lacks, ImportError without it."""
    if name not in _NAMED:
        raise ValueError("ml_dtypes has no dtype of that name")
    import ml_dtypes

    if not hasattr(ml_dtypes, name):  # complex32 came with 0.6
        raise TypeError(f"{name} needs a newer ml_dtypes than {ml_dtypes.__version__}: pip install -U ml_dtypes")
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def dtype_of(raw: bytes, named: bool) -> np.dtype[Any]:
    """The dtype of a descr that the grammar accepted, as a name or a simple dtype; or ItemError."""
    descr = raw.decode()
    try:
        return named_dtype(descr) if named else np.dtype(descr)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        expected = "a dtype such as '<f4', with byte order and size, or the name of one of ml_dtypes"
        raise ItemError(f"expected {expected}, got {quoted(descr)!r}: {quoted(error)}") from None


def patterns_of(dtype: np.dtype[Any]) -> int:
    """Which bits the values of a dtype may have: a mask of each byte's, TEXT or SWAPPED_TEXT."""
    if dtype.kind == "U":
        return TEXT if dtype.isnative else SWAPPED_TEXT
    return _BITS.get(dtype.name, ANY)


# -- dtype -> a header


def descr_of(dtype: np.dtype[Any]) -> str:
    """'<f4', or a name: what a header says of a dtype. Raises TypeError for one that does not travel."""
    if dtype.name in _NAMED and dtype.type.__module__ == "ml_dtypes":
        return dtype.name
    if dtype.hasobject:
        raise TypeError(
            f"an array of {dtype} holds Python objects, which only pickle can carry, and Virtex never unpickles: "
            "convert it to a dtype of numbers or fixed-length strings"
        )
    if dtype.kind == "V":
        raise TypeError(f"{dtype} does not travel, as no structured or void dtype does: send an array for each field")
    if dtype.kind in "mM" and (np.datetime_data(dtype)[0] == "generic" or np.datetime_data(dtype)[1] != 1):
        raise TypeError(f"{dtype} does not travel: convert it to one unit, as in array.astype('{dtype.kind}8[s]')")
    if dtype.kind not in "biufcmMSU" or dtype.num > _LAST_BUILTIN:
        raise TypeError(f"a .npy document can't carry {dtype}: convert it to numbers or fixed-length strings")
    if not dtype.itemsize:
        raise TypeError(f"expected a dtype of at least one byte, got {dtype}")
    return dtype.str


def _check_shape(shape: Shape) -> None:
    if len(shape) > MAX_DIMS:
        raise TypeError(f"expected at most {MAX_DIMS} dimensions, got {len(shape)}: {shape}")
    levels = list(accumulate(shape, mul, initial=1))
    if sum(levels[:-1]) > LISTS + LISTS_EACH * levels[-1]:
        raise TypeError(
            f"expected a shape of at most {LISTS} nested rows, and {LISTS_EACH} more for each element; got {shape}"
        )


def build_header(dtype: np.dtype[Any], shape: Shape, fortran: bool) -> bytes:
    """A .npy header of 192 bytes, or a multiple where that is too short. Raises TypeError for what does not travel."""
    _check_shape(shape)
    text = repr({"descr": descr_of(dtype), "fortran_order": fortran, "shape": shape}).encode()
    size = -(-(10 + len(text) + 1) // HEADER_BYTES) * HEADER_BYTES
    return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + text.ljust(size - 11) + b"\n"


# -- numbers of JSON -> rows of a declared dtype

# Of ml_dtypes' integers, the lowest and the highest.
_SPANS = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}


def number_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """The dtype to fill with a client's numbers: the same, or one that store() converts; None if it has no numbers."""
    if dtype.name in _NAMED and dtype.num > _LAST_BUILTIN:
        return np.dtype("i8" if dtype.name in _SPANS else "f8")
    if dtype.kind not in "biufc":
        return None
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def place_of(indices: Sequence[int]) -> str:
    """Where in nested lists an error was found: " at [3][2]"; nothing for what stands in none."""
    return f" at {''.join(f'[{i}]' for i in indices)}" if indices else ""


def store(staged: NDArray[Any], rows: NDArray[Any], which: list[int]) -> None:
    """Convert numbers into those rows. Raises ItemError with the index of the first that the rows' dtype can't hold."""
    low, high = _SPANS.get(rows.dtype.name, (-math.inf, math.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        cast = staged.astype(rows.dtype)
        beyond = (staged < low) | (staged > high)
        if rows.dtype.num > _LAST_BUILTIN:
            beyond |= ~np.isfinite(cast.astype("f8"))
    if beyond.any():
        first = int(beyond.reshape(len(which), -1).any(axis=1).argmax())
        place = np.argwhere(beyond[first])[0].tolist()
        got = staged[first][tuple(place)]
        raise ItemError(f"expected numbers that {rows.dtype} holds, got {got}{place_of(place)}", which[first])
    rows[which] = cast
