"""How well batches are cut: throughput and latency over a synthetic accelerator, beside an exact simulation.

The accelerator is busy for 5 ms and 0.1 ms per item, takes 64 items at most and sleeps meanwhile (executor="thread").
Its ideal throughput is that of full batches back to back. Requests of one item arrive at random (Poisson) whether
earlier ones were answered or not, from a process of their own; latency counts from when a request was to be sent.

For the same arrivals, and for a million of them, the same Batcher class is run in virtual time, where nothing but the
accelerator takes time ("same", "sim"). Beside it, for the million: a batcher with a fixed window that grows while the
accelerator is busy, one that is closed by its timer all the same, and no batches at all. Saturation is measured with
more arrivals than the accelerator can take. At exactly its ideal throughput the queue only ever grows, in the
simulation too, and in the measurement by whatever passes between two batches: the ratio there says little.

A latency is as good as the machine is quiet: "late" says by how much the client missed the times at which it was to
send, and where it is not small beside a batch's 5 ms, other programs were measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .apps import MAX_BATCH_SIZE, WINDOW, busy_ns
from .host import GUNICORN, Running, conclude, cpus_apart, fine_cpu_seconds, machine, need_proc, post, running, table
from .virtual import Times, simulate, simulate_fixed_window

IDEAL = MAX_BATCH_SIZE / (busy_ns(MAX_BATCH_SIZE) / 1e9)  # items per second
SATURATION = 1.05  # of the ideal
WARM_UP = 0.5  # seconds at the start of a run that are not counted
TARGETS = {"saturation": 0.97, "p99": 1.2}  # of the ideal at least, of the simulation at most


def arrivals(load: float, count: int, seed: int) -> Times:
    """Nanoseconds of `count` arrivals at random, `load` of the ideal throughput on average."""
    gaps = np.random.default_rng(seed).exponential(1e9 / (IDEAL * load), count)
    return np.cumsum(gaps).astype(np.int64)


# Measured


def check(port: int) -> str | None:
    came = post(port, b'{"data":[7]}')
    expected = 200, b'{"data":[[7,1]],"error":null}'
    return None if came is None else "" if came == expected else f"expected {expected}, got {came}"


def command(port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:accelerator"]


def send(server: Running, times: Times, folder: Path) -> np.ndarray[Any, Any]:
    """Run the client once; a row for each request, as bench/arrivals.py says."""
    given, result = folder / "times.npy", folder / "result.npy"
    np.save(given, times)
    ended = subprocess.run(
        [sys.executable, "-m", "bench.arrivals", str(server.port), str(given), str(result)],
        timeout=float(times[-1]) / 1e9 + 120,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus_apart()[1]),
    )
    if ended.returncode:
        raise SystemExit(f"the client ended with {ended.returncode}")
    return np.load(result)


def measured(server: Running, load: float, seconds: float, folder: Path, seed: int) -> dict[str, Any]:
    """One run at one load, and the simulation of the same arrivals."""
    times = arrivals(load, round(IDEAL * load * seconds), seed)
    before = fine_cpu_seconds(server.pid)
    came = send(server, times, folder)
    spent = fine_cpu_seconds(server.pid) - before
    counted = times > WARM_UP * 1e9
    answered = np.sort(times + came[:, 0])
    within = answered[(answered > WARM_UP * 1e9) & (answered <= times[-1])]
    virtual, _ = simulate_in_order(times)
    return {
        "load": load,
        "of_ideal": round(float(len(within) / (times[-1] / 1e9 - WARM_UP) / IDEAL), 3),
        "size": round(1 / float(np.mean(1 / came[counted, 2])), 1),
        **quantiles(came[counted, 0]),
        "late_p99_ms": round(float(np.percentile(came[counted, 1], 99)) / 1e6, 3),
        "cpu_us": round(1e6 * spent / len(times), 1),
        "same": quantiles(virtual[counted]),
    }


def simulate_in_order(times: Times) -> tuple[Times, float]:
    """simulate(), whose answers come in the order of the arrivals: the ring is first in, first out."""
    return simulate(times, MAX_BATCH_SIZE, WINDOW)


def quantiles(latencies: Times) -> dict[str, float]:
    p50, p99 = np.percentile(latencies, (50, 99)) / 1e6
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


# Simulated

Simulated = Callable[[Times], tuple[Times, float]]
BATCHERS: dict[str, Simulated] = {
    "virtex": partial(simulate, max_batch_size=MAX_BATCH_SIZE, window=WINDOW),
    "window": partial(simulate_fixed_window, max_batch_size=MAX_BATCH_SIZE, window=WINDOW),
    "timer": partial(simulate_fixed_window, max_batch_size=MAX_BATCH_SIZE, window=WINDOW, closes_when_busy=True),
    "single": partial(simulate, max_batch_size=1, window=0.0),
}


def simulated(load: float, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Each batcher over the same `count` arrivals."""
    times = arrivals(load, count, seed)
    found = {}
    for name, batcher in BATCHERS.items():
        latencies, size = batcher(times)
        last = float(np.max(times + latencies)) if name != "virtex" else float(times[-1] + latencies[-1])
        found[name] = {**quantiles(latencies), "size": round(size, 1), "of_ideal": round(1e9 * count / last / IDEAL, 3)}
    return found


# The command


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with (
        TemporaryDirectory(prefix="virtex-") as name,
        running("accelerator", command, check, cpus_apart()[0]) as server,
    ):
        for load in (*arguments.loads, SATURATION):
            runs = [
                measured(server, load, arguments.seconds, Path(name), seed) for seed in range(1, arguments.runs + 1)
            ]
            rows.append(middle(runs))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rows


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose p99, compared with the simulation of its own arrivals, is the median; all are kept."""
    ordered = sorted(runs, key=lambda run: run["p99_ms"] / run["same"]["p99_ms"])
    return ordered[len(ordered) // 2] | {"runs": ordered}


COLUMNS = (
    "load",
    "served",
    "size",
    "CPU us",
    "late p99",
    "p50",
    "p99",
    "same p99",
    "ratio",
    "sim p99",
    "window",
    "timer",
    "single",
)


def report(saved: dict[str, Any]) -> str:
    """Milliseconds, and loads as parts of the ideal throughput."""
    rows = [COLUMNS]
    for row in saved["rows"]:
        sim = saved["simulated"].get(str(row["load"]), {})
        rows.append(
            (
                f"{row['load']:.2f}",
                f"{row['of_ideal']:.3f}",
                f"{row['size']:.1f}",
                f"{row['cpu_us']:.0f}",
                *(f"{row[key]:.2f}" for key in ("late_p99_ms", "p50_ms", "p99_ms")),
                f"{row['same']['p99_ms']:.2f}",
                f"{row['p99_ms'] / row['same']['p99_ms']:.2f}",
                *(f"{sim[name]['p99_ms']:.2f}" if sim else "-" for name in BATCHERS),
            )
        )
    return "\n".join([table(rows), *targets(saved)])


def targets(saved: dict[str, Any]) -> list[str]:
    *rows, last = saved["rows"]
    worst = max((row["p99_ms"] / row["same"]["p99_ms"] for row in rows if row["load"] < 1), default=0.0)
    return [
        f"saturation: {last['of_ideal']:.3f} of {IDEAL:.0f} items/s, at least {TARGETS['saturation']:g}: "
        + ("met" if last["of_ideal"] >= TARGETS["saturation"] else "MISSED"),
        f"p99 of the simulation's: {worst:.2f} at the worst load below the ideal, at most {TARGETS['p99']:g}: "
        + ("met" if worst <= TARGETS["p99"] else "MISSED"),
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", default="0.5,0.6,0.7,0.8,0.9,1.0", help="of the ideal (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of arrivals per run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs per load (default: %(default)s)")
    parser.add_argument("--arrivals", type=int, default=1_000_000, help="in the simulation (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/batching.json"), help="where the figures go")
    parsed = parser.parse_args(arguments)
    parsed.loads = [float(load) for load in parsed.loads.split(",")]
    if parsed.seconds <= 2 * WARM_UP:
        parser.error(f"--seconds: expected more than {2 * WARM_UP:g}, got {parsed.seconds:g}")
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("bench/batching.py")
    saved = {
        "what": "one item per request over an accelerator of 5 ms + 0.1 ms per item, 64 items at most",
        "machine": machine("uvloop", "httptools", "orjson", "numpy", "gunicorn"),
        "ideal_per_second": round(IDEAL, 1),
        "seconds": arguments.seconds,
        "arrivals": arguments.arrivals,
        "targets": TARGETS,
        "rows": measure(arguments),
        "simulated": {str(load): simulated(load, arguments.arrivals, 0) for load in arguments.loads},
    }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
