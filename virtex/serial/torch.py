"""Tensors of torch as the base64 of a .npy document: what encode_numpy writes, so that any language can read it.

Rules: torch is imported when a function is called. A tensor is bytes and a dtype here; those dtypes that NumPy lacks
pass as integers of their size, and are written by the names that ml_dtypes gave them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..errors import ItemError, quoted
from ..extras import library
from ._npy import named_dtype
from .numpy import decode_numpy, encode_numpy

__all__ = ["decode_torch", "encode_torch"]

# What torch and NumPy have under one name.
_NUMPYS = frozenset(map(np.dtype, "?bhiqBHIQefdFD"))

# What torch and ml_dtypes have under one name, and the integers of that size.
_BITS = {
    "bfloat16": "int16",
    "complex32": "int32",  # of ml_dtypes 0.6
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}
_PAIRS, _HALF = (
    "float4_e2m1fn_x2",
    "float4_e2m1fn",
)  # two values in a byte, and one: torch has the first, .npy the other

# Of these torch has the size only: nothing says what their bits mean.
_OPAQUE = {"bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"}
_OPAQUE |= {f"{kind}{size}" for kind in ("int", "uint") for size in range(1, 8)}


def encode_torch(obj: Any) -> str:
    """The base64 of a tensor's .npy document, as encode_numpy writes it.

    obj: a torch.Tensor or torch.nn.Parameter, on any device; detached if it requires gradients, conjugated and negated
    if it is a view that says so, and laid out in C order. Dtypes: all that hold numbers; bfloat16, complex32 and
    float8 are written by their names, of float4_e2m1fn_x2 each value as one byte of float4_e2m1fn, along the last
    dimension.
    Raises: TypeError, with the remedy, for what is no dense tensor with data (quantized, sparse, nested, on meta, of
    another subclass), a dtype without arithmetic (bits8, int4), and a shape that encode_numpy refuses. ImportError
    without torch.
    """
    torch = library("torch", "encode_torch", "torch")
    _check(torch, obj)
    tensor = obj.detach().contiguous()
    if tensor.dtype in _torchs(torch):
        return encode_numpy(tensor.numpy(force=True))  # from another device too, and what a view conjugates or negates
    return encode_numpy(_other_array(torch, tensor))


def decode_torch(bytestr: Any, device: Any = None) -> Any:
    """The tensor whose .npy document's base64 `bytestr` is.

    bytestr: what encode_torch or encode_numpy wrote, or another's strict base64 of a .npy document. Numbers in another
    byte order are brought into this machine's. device: where the tensor is to be, as Tensor.to() takes it; by default
    in host memory.
    Returns: a torch.Tensor on memory of its own, writable, its data aligned to 64 bytes and not copied on the way; with
    Fortran's strides if the document is in that order.
    Raises: ItemError (422) as decode_numpy, and for a dtype that torch lacks (text, datetimes). ImportError without
    torch.
    """
    torch = library("torch", "decode_torch", "torch")
    array = decode_numpy(bytestr)
    tensor = torch.from_numpy(array) if array.dtype in _NUMPYS else _other_tensor(torch, array)
    return tensor if device is None else tensor.to(device)


@cache
def _torchs(torch: Any) -> frozenset[Any]:
    return frozenset(getattr(torch, dtype.name) for dtype in _NUMPYS)


def _check(torch: Any, obj: Any) -> None:
    """Raise TypeError for what has no bytes, or more than bytes."""
    if type(obj) is not torch.Tensor and type(obj) is not torch.nn.Parameter:
        what = type(obj).__name__
        if not isinstance(obj, torch.Tensor):
            raise TypeError(f"encode_torch: expected a torch.Tensor, got {what}")
        raise TypeError(f"a {what} is more than a torch.Tensor: send the plain tensors that it is made of")
    if obj.layout is not torch.strided:
        raise TypeError(f"a tensor of layout {obj.layout} does not travel: send tensor.to_dense()")
    if obj.is_nested:
        raise TypeError("a nested tensor does not travel: send each of tensor.unbind()")
    if obj.is_meta:
        raise TypeError("a tensor on the device meta has no data to send: make it on another, as in to_empty()")


# -- dtypes that NumPy lacks


def _other_array(torch: Any, tensor: Any) -> Any:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized or name.startswith(("qint", "quint")):
        raise TypeError(f"a quantized tensor ({name}) has scales that do not travel: send tensor.dequantize()")
    if name in _OPAQUE:
        raise TypeError(f"nothing says what the bits of {name} mean: send tensor.view(torch.uint8)")
    if name not in _BITS and name != _PAIRS:
        raise TypeError(f"a .npy document can't carry {name}: convert it to a dtype that NumPy or ml_dtypes has")
    library("ml_dtypes", f"encode_torch of {name}", "torch")
    if name == _PAIRS:
        return _unpacked(torch, tensor).numpy(force=True).view(named_dtype(_HALF))
    whole = tensor.resolve_conj().resolve_neg()
    return whole.view(getattr(torch, _BITS[name])).numpy(force=True).view(named_dtype(name))


def _other_tensor(torch: Any, array: Any) -> Any:
    name = array.dtype.name
    if name in _BITS and hasattr(torch, name):
        return torch.from_numpy(array.view(_BITS[name])).view(getattr(torch, name))
    if name == _HALF and hasattr(torch, _PAIRS):
        return _packed(torch, array)
    native = array.dtype.newbyteorder("=")
    if native in _NUMPYS:
        return torch.from_numpy(array.astype(native))
    raise ItemError(f"expected a dtype that torch has, got {quoted(array.dtype)}")


def _unpacked(torch: Any, tensor: Any) -> Any:
    if not tensor.ndim:
        raise TypeError(f"a {_PAIRS} without dimensions is two values: send tensor.reshape(1)")
    pairs = tensor.view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2)  # the first value has the low bits


def _packed(torch: Any, array: Any) -> Any:
    if not array.ndim or array.shape[-1] % 2:
        raise ItemError(f"expected an even last dimension, of values that {_PAIRS} holds in pairs; got {array.shape}")
    halves = torch.from_numpy(array.view("u1"))
    return (halves[..., ::2] | halves[..., 1::2] << 4).view(getattr(torch, _PAIRS))
