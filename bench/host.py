"""What every benchmark of a server needs: the machine it runs on, CPUs apart, servers on loopback, and their CPU time.

A server is a process (or a master and its workers), started on a free port of the loopback interface, checked before
anything is timed, and stopped by its pid however the run ends. CPU time is read from /proc: it needs Linux.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")  # of utime and stime in /proc, per second
GONE = FileNotFoundError, ProcessLookupError  # a process or a thread that ended while it was looked at
START_SECONDS = 180.0  # until a server answers; importing everything on a busy machine takes long

PYTHON = [sys.executable, "-W", "ignore"]
GUNICORN = [*PYTHON, "-m", "gunicorn", "-k", "virtex.VirtexWorker", "-w", "1", "--log-level", "warning"]
UVICORN = [*PYTHON, "-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--lifespan", "off"]


# Servers


class Running(NamedTuple):
    name: str
    pid: int
    port: int


@contextmanager
def running(
    name: str,
    command: Callable[[str], list[str]],
    check: Callable[[int], str | None],
    cpus: set[int],
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> Iterator[Running]:
    """A server on a free port of the loopback interface, stopped by its pid at the end, with all that it started.

    command: its command line for a port. check: asks the server on a port; None while it is not there yet, "" when its
    answer is right, else what was wrong with it. output: where what it prints goes.
    """
    port = free_port()
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command(str(port)),
        env=os.environ | {"PYTHONPATH": path} | dict(environment or {}),
        stdout=output,
        stderr=output and subprocess.STDOUT,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),  # safe here: this process has one thread
    )
    try:
        _await_answer(name, process, port, check)
        yield Running(name, process.pid, port)
    finally:
        others = {one: _born(one) for one in family(process.pid)[1:]}
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SystemExit(f"{name}: still running 30 s after SIGTERM") from None
        finally:
            for one, born in others.items():
                if born and _born(one) == born:
                    os.kill(one, signal.SIGKILL)


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks: with its pid, who it is. Empty where it is gone."""
    with suppress(*GONE):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_answer(name: str, process: subprocess.Popen[bytes], port: int, check: Callable[[int], str | None]) -> None:
    """Wait until the server answers, and have its answer checked before anything is timed."""
    deadline = time.monotonic() + START_SECONDS
    while (wrong := check(port)) is None:
        if process.poll() is not None:
            raise SystemExit(f"{name}: exited with {process.returncode} before it answered")
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: no answer on port {port} after {START_SECONDS:g} s")
        time.sleep(0.05)
    if wrong:
        raise SystemExit(f"{name}: {wrong}")


def post(port: int, body: bytes, content_type: str = "application/json", path: str = "/") -> tuple[int, bytes] | None:
    """Status and body, or None while nobody answers, or one that listens says that it is not ready yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, {"content-type": content_type})
        response = connection.getresponse()
        answer = response.status, response.read()
        return None if answer[0] == 503 else answer
    except OSError:
        return None
    finally:
        connection.close()


# CPU time


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, in /proc's grain (usually 10 ms)."""
    ticks = 0
    for one in family(pid):
        with suppress(*GONE):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of proc(5)
    return ticks / TICK


def fine_cpu_seconds(pid: int) -> float:
    """Time on a CPU by the scheduler's clock, in nanoseconds, of the threads there are: for what is below a tick."""
    spent = 0
    for one in family(pid):
        for task in _tasks(one):
            with suppress(*GONE):
                spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def page_faults(pid: int) -> int:
    """Pages that a process and its descendants touched for the first time, or again after they gave them back."""
    faults = 0
    for one in family(pid):
        with suppress(*GONE):
            faults += int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[7])
    return faults


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; pages that they share are counted in each."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")


def pss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; a page that several map is divided among them."""
    kilobytes = 0
    for one in family(pid):
        with suppress(*GONE):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            kilobytes += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return kilobytes * 1024


def family(pid: int) -> list[int]:
    """The process and its descendants: children, theirs, and so on."""
    found = [pid]
    for task in _tasks(pid):
        with suppress(*GONE):
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def _tasks(pid: int) -> list[Path]:
    """The threads of a process; none where it has ended."""
    with suppress(*GONE):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


# Load


class Load(NamedTuple):
    """One run of wrk against one server."""

    requests: int
    seconds: float
    cpu_seconds: float  # of the server, user and system
    p50: float  # milliseconds
    p99: float
    faults: int  # of pages, of the server


def load(server: Running, connections: int, seconds: int, cpus: set[int], *script: str) -> Load:
    """Run wrk once. Exits with its words where anything but 200 came back: a failed run is an error, never a figure.

    script: what post.lua takes.
    """
    url = f"http://127.0.0.1:{server.port}/"
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "post.lua")]
    command = [*wrk, url, "--", *script]
    before, faults = cpu_seconds(server.pid), page_faults(server.pid)
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    spent, faults = cpu_seconds(server.pid) - before, page_faults(server.pid) - faults
    if ended.returncode:
        raise SystemExit(f"wrk: exit status {ended.returncode}: {ended.stderr or ended.stdout}")
    said = json.loads(ended.stdout.splitlines()[-1])
    if said["refused"] or said["broken"] or not said["requests"]:
        raise SystemExit(f"{server.name} at {connections} connections did not answer all requests with 200: {said}")
    milliseconds = said["p50"] / 1e3, said["p99"] / 1e3
    return Load(said["requests"], said["microseconds"] / 1e6, spent, *milliseconds, faults)


# The machine


def cpus_apart() -> tuple[set[int], set[int]]:
    """One CPU for the servers, and the others for the load; the same one where there is no other."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, set(mine[1:]) or {mine[0]}


def machine(*packages: str) -> dict[str, Any]:
    """What the figures depend on. packages: whose versions are named beside Virtex's and Python's."""
    from virtex import __version__, codec_info
    from virtex.info import cpu

    versions = {"virtex": __version__, "python": platform.python_version()}
    return {
        "cpu": cpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": sorted(os.sched_getaffinity(0)),
        "codec": str(codec_info()),
        "versions": versions | {name: _version(name) for name in packages},
    }


def wrk_version() -> str:
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout
    return said.split()[1]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


# Commands


def need_proc(what: str) -> None:
    if not Path("/proc/self/stat").exists():
        raise SystemExit(f"{what} reads CPU time from /proc: it needs Linux")


def open_many_files() -> None:
    """Raise the limit of open files, and so of connections, to what the system allows."""
    with suppress(ValueError):  # where the hard limit is unlimited and the kernel's is not
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def need_wrk(what: str) -> None:
    if shutil.which("wrk") is None:
        raise SystemExit(f"{what} sends its load with wrk, which is not installed: apt install wrk")


def keep_installed(arguments: argparse.Namespace, needs: Mapping[str, str]) -> None:
    """Drop from arguments.servers, saying so, what needs a module that is not there."""
    for name in list(arguments.servers):
        if importlib.util.find_spec(needs[name]) is None:
            print(f"{name} is left out: {needs[name]} is not installed", file=sys.stderr)
            arguments.servers.remove(name)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def conclude(saved: dict[str, Any], to: Path, text: str) -> None:
    """Print the machine and the figures, and save them."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(saved, indent=1) + "\n")
    print("\n".join(f"{key}: {value}" for key, value in saved["machine"].items()))
    print(text)
    print(f"saved to {to}")
