"""The accelerator of bench/batching.py in virtual time: behind the Batcher, and behind other rules.

virtex/load/virtual.py has the loop without a clock; `virtex tune` proposes by it.
"""

from __future__ import annotations

import numpy as np

from virtex.load import virtual
from virtex.load.virtual import Times

from .apps import busy_ns


def simulate(times: Times, max_batch_size: int, window: float) -> tuple[Times, float]:
    """The latency of each request, in the order of their answers, and the mean size of a batch.

    times: when they arrive. max_batch_size 1: no batching.
    """
    return virtual.simulate(times, busy_ns, max_batch_size, window)


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
