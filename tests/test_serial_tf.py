"""encode_tf and decode_tf: every dtype that TensorFlow has, what is refused, and that no memory makes it abort."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import needs

from virtex import HttpMessage, ItemError
from virtex.serial import decode_numpy, decode_tf, encode_bytes, encode_numpy, encode_tf

tf = needs.library("tensorflow")
ml_dtypes = needs.library("ml_dtypes")
from kit.serial_tf import DTYPES, NAMED, PLAIN, QUANTIZED, cases, refused, same, sample  # noqa: E402

ROOT = Path(__file__).parent.parent
CASES = dict(cases())
REFUSED = {name: (value, why) for name, value, why in refused()}


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_comes_back_with_its_dtype_shape_and_bits(name: str) -> None:
    back = decode_tf(encode_tf(CASES[name]))
    assert same(CASES[name], back)
    assert isinstance(back, tf.Tensor)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_document_can_not_carry_is_refused_with_a_remedy(name: str) -> None:
    value, remedy = REFUSED[name]
    with pytest.raises(TypeError) as refusal:
        encode_tf(value)
    assert remedy in str(refusal.value)


def test_each_dtype_that_tensorflow_has_travels_or_is_refused() -> None:
    travel = {dtype.name for dtype in [*PLAIN, *NAMED]}
    assert DTYPES - travel - {dtype.name for dtype in QUANTIZED} == {"string", "resource", "variant"}


def test_inside_of_a_function_there_are_no_values() -> None:
    @tf.function
    def encoded(tensor: Any) -> None:
        encode_tf(tensor)

    with pytest.raises(TypeError, match="symbolic"):
        encoded(tf.ones(2))


@pytest.mark.parametrize("dtype", PLAIN, ids=lambda dtype: dtype.name)
@settings(deadline=None)
@given(shape=st.lists(st.integers(0, 4), max_size=4))
def test_any_shape_comes_back(dtype: Any, shape: list[int]) -> None:
    tensor = sample(dtype, *shape)
    assert same(tensor, decode_tf(encode_tf(tensor)))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=5)))
def test_strings_come_back_or_are_refused(texts: list[bytes]) -> None:
    tensor = tf.constant(texts, tf.string)
    if any(text.endswith(b"\0") for text in texts):
        with pytest.raises(TypeError, match="zero byte"):
            encode_tf(tensor)
    else:
        assert decode_tf(encode_tf(tensor)).numpy().tolist() == texts


# -- the text


@pytest.mark.parametrize("dtype", [*PLAIN, *NAMED], ids=lambda dtype: dtype.name)
def test_numpy_reads_the_same_numbers_under_the_same_name(dtype: Any) -> None:
    tensor = sample(dtype, 2, 3)
    array = decode_numpy(encode_tf(tensor))
    assert array.dtype.name == dtype.name
    assert (array == np.array([[0, 1, 0], [1, 0, 1]]).astype(array.dtype)).all()


def test_a_tensor_travels_in_a_message() -> None:
    message = HttpMessage(data=[tf.range(3)])
    message.encode(encode_tf)
    message.decode(decode_tf)
    assert message.data[0].numpy().tolist() == [0, 1, 2]


def test_arguments_may_be_given_by_the_names_that_they_always_had() -> None:
    assert decode_tf(bytestr=encode_tf(obj=tf.ones(2))).numpy().tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8", ">c16"])
def test_another_byte_order_is_brought_into_this_one(dtype: str) -> None:
    tensor = decode_tf(encode_numpy(np.array([[1, 2], [3, 4]], dtype)))
    assert tensor.numpy().tolist() == [[1, 2], [3, 4]] and tensor.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("dtype", ["<U4", ">U4"])
def test_text_becomes_strings_of_utf_8(dtype: str) -> None:
    assert decode_tf(encode_numpy(np.array(["caf\u00e9", ""], dtype))).numpy().tolist() == ["caf\u00e9".encode(), b""]


def test_columns_become_rows() -> None:
    assert decode_tf(encode_numpy(np.asfortranarray([[0, 1], [2, 3]]))).numpy().tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[s]", "g", "G", "float8_e3m4", "float8_e4m3", "float6_e2m3fn"])
def test_a_dtype_that_tensorflow_lacks_is_the_client_s_error(dtype: str) -> None:
    array = np.zeros(2, getattr(ml_dtypes, dtype, dtype))
    with pytest.raises(ItemError, match="expected a dtype that TensorFlow has, got") as error:
        decode_tf(encode_numpy(array))
    assert error.value.status == 422


@pytest.mark.parametrize("text", ["", "AB=C", "gASVCwAAAAAAAAB9lC4=", encode_bytes(b"\x93NUMPY"), None, 3, [1.0]])
def test_bad_input_is_the_client_s_error(text: Any) -> None:
    with pytest.raises(ItemError):
        decode_tf(text)


# -- memory


def address(tensor: Any) -> int:
    return int(np.asarray(tensor).ctypes.data)


@pytest.mark.parametrize("dtype", [*PLAIN, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_nothing_is_copied_after_it_is_decoded(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = []

    def remembered(text: str) -> Any:
        arrays.append(decode_numpy(text))
        return arrays[-1]

    monkeypatch.setattr(sys.modules["virtex.serial.tf"], "decode_numpy", remembered)
    assert address(decode_tf(encode_tf(sample(dtype, 2, 3)))) == arrays[-1].ctypes.data


def test_the_memory_lives_as_long_as_the_tensor() -> None:
    text = encode_tf(tf.range(1000))
    tensors = [decode_tf(text) for _ in range(100)]
    assert all(tensor.numpy()[-1] == 999 for tensor in tensors)
    assert len({address(tensor) for tensor in tensors}) == 100


# Unaligned, read-only, in columns, reversed: TensorFlow ends the process where it is made to read such memory.
HOSTILE = """
import numpy as np, tensorflow as tf, ml_dtypes
from virtex.serial.tf import _tensor
memory = np.zeros(4096, "u1")
for offset in range(0, 65):
    for dtype in ("?", "i1", "i4", "f4", "f8", "c16", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2):
        size = 64 * np.dtype(dtype).itemsize
        array = memory[offset:offset + size].view(dtype).reshape(8, 8)
        for one in (array, array.T, array[::-1], array[:, ::2], array[:0], array[1:2, 3]):
            tensor = _tensor(tf, one)
            total = tf.reduce_sum(tf.cast(tf.concat([tensor, tensor], 0), tf.float32) + 1)
            assert float(total) == 2 * one.size, (offset, dtype)
        array.flags.writeable = False
        assert _tensor(tf, array).shape == (8, 8)
print("all are well")
"""


def test_no_memory_makes_it_abort() -> None:
    ended = subprocess.run([sys.executable, "-c", HOSTILE], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "all are well\n", (ended.returncode, ended.stderr[-2000:])


# -- the library


@pytest.mark.parametrize("name", ["encode_tf", "decode_tf"])
def test_a_missing_library_names_the_extra(name: str) -> None:
    code = f"import sys; sys.modules['tensorflow'] = None; from virtex.serial import {name}; {name}('')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr.endswith(f"ImportError: {name} needs tensorflow: install the extra [tensorflow]\n")
