"""The protocol against random bytes: any cut into segments gives the same outcome, nothing escapes, and whatever
happens to whichever connection, what is charged is what is held.

python tests/test_fuzz.py [seconds] [seed]    runs for longer than the test does, and says how to repeat a failure
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time

import h11
from kit.asks import Echo
from kit.cases import CASES, chunked, post
from kit.wire import StubServer, Wire

from virtex import Limits, http_server
from virtex.wire.connections import Connections

RAW = [case.raw for case in CASES if case.raw and "100" not in case.outcome]
GOOD = [case.raw for case in CASES if set(case.outcome.split()) <= {"200"}]
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"0",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
]
PIECES += [
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Host: b\r\n",
    b";",
    b",",
    b"\xff",
]
LIMITS = Limits(request_line=300, header_fields=20, header_bytes=500, body=1000, framing=200, pipelined=3)


def mutate(rng, raw):
    data = bytearray(raw)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        action = rng.randrange(4)
        if action == 0:
            data[at:at] = rng.choice(PIECES)
        elif action == 1:
            del data[at : at + rng.randrange(1, 6)]
        elif action == 2 and at < len(data):
            data[at] = rng.randrange(256)
        else:
            begin = rng.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + rng.randrange(40)]
    return bytes(data)


def cut(rng, raw):
    """The same bytes in random segments."""
    marks = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randrange(6)))
    return [raw[a:b] for a, b in zip([0, *marks], [*marks, len(raw)], strict=True) if a < b]


def outcome(loop, segments):
    server = StubServer(loop)
    wire = Wire(server, LIMITS, loop)
    wire.send(*segments).settle()
    assert 500 not in wire.statuses, "an exception escaped"
    result = wire.statuses, wire.ended, server.bodies, len(server.opened)
    wire.protocol.connection_lost(None)
    return result


def check_segments(rng, loop):
    good = b"".join(rng.choice(GOOD) for _ in range(rng.randrange(4)))
    raw = good + b"".join(mutate(rng, rng.choice(rng.choice([RAW, GOOD]))) for _ in range(rng.randrange(1, 4)))
    if b"xpect" in raw:
        return
    whole = outcome(loop, [raw])
    assert len(whole[2]) <= raw.count(b"HTTP/1."), f"an answer to half a request: {raw!r}"
    for _ in range(3):
        segments = cut(rng, raw)
        assert outcome(loop, segments) == whole, f"{segments!r}"


def valid_request(rng):
    """The bytes of a request that every reader must understand alike."""
    method = rng.choice([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
    target = b"/" + bytes(rng.choices(b"abc/-._~%20?=&", k=rng.randrange(12))).replace(b"%", b"%41")
    body = rng.randbytes(rng.randrange(60))
    lines = [b"Host: a"]
    for i in range(rng.randrange(4)):
        value = bytes(rng.choices(b"abc ,;=\t\xe9", k=rng.randrange(10)))
        lines.append(b"X-%d:%b%b" % (i, b" " * rng.randrange(3), value))
    if rng.random() < 0.5:
        lines.append(b"Content-Length: %d" % len(body))
    else:
        lines.append(b"Transfer-Encoding: chunked")
        pieces = [body[i : i + 17] for i in range(0, len(body), 17)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


def read_by_h11(raw):
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(raw)
    requests = []
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Request):
            requests.append([event.method, list(event.headers), b""])
        elif isinstance(event, h11.Data):
            requests[-1][2] += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            reader.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
            reader.send(h11.EndOfMessage())
            reader.start_next_cycle()
        else:
            return requests


def check_against_h11(rng, loop):
    raw = b"".join(valid_request(rng) for _ in range(rng.randrange(1, 4)))
    server = StubServer(loop)
    Wire(server, None, loop).send(*cut(rng, raw)).settle()
    ours = [[e.head.method.encode(), e.head.headers, e.body] for e in server.opened]
    assert ours == read_by_h11(raw), raw


class Sized(Echo):
    """Answers a number with so many characters."""

    def process_response(self, item):
        return "x" * item if isinstance(item, int) and 0 <= item < 1_000_000 else item


def begin_service(loop):
    app = http_server("fuzzed", Sized(), max_batch_size=4, max_queue_size=12, limits=Limits(pipelined=3, body=100_000))
    loop.run_until_complete(app.startup())
    return app


def piece_for_service(rng):
    choice = rng.randrange(6)
    if choice == 0:
        return mutate(rng, rng.choice(RAW)) or b"?"
    if choice == 1:
        return rng.choice(GOOD)
    body = rng.choice([b'{"data":[%d]}', b'{"data":[1,%d]}', b'{"data":[[],%d', b"%d"]) % rng.choice(
        [1, 99, 70_000, 300_000]
    )
    extra = [b"X-%d: %b" % (i, b"x" * rng.randrange(2000)) for i in range(rng.randrange(4))]
    if rng.random() < 0.2:
        return chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), *extra)
    return post(body, *extra) * rng.choice([1, 1, 1, 40])


class Client:
    """One connection, to which something happens at each step. left: what it has still to send."""

    def __init__(self, rng, app, shared):
        self.rng = rng
        self.wire = Wire(app, loop=shared.loop, shared=shared)
        self.left = b""
        self.stalled = self.lost = False

    def step(self):
        protocol, transport, chance = self.wire.transport.protocol, self.wire.transport, self.rng.random()
        if self.lost or transport.closed or chance < 0.05:
            self.lose()
        elif chance < 0.1:
            if protocol.eof_received() is False:
                self.lose()
        elif self.stalled and chance < 0.5:
            self.stalled = False
            protocol.resume_writing()
        elif not self.stalled and chance < 0.2 and transport.writes:
            self.stalled = True
            transport.unsent = self.rng.randrange(1, 100_000)
            protocol.pause_writing()
        elif transport.reading:
            self.left = self.left or piece_for_service(self.rng)
            size = self.rng.choice([len(self.left), self.rng.randrange(1, len(self.left) + 1)])
            self.wire.receive(self.left[:size])
            self.left = self.left[size:]

    def lose(self):
        if not self.lost:
            self.lost = True
            self.wire.transport.protocol.connection_lost(None)

    @property
    def unsent(self):
        return self.wire.transport.unsent if self.stalled and not self.lost else 0


async def live(rng, app):
    """Some connections of a service, and what becomes of them; then all are gone, and nothing is held."""
    shared = Connections(app, clock=time.perf_counter_ns, loop=asyncio.get_running_loop())
    app.budget.budget = rng.choice([20_000, 500_000, 1 << 30])
    clients = [Client(rng, app, shared) for _ in range(4)]
    for _ in range(rng.randrange(5, 40)):
        client = rng.choice(clients)
        client.step()
        assert app.budget.held >= sum(client.unsent for client in clients)
        if rng.random() < 0.4:
            await asyncio.sleep(0)
    for client in clients:
        client.lose()
    for _ in range(3):
        await asyncio.sleep(0)
    company = app.model.batcher.company
    assert (app.budget.held, app.model.admission.unsettled, company.until(1 << 61)) == (0, 0, 0)


def check_accounts(rng, loop, app):
    loop.run_until_complete(asyncio.wait_for(live(rng, app), 10))


def fuzz(seconds, seed, rounds=10**9):
    loop = asyncio.new_event_loop()
    app = begin_service(loop)
    end = time.monotonic() + seconds
    done = 0
    try:
        while done < rounds and time.monotonic() < end:
            rng = random.Random(f"{seed}-{done}")
            try:
                check_segments(rng, loop)
                check_against_h11(rng, loop)
                check_accounts(rng, loop, app)
            except BaseException:
                print(f"seed {seed}, round {done}", file=sys.stderr)
                raise
            done += 1
        loop.run_until_complete(app.shutdown())
    finally:
        loop.close()
    return done


def test_random_bytes_in_random_segments():
    assert fuzz(60, 1, rounds=500) == 500


if __name__ == "__main__":
    logging.disable()
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    start = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"seed {start}: {fuzz(length, start)} rounds")
