"""Sends requests at given times, whether earlier ones were answered or not: the open-loop client of two benchmarks.

Run: python -m bench.arrivals PORT TIMES RESULT [MILLISECONDS]. TIMES: a .npy of nanoseconds from the start, ascending;
where it has a second column, that is a kind for each request, of bench/troubled.py. RESULT: where a .npy goes with a
row for each request: nanoseconds from the time when it was to be sent until its answer was read, until it was sent, the
size of the batch that it was in, and the status. A request that can't be sent in time is late by its own fault, and its
latency says so: nothing is omitted. Every answer is checked. Without kinds, any status but 200 is an error; with them
it is a result, and 0 is that of who left. MILLISECONDS: the X-Request-Timeout-Ms of each.

A connection has one request open; the one answered last sends next, and where all wait, another is made, up to MOST;
then requests wait in line here.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .host import open_many_files
from .troubled import LEAVERS, RESETS

HEAD = b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n%b"

NAP = 50e-6  # seconds between two looks at the clock and the sockets: a timer's grain would be too coarse
MOST = 5000  # connections
PATIENCE = 30.0  # seconds after the last arrival until its answer must be there


class Client:
    """All connections to one server."""

    def __init__(self, port: int, times: npt.NDArray[np.int64], milliseconds: str = "") -> None:
        self.port = port
        self.kinds = None if times.ndim == 1 else times[:, 1].tolist()
        self.times = times.tolist() if times.ndim == 1 else times[:, 0].tolist()
        field = f"x-request-timeout-ms: {milliseconds}\r\n".encode() if milliseconds else b""
        self.head = HEAD % field
        self.result = np.zeros((len(times), 4), np.int64)
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
        body = json.dumps({"data": [self.item(number)]}).encode()
        self.sockets[fileno].send(self.head + b"content-length: %d\r\n\r\n" % len(body) + body)  # fits its buffer
        self.result[number, 1] = time.perf_counter_ns() - started - self.times[number]
        if self.kinds is not None and self.kinds[number] in LEAVERS:
            self.leave(fileno, self.kinds[number] == RESETS)
        else:
            self.waiting[fileno] = number

    def item(self, number: int) -> int | list[int]:
        return number if self.kinds is None else [number, self.kinds[number]]

    def leave(self, fileno: int, resets: bool) -> None:
        sock = self.sockets.pop(fileno)
        if resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def connect(self) -> int:
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.sockets[sock.fileno()] = sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        return sock.fileno()

    def receive(self, fileno: int, started: int) -> None:
        data = self.partial.pop(fileno, b"") + self.sockets[fileno].recv(65536)
        if not data and fileno not in self.waiting:  # it was kept for as long as the server keeps one
            self.idle.remove(fileno)
            self.leave(fileno, False)
            return
        head, end, body = data.partition(b"\r\n\r\n")
        status = int(head[9:12] or 0)
        if not data or (end and self.kinds is None and status != 200):
            raise SystemExit(f"expected an answer, got {data!r}")
        if not body.endswith(b"}"):
            self.partial[fileno] = data
            return
        number = self.waiting.pop(fileno)
        self.result[number, 0] = time.perf_counter_ns() - started - self.times[number]
        self.result[number, 3] = status
        if status == 200:
            ((item, self.result[number, 2]),) = json.loads(body)["data"]
            if item != self.item(number):
                raise SystemExit(f"expected the answer to {self.item(number)}, got that to {item}")
        if b"\r\nconnection: close" in head.lower():
            self.leave(fileno, False)
        else:
            self.idle.append(fileno)


def main(port: str, times: str, result: str, milliseconds: str = "") -> None:
    open_many_files()
    client = Client(int(port), np.load(times), milliseconds)
    client.run()
    np.save(Path(result), client.result)


if __name__ == "__main__":
    main(*sys.argv[1:])
