"""What a declared input is, and the buffers whose rows are the ring's slots.

Rules: knows rows and bytes; no clock, no asyncio. A request is decoded once, into the rows that the model reads; the
batch that the model gets is a view of them. One thread, the event loop's, reserves, decodes, cancels and cuts.

    slab 0  [r0 r1 r2 ... ]  full, waits        front: the next batch
    slab 1  [r0 r1 . . .  ]  open, fills        slots in the order of admission, as in any ring
    pool    [ ... ] [ ... ]  free               at least one more is computed meanwhile

A slab is used again only when every reply of its batch is in memory of its own and nobody else holds a reference to
its rows; the rows that a handler keeps are the handler's, and the slab is replaced.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from orjson import JSONDecodeError

from ._codec import encode_npy, encode_numpy, encode_rows, items_of, scan, scan_npy
from .batch.ring import Load, Ring, Span, Ticket
from .errors import HandlerError, RequestError
from .message import Account, decode_message, encode_data, not_json
from .serial._npy import descr_of, named_dtype

Array = npt.NDArray[Any]
CHUNK = 16 << 10  # bytes that are allocated at once for buffers that are smaller: each would take a page or more
ALIGNED = 64  # bytes: the widest vectors
SPARE = 3  # buffers beside those that wait: one that fills, and up to two with the executor
HUGE = 4 << 20  # bytes from which a buffer asks for huge pages: first touch is a fault per page


class Tensor:
    """One declared input: the dtype and shape of an item, without the batch's dimension.

    dtype: anything np.dtype takes, bfloat16 and float8 by name where ml_dtypes is installed; those
    that encode_numpy takes: numbers, text of fixed size, datetimes of one unit; neither structured nor void.
    shape: whole numbers from 0. Raises ValueError or TypeError for what is not so, ImportError without ml_dtypes.
    """

    __slots__ = ("dtype", "shape")

    def __init__(self, dtype: Any, shape: Sequence[int] = ()) -> None:
        self.dtype = _dtype(dtype)
        self.shape = tuple(shape)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in self.shape):
            raise ValueError(f"Tensor(shape={shape!r}): expected whole numbers from 0, without the batch's dimension")

    def zeros(self) -> Array:
        """An item of zeros."""
        return np.zeros(self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one item."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def describe(self) -> dict[str, Any]:
        """For GET /."""
        return {"dtype": str(self.dtype), "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    def __repr__(self) -> str:
        return f"Tensor({str(self.dtype)!r}, {self.shape})"


def _dtype(dtype: Any) -> np.dtype[Any]:
    found: np.dtype[Any]
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        try:
            found = named_dtype(str(dtype))
        except ValueError:
            raise TypeError(f"Tensor({dtype!r}): {error}") from None
    try:
        descr_of(found)
    except TypeError as error:
        raise TypeError(f"Tensor({dtype!r}): expected a dtype that travels: {error}") from None
    return found


def allocate(tensor: Tensor, rows: int) -> Array:
    """An array of rows, on a page of its own, that takes memory when it is first written."""
    return np.ndarray((rows, *tensor.shape), tensor.dtype, _pages(max(rows * tensor.nbytes, 1)))


def _pages(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Source(Protocol):
    """The items of one request, not decoded yet; into() raises ItemError."""

    def __len__(self) -> int: ...

    def into(self, rows: Any, start: int, stop: int) -> None: ...


Inputs = Tensor | Mapping[str, Tensor]


def describe(tensors: Inputs | None) -> Any:
    """Declared inputs or outputs for GET /."""
    if tensors is None or isinstance(tensors, Tensor):
        return tensors and tensors.describe()
    return {name: tensor.describe() for name, tensor in tensors.items()}


class Slab:
    """The rows of one batch: an array per input, of which `filled` rows are used, `live` of them still wanted."""

    __slots__ = ("arrays", "filled", "live", "spans")

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays
        self.filled = 0
        self.live = 0
        self.spans: list[tuple[Ticket, int, int, int]] = []  # ticket, start, stop, first row

    def views(self, start: int, stop: int) -> dict[str, Array]:
        """The rows [start, stop) of each input."""
        return {name: array[start:stop] for name, array in self.arrays.items()}

    def add(self, ticket: Ticket, start: int, stop: int) -> None:
        """The next rows are these slots of the ticket."""
        self.spans.append((ticket, start, stop, self.filled))
        self.filled += stop - start
        self.live += stop - start

    def shrink(self) -> None:
        """Take back the rows at the end that nobody wants any more."""
        spans = self.spans
        while spans and spans[-1][0].taken == spans[-1][0].count:
            spans.pop()
        if spans:
            _, start, stop, row = spans[-1]
            self.filled = row + stop - start
        else:
            self.filled = 0

    def close(self) -> list[Span]:
        """The spans in the order of the rows 0 to live; holes are filled from the end."""
        if self.live == self.filled:
            return [(ticket, start, stop) for ticket, start, stop, _ in self.spans]
        wanted = [span for span in self.spans if span[0].taken < span[0].count]
        owners = {row + i: (t, at + i) for t, at, stop, row in wanted for i in range(stop - at)}
        holes = [row for row in range(self.live) if row not in owners]
        tail = sorted(row for row in owners if row >= self.live)
        for array in self.arrays.values():
            array[holes] = array[tail]
        for hole, row in zip(holes, tail, strict=True):
            owners[hole] = owners.pop(row)
        return [(ticket, at, at + 1) for _, (ticket, at) in sorted(owners.items(), key=lambda item: item[0])]


def _row_bytes(inputs: Inputs) -> int:
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs.values()
    return sum(max(tensor.nbytes, 1) for tensor in tensors)


class RowLoad(Load):
    """One batch of rows; its work is the batch, and how many rows of it each span has."""

    __slots__ = ("_ring", "_slab")

    def __init__(self, ring: RowRing, slab: Slab) -> None:
        spans = slab.close()
        views = slab.views(0, slab.live)
        batch = views if ring.names else views[""]
        counts = [stop - start for _, start, stop in spans]
        super().__init__(spans, (batch, counts), slab.live, slab.live < slab.filled)
        self._ring = ring
        self._slab = slab

    def release(self) -> None:
        """Every reply is encoded: let the slab be used again, unless somebody kept its rows."""
        self.work = None
        self._ring.give_back(self._slab)


class RowRing(Ring):
    """A ring whose slots are rows of buffers; put() decodes.

    capacity: rows waiting at most. limit: bytes of all slabs together; MemoryError names the sizes of batch and queue
    that would fit. allocate: makes an array of rows. A cancelled request gives back its rows when they are cut, so that
    nobody can have more of them than capacity: otherwise whoever sends and leaves could have any number of slabs wait
    with a row each. The last slab gives back those at its end, and one without rows that are wanted is free at once.

    Rows are numbered as if all slabs that ever were stood one behind the other; a ticket's place is its first one.
    """

    __slots__ = (
        "_front",
        "_inputs",
        "_new",
        "_next",
        "_pool",
        "_slabs",
        "max_batch_size",
        "names",
        "slab_bytes",
        "slabs",
    )

    def __init__(
        self,
        inputs: Inputs,
        max_batch_size: int,
        capacity: int,
        limit: int,
        allocate: Callable[[Tensor, int], Array] = allocate,
    ) -> None:
        super().__init__(capacity)
        self.names = () if isinstance(inputs, Tensor) else tuple(inputs)
        self._inputs: dict[str, Tensor] = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        self.max_batch_size = max_batch_size
        row = _row_bytes(inputs)
        self.slab_bytes = max_batch_size * row
        self.slabs = -(-capacity // max_batch_size) + SPARE
        if self.slabs * self.slab_bytes > limit:
            fits = max(limit // (self.slabs * row), 0)
            raise MemoryError(
                f"{self.slabs} buffers of {max_batch_size} rows of {row} bytes are {self.slabs * self.slab_bytes} "
                f"bytes; limits.max_bytes leaves {limit}: "
                + (
                    f"max_batch_size={fits} with max_queue_size={fits * (self.slabs - SPARE)} would fit"
                    if fits
                    else "not even batches of one would fit"
                )
            )
        self._new = allocate
        self._slabs: dict[int, Slab] = {}
        self._front = 0  # no slab has a lower number; the first from here on is the next batch
        self._next = 0  # the row that is filled next; what ends there is the last slab
        self._pool: list[dict[str, Array]] = []

    @staticmethod
    def fitting(inputs: Inputs, max_batch_size: int, limit: int) -> int:
        """The largest capacity whose slabs take `limit` bytes at most; one batch at least."""
        return max_batch_size * max(limit // (max_batch_size * _row_bytes(inputs)) - SPARE, 1)

    def put(self, ticket: Ticket) -> bool:
        """Decode the ticket's items into the next rows, all or none.

        Raises, with nothing changed, what its source raises: ItemError, or RequestError (400) for what is not JSON.
        """
        source: Source = ticket.items
        if self.size + ticket.count > self.capacity:
            return False
        ticket.place = self._next
        start = 0
        try:
            while start < ticket.count:
                slab = self._open()
                at = slab.filled
                stop = min(ticket.count, start + self.max_batch_size - at)
                views = list(slab.views(at, at + stop - start).values())
                source.into(views if self.names else views[0], start, stop)
                slab.add(ticket, start, stop)
                self._next += stop - start
                self.size += stop - start
                start = stop
        except BaseException as error:
            views = []  # or its slab could not be used again
            self._roll_back(ticket, start)
            if isinstance(error, JSONDecodeError):  # the walk took the body for JSON; its characters prove otherwise
                raise not_json(error) from None
            raise
        ticket.items = []  # the rows are all that is needed; the body may go
        self._tickets.append(ticket)
        return True

    def take(self, limit: int) -> RowLoad:
        """The rows of the front slab, whether it is full or not."""
        while self._front not in self._slabs:
            self._front += 1
        slab = self._slabs.pop(self._front)
        self._front += 1
        self._next = max(self._next, self._front * self.max_batch_size)
        self.size -= slab.filled
        load = RowLoad(self, slab)
        for ticket, _, stop in load.spans:
            ticket.taken = max(ticket.taken, stop)
        while self._tickets and self._tickets[0].taken == self._tickets[0].count:
            self._tickets.popleft()
        return load

    def cancel(self, ticket: Ticket) -> int:
        """Leave the ticket's rows out of their batches; says how many."""
        taken = ticket.taken
        freed = ticket.count - taken
        if freed:
            ticket.taken = ticket.count
            self._pass_over()
            self._drop(ticket.place + taken, ticket.place + ticket.count)
        return freed

    def _roll_back(self, ticket: Ticket, stop: int) -> None:
        """Forget a ticket of which the slots [0, stop) are in their rows."""
        number = self._next // self.max_batch_size
        if number in self._slabs and not self._slabs[number].filled:  # opened for it
            self.give_back(self._slabs.pop(number))
        ticket.taken = ticket.count
        self._drop(ticket.place, ticket.place + stop)

    def _drop(self, first: int, end: int) -> None:
        """Leave holes where the rows [first, end) are, of a ticket that has none left to take."""
        while end > first:
            number = (end - 1) // self.max_batch_size
            base = number * self.max_batch_size
            slab = self._slabs[number]
            slab.live -= end - max(first, base)
            self.size -= slab.filled
            if self._next == base + slab.filled:
                slab.shrink()
                self._next = base + slab.filled
            if slab.live:
                self.size += slab.filled
            else:
                self.give_back(self._slabs.pop(number))
            end = base

    def _open(self) -> Slab:
        number = self._next // self.max_batch_size
        slab = self._slabs.get(number)
        if slab is None:
            if not self._pool:
                self._pool = self._allocate()
            slab = self._slabs[number] = Slab(self._pool.pop())
        return slab

    def _allocate(self) -> list[dict[str, Array]]:
        """The arrays of one slab or, where they are small, of several that share their pages."""
        rows, inputs = self.max_batch_size, self._inputs
        steps = {name: -(-max(rows * tensor.nbytes, 1) // ALIGNED) * ALIGNED for name, tensor in inputs.items()}
        count = min(CHUNK // max(steps.values(), default=CHUNK), self.slabs)
        if count < 2 or self._new is not allocate:
            return [{name: self._new(tensor, rows) for name, tensor in inputs.items()}]
        chunks = {name: _pages(count * step) for name, step in steps.items()}
        return [
            {
                name: np.ndarray((rows, *tensor.shape), tensor.dtype, chunks[name], i * steps[name])
                for name, tensor in inputs.items()
            }
            for i in range(count)
        ]

    def give_back(self, slab: Slab) -> None:
        """Pool the slab's arrays if nobody else refers to them or to views of them."""
        arrays = slab.arrays
        slab.arrays = {}
        if all(is_alone(arrays, name) for name in arrays):
            self._pool.append(arrays)


def is_alone(arrays: dict[str, Array], name: str) -> bool:
    """Whether the dict holds the only reference to its array: NumPy's views, and what is made of them, refer to it."""
    return sys.getrefcount(arrays[name]) <= _ALONE


_ALONE = (lambda arrays: sys.getrefcount(arrays["a"]))({"a": np.empty(1)})


def reader(inputs: Inputs, body: bytes | bytearray | memoryview, is_npy: bool, account: Account) -> Source:
    """The items of a body for declared inputs, not decoded yet. Raises RequestError or ItemError."""
    names = None if isinstance(inputs, Tensor) else tuple(inputs)
    if is_npy:
        if not isinstance(inputs, Tensor):
            raise RequestError(415, f"application/x-npy has one array an item; send JSON objects of {list(inputs)}")
        return scan_npy(body, len(inputs.shape), account.admit_documents)
    items = scan(body, names)
    if items is None:
        account.admit_values(body)
        items = items_of(decode_message(body), names)
    return items


# ---- out: what a model gave, into replies


def on_host(outputs: Any) -> Any:
    """Tensors of torch as arrays in host memory, detached; a dict of them by name; anything else as it is."""
    if isinstance(outputs, Mapping):
        return {name: on_host(value) for name, value in outputs.items()}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(outputs, torch.Tensor):
        host = outputs.detach().resolve_conj().resolve_neg().cpu()
        if host.dtype is torch.bfloat16:  # NumPy has none of its own
            import ml_dtypes

            return host.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return host.numpy()
    return outputs


class Rows:
    """Answers to consecutive items: an array of rows, or one per name."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays

    @classmethod
    def of(cls, outputs: Any, count: int, declared: Inputs | None) -> Rows:
        """What run_inference gave, as exactly `count` rows of the declared dtype and shape.

        Raises HandlerError that says what was expected and what came.
        """
        named = outputs if isinstance(outputs, Mapping) else {"": outputs}
        arrays = {name: _array_out(value, count, name) for name, value in named.items()}
        if declared is not None:
            expected = {"": declared} if isinstance(declared, Tensor) else declared
            came = {name: f"{array.dtype} {array.shape[1:]}" for name, array in arrays.items()}
            if came != {name: str(tensor) for name, tensor in expected.items()}:
                raise HandlerError(f"run_inference returned rows of {came}; declared are {dict(expected)}")
        if not arrays:
            raise HandlerError(f"run_inference returned an empty dict; expected {count} rows by name")
        return cls(arrays)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def part(self, start: int, stop: int) -> Rows:
        """Views of the rows [start, stop)."""
        return Rows({name: array[start:stop] for name, array in self._arrays.items()})

    def unshared(self) -> Rows:
        """The same rows, those in memory of their own that are views, or that somebody else refers to."""
        arrays = self._arrays
        alone = {name for name in arrays if arrays[name].base is None and is_alone(arrays, name)}
        return Rows({name: array if name in alone else array.copy() for name, array in arrays.items()})

    def copy(self) -> Rows:
        """The same rows in memory of their own."""
        return Rows({name: array.copy() for name, array in self._arrays.items()})

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of the parts, one after another. Raises HandlerError for rows of other names or shapes."""
        shapes = [{name: array.shape[1:] for name, array in part._arrays.items()} for part in parts]
        for other in shapes:
            if other != shapes[0]:
                raise HandlerError(f"run_inference returned rows of {shapes[0]}, then of {other}, for one request")
        return Rows({name: np.concatenate([part._arrays[name] for part in parts]) for name in shapes[0]})

    def json(self) -> bytes:
        """The body of the reply. Raises HandlerError for a float that is not finite."""
        try:
            return self._json()
        except TypeError as error:
            raise _does_not_travel(error) from None

    def _json(self) -> bytes:
        single = self._arrays.get("")
        if single is not None and single.ndim > 1:
            return encode_rows(single)
        columns = {name: _values(array) for name, array in self._arrays.items()}
        rows = columns.get("")
        if rows is None:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return b'{"data":%b,"error":null}' % encode_data(rows, "run_inference")

    def npy(self) -> bytes | None:
        """The rows as one .npy document; None when they have names. Raises HandlerError for what does not travel."""
        try:
            return encode_npy(self._arrays[""]) if "" in self._arrays else None
        except TypeError as error:
            raise _does_not_travel(error) from None


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


def _array_out(value: Any, count: int, name: str) -> Array:
    where = f"run_inference returned {name and repr(name) + ' as '}"
    check_no_tuple(value, where)
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


def _values(array: Array) -> list[Any]:
    """JSON values of the rows: numbers, booleans and text of rows of no dimension, base64 of .npy of others."""
    if array.ndim > 1 or array.dtype.kind not in "biufU":
        return [encode_numpy(row) for row in array]
    return list(array.tolist())
