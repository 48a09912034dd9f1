"""What encode_mx carries and refuses; docs/serial.md has the names."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MXNet 1.9 reads np.bool
    import mxnet

NUMBERS = ["bool", "int8", "int32", "int64", "uint8", "float16", "float32", "float64"]


def cases() -> list[tuple[str, object]]:
    numbers = np.arange(6).reshape(2, 3)
    matrix = mxnet.nd.arange(12).reshape((3, 4))
    layouts = {
        "transposed": matrix.T,
        "every second column": matrix[:, ::2],
        "NaN, infinity and -0.0": mxnet.nd.array([np.nan, np.inf, -np.inf, -0.0]),
        "attached gradient": attached(),
    }
    return [*((name, mxnet.nd.array(numbers, dtype=name)) for name in NUMBERS), *layouts.items()]


def attached() -> Any:
    array = mxnet.nd.ones(2)
    array.attach_grad()
    return array


def same(a: Any, b: Any) -> bool:
    """Whether two arrays have the same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.asnumpy().tobytes() == b.asnumpy().tobytes()


def refused() -> list[tuple[str, object, str]]:
    ones = mxnet.nd.ones((2, 2))
    return [
        ("bfloat16", mxnet.nd.zeros(2, dtype=np.dtype([("bfloat16", np.uint16)])), "amp_cast"),
        ("row_sparse", ones.tostype("row_sparse"), "tostype('default')"),
        ("csr", ones.tostype("csr"), "tostype('default')"),
        ("an array of mxnet.numpy", mxnet.np.ones(2), "as_nd_ndarray()"),
        ("a symbol", mxnet.sym.Variable("x"), "expected an mxnet.nd.NDArray, got Symbol"),
        ("a NumPy array", np.ones(2), "expected an mxnet.nd.NDArray, got ndarray"),
    ]
