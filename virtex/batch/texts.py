"""Declared text: inputs and outputs of str or bytes of any length, in arrays of objects.

Rules: as of outputs.py: values and arrays; neither the handler nor the ring. In a message a str is a string, and bytes
are the base64 of them. A value is put into its row one by one: NumPy would make one array of several, and cut off
what it takes for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._codec import Items, decode_bytes, encode_bytes, encode_numpy, items_of
from ..errors import HandlerError, ItemError, quoted
from ..serial._npy import place_of
from ..tensor import Array, Inputs, Source, Tensor

Place = tuple[int, ...]


def has_text(tensors: Inputs | None) -> bool:
    """Whether any of these is text."""
    several = [tensors] if isinstance(tensors, Tensor) else [] if tensors is None else tensors.values()
    return any(tensor.text is not None for tensor in several)


def source_of(values: list[Any], inputs: Inputs) -> Source:
    """The items of a list that a JSON parser made, or a program, for these inputs."""
    if has_text(inputs):
        return Texts(values, inputs)
    return items_of(values, None if isinstance(inputs, Tensor) else tuple(inputs))


def example_of(tensor: Tensor) -> Any:
    """An item of zeros, or of empty texts, as a message has it."""
    return encode_numpy(tensor.zeros()) if tensor.text is None else json_of_text(tensor.zeros())


class Texts:
    """Items of inputs of which some are text. has_numbers: whether no array came in another form."""

    def __init__(self, values: list[Any], inputs: Inputs) -> None:
        self._values = values
        self._inputs = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        self._columns: dict[str, Items] = {}  # of inputs that are no text
        for name, tensor in self._inputs.items():
            if tensor.text is None:
                found = [value.get(name) if type(value) is dict else None for value in values]
                self._columns[name] = items_of(found)
        columns = self._columns.values()
        self.has_numbers = not columns or any(items.has_numbers for items in columns)

    def __len__(self) -> int:
        return len(self._values)

    def into(self, rows: Any, start: int = 0, stop: int | None = None) -> None:
        """Put items [start, stop) into rows[0], rows[1], and so on; with names, rows are an array for each.

        Raises ItemError with the index of the lowest item that is wrong.
        """
        stop = len(self._values) if stop is None else stop
        if "" in self._inputs:
            _fill(rows, self._values[start:stop], self._inputs[""], start)
            return
        lowest = self._wrong_object(start, stop)
        for (name, tensor), column in zip(self._inputs.items(), rows, strict=True):
            end = stop if lowest is None or lowest.index is None else lowest.index
            try:
                if tensor.text is None:
                    self._columns[name].into(column[: end - start], start, end)
                else:
                    _fill(column, [value[name] for value in self._values[start:end]], tensor, start)
            except ItemError as error:
                error.reason = f"{name}: {error.reason}"
                lowest = error
        if lowest is not None:
            raise lowest

    def _wrong_object(self, start: int, stop: int) -> ItemError | None:
        """The error of the first item that has not exactly these members."""
        for i in range(start, stop):
            value = self._values[i]
            if type(value) is not dict or value.keys() != self._inputs.keys():
                got = quoted(list(value)[:20]) if type(value) is dict else type(value).__name__
                return ItemError(f"expected an object of the members {list(self._inputs)}, got {got}", i)
        return None


def _fill(rows: Array, values: list[Any], tensor: Tensor, start: int) -> None:
    """start: the index of the first of the values in its request."""
    for i, value in enumerate(values):
        try:
            _put(rows[i : i + 1].reshape(-1), value, tensor, _sent[tensor.text])
        except ItemError as error:
            error.index = start + i
            raise


def _put(row: Array, value: Any, tensor: Tensor, read: Callable[[Any], Any]) -> None:
    """Put the texts of one item into its row, which is flat."""
    if not tensor.shape:
        row[0] = read(value)
        return
    for at, (place, text) in enumerate(_leaves(value, tensor, ())):
        try:
            row[at] = read(text)
        except ItemError as error:
            error.reason += place_of(list(place))
            raise


def _leaves(value: Any, tensor: Tensor, place: Place) -> Iterator[tuple[Place, Any]]:
    if len(place) == len(tensor.shape):
        yield place, value
        return
    if isinstance(value, np.ndarray):
        value = value.tolist()
    length = tensor.shape[len(place)]
    if not isinstance(value, list) or len(value) != length:
        got = f"a list of {len(value)}" if isinstance(value, list) else quoted(type(value).__name__)
        raise ItemError(f"expected {tensor}, got {got} in place of a list of {length}{place_of(list(place))}")
    for i, one in enumerate(value):
        yield from _leaves(one, tensor, (*place, i))


def _read_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ItemError(f"expected a string, got {type(value).__name__}")


def _read_bytes(value: Any) -> bytes:
    """Of base64, as messages have it; bytes are a program's."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return decode_bytes(value)
    raise ItemError(f"expected base64 of bytes, got {type(value).__name__}")


_sent: dict[Any, Callable[[Any], Any]] = {str: _read_str, bytes: _read_bytes}


# ---- outputs


def rows_of_text(value: Any, count: int, tensor: Tensor, where: str) -> Array:
    """What run_inference gave as rows of declared text: an array of objects or of NumPy's own text, or lists.

    Raises HandlerError for another type or shape.
    """
    if not isinstance(value, (list, np.ndarray)) or len(value) != count:
        got = f"{len(value)} rows" if isinstance(value, (list, np.ndarray)) else f"a {type(value).__name__}"
        raise HandlerError(f"{where}{got}; expected {count} rows of {tensor}")
    rows = np.empty((count, *tensor.shape), object)
    kept = _kept(tensor)
    for i in range(count):
        one = value[i]
        try:
            _put(rows[i : i + 1].reshape(-1), one, tensor, kept)
        except ItemError as error:
            raise HandlerError(f"{where}rows of declared {tensor}: {error.reason}", i) from None
    return rows


def _kept(tensor: Tensor) -> Callable[[Any], Any]:
    kind: Any = tensor.text

    def kept(value: Any) -> Any:
        if isinstance(value, kind):
            return kind(value)
        raise ItemError(f"expected {kind.__name__}, got {type(value).__name__}")

    return kept


def json_of_text(rows: Array) -> Any:
    """The values of rows of text, as JSON has them."""
    if not rows.size or type(rows.flat[0]) is str:
        return rows.tolist()
    texts = np.empty(rows.shape, object)
    for i, value in enumerate(rows.flat):
        texts.flat[i] = encode_bytes(value)
    return texts.tolist()
