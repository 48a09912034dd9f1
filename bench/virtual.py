"""The Batcher in virtual time: the same class, a loop without a clock, an accelerator that is on time.

A request takes no time to send, to read or to answer here, so what simulate() says is what the rule by which batches
are cut costs by itself; the difference to a measurement is the server, the kernel and the client.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from virtex.batch.batcher import Batcher
from virtex.batch.company import Peer
from virtex.batch.ring import Batch, Ticket
from virtex.batch.steps import Steps

from .apps import QUEUE, busy_ns
from .engine import Nothing

Times = npt.NDArray[np.int64]  # nanoseconds


class Timer:
    """What call_later() gives."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """The part of an event loop that the batcher uses. Time passes when nothing is left to do at one instant."""

    def __init__(self) -> None:
        self.now = 1
        self._ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[int, int, Timer, Callable[..., Any], tuple[Any, ...]]] = []
        self._made = 0  # timers; those of one instant fire in the order in which they were made

    def clock(self) -> int:
        return self.now

    def call_soon(self, f: Callable[..., Any], *args: Any) -> None:
        self._ready.append((f, args))

    def call_later(self, seconds: float, f: Callable[..., Any], *args: Any) -> Timer:
        return self.call_at(self.now + round(seconds * 1e9), f, *args)

    def call_at(self, at: int, f: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer()
        self._made += 1
        heapq.heappush(self._timers, (at, self._made, timer, f, args))
        return timer

    def run(self, times: Sequence[int], arrive: Callable[[int], None]) -> None:
        """Call arrive(at) at each of the times, ascending, and whatever else is due; return when nothing is."""
        ready, timers = self._ready, self._timers
        arrivals = iter(times)
        arrival = next(arrivals, None)
        while True:
            while ready:
                f, args = ready.popleft()
                f(*args)
            if arrival is not None and (not timers or arrival <= timers[0][0]):
                self.now = arrival
                arrive(arrival)
                arrival = next(arrivals, None)
            elif timers:
                self.now, _, timer, f, args = heapq.heappop(timers)
                if not timer.cancelled:
                    f(*args)
            else:
                return


class Punctual:
    """The accelerator behind a thread: takes two batches, runs one after the other, each in exactly its time."""

    depth = 2

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._free = 0
        self.batches = 0

    def start(self, batch: Batch, steps: Steps, done: Callable[[Batch], None]) -> None:
        self.batches += 1
        self._free = max(self._loop.now, self._free) + busy_ns(batch.size)
        batch.outcomes = list(batch.work)
        self._loop.call_at(self._free, done, batch)


class Simulation:
    """Requests of one item each; the connection answered last sends next, and where all wait, another is made."""

    def __init__(self, max_batch_size: int, window: float) -> None:
        self.loop = VirtualLoop()
        self.executor = Punctual(self.loop)
        self.batcher = Batcher(self.loop, max_batch_size, window, QUEUE * 100, self.loop.clock)  # type: ignore[arg-type]
        self.batcher.run_with(self.executor, Steps(Nothing()))
        self.latencies: list[int] = []
        self.idle: list[Peer] = []

    def arrive(self, now: int) -> None:
        peer = self.idle.pop() if self.idle else Peer()
        company = self.batcher.company
        company.arrives(peer)
        self.batcher.admit(Request(self, peer), now)


class Request(Ticket):
    __slots__ = ("peer", "simulation")

    def __init__(self, simulation: Simulation, peer: Peer) -> None:
        super().__init__()
        self.simulation = simulation
        self.peer = peer
        self.items = [None]

    def deliver(self, rows: Any, error: Exception | None) -> None:
        simulation = self.simulation
        now = simulation.loop.now
        simulation.latencies.append(now - self.born)
        simulation.batcher.company.settled(self.peer, now)
        simulation.idle.append(self.peer)


def simulate(times: Times, max_batch_size: int, window: float) -> tuple[Times, float]:
    """The latency of each request, in the order of their answers, and the mean size of a batch.

    times: when they arrive. max_batch_size 1: no batching.
    """
    simulation = Simulation(max_batch_size, window)
    simulation.loop.run([int(at) + 1 for at in times], simulation.arrive)
    if len(simulation.latencies) != len(times):
        raise SystemExit(f"{len(times)} requests, {len(simulation.latencies)} answers: the batcher lost some")
    return np.array(simulation.latencies, np.int64), len(times) / simulation.executor.batches


def simulate_fixed_window(
    times: Times, max_batch_size: int, window: float, closes_when_busy: bool = False
) -> tuple[Times, float]:
    """The same for a batcher that waits for more until a batch is full, or `window` seconds after its first item came.

    While the accelerator is busy a batch goes on growing; closes_when_busy: it is closed all the same and waits in
    line.
    """
    wait = round(window * 1e9)
    latencies = np.empty_like(times)
    first = free = batches = 0
    while first < len(times):
        at = int(times[first]) + wait
        last = first + max_batch_size - 1
        if last < len(times):
            at = min(at, int(times[last]))
        starts = max(at, free)
        stop = int(np.searchsorted(times[first : last + 1], at if closes_when_busy else starts, "right")) + first
        free = starts + busy_ns(stop - first)
        latencies[first:stop] = free - times[first:stop]
        first = stop
        batches += 1
    return latencies, len(times) / batches
