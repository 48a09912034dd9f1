"""The least that a server can do: read each request, answer it with bytes made beforehand. Two yardsticks, both "bare".

Run: python bench/bare.py PORT REPLY [--sink], REPLY being the body of every answer. It parses each request, on uvloop
and httptools: the yardstick of bench/serve.py. --sink: the kernel copies bodies into one reused buffer, at which nobody
looks; that of bench/images.py.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

READ_AT_ONCE = 256 << 10  # bytes; as connection.py reads
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Bare(asyncio.Protocol):
    """Answers every request with the same bytes, in one write."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.write(self.reply)


class Sink(asyncio.BufferedProtocol):
    """Counts the bytes of each request's body down, then answers, in one write. One buffer serves all connections."""

    buffer = memoryview(bytearray(READ_AT_ONCE))

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.left = 0  # of the body; 0: a head comes next

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast(asyncio.Transport, transport).write

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.left:
            nbytes = self.open(bytes(self.buffer[: min(nbytes, 4096)]), nbytes)
        self.left -= nbytes
        if not self.left:
            self.write(self.reply)

    def open(self, data: bytes, nbytes: int) -> int:
        """Read the head at the start of a request; says how many bytes of the body came with it."""
        end = data.index(b"\r\n\r\n") + 4  # on loopback a short head comes whole
        found = LENGTH.search(data, 0, end)
        assert found is not None
        self.left = int(found[1])
        return nbytes - end


async def main(kind: Callable[[bytes], asyncio.BaseProtocol], port: int, body: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    server = await asyncio.get_running_loop().create_server(lambda: kind(reply), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Sink if sys.argv[3:] == ["--sink"] else Bare, int(sys.argv[1]), sys.argv[2].encode()))
