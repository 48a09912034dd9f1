"""The least that reading a large body can cost: the kernel copies it into one reused buffer, and nobody looks at it.

What bench/images.py calls "bare". Run: python bench/sink.py PORT REPLY, REPLY being the body of every answer.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

READ_AT_ONCE = 256 << 10  # bytes; as connection.py reads
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Sink(asyncio.BufferedProtocol):
    """Counts the bytes of each request's body down, then answers, in one write. One buffer serves all connections."""

    buffer = memoryview(bytearray(READ_AT_ONCE))
    reply = b""

    def __init__(self) -> None:
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


async def main(port: int, body: bytes) -> None:
    Sink.reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2].encode()))
