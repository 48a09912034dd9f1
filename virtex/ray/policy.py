"""How many replicas there should be, of what they say of their load. Ray's controller asks it, some times a second.

Rules: the standard library alone, and no clock: Ray sends this module by value to a process that may have no Virtex.
wanted() is the policy, of numbers; QueueWait reads them from Ray's context. How long a wish must last until it is met
is Ray's business: upscale_delay_s, downscale_delay_s.

    items wait longer than the target        more replicas, in proportion, at most twice as many at once
    ... but replicas are still starting      none yet: those that come will help
    they wait less than half of it           as many as it takes for models that are busy 0.7 of the time
    in between                               as many as there are
    nobody says anything                     as many as there are

The wait decides upwards, not how busy a model is: a busy one that fills its batches is what is wanted. Downwards the
wait says nothing, for it is short with two replicas and with twenty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

TARGET_SECONDS = 0.1  # that items may wait on average
MOST_AT_ONCE = 2.0  # times as many replicas in one step: a wait grows without a bound, and says little of how many
CALM = 0.5  # of the target: a wait below it lets replicas go
BUSY = 0.7  # of the time a model is busy where replicas were let go


class Reading(NamedTuple):
    """What a replica said of the last seconds. wait: of its items, in seconds. busy: its models' share of the time."""

    wait: float
    busy: float


def wanted(
    serving: int, intended: int, readings: Sequence[Reading], requests: float, held: float, target: float
) -> int:
    """How many replicas there should be.

    serving: how many there are; intended: how many there are to be by the last decision. readings: those of replicas
    that have said something, and not long ago. requests: that are in the system. held: of these, by Ray's proxies,
    because each replica has as many as it may. target: seconds that items may wait.
    """
    if not serving:
        return max(intended, 1) if requests > 0 else intended
    if not readings:
        return intended
    wait = sum([each.wait for each in readings]) / len(readings)
    if held > serving:  # more than one each: some are always on their way
        wait = max(wait, MOST_AT_ONCE * target)
    if wait > target:
        return intended if serving < intended else math.ceil(serving * min(wait / target, MOST_AT_ONCE))
    if wait >= CALM * target:
        return intended
    busy = sum([each.busy for each in readings]) / len(readings) * serving
    needed = max(math.ceil(busy / BUSY - 1e-9), 1 if requests > 0 else 0)
    return min(intended, needed)


def bounded(replicas: int, least: int, most: int) -> int:
    """Within the bounds of the deployment."""
    return max(least, min(most, replicas))


def is_wait(value: object) -> bool:
    """Whether it is a time that items may wait: seconds above 0."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf  # type: ignore[operator]


class QueueWait:
    """The policy as Ray calls it. target_queue_wait: seconds that items may wait on average."""

    def __init__(self, target_queue_wait: float = TARGET_SECONDS) -> None:
        self._target = target_queue_wait

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Ray's AutoscalingContext: how many replicas, and nothing to be remembered."""
        replicas = wanted(
            context.current_num_replicas,
            context.target_num_replicas,
            readings_of(context),
            context.total_num_requests or 0.0,
            context.total_queued_requests or 0.0,
            self._target,
        )
        return bounded(replicas, context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas), {}


def readings_of(context: Any) -> list[Reading]:
    """What each replica said over the window that Ray looks back on; who has not said anything of late is left out.

    So is who says what is no number: one replica is not to end the decisions about all.
    """
    config = context.config
    since = context.current_time - config.look_back_period_s - config.metrics_interval_s
    means, series = context.aggregated_metrics or {}, context.raw_metrics or {}
    waits, busy = means.get("queue_wait", {}), means.get("busy", {})
    return [
        Reading(wait, busy[replica])
        for replica, wait in waits.items()
        if replica in busy
        and math.isfinite(wait + busy[replica])
        and _is_fresh(series.get("queue_wait", {}).get(replica, ()), since)
    ]


def _is_fresh(points: Iterable[Any], since: float) -> bool:
    return any(point.timestamp >= since for point in points)
