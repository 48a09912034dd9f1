"""Tensors that came as lists of numbers or texts, as the bytes that raw_input_contents would have.

Rules: messages in, bytes out. It is the slow way in, one object of Python for a number, so limits.values bounds it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ..errors import RequestError, quoted
from ..message import Account
from ..service import v2
from ..service.v2_write import DEEP
from .cut import counted
from .messages import InferRequest

MOST_HEAD = 1 << 19  # bytes beside id and tensors: protobuf, and what looks at it, take 0.1 s for so many
GROWN = 20  # times its length that a message of many small fields takes, once protobuf has read it

_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    v2.TEXT: "bytes_contents",
}
_WIDE = {"uint_contents": np.dtype("u4"), "int_contents": np.dtype("i4")}


def read(message: bytes) -> Any:
    """What protobuf reads in a ModelInferRequest. Raises RequestError (400) where it is none."""
    try:
        return InferRequest.FromString(message)
    except (DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"expected a ModelInferRequest: {quoted(error)}") from None


def as_raw(message: bytes, account: Account, most_values: int) -> bytes:
    """The same request with raw_input_contents, and nothing that the protocol does not know.

    Raises RequestError: 400; 413 for too many values; 503 where there is no room for them.
    """
    size, values = counted(message, MOST_HEAD, most_values)
    check_head(size)
    if values > most_values:
        reason = (
            f"more than {most_values} values in the contents of one request (limits.values): send raw_input_contents"
        )
        raise RequestError(413, reason)
    account.admit_strings(values)
    account.admit_items(0, GROWN * len(message))
    request = read(message)
    request.DiscardUnknownFields()
    if not request.raw_input_contents:
        for tensor in request.inputs:
            request.raw_input_contents.append(_raw_of(tensor))
            tensor.ClearField("contents")
    raw: bytes = request.SerializeToString()
    account.admit_items(0, len(raw))
    return raw


def check_head(size: int) -> None:
    """Raise RequestError (413) where there are too many: so many bytes beside id and tensors."""
    if size > MOST_HEAD:
        raise RequestError(413, f"more than {MOST_HEAD} bytes beside id and tensors")


def _raw_of(tensor: Any) -> bytes:
    name, datatype = f"input {quoted(tensor.name)!r}", quoted(tensor.datatype)
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        known = tensor.datatype == "BF16" or tensor.datatype in v2.DTYPES
        why = "has no contents: send raw_input_contents" if known else f"expected one of {', '.join(_FIELDS)}"
        raise RequestError(400, f"{name}: datatype {datatype!r} {why}")
    others = [other.name for other, _ in tensor.contents.ListFields() if other.name != field]
    if others:
        raise RequestError(400, f"{name}: expected {field} for {datatype}, got {', '.join(others)}")
    if len(tensor.shape) > DEEP:  # their product would be as long as all of them
        raise RequestError(400, f"{name}: expected {DEEP} dimensions at most in 'shape', got {len(tensor.shape)}")
    values = getattr(tensor.contents, field)
    shape = list(tensor.shape)
    if len(values) != math.prod(shape):
        expected = f"{quoted(math.prod(shape))} values in {field} for a shape of {quoted(shape)}"
        raise RequestError(400, f"{name}: expected {expected}, got {len(values)}")
    if tensor.datatype == v2.TEXT:
        return b"".join([len(value).to_bytes(4, "little") + value for value in values])
    return _numbers(values, v2.DTYPES[tensor.datatype], _WIDE.get(field), f"{name}: expected {datatype}")


def _numbers(values: Any, dtype: np.dtype[Any], wide: np.dtype[Any] | None, expected: str) -> bytes:
    """Numbers as bytes, the lowest first. wide: as what narrower ones travel."""
    array = np.fromiter(values, wide or dtype, len(values))
    if wide is not None and wide != dtype:
        found = array.astype(dtype)
        wrong = np.flatnonzero(found != array)
        if len(wrong):
            raise RequestError(400, f"{expected}, got {array[wrong[0]]} (value {wrong[0]})")
        array = found
    raw: bytes = array.astype(dtype.newbyteorder("<"), copy=False).tobytes()
    return raw
