"""How many requests a server answers per second of its own CPU, and how long one waits: make bench, or see --help.

One worker each, echo of one string of 100 characters over keep-alive connections, load by wrk. The yardstick is "bare":
a server on uvloop and httptools that parses each request and answers constant bytes of the same size. Every number is
the median of several runs, interleaved, so that a busy moment of the machine strikes all of them. A request per
CPU-second does not depend on how busy the load generator's core is; a request per second does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from .host import (
    GUNICORN,
    HERE,
    PYTHON,
    UVICORN,
    Load,
    Running,
    conclude,
    cpus_apart,
    fine_cpu_seconds,
    keep_installed,
    load,
    machine,
    need_proc,
    need_wrk,
    post,
    running,
    wrk_version,
)

ITEM = "x" * 100
BODY = json.dumps({"data": [ITEM]}, separators=(",", ":"))
REPLY = json.dumps({"data": [ITEM], "error": None}, separators=(",", ":"))

GRANIAN = [*PYTHON, "-m", "granian", "--interface", "asginl", "--workers", "1", "--log-level", "warning"]

# name: (the module it needs, its command line for a port)
SERVERS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "bare": ("uvloop", lambda port: [*PYTHON, str(HERE / "bare.py"), port, REPLY]),
    "virtex": ("gunicorn", lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:echo"]),
    "uvicorn": ("uvicorn", lambda port: [*UVICORN, "--port", port, "bench.apps:plain_echo"]),
    "granian": ("granian", lambda port: [*GRANIAN, "--port", port, "bench.apps:plain_echo"]),
    "virtex, ASGI echo": ("gunicorn", lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:plain_echo"]),
    "uvicorn, Virtex app": ("uvicorn", lambda port: [*UVICORN, "--lifespan", "on", "--port", port, "bench.apps:echo"]),
}


# Servers


def check(port: int) -> str | None:
    """What is wrong with the echo; None while nobody answers."""
    came = post(port, BODY.encode())
    expected = 200, REPLY.encode()
    return None if came is None else "" if came == expected else f"expected {expected}, got {came}"


def idle(server: Running, seconds: float) -> float:
    """The share of a core, in percent, that the server uses with nothing to do."""
    before = fine_cpu_seconds(server.pid)
    time.sleep(seconds)
    return 100 * (fine_cpu_seconds(server.pid) - before) / seconds


# Load


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All servers at all connection counts, interleaved."""
    serving, loading = cpus_apart()
    loads: dict[str, dict[int, list[Load]]] = {n: {c: [] for c in arguments.connections} for n in arguments.servers}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name, SERVERS[name][1], check, serving)) for name in arguments.servers]
        for server in servers:
            load(server, 16, 1, loading, BODY)  # caches, branch predictors, the interpreter's inline caches
        for connections in arguments.connections:
            for _ in range(arguments.runs):
                for server in servers:
                    loads[server.name][connections].append(load(server, connections, arguments.seconds, loading, BODY))
                    print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        idles = {server.name: idle(server, arguments.idle) for server in servers}
    return {
        "what": "echo of one 100-character string, one worker",
        "machine": machine_of(serving, loading),
        "runs": arguments.runs,
        "seconds": arguments.seconds,
        "idle_percent": idles,
        "results": [_summary(name, loads) for name in arguments.servers],
    }


def machine_of(serving: set[int], loading: set[int]) -> dict[str, Any]:
    found = machine("uvloop", "httptools", "orjson", "numpy", "gunicorn", "uvicorn", "granian")
    found["versions"]["wrk"] = wrk_version()
    return found | {"servers_on_cpus": sorted(serving), "wrk_on_cpus": sorted(loading)}


def _summary(name: str, loads: dict[str, dict[int, list[Load]]]) -> dict[str, Any]:
    rows = []
    for connections, runs in loads[name].items():
        row = _medians(runs)
        if "bare" in loads:
            bare = _medians(loads["bare"][connections])
            row["of_bare"] = round(row["per_cpu_second"] / bare["per_cpu_second"], 3)
            row["p50_of_bare"] = round(row["p50_ms"] / bare["p50_ms"], 2)
        rows.append({"connections": connections, **row, "runs": [list(run) for run in runs]})
    return {"server": name, "rows": rows}


def _medians(runs: Sequence[Load]) -> dict[str, float]:
    return {
        "per_cpu_second": round(median(run.requests / run.cpu_seconds for run in runs)),
        "per_second": round(median(run.requests / run.seconds for run in runs)),
        "p50_ms": round(median(run.p50 for run in runs), 3),
        "p99_ms": round(median(run.p99 for run in runs), 3),
    }


# The command


COLUMNS = ("server", "conns", "req/CPU-s", "of bare", "req/s", "p50 ms", "of bare", "p99 ms")
WIDTHS = (20, 5, 10, 8, 8, 8, 8, 8)


def report(saved: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = [COLUMNS]
    for result in saved["results"]:
        rows += [(result["server"], *_cells(row)) for row in result["rows"]]
    lines = [
        "".join(f"{cell:<{w}}" if w == WIDTHS[0] else f" {cell:>{w}}" for cell, w in zip(row, WIDTHS, strict=True))
        for row in rows
    ]
    lines += [f"{name:<20} idle: {percent:.2f} % of a core" for name, percent in saved["idle_percent"].items()]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    of_bare, p50_of_bare = (f"{row[key]:.2f}" if key in row else "-" for key in ("of_bare", "p50_of_bare"))
    milliseconds = f"{row['p50_ms']:.3f}", p50_of_bare, f"{row['p99_ms']:.3f}"
    return str(row["connections"]), str(row["per_cpu_second"]), of_bare, str(row["per_second"]), *milliseconds


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", default="1,16,64,256", help="counts, comma-separated (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs per server and count (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds to watch idle servers (default: %(default)s)")
    parser.add_argument(
        "--servers", default="all", help=f"some of {';'.join(SERVERS)} (default: all that are installed)"
    )
    parser.add_argument("--json", type=Path, default=Path("build/serve.json"), help="where the figures go")
    parsed = parser.parse_args(arguments)
    parsed.connections = [int(count) for count in parsed.connections.split(",")]
    parsed.servers = list(SERVERS) if parsed.servers == "all" else parsed.servers.split(";")
    unknown = [name for name in parsed.servers if name not in SERVERS]
    if unknown:
        parser.error(f"--servers: expected some of {'; '.join(SERVERS)}, got {unknown[0]!r}")
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("bench/serve.py")
    need_wrk("bench/serve.py")
    keep_installed(arguments, {name: module for name, (module, _) in SERVERS.items()})
    saved = measure(arguments)
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
