"""Who gets the next request: the ways of balancing that bench/fleet.py compares.

Rules: knows how many requests each replica holds, in a list that is its fleet's, and neither batches nor times; only
`stale` is told the time. All that is random comes from a generator that is given, so a run can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import numpy as np

CHUNK = 8192  # numbers that are drawn at once
STALE = 20_000_000  # ns between two reports, where nothing else is said
CONNECTIONS = 16  # a replica has on average, where clients keep theirs

Random = np.random.Generator


def draws(random: Random, below: int) -> Iterator[int]:
    """Whole numbers from 0 to below - 1, without end."""
    while True:
        yield from random.integers(below, size=CHUNK).tolist()


def fractions(random: Random) -> Iterator[float]:
    """Numbers from 0 up to 1, without end."""
    while True:
        yield from random.random(CHUNK).tolist()


class Balancer:
    """pick(now) says which replica gets the next request. loads: of each, the requests that wait and run there."""

    def __init__(self, loads: Sequence[int], random: Random) -> None:
        self.loads = loads

    def pick(self, now: int) -> int:
        raise NotImplementedError

    def moved(self, replica: int, before: int, after: int) -> None:
        """A replica's load has changed."""

    @classmethod
    def watches(cls) -> bool:
        """Whether it has to be told of each change of a load."""
        return cls.moved is not Balancer.moved


class AtRandom(Balancer):
    """Each request anywhere: what many independent balancers, or clients, make together."""

    def __init__(self, loads: Sequence[int], random: Random) -> None:
        super().__init__(loads, random)
        self._draw = draws(random, len(loads)).__next__

    def pick(self, now: int) -> int:
        return self._draw()


class RoundRobin(Balancer):
    """Each in turn: one balancer through which all requests go."""

    def __init__(self, loads: Sequence[int], random: Random) -> None:
        super().__init__(loads, random)
        self._next = cycle(range(len(loads))).__next__

    def pick(self, now: int) -> int:
        return self._next()


class TwoChoices(Balancer):
    """The less loaded of two different ones that are drawn at random."""

    def __init__(self, loads: Sequence[int], random: Random) -> None:
        super().__init__(loads, random)
        self._count = len(loads)
        self._draw = draws(random, self._count).__next__
        self._further = draws(random, max(self._count - 1, 1)).__next__

    def pick(self, now: int) -> int:
        one = self._draw()
        if self._count == 1:
            return one
        other = (one + 1 + self._further()) % self._count
        return one if self.loads[one] <= self.loads[other] else other


class Least(Balancer):
    """One of the least loaded of all (join the shortest queue), at random among equals.

    Replicas stand in a group for each load, so that neither picking nor a change takes longer the more there are.
    """

    def __init__(self, loads: Sequence[int], random: Random) -> None:
        super().__init__(loads, random)
        self._fraction = fractions(random).__next__
        self._groups: list[list[int]] = [list(range(len(loads)))]
        self._place = list(range(len(loads)))  # of each replica in its group
        self._low = 0

    def pick(self, now: int) -> int:
        while not self._groups[self._low]:
            self._low += 1
        group = self._groups[self._low]
        return group[int(self._fraction() * len(group))]

    def moved(self, replica: int, before: int, after: int) -> None:
        groups, place = self._groups, self._place
        group, at = groups[before], place[replica]
        last = group.pop()
        if last != replica:
            group[at] = last
            place[last] = at
        while len(groups) <= after:
            groups.append([])
        place[replica] = len(groups[after])
        groups[after].append(replica)
        self._low = min(self._low, after)


class Stale(Balancer):
    """One of the least loaded, as all of them reported the last time; what was sent since then nobody counts.

    The bulletin board of Mitzenmacher, How Useful Is Old Information?, IEEE TPDS 11(1), 2000.
    """

    def __init__(self, loads: Sequence[int], random: Random, every: int = STALE) -> None:
        super().__init__(loads, random)
        self._fraction = fractions(random).__next__
        self._every = every
        self._until = 0
        self._least = [0]

    def pick(self, now: int) -> int:
        if now >= self._until:
            low = min(self.loads)
            self._least = [replica for replica, load in enumerate(self.loads) if load == low]
            self._until = now - now % self._every + self._every
        return self._least[int(self._fraction() * len(self._least))]


class ByConnection(Balancer):
    """A replica is drawn for each connection when it is made; requests come on any connection, and stay on theirs."""

    def __init__(self, loads: Sequence[int], random: Random, each: int = CONNECTIONS) -> None:
        super().__init__(loads, random)
        self._ends = random.integers(len(loads), size=each * len(loads)).tolist()
        self._draw = draws(random, len(self._ends)).__next__

    def pick(self, now: int) -> int:
        return self._ends[self._draw()]  # type: ignore[no-any-return]


Maker = Callable[[Sequence[int], Random], Balancer]
BALANCERS: dict[str, Maker] = {
    "by connection": ByConnection,
    "random": AtRandom,
    "round-robin": RoundRobin,
    "stale least": Stale,
    "two choices": TwoChoices,
    "least": Least,
}
