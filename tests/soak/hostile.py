"""A good client beside bad ones: what do they cost it, and what do they cost in memory? See --help.

One worker with a budget of 128 MiB, a good client in a loop in a process of its own, and one attack after the other. An
attack goes on while the good client is measured, and is over before the next one. Of each: the good client's requests
per second beside the attack and alone, its longest wait, how many of its answers were 200, and by how much the worker's
memory grew. --seconds is the time for all attacks together, each is run again until it is over.

Exits with 1 where the good client was slowed below a bound, waited for longer than a bound, or memory grew beyond the
budget by more than SLACK, or from round to round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from bench.host import (
    GUNICORN,
    PYTHON,
    Running,
    conclude,
    cpus_apart,
    family,
    machine,
    need_proc,
    open_many_files,
    post,
    running,
    table,
)

from .apps import BUDGET

ROUND_SECONDS = 1.0  # that one attack goes on
SLACK = 64 << 20  # bytes beyond the budget: what the handler makes of one batch, and pools
# A worker keeps freed memory on purpose (virtex/workers/memory.py): not here, so that what grows is what is held
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
GROWTH = 32 << 20  # bytes by which what is left after a round may grow; the first fills pools and arenas
SETTLE_SECONDS = 10.0  # for the worker to see that its attackers have left
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b"


class Attack(NamedTuple):
    """What bad clients do while the good one is measured.

    share: of what the good client gets alone, that it must get at least. wait: seconds that it waits for an answer at
    most. run: attacks a port until it is cancelled.
    """

    name: str
    share: float
    wait: float
    run: Callable[[int], Any]


def ask(body: bytes) -> bytes:
    return POST % (len(body), body)


# What bad clients do


@asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[socket.socket]]:
    """So many connections, closed at the end; nobody reads from them."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
        yield socks


async def send(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the server may have cut it by now
        await asyncio.get_running_loop().sock_sendall(sock, data)


UNFINISHED = POST % (5_000_000, b"x" * 6000)


async def one_unfinished_body(port: int) -> None:
    async with connected(port, 1) as (sock,):
        await send(sock, UNFINISHED)
        await asyncio.Event().wait()


async def unfinished_bodies_one_after_the_other(port: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        while True:
            (sock,) = await stack.enter_async_context(connected(port, 1))
            await send(sock, UNFINISHED[:100])
            await asyncio.sleep(0.004)  # less than max_time_on_queue


async def answers_that_nobody_reads(port: int) -> None:
    async with connected(port, 60) as socks:
        for sock in socks:
            await send(sock, ask(b'{"data":[2000000]}') * 5)
        await asyncio.Event().wait()


async def heads_that_never_end(port: int) -> None:
    async with connected(port, 2500) as socks:
        for sock in socks:
            await send(sock, b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 60_000)
        await asyncio.Event().wait()


async def pipelined_behind_a_large_answer(port: int) -> None:
    async with connected(port, 100) as socks:
        for sock in socks:
            await send(sock, ask(b'{"data":[3000000]}'))
            task = asyncio.ensure_future(send(sock, ask(b'{"data":[1]}') * 3000))
            await asyncio.wait([task], timeout=0.001)
        await asyncio.Event().wait()


async def floods(port: int, request: bytes) -> None:
    async def flood(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                sending = asyncio.ensure_future(loop.sock_sendall(sock, request * (256_000 // len(request))))
                while not sending.done():
                    await asyncio.wait({sending}, timeout=0.01)
                    with suppress(BlockingIOError):
                        sock.recv(1 << 20)

    async with connected(port, 30) as socks:
        await asyncio.gather(*map(flood, socks))


async def crowded_messages(port: int) -> None:
    leaf = b"[" * 30 + b"0" + b"]" * 30
    body = b'{"data":[[' + b",".join([leaf] * (30_000_000 // (len(leaf) + 1))) + b"]]}"
    while True:
        async with connected(port, 1) as (sock,):
            await send(sock, ask(body))
            await asyncio.sleep(0.2)


CHUNKS = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 10_000
CHUNKS += b'b\r\n{"data":[]}\r\n0\r\n\r\n'

ATTACKS = [
    Attack("one unfinished body", 0.2, 1.0, one_unfinished_body),
    Attack("unfinished bodies, one after the other", 0.2, 1.0, unfinished_bodies_one_after_the_other),
    Attack("answers that nobody reads", 0.0, 2.0, answers_that_nobody_reads),
    Attack("heads that never end", 0.0, 2.0, heads_that_never_end),
    Attack("pipelined behind a large answer", 0.0, 2.0, pipelined_behind_a_large_answer),
    Attack("pipelined GET", 0.0, 0.5, partial(floods, request=b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")),
    Attack("pipelined 404", 0.0, 0.5, partial(floods, request=b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")),
    Attack("pipelined empty messages", 0.0, 0.5, partial(floods, request=ask(b'{"data":[]}'))),
    Attack("pipelined chunks", 0.0, 0.5, partial(floods, request=CHUNKS)),
    Attack("crowded messages", 0.0, 1.0, crowded_messages),
]


# The good client


def be_good(port: int, seconds: float) -> dict[str, Any]:
    """One request after the other; runs in a process of its own."""
    until = time.monotonic() + seconds
    statuses: dict[int, int] = {}
    longest = 0.0
    sock = None
    while (begun := time.monotonic()) < until:
        try:
            sock = sock or socket.create_connection(("127.0.0.1", port), 30)
            sock.sendall(ask(b'{"data":[1]}'))
            status, goes_on = read_answer(sock)
        except OSError:
            status, goes_on = 0, False
        if sock is not None and not goes_on:
            sock.close()
            sock = None
        statuses[status] = statuses.get(status, 0) + 1
        longest = max(longest, time.monotonic() - begun)
    return {"rate": sum(statuses.values()) / seconds, "longest": longest, "statuses": statuses}


def read_answer(sock: socket.socket) -> tuple[int, bool]:
    """Its status, and whether the connection goes on."""
    data = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("the answer broke off")
        data += piece
        head, found, body = data.partition(b"\r\n\r\n")
        if found and len(body) == int(head.partition(b"content-length: ")[2].partition(b"\r")[0]):
            return int(head[9:12]), b"connection: close" not in head


async def good(port: int, seconds: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *PYTHON, "-m", "soak.hostile", "--good", str(port), "--seconds", str(seconds), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return json.loads(said)  # type: ignore[no-any-return]


# Runs


def held_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants, but for pages of files: the system drops and reads those."""
    lines = [line for one in family(pid) for line in Path(f"/proc/{one}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


async def attack(server: Running, one: Attack) -> dict[str, Any]:
    """The good client alone, beside the attack, and what memory did."""
    before = held_bytes(server.pid)
    alone = await good(server.port, ROUND_SECONDS / 2)
    attacking = asyncio.create_task(one.run(server.port))
    await asyncio.sleep(0.3)
    beside = asyncio.create_task(good(server.port, ROUND_SECONDS))
    most = before
    while not beside.done():
        await asyncio.wait({beside}, timeout=0.05)
        most = max(most, held_bytes(server.pid))
    attacking.cancel()
    with suppress(asyncio.CancelledError):
        await attacking
    return {"attack": one.name, "alone": alone, "beside": beside.result(), "grown": most - before}


def wrong_with(one: Attack, run: dict[str, Any]) -> list[str]:
    alone, beside = run["alone"], run["beside"]
    found = []
    if beside["rate"] < one.share * alone["rate"]:
        found.append(f"{one.name}: {beside['rate']:.0f} requests/s beside it, {alone['rate']:.0f} alone")
    most = one.wait + 5 * alone["longest"]  # this machine may be slow and busy
    if beside["longest"] > most:
        found.append(f"{one.name}: the good client waited for {beside['longest']:.2f} s; the bound is {most:.2f}")
    if run["grown"] > BUDGET + SLACK:
        found.append(f"{one.name}: memory grew by {run['grown'] >> 20} MiB; the budget is {BUDGET >> 20}")
    if alone["statuses"].keys() != {"200"}:
        found.append(f"before {one.name}: the good client alone was answered {alone['statuses']}")
    return found


async def settled(server: Running, most: int) -> int:
    """Resident bytes, once they are no more than `most`, or when that has not come true in SETTLE_SECONDS."""
    until = time.monotonic() + SETTLE_SECONDS
    while (now := held_bytes(server.pid)) > most and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return now


async def all_attacks(server: Running, attacks: Sequence[Attack], seconds: float) -> dict[str, Any]:
    await good(server.port, ROUND_SECONDS / 2)  # warm
    until = time.monotonic() + seconds
    runs: list[dict[str, Any]] = []
    left: list[int] = []
    failures: list[str] = []
    while not left or time.monotonic() < until:
        for one in attacks:
            run = await attack(server, one)
            runs.append(run)
            failures += wrong_with(one, run)
            await asyncio.sleep(0.5)  # the worker sees them leave
        left.append(await settled(server, left[0] + GROWTH if left else 1 << 62))
    if left[-1] > left[0] + GROWTH:
        failures.append(f"after the first round {left[0] >> 20} MiB were left, after the last {left[-1] >> 20}")
    return {"runs": runs, "left": left, "failures": failures}


def check(port: int) -> str | None:
    came = post(port, b'{"data":[1]}')
    return None if came is None else "" if came == (200, b'{"data":["x"],"error":null}') else f"got {came}"


def command(port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "soak.apps:sized"]


def report(saved: dict[str, Any]) -> str:
    rows = [("beside", "requests/s", "alone", "longest wait ms", "200", "other", "RSS MiB grown")]
    for run in saved["runs"]:
        beside = run["beside"]
        well = beside["statuses"].get("200", 0)
        other = sum(beside["statuses"].values()) - well
        figures = f"{beside['rate']:.0f}", f"{run['alone']['rate']:.0f}", f"{1000 * beside['longest']:.0f}"
        rows.append((run["attack"], *figures, str(well), str(other), f"{run['grown'] / 2**20:.0f}"))
    left = "RSS MiB left after each round: " + ", ".join(str(size >> 20) for size in saved["left"])
    return "\n".join([table(rows), left, f"{len(saved['failures'])} failures", *saved["failures"][:20]])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="at least one round of all (default: %(default)s)")
    parser.add_argument("--only", default="", help="attacks whose name holds this (default: all)")
    parser.add_argument("--good", type=int, metavar="PORT", help="be the good client, and print what came")
    parser.add_argument("--json", type=Path, default=Path("build/hostile.json"), help="where the figures go")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    if arguments.good:
        print(json.dumps(be_good(arguments.good, arguments.seconds)))
        return
    need_proc("tests/soak/hostile.py")
    open_many_files()
    attacks = [one for one in ATTACKS if arguments.only in one.name]
    mine, others = cpus_apart()
    with running("virtex", command, check, mine, EXACT) as server:
        os.sched_setaffinity(0, others)
        saved = {
            "what": "a good client in a loop beside bad ones, one worker",
            "machine": machine("uvloop", "httptools", "orjson", "gunicorn"),
            **uvloop.run(all_attacks(server, attacks, arguments.seconds)),
        }
    conclude(saved, arguments.json, report(saved))
    if saved["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
