"""encode_torch and decode_torch: every dtype that torch has, every layout, what is refused, whose memory it is."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import needs

from virtex import HttpMessage, ItemError
from virtex.serial import decode_bytes, decode_numpy, decode_torch, encode_bytes, encode_numpy, encode_torch
from virtex.serial._npy import named_dtype

needs.library("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # dtypes and layouts that torch calls experimental, or is about to drop
    import torch
    from kit.serial_torch import DTYPES, NUMBERS, cases, name_of, refused, same, sample

    CASES = dict(cases())
    REFUSED = {name: (value, why) for name, value, why in refused()}

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support", "ignore:.*quantized tensor creation")


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_comes_back_with_its_dtype_shape_and_bits(name: str) -> None:
    back = decode_torch(encode_torch(CASES[name]))
    assert same(CASES[name], back)
    assert type(back) is torch.Tensor and back.is_contiguous() and not back.requires_grad


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_document_can_not_carry_is_refused_with_a_remedy(name: str) -> None:
    value, remedy = REFUSED[name]
    with pytest.raises(TypeError) as refusal:
        encode_torch(value)
    assert remedy in str(refusal.value)


def test_each_dtype_that_torch_has_travels_or_is_refused() -> None:
    named = {name.partition(",")[0] for name in REFUSED}
    unused = {"quint4x2", "quint2x4"}  # quantized: tensors of these can't be made by the functions above
    assert {name_of(dtype) for dtype in DTYPES} - {*map(name_of, NUMBERS), *named} == unused
    for name in unused:
        with pytest.raises(TypeError, match="quantized"):
            encode_torch(torch.empty(2, dtype=getattr(torch, name)))


@pytest.mark.parametrize("dtype", NUMBERS, ids=name_of)
@given(data=st.data())
def test_any_bits_in_any_shape_and_layout_come_back(dtype: torch.dtype, data: Any) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4), "shape")
    if dtype is torch.float4_e2m1fn_x2 and not shape:
        shape = [1]
    tensor = sample(dtype, *shape)
    order = data.draw(st.permutations(range(len(shape))), "order")
    laid_out = tensor.permute(order)
    if shape:
        axis = data.draw(st.integers(0, len(shape) - 1), "axis")
        laid_out = laid_out.narrow(axis, 0, data.draw(st.integers(0, laid_out.shape[axis]), "length"))
    assert same(laid_out, decode_torch(encode_torch(laid_out)))


# -- the text


@pytest.mark.parametrize("dtype", [one for one in NUMBERS if one is not torch.float4_e2m1fn_x2], ids=name_of)
def test_numpy_reads_the_same_numbers_under_the_same_name(dtype: torch.dtype) -> None:
    tensor = sample(dtype, 2, 3)
    array = decode_numpy(encode_torch(tensor))
    assert array.dtype.name == name_of(dtype) and array.shape == (2, 3)
    assert encode_numpy(array) == encode_torch(tensor)
    assert same(tensor, decode_torch(encode_numpy(array)))


def test_values_in_pairs_are_read_as_one_byte_each_the_low_bits_first() -> None:
    pairs = torch.tensor([[0x21, 0x4F]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    array = decode_numpy(encode_torch(pairs))
    assert array.dtype.name == "float4_e2m1fn" and array.astype("f4").tolist() == [[0.5, 1.0, -6.0, 2.0]]


def test_a_tensor_travels_in_a_message() -> None:
    message = HttpMessage(data=[torch.arange(3)])
    message.encode(encode_torch)
    message.decode(decode_torch)
    assert message.data[0].tolist() == [0, 1, 2]


def test_arguments_may_be_given_by_the_names_that_they_always_had() -> None:
    assert decode_torch(bytestr=encode_torch(obj=torch.ones(2))).tolist() == [1, 1]


# -- memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_the_memory_is_aligned_writable_and_the_tensor_s_own(dtype: torch.dtype) -> None:
    text = encode_torch(torch.ones(1001, dtype=dtype))
    first, second = decode_torch(text), decode_torch(text)
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that may not be written
        first += 1
    assert first.sum() == 2002 and second.sum() == 1001


def test_nothing_is_copied_after_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = []

    def remembered(text: str) -> Any:
        arrays.append(decode_numpy(text))
        return arrays[-1]

    monkeypatch.setattr(sys.modules["virtex.serial.torch"], "decode_numpy", remembered)
    for tensor in (torch.ones(3), torch.ones(3).bfloat16(), torch.ones(3, dtype=torch.float8_e5m2)):
        assert decode_torch(encode_torch(tensor)).data_ptr() == arrays[-1].ctypes.data


def test_device_moves_the_tensor() -> None:
    text = encode_torch(torch.ones(2))
    assert decode_torch(text, device="meta").is_meta
    assert decode_torch(text, device=torch.device("cpu")).device.type == "cpu"
    with pytest.raises(RuntimeError):
        decode_torch(text, device="nowhere")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_tensor_on_a_gpu_comes_back_through_the_host() -> None:
    tensor = torch.arange(6.0, device="cuda").reshape(2, 3).T
    assert same(tensor.cpu(), decode_torch(encode_torch(tensor)))
    assert decode_torch(encode_torch(tensor), device="cuda").is_cuda


# -- what others send


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8", ">c16"])
def test_another_byte_order_is_brought_into_this_one(dtype: str) -> None:
    tensor = decode_torch(encode_numpy(np.array([[1, 2], [3, 4]], dtype)))
    assert tensor.tolist() == [[1, 2], [3, 4]]
    assert str(np.dtype(dtype).newbyteorder("=")) == name_of(tensor.dtype)


def test_columns_stay_columns() -> None:
    tensor = decode_torch(encode_numpy(np.asfortranarray(np.arange(6.0).reshape(2, 3))))
    assert tensor.stride() == (1, 2) and tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", ["S3", "U3", "M8[s]", "m8[s]", "g", "int4", "float8_e3m4"])
def test_a_dtype_that_torch_lacks_is_the_client_s_error(dtype: str) -> None:
    ml_dtypes = needs.library("ml_dtypes")
    array = np.zeros(2, getattr(ml_dtypes, dtype, dtype))
    with pytest.raises(ItemError, match="expected a dtype that torch has, got") as error:
        decode_torch(encode_numpy(array))
    assert error.value.status == 422


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_values_that_make_no_pairs_are_the_client_s_error(shape: tuple[int, ...]) -> None:
    ml_dtypes = needs.library("ml_dtypes")
    with pytest.raises(ItemError, match="even last dimension"):
        decode_torch(encode_numpy(np.zeros(shape, ml_dtypes.float4_e2m1fn)))


@pytest.mark.parametrize("text", ["", "AB=C", "gASVCwAAAAAAAAB9lC4=", encode_bytes(b"\x93NUMPY"), None, 3, [1.0]])
def test_bad_input_is_the_client_s_error(text: Any) -> None:
    with pytest.raises(ItemError):
        decode_torch(text)


@given(st.binary(max_size=12), st.integers(0, 500))
def test_no_damaged_document_raises_anything_else(junk: bytes, at: int) -> None:
    document = decode_bytes(encode_torch(torch.ones(40).bfloat16()))
    damaged = encode_bytes(document[:at] + junk + document[at + len(junk) :])
    with suppress(ItemError):
        assert isinstance(decode_torch(damaged), torch.Tensor)


# -- the library


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_missing_library_names_the_extra() -> None:
    for name in ("encode_torch", "decode_torch"):
        ended = run(f"import sys; sys.modules['torch'] = None; from virtex.serial import {name}; {name}('')")
        assert ended.stderr.endswith(f"ImportError: {name} needs torch: install the extra [torch]\n")
    torchs = "import sys, torch; sys.modules['ml_dtypes'] = None; from virtex.serial import *; "
    float32 = "decode_torch(encode_torch(torch.ones(2))); print('needs none'); "
    ended = run(f"{torchs}{float32}encode_torch(torch.ones(2).bfloat16())")
    assert ended.stdout == "needs none\n"
    assert ended.stderr.endswith("encode_torch of bfloat16 needs ml_dtypes: install the extra [torch]\n")


def test_a_dtype_that_an_older_ml_dtypes_lacks_is_a_type_error(monkeypatch):
    import ml_dtypes

    monkeypatch.delattr(ml_dtypes, "complex32")
    for make in (lambda: encode_torch(torch.zeros(2, dtype=torch.complex32)), lambda: named_dtype("complex32")):
        with pytest.raises(TypeError, match="complex32 needs a newer ml_dtypes than"):
            make()
