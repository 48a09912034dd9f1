"""Whatever ends otherwise than with rows: counted once by its reason, told the observer once, logged with its id."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest
from kit.asks import run
from kit.cases import chunked, post
from kit.counts import answers, counted, drops, lost, value
from kit.servers import eventually
from kit.services import Echo, Gate
from kit.wire import Wire

from virtex import Limits, Observer, http_server
from virtex.errors import HandlerError, ItemError, RequestError
from virtex.metrics.schema import DROPS, ERRORS
from virtex.service.failures import reason_of


@pytest.fixture(autouse=True)
def board():
    with counted() as board:
        yield board


@pytest.fixture(autouse=True)
def all_lines(caplog):
    caplog.set_level(logging.INFO, "virtex")


class Told(Observer):
    def __init__(self):
        self.lost = []
        self.batches = []

    def request_lost(self, reason, status, items, request_id):
        self.lost.append((reason, status, items, request_id))

    def batch_done(self, batch):
        self.batches.append(batch)


async def by_wire(app, raw):
    """(status, id) of the answer."""
    wire = Wire(app, loop=asyncio.get_running_loop())
    wire.receive(raw)
    await eventually(lambda: wire.statuses)
    ((status, headers, _),) = wire.replies()
    return status, headers[b"x-request-id"].decode()


async def by_asgi(app, raw):
    head, _, data = raw.partition(b"\r\n\r\n")
    first, *lines = head.lower().split(b"\r\n")
    method, path, _ = first.decode().split(" ")
    messages = [{"type": "http.request", "body": data}, {"type": "http.request", "body": b" ", "more_body": True}]
    sent = []

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [tuple(line.split(b": ", 1)) for line in lines]
    await app({"type": "http", "method": method.upper(), "path": path, "headers": headers}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])[b"x-request-id"].decode()


LANES = pytest.mark.parametrize("by", [by_wire, by_asgi])
GOOD = post(b'{"data":["a","b"]}')
ONE = post(b'{"data":["a"]}')
SHORT = Limits(body=4096, values=1000)


def refuses(head):
    return 429 if (b"x-key", b"wrong") in head.headers else None


def lines(caplog):
    return [record for record in caplog.records if getattr(record, "event", "") in ("request_lost", "request_failure")]


def check(told, caplog, reason, status, items, request_id):
    """It is one: for the metrics, the observer and the log."""
    assert lost("echo") == {reason: 1}
    assert told.lost == [(reason, status, items, request_id)]
    (line,) = lines(caplog)
    assert line.request_id == request_id and f"request {request_id}: " in line.getMessage()
    assert (line.levelname == "ERROR") == (status == 500)


CASES = {
    "no json": ("message", 400, 0, post(b"{")),
    "not let in": ("denied", 429, 0, post(b'{"data":[]}', b"X-Key: wrong")),
    "nothing there": ("path", 404, 0, b"GET /v2/a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "another type": ("type", 415, 0, post(b"<a/>", b"Content-Type: text/xml")),
    "too long": ("size", 413, 0, post(b'{"data":["' + b"x" * 5000 + b'"]}')),
    "too long in the end": ("size", 413, 0, chunked(b"2000\r\n" + b" " * 0x2000 + b"\r\n0\r\n\r\n")),
    "an item": ("item", 422, 2, post(b'{"data":["a","no"]}')),
    "a bug": ("handler", 500, 2, post(b'{"data":["a","bug"]}')),
    "an id of its own": ("message", 400, 0, post(b"[]", b"X-Request-ID: mine")),
}


@LANES
@pytest.mark.parametrize(("reason", "status", "items", "raw"), CASES.values(), ids=CASES)
def test_each_refusal_and_failure_is_one_for_metrics_observer_and_log(by, reason, status, items, raw, caplog):
    told = Told()
    app = http_server("echo", Echo(), limits=SHORT, authorize=refuses, observer=told)
    ((found, request_id),) = run(app, by(app, raw))
    assert found == status
    assert (request_id == "mine") == (b"mine" in raw)
    check(told, caplog, reason, status, items, request_id)


@pytest.mark.parametrize(
    ("reason", "status", "raw"),
    [
        ("protocol", 400, b"NONSENSE\r\n\r\n"),
        ("protocol", 431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (70 << 10)),
        ("protocol", 400, chunked(b"wrong\r\n")),
        ("slow", 408, GOOD[:-3]),
        ("slow", 408, GOOD[:9]),
    ],
    ids=["400", "431", "in its body", "its body is slow", "its head is slow"],
)
def test_what_the_wire_refuses_is_one(reason, status, raw, caplog):
    async def main():
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.receive(raw)
        wire.advance(10**6)
        ((found, headers, _),) = wire.replies()
        check(told, caplog, reason, found, 0, headers[b"x-request-id"].decode())
        assert found == status

    told = Told()
    app = http_server("echo", Echo(), observer=told)
    run(app, main())


async def leaves_by_wire(app):
    wire = Wire(app, loop=asyncio.get_running_loop())
    wire.receive(post(b'{"data":["a","b"]}', b"X-Request-ID: gone"))
    wire.protocol.connection_lost(None)


async def leaves_by_asgi(app):
    messages = [{"type": "http.disconnect"}]

    async def receive():
        return messages.pop()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-request-id", b"gone")]}
    await app(scope, receive, None)


@pytest.mark.parametrize(("leaves", "items"), [(leaves_by_wire, 2), (leaves_by_asgi, 0)])
def test_a_client_that_leaves_is_one(leaves, items, caplog):
    told = Told()
    app = http_server("echo", Echo(), observer=told)
    run(app, leaves(app))
    check(told, caplog, "disconnect", 0, items, "gone")


@LANES
def test_no_room_and_a_deadline_are_one_each(by, caplog):
    async def main():
        asked = [asyncio.ensure_future(by(app, ONE))]
        try:
            await eventually(lambda: app.model._handler and app.model._handler.calls)
            asked.append(asyncio.ensure_future(by(app, post(b'{"data":["a"]}', b"X-Request-Timeout-Ms: 50000"))))
            await eventually(lambda: app.model.batcher.waiting)
            full = await by(app, ONE)
            (waits,) = app.model.batcher.ring
            app.model.batcher.expire(waits.deadline)
            late = await asked[1]
        finally:
            app.model._handler.go.set()
            await asyncio.wait(asked)
        assert told.lost == [("full", 503, 0, full[1]), ("deadline", 504, 1, late[1])]
        assert [line.request_id for line in lines(caplog)] == [full[1], late[1]]
        assert {line.levelname for line in lines(caplog)} == {"WARNING"}

    told = Told()
    app = http_server("gate", Gate, max_queue_size=1, max_batch_size=2, observer=told)
    run(app, main())
    assert lost("gate") == drops("gate") == {"full": 1, "deadline": 1}


@LANES
def test_what_comes_after_the_end_and_what_the_end_cuts_off_is_draining(by, caplog):
    async def main():
        await app.startup()
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.receive(post(b'{"data":["a"]}', b"X-Request-ID: cut"))
        wire.connections.abort()
        wire.protocol.connection_lost(None)
        await app.shutdown()
        status, request_id = await by(app, GOOD)
        with pytest.raises(RequestError):
            await app.submit(["a"])
        return status, request_id

    told = Told()
    app = http_server("echo", Echo(), observer=told)
    status, request_id = asyncio.run(main())
    assert told.lost[:2] == [("draining", 0, 1, "cut"), ("draining", status, 0, request_id)]
    assert told.lost[2][:3] == ("draining", 503, 0) and len(told.lost) == 3
    assert lost("echo") == {"draining": 3} and answers("echo") == {503: 2}


@LANES
def test_many_of_a_kind_are_one_line_and_their_number_and_all_are_counted(by, caplog):
    told = Told()
    app = http_server("echo", Echo(), observer=told)
    ids = [request_id for _, request_id in run(app, *[by(app, post(b"{")) for _ in range(20)])]
    assert lost("echo") == {"message": 20} and Counter(ids) == Counter(each[3] for each in told.lost)
    first, rest = lines(caplog)
    assert first.request_id == told.lost[0][3]
    assert rest.more == 19 and rest.request_id == told.lost[-1][3] and rest.getMessage().startswith("19 more")


@LANES
def test_probes_are_no_requests(by, caplog):
    told = Told()
    app = http_server("echo", Echo(), observer=told)
    run(app, by(app, b"GET /health/no HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert lost("echo") == {} and told.lost == [] and lines(caplog) == []


def test_a_submission_is_one_too_and_its_failure_is_its_callers_to_log(caplog):
    async def main():
        for wrong, error in (["no"], ItemError), (["bug"], HandlerError):
            with pytest.raises(error):
                await app.submit(wrong)

    told = Told()
    app = http_server("echo", Echo(), observer=told)
    run(app, main())
    assert [each[:3] for each in told.lost] == [("item", 422, 1), ("handler", 500, 1)]
    assert [line.reason for line in lines(caplog)] == ["item"]
    assert lost("echo") == {"item": 1, "handler": 1}


def test_repeated_calls_are_told_with_their_batch_and_logged_as_a_burst(caplog):
    told = Told()
    app = http_server("echo", Echo(), observer=told)
    run(app, *[by_asgi(app, post(b'{"data":[%b]}' % item)) for item in (b'"a"', b'"no"')])
    (batch,) = told.batches
    assert batch.retries == value("echo", "virtex_retries_total") > 0
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "batch_retried"]
    assert (line.retries, line.items, line.requests) == (batch.retries, 2, 2)


@pytest.mark.parametrize("status", [*range(400, 432), 500, 501, 503, 504, 505])
def test_every_status_has_a_reason_that_is_counted(status):
    assert reason_of(RequestError(status, "")) in ERRORS
    assert reason_of(RequestError(status, "", (), "full")) in DROPS
