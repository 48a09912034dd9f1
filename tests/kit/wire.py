"""One connection on a transport that is a list, with a clock that moves when told."""

from __future__ import annotations

import asyncio
import re
import socket
import struct

from virtex import HttpProtocol, Limits
from virtex.limits import allowance
from virtex.service.seam import BaseExchange, Budget, Response, Service
from virtex.wire.connections import SECOND, Connections
from virtex.wire.protocol import hosted

TEXT = ((b"content-type", b"text/plain"),)


class Transport:
    """What a connection does to its socket, kept in lists."""

    def __init__(self):
        self.writes = []
        self.unsent = 0  # bytes that the client has not read
        self.closed = self.aborted = self.ended = False
        self.reset = False  # the client gets ECONNRESET in place of an end
        self.reading = True
        self.protocol = None
        self.family = socket.AF_INET
        self.extra = {"socket": self, "peername": ("10.0.0.1", 5), "sockname": ("10.0.0.2", 80)}

    @property
    def output(self):
        return b"".join(self.writes)

    def write(self, data):
        assert not self.ended and not self.closed, f"written after the end: {data!r}"
        self.writes.append(bytes(data))

    def writelines(self, pieces):
        self.write(b"".join(pieces))

    def write_eof(self):
        assert not self.ended
        self.ended = True

    def can_write_eof(self):
        return "sslcontext" not in self.extra

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def setsockopt(self, level, option, value):
        self.reset = (level, option, value) == (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def is_closing(self):
        return self.closed

    def get_extra_info(self, name):
        return self.extra.get(name)

    def set_write_buffer_limits(self, high):
        assert high == (65536 if "sslcontext" in self.extra else 0)

    def get_write_buffer_size(self):
        return self.unsent

    def set_protocol(self, protocol):
        self.protocol = protocol

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True


class Clock:
    def __init__(self):
        self.now = 10**15

    def __call__(self):
        return self.now


class StubExchange(BaseExchange):
    """Collects a body; answers at once, or by a future that the test resolves."""

    def __init__(self, server, head):
        self.begin(Budget(1 << 40), None)
        self.server = server
        self.head = head
        self.body = b""
        self.view = None
        self.cancelled = None
        self.future = None

    def write(self, data):
        assert type(data) is bytes
        self.body += data

    def buffer(self, n):
        self.view = bytearray(n)
        return memoryview(self.view)

    def complete(self, body=b"", waiter=None):
        if body:
            self.write(body)
        if self.view is not None:
            self.body = bytes(self.view)
        self.server.bodies.append(self.body)
        return self.answer(waiter)

    def answer(self, waiter):
        if not self.server.later:
            return self.server.answer(self)
        self.future = self.server.loop.create_future()
        self.future.add_done_callback(lambda _: waiter.on_answer(self))
        return self

    def leaves(self):
        return self.server.busy

    def cancel(self, reason):
        self.cancelled = reason

    def resolve(self):
        self.response = self.server.answer(self)
        self.future.set_result(None)


class SelfAnswering(StubExchange):
    """An exchange that calls back at once, as the real one does."""

    waiter = None

    def answer(self, waiter):
        self.waiter = waiter
        return self

    def resolve(self):
        self.response = self.server.answer(self)
        if self.waiter is not None:
            self.waiter.on_answer(self)


class StubServer(Service):
    """The seam alone: every request is taken unless `refuses` says otherwise."""

    def __init__(self, loop=None):
        limits = Limits(body=1 << 20)
        super().__init__(limits, Budget(allowance(limits.max_bytes).max_bytes))
        self.loop = loop
        self.later = False  # answers come by a future
        self.busy = False  # requests wait behind a batch
        self.kind = StubExchange
        self.refuses = lambda head: None
        self.opened = []
        self.bodies = []
        self.left = []
        self.status = 200
        self.headers = TEXT

    def join(self, connection):
        return object()

    def open(self, head, now):
        refusal = self.refuses(head)
        if refusal is None and head.length is not None and head.length > self.limits.body:
            refusal = Response(413, TEXT, [b"too large"])
        self.opened.append(refusal or self.kind(self, head))
        return self.opened[-1]

    def answer(self, exchange):
        return Response(self.status, self.headers, [b"<", exchange.body, b">"])

    def leave(self, peer):
        self.left.append(peer)


class Wire:
    """One connection to an app, with a clock that moves when told."""

    def __init__(self, app, limits=None, loop=None, shared=None):
        self.app = app
        self.loop = loop or asyncio.new_event_loop()
        self.clock = shared.clock if shared else Clock()
        self.connections = shared or Connections(hosted(app, limits), limits=limits, clock=self.clock, loop=self.loop)
        self.protocol = HttpProtocol(app, connections=self.connections)
        self.transport = self.transport_of(self.protocol)

    def transport_of(self, protocol):
        transport = Transport()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        return transport

    def send(self, *segments):
        for segment in segments:
            self.receive(segment)
        return self

    def receive(self, data):
        """As an event loop does: not while reading is paused or the transport closed, and into buffers where asked."""
        while data and not self.transport.closed:
            assert self.transport.reading
            protocol = self.transport.protocol
            if protocol is self.protocol:
                protocol.data_received(data)
                return
            view = protocol.get_buffer(65536)
            n = min(len(view), len(data))
            view[:n] = data[:n]
            data = data[n:]
            protocol.buffer_updated(n)

    def settle(self):
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))
        return self

    def advance(self, seconds):
        self.clock.now += int(seconds * SECOND)
        self.connections.tick()
        return self

    @property
    def output(self):
        return self.transport.output

    @property
    def statuses(self):
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", self.output)]

    @property
    def ended(self):
        return self.transport.ended or self.transport.closed

    def replies(self):
        """(status, headers, body) of every reply to a request that has a body in its answer."""
        found, data = [], self.output
        while data:
            top, _, data = data.partition(b"\r\n\r\n")
            first, *lines = top.split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines)
            n = int(headers.get(b"content-length", 0))
            found.append((int(first.split()[1]), headers, data[:n]))
            data = data[n:]
        return found


class LiveWire(Wire):
    """The same, on a loop that runs whenever bytes come: a service looks whether its own does."""

    def receive(self, data):
        self.loop.run_until_complete(self._call(super().receive, data))

    def advance(self, seconds):
        return self.loop.run_until_complete(self._call(super().advance, seconds))

    async def _call(self, method, argument):
        return method(argument)
