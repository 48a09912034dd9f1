"""What a service counts: each answer once, by whatever way it came and whatever refused it; items, batches, waits."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from kit.asks import Echo as Plain
from kit.asks import run
from kit.cases import chunked, post
from kit.counts import answers, counted, drops, of, value
from kit.servers import eventually
from kit.services import EXECUTORS, Echo, Gate
from kit.tensors import Identity, body, vector
from kit.wire import Wire
from test_batcher import Rig

from virtex import Limits, http_server
from virtex._codec import encode_numpy
from virtex.metrics import board as boards
from virtex.metrics.schema import CUTS


@pytest.fixture(autouse=True)
def board():
    with counted() as board:
        yield board


async def by_wire(app, raw):
    wire = Wire(app, loop=asyncio.get_running_loop())
    wire.receive(raw)
    await eventually(lambda: wire.statuses)
    return wire.statuses[0]


async def by_asgi(app, raw):
    head, _, data = raw.partition(b"\r\n\r\n")
    first, *lines = head.lower().split(b"\r\n")
    method, path, _ = first.decode().split(" ")
    messages = [
        {"type": "http.request", "body": data[i : i + 100], "more_body": True} for i in range(0, len(data), 100)
    ]
    messages.append({"type": "http.request"})
    sent = []

    async def receive():
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [tuple(line.split(b": ", 1)) for line in lines]
    scope = {"type": "http", "method": method.upper(), "path": path, "headers": headers}
    await app(scope, receive, send)
    return sent[0]["status"]


LANES = pytest.mark.parametrize("by", [by_wire, by_asgi])

GOOD = post(b'{"data":["a","b"]}')
LIMITS = Limits(body=4096, values=1000)
REFUSED = {
    "not json": (400, post(b"{")),
    "no message": (400, post(b"[]")),
    "forbidden": (403, post(b'{"data":[]}', b"X-Key: wrong")),
    "nothing there": (404, b"GET /v2/a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "not posted": (405, b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
    "not acceptable": (406, post(b'{"data":[]}', b"Accept: image/png")),
    "too long": (413, post(b'{"data":["' + b"x" * 5000 + b'"]}')),
    "too long in the end": (413, chunked(b"2000\r\n" + b" " * 0x2000 + b"\r\n0\r\n\r\n")),
    "too many values": (413, post(b"[" + b"1," * 1500 + b"1]")),
    "of another type": (415, post(b"<a/>", b"Content-Type: text/xml")),
    "an item": (422, post(b'{"data":["a","no"]}')),
    "a bug": (500, post(b'{"data":["a","bug"]}')),
}


def refuses(head):
    return 403 if (b"x-key", b"wrong") in head.headers else None


@LANES
@pytest.mark.parametrize(("status", "raw"), REFUSED.values(), ids=REFUSED)
def test_each_refusal_is_counted_once_by_its_status_and_is_no_query(by, status, raw):
    app = http_server("echo", Echo(), limits=LIMITS, authorize=refuses)
    assert run(app, by(app, raw)) == [status]
    assert answers("echo") == {status: 1}
    assert value("echo", "virtex_queries_total") == 0 and drops("echo") == {}
    assert sum(of("echo").histogram("virtex_request_queries").counts) == 0
    assert value("echo", "virtex_requests_in_flight") == 0


@LANES
@pytest.mark.parametrize("executor", EXECUTORS)
def test_answers_are_counted_with_their_items_stages_and_batches(by, executor):
    app = EXECUTORS[executor]()
    assert run(app, by(app, GOOD), by(app, post(b'{"data":[]}')), by(app, GOOD)) == [200] * 3
    assert answers("echo") == {200: 3}
    assert value("echo", "virtex_queries_total") == 4
    assert of("echo").histogram("virtex_request_queries").counts[:3] == [1, 2, 0]
    assert sum(of("echo").histogram("virtex_request_duration_seconds").counts) == 3
    assert sum(of("echo").histogram("virtex_queue_wait_seconds").counts) == 4
    batches = of("echo").histogram("virtex_batch_size")
    assert batches.sum == 4
    assert sum(of("echo").values("virtex_batches_total").values()) == sum(batches.counts)
    stages = {
        stage: sum(of("echo").histogram("virtex_stage_duration_seconds", stage).counts)
        for stage in ("decode", "process_request", "run_inference", "process_response", "encode")
    }
    assert stages == dict.fromkeys(stages, sum(batches.counts)) | {"decode": 2, "encode": 2}
    assert value("echo", "virtex_executor_busy_seconds_total") > 0
    assert is_at_rest("echo")


def is_at_rest(service):
    gauges = ("queue_items", "queue_bytes", "requests_in_flight")
    return not any(value(service, "virtex_" + gauge) for gauge in gauges)


@LANES
def test_probes_and_scrapes_are_no_requests_and_what_describes_the_service_is_one(by):
    app = http_server("echo", Plain())
    asked = ["/health/live", "/health/ready", "/health/no", "/metrics/no", "/"]
    run(app, *[by(app, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()) for path in asked])
    assert answers("echo") == {200: 1}
    assert sum(of("echo").histogram("virtex_request_queries").counts) == 0


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, b"NONSENSE\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (70 << 10)),
        (505, b"GET / HTTP/2.0\r\n\r\n"),
    ],
    ids=["400", "431", "505"],
)
def test_what_the_wire_refuses_is_counted_where_it_serves_one_service(status, raw):
    app = http_server("echo", Plain())
    assert run(app, by_wire(app, raw)) == [status]
    assert answers("echo") == {status: 1}


def test_a_body_that_does_not_come_in_time_is_counted():
    async def main():
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.receive(GOOD[:-3])
        assert value("echo", "virtex_requests_in_flight") == 1
        wire.advance(10**6)
        assert wire.statuses == [408]

    app = http_server("echo", Plain())
    run(app, main())
    assert answers("echo") == {408: 1} and drops("echo") == {} and is_at_rest("echo")


def test_a_connection_is_open_until_it_is_gone_and_one_too_many_finds_the_service_full():
    async def main():
        wire = Wire(app, limits=Limits(connections=1), loop=asyncio.get_running_loop())
        assert value("echo", "virtex_open_connections") == 1
        wire.transport_of(type(wire.protocol)(app, connections=wire.connections))
        assert value("echo", "virtex_open_connections") == 2
        wire.protocol.connection_lost(None)
        assert value("echo", "virtex_open_connections") == 1

    app = http_server("echo", Plain(), limits=Limits(connections=1))
    run(app, main())
    assert answers("echo") == {503: 1} and drops("echo") == {"full": 1}


@LANES
def test_no_room_in_the_queue_is_a_drop_and_so_is_a_client_that_leaves(by):
    async def main():
        try:
            first = Wire(app, loop=asyncio.get_running_loop())
            first.receive(GOOD)
            await app.model._handler.entered.wait()
            leaves = Wire(app, loop=asyncio.get_running_loop())
            leaves.receive(GOOD)
            assert value("gate", "virtex_queue_items") == 2 and value("gate", "virtex_queue_bytes") == len(
                b'{"data":["a","b"]}'
            )
            assert value("gate", "virtex_requests_in_flight") == 2
            assert await by(app, GOOD) == 503
            leaves.protocol.connection_lost(None)
            assert value("gate", "virtex_queue_items") == value("gate", "virtex_queue_bytes") == 0
        finally:
            app.model._handler.go.set()
        await eventually(lambda: first.statuses)

    app = http_server("gate", Gate, max_queue_size=2, max_batch_size=2)
    run(app, main())
    assert answers("gate") == {200: 1, 503: 1}
    assert drops("gate") == {"full": 1, "disconnect": 1} and is_at_rest("gate")


def test_a_client_of_another_server_that_leaves_is_a_drop():
    async def receive():
        return {"type": "http.disconnect"}

    async def main():
        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, None)

    app = http_server("echo", Plain())
    run(app, main())
    assert answers("echo") == {} and drops("echo") == {"disconnect": 1} and is_at_rest("echo")


def test_a_deadline_that_passes_is_a_drop():
    app = http_server("gate", Gate, limits=Limits(answer_seconds=0.001))

    async def main():
        assert await by_asgi(app, GOOD) == 504
        app.model._handler.go.set()

    run(app, main())
    assert answers("gate") == {504: 1} and drops("gate") == {"deadline": 1} and is_at_rest("gate")


@LANES
def test_a_service_that_has_shut_down_or_has_not_started_drops_as_draining(by):
    class Broken(Plain):
        def setup(self, worker):
            raise ValueError("no weights")

    async def main():
        await echo.startup()
        await echo.shutdown()
        assert await by(echo, GOOD) == 503
        with pytest.raises(ValueError):
            await broken.startup()
        assert await by(broken, GOOD) == 503

    echo, broken = http_server("echo", Plain()), http_server("broken", Broken())
    asyncio.run(main())
    for name in ("echo", "broken"):
        assert answers(name) == {503: 1} and drops(name) == {"draining": 1} and is_at_rest(name)


def test_rows_are_weighed_as_rows_and_their_decoding_is_timed():
    async def main():
        app.model.batcher.drain()
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.receive(post(body(vector(1, 2, 3), vector(4, 5, 6))))
        assert value("rows", "virtex_queue_items") == 2 and value("rows", "virtex_queue_bytes") == 2 * 12
        await eventually(lambda: wire.statuses)
        assert await by_asgi(app, post(body(vector(1, 2, 3)))) == 200  # its head is timed by the service's own clock

    app = http_server("rows", Identity())
    run(app, main())
    assert of("rows").histogram("virtex_stage_duration_seconds", "decode").sum > 0
    assert sum(of("rows").histogram("virtex_stage_duration_seconds", "process_request").counts) == 0
    assert is_at_rest("rows")


def test_what_is_run_again_to_find_whose_item_failed_is_a_retry():
    app = http_server("echo", Echo())
    asks = [by_asgi(app, post(b'{"data":[%b]}' % item)) for item in (b'"a"', b'"no","b"', b'"c"')]
    assert run(app, *asks) == [200, 422, 200]
    # one each, those of the second once more each until the guilty is found, and the others together
    assert value("echo", "virtex_retries_total") == 3 + 1 + 1
    assert answers("echo") == {200: 2, 422: 1}


def test_a_slow_model_is_seen_in_waits_by_the_injected_clock(loop):
    rig = Rig(loop, cells=boards.cells("rig"))
    rig.send("a")
    rig.loop.settle()
    rig.send(["b", "c"])
    rig.loop.advance(3)
    rig.executor.finish()
    rig.loop.settle()
    waits = of("rig").histogram("virtex_queue_wait_seconds")
    assert (sum(waits.counts), waits.sum) == (3, 6)
    rig.loop.advance(2)
    rig.executor.finish()
    assert value("rig", "virtex_executor_busy_seconds_total") == 5
    assert of("rig").values("virtex_batches_total") == dict.fromkeys(CUTS, 0) | {"no company": 2}


def test_two_batches_that_are_out_at_a_time_are_not_busy_twice(loop):
    rig = Rig(loop, size=2, depth=2, cells=boards.cells("rig"))
    rig.send(["a", "b", "c", "d"])
    rig.loop.settle()
    assert rig.executor.running == 2
    for seconds in (3, 1):
        rig.loop.advance(seconds)
        rig.executor.finish()
    assert value("rig", "virtex_executor_busy_seconds_total") == 4
    assert of("rig").values("virtex_batches_total")["full"] == 2


def test_two_services_of_one_process_count_apart(board):
    one, other = http_server("one", Plain()), http_server("other", Plain())
    run(one, by_wire(one, GOOD))
    run(other, by_wire(other, post(b"{")))
    assert answers("one") == {200: 1} and answers("other") == {400: 1}
    assert len(list(board.blocks())) == 2


def test_an_array_of_many_megabytes_is_counted_with_what_reading_it_took():
    app = http_server("echo", Plain())
    item = encode_numpy(np.zeros(1 << 20, np.uint8)).encode()
    assert run(app, by_wire(app, post(b'{"data":["' + item + b'"]}'))) == [200]
    assert answers("echo") == {200: 1} and is_at_rest("echo")
