"""What encode_torch carries and refuses; docs/serial.md has the names."""

from __future__ import annotations

from typing import Any

import torch

NUMBERS = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    *(torch.complex32, torch.complex64, torch.complex128, torch.float4_e2m1fn_x2),
]
DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor whose bytes are all different, as far as they go; of bools 0 and 1."""
    size = dtype.itemsize
    count = torch.Size(shape).numel() * size
    data = (torch.arange(count) * 7 % 251).to(torch.uint8)
    if dtype is torch.bool:
        data %= 2
    return data.clone().view(dtype).reshape(shape)


def cases() -> list[tuple[str, object]]:
    matrix = torch.arange(12.0).reshape(3, 4)
    layouts = {
        "without dimensions": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "transposed": matrix.T,
        "every second column": matrix[:, ::2],
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1, 4).expand(3, 4),
        "conjugated view": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negated view": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "NaN, infinity and -0.0": torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]),
        "requires_grad": torch.ones(2, requires_grad=True),
        "result of an operation": torch.ones(2, requires_grad=True) * 2,
        "torch.nn.Parameter": torch.nn.Parameter(torch.ones(2)),
    }
    return [*((name_of(dtype), sample(dtype, 2, 3)) for dtype in NUMBERS), *layouts.items()]


def same(a: Any, b: Any) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    return a.dtype is b.dtype and a.shape == b.shape and bits(a) == bits(b)


def bits(tensor: torch.Tensor) -> list[int]:
    whole = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return whole.reshape(-1).view(torch.uint8).tolist()


class Tagged(torch.Tensor):
    pass


def refused() -> list[tuple[str, object, str]]:
    ones = torch.ones(2, 2)
    opaque = sorted(map(name_of, DTYPES - set(NUMBERS)))
    bare = [name for name in opaque if not name.startswith("q")]
    return [
        *((name, torch.empty(2, dtype=getattr(torch, name)), "view(torch.uint8)") for name in bare),
        ("quint8, quantized", torch.quantize_per_tensor(ones, 0.1, 0, torch.quint8), "dequantize()"),
        ("qint8, quantized", torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8), "dequantize()"),
        ("qint32, quantized", torch.quantize_per_tensor(ones, 0.1, 0, torch.qint32), "dequantize()"),
        ("sparse_coo", ones.to_sparse(), "to_dense()"),
        ("sparse_csr", ones.to_sparse_csr(), "to_dense()"),
        ("mkldnn", ones.to_mkldnn(), "to_dense()"),
        ("nested", torch.nested.nested_tensor([ones, ones[:1]]), "unbind()"),
        ("nested, jagged", torch.nested.nested_tensor([ones, ones[:1]], layout=torch.jagged), "NestedTensor"),
        ("on the device meta", ones.to("meta"), "meta"),
        ("another subclass", ones.as_subclass(Tagged), "Tagged"),
        ("a parameter without data", torch.nn.UninitializedParameter(), "UninitializedParameter"),
        ("float4_e2m1fn_x2 without dimensions", sample(torch.float4_e2m1fn_x2, 1).reshape(()), "reshape(1)"),
        ("33 dimensions", torch.ones([1] * 33), "32 dimensions"),
        ("a NumPy array", ones.numpy(), "expected a torch.Tensor, got ndarray"),
        ("a list", [1.0], "expected a torch.Tensor, got list"),
    ]
