"""A small fleet in virtual time whose replicas are Virtex's own Batcher, with its own rule of company.

It says what bench/replicas.py has to say, request by request, and what real workers are held against. It takes ten
times as long. Rules: as those of virtex/load/virtual.py, from which it has its loop and its engine.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from virtex.batch.batcher import Batcher
from virtex.batch.company import Peer
from virtex.batch.ring import Batch, Ticket
from virtex.batch.steps import Steps
from virtex.load.virtual import Punctual, VirtualLoop, _Nothing

from .balancers import Balancer, Maker
from .replicas import Engine


class Connection(Peer):
    """worker: the replica at its other end."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self.worker = worker


class Pool:
    """The connections that a balancer keeps to each replica: the one answered last sends next."""

    def __init__(self, balancer: Balancer, replicas: int) -> None:
        self._balancer = balancer
        self._idle: list[list[Connection]] = [[] for _ in range(replicas)]

    def take(self, now: int) -> Connection:
        worker = self._balancer.pick(now)
        idle = self._idle[worker]
        return idle.pop() if idle else Connection(worker)

    def give(self, connection: Connection) -> None:
        self._idle[connection.worker].append(connection)


class Clients:
    """The connections of `virtex loadtest` straight to gunicorn's workers: the one that is idle longest sends next.

    `first` of them are there at the start; where all wait, another one is made. It stays with its worker, the one that
    had the fewest then, as virtex/workers/share.py sees to it. So requests are balanced by connection.
    """

    def __init__(self, replicas: int, first: int) -> None:
        self._made = [0] * replicas
        self._idle: deque[Connection] = deque()
        for _ in range(first):
            self._idle.append(self._make())

    def _make(self) -> Connection:
        worker = self._made.index(min(self._made))
        self._made[worker] += 1
        return Connection(worker)

    def take(self, now: int) -> Connection:
        return self._idle.popleft() if self._idle else self._make()

    def give(self, connection: Connection) -> None:
        self._idle.append(connection)


class Exact:
    """As replicas.Fleet, with the same figures after run(), but for `area` and `total`."""

    def __init__(self, engine: Engine, replicas: int, maker: Maker | None, random: np.random.Generator) -> None:
        self.engine = engine
        self.loop = VirtualLoop()
        self.loads = [0] * replicas
        self.balancer = None if maker is None else maker(self.loads, random)
        self.pool: Any = None if self.balancer is None else Pool(self.balancer, replicas)
        self.batchers = []
        for _ in range(replicas):
            batcher = Batcher(self.loop, engine.most, engine.window / 1e9, engine.room, self.loop.clock)  # type: ignore[arg-type]
            batcher.run_with(Counted(self), Steps(_Nothing()))
            self.batchers.append(batcher)
        self.start = self.end = self.refused = self.busy = self.answered = self.offered = 0
        self.latencies, self.waits, self.sizes = array("q"), array("q"), array("q")

    def run(self, times: Sequence[int], start: int, end: int, progress: Callable[[int], None] | None = None) -> None:
        self.start, self.end = start, end
        self.loop.run(times, self._arrive)
        if any(self.loads):
            raise RuntimeError(f"{sum(self.loads)} requests were lost")

    def _arrive(self, at: int) -> None:
        connection = self.pool.take(at)
        batcher = self.batchers[connection.worker]
        counts = self.start <= at < self.end
        self.offered += counts
        if batcher.waiting >= self.engine.room:
            self.refused += counts
            self.pool.give(connection)
            return
        batcher.company.arrives(connection)
        self.change(connection.worker, 1)
        batcher.admit(Request(self, connection, at), self.loop.now)

    def change(self, replica: int, by: int) -> None:
        load = self.loads[replica]
        self.loads[replica] = load + by
        if self.balancer is not None:
            self.balancer.moved(replica, load, load + by)


class Counted(Punctual):
    """An engine that counts its batches for its fleet."""

    def __init__(self, fleet: Exact) -> None:
        super().__init__(fleet.loop, fleet.engine.busy)
        self._fleet = fleet

    def start(self, batch: Batch, steps: Steps, done: Callable[[Batch], None]) -> None:
        fleet, begins = self._fleet, max(self._loop.now, self._free)
        super().start(batch, steps, done)
        fleet.busy += max(min(self._free, fleet.end) - max(begins, fleet.start), 0)
        if fleet.start <= self._free < fleet.end:
            fleet.answered += batch.size
            fleet.sizes.append(batch.size)


class Request(Ticket):
    __slots__ = ("at", "connection", "fleet")

    def __init__(self, fleet: Exact, connection: Connection, at: int) -> None:
        super().__init__()
        self.fleet, self.connection, self.at = fleet, connection, at
        self.items = [None]

    def deliver(self, rows: Any, error: Exception | None) -> None:
        fleet, connection = self.fleet, self.connection
        now = fleet.loop.now
        fleet.batchers[connection.worker].company.settled(connection, now)
        fleet.pool.give(connection)
        fleet.change(connection.worker, -1)
        if self.at >= fleet.start:
            fleet.latencies.append(now - self.at)
            fleet.waits.append(self.cut_at - self.at)
