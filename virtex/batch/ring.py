"""The ring of requests that wait for a batch: bounded, first in, first out, counted in slots.

Rules: this file knows slots, not time. It imports neither asyncio nor a clock; batcher.py decides when to take. One
thread, the event loop's, owns a ring and its tickets. A slot is one item of one request; the slots of a request are
neighbours, so the ring stores one ticket for all of them and takes from it in spans.

A ring is full when `capacity` slots wait. A full one refuses, whatever comes: put() says False and changes nothing. One
that is not full takes whatever comes next, whole, be it larger than what is free, or than the ring. So a large request
is refused when a small one would be, and never more often; a message of more items than the ring has slots is taken
too; and what waits is less than `capacity` and one request more.

Cost: put and cancel O(1), take O(requests taken). A cancelled ticket stays in the deque, with nothing left to take,
until it is passed, or until half of the deque is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import accumulate, chain
from typing import Any


class Ticket:
    """One request in the ring: `count` slots, resolved exactly once by deliver().

    items: the elements to compute, one per slot. taken: how many slots batches have taken, from the front.
    returned: how many of those came back, rows: what came. born: when the request was admitted, in the clock's
    nanoseconds. weight: bytes that its items take. place: where its slots begin, for a ring that has places. resolved:
    delivered, or given up. is_pending: some of its slots have no place yet, and `items` are still read.
    cut_at: when the batch was cut that took slots of it last, or, behind its answer, that came back last, in ns; 0 for
    none. batch_size: the slots of the latter.
    """

    def __init__(self) -> None:
        self.items: Any = None
        self.rows: list[Any] | None = None
        self.count = self.taken = self.returned = self.born = self.weight = self.place = 0
        self.cut_at = self.batch_size = 0
        self.resolved = self.is_pending = False

    def asker(self) -> Any:
        """Who asked: one object for all of its items, which the handler's methods may be given."""
        raise NotImplementedError

    def let_go(self) -> None:
        """The ring has made of the items all that it needs: what they are read from may go."""
        self.items = []

    def foresee(self, rows: Any) -> None:
        """These are the first of the rows of several batches: the others will take as much. Raises RequestError."""

    def deliver(self, rows: Any, error: Exception | None) -> None:
        """Take the answer: one row per item in order, or the error of the lowest failing item."""
        raise NotImplementedError

    def fill(self, rows: Any) -> None:
        """Add the rows of the next slots that came back, a list or Rows; the last of them resolves the ticket.

        Raises RequestError where there is no room for those that are to come.
        """
        if self.resolved:
            return
        self.returned += len(rows)
        if self.returned < self.count:
            if self.rows is None:
                self.foresee(rows)
                self.rows = []
            self.rows.append(rows.copy())  # the original may alias rows of a batch that is used again
        elif self.rows:
            parts = [*self.rows, rows]
            self.resolve(list(chain(*parts)) if isinstance(rows, list) else rows.joined(parts), None)
        else:
            self.resolve(rows, None)

    def resolve(self, rows: Any, error: Exception | None) -> None:
        """Deliver once; whatever comes later is dropped. Frees the items and the rows."""
        if not self.resolved:
            self.resolved = True
            self.items = self.rows = None
            self.deliver(rows, error)


Span = tuple[Ticket, int, int]  # the slots [start, stop) of one ticket, as one batch takes them


class Batch:
    """What the handler computes at a time, taken from the ring, and what came of it.

    spans: the slots, in the order of the batch. work: what the handler's steps run. size: how many slots. is_shuffled:
    whether the spans of one ticket may stand in another order than its slots. slab: the buffer that `work` lies in, for
    a ring that has buffers. askers: who asked, one per span; None where nobody is to know. cost: of its items, where
    the ring counts that. why: it was cut; cut_at: when, in ns.
    outcomes: one per span, once it was computed. laps: how long that took, as steps.Laps; None where it broke
    off.
    """

    def __init__(self, spans: list[Span], work: Any, size: int, is_shuffled: bool = False, slab: Any = None) -> None:
        self.spans = spans
        self.work = work
        self.size = size
        self.is_shuffled = is_shuffled
        self.slab = slab
        self.askers: list[Any] | None = None
        self.cost: float | None = None
        self.why = ""
        self.cut_at = 0
        self.outcomes: list[Any] = []
        self.laps: Any = None

    def thin(self) -> None:
        """Leave out the requests whose answer nobody wants any more: for who runs it after it has waited for that."""
        for ticket, _, _ in self.spans:
            if ticket.resolved:
                break
        else:
            return
        kept = [i for i, (ticket, _, _) in enumerate(self.spans) if not ticket.resolved]
        self.work = [self.work[i] for i in kept] if self.slab is None else _moved_up(self.work, kept)
        self.spans = [self.spans[i] for i in kept]
        self.size = sum([stop - start for _, start, stop in self.spans])
        if self.askers is not None:
            self.askers = [self.askers[i] for i in kept]

    def sort(self) -> None:
        """Put the spans, with their outcomes, into the order of the slots of each ticket."""
        order = sorted(range(len(self.spans)), key=[start for _, start, _ in self.spans].__getitem__)
        self.spans = [self.spans[i] for i in order]
        self.outcomes = [self.outcomes[i] for i in order]


def _moved_up(work: tuple[Any, ...], kept: list[int]) -> tuple[Any, ...]:
    """The rows of these spans alone, an array or several by name, how many each of them has, and whose they are."""
    rows, counts, spans = work
    arrays = rows if isinstance(rows, dict) else {"": rows}
    starts = list(accumulate(counts, initial=0))
    end = 0
    for i in kept:
        for array in arrays.values():
            array[end : end + counts[i]] = array[starts[i] : starts[i + 1]]
        end += counts[i]
    left = {name: array[:end] for name, array in arrays.items()}
    return left if rows is arrays else left[""], [counts[i] for i in kept], [spans[i] for i in kept]


class Ring:
    """Full when `capacity` slots wait; `size` says how many do.

    held: bytes of the items that wait; a request that is split counts in full. slot_bytes: that a slot has of its own.
    pending: how many slots at the end, all of the newest ticket, have no place of their own yet, for a ring that has
    places. has_costs: a batch may be full of fewer slots than it takes at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = self.pending = 0
        self.held = self.slot_bytes = 0
        self.has_costs = False
        self._tickets: deque[Ticket] = deque()
        self._gone = 0  # how many tickets of the deque are cancelled, at most

    @property
    def oldest(self) -> Ticket:
        """The ticket at the front. Raises IndexError when nothing waits."""
        tickets = self._tickets
        while tickets[0].taken == tickets[0].count:
            tickets.popleft()
        return tickets[0]

    @property
    def newest(self) -> Ticket:
        """The ticket at the end. Raises IndexError when nothing waits."""
        return self._tickets[-1]

    def put(self, ticket: Ticket) -> bool:
        """Take ticket.count slots at the end, all or none; none while it is full."""
        if self.size >= self.capacity:
            return False
        self._tickets.append(ticket)
        self.size += ticket.count
        self.held += ticket.weight
        return True

    def withdraw(self, ticket: Ticket) -> None:
        """Forget the ticket that was put in just now."""
        self._tickets.pop()
        self.size -= ticket.count
        self.held -= ticket.weight

    def take(self, limit: int) -> Batch:
        """Take up to `limit` slots from the front; the last ticket may be split and stays in front with the rest."""
        spans = []
        work = []
        tickets = self._tickets
        size = left = min(limit, self.size)
        self.size -= left
        while left:
            ticket = tickets[0]
            start = ticket.taken
            stop = ticket.count
            if stop - start <= left:
                tickets.popleft()
            else:
                stop = start + left
            if start == stop:
                continue
            if stop == ticket.count:
                self.held -= ticket.weight
            ticket.taken = stop
            left -= stop - start
            spans.append((ticket, start, stop))
            work.append(ticket.items if stop - start == ticket.count else ticket.items[start:stop])
        if tickets and not self.size:
            tickets.clear()
        return Batch(spans, work, size)

    def refill(self) -> None:
        """Give places to slots that are pending, as far as there are some."""

    def is_ready(self, limit: int) -> bool:
        """Whether what waits fills a batch of `limit` slots."""
        return self.size >= limit

    def release(self, batch: Batch) -> None:
        """Every reply of the batch is encoded: let go of what it was made of."""
        batch.work = None

    def __iter__(self) -> Iterator[Ticket]:
        """The waiting tickets, oldest first."""
        return iter([ticket for ticket in self._tickets if ticket.taken < ticket.count])

    def cancel(self, ticket: Ticket) -> int:
        """Give back the slots of a ticket that no batch has taken yet; says how many."""
        freed = ticket.count - ticket.taken
        if freed:
            ticket.taken = ticket.count
            self.size -= freed
            self.held -= ticket.weight
            self._pass_over()
        return freed

    def _pass_over(self) -> None:
        """One more ticket of the deque has nothing left to take."""
        self._gone += 1
        if 2 * self._gone > len(self._tickets):
            self._tickets = deque([ticket for ticket in self._tickets if ticket.taken < ticket.count])
            self._gone = 0
