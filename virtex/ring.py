"""The ring of requests that wait for a batch: bounded, first in, first out, counted in slots.

Rules: this file knows slots, not time. It imports neither asyncio nor a clock; batcher.py decides when to take. One
thread, the event loop's, owns a ring and its tickets. A slot is one item of one request; the slots of a request are
neighbours, so the ring stores one ticket for all of them and takes from it in spans. A full ring refuses: put() says
False and changes nothing. Cost: put O(1), take O(requests taken), cancel O(requests waiting).
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple


class Ticket:
    """One request in the ring: `count` slots, resolved exactly once by deliver().

    items: the elements to compute, one per slot. taken: how many slots batches have taken, from the front.
    answered: how many of those came back. born: when the request was admitted, in the clock's nanoseconds.
    """

    __slots__ = ("answered", "born", "count", "done", "items", "rows", "taken")

    items: list[Any]
    rows: list[Any]

    def __init__(self) -> None:
        self.items = []
        self.rows = []
        self.count = self.taken = self.answered = self.born = 0
        self.done = False

    def deliver(self, rows: list[Any], error: Exception | None) -> None:
        """Take the answer: one row per item in order, or the error of the lowest failing item."""
        raise NotImplementedError

    def fill(self, rows: list[Any]) -> None:
        """Append the rows of the next slots that came back; the last of them resolves the ticket."""
        if self.done:
            return
        self.answered += len(rows)
        if self.rows:
            self.rows += rows
        else:
            self.rows = rows
        if self.answered == self.count:
            self.resolve(self.rows, None)

    def resolve(self, rows: list[Any], error: Exception | None) -> None:
        """Deliver once; whatever comes later is dropped. Frees the items and the rows."""
        if self.done:
            return
        self.done = True
        self.items = self.rows = []
        self.deliver(rows, error)


class Span(NamedTuple):
    """The slots [start, stop) of one ticket, as one batch takes them."""

    ticket: Ticket
    start: int
    stop: int


class Ring:
    """At most `capacity` slots waiting; `size` says how many do."""

    __slots__ = ("_tickets", "capacity", "size")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._tickets: deque[Ticket] = deque()

    @property
    def oldest(self) -> Ticket:
        """The ticket at the front. Raises IndexError when nothing waits."""
        return self._tickets[0]

    def put(self, ticket: Ticket) -> bool:
        """Reserve ticket.count slots at the end, all or none."""
        if self.size + ticket.count > self.capacity:
            return False
        self._tickets.append(ticket)
        self.size += ticket.count
        return True

    def take(self, limit: int) -> list[Span]:
        """Take up to `limit` slots from the front; the last ticket may be split and stays in front with the rest."""
        spans = []
        tickets = self._tickets
        while limit and tickets:
            ticket = tickets[0]
            start = ticket.taken
            stop = min(ticket.count, start + limit)
            spans.append(Span(ticket, start, stop))
            ticket.taken = stop
            limit -= stop - start
            self.size -= stop - start
            if stop == ticket.count:
                tickets.popleft()
        return spans

    def cancel(self, ticket: Ticket) -> int:
        """Give back the slots of a ticket that no batch has taken yet; says how many."""
        freed = ticket.count - ticket.taken
        if freed:
            self._tickets.remove(ticket)
            ticket.taken = ticket.count
            self.size -= freed
        return freed
