"""Arrays of MXNet as the base64 of a .npy document: what encode_numpy writes, so that any language can read it.

Rules: MXNet is imported when a function is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from ..errors import ItemError, quoted
from ..extras import library
from .numpy import decode_numpy, encode_numpy

__all__ = ["decode_mx", "encode_mx"]

_SHARED = frozenset(("bool", "float16", "float32", "float64", "int32", "int64", "uint8"))  # that from_numpy() takes
_COPIED = "int8"


def encode_mx(obj: Any) -> str:
    """The base64 of an array's .npy document, as encode_numpy writes it.

    obj: a dense mxnet.nd.NDArray, on any device. The dtype is kept: bool, int8, int32, int64, uint8, float16, float32,
    float64. Waits until the array is computed.
    Raises: TypeError, with the remedy, for sparse arrays, those of mxnet.numpy, bfloat16, and a shape that encode_numpy
    refuses. ImportError without MXNet.
    """
    mxnet = _mxnet("encode_mx")
    if type(obj) is not mxnet.nd.NDArray:
        raise TypeError(_refusal(mxnet, obj))
    array = obj.asnumpy()
    if array.dtype.fields:  # as MXNet has NumPy write bfloat16
        raise TypeError("bfloat16 of MXNet does not travel: send mxnet.nd.amp_cast(array, 'float32')")
    return encode_numpy(array)


def decode_mx(bytestr: Any) -> Any:
    """The array whose .npy document's base64 `bytestr` is.

    bytestr: what encode_mx or encode_numpy wrote, or another's strict base64 of a .npy document. Numbers in another
    byte order are brought into this machine's.
    Returns: an mxnet.nd.NDArray of that dtype, on the CPU; int8 is copied on the way, other dtypes are not.
    Raises: ItemError (422) as decode_numpy, for a dtype that MXNet lacks, and for a shape of no dimensions or no
    elements outside of mxnet.util.np_shape(). ImportError without MXNet.
    """
    mxnet = _mxnet("decode_mx")
    array = decode_numpy(bytestr)
    if not ((array.ndim and array.size) or mxnet.util.is_np_shape()):  # else yet to be inferred
        raise ItemError(f"expected at least one dimension and one element, as MXNet does; got {array.shape}")
    dtype = array.dtype
    if dtype.name not in _SHARED and dtype.name != _COPIED:
        raise ItemError(f"expected a dtype that MXNet has, got {quoted(dtype)}")
    array = np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(array.shape)
    if dtype.name == _COPIED:
        return mxnet.nd.array(array, dtype=dtype)
    return mxnet.nd.from_numpy(array, zero_copy=True)


def _refusal(mxnet: Any, obj: Any) -> str:
    what = type(obj).__name__
    if isinstance(obj, mxnet.numpy.ndarray):
        return "an array of mxnet.numpy comes back as another class: send array.as_nd_ndarray()"
    if isinstance(obj, mxnet.nd.NDArray):
        return f"a {what} does not travel: send array.tostype('default')"
    return f"encode_mx: expected an mxnet.nd.NDArray, got {what}"


@cache
def _mxnet(function: str) -> Any:
    with _numpy_bool():
        return library("mxnet", function, "mxnet")


@contextmanager
def _numpy_bool() -> Iterator[None]:
    """np.bool for as long as MXNet 1.9 is imported: it reads the name, which NumPy 1.24 to 1.26 do not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = hasattr(np, "bool")
    if there:
        yield
        return
    np.bool = np.bool_  # type: ignore[misc]
    try:
        yield
    finally:
        del np.bool
