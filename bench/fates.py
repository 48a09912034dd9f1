"""What becomes of requests in trouble: too many of them, poison among them, clients that leave. See --help.

One worker serves a model that is busy for 20 ms and 1 ms per item and takes 16 items at most (bench/troubled.py), so
its ideal throughput is 444 items a second. Requests of one item arrive at random, as those of bench/batching.py.

overload: three times the ideal for --seconds, each request with a deadline of 500 ms, then half of the ideal at once.
Of the accepted: how many per second beside the same service at 1.05 of the ideal, and their p99 beside the deadline. Of
the refused: until their answer was read. Of the load's end: until when any request was refused or late.

poison: one request in a hundred makes process_request raise ItemError ("refused"), is returned as an ItemError ("row"),
or makes run_inference raise ("raises"), beside none ("clean"). "allowed" is how many requests were answered for each
second that the model was busy: what the number of extra runs allows.

leavers: three requests in ten leave as soon as they have sent, by close or by reset: how many of them the model ran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from .host import GUNICORN, Running, conclude, cpus_apart, machine, need_proc, post, rss_bytes, running, table
from .troubled import CLOSES, FINE, MAX_BATCH_SIZE, RAISES, REFUSED, RESETS, ROW, busy_ns

IDEAL = MAX_BATCH_SIZE / (busy_ns(MAX_BATCH_SIZE) / 1e9)  # items per second
DEADLINE_MS = 500
OVER, SATURATED, HALF, LIGHT = 3.0, 1.05, 0.5, 0.8  # of the ideal
WARM_UP = 1.0  # seconds at the start of a run that are not counted
RECOVERED = 1.0  # seconds after an overload
KINDS = {"clean": FINE, "refused": REFUSED, "row": ROW, "raises": RAISES}
LEAVING = {"close": CLOSES, "reset": RESETS}
TARGETS = {"accepted": 0.95, "refused_ms": 5.0, "grown": 1.05, "raises": 0.9, "poison": 0.95, "leavers": 0.1}

Array = npt.NDArray[np.int64]


def arrivals(rates: Sequence[tuple[float, float]], kind: int = FINE, share: float = 0.0) -> Array:
    """When requests are to be sent, in ns, and their kinds. rates: parts of the ideal, and seconds each, in order."""
    random = np.random.default_rng(1)
    parts, start = [], 0.0
    for load, seconds in rates:
        gaps = random.exponential(1e9 / (IDEAL * load), round(IDEAL * load * seconds))
        parts.append(np.cumsum(gaps) + start)
        start += seconds * 1e9
    times = np.concatenate(parts).astype(np.int64)
    times.sort()
    kinds = np.where(random.random(len(times)) < share, kind, FINE)
    return np.stack([times, kinds], 1)


def check(port: int) -> str | None:
    came = post(port, b'{"data":[[7,0]]}')
    expected = 200, b'{"data":[[[7,0],1]],"error":null}'
    return None if came is None else "" if came == expected else f"expected {expected}, got {came}"


def command(port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.troubled:app"]


class Run:
    """What came of a client's requests. memory: of the server, in bytes, from time to time. spent: by the model."""

    def __init__(self, server: Running, times: Array, folder: Path, *more: str) -> None:
        before = spent(server.port)
        given, result = folder / "times.npy", folder / "result.npy"
        np.save(given, times)
        client = subprocess.Popen(
            [sys.executable, "-m", "bench.arrivals", str(server.port), str(given), str(result), *more],
            preexec_fn=lambda: os.sched_setaffinity(0, cpus_apart()[1]),
        )
        self.memory = []
        while client.poll() is None:
            self.memory.append(rss_bytes(server.pid))
            time.sleep(0.5)
        if client.returncode:
            raise SystemExit(f"the client ended with {client.returncode}")
        after = spent(server.port)
        self.runs = after["runs"] - before["runs"]
        self.busy = after["busy"] - before["busy"]
        self.rows = [now - then for now, then in zip(after["rows"], before["rows"], strict=True)]
        self.at, self.kind = times.T
        self.latency, self.late, _, self.status = np.load(result).T

    def per_second(self, until: float) -> float:
        """Answers of 200 per second, by when they came."""
        done = (self.at + self.latency)[self.status == 200] / 1e9
        return float(np.count_nonzero((done > WARM_UP) & (done <= until)) / (until - WARM_UP))


def spent(port: int) -> dict[str, Any]:
    came = post(port, b'{"data":[[-1,0]]}')
    if came is None or came[0] != 200:
        raise SystemExit(f"expected what the model has spent, got {came}")
    return orjson.loads(came[1])["data"][0]  # type: ignore[no-any-return]


def quantile(values: Array, q: float) -> float:
    """In milliseconds; NaN of none."""
    return round(float(np.percentile(values, q)) / 1e6, 2) if len(values) else float("nan")


# The three


def overload(server: Running, folder: Path, seconds: float) -> dict[str, Any]:
    most = Run(server, arrivals([(SATURATED, max(seconds / 6, 3.0))]), folder).per_second(max(seconds / 6, 3.0))
    run = Run(server, arrivals([(OVER, seconds), (HALF, 5.0)]), folder, str(DEADLINE_MS))
    over = run.at < seconds * 1e9
    accepted, refused = run.status == 200, run.status == 503
    unwell = run.at[~over & (~accepted | (run.latency > DEADLINE_MS * 1e6))]
    half = len(run.memory) // 2
    return {
        "most": round(most, 1),
        "accepted_per_second": round(run.per_second(seconds), 1),
        "accepted_of_most": round(run.per_second(seconds) / most, 3),
        "accepted_p50_ms": quantile(run.latency[over & accepted], 50),
        "accepted_p99_ms": quantile(run.latency[over & accepted], 99),
        "refused": int(np.count_nonzero(over & refused)),
        "refused_p50_ms": quantile((run.latency - run.late)[over & refused], 50),
        "refused_p99_ms": quantile((run.latency - run.late)[over & refused], 99),
        "too_late": int(np.count_nonzero(run.status == 504)),
        "others": int(np.count_nonzero(~np.isin(run.status, (200, 503, 504)))),
        "recovery_s": round(float(unwell.max(initial=int(seconds * 1e9)) / 1e9 - seconds), 2),
        "memory_grown": round(max(run.memory[half:]) / max(run.memory[: half + 1]), 3),
        "client_late_p99_ms": quantile(run.late, 99),
    }


def poison(server: Running, folder: Path, seconds: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, kind in KINDS.items():
        run = Run(server, arrivals([(SATURATED, seconds)], kind, 0.0 if kind == FINE else 0.01), folder)
        innocent = run.kind == FINE
        answered = int(np.count_nonzero(run.status == 200))
        per_second = run.per_second(seconds)
        rows.append(
            {
                "name": name,
                "poisoned": int(np.count_nonzero(~innocent)),
                "failed": int(np.count_nonzero(innocent & ~np.isin(run.status, (200, 503)))),
                "refused": int(np.count_nonzero(innocent & (run.status == 503))),
                "runs": run.runs,
                "per_second": round(per_second, 1),
                "of_allowed": round(per_second * run.busy / answered, 3),
                "of_clean": round(per_second / (rows[0]["per_second"] if rows else per_second), 3),
            }
        )
    return rows


def leavers(server: Running, folder: Path, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for name, kind in LEAVING.items():
        run = Run(server, arrivals([(LIGHT, seconds)], kind, 0.3), folder)
        stayed = run.kind == FINE
        rows.append(
            {
                "name": name,
                "left": int(np.count_nonzero(~stayed)),
                "ran": run.rows[kind],
                "failed": int(np.count_nonzero(stayed & (run.status != 200))),
                "p99_ms": quantile(run.latency[stayed], 99),
            }
        )
    return rows


# The command


def report(saved: dict[str, Any]) -> str:
    over = saved["overload"]
    poisoned = [("poison", "failed", "refused", "runs", "/s", "of clean", "of allowed")]
    for row in saved["poison"]:
        counts = (str(row[key]) for key in ("failed", "refused", "runs"))
        poisoned.append(
            (row["name"], *counts, *(f"{row[key]:.3f}" for key in ("per_second", "of_clean", "of_allowed")))
        )
    left = [("leave by", "left", "ran", "failed", "p99 ms")]
    left += [tuple(str(row[key]) for key in ("name", "left", "ran", "failed", "p99_ms")) for row in saved["leavers"]]
    lines = [f"{name:<20} {value}" for name, value in over.items()]
    return "\n".join([*lines, table(poisoned), table(left), *targets(saved)])


def targets(saved: dict[str, Any]) -> list[str]:
    over, (_, *bad), left = saved["overload"], saved["poison"], saved["leavers"]
    found = [
        ("accepted per second, of the most", over["accepted_of_most"], TARGETS["accepted"], True),
        ("p99 of the accepted, ms", over["accepted_p99_ms"], DEADLINE_MS, False),
        ("p99 of the refused, ms", over["refused_p99_ms"], TARGETS["refused_ms"], False),
        ("recovery, s", over["recovery_s"], RECOVERED, False),
        ("memory, of its first half", over["memory_grown"], TARGETS["grown"], False),
        ("innocent ones that failed", max(row["failed"] for row in bad), 0, False),
        *(
            ("raises, of allowed", row["of_allowed"], TARGETS["raises"], True)
            if row["name"] == "raises"
            else (f"{row['name']}, of clean", row["of_clean"], TARGETS["poison"], True)
            for row in bad
        ),
        *((f"{row['name']}: of the leavers, ran", row["ran"] / row["left"], TARGETS["leavers"], False) for row in left),
    ]
    return [
        f"{name}: {value:g}, at {'least' if least else 'most'} {bound:g}: "
        + ("met" if (value >= bound if least else value <= bound) else "MISSED")
        for name, value, bound, least in found
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: %(default)s)")
    parser.add_argument("--each", type=float, default=15.0, help="of each other run (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/fates.json"), help="where the figures go")
    parsed = parser.parse_args(arguments)
    for name in ("seconds", "each"):
        if getattr(parsed, name) <= 2 * WARM_UP:
            parser.error(f"--{name}: expected more than {2 * WARM_UP:g}, got {getattr(parsed, name):g}")
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("bench/fates.py")
    with (
        TemporaryDirectory(prefix="virtex-") as name,
        open(os.devnull, "wb") as nowhere,  # the log has a line for each failure
        running("troubled", command, check, cpus_apart()[0], output=nowhere) as server,
    ):
        saved = {
            "what": "one item per request over a model of 20 ms + 1 ms per item, 16 items at most",
            "machine": machine("uvloop", "httptools", "orjson", "numpy", "gunicorn"),
            "ideal_per_second": round(IDEAL, 1),
            "seconds": [arguments.seconds, arguments.each],
            "targets": TARGETS,
            "poison": poison(server, Path(name), arguments.each),
            "leavers": leavers(server, Path(name), arguments.each),
            "overload": overload(server, Path(name), arguments.seconds),
        }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
