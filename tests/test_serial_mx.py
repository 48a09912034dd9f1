"""encode_mx and decode_mx: every dtype that MXNet has, what is refused, and the NumPy that it needs."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import needs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of NumPy, about names that MXNet uses
    mxnet = needs.library("mxnet")
from kit.serial_mx import NUMBERS, cases, refused, same

from virtex import HttpMessage, ItemError
from virtex.serial import decode_mx, decode_numpy, encode_bytes, encode_mx, encode_numpy

ROOT = Path(__file__).parent.parent
CASES = dict(cases())
REFUSED = {name: (value, why) for name, value, why in refused()}


@pytest.mark.parametrize("name", CASES)
def test_an_array_comes_back_with_its_dtype_shape_and_bits(name: str) -> None:
    back = decode_mx(encode_mx(CASES[name]))
    assert same(CASES[name], back)
    assert type(back) is mxnet.nd.NDArray


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_document_can_not_carry_is_refused_with_a_remedy(name: str) -> None:
    value, remedy = REFUSED[name]
    with pytest.raises(TypeError) as refusal:
        encode_mx(value)
    assert remedy in str(refusal.value)


def test_each_dtype_that_mxnet_has_travels_or_is_refused() -> None:
    known = {np.dtype(dtype) for dtype in mxnet.ndarray.ndarray._DTYPE_NP_TO_MX if dtype is not None}
    assert {dtype.name for dtype in known if not dtype.fields} == set(NUMBERS)


@pytest.mark.parametrize("dtype", NUMBERS)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_shape_comes_back(dtype: str, shape: list[int]) -> None:
    array = mxnet.nd.array(np.arange(np.prod(shape)).reshape(shape), dtype=dtype)
    assert same(array, decode_mx(encode_mx(array)))


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numpy_reads_the_same_numbers_under_the_same_name(dtype: str) -> None:
    array = decode_numpy(encode_mx(mxnet.nd.array([[0, 1], [1, 0]], dtype=dtype)))
    assert array.dtype.name == dtype and array.tolist() == [[0, 1], [1, 0]]


def test_an_array_travels_in_a_message() -> None:
    message = HttpMessage(data=[mxnet.nd.arange(3)])
    message.encode(encode_mx)
    message.decode(decode_mx)
    assert message.data[0].asnumpy().tolist() == [0, 1, 2]


def test_arguments_may_be_given_by_the_names_that_they_always_had() -> None:
    assert decode_mx(bytestr=encode_mx(obj=mxnet.nd.ones(2))).asnumpy().tolist() == [1, 1]


# -- what others send


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">i8"])
def test_another_byte_order_is_brought_into_this_one(dtype: str) -> None:
    array = decode_mx(encode_numpy(np.array([[1, 2], [3, 4]], dtype)))
    assert array.asnumpy().tolist() == [[1, 2], [3, 4]] and array.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("dtype", ["f4", "i1"])
def test_columns_become_rows(dtype: str) -> None:
    assert decode_mx(encode_numpy(np.asfortranarray([[0, 1], [2, 3]], dtype))).asnumpy().tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("dtype", ["i2", "u2", "u4", "u8", "c8", "c16", "g", "S3", "U3", "M8[s]"])
def test_a_dtype_that_mxnet_lacks_is_the_client_s_error(dtype: str) -> None:
    with pytest.raises(ItemError, match="expected a dtype that MXNet has, got") as error:
        decode_mx(encode_numpy(np.zeros(2, dtype)))
    assert error.value.status == 422


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_a_shape_that_mxnet_takes_for_unknown_needs_its_word(shape: tuple[int, ...]) -> None:
    text = encode_numpy(np.ones(shape, "f4"))
    with pytest.raises(ItemError, match="at least one dimension and one element"):
        decode_mx(text)
    with mxnet.util.np_shape(True):
        array = decode_mx(text)
        assert (array + 1).shape == shape and encode_mx(array) == text


@pytest.mark.parametrize("text", ["", "AB=C", "gASVCwAAAAAAAAB9lC4=", encode_bytes(b"\x93NUMPY"), None, 3, [1.0]])
def test_bad_input_is_the_client_s_error(text: Any) -> None:
    with pytest.raises(ItemError):
        decode_mx(text)


# -- memory


def test_arrays_are_writable_and_share_nothing() -> None:
    text = encode_mx(mxnet.nd.ones(1000))
    arrays = [decode_mx(text) for _ in range(20)]
    arrays[0][:] = 7
    assert [float(array.sum().asscalar()) for array in arrays] == [7000.0] + [1000.0] * 19


# -- the library


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["encode_mx", "decode_mx"])
def test_a_missing_library_names_the_extra(name: str) -> None:
    ended = run(f"import sys; sys.modules['mxnet'] = None; from virtex.serial import {name}; {name}('')")
    assert ended.stderr.endswith(f"ImportError: {name} needs mxnet: install the extra [mxnet]\n")


# NumPy 1.24 to 1.26 as MXNet's import meets them: without the name np.bool
WITHOUT_BOOL = """
import numpy as np
before = np.__getattr__
def without_bool(name):
    if name == "bool":
        raise AttributeError(name)
    return before(name)
np.__getattr__ = without_bool
from virtex.serial.mx import encode_mx, decode_mx
from virtex.serial import encode_numpy
assert decode_mx(encode_numpy(np.ones(2, "?"))).dtype is np.bool_
print(hasattr(np, "bool"))
"""


def test_a_numpy_without_the_name_bool_has_it_while_mxnet_is_imported() -> None:
    ended = run(WITHOUT_BOOL)
    assert ended.stdout == "False\n", ended.stderr


def test_what_was_built_for_numpy_2_runs_here() -> None:
    assert np.__version__.startswith("1.")
    array = np.arange(6.0).reshape(2, 3)
    assert decode_numpy(encode_numpy(array)).tolist() == array.tolist()
