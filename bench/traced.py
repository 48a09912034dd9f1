"""A server that keeps the time of each request, so that a load test can be held against it: bench/loadtest.py's.

Run: python -m bench.traced PORT TRACE COUNT stall|delay. It answers {"data":[n]} with the same. TRACE: where a .npy
goes at SIGTERM, with COUNT rows: nanoseconds on perf_counter when a request was read and when its answer was written.

stall: every 1.3 s it does nothing for 0.3 s, as a program that collects garbage or reads a disk; row n is the last
request of item n, 0 where none came. delay: items go from 0 to CYCLE - 1, over and over, and row n is request n, COUNT
at most; it answers each some 100 ms later, lognormal, as a model might. One thread, as the event loop of a service;
asyncio's, which writes at once: uvloop writes at the end of its turn, and the trace would not know when.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np

CYCLE = 8192  # of requests on their way at once there have to be fewer
PERIOD, STALL = 1.3, 0.3  # seconds
MEDIAN, SIGMA = 0.1, 0.35  # of the delays, seconds and logarithm
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"


class Server:
    """What its connections share."""

    def __init__(self, count: int, delays: bool) -> None:
        self.trace = np.zeros((count, 2), np.int64)
        self.laps: Counter[int] = Counter()
        self.loop = asyncio.get_running_loop()
        self.delays = np.random.default_rng(1).lognormal(np.log(MEDIAN), SIGMA, count).tolist() if delays else None

    async def stall(self) -> None:
        while True:
            await asyncio.sleep(PERIOD - STALL)
            time.sleep(STALL)  # on purpose: the loop stands still


class Traced(asyncio.Protocol):
    """One connection, with one request at a time, whose head and body come in one piece or several."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        read = time.perf_counter_ns()
        self.data += data
        if not self.data.endswith(b"}"):
            return
        body = self.data[self.data.rindex(b"\r\n\r\n") + 4 :]
        self.data = b""
        server = self.server
        item = int(body[body.index(b"[") + 1 : body.index(b"]")])
        if server.delays is None:
            self.answer(item, read, body)
        else:
            number = server.laps[item] * CYCLE + item
            server.laps[item] += 1
            server.loop.call_later(server.delays[number], self.answer, number, read, body)

    def answer(self, number: int, read: int, body: bytes) -> None:
        self.transport.write(ANSWER % (len(body), body))
        self.server.trace[number] = read, time.perf_counter_ns()


async def serve(port: int, trace: Path, count: int, kind: str) -> None:
    loop = asyncio.get_running_loop()
    server = Server(count, kind == "delay")
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    await loop.create_server(lambda: Traced(server), "127.0.0.1", port, backlog=4096)
    stalls = loop.create_task(server.stall()) if kind == "stall" else None
    await ended.wait()
    if stalls:
        stalls.cancel()
    np.save(trace, server.trace)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
