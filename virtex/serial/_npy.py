"""What the codec does once per kind of array, not per array: dtypes to and from .npy headers; and lists to arrays."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError

MAX_HEADER = 4096  # bytes: what the grammar in csrc/npy.h takes
MAX_DIMS = 32
HEADER_BYTES = 192  # a multiple of 3 (data begins on a base64 quantum) and of 64 (NumPy's rule for its own headers)

Shape = tuple[int, ...]

# The dtypes that ml_dtypes adds. np.save loses them ('<V2'); written by name they come back.
_NAMED = frozenset(
    (
        "bfloat16",
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

# A list of fields that the grammar has accepted is made of these tokens, commas and spaces.
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|\d+|[()\[\]]")


def short(value: object) -> str:
    """What a client sent, in at most 100 characters of a message; NumPy takes 2 us to print each field."""
    names = value.names if isinstance(value, np.dtype) else None
    text = str(value) if names is None or len(names) < 5 else f"a dtype of {len(names)} fields"
    return text if len(text) <= 100 else text[:97] + "..."


# -- a header's descr -> dtype


def _parse_fields(text: str) -> Any:
    """The value of a list of fields; ast.literal_eval would cost a hostile client's header ten times as much."""
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(text):
        if token in "([":
            stack.append([])
        elif token in ")]":
            inner = stack.pop()
            stack[-1].append(inner if token == "]" else tuple(inner))
        else:
            stack[-1].append(int(token) if token.isdigit() else token[1:-1])
    return stack[0][0]


def _structured_dtype(descr: str) -> np.dtype[Any]:
    fields = _parse_fields(descr)
    padded = "''" in descr or '""' in descr  # which NumPy's own reader alone understands, more slowly
    dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(fields) if padded else np.dtype(fields)
    return dtype


def named_dtype(name: str) -> np.dtype[Any]:
    """The dtype of ml_dtypes that a .npy document names. Raises ValueError for another name, ImportError without it."""
    if name not in _NAMED:
        raise ValueError("neither NumPy nor ml_dtypes has it")
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def dtype_of(raw: bytes, utf8: bool, named: bool, fields: bool) -> np.dtype[Any]:
    """The dtype of a descr that the grammar accepted, as name, list of fields or simple dtype; or ItemError."""
    dtype: np.dtype[Any]
    try:
        descr = raw.decode("utf-8" if utf8 else "latin-1")
        if named:
            return named_dtype(descr)
        dtype = _structured_dtype(descr) if fields else np.dtype(descr)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        got = short(raw.decode("latin-1"))
        raise ItemError(f"expected a dtype that NumPy here knows, got {got!r}: {short(error)}") from None
    if dtype.itemsize == 0:
        raise ItemError(f"expected a dtype of at least one byte, got {short(descr)}")
    return dtype


# -- dtype -> a header


def _descr(dtype: np.dtype[Any]) -> Any:
    """What to write for a dtype: '<f4', a name, or a list of fields."""
    if dtype.hasobject:
        raise TypeError(
            f"an array of {dtype} holds Python objects, which only pickle can carry, and Virtex never unpickles: "
            "convert it to a dtype of numbers or fixed-length strings"
        )
    if dtype.names is not None:
        return _field_descr(dtype, dtype.names)
    if dtype.name in _NAMED and dtype.type.__module__ == "ml_dtypes":
        return dtype.name
    if dtype.kind not in "biufcmMSUV" or dtype.num > _LAST_BUILTIN:
        raise TypeError(f"a .npy document can't carry {dtype}: convert it to numbers or fixed-length strings")
    return dtype.str


def _field_descr(dtype: np.dtype[Any], names: tuple[str, ...]) -> Any:
    for name in names:
        descr = _descr(dtype[name].base)
        if isinstance(descr, str) and descr in _NAMED:
            raise TypeError(f"a .npy document can't carry a field of {descr}: NumPy reads it by name, and alone")
    try:
        return np.lib.format.dtype_to_descr(dtype)
    except ValueError as error:  # fields that overlap
        raise TypeError(f"a .npy document can't carry {dtype}: {error}") from None


def build_header(dtype: np.dtype[Any], shape: Shape, fortran: bool) -> bytes:
    """A .npy header of 192 bytes, or of a multiple where that is too short."""
    text = repr({"descr": _descr(dtype), "fortran_order": fortran, "shape": shape})
    version, prefix = (1, 10) if text.isascii() else (3, 12)
    encoded = text.encode()
    size = -(-(prefix + len(encoded) + 1) // HEADER_BYTES) * HEADER_BYTES
    if size > MAX_HEADER or dtype.itemsize == 0 or "\\" in text or len(shape) > MAX_DIMS:
        raise TypeError(
            f"expected a dtype of at least one byte, whose header fits {MAX_HEADER} bytes and whose field names need "
            f"no escapes, in at most {MAX_DIMS} dimensions; got {dtype} {shape}"
        )
    length = (size - prefix).to_bytes(prefix - 8, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + encoded.ljust(size - prefix - 1) + b"\n"


# -- nested lists -> an array of a declared dtype

# Kinds of numbers (as NumPy finds them in JSON values) that a declared kind takes without losing anything by kind.
_TAKES = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "c": "iuf"}


def numbers(value: Any, dtype: np.dtype[Any], shape: Shape) -> NDArray[Any]:
    """A JSON number, or nested lists of them, as an array of this dtype and shape; or ItemError.

    Nothing is rounded away: an integer beyond the dtype and a float that would become infinite are refused, and so are
    floats for integers, and booleans for numbers. Of floats, precision may be lost, as from any decimal text.
    """
    # As objects first: an array of text has room for the longest in every place, so a few would take all memory.
    objects = np.array(value, dtype=object)
    types = set(map(type, objects.reshape(-1).tolist()))
    if list in types:
        raise ItemError(f"expected nested lists of shape {shape}, got lists of differing lengths")
    if objects.shape != shape:
        raise ItemError(f"expected {dtype} {shape}, got numbers of shape {objects.shape}")
    if not types <= {int, float, bool}:
        raise ItemError(f"expected numbers that {dtype} holds, got {'text' if str in types else 'other values'}")
    found = np.array(value)
    kind = "f" if dtype.name in _NAMED and dtype.kind == "V" else dtype.kind
    if found.size and found.dtype.kind not in _TAKES.get(kind, ""):
        raise ItemError(f"expected numbers that {dtype} holds, got {_word(found)}")
    if kind != "b" and bool in types:
        raise ItemError(f"expected numbers that {dtype} holds, got booleans among them")  # NumPy takes them for 0 and 1
    return _cast(found, dtype)


def _word(found: NDArray[Any]) -> str:
    if found.dtype.kind == "f":
        return "fractions or integers beyond 64 bits"
    return {"b": "booleans", "i": "integers", "u": "integers"}.get(found.dtype.kind, "other values")


def _cast(found: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        low, high = int(found.min()), int(found.max())
        if low < limits.min or high > limits.max:
            got = low if low < limits.min else high
            raise ItemError(f"expected integers from {limits.min} to {limits.max} ({dtype}), got {got}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(dtype)
    if found.dtype.kind in "iuf" and dtype.kind not in "iub":
        beyond = ~np.isfinite(cast.astype("c16"))
        if beyond.any():
            raise ItemError(f"expected numbers that {dtype} holds, got {found[beyond].flat[0]}")
    return cast
