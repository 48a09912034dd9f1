"""A million requests through one worker, over connections that come and go: do memory and descriptors stay where they
were? See --help.

Each client sends its requests in bursts, some pipelined, and after a number of them that is drawn at random it leaves:
it ends the connection, or breaks it, or breaks it in the middle of a request; then it comes back on a new one. Every
answer is compared with what its request held. --app echo is called directly, --app plain by ASGI.

Exits with 1 where an answer was wrong, a connection broke that nobody broke, a wait had no end, memory grew, or the
worker holds more descriptors at the end than before the first client came.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from kit.servers import read_answer

from bench.host import (
    GUNICORN,
    Running,
    conclude,
    cpu_seconds,
    machine,
    need_proc,
    open_many_files,
    post,
    rss_bytes,
    running,
    table,
)

APPS = {"echo": "bench.apps:echo", "plain": "bench.apps:plain_echo"}
DEADLINE = 30.0  # seconds for one burst
SAMPLE_SECONDS = 0.5
WARM = 0.1  # of all requests: pools, caches and the allocator's arenas fill during these
GROWTH = 1.05, 8 << 20  # memory at the end is at most that after the warm-up by the factor, and so many bytes
BREAKS, BREAKS_INSIDE = 0.25, 0.25  # chances of a client that leaves
MOST_ON_A_CONNECTION = 200
MOST_IN_A_BURST = 8
SETTLE_SECONDS = 10.0  # for the worker to close what the last clients left behind
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing resets the connection
NUMBERED = (
    b'POST / HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{"data":[%09d]}'
)


class Plan:
    """How many requests are still to be sent, and what became of those that were."""

    def __init__(self, requests: int, until: float) -> None:
        self.left = requests
        self.until = until
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.number = 0

    def take(self, most: int) -> list[int]:
        """The numbers of the next requests; none when it is over."""
        count = 0 if time.monotonic() > self.until else min(most, self.left)
        self.left -= count
        first, self.number = self.number, self.number + count
        # Nine digits, none of them a leading zero, which JSON does not allow
        return [100_000_000 + (first + i) % 900_000_000 for i in range(count)]


class Client:
    """One connection at a time."""

    def __init__(self, port: int, seed: int, plan: Plan) -> None:
        self.port = port
        self.plan = plan
        self.chance = random.Random(seed)

    async def run(self) -> None:
        while self.plan.left and time.monotonic() < self.plan.until:
            try:
                async with asyncio.timeout(DEADLINE * 4):
                    await self.visit()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.plan.failures.append(f"the connection broke: {error!r}")

    async def visit(self) -> None:
        """One connection, from its opening to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.plan.counts["connections"] += 1
        try:
            for _ in range(self.chance.randint(1, MOST_ON_A_CONNECTION // MOST_IN_A_BURST)):
                numbers = self.plan.take(self.chance.randint(1, MOST_IN_A_BURST))
                if not numbers:
                    return
                async with asyncio.timeout(DEADLINE):
                    await self.burst(reader, writer, numbers)
        finally:
            self.leave(writer)

    async def burst(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, numbers: list[int]) -> None:
        writer.write(b"".join([NUMBERED % number for number in numbers]))
        for number in numbers:
            status, _, body = await read_answer(reader)
            if status != 200 or body != b'{"data":[%d],"error":null}' % number:
                self.plan.failures.append(f"expected the answer of {number}, got {status} {body[:100]!r}")
            self.plan.counts["answered"] += 1

    def leave(self, writer: asyncio.StreamWriter) -> None:
        how = self.chance.random()
        if how < BREAKS:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if how < BREAKS * BREAKS_INSIDE:
                writer.write((NUMBERED % 0)[: self.chance.randrange(1, len(NUMBERED))])
                self.plan.counts["broken inside"] += 1
            writer.transport.abort()
        else:
            writer.close()


async def watch(server: Running, plan: Plan) -> list[tuple[int, int]]:
    """(requests answered, resident bytes), over and over; it is cancelled at the end."""
    samples: list[tuple[int, int]] = []
    with suppress(asyncio.CancelledError):
        while True:
            samples.append((plan.counts["answered"], rss_bytes(server.pid)))
            await asyncio.sleep(SAMPLE_SECONDS)
    return samples


async def all_clients(server: Running, arguments: argparse.Namespace, plan: Plan) -> list[tuple[int, int]]:
    watching = asyncio.create_task(watch(server, plan))
    await asyncio.sleep(0)
    clients = [Client(server.port, arguments.seed * 10_000 + i, plan) for i in range(arguments.connections)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())
    watching.cancel()
    return [*await watching, (plan.counts["answered"], rss_bytes(server.pid))]


def descriptors(server: Running) -> int:
    """Open files of the worker."""
    (worker,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return len(os.listdir(f"/proc/{worker}/fd"))


def settled(server: Running, baseline: int) -> int:
    """Descriptors, once they are no more than before, or when that has not come true in SETTLE_SECONDS."""
    until = time.monotonic() + SETTLE_SECONDS
    while (now := descriptors(server)) > baseline and time.monotonic() < until:
        time.sleep(0.1)
    return now


def check(port: int) -> str | None:
    came = post(port, b'{"data":[1]}')
    return None if came is None else "" if came == (200, b'{"data":[1],"error":null}') else f"got {came}"


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """The run: counts, memory, descriptors and failures."""
    with TemporaryDirectory(prefix="virtex-") as folder:
        log = Path(folder) / "log"
        with running("virtex", partial(command, arguments.app, log), check, os.sched_getaffinity(0)) as server:
            baseline, cpu, begun = descriptors(server), cpu_seconds(server.pid), time.monotonic()
            plan = Plan(arguments.requests, begun + arguments.seconds)
            samples = uvloop.run(all_clients(server, arguments, plan))
            seconds, cpu = time.monotonic() - begun, cpu_seconds(server.pid) - cpu
            after = settled(server, baseline)
            if check(server.port) != "":
                plan.failures.append("one client alone got no right answer after the others had left")
        said = log.read_text() if log.exists() else ""
    if "Traceback" in said:
        plan.failures.append(f"the log tells of an exception: {said[said.index('Traceback') :][:2000]}")
    warm = next(size for answered, size in samples if answered >= WARM * plan.counts["answered"])
    last = samples[-1][1]
    if last > warm * GROWTH[0] + GROWTH[1]:
        plan.failures.append(f"memory grew from {warm} to {last} bytes after the warm-up")
    if after > baseline:
        plan.failures.append(f"the worker had {baseline} descriptors before and has {after} now")
    return {
        "app": arguments.app,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "counts": dict(plan.counts),
        "rss_warm": warm,
        "rss_most": max(size for _, size in samples),
        "rss_last": last,
        "descriptors_before": baseline,
        "descriptors_after": after,
        "failures": plan.failures,
    }


def command(app: str, log: Path, port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "--log-file", str(log), APPS[app]]


# The command


def report(saved: dict[str, Any]) -> str:
    run = saved["run"]
    counts = run["counts"]
    rows = [("", "answered", "connections", "seconds", "CPU s", "RSS MiB warm", "most", "last", "fds before", "after")]
    memory = (f"{run[key] / 2**20:.1f}" for key in ("rss_warm", "rss_most", "rss_last"))
    files = str(run["descriptors_before"]), str(run["descriptors_after"])
    done = str(counts.get("answered", 0)), str(counts.get("connections", 0))
    rows.append((run["app"], *done, f"{run['seconds']:g}", f"{run['cpu_seconds']:g}", *memory, *files))
    return "\n".join([table(rows), f"{len(run['failures'])} failures", *run["failures"][:20]])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1200.0, help="at most (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="at a time (default: %(default)s)")
    parser.add_argument("--app", choices=list(APPS), default="echo", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/soak_http.json"), help="where the figures go")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    need_proc("tests/soak/connections.py")
    open_many_files()
    saved = {
        "what": f"{arguments.requests} requests over connections that come and go, one worker",
        "machine": machine("uvloop", "httptools", "orjson", "numpy", "gunicorn"),
        "run": soak(arguments),
    }
    conclude(saved, arguments.json, report(saved))
    if saved["run"]["failures"]:  # type: ignore[index]
        sys.exit(1)


if __name__ == "__main__":
    main()
