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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from orjson import JSONDecodeError

from ._codec import encode_npy, encode_numpy, encode_rows, items_of, scan, scan_npy
from .errors import HandlerError, RequestError
from .message import Account, decode_message, encode_data, not_json
from .ring import Load, Ring, Span, Ticket
from .serial._npy import descr_of, named_dtype

Array = npt.NDArray[Any]
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
    size = max(rows * tensor.nbytes, 1)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.ndarray((rows, *tensor.shape), tensor.dtype, memory)


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

    def drop(self, ticket: Ticket, is_last: bool) -> None:
        """Leave holes where the ticket's rows are; the last slab gives back those at its end.

        The holes of a full slab stay taken until it is cut: otherwise whoever sends and leaves could have any number
        of slabs wait with a row each.
        """
        kept = [span for span in self.spans if span[0] is not ticket]
        self.live -= sum(stop - start for t, start, stop, _ in self.spans if t is ticket)
        self.spans = kept
        if is_last:
            self.filled = max((row + stop - start for _, start, stop, row in kept), default=0)

    def close(self) -> list[Span]:
        """The spans in the order of the rows 0 to live; holes are filled from the end."""
        if self.live == self.filled:
            return [(ticket, start, stop) for ticket, start, stop, _ in self.spans]
        owners = {row + i: (t, at + i) for t, at, stop, row in self.spans for i in range(stop - at)}
        holes = [row for row in range(self.live) if row not in owners]
        tail = sorted(row for row in owners if row >= self.live)
        for array in self.arrays.values():
            array[holes] = array[tail]
        for hole, row in zip(holes, tail, strict=True):
            owners[hole] = owners.pop(row)
        return [(ticket, at, at + 1) for _, (ticket, at) in sorted(owners.items(), key=lambda item: item[0])]


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
    nobody can have more of them than capacity.
    """

    __slots__ = ("_inputs", "_new", "_pool", "_slabs", "max_batch_size", "names", "slab_bytes", "slabs")

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
        row = sum(max(tensor.nbytes, 1) for tensor in self._inputs.values())
        self.slab_bytes = max_batch_size * row
        # Full ones that wait, one that fills, and up to two with the executor.
        self.slabs = -(-capacity // max_batch_size) + 3
        if self.slabs * self.slab_bytes > limit:
            fits = max(limit // (self.slabs * row), 0)
            raise MemoryError(
                f"{self.slabs} buffers of {max_batch_size} rows of {row} bytes are {self.slabs * self.slab_bytes} "
                f"bytes; limits.max_bytes leaves {limit}: "
                + (
                    f"max_batch_size={fits} with max_queue_size={fits * (self.slabs - 3)} would fit"
                    if fits
                    else "not even batches of one would fit"
                )
            )
        self._new = allocate
        self._slabs: deque[Slab] = deque()  # the front one is the next batch, the last one fills
        self._pool: list[dict[str, Array]] = []

    def put(self, ticket: Ticket) -> bool:
        """Decode the ticket's items into the next rows, all or none.

        Raises, with nothing changed, what its source raises: ItemError, or RequestError (400) for what is not JSON.
        """
        source: Source = ticket.items
        if self.size + ticket.count > self.capacity:
            return False
        try:
            start = 0
            while start < ticket.count:
                slab = self._open()
                at = slab.filled
                stop = min(ticket.count, start + self.max_batch_size - at)
                views = list(slab.views(at, at + stop - start).values())
                source.into(views if self.names else views[0], start, stop)
                slab.add(ticket, start, stop)
                self.size += stop - start
                start = stop
        except JSONDecodeError as error:  # the walk believed the body to be JSON; its characters prove otherwise
            self._drop(ticket)
            raise not_json(error) from None
        except BaseException:
            self._drop(ticket)
            raise
        ticket.items = []  # the rows are all that is needed; the body may go
        self._tickets.append(ticket)
        return True

    def take(self, limit: int) -> RowLoad:
        """The rows of the front slab, whether it is full or not."""
        slab = self._slabs.popleft()
        self.size -= slab.filled
        load = RowLoad(self, slab)
        for ticket, _, stop in load.spans:
            ticket.taken = max(ticket.taken, stop)
        while self._tickets and self._tickets[0].taken == self._tickets[0].count:
            self._tickets.popleft()
        return load

    def cancel(self, ticket: Ticket) -> int:
        """Leave the ticket's rows out of their batches; says how many."""
        freed = ticket.count - ticket.taken
        if freed:
            self._tickets.remove(ticket)
            ticket.taken = ticket.count
            self._drop(ticket)
        return freed

    def _drop(self, ticket: Ticket) -> None:
        slabs = self._slabs
        for slab in reversed(list(slabs)):
            self.size -= slab.filled
            slab.drop(ticket, slab is slabs[-1])
            if slab.live or len(slabs) == 1:
                self.size += slab.filled
            else:
                slabs.remove(slab)
                self.give_back(slab)

    def _open(self) -> Slab:
        if not self._slabs or self._slabs[-1].filled == self.max_batch_size:
            arrays = self._pool.pop() if self._pool else self._allocate()
            self._slabs.append(Slab(arrays))
        return self._slabs[-1]

    def _allocate(self) -> dict[str, Array]:
        return {name: self._new(tensor, self.max_batch_size) for name, tensor in self._inputs.items()}

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


def _array_out(value: Any, count: int, name: str) -> Array:
    where = f"run_inference returned {name and repr(name) + ' as '}"
    if not hasattr(value, "__array__") and not isinstance(value, (list, tuple)):
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
