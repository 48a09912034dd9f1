"""What a fleet of replicas does, from one to ten thousand: throughput, latency, batches, refusals, cost.

A replica is a worker of Virtex whose engine takes a + b * n for a batch of n: 5 ms + 0.1 ms * n, 64 at most, unless
--base-ms, --item-ms and --most say otherwise; measure yours with `virtex tune`. Virtual time: bench/replicas.py has the
rule by which batches are cut, bench/balancers.py who gets a request, bench/traffic.py when they arrive. A load is a
part of what all replicas do with full batches, most / (a + b * most) each.

    model    the fast model beside the Batcher itself, request by request
    sizes    1 to 10,000 replicas at a load of 0.7, each balancer, Poisson arrivals and groups
    loads    100 replicas from a load of 0.1 to 0.95, each balancer
    bound    the highest load of 16 replicas that holds a p99, and so the least cost of a million requests
    spread   one stream of requests over more and more replicas: batches thin out
    large    few large replicas or many small ones of the same price, in all
    waves    16 replicas at a load of 0.4 on average, in bursts of 1 to 4 times that
    reports  100 replicas at 0.8, the least loaded by reports that are 1 to 50 ms apart
    slow     100 replicas of which ten take twice as long
    real     two and four workers of `virtex serve` under a real load, beside the simulation of the same arrivals

Requests of one item. Latency counts from a request's arrival at the balancer. The first fifth of a run does not count,
nor do its first 30 ms. The same seed gives the same figures. --only some parts leaves the others in the file as they
are. --quick is a slice of some seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import traffic, workers
from .balancers import BALANCERS, CONNECTIONS, ByConnection, Maker, Stale
from .exact import Exact
from .host import conclude, machine, need_proc, table
from .replicas import Engine, Fleet

SIZES = (1, 10, 100, 1000, 10_000)
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SPREAD = (4, 5, 6, 8, 12, 16, 32, 64, 128)  # replicas for the traffic of 3.2
LARGE = (1, 2, 4, 8)  # times as large
PEAKS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
EVERY = (1, 2, 5, 10, 20, 50)  # ms between reports
HALVINGS = 6  # of the loads between which the bound is looked for
REQUESTS, EACH = 300_000, 250  # of a run, and at least so many for each replica
WARM_UP, SETTLING = 0.2, 30_000_000  # of a run that does not count: a part, or so many ns where that is more

Found = dict[str, Any]


class Case(NamedTuple):
    """One run. kind: of the arrivals. times: of --most, --queue and the engine's speed for an item, how large it is."""

    part: str
    replicas: int
    balancer: str = "two choices"
    load: float = 0.7
    kind: str = "poisson"
    requests: int = REQUESTS
    peak: float = 1.0
    slow: int = 0
    every: int = 20
    times: int = 1
    most_times: int = 1


# One run


def engine_of(case: Case, engine: Engine) -> Engine:
    """A replica that is so many times as large: for an item, it takes that much less time, and a batch has more."""
    most = engine.most * case.most_times
    return engine._replace(item=engine.item // case.times, most=most, room=max(engine.room, 4 * most))


def arrivals(case: Case, engine: Engine, random: np.random.Generator) -> traffic.Times:
    """engine: of a replica of size 1; a load is a part of what those do whose place the large ones take."""
    rate = case.load * case.replicas * case.times * engine.capacity
    if case.kind == "waves":
        return traffic.waves(random, rate, case.requests / rate, case.peak)
    make = traffic.poisson if case.kind == "poisson" else traffic.groups
    return make(random, rate, case.requests)


def maker_of(case: Case) -> Maker:
    """A balancer; by connection, large replicas have the clients of those whose place they take."""
    if case.balancer == "stale least":
        return partial(Stale, every=case.every * 1_000_000)
    if case.balancer == "by connection":
        return partial(ByConnection, each=CONNECTIONS * case.times)
    return BALANCERS[case.balancer]


def simulate(case: Case, small: Engine, price: float, seed: int, exact: bool = False) -> Found:
    """What came of it. small: of a replica of size 1, which costs the price. The same seed: the same arrivals."""
    began = time.perf_counter()
    times = arrivals(case, small, np.random.default_rng([seed, case.replicas])).tolist()
    random, engine = np.random.default_rng([seed, 1]), engine_of(case, small)
    if exact:
        fleet: Fleet | Exact = Exact(engine, case.replicas, maker_of(case), random)
    else:
        fleet = Fleet(engine, case.replicas, maker_of(case), random, case.slow)
    end = times[-1]
    start = max(round(end * WARM_UP), min(SETTLING, end // 2))
    fleet.run(times, start, end, progress_of(case, len(times)))
    found = figures(fleet, case, small.capacity * case.replicas * case.times, (end - start) / 1e9, price)
    return case._asdict() | found | {"requests": len(times), "took_s": round(time.perf_counter() - began, 1)}


def figures(fleet: Fleet | Exact, case: Case, capacity: float, seconds: float, price: float) -> Found:
    latencies, waits = np.array(fleet.latencies), np.array(fleet.waits)
    p50, p99, p999 = np.percentile(latencies, (50, 99, 99.9)) / 1e6
    rate = fleet.answered / seconds
    return {
        "per_second": round(rate, 1),
        "of_capacity": round(rate / capacity, 4),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "p999_ms": round(float(p999), 3),
        "size": round(float(np.mean(fleet.sizes)), 2),
        "utilisation": round(fleet.busy / (seconds * 1e9 * case.replicas), 4),
        "wait_p90_ms": round(float(np.percentile(waits, 90)) / 1e6, 3),
        "refused": round(fleet.refused / fleet.offered, 6),
        "cost_per_million": round(price * case.replicas * case.times / 3600 / rate * 1e6, 4),
    }


def progress_of(case: Case, requests: int) -> Any:
    """Says how far a long run is."""
    if requests < 4 * REQUESTS:
        return None
    name = f"{case.part}, {case.replicas:,} replicas, {case.balancer}, {case.kind}"
    return lambda number: print(f"  {name}: {number / requests:.0%}", end="\r", file=sys.stderr, flush=True)


# What is run


def cases(quick: bool) -> list[Case]:
    """All runs but those that look for a bound, the longest first."""
    sizes, loads, most = (SIZES[:3], LOADS[1::3], 20_000) if quick else (SIZES, LOADS, REQUESTS)
    hundred, ten = (20, 2) if quick else (100, 10)
    found = [
        Case("sizes", count, name, kind=kind, requests=max(most, EACH * count))
        for count in reversed(sizes)
        for kind in ("poisson", "groups")
        for name in BALANCERS
    ]
    found += [Case("loads", hundred, name, load, requests=most) for load in loads for name in BALANCERS]
    found += [Case("spread", count, load=3.2 / count, requests=most) for count in SPREAD]
    found += [
        Case("large", 32 // times, name, load, kind, most, times=times, most_times=more)
        for name, load, kind, more_of in (
            ("two choices", 0.5, "poisson", LARGE),
            ("two choices", 0.5, "poisson", (1, 1, 1, 1)),
            ("two choices", 0.8, "poisson", LARGE),
            ("two choices", 0.8, "groups", LARGE),
            ("random", 0.8, "poisson", LARGE),
            ("by connection", 0.8, "poisson", LARGE),
        )
        for times, more in zip(LARGE, more_of, strict=True)
        if more_of == LARGE or times > 1
    ]
    found += [Case("waves", 16, load=0.4, kind="waves", requests=4 * most, peak=peak) for peak in PEAKS]
    found += [Case("reports", hundred, "stale least", 0.8, requests=most, every=every) for every in EVERY]
    found += [Case("slow", hundred, name, requests=most, slow=slow) for slow in (0, ten) for name in BALANCERS]
    return found


def bound(case: Case, engine: Engine, price: float, seed: int, p99_ms: float) -> Found:
    """The run at the highest load, to within 2 %, whose p99 is at most that and that refuses nobody.

    Where there is none, `held` is False, and the run is that at the lowest load that was tried.
    """
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = simulate(case._replace(load=middle), engine, price, seed)
        if found["p99_ms"] <= p99_ms and not found["refused"]:
            low, best = middle, found
        else:
            high = middle
    return (best or found) | {"held": best is not None}


def model(engine: Engine, price: float, seed: int, requests: int) -> list[Found]:
    """The fast model, beside the Batcher itself."""
    rows = []
    for count, name, kind, load in (
        *((4, name, "poisson", load) for name in BALANCERS for load in (0.3, 0.8)),
        (4, "two choices", "groups", 0.8),
        (1, "random", "poisson", 1.1),
        (16, "least", "groups", 0.9),
    ):
        case = Case("model", count, name, load, kind, requests)
        fast, true = (simulate(case, engine, price, seed, exact) for exact in (False, True))
        rows.append({"fast": fast, "exact": true})
    return rows


# The command


def measure(arguments: argparse.Namespace, engine: Engine) -> dict[str, list[Found]]:
    """All parts that are asked for, on all CPUs."""
    price, seed, most = arguments.price, arguments.seed, 20_000 if arguments.quick else REQUESTS
    todo = [case for case in cases(arguments.quick) if case.part in arguments.parts]
    bounds = [Case("bound", 16, name, kind=kind, requests=most) for kind in ("poisson", "groups") for name in BALANCERS]
    rows: dict[str, list[Found]] = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        jobs = {pool.submit(simulate, case, engine, price, seed): case for case in todo}
        if "bound" in arguments.parts:
            jobs |= {pool.submit(bound, case, engine, price, seed, arguments.p99_ms): case for case in bounds}
        if "model" in arguments.parts:
            jobs[pool.submit(model, engine, price, seed, most // 5)] = Case("model", 4)
        began = time.monotonic()
        for number, job in enumerate(as_completed(jobs), 1):
            job.result()
            case = jobs[job]
            said = f"{case.part}, {case.replicas:,} replicas, {case.balancer}, {case.kind}"
            print(f"[{number}/{len(jobs)}, {time.monotonic() - began:.0f} s] {said}   ", file=sys.stderr, flush=True)
        for job, case in jobs.items():  # in the order in which they were asked for, whenever they came
            found = job.result()
            rows.setdefault(case.part, []).extend(found if case.part == "model" else [found])
    if "real" in arguments.parts:
        need_proc("bench/fleet.py")
        counts, loads = ((2,), (0.6,)) if arguments.quick else ((2, 4), (0.4, 0.7, 0.9))
        rows["real"] = workers.measure(counts, loads, 3.0 if arguments.quick else arguments.seconds, arguments.runs)
    return rows


HEAD = ("part", "replicas", "balancer", "arrivals", "load", "req/s", "p50 ms", "p99 ms", "batch", "busy", "refused")


def report(saved: dict[str, Any]) -> str:
    rows = [(*HEAD, "per million")]
    for part, found in saved["rows"].items():
        for row in found if part not in ("model", "real") else ():
            what = {"waves": f" x {row['peak']:g}", "reports": f" {row['every']} ms", "slow": f" {row['slow']}"}
            what["large"] = f" x {row['times']}, {row['most_times'] * saved['engine']['most']}"
            rows.append(
                (
                    part + what.get(part, ""),
                    f"{row['replicas']:,}",
                    row["balancer"],
                    row["kind"],
                    f"{row['load']:.3g}",
                    f"{row['per_second']:,.0f}",
                    f"{row['p50_ms']:.2f}",
                    f"{row['p99_ms']:.2f}",
                    f"{row['size']:.1f}",
                    f"{row['utilisation']:.3f}",
                    f"{row['refused']:.4%}",
                    f"{row['cost_per_million']:.4f}",
                )
            )
    return "\n".join([table(rows), *(f"{part}: {len(saved['rows'].get(part, []))} rows" for part in ("model", "real"))])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("model", "sizes", "loads", "bound", "spread", "large", "waves", "reports", "slow", "real")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        dest="parts",
        metavar="PART",
        help="of those above (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="a slice of each, in seconds")
    parser.add_argument("--base-ms", type=float, default=5.0, help="a, in ms (default: %(default)g)")
    parser.add_argument("--item-ms", type=float, default=0.1, help="b, in ms (default: %(default)g)")
    parser.add_argument("--most", type=int, default=64, help="max_batch_size (default: %(default)s)")
    parser.add_argument("--window-ms", type=float, default=5.0, help="max_time_on_queue (default: %(default)g)")
    parser.add_argument("--queue", type=int, default=1024, help="max_queue_size (default: %(default)s)")
    parser.add_argument("--p99-ms", type=float, default=25.0, help="that `bound` holds (default: %(default)g)")
    parser.add_argument("--price", type=float, default=1.0, help="of a replica for an hour (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn at random (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a run of real workers (default: %(default)g)")
    parser.add_argument("--runs", type=int, default=3, help="of real workers, for each load (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that simulate (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("build/fleet.json"), help="where the figures go (default: %(default)s)"
    )
    parsed = parser.parse_args(arguments)
    for name in ("base_ms", "item_ms", "window_ms", "p99_ms", "price"):
        if not 0 <= getattr(parsed, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')}: expected a number from 0 on, got {getattr(parsed, name)!r}")
    for name in ("most", "queue", "runs", "processes"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(parsed, name)}")
    if parsed.base_ms + parsed.item_ms <= 0:
        parser.error("--base-ms, --item-ms: expected a batch to take some time, got 0 for both")
    return parsed


def kept(file: Path, saved: dict[str, Any]) -> dict[str, list[Found]]:
    """What was measured before with the same engine, price and seed: --only measures some parts again."""
    before = json.loads(file.read_text()) if file.exists() else {}
    same = all(before.get(key) == saved[key] for key in ("engine", "price", "seed", "quick", "bound_ms", "real_engine"))
    return before["rows"] if same else {}


def main() -> None:
    arguments = parse()
    milliseconds = (round(each * 1e6) for each in (arguments.base_ms, arguments.item_ms))
    engine = Engine(*milliseconds, arguments.most, round(arguments.window_ms * 1e6), arguments.queue)
    saved = {
        "what": "requests of one item in virtual time; real: workers of virtex serve",
        "machine": machine("numpy", "gunicorn", "uvloop"),
        "engine": engine._asdict() | {"capacity": round(engine.capacity, 1)},
        "price": arguments.price,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "bound_ms": arguments.p99_ms,
        "real_engine": workers.ENGINE._asdict() | {"capacity": round(workers.ENGINE.capacity, 1)},
        "rows": {},
    }
    saved["rows"] = kept(arguments.json, saved) | measure(arguments, engine)
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
