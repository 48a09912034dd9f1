"""Sends requests at given times, whether earlier ones were answered or not: the open-loop client of bench/batching.py.

Run: python -m bench.arrivals PORT TIMES RESULT. TIMES: a .npy of nanoseconds from the start, ascending. RESULT: where
a .npy goes with a row for each request: nanoseconds from the time when it was to be sent until its answer was read,
until it was sent, and the size of the batch that it was in. A request that can't be sent in time is late by its own
fault, and its latency says so: nothing is omitted. Every answer is checked; one that is wrong or missing is an error.

A connection has one request open; the one answered last sends next, and where all wait, another is made, up to MOST;
then requests wait in line here.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .host import open_many_files

NAP = 50e-6  # seconds between two looks at the clock and the sockets: a timer's grain would be too coarse
MOST = 5000  # connections
PATIENCE = 30.0  # seconds after the last arrival until its answer must be there


class Client:
    """All connections to one server."""

    def __init__(self, port: int, times: npt.NDArray[np.int64]) -> None:
        self.port = port
        self.times = [int(at) for at in times]
        self.result = np.zeros((len(times), 3), np.int64)
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.idle: list[int] = []
        self.waiting: dict[int, int] = {}  # the number of the request that is open on a connection
        self.partial: dict[int, bytes] = {}

    def run(self) -> None:
        sent, count = 0, len(self.times)
        started = time.perf_counter_ns()
        deadline = started + self.times[-1] + int(PATIENCE * 1e9)
        while sent < count or self.waiting:
            now = time.perf_counter_ns()
            while sent < count and started + self.times[sent] <= now and self.has_room():
                self.send(sent, started)
                sent += 1
            ready = self.epoll.poll(0)
            for fileno, _ in ready:
                self.receive(fileno, started)
            if not ready:
                time.sleep(NAP)
            if now > deadline:
                raise SystemExit(f"{len(self.waiting)} of {count} requests were not answered within {PATIENCE:g} s")

    def has_room(self) -> bool:
        return bool(self.idle) or len(self.sockets) < MOST

    def send(self, number: int, started: int) -> None:
        fileno = self.idle.pop() if self.idle else self.connect()
        body = b'{"data":[%d]}' % number
        head = b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.waiting[fileno] = number
        self.sockets[fileno].send(head % len(body) + body)  # fits the socket's buffer
        self.result[number, 1] = time.perf_counter_ns() - started - self.times[number]

    def connect(self) -> int:
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.sockets[sock.fileno()] = sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        return sock.fileno()

    def receive(self, fileno: int, started: int) -> None:
        data = self.partial.pop(fileno, b"") + self.sockets[fileno].recv(65536)
        head, end, body = data.partition(b"\r\n\r\n")
        if not data or (end and not head.startswith(b"HTTP/1.1 200 ")):
            raise SystemExit(f"expected an answer, got {data!r}")
        if not body.endswith(b"}"):
            self.partial[fileno] = data
            return
        number = self.waiting.pop(fileno)
        self.result[number, 0] = time.perf_counter_ns() - started - self.times[number]
        ((item, self.result[number, 2]),) = json.loads(body)["data"]
        if item != number:
            raise SystemExit(f"expected the answer to {number}, got that to {item}")
        self.idle.append(fileno)


def main(port: str, times: str, result: str) -> None:
    open_many_files()
    client = Client(int(port), np.load(times))
    client.run()
    np.save(Path(result), client.result)


if __name__ == "__main__":
    main(*sys.argv[1:])
