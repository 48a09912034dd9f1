"""Holds the load test against the truth, and against wrk and hey: make bench.

    stall    a server that does nothing for 0.3 s every 1.3 s: its own trace says what a request every 1/RATE s waited,
             and what the load test, wrk and hey (where it is installed) say of the same server
    trace    percentiles of a million requests' response times, beside what the server's own trace says of the same
             requests: from when each was to be sent, which the schedule says, to when its answer was written
    rate     what one process of the load test sends and gets, beside wrk, on the 100-character echo, in turns

Run: python -m bench.loadtest [--only stall trace rate] --json FILE. The servers have one CPU, the load has the others.
A figure that is not as good as it has to be ends it with an error: p90 within 5 % of the truth, percentiles within 1 %,
0.4 times wrk's rate and 10,000 requests/s.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from virtex import HttpMessage
from virtex.load.payloads import payload_of
from virtex.load.plan import Plan
from virtex.load.run import Run, run

from . import host
from .traced import CYCLE

RATE = 100.0  # requests/s of the stalled server, whose stalls are what is measured
QS = (50.0, 90.0, 99.0, 99.9, 99.99)
BODY = '{"data":["%s"],"error":null}' % ("x" * 100)
SERVICE = "bench.apps:echo"


@contextmanager
def traced(kind: str, count: int, cpus: set[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """bench/traced.py: its URL, and a list that has its trace when it has ended."""
    found: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.npy"

        def command(port: str) -> list[str]:
            return [*host.PYTHON, "-m", "bench.traced", port, str(path), str(count), kind]

        def check(port: int) -> str | None:
            with host.socket.socket() as sock:
                return "" if sock.connect_ex(("127.0.0.1", port)) == 0 else None

        with host.running(kind, command, check, cpus) as server:
            yield f"http://127.0.0.1:{server.port}/", found
        found.append(np.load(path))


# Against the truth


def stall(seconds: int, servers: set[int]) -> dict[str, float]:
    """p90, in milliseconds, as the server's trace has it and as each client says."""
    count = int(RATE * seconds)
    payloads = [payload_of(HttpMessage(data=[n])) for n in range(count)]
    with traced("stall", count + 1, servers) as (url, traces):
        found = run(Plan(url, payloads, rate=RATE, count=count, warmup=0, keep=True))
        _check(found)
        body = f'{{"data":[{count}]}}'  # the others' requests have a row of their own
        said = {"wrk": wrk_p90(url, seconds, body)}
        if shutil.which("hey"):
            said["hey"] = hey_p90(url, seconds, body)
    truth = np.percentile(_response_times(found, traces[0][:count, 1], RATE), 90)
    return {"truth": float(truth), "found": found.response.percentile(90) * 1e3} | said


def wrk_p90(url: str, seconds: int, body: str) -> float:
    script = str(host.HERE / "post.lua")
    command = ["wrk", "-t1", "-c1", f"-d{seconds}s", "--latency", "-s", script, url, "--", body]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    return _milliseconds(said, r"90%\s+([\d.]+)(us|ms|s)\b")


def hey_p90(url: str, seconds: int, body: str) -> float:
    command = ["hey", "-z", f"{seconds}s", "-c", "1", "-m", "POST", "-d", body, url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    return _milliseconds(said, r"90%+ in ([\d.]+) (secs)")


def _milliseconds(said: str, pattern: str) -> float:
    match = re.search(pattern, said)
    if not match:
        raise SystemExit(f"expected a line of 90 %, got {said!r}")
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "secs": 1e3}[match[2]]


def trace(count: int, rate: float, servers: set[int]) -> list[dict[str, float]]:
    """For each percentile, milliseconds that the load test found, and those of the server's trace.

    The trace alone, from read to written, would leave out how long a request lay in the socket of a busy server.
    """
    payloads = [payload_of(HttpMessage(data=[n])) for n in range(CYCLE)]
    with traced("delay", count, servers) as (url, traces):
        found = run(Plan(url, payloads, rate=rate, count=count, warmup=0, connections=2000, keep=True))
        _check(found)
    truth = _response_times(found, traces[0][:, 1], rate)
    of_truth = np.percentile(truth, QS, method="inverted_cdf")  # a time that was there, as the histogram has it
    of_found = [found.response.percentile(q) * 1e3 for q in QS]
    return [{"q": q, "found": said, "truth": float(true)} for q, said, true in zip(QS, of_found, of_truth, strict=True)]


def _response_times(found: Run, written: np.ndarray, rate: float) -> np.ndarray:
    """Milliseconds from when each request was to be sent to when its answer was written."""
    scheduled = found.answers[0].scheduled + np.arange(len(written)) * (1e9 / rate)
    return (written - scheduled) / 1e6


def _check(found: Run) -> None:
    if found.errors or found.answered != found.scheduled:
        raise SystemExit(f"{found.scheduled - found.answered} of {found.scheduled} failed: {dict(found.errors)}")


# Against wrk


def rates(seconds: int, rounds: int, servers: set[int], clients: set[int]) -> dict[str, Any]:
    """Requests per second of wrk and of one process of the load test, over 64 connections; and 10,000 on a schedule."""
    payloads = [payload_of(HttpMessage(data=["x" * 100]))]
    wrk, ours = [], []

    def command(port: str) -> list[str]:
        return [*host.GUNICORN, "--bind", f"127.0.0.1:{port}", SERVICE]

    def check(port: int) -> str | None:
        answer = host.post(port, BODY.encode())
        return None if answer is None else "" if answer[0] == 200 else str(answer)

    with host.running("echo", command, check, servers) as server:
        url = f"http://127.0.0.1:{server.port}/"
        for _ in range(rounds):
            load = host.load(server, 64, seconds, clients, BODY)
            wrk.append(load.requests / load.seconds)
            found = run(Plan(url, payloads, connections=64, seconds=seconds))
            _check(found)
            ours.append(found.rate)
        on_schedule = run(Plan(url, payloads, rate=10_000, seconds=seconds))
        _check(on_schedule)
    return {
        "wrk": median(wrk),
        "virtex": median(ours),
        "best": [max(wrk), max(ours)],
        "on_schedule": on_schedule.rate,
        "late_p99_ms": on_schedule.lateness.percentile(99) * 1e3,
        "p50_ms": on_schedule.response.percentile(50) * 1e3,
        "p99_ms": on_schedule.response.percentile(99) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=("stall", "trace", "rate"), default=("stall", "trace", "rate"))
    parser.add_argument("--seconds", type=int, default=5, help="of each run of rate, and a fifth of stall's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1_000_000, help="requests of trace")
    parser.add_argument("--trace-rate", type=float, default=3000.0, help="requests/s of trace")
    parser.add_argument("--json", type=Path, default=Path("build/loadtest.json"))
    arguments = parser.parse_args()
    host.need_wrk("bench.loadtest")
    host.open_many_files()
    servers, clients = host.cpus_apart()
    host.os.sched_setaffinity(0, clients)
    saved: dict[str, Any] = {"machine": host.machine() | {"wrk": host.wrk_version()}}
    wrong: list[str] = []
    lines: list[str] = []
    if "stall" in arguments.only:
        found = saved["stall"] = stall(5 * arguments.seconds, servers)
        lines += [f"stall: p90 {value:.3f} ms, {name}" for name, value in found.items()]
        wrong += lines[-len(found) :] if abs(found["found"] / found["truth"] - 1) > 0.05 else []
    if "trace" in arguments.only:
        saved["trace"] = trace(arguments.count, arguments.trace_rate, servers)
        for row in saved["trace"]:
            off = row["found"] / row["truth"] - 1
            lines.append(f"trace: p{row['q']:g} {row['found']:.3f} ms, truth {row['truth']:.3f} ms, {off:+.2%}")
            wrong += [lines[-1]] if abs(off) > 0.01 else []
    if "rate" in arguments.only:
        figures = saved["rate"] = rates(arguments.seconds, arguments.rounds, servers, clients)
        lines += [f"rate: {name} {value}" for name, value in figures.items()]
        ratio = figures["virtex"] / figures["wrk"]
        lines.append(f"rate: {ratio:.2f} times wrk's")
        wrong += [lines[-1]] if ratio < 0.4 else []
        wrong += [f"{figures['virtex']:.0f} requests/s"] if figures["virtex"] < 10_000 else []
    host.conclude(saved, arguments.json, "\n".join(lines))
    if wrong:
        sys.exit("not as good as it has to be: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
