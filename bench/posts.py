"""Sends one body over and over, on each connection when it was answered: the closed-loop client of bench/gpu.py.

Run: python -m bench.posts PORT CONNECTIONS SECONDS CONTENT-TYPE FILE. Says at the end, as JSON, how many answers came
in how many seconds. An answer that is not 200 is an error, and none within PATIENCE is one too. wrk does the same
where it is installed; this runs where there is nothing but Python.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

PATIENCE = 30.0  # seconds


class Poster(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, done: asyncio.Future[None], until: float) -> None:
        self.request = request
        self.done = done
        self.until = until
        self.answers = 0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self.finish(f"expected 200, got {self.data[:300]!r}")
            return
        self.data = b""
        if time.perf_counter() < self.until:
            self.answers += 1
            self.transport.write(self.request)
        else:
            self.finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish("the connection broke")

    def finish(self, error: str | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(SystemExit(error))
            self.transport.close()


async def main(port: int, connections: int, seconds: float, content_type: str, file: Path) -> None:
    body = file.read_bytes()
    head = f"POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    posters = [Poster(request, loop.create_future(), until) for _ in range(connections)]
    for poster in posters:
        await loop.create_connection(lambda poster=poster: poster, "127.0.0.1", port)
    async with asyncio.timeout(seconds + PATIENCE):
        await asyncio.gather(*(poster.done for poster in posters))
    print(json.dumps({"answers": sum(poster.answers for poster in posters), "seconds": seconds}))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], Path(sys.argv[5])))
