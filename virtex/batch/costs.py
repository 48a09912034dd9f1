"""Batches that are full, too, when their items cost enough: tokens, pixels, whatever a handler's cost() counts.

Rules: as of ring.py, and no class of handlers. What an item costs is asked once, when its request is admitted.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from itertools import islice
from numbers import Real
from typing import Any

from ..errors import HandlerError, ItemError
from .isolate import failure
from .ring import Batch, Ring, Ticket

Cost = Callable[[Any], Any]  # of one item


def check_cost(cost: object, where: str) -> None:
    """Raise TypeError for what can't be called with one item, or would have to be awaited. where: names it."""
    if not callable(cost):
        raise TypeError(f"{where}: expected a method of one item, got a {type(cost).__name__}")
    if inspect.iscoroutinefunction(cost):
        raise TypeError(f"{where}: expected a plain method, got an async one: it is called as requests are admitted")
    try:
        signature = inspect.signature(cost)
    except ValueError:  # of a builtin that has none
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(f"{where}{signature}: expected a method of one item, cost(self, item)") from None


def costs_of(cost: Cost, items: Iterable[Any]) -> list[float]:
    """What each of the items costs.

    Raises ItemError with the index where cost() did; HandlerError with it, and the cause, for whatever else it raises
    and for what is no finite number from 0.
    """
    costs: list[float] = []
    try:
        for item in items:
            costs.append(_number(cost(item), len(costs)))
    except ItemError as error:
        raise error.at(len(costs)) from error.__cause__
    except (HandlerError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: the event loop is not the handler's to end
        raise failure("cost", error, len(costs)) from error
    return costs


def _number(given: Any, index: int) -> float:
    got = f"a {type(given).__name__}"
    if isinstance(given, Real) and not isinstance(given, bool):
        try:
            number = float(given)
        except OverflowError:
            number = math.inf
        if 0 <= number < math.inf:
            return number
        got = str(number)
    raise HandlerError(f"cost gave {got}: expected a finite number from 0", index)


def fitting(costs: Iterable[float], most: float) -> tuple[int, float]:
    """How many of these, from the first on, one batch takes for that cost, and what they cost; one at least."""
    count, total = 0, 0.0
    for cost in costs:
        if count and total + cost > most:
            break
        count += 1
        total += cost
    return count, total


class CostRing(Ring):
    """A ring whose batches cost `most` at most; an item that costs more is a batch of its own.

    cost: gives what one item costs. Batches take what is at the front: nothing is passed over for what would fit.
    """

    def __init__(self, capacity: int, cost: Cost, most: float) -> None:
        Ring.__init__(self, capacity)
        self.has_costs = True
        self._cost = cost
        self._most = most
        self._costs: dict[Ticket, list[float]] = {}  # of each that waits, for all of its slots
        self._waiting: float | None = 0.0  # what all that waits costs; None: not known since some of it went

    def put(self, ticket: Ticket) -> bool:
        """Reserve ticket.count slots at the end, all or none. Raises, with nothing changed, what costs_of() raises."""
        if not Ring.put(self, ticket):
            return False
        try:
            self._costs[ticket] = costs = costs_of(self._cost, ticket.items)
        except BaseException:
            self.withdraw(ticket)
            raise
        if self._waiting is not None:
            self._waiting += sum(costs)
        return True

    def take(self, limit: int) -> Batch:
        """Take slots from the front: up to `limit`, and as many as cost the most that a batch may."""
        count, cost = self._front(limit)
        batch = Ring.take(self, count)
        batch.cost = cost
        for ticket, _, stop in batch.spans:
            if stop == ticket.count:
                del self._costs[ticket]
        self._waiting = None if self.size else 0.0
        return batch

    def is_ready(self, limit: int) -> bool:
        """Whether what waits fills a batch: it is `limit` slots, or costs the most that a batch may."""
        if self.size >= limit:
            return True
        if self._waiting is None:
            count, cost = self._front(limit)
            if count < self.size:
                return True
            self._waiting = cost
        return self._waiting >= self._most

    def cancel(self, ticket: Ticket) -> int:
        """Give back the slots of a ticket that no batch has taken yet; says how many."""
        freed = Ring.cancel(self, ticket)
        if freed:
            del self._costs[ticket]
            self._waiting = None if self.size else 0.0
        return freed

    def _front(self, limit: int) -> tuple[int, float]:
        """How many slots at the front one batch takes, `limit` at most, and what they cost."""
        waiting = (self._costs[ticket][i] for ticket in self._tickets for i in range(ticket.taken, ticket.count))
        return fitting(islice(waiting, limit), self._most)
