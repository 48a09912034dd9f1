"""The Batcher in virtual time: the same class, a loop without a clock, a model that is on time.

A request takes no time to send, to read or to answer here, so what simulate() says is what the rule by which batches
are cut costs by itself; the difference to a measurement is the server, the kernel and the client.

Rules: knows the batcher and its ring; no sockets, no clock, no handler.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..batch.batcher import Batcher
from ..batch.company import Peer
from ..batch.ring import Batch, Ticket
from ..batch.steps import Steps

Times = npt.NDArray[np.int64]  # nanoseconds
Cost = Callable[[int], int]  # items of a batch -> nanoseconds

ROOM = 10_000_000  # items that may wait: what is refused has no latency


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
        """Call arrive(at) at each of the times, ascending, and whatever else is due; return when nothing is.

        What arrived while something held the loop comes ahead of what is ready, as a loop reads its sockets.
        """
        ready, timers = self._ready, self._timers
        arrivals = iter(times)
        arrival = next(arrivals, None)
        while True:
            while arrival is not None and arrival <= self.now:
                arrive(arrival)
                arrival = next(arrivals, None)
            if ready:
                f, args = ready.popleft()
                f(*args)
            elif arrival is not None and (not timers or arrival <= timers[0][0]):
                self.now = arrival
            elif timers:
                at, _, timer, f, args = heapq.heappop(timers)
                if not timer.cancelled:
                    self.now = max(self.now, at)
                    f(*args)
            else:
                return


class Punctual:
    """A model behind a thread: takes two batches, runs one after the other, each in exactly its time."""

    depth = 2

    def __init__(self, loop: VirtualLoop, cost: Cost) -> None:
        self._loop = loop
        self._cost = cost
        self._free = 0
        self.batches = 0

    def start(self, batch: Batch, steps: Steps, done: Callable[[Batch], None]) -> None:
        self.batches += 1
        self._free = max(self._loop.now, self._free) + self._cost(batch.size)
        batch.outcomes = list(batch.work)
        self._loop.call_at(self._free, done, batch)


class Inline(Punctual):
    """A model on the loop, which does nothing else meanwhile."""

    depth = 1

    def start(self, batch: Batch, steps: Steps, done: Callable[[Batch], None]) -> None:
        self.batches += 1
        self._loop.now += self._cost(batch.size)
        batch.outcomes = list(batch.work)
        done(batch)


EXECUTORS = {"inline": Inline, "thread": Punctual}


class _Nothing:
    """A handler whose methods nobody calls here."""

    def process_request(self, data: list[Any]) -> Any: ...

    def run_inference(self, model_input: Any) -> Any: ...

    def process_response(self, model_output_item: Any) -> Any: ...


class Simulation:
    """Requests of one item each; the connection answered last sends next, and where all wait, another is made."""

    def __init__(self, cost: Cost, max_batch_size: int, window: float, executor: str) -> None:
        self.loop = VirtualLoop()
        self.executor = EXECUTORS[executor](self.loop, cost)
        self.batcher = Batcher(self.loop, max_batch_size, window, ROOM, self.loop.clock)  # type: ignore[arg-type]
        self.batcher.run_with(self.executor, Steps(_Nothing()))
        self.latencies: list[int] = []
        self.idle: list[Peer] = []

    def arrive(self, at: int) -> None:
        peer = self.idle.pop() if self.idle else Peer()
        self.batcher.company.arrives(peer)
        self.batcher.admit(Request(self, peer, at), self.loop.now)


class Request(Ticket):
    __slots__ = ("at", "peer", "simulation")

    def __init__(self, simulation: Simulation, peer: Peer, at: int) -> None:
        super().__init__()
        self.simulation = simulation
        self.peer = peer
        self.at = at
        self.items = [None]

    def deliver(self, rows: Any, error: Exception | None) -> None:
        simulation = self.simulation
        now = simulation.loop.now
        simulation.latencies.append(now - self.at)
        simulation.batcher.company.settled(self.peer, now)
        simulation.idle.append(self.peer)


def simulate(
    times: Times, cost: Cost, max_batch_size: int, window: float, executor: str = "thread"
) -> tuple[Times, float]:
    """The latency of each request, in the order of their answers, and the mean size of a batch.

    times: when they arrive, ascending. cost: how long a batch takes. max_batch_size: 1 is no batching. window: seconds,
    max_time_on_queue. executor: "thread" or "inline". Raises RuntimeError if a request got no answer.
    """
    simulation = Simulation(cost, max_batch_size, window, executor)
    simulation.loop.run([int(at) + 1 for at in times], simulation.arrive)
    if len(simulation.latencies) != len(times):
        raise RuntimeError(f"{len(times)} requests, {len(simulation.latencies)} answers: the batcher lost some")
    return np.array(simulation.latencies, np.int64), len(times) / simulation.executor.batches
