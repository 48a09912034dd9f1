"""What a client makes us hold is charged to limits.max_bytes, from the byte that comes to the byte that is written."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time

import numpy as np
import pytest
import uvloop
from kit.asks import Echo, ask_direct, run
from kit.cases import chunked, head, post
from kit.servers import CERTIFICATE, ECHO, eventually, read_answer, serving
from kit.wire import Wire

from virtex import Limits, RequestHandler, Tensor, TensorHandler, http_server, serve
from virtex.wire.connections import Connections
from virtex.wire.reader import FIELD_BYTES, HEAD_KEPT
from virtex.wire.requests import STEPS

LONG = head(b"A: " + b"x" * 20_000)


def held_by_the_head(raw):
    return len(raw) + FIELD_BYTES * (raw.count(b"\r\n") - 2)


# --- heads and requests that are held back ------------------------------------------------------------------


def test_a_head_counts_as_it_comes_and_no_more_when_the_client_is_gone(wire, server):
    wire.send(LONG[:5000])
    assert server.budget.held == 5000
    wire.send(LONG[5000:15_000])
    assert server.budget.held == 15_000
    wire.protocol.connection_lost(None)
    assert server.budget.held == 0


def test_a_head_that_is_kept_for_the_next_request_counts_while_it_is(wire, server):
    first, second = head(b"A: b"), head(b"A: bcd", b"E: f")
    for raw in (first, first, second):
        wire.send(raw)
        assert server.budget.held == held_by_the_head(raw)
    wire.protocol.connection_lost(None)
    assert server.budget.held == 0


def test_a_long_head_counts_until_its_request_is_answered(wire, server):
    assert len(LONG) > HEAD_KEPT
    server.later = True
    wire.send(LONG + LONG)
    assert server.budget.held == 2 * held_by_the_head(LONG)
    server.opened[0].resolve()
    wire.settle()
    assert server.budget.held == held_by_the_head(LONG)
    server.opened[1].resolve()
    wire.settle()
    assert server.budget.held == 0


def test_a_head_for_which_there_is_no_room_is_refused_and_counts_no_more(wire, server):
    server.budget.budget = 10_000
    wire.send(LONG[:9000])
    assert wire.statuses == []
    wire.send(LONG[9000:11_000])
    assert wire.statuses == [503] and wire.ended and server.budget.held == 0
    assert b"retry-after: 1\r\n" in wire.output


def test_requests_that_wait_for_their_turn_count_and_are_refused_where_there_is_no_room(server, event_loop):
    wire = Wire(server, Limits(pipelined=1), event_loop)
    server.later = True
    wire.send(post(b"1"))
    before = server.budget.held
    wire.send(post(b"2"))
    assert server.budget.held == before + len(post(b"2"))
    server.budget.budget = before + 100
    wire.send(post(b"3" * 100))
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200, 503] and wire.ended
    wire.protocol.connection_lost(None)
    assert server.budget.held == 0


def test_requests_that_are_taken_a_few_at_a_time_count_until_they_are(wire, server):
    raw = post(b"x") * 100
    wire.protocol.data_received(raw)
    assert server.budget.held >= len(raw)
    wire.settle().settle()
    assert len(server.opened) == 100 > STEPS
    assert server.budget.held == held_by_the_head(post(b"x")[:-1])


def test_the_lines_of_a_chunked_body_are_not_kept(wire):
    begun = chunked(b"1;" + b"x" * 60_000)
    wire.send(begun[:200])
    before = wire.connections.budget.held
    wire.send(begun[200:])
    assert wire.connections.budget.held == before


# --- answers ------------------------------------------------------------------------------------------------


class Sized(Echo):
    """Answers each item, a number, with so many characters."""

    def process_response(self, item):
        return "x" * item


def in_a_loop(f, handler=None, **limits):
    """Run f(app, wire) against a started service, and see that nothing is held when its clients are gone."""

    async def main():
        app = http_server("budget", handler or Sized(), limits=Limits(**limits))
        await app.startup()
        loop = asyncio.get_running_loop()
        wire = Wire(app, loop=loop, shared=Connections(app, clock=time.perf_counter_ns, loop=loop))
        await asyncio.wait_for(f(app, wire), 10)
        for protocol in list(wire.connections.members):
            protocol.connection_lost(None)
        assert (app.budget.held, app.model.admission.unsettled) == (0, 0)
        await app.shutdown()

    asyncio.run(main())


def ask(n):
    return post(b'{"data":[%d]}' % n)


def test_a_small_answer_that_is_written_at_once_is_never_charged():
    async def f(app, wire):
        wire.send(ask(1000))
        held = app.budget.held
        await eventually(lambda: wire.statuses)
        assert app.budget.held <= held  # the head's

    in_a_loop(f)


def test_what_the_kernel_does_not_take_counts_until_it_does():
    async def f(app, wire):
        wire.send(ask(10))
        await eventually(lambda: wire.statuses)
        held = app.budget.held
        wire.transport.unsent = 5000
        wire.protocol.pause_writing()
        assert app.budget.held == held + 5000
        wire.protocol.resume_writing()
        assert app.budget.held == held
        wire.protocol.pause_writing()

    in_a_loop(f)


def test_answers_wait_charged_while_the_client_reads_nothing_and_go_out_in_order_when_it_does():
    async def f(app, wire):
        wire.send(ask(1))
        await eventually(lambda: wire.statuses)
        wire.send(ask(100_000) + ask(10) + ask(200_000))
        wire.transport.unsent = 1
        wire.protocol.pause_writing()
        await eventually(lambda: app.budget.held > 300_000)
        assert wire.statuses == [200]
        wire.protocol.resume_writing()
        await eventually(lambda: len(wire.statuses) == 4)
        assert [len(body) for _, _, body in wire.replies()[1:]] == [n + 26 for n in (100_000, 10, 200_000)]
        assert app.budget.held < 2000

    in_a_loop(f)


def test_no_answer_is_written_behind_a_large_one_that_the_client_does_not_read():
    async def f(app, wire):
        write = wire.transport.writelines

        def stall(pieces):
            write(pieces)
            wire.transport.unsent = 90_000
            wire.protocol.pause_writing()

        wire.transport.writelines = stall
        wire.send(ask(100_000) + ask(100_001) + ask(3))
        await eventually(lambda: wire.statuses)
        for _ in range(10):
            await asyncio.sleep(0)
        assert wire.statuses == [200]
        assert 200_000 < app.budget.held < 203_000, "the transport keeps all of an answer until it is all taken"
        wire.protocol.resume_writing()
        await eventually(lambda: len(wire.statuses) == 2)
        wire.protocol.resume_writing()
        await eventually(lambda: len(wire.statuses) == 3)

    in_a_loop(f)


def test_an_answer_for_which_there_is_no_room_is_a_503_and_a_request_while_there_is_none_too():
    async def f(app, wire):
        app.budget.budget = 1_000_000
        wire.send(ask(1))
        await eventually(lambda: wire.statuses)
        wire.transport.unsent = 1
        wire.protocol.pause_writing()
        others = Wire(app, loop=wire.loop, shared=wire.connections)
        others.send(ask(2_000_000))
        await eventually(lambda: others.statuses)
        ((status, headers, body),) = others.replies()
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert b"no room for an answer of 2000026 bytes" in body and b"limits.max_bytes" in body
        app.budget.budget = 10
        others.send(ask(1))
        assert others.statuses == [503, 503] and not others.ended
        app.budget.budget = 1_000_000
        others.send(ask(900_000))
        await eventually(lambda: len(others.statuses) == 3)
        assert others.statuses[-1] == 200

    in_a_loop(f)


def test_answers_that_wait_are_forgotten_with_their_client():
    async def f(app, wire):
        wire.send(ask(200_000) + ask(5) + ask(200_000))
        wire.protocol.pause_writing()
        await eventually(lambda: app.budget.held > 400_000)

    in_a_loop(f)


def test_an_answer_counts_until_another_asgi_server_has_sent_it():
    sent = []

    async def send(message):
        sent.append(app.budget.held)

    async def ask_it():
        messages = [{"type": "http.request", "body": b'{"data":[100000]}'}]

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        sent.append(app.budget.held)

    app = http_server("budget", Sized())
    run(app, ask_it())
    assert sent == [100_026, 100_026, 0]


def test_a_second_life_begins_with_an_empty_budget():
    async def break_off(app):
        await app.startup()
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.send(LONG[:1000])

    app = http_server("budget", Echo())
    asyncio.run(break_off(app))
    assert app.budget.held == 1000
    asyncio.run(app.startup())
    assert app.budget.held == 0


# --- through ASGI -------------------------------------------------------------------------------------------


async def echo(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_body_that_waits_for_an_asgi_application_counts(event_loop):
    gate = asyncio.Event()

    async def app(scope, receive, send):
        await gate.wait()
        await echo(scope, receive, send)

    wire = Wire(app, loop=event_loop)
    raw = post(b"x" * 30_000)
    wire.send(raw[:10_000]).settle()
    before = wire.connections.budget.held
    assert before >= 9000
    wire.send(raw[10_000:])
    assert wire.connections.budget.held == before + len(raw) - 10_000
    gate.set()
    wire.settle()
    assert wire.statuses == [200] and wire.connections.budget.held < 2000
    wire.protocol.connection_lost(None)
    assert wire.connections.budget.held == 0


@pytest.mark.parametrize("left", [False, True], ids=["refused", "left"])
def test_a_body_that_an_asgi_application_does_not_take_counts_until_its_client_is_gone(event_loop, left):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    wire = Wire(app, Limits(max_bytes=100_000 if left else 20_000), event_loop)
    raw = post(b"x" * 50_000)
    wire.send(raw[:30_000]).settle()
    assert wire.statuses == ([] if left else [503])
    wire.protocol.connection_lost(None)
    wire.settle()
    assert wire.connections.budget.held == 0


def test_no_request_reaches_an_asgi_application_while_there_is_no_room(event_loop):
    wire = Wire(echo, Limits(max_bytes=50_000), event_loop)
    other = Wire(echo, loop=event_loop, shared=wire.connections)
    other.send(post(b"a")).settle()
    other.transport.unsent = 60_000
    other.protocol.pause_writing()
    wire.send(post(b"b")).settle()
    ((status, headers, _),) = wire.replies()
    assert (status, headers[b"content-type"]) == (503, b"text/plain; charset=utf-8")
    other.protocol.resume_writing()
    wire.send(post(b"b")).settle()
    assert wire.statuses == [503, 200]


# --- sockets --------------------------------------------------------------------------------------------


def tls_contexts():
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(CERTIFICATE)
    theirs = ssl.create_default_context(cafile=CERTIFICATE)
    theirs.check_hostname = False
    return ours, theirs


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_answers_of_every_size_come_whole_to_a_client_that_reads_late(run, tls):
    async def main():
        app = http_server("budget", Sized())
        ours, theirs = tls_contexts() if tls else (None, None)
        async with await serve(app, port=0, ssl=ours) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=theirs)
            for n in (1, 70_000, 3_000_000, 10_000_000, 1):
                writer.write(ask(n) * 2)
                await eventually(lambda: app.model.admission.unsettled)
                await eventually(lambda: not app.model.admission.unsettled)
                for _ in range(2):
                    status, _, body = await read_answer(reader)
                    assert status == 200 and len(body) == n + 26 and body.endswith(b'"],"error":null}')
                await eventually(lambda: app.budget.held < 2000)
            writer.close()
        assert app.budget.held == 0

    run(asyncio.wait_for(main(), 30))


LARGE_ANSWERS = (
    ECHO
    + """
from virtex import Limits

class Large(Echo):
    def process_response(self, item):
        return "x" * item

LIMITS = Limits(max_bytes=32 << 20)
# What the handler makes of one batch is its own to bound.
app = http_server(name="large", handler=Large(), max_batch_size=8, max_queue_size=1000, limits=LIMITS)
"""
)


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


def test_answers_that_nobody_reads_take_no_more_memory_than_the_budget():
    with serving("serve", LARGE_ANSWERS) as server:
        assert server.request("POST", "/", b'{"data":[2000000]}')[0] == 200
        before = resident(server.process.pid)
        socks = [server.connect() for _ in range(40)]
        for sock in socks:
            sock.sendall(ask(2_000_000) * 8)  # 640 MB of answers
        # First in, first out: once this has its answer, what came before it was made, or refused.
        assert server.request("POST", "/", b'{"data":[1]}')[0] in (200, 503)
        assert server.request("GET", "/")[0] == 200
        grown = resident(server.process.pid) - before
        for sock in socks:
            sock.close()
        assert grown < 100 << 20
        assert server.request("POST", "/", b'{"data":[1]}')[0] == 200


# --- a worker in a cgroup -----------------------------------------------------------------------------------

IN_A_CGROUP = """
from functools import partial
from pathlib import Path

from virtex import limits, resident

limits.memory = partial(resident.memory, Path({root!r}))  # where given files of /proc and of a cgroup are
"""
ROOT_OF_512_MIB = {
    "proc/self/cgroup": "0::/pod/box",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    "sys/fs/cgroup/pod/box/memory.max": "max",
    "sys/fs/cgroup/pod/memory.max": f"{512 << 20}",
}


def most_resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def test_a_worker_in_a_cgroup_of_512_mib_refuses_by_name_what_its_memory_has_no_room_for(tmp_path):
    for name, text in ROOT_OF_512_MIB.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    with serving("gunicorn", IN_A_CGROUP.format(root=str(tmp_path)) + ECHO) as server:
        server.wait_log("is ready; workers=1")
        assert server.log.count(f" max_bytes={128 << 20} ") == 2  # the worker's, and the service's
        assert "sys/fs/cgroup/pod/memory.max says" in server.log
        (worker,) = server.workers()
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(server.connect()) for _ in range(12)]
            answers = [fill(sock, 60 << 20) for sock in socks]
            assert answers[:2] == [b"", b""]  # there was room
            refused = b"more than 134217728 bytes (limits.max_bytes)"
            assert all(answer.startswith(b"HTTP/1.1 503 ") and refused in answer for answer in answers[2:])
        assert server.request("POST", "/", b'{"data":[1]}')[0] == 200
        assert server.workers() == [worker] and most_resident(worker) < 512 << 20


def fill(sock, size):
    """Send so many bytes of a larger body, as far as they are taken; gives the answer, if there is one."""
    with contextlib.suppress(OSError):
        sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (64 << 20) + b" " * size)
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        return sock.recv(65536)
    return b""


# --- answers of several batches -----------------------------------------------------------------------------


class Wide(TensorHandler):
    """Answers of 4 KB to a byte."""

    inputs = Tensor("u1")

    def __init__(self):
        self.runs = 0

    def run_inference(self, model_input):
        self.runs += 1
        return np.ones((len(model_input), 1000), "f4")


class WideLists(RequestHandler):
    def __init__(self):
        self.runs = 0

    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        self.runs += 1
        return model_input

    def process_response(self, row):
        return [row] * 2000


@pytest.mark.parametrize("handler", [Wide, WideLists])
def test_rows_of_several_batches_count_from_the_first_on_and_are_refused_there(handler):
    limits = Limits(max_bytes=1 << 20, body=1 << 18)
    app = http_server("wide", handler := handler(), max_batch_size=8, max_queue_size=16, limits=limits)
    few, many = (b'{"data":[%b]}' % b",".join([b"1"] * n) for n in (40, 10_000))

    async def main():
        return [await ask_direct(app, body) for body in (few, many, few)]

    good, bad, again = run(app, main())[0]
    assert (good.status, bad.status, again.status) == (200, 503, 200)
    assert "max_bytes" in bad.error and handler.runs < 15
    assert app.budget.held == 0
