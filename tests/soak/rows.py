"""Many clients, some of which leave and some of which send bad items, for as long as you like: does every answer belong
to its own request, does every wait end, does memory stay flat? See --help.

256 connections to a TensorHandler under the worker, once with each executor. What a client sends and what it does is
drawn at random: one item or several, more than a batch holds at times; base64, nested lists or .npy; whole or in two
pieces; with a bad item among good ones, which is to be a 422 that names the lowest bad one; or it leaves, before its
request is all sent or before it is answered. Every answer is read by the standard library and np.load, not by Virtex,
and compared with what this request held. 503 is the right answer of a queue that is full. Every wait has a deadline.

Exits with 1 where an answer was wrong, a wait had no end, the log told of an exception or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import uvloop
from kit.servers import read_answer

from bench.host import GUNICORN, Running, conclude, machine, need_proc, open_many_files, post, rss_bytes, running, table

from .apps import SHAPE

Array = npt.NDArray[Any]

DEADLINE = 30.0  # seconds for any one wait; the server answers, or gives up, within 20
LEAVES, SENDS_BAD, SENDS_MANY, SENDS_PIECES = 0.2, 0.15, 0.05, 0.2  # chances
GROWTH = 1.05, 8 << 20  # the last quarter's memory is at most the first's by the factor, and so many bytes
SAMPLE_SECONDS = 0.25
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing resets the connection


# What is sent


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def text(array: Array) -> str:
    return base64.b64encode(npy(array)).decode()


BAD_ITEMS: list[Any] = [
    text(np.zeros(63, "float32")),
    text(np.zeros(64, "float64")),
    text(np.zeros(64, "float32"))[:-8],
    "not base64",
    [1.0] * 63,
    [1.0] * 63 + ["1"],
    None,
    {"a": 1},
]
BAD_DOCUMENTS = [npy(np.zeros(63, "float32")), npy(np.zeros(64, "int32")), b"?"]


class Request(NamedTuple):
    """What goes out, and what has to come back."""

    content_type: str
    accept: str
    body: bytes
    rows: Array
    bad: int  # index of the lowest bad item, -1: none is
    in_numbers: bool = False  # and so the answer, which is JSON

    def wrong(self, status: int, headers: bytes, body: bytes) -> str:
        """What is wrong with the answer; empty: nothing."""
        if status == 503:
            return "" if b"retry-after" in headers else f"a 503 without Retry-After: {body!r}"
        if self.bad >= 0:
            right = status == 422 and json.loads(body)["error"].startswith(f"item {self.bad}: ")
            return "" if right else f"expected a 422 of item {self.bad}, got {status} {body[:200]!r}"
        if status != 200:
            return f"expected rows, got {status} {body[:200]!r}"
        came = read_npy(body) if self.accept == "application/x-npy" else read_json(body, self.in_numbers)
        same = came.dtype == self.rows.dtype and came.shape == self.rows.shape and bool((came == self.rows).all())
        return "" if same else f"another request's rows: expected {self.rows[:, :2]}, got {came[:, :2]}"


def read_npy(body: bytes) -> Array:
    return np.load(io.BytesIO(body))


def read_json(body: bytes, in_numbers: bool) -> Array:
    data = json.loads(body)["data"]
    if in_numbers:
        return np.asarray(data, np.float32)
    return np.stack([np.load(io.BytesIO(base64.b64decode(item, validate=True))) for item in data])


def draw(chance: random.Random, numbers: np.random.Generator) -> Request:
    """A request at random. Rows are random bits of their own, so none is like another's."""
    count = chance.randint(33, 80) if chance.random() < SENDS_MANY else chance.randint(1, 4)
    rows = numbers.random((count, *SHAPE), np.float32)
    bad = sorted({chance.randrange(count) for _ in range(2)}) if chance.random() < SENDS_BAD else []
    lowest = bad[0] if bad else -1
    accept = chance.choice(("application/json", "application/x-npy"))
    if chance.random() < 0.3:
        return Request("application/x-npy", accept, draw_npy(chance, rows, lowest), rows, lowest)
    in_numbers = chance.random() < 0.2
    items: list[Any] = rows.tolist() if in_numbers else [text(row) for row in rows]
    for index in bad:
        items[index] = chance.choice(BAD_ITEMS)
    return Request("application/json", accept, json.dumps({"data": items}).encode(), rows, lowest, in_numbers)


def draw_npy(chance: random.Random, rows: Array, bad: int) -> bytes:
    """One document of all rows, or one each. At most one is bad: where it ends, and others begin, it may not tell."""
    if bad < 0 and chance.random() < 0.5:
        return npy(rows)
    documents = [npy(row) for row in rows]
    if bad >= 0:
        documents[bad] = chance.choice(BAD_DOCUMENTS)
    return b"".join(documents)


# Clients


class Tally:
    """What happened, over all clients of a run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def fail(self, why: str) -> None:
        self.failures.append(why)


class Client:
    """One connection at a time: sends, compares, sometimes leaves and comes back on a new one."""

    def __init__(self, port: int, seed: int, tally: Tally) -> None:
        self.port = port
        self.chance = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.tally = tally
        self.writer: asyncio.StreamWriter | None = None
        self.reader: asyncio.StreamReader

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(DEADLINE):
                    await self.once()
            except TimeoutError:
                self.tally.fail(f"no answer within {DEADLINE:g} s")
                self.leave()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.tally.fail(f"the connection broke: {error!r}")
                self.leave()
        self.leave()

    async def once(self) -> None:
        request = draw(self.chance, self.numbers)
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        if self.chance.random() < LEAVES:
            whole = len(request.body)
            await self.send(request, self.chance.choice((whole, self.chance.randrange(whole))))
            await asyncio.sleep(self.chance.expovariate(self.chance.choice((200, 1000))))  # before and after the cut
            self.leave()
            self.tally.counts["left"] += 1
            return
        await self.send(request, len(request.body))
        status, headers, body = await read_answer(self.reader)
        self.tally.counts[str(status)] += 1
        why = request.wrong(status, headers, body)
        if why:
            self.tally.fail(why)
        if status == 503 or b"connection: close" in headers:
            self.leave()
            await asyncio.sleep(self.chance.expovariate(100))

    async def send(self, request: Request, length: int) -> None:
        """The head, and `length` bytes of the body, at times in two pieces."""
        assert self.writer is not None
        head = (
            f"POST / HTTP/1.1\r\nhost: soak\r\ncontent-type: {request.content_type}\r\naccept: {request.accept}\r\n"
            f"content-length: {len(request.body)}\r\n\r\n"
        )
        data = head.encode() + request.body[:length]
        if self.chance.random() < SENDS_PIECES:
            cut = self.chance.randrange(len(data))
            self.writer.write(data[:cut])
            await asyncio.sleep(self.chance.expovariate(500))
            data = data[cut:]
        self.writer.write(data)
        await self.writer.drain()

    def leave(self) -> None:
        """End the connection, or break it: the end alone does not say that nobody reads (RFC 9112 section 9.6)."""
        if self.writer is None:
            return
        if self.chance.random() < 0.5:
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()
        self.writer = None


async def all_clients(server: Running, connections: int, seconds: float, seed: int, tally: Tally) -> list[int]:
    """Run them; the server's resident bytes, sampled, come back."""
    until = time.monotonic() + seconds
    clients = [Client(server.port, seed * connections + i, tally) for i in range(connections)]
    running_clients = [asyncio.create_task(client.run(until)) for client in clients]
    samples = []
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(rss_bytes(server.pid))
    done, late = await asyncio.wait(running_clients, timeout=DEADLINE + 5)
    for task in late:
        tally.fail("a client was still waiting after its deadline")
        task.cancel()
    for task in done:
        if task.exception() is not None:
            tally.fail(f"a client broke: {task.exception()!r}")
    return samples


# Runs


def check(port: int) -> str | None:
    row = np.arange(64, dtype="float32")
    came = post(port, json.dumps({"data": [text(row)]}).encode())
    if came is None:
        return None
    right = came[0] == 200 and (read_json(came[1], False)[0] == row).all()
    return "" if right else f"expected its own row, got {came[0]} {came[1][:200]!r}"


def command(executor: str, log: Path, port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "--log-file", str(log), f"soak.apps:{executor}"]


def soak(executor: str, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One run under one executor: counts, memory and failures."""
    tally = Tally()
    every_cpu = os.sched_getaffinity(0)
    with TemporaryDirectory(prefix="virtex-") as folder:
        log = Path(folder) / "log"
        with running(executor, partial(command, executor, log), check, every_cpu) as server:
            samples = uvloop.run(all_clients(server, arguments.connections, seconds, arguments.seed, tally))
            if check(server.port) != "":
                tally.fail("one client alone got no right answer after the others had left")
        said = log.read_text() if log.exists() else ""
    if "Traceback" in said:
        tally.fail(f"the log tells of an exception: {said[said.index('Traceback') :][:2000]}")
    first, last = quarters(samples)
    if last > first * GROWTH[0] + GROWTH[1]:
        tally.fail(f"memory grew from {first} to {last} bytes; the bound is {GROWTH[0]:g} times and {GROWTH[1]} bytes")
    if not (tally.counts["200"] and tally.counts["422"] and tally.counts["left"]):
        tally.fail(f"expected rows, bad items and clients that left, got {dict(tally.counts)}")
    return {
        "executor": executor,
        "seconds": seconds,
        "counts": dict(tally.counts),
        "rss_first_quarter": first,
        "rss_last_quarter": last,
        "failures": tally.failures,
    }


def quarters(samples: Sequence[int]) -> tuple[int, int]:
    """Median bytes in the first and the last quarter of a run."""
    part = max(1, len(samples) // 4)
    return round(median(samples[:part])), round(median(samples[-part:]))


# The command


def report(saved: dict[str, Any]) -> str:
    kinds = sorted({kind for run in saved["runs"] for kind in run["counts"]})
    rows = [("executor", "seconds", *kinds, "RSS MiB first", "last", "failures")]
    for run in saved["runs"]:
        memory = (f"{run[key] / 2**20:.1f}" for key in ("rss_first_quarter", "rss_last_quarter"))
        counts = (str(run["counts"].get(kind, 0)) for kind in kinds)
        rows.append((run["executor"], f"{run['seconds']:g}", *counts, *memory, str(len(run["failures"]))))
    failures = [failure for run in saved["runs"] for failure in run["failures"]]
    return "\n".join([table(rows), *failures[:20]])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all executors together (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--executors", default="inline,thread", help="of inline,thread (default: both)")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"), help="where the counts go")
    parsed = parser.parse_args(arguments)
    parsed.executors = parsed.executors.split(",")
    unknown = [name for name in parsed.executors if name not in ("inline", "thread")]
    if unknown:
        parser.error(f"--executors: expected inline, thread or both, got {unknown[0]!r}")
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("tests/soak/rows.py")
    open_many_files()
    seconds = arguments.seconds / len(arguments.executors)
    saved = {
        "what": f"{arguments.connections} clients that leave at random, bad items among good ones",
        "machine": machine("uvloop", "httptools", "orjson", "numpy", "gunicorn"),
        "seed": arguments.seed,
        "runs": [soak(executor, arguments, seconds) for executor in arguments.executors],
    }
    conclude(saved, arguments.json, report(saved))
    if any(run["failures"] for run in saved["runs"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
