"""What a model gave, as rows that can be answered.

Rules: knows arrays and lists, neither the handler nor the ring. Rows are views of what the model gave until they are
copied or encoded: both happen before it may write there again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from typing import Any

import numpy as np
import orjson
from numpy import ndarray

from .._codec import encode_npy, encode_numbers, encode_numpy, encode_rows, number_texts
from ..errors import HandlerError, ItemError
from ..message import encode_data
from ..serial._foreign import array_of_torch
from ..serial._json import as_numbers, check_text
from ..tensor import Array, Inputs, Tensor
from .texts import json_of_text, rows_of_text


def on_host(outputs: Any) -> Any:
    """Tensors of torch as arrays in host memory, detached; a dict of them by name; anything else as it is."""
    if type(outputs) is ndarray:
        return outputs
    if isinstance(outputs, Mapping):
        return {name: on_host(value) for name, value in outputs.items()}
    torch = sys.modules.get("torch")
    return array_of_torch(outputs) if torch is not None and isinstance(outputs, torch.Tensor) else outputs


def rows_of(outputs: Any, count: int) -> list[Any]:
    """The rows of what run_inference gave, exactly `count`; an iterator is read to count + 1 at most.

    Arrays, tensors, images, frames and lists that an iterator gives are copied as they come: it may fill the same one
    again. An NDArray of MXNet, which has no __iter__, is indexed.
    Raises HandlerError naming both numbers, or the type that does not iterate along a zeroth dimension.
    """
    if type(outputs) is list and len(outputs) == count:
        return outputs[:]
    kind = type(outputs).__name__
    check_no_tuple(outputs, "run_inference returned ")
    if isinstance(outputs, (Mapping, str, bytes, bytearray, memoryview, Set)) or not _has_rows(outputs):
        raise HandlerError(f"run_inference returned a {kind}; expected {count} rows along the zeroth dimension")
    if getattr(outputs, "shape", None) == ():
        raise HandlerError(f"run_inference returned a {kind} of no dimensions; expected {count} rows")
    if isinstance(outputs, ndarray) and outputs.dtype.kind == "U":
        try:
            check_text(outputs)
        except TypeError as error:
            raise _does_not_travel(error) from None
    has_length = hasattr(outputs, "__len__")
    found = len(outputs) if has_length else count
    if found == count:
        if hasattr(outputs, "iloc"):
            rows = [outputs.iloc[i] for i in range(count)]
        elif not hasattr(outputs, "__iter__"):
            rows = [outputs[i] for i in range(count)]
        else:
            drawn = islice(outputs, count + 1)
            rows = list(drawn if has_length else map(_owned_row, drawn))
        found = len(rows)  # of what has a length too: it may iterate over something else
        if found > count:
            raise HandlerError(f"run_inference gave more than {count} rows for {count} items; expected one per item")
    if found != count:
        raise HandlerError(f"run_inference returned {found} rows for {count} items; expected one per item")
    return rows


def has_errors(outputs: list[Any]) -> bool:
    """Whether any row is an exception."""
    for row in outputs:  # noqa: SIM110 (all() would take a generator)
        if isinstance(row, BaseException):
            return True
    return False


def as_error(row: BaseException) -> ItemError | HandlerError:
    """What an exception in place of a row means for its request, without an index."""
    if isinstance(row, (ItemError, HandlerError)):
        return row.at(None)
    error = HandlerError(f"run_inference gave a {type(row).__name__} in place of a row")
    error.__cause__ = row
    return error


def answers_of(outputs: list[Any], counts: list[int], declared: Inputs | None) -> list[Any]:
    """One outcome per request of rows of which some are exceptions: its rows, or the error of its lowest such item.

    Raises HandlerError as as_rows().
    """
    if len(outputs) != sum(counts):
        raise HandlerError(f"run_inference returned {len(outputs)} rows for {sum(counts)} items; expected one per item")
    good = [row for row in outputs if not isinstance(row, BaseException)]
    rows = as_rows(good, len(good), declared).copy() if good else None
    outcomes: list[Any] = []
    start = before = 0  # of all rows, and of the good ones
    for count in counts:
        part = outputs[start : start + count]
        wrong = [i for i, row in enumerate(part) if isinstance(row, BaseException)]
        if wrong or rows is None:
            outcomes.append(as_error(part[wrong[0]]).at(wrong[0]))
        else:
            outcomes.append(rows.part(before, before + count))
        start += count
        before += count - len(wrong)
    return outcomes


def _has_rows(outputs: Any) -> bool:
    return hasattr(outputs, "__iter__") or (hasattr(outputs, "asnumpy") and hasattr(outputs, "__len__"))


def _owned_row(row: Any) -> Any:
    if (
        type(row) in _LISTS
        or hasattr(row, "__array__")
        or hasattr(row, "__array_interface__")
        or hasattr(row, "asnumpy")
    ):
        copy = getattr(row, "copy", None) or getattr(row, "clone", None)  # which torch calls so
        return row if copy is None else copy()
    return row


_LISTS = (list, dict, bytearray)


class Rows:
    """Answers to consecutive items: the rows [start, stop) of an array, or of one per name.

    values: of the whole arrays, by name, which the parts of a batch share; each is made when it is first needed.
    """

    def __init__(self, arrays: dict[str, Array], start: int, stop: int, values: dict[str, list[Any] | None]) -> None:
        self._arrays = arrays
        self._start = start
        self._stop = stop
        self._values = values

    def __len__(self) -> int:
        return self._stop - self._start

    def arrays(self, nameless: str = "") -> dict[str, Array]:
        """Views of the rows, by name. nameless: that of the array that has none."""
        views = {}
        for name in self._arrays:
            views[name or nameless] = self._view(name)
        return views

    def part(self, start: int, stop: int) -> Rows:
        """The rows [start, stop) of these, in the same memory."""
        return Rows(self._arrays, self._start + start, self._start + stop, self._values)

    def unshared(self) -> Rows:
        """All rows of the arrays, those in memory of their own that are views, or that somebody else refers to."""
        arrays = self._arrays
        alone = {name for name in arrays if arrays[name].base is None and is_alone(arrays, name)}
        return rows_by_name({name: array if name in alone else array.copy() for name, array in arrays.items()})

    def copy(self) -> Rows:
        """The same rows in memory of their own."""
        return rows_by_name({name: array.copy() for name, array in self.arrays().items()})

    def joined(self, parts: Sequence[Rows]) -> Rows:
        """The rows of the parts, one after another. Raises HandlerError for rows of other names or shapes."""
        views = [part.arrays() for part in parts]
        shapes = [{name: array.shape[1:] for name, array in arrays.items()} for arrays in views]
        for other in shapes:
            if other != shapes[0]:
                raise HandlerError(f"run_inference returned rows of {shapes[0]}, then of {other}, for one request")
        return rows_by_name({name: np.concatenate([arrays[name] for arrays in views]) for name in shapes[0]})

    def json(self, in_numbers: bool = False) -> bytes:
        """The body of the reply: arrays are base64, or lists of numbers, but for dtypes of which JSON has none.

        Raises HandlerError, naming the item, for a number that is not finite.
        """
        try:
            return self._json(in_numbers)
        except TypeError as error:
            raise _does_not_travel(error) from None

    def npy(self) -> bytes | None:
        """The rows as one .npy document; None for names and text. Raises HandlerError for what does not travel."""
        if "" not in self._arrays or self._arrays[""].dtype.hasobject:
            return None
        try:
            return encode_npy(self._view(""))
        except TypeError as error:
            raise _does_not_travel(error) from None

    def _view(self, name: str) -> Array:
        array = self._arrays[name]
        return array if self._stop - self._start == len(array) else array[self._start : self._stop]

    def _json(self, in_numbers: bool) -> bytes:
        if "" not in self._arrays:
            columns = {name: self._column(name, in_numbers) for name in self._arrays}
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        elif self._arrays[""].ndim > 1 and not self._arrays[""].dtype.hasobject:
            return self._numbers() if in_numbers else encode_rows(self._view(""))
        else:
            rows = self._column("", in_numbers)
        return b'{"data":%b,"error":null}' % encode_data(rows, "run_inference")

    def _column(self, name: str, in_numbers: bool) -> list[Any]:
        """JSON values: of rows of no dimension numbers, booleans and text; of others base64 of .npy, or numbers."""
        values = self._values_of(name)
        if values is not None:
            return values[self._start : self._stop]
        view = self._view(name)
        try:
            texts = number_texts(view) if in_numbers else None
        except ValueError:
            return list(view)  # a number is not finite: encode_data() says of which item
        if texts is not None:
            return list(map(orjson.Fragment, texts))
        numbers = as_numbers(view) if in_numbers else None
        return [encode_numpy(row) for row in view] if numbers is None else list(numbers)

    def _numbers(self) -> bytes:
        """The body of rows of one dimension or more, in numbers where the dtype has such."""
        try:
            body = encode_numbers(self._arrays[""], self._start, self._stop)
        except ValueError:  # a number is not finite: encode_data() says of which item
            return encode_data(list(self._view("")), "run_inference")
        if body is not None:
            return body
        numbers = as_numbers(self._view(""))
        if numbers is None:
            return encode_rows(self._view(""))
        return b'{"data":%b,"error":null}' % encode_data(list(numbers), "run_inference")

    def _values_of(self, name: str) -> list[Any] | None:
        """The values of the whole array: of a batch of single items, all are wanted, and made in one go."""
        if name not in self._values:
            array = self._arrays[name]
            if array.dtype.hasobject:
                self._values[name] = json_of_text(array)
                return self._values[name]
            is_plain = array.ndim == 1 and array.dtype.kind in "biufU"
            if is_plain and array.dtype.kind == "U":
                check_text(array)
            self._values[name] = array.tolist() if is_plain else None
        return self._values[name]


def rows_by_name(arrays: dict[str, Array]) -> Rows:
    """All rows of the arrays, which are equally many."""
    for array in arrays.values():
        return Rows(arrays, 0, len(array), {})
    raise ValueError("expected one array at least")


def as_rows(outputs: Any, count: int, declared: Inputs | None) -> Rows:
    """What run_inference gave, as exactly `count` rows of the declared dtype and shape.

    Raises HandlerError that says what was expected and what came.
    """
    outputs = on_host(outputs)
    named = {"": outputs} if type(outputs) is ndarray or not isinstance(outputs, Mapping) else outputs
    expected = {} if declared is None else {"": declared} if isinstance(declared, Tensor) else declared
    arrays = {name: _array_out(value, count, name, expected.get(name)) for name, value in named.items()}
    if declared is not None and not _is_as_declared(arrays, expected):
        came = {name: f"{array.dtype} {array.shape[1:]}" for name, array in arrays.items()}
        raise HandlerError(f"run_inference returned rows of {came}; declared are {dict(expected)}")
    if not arrays:
        raise HandlerError(f"run_inference returned an empty dict; expected {count} rows by name")
    return Rows(arrays, 0, count, {})


def _is_as_declared(arrays: Mapping[str, Array], declared: Mapping[str, Tensor]) -> bool:
    if arrays.keys() != declared.keys():
        return False
    for name, array in arrays.items():
        tensor = declared[name]
        if array.dtype != tensor.dtype or array.shape[1:] != tensor.shape:
            return False
    return True


def is_alone(arrays: Any, key: Any) -> bool:
    """Whether a dict or list holds the only reference to its array: NumPy's views, and what they make, refer to it."""
    return _references(arrays, key) <= _ALONE


def _references(arrays: Any, key: Any) -> int:
    return sys.getrefcount(arrays[key])


_ALONE = _references([np.empty(1)], 0)


def _does_not_travel(error: TypeError) -> HandlerError:
    return HandlerError(f"run_inference gave rows that can't be sent: {error}")


def check_no_tuple(outputs: Any, where: str) -> None:
    """Raise HandlerError for a tuple, torch's and named ones too: with as many items as members it would pass for rows.

    where: how the sentence begins.
    """
    if isinstance(outputs, tuple):
        kind = type(outputs)
        name = kind.__name__ if kind is tuple else f"{kind.__module__}.{kind.__qualname__}"
        remedy = f"if its {len(outputs)} members are the rows, return list(...)"
        raise HandlerError(f"{where}a {name}, which may be several results: {remedy}")


def _array_out(value: Any, count: int, name: str, declared: Tensor | None) -> Array:
    is_text = declared is not None and declared.text is not None
    if type(value) is ndarray and value.ndim and len(value) == count and not (is_text or value.dtype.hasobject):
        return value
    where = f"run_inference returned {name and repr(name) + ' as '}"
    check_no_tuple(value, where)
    if declared is not None and is_text:
        return rows_of_text(value, count, declared, where)
    if not hasattr(value, "__array__") and not isinstance(value, list):
        raise HandlerError(f"{where}a {type(value).__name__}; expected an array of {count} rows")
    if isinstance(value, np.ma.MaskedArray):
        raise HandlerError(f"{where}a masked array, whose mask would be lost; expected it filled, as by filled(0)")
    try:
        array = np.asarray(value)
    except ValueError:
        raise HandlerError(f"{where}rows of different shapes; override process_response to answer such") from None
    if array.dtype.hasobject or not array.ndim:
        raise HandlerError(f"{where}{array.dtype} {array.shape}; expected an array of {count} rows")
    if len(array) != count:
        raise HandlerError(f"{where}{len(array)} rows for {count} items; expected one per item")
    return array
