"""Values of torch, TensorFlow and pandas as arrays of NumPy, or as lists and dicts, for who writes JSON.

Rules: imports none of these libraries: a value of one can only be there if somebody else has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """An array for a tensor, an array, list or dict for what pandas has; any other value as it is.

    A Series whose labels are all text, as a row of a DataFrame is, becomes a dict by them, else a list. A DataFrame
    becomes a list of its rows. What is missing in a dtype of pandas' own is None.

    Raises TypeError, with the remedy, for a tensor without a dense array of numbers.
    """
    library = type(value).__module__.partition(".")[0]
    if library == "torch":
        return _of_torch(value)
    if library == "pandas":
        return _of_pandas(value)
    return _of_tensorflow(value) if library == "tensorflow" else value


def array_of_torch(tensor: Any) -> Any:
    """A dense tensor as an array in host memory, detached; of bfloat16 as ml_dtypes has it."""
    torch = sys.modules["torch"]
    host = tensor.detach().resolve_conj().resolve_neg().cpu()
    if host.dtype is torch.bfloat16:  # NumPy has none of its own
        import ml_dtypes

        return host.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return host.numpy()


def _of_torch(value: Any) -> Any:
    torch = sys.modules["torch"]
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided or value.is_nested:
        remedy = "unbind()" if value.is_nested else "to_dense()"
        raise TypeError(f"a tensor that is not dense has no JSON form: call tensor.{remedy}")
    if value.is_quantized:
        raise TypeError("a quantized tensor has no JSON form: call tensor.dequantize()")
    if value.is_meta:
        raise TypeError("a tensor on the device meta has no data to send")
    try:
        return array_of_torch(value)
    except TypeError:  # float8, say
        raise TypeError(f"a tensor of {value.dtype} has no JSON form: call tensor.float()") from None


def _of_tensorflow(value: Any) -> Any:
    tensorflow = sys.modules["tensorflow"]
    if not isinstance(value, (tensorflow.Tensor, tensorflow.Variable)) or not hasattr(value, "numpy"):
        return value
    array = value.numpy()
    if value.dtype == tensorflow.string:
        raise TypeError("a tensor of bytes has no JSON form: decode it, as in [text.decode() for text in t.numpy()]")
    return array


def _of_pandas(value: Any) -> Any:
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        return [value.iloc[i] for i in range(len(value))]
    if isinstance(value, pandas.Series):
        values = _values(value)
        labels = list(value.index)
        if not labels or not all(isinstance(label, str) for label in labels):
            return values
        if len(set(labels)) < len(labels):
            raise TypeError("a Series in which a label stands twice is no JSON object: call series.tolist()")
        return dict(zip(labels, values if isinstance(values, list) else list(values), strict=True))
    if isinstance(value, pandas.Index):
        return _values(value)
    if isinstance(value, (pandas.Timestamp, pandas.Timedelta)):
        return _moment(value)
    return None if value is pandas.NA or value is pandas.NaT else value


def _values(values: Any) -> Any:
    """A column: an array of numbers or times, a list of anything else."""
    if isinstance(values.dtype, np.dtype) and values.dtype != object:
        return values.to_numpy()
    if values.dtype == object:
        return values.tolist()
    return [None if gone else one for one, gone in zip(values, values.isna(), strict=True)]


def _moment(value: Any) -> Any:
    """A time without a zone as NumPy has it, one with a zone as Python has it."""
    if getattr(value, "tzinfo", None) is None:
        return value.to_numpy()
    return value.floor("us").to_pydatetime()


_REMEDIES = {
    "bytes": "call encode_bytes(value), or answer with Content(value, type)",
    "bytearray": "call encode_bytes(value), or answer with Content(value, type)",
    "memoryview": "call encode_bytes(value), or answer with Content(value, type)",
    "Content": "it is the answer of a request of one item, or of none",
    "set": "call sorted(value) or list(value)",
    "frozenset": "call sorted(value) or list(value)",
    "complex": "send [value.real, value.imag]",
    "Decimal": "call float(value) or str(value)",
    "Fraction": "call float(value) or str(value)",
    "generator": "call list(value)",
    "map": "call list(value)",
    "range": "call list(value)",
}
_CALLS = ("tolist", "asnumpy", "numpy", "get", "to_dict")  # by which objects of others become what JSON has


def remedy(value: Any) -> str:
    """What to call on a value that JSON has no word for, as the end of a sentence; "" where nothing is known."""
    kind = type(value)
    if kind.__name__ in _REMEDIES:
        return f": {_REMEDIES[kind.__name__]}"
    if hasattr(value, "__fspath__"):
        return ": call str(value)"
    if kind.__module__.startswith("PIL."):
        return ': call encode_pil(value), or answer with Content(file, "image/png")'
    call = next((name for name in _CALLS if callable(getattr(value, name, None))), None)
    return "" if call is None else f": call its {call}()"
