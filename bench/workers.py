"""Real workers under real load, beside the simulation of the same arrivals: a part of bench/fleet.py.

`virtex serve --workers N` runs a handler that sleeps for 20 ms and 2 ms per item (executor="thread"), so two cores have
time for four of them. `virtex loadtest`'s machinery sends on a schedule, at random, straight to the port. A connection
is accepted by the worker that has the fewest and stays with it, so requests are balanced by connection: the client
sends on the connection that is idle longest. The simulation has the same client, the same connections and the
Batcher itself, and no network; what it leaves out is what a real request takes beside its batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import orjson

from virtex import HttpMessage
from virtex.load import schedule
from virtex.load.drive import AT_FIRST
from virtex.load.payloads import payload_of
from virtex.load.plan import Plan
from virtex.load.run import run

from . import apps
from .balancers import BALANCERS
from .exact import Clients, Exact
from .host import PYTHON, Running, cpus_apart, post, running
from .replicas import Engine, Fleet

ENGINE = Engine(
    apps.REPLICA_BASE_NS, apps.REPLICA_ITEM_NS, apps.REPLICA_BATCH, round(apps.WINDOW * 1e9), room=apps.QUEUE
)
SETTLED = 1.0  # seconds at the start of a run that are not counted
PATIENCE = 60.0  # seconds until all workers have answered
BESIDE = ("random", "least")  # ways of balancing that the same arrivals are simulated with, to see which one fits

Found = dict[str, Any]


def check(port: int) -> str | None:
    came = post(port, b'{"data":[7]}')
    return None if came is None else "" if came[0] == 200 else f"expected 200, got {came}"


def measure(counts: Sequence[int], loads: Sequence[float], seconds: float, runs: int) -> list[Found]:
    """For each number of workers and each load, the medians of several runs and of their simulations."""
    rows = []
    for count in counts:

        def command(port: str, count: int = count) -> list[str]:
            serve = [*PYTHON, "-m", "virtex", "serve", "bench.apps:replica", "--workers", str(count)]
            return [*serve, "--host", "127.0.0.1", "--port", port, "--log-level", "warning"]

        with running("replica", command, check, cpus_apart()[0]) as server:
            await_all(server, count)
            for load in loads:
                each = [one(server, count, load, seconds, seed) for seed in range(1, runs + 1)]
                rows.append(middle(each))
                print(f"real: {count} workers, load {load:g}: {rows[-1]['measured']}", file=sys.stderr, flush=True)
    return rows


def plan_of(server: Running, workers: int, load: float, seconds: float, seed: int) -> Plan:
    return Plan(
        f"http://127.0.0.1:{server.port}/",
        [payload_of(HttpMessage(data=[0]))],
        rate=load * workers * ENGINE.capacity,
        seconds=seconds,
        arrivals="poisson",
        warmup=0.5,
        seed=seed,
        keep=True,
    )


def await_all(server: Running, workers: int) -> None:
    """Until every worker has answered: while one loads, the others get its connections."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answers = run(plan_of(server, workers, 0.3, 1.0, 0)).answers
        seen = {worker for answer in answers if answer.status == 200 for _, worker in orjson.loads(answer.body)["data"]}
        if len(seen) == workers:
            return
        if time.monotonic() > deadline:
            raise SystemExit(
                f"expected answers of {workers} workers within {PATIENCE:g} s, got those of {sorted(seen)}"
            )


def one(server: Running, workers: int, load: float, seconds: float, seed: int) -> Found:
    """One run, and the simulations of its arrivals."""
    plan = plan_of(server, workers, load, seconds, seed)
    came = run(plan)
    if came.answered != came.scheduled:
        raise SystemExit(f"{came.scheduled} requests, {came.answered} right answers: {dict(came.errors)}")
    first = came.answers[0].scheduled
    at = np.array([answer.scheduled - first for answer in came.answers])
    latencies = np.array([answer.done - answer.scheduled for answer in came.answers])
    said = np.array([orjson.loads(answer.body)["data"][0] for answer in came.answers])
    counted = at > SETTLED * 1e9
    done = at + latencies
    span = (float(at[-1]) - SETTLED * 1e9) / 1e9
    measured = {
        "per_second": round(float(np.count_nonzero((done > SETTLED * 1e9) & (done <= at[-1]))) / span, 1),
        **figures(latencies[counted], 1 / float(np.mean(1 / said[counted, 0]))),
        "shares": [round(float(np.mean(said[counted, 1] == worker)), 3) for worker in np.unique(said[:, 1])],
        "late_p99_ms": round(came.lateness.percentile(99) * 1e3, 2),
    }
    times = [at + 1 for part in schedule.arrivals(plan, 0, None, plan.seconds) for at in part]
    return {"workers": workers, "load": load, "measured": measured, "simulated": simulated(times, workers)}


def simulated(times: list[int], workers: int) -> dict[str, Found]:
    """The same arrivals: by connection, as it is, and as if something else balanced them."""
    start = int(SETTLED * 1e9)
    exact = Exact(ENGINE, workers, None, np.random.default_rng(0))
    exact.pool = Clients(workers, AT_FIRST)
    fleets: dict[str, Exact | Fleet] = {"by connection": exact}
    fleets |= {name: Fleet(ENGINE, workers, BALANCERS[name], np.random.default_rng(0)) for name in BESIDE}
    found = {}
    for name, fleet in fleets.items():
        fleet.run(times, start, times[-1])
        per_second = round(fleet.answered * 1e9 / (times[-1] - start), 1)
        found[name] = {
            "per_second": per_second,
            **figures(np.array(fleet.latencies), len(fleet.latencies) and float(np.mean(fleet.sizes))),
        }
    return found


def figures(latencies: Any, size: float) -> Found:
    p50, p99 = np.percentile(latencies, (50, 99)) / 1e6
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "size": round(size, 2)}


def middle(runs: list[Found]) -> Found:
    """The median of each figure; every run is kept."""

    def medians(of: list[Found]) -> Found:
        return {key: round(median([one[key] for one in of]), 2) for key in of[0] if key != "shares"}

    return {
        "workers": runs[0]["workers"],
        "load": runs[0]["load"],
        "measured": medians([one["measured"] for one in runs]),
        "simulated": {name: medians([one["simulated"][name] for one in runs]) for name in runs[0]["simulated"]},
        "runs": runs,
    }
