"""A fleet of replicas in virtual time: each a batcher like ours before an engine that takes a + b * n for a batch of n.

The rule by which batches are cut is that of virtex/batch/batcher.py with executor="thread", for requests of one item
that arrive whole, written again for speed: ten thousand replicas and millions of requests in a minute.
tests/test_fleet.py holds it against the Batcher itself (bench/exact.py), on the same arrivals.

    The engine is free: a batch is cut when it is full, when nobody is expected who could join it, or when its oldest
    request has waited for max_time_on_queue. Expected is who was answered by this replica within that time and has sent
    nothing since: the balancer's kept connections, of which the one answered last sends next, as nginx keeps them.
    The engine is busy: a batch grows until it is full; one full batch may wait ahead of the queue.
    A request that finds max_queue_size in the queue is refused, and does not come again.

Neither the network, nor parsing, nor the balancer takes any time here.

Rules: whole nanoseconds; no clock, no socket, no randomness but the balancer's.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from virtex.batch.batcher import GRAIN

from .balancers import Balancer, Maker

Times = npt.NDArray[np.int64]  # nanoseconds
REPORT = 1 << 18  # requests between two signs of progress


class Engine(NamedTuple):
    """What a replica is: base + item * n ns for a batch of n, and its settings. window: ns, max_time_on_queue."""

    base: int
    item: int
    most: int  # max_batch_size
    window: int
    room: int  # max_queue_size

    def busy(self, size: int) -> int:
        return self.base + self.item * size

    @property
    def capacity(self) -> float:
        """Requests per second of one replica whose batches are all full: no rule can do more."""
        return self.most * 1e9 / self.busy(self.most)


class Replica:
    __slots__ = ("idle", "next", "number", "running", "slowness", "timer", "waiting")

    def __init__(self, number: int, slowness: int) -> None:
        self.number = number
        self.slowness = slowness  # its engine takes so many times as long
        self.waiting: list[int] = []  # when each of them arrived
        self.running: list[int] = []
        self.next: list[int] = []  # a full batch that was cut while another one runs
        self.idle: list[list[int]] = []  # connections: when they were answered, and how many; the latest at the end
        self.timer = 0  # its number; 0: none runs


class Fleet:
    """Replicas behind a balancer, the first `slow` of which take twice as long.

    After run(): what became of the requests that arrived from `start` on.

    latencies, waits: ns of each that was answered, until its answer and until its batch was cut. sizes: of batches.
    busy: ns of engines within the run. answered: within the run. area: ns that requests spent here, all together,
    counted as they come and go; total: the same, from each one's own times (Little's law).
    """

    def __init__(self, engine: Engine, replicas: int, maker: Maker, random: np.random.Generator, slow: int = 0) -> None:
        self.engine = engine
        self.replicas = [Replica(number, 2 if number < slow else 1) for number in range(replicas)]
        self.loads = [0] * replicas
        self.balancer: Balancer = maker(self.loads, random)
        self._watches = type(self.balancer).watches()
        self.now = self.start = self.end = 0
        self.inside = self.refused = self.busy = self.answered = self.area = self.total = self.offered = 0
        self.latencies, self.waits, self.sizes = array("q"), array("q"), array("q")
        self._events: list[tuple[int, int, Replica, bool]] = []  # when, a number of its own, whose, whether a timer's
        self._made = 0
        self._soon: list[Replica] = []  # they look at a cut when all that comes at this instant is there

    def run(self, times: Sequence[int], start: int, end: int, progress: Callable[[int], None] | None = None) -> None:
        """Send a request at each of the times, ascending, and wait for all answers.

        start, end: what is counted lies between. Raises RuntimeError if a request is lost, or Little's law is broken.
        """
        self.start, self.end = start, end
        events, soon, arrive = self._events, self._soon, self._arrive
        for number, at in enumerate(times):
            if at > self.now:
                if soon:
                    self._look()
                while events and events[0][0] < at:
                    self._happen()
                self.area += self.inside * (at - self.now)
                self.now = at
            arrive(at)
            if progress is not None and not number % REPORT:
                progress(number)
        self._look()
        while events:
            self._happen()
        if self.inside or self.area != self.total:
            raise RuntimeError(f"{self.inside} requests were lost; {self.area} ns of them against {self.total}")

    def _arrive(self, at: int) -> None:
        number = self.balancer.pick(at)
        replica = self.replicas[number]
        counts = self.start <= at < self.end
        self.offered += counts
        waiting = replica.waiting
        if len(waiting) >= self.engine.room:
            self.refused += counts
            return
        idle = replica.idle
        if idle:
            last = idle[-1]
            last[1] -= 1
            if not last[1]:
                idle.pop()
        waiting.append(at)
        load = self.loads[number]
        self.loads[number] = load + 1
        if self._watches:
            self.balancer.moved(number, load, load + 1)
        self.inside += 1
        if not replica.running or len(waiting) >= self.engine.most:
            self._soon.append(replica)

    def _look(self) -> None:
        for replica in self._soon:
            self._cut(replica)
        self._soon.clear()

    def _happen(self) -> None:
        at, number, replica, is_timer = heapq.heappop(self._events)
        if is_timer and replica.timer != number:
            return
        self.area += self.inside * (at - self.now)
        self.now = at
        if is_timer:
            replica.timer = 0
            self._cut(replica)
        else:
            self._done(replica)

    def _later(self, at: int, replica: Replica, is_timer: bool) -> int:
        self._made += 1
        heapq.heappush(self._events, (at, self._made, replica, is_timer))
        return self._made

    def _cut(self, replica: Replica) -> None:
        """Take batches from the queue, as many as may be."""
        while (waiting := replica.waiting) and not replica.next:
            is_full = len(waiting) >= self.engine.most
            if not is_full and (replica.running or self._waits(replica)):
                return
            batch = waiting[: self.engine.most]
            del waiting[: self.engine.most]
            replica.timer = 0
            if batch[0] >= self.start:
                self.waits.extend([self.now - at for at in batch])
            if replica.running:
                replica.next = batch
            else:
                self._start(replica, batch)

    def _waits(self, replica: Replica) -> bool:
        """Whether a batch that is not full waits for company, as Batcher._why() says; then a timer runs."""
        window, idle, now = self.engine.window, replica.idle, self.now
        if not idle or idle[-1][0] + window <= now:
            return False
        at = min(replica.waiting[0], idle[-1][0]) + window
        if at <= now:
            return False
        if not replica.timer:
            replica.timer = self._later(now + -(-(at - now) // GRAIN) * GRAIN, replica, True)
        return True

    def _start(self, replica: Replica, batch: list[int]) -> None:
        replica.running = batch
        done = self.now + self.engine.busy(len(batch)) * replica.slowness
        self.busy += max(min(done, self.end) - max(self.now, self.start), 0)
        self._later(done, replica, False)

    def _done(self, replica: Replica) -> None:
        now, batch, idle = self.now, replica.running, replica.idle
        size = len(batch)
        took = [now - at for at in batch]
        self.total += sum(took)
        if batch[0] >= self.start:
            self.latencies.extend(took)
        if self.start <= now < self.end:
            self.answered += size
            self.sizes.append(size)
        self.inside -= size
        load = self.loads[replica.number]
        self.loads[replica.number] = load - size
        if self._watches:
            self.balancer.moved(replica.number, load, load - size)
        if idle and idle[-1][0] + self.engine.window <= now:
            idle.clear()  # nobody expects them any more: they are as good as new ones
        idle.append([now, size])
        replica.running = []
        if replica.next:
            self._start(replica, replica.next)
            replica.next = []
        self._cut(replica)
