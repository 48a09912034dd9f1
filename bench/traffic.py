"""When requests arrive, for bench/fleet.py: ascending nanoseconds, from a seed.

poisson  independent users, each of whom sends one request: gaps are exponential.
groups   independent users, each of whom sends several requests at one instant (batch Poisson): users come at
         random, the number of their requests is geometric with a mean of `mean`, P(k) = (1 - 1/mean)^(k-1) / mean.
waves    all users send more at times (Markov-modulated Poisson, two states): the rate is `low` or `high`, and
         stays so for times that are exponential, with means of `calm` and `burst` seconds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]


def poisson(random: np.random.Generator, rate: float, count: int) -> Times:
    """rate: requests per second."""
    return np.cumsum(random.exponential(1e9 / rate, count)).astype(np.int64) + 1


def groups(random: np.random.Generator, rate: float, count: int, mean: float = 16.0) -> Times:
    """rate: requests per second, all together."""
    sizes = random.geometric(1 / mean, round(count / mean * 1.5) + 10)
    return np.repeat(poisson(random, rate / mean, len(sizes)), sizes)[:count]


def waves(
    random: np.random.Generator, rate: float, seconds: float, peak: float, calm: float = 2.0, burst: float = 0.5
) -> Times:
    """rate: on average; peak: how many times it is `high`, at most (calm + burst) / burst."""
    high = rate * peak
    low = (rate * (calm + burst) - high * burst) / calm
    if low < 0:
        raise ValueError(f"peak: expected {(calm + burst) / burst:g} at most, got {peak:g}")
    parts, at, is_burst = [], 0.0, False
    while at < seconds:
        lasts = min(float(random.exponential(burst if is_burst else calm)), seconds - at)
        many = random.poisson((high if is_burst else low) * lasts)
        parts.append(np.sort(random.uniform(at, at + lasts, many)))
        at, is_burst = at + lasts, not is_burst
    return (np.concatenate(parts) * 1e9).astype(np.int64) + 1
