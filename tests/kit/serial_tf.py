"""What encode_tf carries and refuses; docs/serial.md has the names."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import dtypes  # which has more than tf.dtypes

PLAIN = [
    *(tf.bool, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.float16, tf.float32, tf.float64, tf.complex64, tf.complex128),
]
NAMED = [
    *(tf.bfloat16, dtypes.float8_e5m2, dtypes.float8_e4m3fn, dtypes.float8_e4m3fnuz, dtypes.float8_e5m2fnuz),
    *(dtypes.float8_e4m3b11fnuz, dtypes.float4_e2m1fn, dtypes.int4, dtypes.uint4, dtypes.int2, dtypes.uint2),
]
INTEGERS = [tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32]
QUANTIZED = [tf.qint8, tf.quint8, tf.qint16, tf.quint16, tf.qint32]
DTYPES = {value.name for value in vars(dtypes).values() if isinstance(value, tf.DType) and "_ref" not in value.name}


def sample(dtype: tf.DType, *shape: int) -> tf.Tensor:
    numbers = np.arange(int(np.prod(shape))).reshape(shape) % 2
    return tf.constant(numbers.astype(dtype.as_numpy_dtype))


def cases() -> list[tuple[str, object]]:
    layouts = {
        "without dimensions": tf.constant(1.5),
        "empty": tf.zeros((0, 3)),
        "transposed": tf.transpose(tf.reshape(tf.range(12.0), (3, 4))),
        "NaN, infinity and -0.0": tf.constant([np.nan, np.inf, -np.inf, -0.0]),
        "tf.Variable": tf.Variable([1.0, 2.0]),
        "string": tf.constant([[b"a", b"\xff longer"], [b"", b"a\0b"]]),
        "string, without dimensions": tf.constant("caf\u00e9"),
        "string, all empty": tf.constant(["", ""]),
        "string, no element": tf.zeros((0, 2), tf.string),
    }
    return [*((dtype.name, sample(dtype, 2, 3)) for dtype in [*PLAIN, *NAMED]), *layouts.items()]


def same(a: Any, b: Any) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    one, other = a.numpy(), b.numpy()
    return bool(np.all(one == other)) if a.dtype == tf.string else one.tobytes() == other.tobytes()


def refused() -> list[tuple[str, object, str]]:
    quantized = [tf.bitcast(tf.zeros(2, dtype), target) for dtype, target in zip(INTEGERS, QUANTIZED, strict=True)]
    remedies = [f"tf.bitcast(tensor, tf.{dtype.name})" for dtype in INTEGERS]
    ones = tf.ones((2, 2))
    variant = tf.raw_ops.EmptyTensorList(element_shape=-1, max_num_elements=1, element_dtype=tf.float32)
    return [
        *((one.dtype.name, one, remedy) for one, remedy in zip(quantized, remedies, strict=True)),
        ("string that ends in a zero byte", tf.constant([b"a\0"]), "encode_bytes"),
        ("resource", tf.Variable(1.0).handle, "resource"),
        ("variant", variant, "variant"),
        ("ragged", tf.ragged.constant([[1], [2, 3]]), "to_tensor()"),
        ("sparse", tf.sparse.from_dense(ones), "tf.sparse.to_dense"),
        ("symbolic", tf.keras.Input((2,)), "expected an eager tf.Tensor, got KerasTensor"),
        ("a NumPy array", np.ones(2), "expected an eager tf.Tensor, got ndarray"),
        ("a list", [1.0], "expected an eager tf.Tensor, got list"),
    ]
