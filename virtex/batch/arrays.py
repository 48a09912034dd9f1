"""Handlers whose process_request takes `data: np.ndarray`: the numbers of a batch as one array, of any shape.

Rules: as of steps.py and ring.py. A request is read by itself, into an array whose shape its first item says. Nobody's
shape, dtype or failure depends on who else is in a batch: one has items of a single shape.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, get_args, get_origin

import numpy as np

from .._codec import Items, decode_numpy, items_of
from ..errors import ItemError, quoted
from ..serial._npy import MAX_DIMS, number_dtype, place_of
from ..tensor import Array
from .ring import Batch, Ring, Ticket
from .steps import Methods, Steps

MOST = (1 << 64) - 1  # the largest integer that is read from JSON

# ---- what a handler says


def array_dtype(handler: Methods) -> np.dtype[Any] | None:
    """The dtype of the array that process_request takes; None where its annotation is none of an array.

    np.ndarray means float64, npt.NDArray[np.float32] says which. A union, as `list | np.ndarray`, takes lists. Raises
    TypeError for an array of a dtype that JSON numbers can't fill, and for the name of one that can't be resolved.
    """
    function = inspect.unwrap(getattr(handler.process_request, "__func__", handler.process_request))
    where = f"{type(handler).__name__}.process_request"
    annotation = _resolved(_first_annotation(function), function, where)
    if annotation is np.ndarray:
        return np.dtype("f8")
    if get_origin(annotation) is not np.ndarray:
        return None
    inner = get_args(get_args(annotation)[-1])
    return _checked(inner[0] if inner else Any, where)


def _first_annotation(function: Callable[..., Any]) -> Any:
    """Of the parameter that takes the items, whatever its name is."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of a builtin that has none
        return None
    annotations = getattr(function, "__annotations__", {})
    return next((annotations.get(name) for name in names if name != "self"), None)


def _resolved(annotation: Any, function: Any, where: str) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)
    except Exception as error:
        if "ndarray" in annotation or "NDArray" in annotation:
            raise TypeError(
                f"{where}: its annotation {annotation!r} means an array, but can't be resolved: {error!r}; import what "
                "it names at the top of the module, not for type checkers only"
            ) from None
        return None  # it is not ours


def _checked(scalar: Any, where: str) -> np.dtype[Any]:
    """The dtype of such numbers; float64 where that is one of them, as for np.floating or Any."""
    scalar = get_origin(scalar) or scalar
    if scalar is Any or (isinstance(scalar, type) and scalar is not object and issubclass(np.float64, scalar)):
        return np.dtype("f8")
    if isinstance(scalar, type) and issubclass(scalar, np.generic) and not inspect.isabstract(scalar):
        is_concrete = scalar not in (np.integer, np.signedinteger, np.unsignedinteger, np.complexfloating)
        dtype = np.dtype(scalar) if is_concrete and not issubclass(scalar, (np.flexible, np.object_)) else None
        if dtype is not None and number_dtype(dtype) is not None:
            return dtype
    raise TypeError(f"{where}: expected np.ndarray, or an NDArray of one dtype of numbers, got an NDArray of {scalar}")


# ---- the items of a request


Admit = Callable[[int, int], Any]  # is told how many items there are, and what their array takes, before it is made


def stacked(values: list[Any], dtype: np.dtype[Any], admit: Admit, most: int) -> Array:
    """Items as one array (n, *shape) of the dtype: JSON values, arrays, or the base64 of them.

    most: numbers that there can be. Raises ItemError for items of several shapes, what is no number, and what the dtype
    can't hold: an integer not exactly, a float not at all. Decimals are rounded. An array of another dtype is cast
    where NumPy's "same_kind" does it.
    """
    admit(len(values), 0)  # before any is decoded
    taken: list[Any] = []
    try:
        for value in values:
            taken.append(_array_of(value, dtype, admit))
    except ItemError as error:
        if taken:
            rows_of_any(items_of(taken), _shape_of(taken[0]), dtype, admit, most)  # one before it may be wrong too
        error.index = len(taken)
        raise
    return rows_of_any(items_of(taken), _shape_of(taken[0]), dtype, admit, most)


def rows_of_any(items: Items, shape: tuple[int, ...], dtype: np.dtype[Any], admit: Admit, most: int) -> Array:
    """The same for items of which the first has that shape, as far as its first lists tell."""
    count, size = len(items), math.prod(max(length, 1) for length in shape)  # a list of nothing takes its brackets
    admit(count, min(count * size, most) * dtype.itemsize)
    if size > most:
        _check_lists(items.values()[0], shape, f"{dtype} {shape}")
    if count * size > most:  # so not all are as large as the first: no memory is taken for what nobody sent
        row = np.empty((1, *shape), dtype)
        for i in range(count):
            items.into(row, i, i + 1)
    rows = np.empty((count, *shape), dtype)
    if not items.into_exact(rows, _exact_up_to(dtype)):
        check_exact(rows, items.values())
    return rows


def _check_lists(value: Any, shape: tuple[int, ...], expected: str, place: tuple[int, ...] = ()) -> None:
    """Raise ItemError where lists are not of that shape, which may be of more numbers than there is memory for."""
    if isinstance(value, np.ndarray) or len(place) == len(shape):
        return
    length = shape[len(place)]
    if type(value) is not list or len(value) != length:
        got = f"a list of {len(value)}" if type(value) is list else quoted(value)
        raise ItemError(f"expected {expected}, got {got} in place of a list of {length}{place_of(list(place))}", 0)
    for i, one in enumerate(value):
        _check_lists(one, shape, expected, (*place, i))


def _shape_of(value: Any) -> tuple[int, ...]:
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    if len(shape) >= MAX_DIMS:
        raise ItemError(f"expected lists nested less than {MAX_DIMS} deep, got {len(shape)}", 0)
    return tuple(shape)


def _array_of(value: Any, dtype: np.dtype[Any], admit: Admit) -> Any:
    """The value; an array of that dtype for base64, and for an array of another one."""
    if isinstance(value, str):
        value = decode_numpy(value)
    if not isinstance(value, np.ndarray) or value.dtype.newbyteorder("=") == dtype:
        return value
    admit(0, value.size * dtype.itemsize)
    return _cast(value, dtype)


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    came = array.dtype
    if not np.can_cast(came, dtype, "same_kind") or came.kind == "b" or number_dtype(came) is None:
        raise ItemError(f'expected an array of {dtype}, or of a dtype that "same_kind" casts to it, got {quoted(came)}')
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        if came.kind in "iu":
            lost = (cast.astype(came) != array) | (cast != array)
        else:
            lost = np.isfinite(array) & ~np.isfinite(cast)
    if lost.any():
        raise ItemError(f"expected numbers that {dtype} holds, got {array[lost].flat[0]} ({came})")
    return cast


def check_exact(rows: Array, values: list[Any]) -> None:
    """Raise ItemError for an integer that rows of floats could not hold. values: what they were made of."""
    dtype, most = rows.dtype, _exact_up_to(rows.dtype)
    if most == MOST or not rows.size or max(abs(rows.max()), abs(rows.min())) <= most:  # np.abs() would take memory
        return
    for i, value in enumerate(values):
        for place, number in _integers(value, ()):
            if int(rows[(i, *place)].real) != number:
                raise ItemError(f"expected integers that {dtype} holds exactly, got {number}{place_of(place)}", i)


@cache
def _exact_up_to(dtype: np.dtype[Any]) -> int:
    """An integer of at most 64 bits; it and all smaller ones are values of that dtype, or are refused as beyond it."""
    if dtype.kind in "iub" or dtype.name in ("int2", "uint2", "int4", "uint4"):
        return MOST
    if dtype.kind in "fc" and dtype.char in "efdgFDG":
        return min((1 << int(np.finfo(dtype).nmant + 1)) - 1, MOST)
    import ml_dtypes

    return (1 << int(ml_dtypes.finfo(dtype).nmant + 1)) - 1


def _integers(value: Any, place: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    if type(value) is int:
        yield place, value
    elif type(value) is list:
        for i, one in enumerate(value):
            yield from _integers(one, (*place, i))


# ---- batches


class ArrayRing(Ring):
    """A ring of tickets whose items are arrays; a batch takes items of one shape, that of the oldest.

    Each shape has a ring of its own, in which its tickets stand in order. This one has them all: it knows who is next.
    new: makes the ring of a shape, of a capacity.
    """

    def __init__(self, capacity: int, new: Callable[[int], Ring] = Ring) -> None:
        Ring.__init__(self, capacity)
        self.has_costs = new is not Ring
        self._new = new
        self._rings: dict[tuple[int, ...], Ring] = {}

    def put(self, ticket: Ticket) -> bool:
        """Take ticket.count slots at the end, all or none; none while it is full.

        Raises, with nothing changed, what the ring of its shape does.
        """
        if not Ring.put(self, ticket):
            return False
        shape = ticket.items.shape[1:]
        ring = self._rings.get(shape) or self._new(self.capacity)
        try:
            ring.put(ticket)
        except BaseException:
            self.withdraw(ticket)
            raise
        self._rings[shape] = ring
        return True

    def take(self, limit: int) -> Batch:
        """Take up to `limit` slots of the shape of the oldest; those of others keep their places."""
        ring = self._rings[self.oldest.items.shape[1:]]
        held = ring.held
        batch = ring.take(limit)
        self.size -= batch.size
        self.held -= held - ring.held
        self._forget_empty(ring, batch.spans[0][0])
        for ticket, _, stop in batch.spans:
            if stop == ticket.count:
                self._pass_over()
        return batch

    def is_ready(self, limit: int) -> bool:
        """Whether those of the shape of the oldest fill a batch: a full one of another shape waits for its turn."""
        return self._rings[self.oldest.items.shape[1:]].is_ready(limit)

    def cancel(self, ticket: Ticket) -> int:
        """Give back the slots of a ticket that no batch has taken yet; says how many."""
        if ticket.taken == ticket.count:
            return 0
        ring = self._rings[ticket.items.shape[1:]]
        freed = ring.cancel(ticket)
        self.size -= freed
        self.held -= ticket.weight
        self._forget_empty(ring, ticket)
        self._pass_over()
        return freed

    def _forget_empty(self, ring: Ring, ticket: Ticket) -> None:
        if not ring.size:
            del self._rings[ticket.items.shape[1:]]


class ArraySteps(Steps):
    """The steps of a handler that takes arrays: process_request gets one of its own, of the items of a batch."""

    def joined(self, requests: list[Array]) -> Array:
        """The items of all the requests."""
        return np.concatenate(requests)
