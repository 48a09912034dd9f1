"""The ring whose slots are rows of buffers.

Rules: knows rows and bytes; no clock, no asyncio. A request is decoded once, into the rows that the model reads; the
batch that the model gets is a view of them. One thread, the event loop's, reserves, decodes, cancels and cuts.

    slab 0  [r0 r1 r2 ... ]  full, waits        front: the next batch
    slab 1  [r0 r1 . . .  ]  open, fills        slots in the order of admission, as in any ring
    pool    [ ... ] [ ... ]  free               at least one more is computed meanwhile
    pending   . . . . . .    undecoded          the rest of one large request, for which there is no row yet

A slab is used again only when every reply of its batch is in memory of its own and nobody else holds a reference to
its rows; the rows that a handler keeps are the handler's, and the slab is replaced.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from orjson import JSONDecodeError

from ..message import not_json
from ..tensor import Array, Inputs, Tensor
from .outputs import is_alone
from .ring import Batch, Ring, Span, Ticket
from .texts import has_text

CHUNK = 16 << 10  # bytes that are allocated at once for buffers that are smaller: each would take a page or more
ALIGNED = 64  # bytes: the widest vectors
SPARE = 3  # buffers beside those that wait: one that fills, and up to two with the executor
HUGE = 4 << 20  # bytes from which a buffer asks for huge pages: first touch is a fault per page


def allocate(tensor: Tensor, rows: int) -> Array:
    """An array of rows, on a page of its own, that takes memory when it is first written; for text, one of objects."""
    if tensor.text is not None:
        return np.empty((rows, *tensor.shape), object)
    return np.ndarray((rows, *tensor.shape), tensor.dtype, pages(max(rows * tensor.nbytes, 1)))


def pages(size: int) -> mmap.mmap:
    """Memory that takes none until it is written; a large one on large pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Slab:
    """The rows of one batch: an array per input, of which `filled` rows are used, `live` of them still wanted.

    spans: whose rows they are, from row 0 on without a gap; what a span's ticket has given up is a hole.
    """

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = arrays
        self.filled = 0
        self.live = 0
        self.spans: list[Span] = []

    def shrink(self) -> None:
        """Take back the rows at the end that nobody wants any more."""
        while self.spans:
            ticket, start, stop = self.spans[-1]
            if ticket.taken < ticket.count:
                return
            self.spans.pop()
            self.filled -= stop - start

    def close(self) -> list[Span]:
        """The spans in the order of the rows 0 to live; holes are filled from the end."""
        if self.live == self.filled:
            return self.spans
        owners: dict[int, tuple[Ticket, int]] = {}
        row = 0
        for ticket, start, stop in self.spans:
            if ticket.taken < ticket.count:
                owners.update({row + i: (ticket, start + i) for i in range(stop - start)})
            row += stop - start
        holes = [row for row in range(self.live) if row not in owners]
        tail = sorted([row for row in owners if row >= self.live])
        for array in self.arrays:
            array[holes] = array[tail]
        for hole, row in zip(holes, tail, strict=True):
            owners[hole] = owners.pop(row)
        return [(ticket, at, at + 1) for _, (ticket, at) in sorted(owners.items(), key=_row)]


def _row(owned: tuple[int, tuple[Ticket, int]]) -> int:
    return owned[0]


def tensors_of(inputs: Inputs) -> tuple[list[str] | None, list[Tensor]]:
    """The names of the inputs, None where there is one without, and the inputs."""
    return (None, [inputs]) if isinstance(inputs, Tensor) else (list(inputs), list(inputs.values()))


def _row_bytes(inputs: Inputs) -> int:
    return sum([max(tensor.nbytes, 1) for tensor in tensors_of(inputs)[1]])


def fitting(inputs: Inputs, max_batch_size: int, limit: int) -> int:
    """The largest capacity of a RowRing whose slabs take `limit` bytes at most; one batch at least."""
    return max_batch_size * max(limit // (max_batch_size * _row_bytes(inputs)) - SPARE, 1)


class RowRing(Ring):
    """A ring whose slots are rows of buffers; put() decodes.

    capacity: as of any ring; so many rows wait at most, in whole slabs. limit: bytes of all slabs together;
    MemoryError names the sizes of batch and queue that would fit. allocate: makes an array of rows. A cancelled request
    gives back its rows when they are cut, so that nobody can have more of them than capacity: otherwise whoever sends
    and leaves could have any number of slabs wait with a row each. The last slab gives back those at its end, and one
    without rows that are wanted is free at once.

    The items of a request for which there are no rows are pending, undecoded: refill() decodes them, in order, as rows
    get free. They are those of the newest request only, for while there are any the ring is full; and all slabs that
    wait are, so that its rows follow each other. What is wrong with one of them is found out late.

    Rows are numbered as if all slabs that ever were stood one behind the other; a ticket's place is its first one.
    """

    def __init__(
        self,
        inputs: Inputs,
        max_batch_size: int,
        capacity: int,
        limit: int,
        allocate: Callable[[Tensor, int], Array] = allocate,
    ) -> None:
        Ring.__init__(self, capacity)
        self._names, self._tensors = tensors_of(inputs)
        self._has_text = has_text(inputs)  # which is let go of behind a batch
        self.max_batch_size = max_batch_size
        row = _row_bytes(inputs)
        self.slot_bytes = row
        self.slab_bytes = max_batch_size * row
        self.slabs = -(-capacity // max_batch_size) + SPARE
        self._rows = (self.slabs - SPARE) * max_batch_size  # that wait at most
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
        self._pool: list[list[Array]] = []

    def put(self, ticket: Ticket) -> bool:
        """Decode the ticket's items, a tensor.Source that stays there, into the next rows; none while the ring is full.

        Raises, with nothing changed, what its source raises: ItemError, or RequestError (400) for what is not JSON.
        """
        if self.size >= self.capacity:
            return False
        ticket.place = self._next
        self._tickets.append(ticket)
        self.pending = ticket.count
        self.size += ticket.count
        self.refill()
        return True

    def refill(self) -> None:
        """Decode what is pending, as far as there are rows. Raises as put(); then its ticket is cancelled."""
        ticket = self._tickets[-1]
        try:
            while self.pending and self.size - self.pending < self._rows:
                self._decode(ticket)
        except BaseException as error:
            self.cancel(ticket)
            if isinstance(error, JSONDecodeError):  # the walk took the body for JSON; its characters prove otherwise
                raise not_json(error) from None
            raise
        ticket.is_pending = self.pending > 0
        self.held = ticket.weight if self.pending else 0
        if not self.pending:
            ticket.let_go()

    def _decode(self, ticket: Ticket) -> None:
        """Decode what fits into the open slab."""
        slab = self._open()
        first = slab.filled
        start = ticket.count - self.pending
        stop = min(ticket.count, start + self.max_batch_size - first)
        end = first + stop - start
        if self._names is None:
            ticket.items.into(slab.arrays[0][first:end], start, stop)
        else:
            ticket.items.into([array[first:end] for array in slab.arrays], start, stop)
        slab.spans.append((ticket, start, stop))
        slab.filled = end
        slab.live += stop - start
        self._next += stop - start
        self.pending -= stop - start

    def take(self, limit: int) -> Batch:
        """Take the front slab, full or not; the work is its rows, how many of them each span has, and the spans."""
        while self._front not in self._slabs:
            self._front += 1
        slab = self._slabs.pop(self._front)
        self._front += 1
        self._next = max(self._next, self._front * self.max_batch_size)
        self.size -= slab.filled
        live = slab.live
        spans = slab.close()
        counts = []
        for ticket, start, stop in spans:
            counts.append(stop - start)
            if ticket.taken < stop:
                ticket.taken = stop
        while self._tickets:
            oldest = self._tickets[0]
            if oldest.taken < oldest.count:
                break
            self._tickets.popleft()
        return Batch(spans, (self._batch(slab, live), counts, spans), live, live < slab.filled, slab)

    def _batch(self, slab: Slab, live: int) -> Any:
        if self._names is None:
            return slab.arrays[0][:live]
        return {name: array[:live] for name, array in zip(self._names, slab.arrays, strict=True)}

    def release(self, batch: Batch) -> None:
        """Every reply is encoded: let the slab be used again, unless somebody kept its rows."""
        batch.work = None
        slab, batch.slab = batch.slab, None
        self._give_back(slab)

    def cancel(self, ticket: Ticket) -> int:
        """Leave the ticket's rows out of their batches, and what is pending undecoded; says how many slots."""
        taken = ticket.taken
        end = ticket.count
        freed = end - taken
        if freed:
            if self.pending and ticket is self._tickets[-1]:
                end -= self.pending
                self._forget_pending()
            ticket.taken = ticket.count
            self._pass_over()
            self._drop(ticket.place + taken, ticket.place + end)
        return freed

    def _forget_pending(self) -> None:
        self.size -= self.pending
        self.pending = self.held = 0
        number = self._next // self.max_batch_size
        slab = self._slabs.get(number)
        if slab is not None and not slab.filled:  # opened for an item that was wrong
            self._give_back(self._slabs.pop(number))
        elif slab is not None and self._has_text:
            self._forget(slab.arrays, slab.filled, self.max_batch_size)

    def _drop(self, first: int, end: int) -> None:
        """Leave holes where the rows [first, end) are, of a ticket that has none left to take."""
        while end > first:
            number = (end - 1) // self.max_batch_size
            base = number * self.max_batch_size
            slab = self._slabs[number]
            slab.live -= end - max(first, base)
            if self._has_text:
                self._forget(slab.arrays, max(first, base) - base, end - base)
            self.size -= slab.filled
            if self._next == base + slab.filled:
                slab.shrink()
                self._next = base + slab.filled
            if slab.live:
                self.size += slab.filled
            else:
                self._give_back(self._slabs.pop(number))
            end = base

    def _open(self) -> Slab:
        number = self._next // self.max_batch_size
        slab = self._slabs.get(number)
        if slab is None:
            if not self._pool:
                self._pool = self._allocate()
            slab = self._slabs[number] = Slab(self._pool.pop())
        return slab

    def fill(self) -> None:
        """Make all buffers now, ahead of the first request: for memory that takes long to make."""
        while len(self._pool) < self.slabs:
            self._pool += self._allocate()

    def _allocate(self) -> list[list[Array]]:
        """The arrays of one slab or, where they are small, of several that share their pages."""
        rows = self.max_batch_size
        steps = [-(-max(rows * tensor.nbytes, 1) // ALIGNED) * ALIGNED for tensor in self._tensors]
        count = min(CHUNK // max(steps, default=CHUNK), self.slabs)
        if count < 2 or self._new is not allocate or self._has_text:
            return [[self._new(tensor, rows) for tensor in self._tensors]]
        chunks = [pages(count * step) for step in steps]
        return [
            [
                np.ndarray((rows, *tensor.shape), tensor.dtype, chunk, i * step)
                for tensor, chunk, step in zip(self._tensors, chunks, steps, strict=True)
            ]
            for i in range(count)
        ]

    def _give_back(self, slab: Slab) -> None:
        """Pool the slab's arrays if nobody else refers to them or to views of them."""
        arrays = slab.arrays
        slab.arrays = []
        for i in range(len(arrays)):
            if not is_alone(arrays, i):
                return
        if self._has_text:
            self._forget(arrays, 0, self.max_batch_size)
        self._pool.append(arrays)

    def _forget(self, arrays: list[Array], start: int, stop: int) -> None:
        """Let go of the texts of rows that nobody wants any more: they count no more."""
        for tensor, array in zip(self._tensors, arrays, strict=True):
            if tensor.text is not None:
                array[start:stop] = None
