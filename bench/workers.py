"""Real workers under real load, beside the simulation of the same arrivals: a part of bench/fleet.py.

`virtex serve --workers N` runs a handler that sleeps for 20 ms and 2 ms per item (executor="thread"), so two cores have
time for four of them. `virtex loadtest`'s machinery sends on a schedule, at random, straight to the port. A connection
is accepted by the worker that has the fewest and stays with it, so requests are balanced by connection: the client
sends on the connection that is idle longest. The simulation has the requests as they were sent, the same connections,
the Batcher itself, and a and b fitted to what the batches took; no network. What it leaves out is what a real request
takes beside its batch. Latency counts from when a request was sent: how late the client was is said beside it.
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
from virtex.load.drive import AT_FIRST
from virtex.load.fit import fit
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
QUIET_MS = (
    10.0  # a run in which 1 % of the requests were sent later than that is one of the machine, not of the workers
)
TRIES = 3  # times as many runs are made, where too few are quiet
BESIDE = ("random", "least")  # ways of balancing that the same arrivals are simulated with, to see which one fits

Found = dict[str, Any]


def check(port: int) -> str | None:
    came = post(port, b'{"data":[7]}')
    return None if came is None else "" if came[0] == 200 else f"expected 200, got {came}"


def measure(counts: Sequence[int], loads: Sequence[float], seconds: float, runs: int) -> list[Found]:
    """For each number of workers and each load, the medians of several runs and of their simulations.

    Runs in which the client was late are made again, a few times; those in which it was least late count.
    """
    rows = []
    for count in counts:

        def command(port: str, count: int = count) -> list[str]:
            serve = [*PYTHON, "-m", "virtex", "serve", "bench.apps:replica", "--workers", str(count)]
            return [*serve, "--host", "127.0.0.1", "--port", port, "--log-level", "warning"]

        with running("replica", command, check, cpus_apart()[0]) as server:
            await_all(server, count)
            for load in loads:
                each: list[Found] = []
                while len(each) < TRIES * runs and sum(map(is_quiet, each)) < runs:
                    each.append(one(server, count, load, seconds, len(each) + 1))
                rows.append({"seconds": seconds, "counted": runs} | middle(each, runs))
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
        seen = {
            worker for answer in answers if answer.status == 200 for _, worker, _ in orjson.loads(answer.body)["data"]
        }
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
    answers = sorted(came.answers, key=lambda answer: answer.sent)
    at = np.array([answer.sent for answer in answers]) - answers[0].sent + 1
    latencies = np.array([answer.done - answer.sent for answer in answers])
    said = np.array([orjson.loads(answer.body)["data"][0] for answer in answers])
    start, end = round(SETTLED * 1e9), int(at[-1])
    done = at + latencies
    measured = {
        "per_second": round(float(np.count_nonzero((done > start) & (done <= end))) * 1e9 / (end - start), 1),
        **figures(latencies[at > start], 1 / float(np.mean(1 / said[at > start, 0]))),
        "shares": [round(float(np.mean(said[:, 1] == worker)), 3) for worker in np.unique(said[:, 1])],
        "late_p99_ms": round(came.lateness.percentile(99) * 1e3, 2),
    }
    cost = fit([(size, took / 1e9) for size, _, took in {tuple(row) for row in said.tolist()}])
    engine = ENGINE._replace(base=round(cost.base * 1e9), item=round(cost.per_item * 1e9))
    measured |= {"base_ms": round(cost.base * 1e3, 3), "item_ms": round(cost.per_item * 1e3, 3)}
    return {
        "workers": workers,
        "load": load,
        "measured": measured,
        "simulated": simulated(at.tolist(), workers, engine),
    }


def simulated(times: list[int], workers: int, engine: Engine) -> dict[str, Found]:
    """The same arrivals: by connection, as it is, and as if something else balanced them."""
    start, end = round(SETTLED * 1e9), times[-1]
    exact = Exact(engine, workers, None, np.random.default_rng(0))
    exact.pool = Clients(workers, AT_FIRST)
    fleets: dict[str, Exact | Fleet] = {"by connection": exact}
    fleets |= {name: Fleet(engine, workers, BALANCERS[name], np.random.default_rng(0)) for name in BESIDE}
    found = {}
    for name, fleet in fleets.items():
        fleet.run(times, start, end)
        per_second = round(fleet.answered * 1e9 / (end - start), 1)
        found[name] = {"per_second": per_second, **figures(np.array(fleet.latencies), float(np.mean(fleet.sizes)))}
    return found


def figures(latencies: Any, size: float) -> Found:
    p50, p99 = np.percentile(latencies, (50, 99)) / 1e6
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "size": round(size, 2)}


def is_quiet(found: Found) -> bool:
    return bool(found["measured"]["late_p99_ms"] <= QUIET_MS)


def middle(each: list[Found], runs: int) -> Found:
    """The median of each figure of those runs in which the client was least late; every run is kept."""
    counted = sorted(each, key=lambda one: one["measured"]["late_p99_ms"])[:runs]

    def medians(of: list[Found]) -> Found:
        return {key: round(median([one[key] for one in of]), 2) for key in of[0] if key != "shares"}

    return {
        "workers": each[0]["workers"],
        "load": each[0]["load"],
        "quiet": sum(map(is_quiet, each)),
        "measured": medians([one["measured"] for one in counted]),
        "simulated": {name: medians([one["simulated"][name] for one in counted]) for name in each[0]["simulated"]},
        "runs": each,
    }
