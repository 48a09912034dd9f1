"""The head of an infer request of V2, checked: which tensors it has, where each is, and how the answer is wanted.

    {"id", "parameters", "inputs": [{"name", "shape", "datatype", "parameters", "data"}], "outputs": [...]}

Rules: values and functions of them; bodies are v2_read.py's. A parser sees this text alone: numbers stand in it as a
list of one, which says where they are (lists_in). Clients send the same head again and again, so what a short one says
is kept, for the model whose tensors it was checked against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from .._codec import row_signature
from ..errors import RequestError, quoted
from ..limits import MOST
from ..tensor import Inputs, Tensor
from . import v2
from .v2_write import Asked

NUMBERS, BYTES, VALUES = "numbers", "bytes", "values"  # where a tensor is: in a list, behind the head, in a parser's


class Place:
    """A tensor of a request. kind: one of the three above. at: which list of the head, from which byte behind the head,
    or the values. size: in bytes, of BYTES."""

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], kind: str, at: Any, size: int) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.kind = kind
        self.at = at
        self.size = size
        self.each = math.prod(shape[1:])  # numbers, or texts, of an item,
        self.count = self.each * shape[0]  # and of all
        self.signature: object = None  # of a declared tensor that came in bytes
        self.text: Tensor | None = None  # a declared tensor of text


class Call:
    """What a head says. places: of the tensors, of declared inputs in their order. behind: bytes behind the head.
    patience: ns that its client waits for the answer; 0: it did not say."""

    def __init__(self, places: list[Place], behind: int, asked: Asked, parameters: dict[str, Any]) -> None:
        self.places = places
        self.behind = behind
        self.asked = asked
        self.parameters = parameters
        self.patience = _patience(parameters)


class Served:
    """What a model is for V2: its name, its tensors, and the formats of its requests.

    inputs: by name, as declared; None for a list handler. outputs: as metadata has them; None where they are not known.
    dtype: of the array that a list handler takes. gives_values: its answers are JSON, whatever its outputs are.
    """

    def __init__(
        self, name: str, inputs: Inputs | None, outputs: Inputs | None, dtype: np.dtype[Any] | None, gives_values: bool
    ) -> None:
        self.name = name
        self.inputs = None if inputs is None else v2.named(inputs, v2.INPUT)
        declared = dict(self.inputs or {})
        self.outputs: list[dict[str, Any]] | None = [v2.TEXTS] if gives_values else None
        if outputs is not None and not gives_values:
            self.outputs = v2.described(v2.named(outputs, v2.OUTPUT))
            declared |= v2.named(outputs, v2.OUTPUT)
        self.dtype = dtype
        self.is_one = isinstance(inputs, Tensor)
        self.missing = [name for name, tensor in declared.items() if _is_missing(tensor)]
        self.signatures = {name: _signature(tensor) for name, tensor in (self.inputs or {}).items()}
        self.usual = lru_cache(256)(self.called)

    def learn(self, arrays: Mapping[str, Any]) -> None:
        """Rows of the model are there: what its outputs are, where none are declared."""
        rows = {v2.OUTPUT if name == "" else name: array for name, array in arrays.items()}
        self.outputs = [v2.described_as(name, array.dtype, array.shape[1:]) for name, array in rows.items()]

    def metadata(self) -> bytes:
        """What GET says of it."""
        if self.inputs is not None:
            inputs = v2.described(self.inputs)
        elif self.dtype is not None:
            inputs = [v2.described_as(v2.DATA, self.dtype, ())]
        else:
            inputs = [v2.TEXTS]
        said = {"name": self.name, "versions": [v2.VERSION], "platform": "virtex", "inputs": inputs}
        return orjson.dumps({**said, "outputs": self.outputs or []})

    def called(self, text: bytes, is_cut: bool = True) -> Call:
        """What a head says, checked. is_cut: lists of numbers are cut out of it. Raises RequestError (400)."""
        try:
            tree = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise RequestError(400, f"expected JSON: {error}") from None
        _check(isinstance(tree, dict) and isinstance(tree.get("inputs"), list) and tree["inputs"], _EXPECTED)
        request_id = tree.get("id")
        _check(request_id is None or isinstance(request_id, str), "expected a string in 'id'")
        parameters = _object(tree, "parameters", "the request")
        places, behind = _places(tree["inputs"], is_cut)
        binary = parameters.get("binary_data_output") is True
        asked = Asked(self, request_id, _outputs(tree.get("outputs"), binary), binary)
        return Call(self._in_order(places), behind, asked, parameters)

    def _in_order(self, places: list[Place]) -> list[Place]:
        if self.inputs is None:
            _check(len(places) == 1, f"inputs: expected one, got {len(places)}")
            return places
        by_name = {place.name: place for place in places}
        if len(by_name) != len(places) or by_name.keys() != self.inputs.keys():
            wanted, names = ", ".join(self.inputs), ", ".join([place.name for place in places])
            raise RequestError(400, f"inputs: expected the names {wanted}, got {quoted(names)}")
        found = [by_name[name] for name in self.inputs]
        for place in found:
            self._check_declared(place, self.inputs[place.name])
            if place.shape[0] != found[0].shape[0]:
                raise RequestError(
                    400,
                    f"input {place.name!r}: expected as many items as {found[0].name!r} has, {found[0].shape[0]}, got "
                    f"{place.shape[0]} (the first dimension)",
                )
        return found

    def _check_declared(self, place: Place, tensor: Tensor) -> None:
        datatype = v2.datatype_of(tensor.dtype)
        if place.datatype != datatype or place.shape[1:] != tensor.shape:
            expected = f"{datatype} [n{''.join(f', {n}' for n in tensor.shape)}]"
            raise RequestError(
                400, f"input {place.name!r}: expected {expected}, got {place.datatype} {quoted(list(place.shape))}"
            )
        if tensor.text is not None:
            place.text = tensor
        elif place.kind == BYTES:
            check_size(place, place.shape[0] * tensor.nbytes)
            place.signature = self.signatures[place.name]


def _is_missing(tensor: Tensor) -> bool:
    """Whether V2 has no datatype for it. Text of a fixed size has none: BYTES are of any."""
    return tensor.text is None and v2.datatype_of(tensor.dtype) in (None, v2.TEXT)


def _signature(tensor: Tensor) -> object:
    dtype = tensor.dtype
    return row_signature(dtype.newbyteorder("<"), tensor.shape) if dtype.kind in "biufV" else None


def check_size(place: Place, expected: int) -> None:
    if place.size != expected:
        raise RequestError(
            400,
            f"input {quoted(place.name)!r}: expected {expected} bytes for {place.datatype} "
            f"{quoted(list(place.shape))}, got {place.size}",
        )


_EXPECTED = 'expected an object {"inputs": [...]} with a tensor at least'


def _check(holds: Any, reason: str) -> None:
    if not holds:
        raise RequestError(400, reason)


def _object(tree: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found = tree.get(name)
    _check(found is None or isinstance(found, dict), f"{where}: expected an object in {name!r}")
    return found or {}


def _places(inputs: list[Any], is_cut: bool) -> tuple[list[Place], int]:
    """The tensors, and how many bytes they take behind the head."""
    places, behind = [], 0
    for i, tensor in enumerate(inputs):
        _check(isinstance(tensor, dict), f"inputs[{i}]: expected an object")
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        where = f"input {quoted(name)!r}"
        _check(isinstance(name, str), f"inputs[{i}]: expected a string in 'name'")
        _check(isinstance(datatype, str), f"{where}: expected a string in 'datatype'")
        is_shape = isinstance(shape, list) and shape and all(type(n) is int and 0 <= n < MOST for n in shape)
        _check(is_shape and len(shape) <= 32, f"{where}: expected whole numbers in 'shape', got {quoted(shape)}")
        _check(shape[0], f"{where}: expected an item at least, got shape {quoted(shape)}")
        parameters = _object(tensor, "parameters", where)
        if "shared_memory_region" in parameters:
            raise RequestError(501, f"{where}: there is no shared memory here")
        size, data = parameters.get("binary_data_size"), tensor.get("data")
        if size is not None:
            _check(type(size) is int and 0 <= size < MOST, f"{where}: binary_data_size: got {quoted(size)!r}")
            _check(data is None, f"{where}: expected 'data' or binary_data_size, got both")
            places.append(Place(name, datatype, tuple(shape), BYTES, behind, size))
            behind += size
            continue
        _check(isinstance(data, list), f"{where}: expected a list in 'data', or binary_data_size in its parameters")
        kind, at = (NUMBERS, data[0]) if is_cut else (VALUES, data)
        places.append(Place(name, datatype, tuple(shape), kind, at, 0))
    return places, behind


def _outputs(outputs: Any, binary: bool) -> dict[str, bool] | None:
    """Which are wanted, and whether each in bytes."""
    if not outputs:
        _check(outputs is None or outputs == [], "expected a list in 'outputs'")
        return None
    _check(isinstance(outputs, list), "expected a list in 'outputs'")
    wanted = {}
    for i, output in enumerate(outputs):
        _check(isinstance(output, dict) and isinstance(output.get("name"), str), f"outputs[{i}]: expected a 'name'")
        parameters = _object(output, "parameters", f"outputs[{i}]")
        for name in ("classification", "shared_memory_region"):
            if parameters.get(name):
                raise RequestError(501, f"output {quoted(output['name'])!r}: there is no {name} here")
        wanted[output["name"]] = parameters.get("binary_data", binary) is True
    return wanted


def _patience(parameters: Mapping[str, Any]) -> int:
    """Triton's timeout, which is in microseconds, in ns."""
    timeout = parameters.get("timeout", 0)
    _check(type(timeout) is int and 0 <= timeout < 1 << 50, f"timeout: expected microseconds, got {quoted(timeout)!r}")
    return int(timeout) * 1000
