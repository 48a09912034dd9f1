"""What predict() sends and gives back: arrays to a body, and the arrays that came as numbers, text or .npy.

Rules: values; no connection. A body is binary where the service says that it takes it, else base64 in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from .._codec import decode_npy, decode_numpy, encode_npy, encode_numpy
from ..errors import ClientError
from ..message import HttpMessage
from .outcomes import Outcome, Unreadable, failed, message_of
from .retries import Post

NPY, JSON = "application/x-npy", "application/json"


class Asked:
    """The items of a prediction.

    arrays: an array whose rows they are, or a list of arrays; for named inputs a dict of such. Raises TypeError for
    what is neither, ValueError for inputs of different lengths.
    """

    def __init__(self, arrays: Any) -> None:
        self.columns = {name: _rows(rows) for name, rows in arrays.items()} if isinstance(arrays, Mapping) else None
        self.rows: Any = [] if self.columns is not None else _rows(arrays)
        columns = [self.rows] if self.columns is None else list(self.columns.values())
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"arrays: expected inputs of one length, got {sorted(lengths)} items")
        self.count = lengths.pop()
        self.is_stacked = all(isinstance(column, np.ndarray) for column in columns)

    def json(self) -> bytes:
        """The message with each array as base64. Raises TypeError for a dtype that does not travel."""
        if self.columns is None:
            return orjson.dumps({"data": [encode_numpy(row) for row in self.rows]})
        texts = {name: [encode_numpy(row) for row in rows] for name, rows in self.columns.items()}
        return orjson.dumps(
            {"data": [dict(zip(texts, item, strict=True)) for item in zip(*texts.values(), strict=True)]}
        )

    def npy(self, service: dict[str, Any]) -> bytes | None:
        """The items as .npy, where the service takes it and they can be told apart in it.

        service: what its GET / said. A declared input takes one document for all; any service one for each item, which
        needs a dimension.
        """
        if self.columns is not None or not self.count or NPY not in _listed(service, "accepts"):
            return None
        inputs = service.get("inputs")
        if self.is_stacked and isinstance(inputs, dict) and inputs.get("shape") == list(self.rows.shape[1:]):
            return encode_npy(self.rows)
        if any(np.ndim(row) == 0 or not len(row) for row in self.rows):
            return None
        return b"".join(encode_npy(row) for row in self.rows)


def _listed(service: dict[str, Any], key: str) -> list[Any]:
    value = service.get(key)
    return value if isinstance(value, list) else []


def accept(service: dict[str, Any]) -> str:
    """The kinds of answers to ask for."""
    return f"{NPY}, {JSON};q=0.5" if NPY in _listed(service, "answers") else JSON


def described(outcome: Outcome) -> dict[str, Any] | None:
    """What a service says of itself; None where it is no service's word."""
    try:
        told = orjson.loads(outcome.content()) if outcome.status == 200 else None
    except (Unreadable, orjson.JSONDecodeError):
        return None
    return told if isinstance(told, dict) and "accepts" in told else None


def _rows(rows: Any) -> Any:
    if isinstance(rows, (list, tuple)):
        return [np.asarray(row) for row in rows]
    if isinstance(rows, (str, bytes, HttpMessage)) or not hasattr(rows, "__array__"):
        raise TypeError(f"arrays: expected an array, a list or a dict of them, got {type(rows).__name__}")
    array = np.asarray(rows)
    if not array.ndim:
        raise TypeError("arrays: expected an array whose rows are the items, got one without dimensions")
    return array


def answer_of(asked: Asked, post: Post, outcome: Outcome) -> Any:
    """The arrays of an answer: as many rows as items, stacked if those were, a dict where outputs have names.

    Raises ClientError for another answer.
    """
    try:
        values = _values(post, outcome)
        if len(values) != asked.count:
            raise ValueError(f"expected {asked.count} rows, one for each item, got {len(values)}")
        return _gathered(values, asked.is_stacked)
    except (Unreadable, ValueError, TypeError) as error:
        raise ClientError(outcome.status, failed(f"{post.name}: {error}"), outcome.request_id) from error


def _values(post: Post, outcome: Outcome) -> Any:
    """The rows as one array, or JSON values."""
    kind = outcome.header("content-type").partition(";")[0].strip().lower()
    if outcome.status != 200 or kind != NPY:
        status, message = message_of(post.name, post.timeout, outcome)
        if message.error is not None:
            raise ClientError(status, message, outcome.request_id)
        return message.data
    documents = decode_npy(outcome.content())
    if len(documents) != 1 or not documents[0].ndim:
        raise ValueError(f"expected one .npy document of rows, got {len(documents)}")
    return documents[0]


def _gathered(values: Any, stacked: bool) -> Any:
    if isinstance(values, np.ndarray):
        return values if stacked else list(values)
    if values and all(isinstance(value, dict) for value in values):
        names = values[0].keys()
        if any(value.keys() != names for value in values):
            raise ValueError("expected the same outputs of each item")
        return {name: _gathered([value[name] for value in values], stacked) for name in names}
    if stacked and not any(isinstance(value, str) for value in values):
        return _numbers(values, "data")
    arrays = [_array(value, i) for i, value in enumerate(values)]
    if not stacked:
        return arrays
    if len({(array.dtype, array.shape) for array in arrays}) > 1:
        shapes = ", ".join(sorted({f"{array.dtype} {array.shape}" for array in arrays}))
        raise ValueError(f"expected rows of one dtype and shape, got {shapes}: give a list to get a list")
    return np.stack(arrays)


def _array(value: Any, i: int) -> Any:
    return decode_numpy(value) if isinstance(value, str) else _numbers(value, f"row {i}")


def _numbers(value: Any, where: str) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: expected numbers or the base64 of .npy, got {str(value)[:100]}")
    return array
