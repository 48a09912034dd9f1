"""Tensors of TensorFlow as the base64 of a .npy document: what encode_numpy writes, so that any language can read it.

Rules: TensorFlow is imported when a function is called. An array becomes a tensor without a copy only where TensorFlow
would not end the process for it: its kernels check the alignment of what they read by aborting.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ItemError, quoted
from ..extras import library
from .numpy import decode_numpy, encode_numpy

__all__ = ["decode_tf", "encode_tf"]

_ALIGNMENT = 64  # bytes, where TensorFlow was built for the widest registers
_SHARED = frozenset(map(np.dtype, "?bBhHiIqQefdFD"))  # that pass by DLPack


def encode_tf(obj: Any) -> str:
    """The base64 of a tensor's .npy document, as encode_numpy writes it.

    obj: an eager tf.Tensor or a tf.Variable, on any device. Dtypes: all that hold numbers; bfloat16, float8, int4 and
    the like are written by their names. tf.string becomes NumPy's S, as long as the longest string, which a string that
    ends in a zero byte can't.
    Raises: TypeError, with the remedy, for what is no dense tensor with values (ragged, sparse, symbolic), for
    quantized dtypes, for such strings, and for a shape that encode_numpy refuses. ImportError without TensorFlow.
    """
    tf = library("tensorflow", "encode_tf", "tensorflow")
    tensor = obj.value() if isinstance(obj, tf.Variable) else obj
    _check(tf, tensor)
    array = np.asarray(tensor)
    return encode_numpy(_fixed(array) if tensor.dtype == tf.string else array)


def decode_tf(bytestr: Any) -> Any:
    """The tensor whose .npy document's base64 `bytestr` is.

    bytestr: what encode_tf or encode_numpy wrote, or another's strict base64 of a .npy document. Numbers in another
    byte order are brought into this machine's; text (S, U) becomes tf.string, U in UTF-8.
    Returns: an eager tf.Tensor; numbers of NumPy's own dtypes and bfloat16 are not copied on the way to the CPU.
    Raises: ItemError (422) as decode_numpy, and for a dtype that TensorFlow lacks (datetimes). ImportError without
    TensorFlow.
    """
    return _tensor(library("tensorflow", "decode_tf", "tensorflow"), decode_numpy(bytestr))


def _check(tf: Any, tensor: Any) -> None:
    """Raise TypeError for what has no values, or not as a .npy document has them."""
    if isinstance(tensor, tf.RaggedTensor):
        raise TypeError("a ragged tensor does not travel: send tensor.to_tensor(), or its values and row_splits")
    if isinstance(tensor, tf.SparseTensor):
        raise TypeError("a sparse tensor does not travel: send tf.sparse.to_dense(tensor), or its three tensors")
    if not isinstance(tensor, tf.Tensor):
        what = type(tensor).__name__
        raise TypeError(f"encode_tf: expected an eager tf.Tensor, got {what}: tf.convert_to_tensor may make it one")
    if tf.is_symbolic_tensor(tensor):
        raise TypeError("a symbolic tensor has no values yet: encode what the function returns, outside of it")
    dtype = tensor.dtype
    if dtype.is_quantized:
        integers = dtype.name.removeprefix("q").replace("quint", "uint")
        raise TypeError(f"{dtype.name} does not travel: send tf.bitcast(tensor, tf.{integers}), and its scale")
    if dtype in (tf.resource, tf.variant):
        raise TypeError(f"a tensor of {dtype.name} holds no values: send the tensors that it stands for")


def _fixed(array: Any) -> Any:
    """Strings of one length; NumPy fills them with zero bytes, and takes those at the end for such."""
    if any(text.endswith(b"\0") for text in array.flat):
        raise TypeError("a string that ends in a zero byte does not travel: send each by encode_bytes")
    return array.astype(bytes) if array.any() else np.zeros(array.shape, "S1")  # there is no S0


def _tensor(tf: Any, array: Any) -> Any:
    dtype = array.dtype
    if dtype.name == "bfloat16":
        return tf.bitcast(_tensor(tf, array.view(np.uint16)), tf.bfloat16)
    if not dtype.isnative and dtype.kind != "U":
        array = array.astype(dtype.newbyteorder("="))
    if array.dtype in _SHARED and _may_be_shared(array):
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    try:
        return tf.convert_to_tensor(array)
    except (TypeError, ValueError):
        raise ItemError(f"expected a dtype that TensorFlow has, got {quoted(dtype)}") from None


def _may_be_shared(array: Any) -> bool:
    flags = array.flags
    return bool(flags.c_contiguous and flags.writeable and array.ctypes.data % _ALIGNMENT == 0)
