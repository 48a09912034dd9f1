"""The two ends of what a server carries: bodies of 10 MB, and 10,000 connections that carry nothing. See --help.

Large bodies are posted one after another over two connections. "read" is a body that is not what it says, so it is read
to its end and refused: what is left is the cost of reading. "array" is a .npy document, which becomes an array and is
answered with its size. User CPU per MB is what the server's own code costs; the kernel's copies are the same for all.

Idle connections: each is opened, answered once and then left alone. Memory is the growth of the server's resident
bytes; what the kernel keeps for a socket is not in it.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .host import (
    GUNICORN,
    PYTHON,
    TICK,
    UVICORN,
    Running,
    conclude,
    cpu_seconds,
    cpus_apart,
    family,
    fine_cpu_seconds,
    keep_installed,
    machine,
    need_proc,
    open_many_files,
    post,
    rss_bytes,
    running,
    table,
)

SIZE = 10_000_000  # bytes of an array
MB = 1e6
SENDERS = 2  # connections, so that the server never waits for the next body

GRANIAN = [*PYTHON, "-m", "granian", "--interface", "asginl", "--workers", "1", "--log-level", "warning"]

# name: (the module it needs, its command line for a port)
SERVERS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "virtex": ("gunicorn", lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:sizes"]),
    "virtex, ASGI": ("gunicorn", lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:plain_sizes"]),
    "uvicorn": ("uvicorn", lambda port: [*UVICORN, "--port", port, "bench.apps:plain_sizes"]),
    "granian": ("granian", lambda port: [*GRANIAN, "--port", port, "bench.apps:plain_sizes"]),
}


def document(size: int) -> bytes:
    file = BytesIO()
    np.save(file, np.zeros(size, np.uint8))
    return file.getvalue()


BODIES = {"read": (bytes(SIZE), 422), "array": (document(SIZE), 200)}  # and the status that answers it
HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-npy\r\ncontent-length: %d\r\n\r\n"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
SMALL = b'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n{"data":[1]}'


def check(port: int) -> str | None:
    for name, (body, status) in BODIES.items():
        came = post(port, body, "application/x-npy")
        if came is None:
            return None
        if came[0] != status or (status == 200 and came[1] != b'{"data":[%d],"error":null}' % SIZE):
            return f"{name}: expected {status}, got {came}"
    return ""


def check_echo(port: int) -> str | None:
    came = post(port, b'{"data":[1]}')
    return None if came is None else "" if came[0] == 200 else f"expected 200, got {came}"


# Large bodies


class Sender(threading.Thread):
    """Posts the body over one connection until it is time; a wrong answer ends the run."""

    def __init__(self, port: int, what: str, until: float) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.body, self.status = BODIES[what]
        self.until = until
        self.posts = 0
        self.wrong = ""

    def run(self) -> None:
        head = HEAD % len(self.body)
        try:
            with socket.create_connection(("127.0.0.1", self.port), 30) as sock:
                while time.monotonic() < self.until and not self.wrong:
                    sock.sendall(head)
                    sock.sendall(self.body)
                    self.receive(sock)
        except OSError as error:
            self.wrong = repr(error)

    def receive(self, sock: socket.socket) -> None:
        answer = b""
        while not is_whole(answer):
            piece = sock.recv(4096)
            answer += piece
            if not piece:
                break
        if not answer.startswith(b"HTTP/1.1 %d " % self.status) or not is_whole(answer):
            self.wrong = f"expected {self.status}, got {answer!r}"
        self.posts += 1


def is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return length is not None and len(body) == int(length[1])


def user_seconds(pid: int) -> float:
    """User time of a process and its descendants. The kernel samples it, so a run needs some seconds."""
    stats = (Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in family(pid))
    return sum(int(fields[11]) for fields in stats) / TICK


def send(server: Running, what: str, seconds: float) -> dict[str, float]:
    user, cpu = user_seconds(server.pid), cpu_seconds(server.pid)
    senders = [Sender(server.port, what, time.monotonic() + seconds) for _ in range(SENDERS)]
    begun = time.monotonic()
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
        if sender.wrong:
            raise SystemExit(f"{server.name}: {sender.wrong}")
    megabytes = sum(sender.posts for sender in senders) * len(senders[0].body) / MB
    return {
        "user_us_per_mb": (user_seconds(server.pid) - user) / megabytes * 1e6,
        "cpu_us_per_mb": (cpu_seconds(server.pid) - cpu) / megabytes * 1e6,
        "mb_per_second": megabytes / (time.monotonic() - begun),
    }


def measure_bodies(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All servers, interleaved; medians."""
    serving, loading = cpus_apart()
    runs: dict[tuple[str, str], list[dict[str, float]]] = {(w, n): [] for w in BODIES for n in arguments.servers}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name, SERVERS[name][1], check, serving)) for name in arguments.servers]
        os.sched_setaffinity(0, loading)
        for _ in range(arguments.runs):
            for what in BODIES:
                for server in servers:
                    runs[what, server.name].append(send(server, what, arguments.seconds))
                    print(".", end="", flush=True, file=sys.stderr)
        os.sched_setaffinity(0, serving | loading)
    print(file=sys.stderr)
    keys = ("user_us_per_mb", "cpu_us_per_mb", "mb_per_second")
    return [
        {"what": what, "server": name, **{key: round(median(run[key] for run in ran), 1) for key in keys}}
        for (what, name), ran in runs.items()
    ]


# Idle connections


@contextmanager
def connected(port: int, count: int) -> Iterator[None]:
    """So many connections, each of which was answered once."""
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            sock.sendall(SMALL)
            if not sock.recv(4096).startswith(b"HTTP/1.1 200"):
                raise SystemExit("a connection was not answered with 200")
        yield


def measure_idle(arguments: argparse.Namespace) -> dict[str, Any]:
    serving, _ = cpus_apart()
    options = ["--bind", "127.0.0.1:{port}", "--worker-connections", str(arguments.connections), "bench.apps:echo"]
    with running(
        "virtex", lambda port: [*GUNICORN, *(o.format(port=port) for o in options)], check_echo, serving
    ) as it:
        with connected(it.port, 10):
            time.sleep(1)  # what the first connections make once
        before, begun = rss_bytes(it.pid), fine_cpu_seconds(it.pid)
        time.sleep(arguments.idle)
        alone = fine_cpu_seconds(it.pid) - begun
        with connected(it.port, arguments.connections):
            time.sleep(1)
            grown, begun = rss_bytes(it.pid) - before, fine_cpu_seconds(it.pid)
            time.sleep(arguments.idle)
            spent = fine_cpu_seconds(it.pid) - begun
    return {
        "connections": arguments.connections,
        "bytes_each": round(grown / arguments.connections),
        "percent_of_a_core": round(100 * spent / arguments.idle, 3),
        "percent_without_connections": round(100 * alone / arguments.idle, 3),
    }


# The command


def report(saved: dict[str, Any]) -> str:
    rows = [("10 MB posts", "server", "user us/MB", "of uvicorn", "CPU us/MB", "MB/s")]
    yardsticks = {body["what"]: body["user_us_per_mb"] for body in saved["bodies"] if body["server"] == "uvicorn"}
    for body in saved["bodies"]:
        yardstick = yardsticks.get(body["what"])
        share = f"{body['user_us_per_mb'] / yardstick:.2f}" if yardstick else "-"
        figures = (f"{body[key]:g}" for key in ("cpu_us_per_mb", "mb_per_second"))
        rows.append((body["what"], body["server"], f"{body['user_us_per_mb']:g}", share, *figures))
    idle = saved["idle"]
    words = "{connections} idle connections: {bytes_each} bytes each, {percent_of_a_core} % of a core"
    return "\n".join([table(rows), words.format(**idle) + f" ({idle['percent_without_connections']} % without them)"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs per server (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run (default: %(default)s)")
    parser.add_argument("--servers", default=";".join(SERVERS), help="for large bodies (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=10_000, help="that are idle (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to watch them (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/edges.json"), help="where the figures go")
    parsed = parser.parse_args(arguments)
    parsed.servers = parsed.servers.split(";")
    unknown = [name for name in parsed.servers if name not in SERVERS]
    if unknown:
        parser.error(f"--servers: expected some of {'; '.join(SERVERS)}, got {unknown[0]!r}")
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("bench/edges.py")
    open_many_files()
    keep_installed(arguments, {name: module for name, (module, _) in SERVERS.items()})
    saved = {
        "what": "bodies of 10 MB, and idle connections, one worker",
        "machine": machine("uvloop", "httptools", "numpy", "gunicorn", "uvicorn", "granian"),
        "bodies": measure_bodies(arguments),
        "idle": measure_idle(arguments),
    }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
