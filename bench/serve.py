"""How many requests a server answers per second of its own CPU, and how long one waits: make bench, or see --help.

One worker each, echo of one string of 100 characters over keep-alive connections, load by wrk. The yardstick is "bare":
a server on uvloop and httptools that parses each request and answers constant bytes of the same size. Every number is
the median of several runs, interleaved, so that a busy moment of the machine strikes all of them. A request per
CPU-second does not depend on how busy the load generator's core is; a request per second does.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ITEM = "x" * 100
BODY = json.dumps({"data": [ITEM]}, separators=(",", ":"))
REPLY = json.dumps({"data": [ITEM], "error": None}, separators=(",", ":"))
TICK = os.sysconf("SC_CLK_TCK")  # of utime and stime in /proc, per second
START_SECONDS = 60.0  # until a server answers; importing everything on a busy machine takes long

PYTHON = [sys.executable, "-W", "ignore"]
GUNICORN = [*PYTHON, "-m", "gunicorn", "-k", "virtex.VirtexWorker", "-w", "1", "--log-level", "warning"]
UVICORN = [*PYTHON, "-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--lifespan", "off"]
GRANIAN = [*PYTHON, "-m", "granian", "--interface", "asginl", "--workers", "1", "--log-level", "warning"]

# name: (the module it needs, its command line for a port)
SERVERS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "bare": ("uvloop", lambda port: [*PYTHON, str(HERE / "bare.py"), port, REPLY]),
    "virtex": ("gunicorn", lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.echo:app"]),
    "uvicorn": ("uvicorn", lambda port: [*UVICORN, "--port", port, "bench.plain:app"]),
    "granian": ("granian", lambda port: [*GRANIAN, "--port", port, "bench.plain:app"]),
    "virtex, ASGI echo": ("gunicorn", lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.plain:app"]),
    "uvicorn, Virtex app": ("uvicorn", lambda port: [*UVICORN, "--lifespan", "on", "--port", port, "bench.echo:app"]),
}


class Load(NamedTuple):
    """One run of wrk against one server."""

    requests: int
    seconds: float
    cpu_seconds: float  # of the server, user and system
    p50: float  # milliseconds
    p99: float


# Servers


class Running(NamedTuple):
    name: str
    pid: int
    port: int


@contextmanager
def running(name: str, cpus: set[int]) -> Iterator[Running]:
    """A server on a free port of the loopback interface, stopped by its pid at the end."""
    port = _free_port()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        SERVERS[name][1](str(port)),
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),  # safe here: this process has one thread
    )
    try:
        _await_echo(name, process, port)
        yield Running(name, process.pid, port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SystemExit(f"{name}: still running 30 s after SIGTERM") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_echo(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers, and check what it answers before anything is timed."""
    deadline = time.monotonic() + START_SECONDS
    while (came := _post(port)) is None or came[0] == 503:  # 503: it listens, but its handler is not there yet
        if process.poll() is not None:
            raise SystemExit(f"{name}: exited with {process.returncode} before it answered")
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: no answer on port {port} after {START_SECONDS:g} s")
        time.sleep(0.05)
    if came != (200, REPLY.encode()):
        raise SystemExit(f"{name}: expected 200 {REPLY}, got {came[0]} {came[1]!r}")


def _post(port: int) -> tuple[int, bytes] | None:
    """Status and body, or None while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/", BODY, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return None
    finally:
        connection.close()


# CPU time


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, in /proc's grain (usually 10 ms)."""
    ticks = 0
    for one in _family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of proc(5)
    return ticks / TICK


def fine_cpu_seconds(pid: int) -> float:
    """Time on a CPU by the scheduler's clock, in nanoseconds: what an idle process uses is below a tick."""
    spent = 0
    for one in _family(pid):
        for task in Path(f"/proc/{one}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def idle(server: Running, seconds: float) -> float:
    """The share of a core, in percent, that the server uses with nothing to do."""
    before = fine_cpu_seconds(server.pid)
    time.sleep(seconds)
    return 100 * (fine_cpu_seconds(server.pid) - before) / seconds


# Load


def load(server: Running, connections: int, seconds: int, cpus: set[int]) -> Load:
    """Run wrk once. Exits with its words where anything but 200 came back: a failed run is an error, never a figure."""
    url = f"http://127.0.0.1:{server.port}/"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "post.lua"), url, "--", BODY]
    before = cpu_seconds(server.pid)
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    spent = cpu_seconds(server.pid) - before
    if ended.returncode:
        raise SystemExit(f"wrk: exit status {ended.returncode}: {ended.stderr or ended.stdout}")
    said = json.loads(ended.stdout.splitlines()[-1])
    if said["refused"] or said["broken"] or not said["requests"]:
        raise SystemExit(f"{server.name} at {connections} connections did not answer all requests with 200: {said}")
    return Load(said["requests"], said["microseconds"] / 1e6, spent, said["p50"] / 1e3, said["p99"] / 1e3)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All servers at all connection counts, interleaved."""
    serving, loading = _cpus()
    loads: dict[str, dict[int, list[Load]]] = {n: {c: [] for c in arguments.connections} for n in arguments.servers}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name, serving)) for name in arguments.servers]
        for server in servers:
            load(server, 16, 1, loading)  # caches, branch predictors, the interpreter's inline caches
        for connections in arguments.connections:
            for _ in range(arguments.runs):
                for server in servers:
                    loads[server.name][connections].append(load(server, connections, arguments.seconds, loading))
                    print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        idles = {server.name: idle(server, arguments.idle) for server in servers}
    return {
        "what": "echo of one 100-character string, one worker",
        "machine": machine(serving, loading),
        "runs": arguments.runs,
        "seconds": arguments.seconds,
        "idle_percent": idles,
        "results": [_summary(name, loads) for name in arguments.servers],
    }


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


# The machine


def _cpus() -> tuple[set[int], set[int]]:
    """One CPU for the servers, and the others for wrk; the same one where there is no other."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, set(mine[1:]) or {mine[0]}


def machine(serving: set[int], loading: set[int]) -> dict[str, Any]:
    """What the figures depend on."""
    from virtex import __version__, codec_info

    names = ("uvloop", "httptools", "orjson", "numpy", "gunicorn", "uvicorn", "granian")
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split()[1]
    return {
        "cpu": _cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "servers_on_cpus": sorted(serving),
        "wrk_on_cpus": sorted(loading),
        "codec": str(codec_info()),
        "versions": {
            "virtex": __version__,
            "python": platform.python_version(),
            "wrk": wrk,
            **{name: _version(name) for name in names},
        },
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


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
    parser.add_argument("--servers", default="bare;virtex;uvicorn;granian", help=f"of {';'.join(SERVERS)}, or: all")
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
    if not Path("/proc/self/stat").exists():
        raise SystemExit("bench/serve.py reads CPU time from /proc: it needs Linux")
    if shutil.which("wrk") is None:
        raise SystemExit("bench/serve.py sends its load with wrk, which is not installed: apt install wrk")
    for name in list(arguments.servers):
        if importlib.util.find_spec(SERVERS[name][0]) is None:
            print(f"{name} is left out: {SERVERS[name][0]} is not installed", file=sys.stderr)
            arguments.servers.remove(name)
    saved = measure(arguments)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(saved, indent=1) + "\n")
    print("\n".join(f"{key}: {value}" for key, value in saved["machine"].items()))
    print(report(saved))
    print(f"saved to {arguments.json}")


if __name__ == "__main__":
    main()
