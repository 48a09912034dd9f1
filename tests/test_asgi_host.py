"""A foreign ASGI application on one connection, over a transport that is a list."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from kit.cases import GET, chunked, head, post
from kit.servers import ROOT
from kit.wire import Wire

from virtex import Limits

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def body(data=b"", more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages):
    """An application that reads nothing and sends these."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


async def read(receive):
    data = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError(message["type"])
        data += message["body"]
        if not message["more_body"]:
            return data


async def echo(scope, receive, send):
    data = await read(receive)
    await send(START)
    await send(body(data))


@pytest.fixture
def serve(event_loop):
    def wire(app, **limits):
        return Wire(app, Limits(**limits) if limits else None, event_loop)

    return wire


def exchange(serve, app, *segments):
    return serve(app).send(*segments).settle()


def test_application_gets_the_body_and_its_answer_goes_out_in_one_write(serve):
    wire = exchange(serve, echo, post(b"hello"))
    ((status, headers, data),) = wire.replies()
    assert (status, data) == (200, b"hello")
    assert headers[b"content-length"] == b"5" and headers[b"server"] == b"virtex"
    assert len(wire.transport.writes) == 1 and not wire.ended


def test_scope(serve):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await echo(scope, receive, send)

    wire = serve(app)
    wire.connections.service.state["model"] = []
    wire.send(b"GET /a%20b?q=%20 HTTP/1.1\r\nHost: x\r\nX-Y: 1\r\nx-y: 2\r\n\r\n").settle()
    (scope,) = scopes
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"q=%20",
        "root_path": "",
        "headers": [(b"host", b"x"), (b"x-y", b"1"), (b"x-y", b"2")],
        "client": ("10.0.0.1", 5),
        "server": ("10.0.0.2", 80),
        "state": {"model": []},
    }


def test_absolute_target_is_its_path_behind_the_root_path_and_its_authority_the_host(serve):
    scopes, targets = [], []

    async def app(scope, receive, send):
        scopes.append(scope)
        await echo(scope, receive, send)

    wire = serve(app)
    wire.connections.root_path = "/api"
    wire.connections.access = lambda ends, head, *_: targets.append(head.target)
    for target in (b"http://other:81/scope/a%2Fb?q=1", b"HTTPS://other:81?q=1"):
        wire.send(b"GET " + target + b" HTTP/1.1\r\nX: y\r\nHost: proxy\r\n\r\n").settle()
    names = ("path", "raw_path", "query_string", "headers")
    assert [tuple(scope[name] for name in names) for scope in scopes] == [
        ("/api/scope/a/b", b"/api/scope/a%2Fb", b"q=1", [(b"host", b"other:81"), (b"x", b"y")]),
        ("/api/", b"/api/", b"q=1", [(b"host", b"other:81"), (b"x", b"y")]),
    ]
    assert targets == [b"http://other:81/scope/a%2Fb?q=1", b"HTTPS://other:81?q=1"]


def test_absolute_target_of_http_1_0_brings_the_host_that_is_not_there(serve):
    hosts = []

    async def app(scope, receive, send):
        hosts.append(scope["headers"])
        await echo(scope, receive, send)

    serve(app).send(b"GET http://a/ HTTP/1.0\r\n\r\n").settle()
    assert hosts == [[(b"host", b"a")]]


def test_state_is_a_shallow_copy_for_each_request(serve):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["state"])
        scope["state"]["mine"] = 1
        await echo(scope, receive, send)

    wire = serve(app)
    shared = wire.connections.service.state["shared"] = object()
    wire.send(GET, GET).settle()
    assert "mine" not in wire.connections.service.state
    assert len(seen) == 2 and seen[0] is not seen[1] and seen[1]["shared"] is shared


def test_requests_of_a_connection_are_served_one_at_a_time_in_order(serve, event_loop):
    running, gates = [], [asyncio.Event(), asyncio.Event()]

    async def app(scope, receive, send):
        index = len(running)
        running.append(scope["path"])
        await gates[index].wait()
        await echo(scope, receive, send)

    wire = serve(app).send(post(b"1") + post(b"2")).settle()
    assert len(running) == 1
    gates[0].set()
    wire.settle()
    assert len(running) == 2
    gates[1].set()
    wire.settle()
    assert [data for _, _, data in wire.replies()] == [b"1", b"2"]


def test_body_in_pieces_and_chunks(serve):
    raw = chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n")
    wire = exchange(serve, echo, raw[:70], raw[70:85], raw[85:], post(b"xyz"))
    assert [data for _, _, data in wire.replies()] == [b"abcde", b"xyz"]


def test_body_over_the_limit_is_refused_in_plain_text(serve):
    wire = serve(echo, body=10).send(post(b"x" * 11)).settle()
    ((status, headers, _),) = wire.replies()
    assert (status, headers[b"content-type"]) == (413, b"text/plain; charset=utf-8")


def test_protocol_error_is_plain_text(serve):
    wire = exchange(serve, echo, b"GET / HTTP/1.1\r\n\r\n")
    ((status, headers, data),) = wire.replies()
    assert (status, headers[b"content-type"]) == (400, b"text/plain; charset=utf-8")
    assert data == b"expected a Host, as every HTTP/1.1 request has"


def test_reading_pauses_while_the_application_does_not_read(serve):
    gate = asyncio.Event()

    async def app(scope, receive, send):
        await gate.wait()
        await echo(scope, receive, send)

    raw = post(b"x" * 200_000)
    wire = serve(app).send(raw[:100_000]).settle()
    assert not wire.transport.reading
    gate.set()
    wire.settle()
    assert wire.transport.reading
    wire.send(raw[100_000:]).settle()
    assert wire.replies()[0][2] == b"x" * 200_000


EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"


def test_client_is_invited_when_the_application_reads(serve):
    wire = exchange(serve, echo, EXPECT)
    assert wire.statuses == [100]
    wire.send(b"ab").settle()
    assert wire.statuses == [100, 200]


def test_client_is_not_invited_when_the_application_answers_at_once(serve):
    wire = exchange(serve, sending(START, body(b"no")), EXPECT)
    assert wire.statuses == [200] and b"connection: close" in wire.output and wire.ended


def test_answer_before_the_body_was_read_leaves_the_connection_usable_if_little_is_left(serve):
    raw = post(b"x" * 1000)
    wire = exchange(serve, sending(START, body(b"no")), raw[:100])
    assert wire.statuses == [200] and not wire.ended
    wire.send(raw[100:] + GET).settle()
    assert wire.statuses == [200, 200]


def test_answer_before_a_long_body_was_read_ends_the_connection(serve):
    wire = exchange(serve, sending(START, body(b"no")), post(b"x" * 300_000)[:100])
    assert b"connection: close" in wire.output and not wire.ended
    wire.send(b"x" * 300_000).settle()
    assert wire.statuses == [200] and wire.ended


# --- how the end of an answer is told -----------------------------------------------------------------------


def test_pieces_without_a_length_are_chunked(serve):
    wire = exchange(serve, sending(START, body(b"ab", True), body(b"", True), body(b"cde", True), body()), GET, GET)
    first = wire.output.partition(b"\r\n\r\n")[2]
    assert b"transfer-encoding: chunked\r\n" in wire.output
    assert first.startswith(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert not wire.ended


def test_http_1_0_gets_pieces_up_to_the_end_of_the_connection(serve):
    wire = exchange(
        serve, sending(START, body(b"ab", True), body(b"cd")), b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    )
    assert wire.output.endswith(b"\r\n\r\nabcd") and wire.ended
    assert b"transfer-encoding" not in wire.output and b"connection: close" in wire.output


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_body_has_neither_body_nor_length(serve, status):
    start = {**START, "status": status, "headers": [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")]}
    wire = exchange(serve, sending(start, body(b"abc")), GET, GET)
    assert wire.statuses == [status] * 2
    assert b"content-length" not in wire.output and b"chunked" not in wire.output and b"abc" not in wire.output


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"3")]])
def test_head_request_gets_no_body(serve, headers):
    wire = exchange(
        serve, sending({**START, "headers": headers}, body(b"abc")), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", GET
    )
    assert wire.statuses == [200, 200] and not wire.ended
    assert b"content-length: 3\r\n\r\nHTTP" in wire.output


def test_answer_longer_than_its_length_is_cut_and_ends_the_connection(serve, caplog):
    start = {**START, "headers": [(b"content-length", b"3")]}
    wire = exchange(serve, sending(start, body(b"abcdef")), GET)
    assert wire.output.endswith(b"\r\n\r\nabc") and b"connection: close\r\n" in wire.output and wire.ended
    assert "more than its content-length" in caplog.text


def test_answer_shorter_than_its_length_is_a_500_or_a_broken_connection(serve, caplog):
    start = {**START, "headers": [(b"content-length", b"9")]}
    wire = exchange(serve, sending(start, body(b"abc")), GET)
    assert wire.statuses == [500] and wire.ended and "6 bytes less" in caplog.text
    wire = exchange(serve, sending(start, body(b"abc", True), body(b"def")), GET)
    assert wire.statuses == [200] and wire.transport.reset


def test_date_and_server_of_the_application_replace_ours(serve):
    start = {**START, "headers": [(b"Date", b"then"), (b"Server", b"mine")]}
    wire = exchange(serve, sending(start, body()), GET)
    assert wire.output.count(b"date: ") == 1 and b"date: then\r\n" in wire.output and b"server: mine\r\n" in wire.output


def test_application_may_close_the_connection(serve):
    start = {**START, "headers": [(b"connection", b"close")]}
    wire = exchange(serve, sending(start, body()), GET)
    assert wire.output.count(b"connection: close") == 1 and wire.ended


def test_headers_may_be_an_iterator_and_may_be_missing(serve):
    wire = exchange(serve, sending({**START, "headers": iter([(b"a", b"b")])}, body()), GET)
    assert b"a: b\r\n" in wire.output
    wire = exchange(serve, sending({"type": "http.response.start", "status": 200}, body()), GET)
    assert wire.statuses == [200]


# --- what an application must not do ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [body()],
        [{**START, "status": 99}],
        [{**START, "status": "200"}],
        [{**START, "headers": [(b"a b", b"c")]}],
        [{**START, "headers": [(b"a", b"b\r\nc: d")]}],
        [{"type": "http.response.push"}],
        [START, START],
        [START],
        [],
    ],
)
def test_mistake_before_the_answer_began_is_a_500(serve, messages, caplog):
    wire = exchange(serve, sending(*messages), GET)
    assert wire.statuses == [500] and wire.ended
    assert caplog.records
    assert b"c: d" not in wire.output


@pytest.mark.parametrize("message", [START, {"type": "x"}])
def test_mistake_after_the_answer_began_breaks_the_connection_off(serve, message, caplog):
    wire = exchange(serve, sending(START, body(b"ab", True), message), GET)
    assert wire.statuses == [200] and wire.transport.aborted


def test_a_task_that_was_cancelled_elsewhere_is_a_mistake_of_the_application(serve, caplog):
    async def app(scope, receive, send):
        raise asyncio.CancelledError

    wire = exchange(serve, app, GET)
    assert wire.statuses == [500] and wire.ended


def test_exception_after_the_answer_began_breaks_the_connection_off(serve, caplog):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"ab", True))
        raise ValueError("secret")

    for raw in (GET, b"GET / HTTP/1.0\r\n\r\n"):  # the latter reads to the end, and takes a plain one for the answer's
        wire = exchange(serve, app, raw)
        assert wire.transport.reset and b"secret" not in wire.output and "secret" in caplog.text


def test_stream_that_the_end_of_the_server_cuts_is_reset(serve):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"ab", True))
        await receive()
        await receive()

    wire = exchange(serve, app, b"GET / HTTP/1.0\r\n\r\n")
    wire.connections.abort()
    assert wire.transport.reset


def test_message_after_the_end_raises_and_harms_nothing(serve, caplog):
    raised = []

    async def app(scope, receive, send):
        await echo(scope, receive, send)
        try:
            await send(body(b"more"))
        except RuntimeError as error:
            raised.append(str(error))

    wire = exchange(serve, app, GET, GET)
    assert wire.statuses == [200, 200] and len(raised) == 2 and "after the answer was complete" in raised[0]


# --- the client leaves --------------------------------------------------------------------------------------


def test_application_learns_that_the_client_left(serve):
    seen = []

    async def app(scope, receive, send):
        await receive()
        seen.append((await receive())["type"])
        try:
            await send(START)
            await send(body(b"x"))
        except OSError as error:
            seen.append(type(error).__name__)
            raise

    wire = exchange(serve, app, post(b"a"))
    wire.protocol.connection_lost(None)
    wire.settle()
    assert seen == ["http.disconnect", "ConnectionResetError"] and wire.output == b""


def test_application_is_told_of_a_half_close_and_may_answer_all_the_same(serve):
    """As good as all who end their side have left; who has not reads on."""
    seen = []

    async def app(scope, receive, send):
        await receive()
        seen.append((await receive())["type"])
        await send(START)
        await send(body(b"x"))

    wire = exchange(serve, app, post(b"a"))
    assert seen == [] and wire.protocol.eof_received() is True
    wire.settle()
    assert seen == ["http.disconnect"] and wire.statuses == [200] and wire.transport.closed


class Left(Exception):
    """What frameworks raise of their own where the client left."""


@pytest.mark.parametrize("ends", [Left, None], ids=["raises", "returns"])
@pytest.mark.parametrize("how", ["half close", "reset"])
@pytest.mark.parametrize("began", [False, True])
def test_application_that_gives_up_because_its_client_left_is_no_error(serve, caplog, ends, how, began):
    async def app(scope, receive, send):
        await receive()
        if began:
            await send(START)
            await send(body(b"x", True))
        await receive()
        if ends is not None:
            raise ends

    wire = exchange(serve, app, post(b"a"))
    wire.protocol.eof_received() if how == "half close" else wire.protocol.connection_lost(None)
    wire.settle()
    assert not caplog.records and wire.statuses == [200] * began
    assert wire.transport.closed == (how == "half close") and wire.transport.reset == (began and wire.transport.closed)


def test_stream_whose_client_left_is_no_error(serve, caplog):
    async def app(scope, receive, send):
        await send(START)
        try:
            while True:
                await send(body(b"x", True))
                await asyncio.sleep(0)
        except OSError:
            raise Left from None  # starlette does so

    wire = exchange(serve, app, GET)
    wire.protocol.connection_lost(None)
    wire.settle()
    assert not caplog.records


def test_receive_after_the_answer_says_disconnect(serve):
    seen = []

    async def app(scope, receive, send):
        await echo(scope, receive, send)
        seen.append(await receive())

    exchange(serve, app, GET)
    assert seen == [{"type": "http.disconnect"}]


def test_sending_waits_for_a_client_that_does_not_read(serve):
    sent = []

    async def app(scope, receive, send):
        await send(START)
        for i in range(3):
            await send(body(b"x", True))
            sent.append(i)
        await send(body())

    wire = serve(app)
    wire.protocol.pause_writing()
    wire.send(GET).settle() if wire.transport.reading else wire.protocol.data_received(GET)
    wire.settle()
    assert sent == []
    wire.protocol.resume_writing()
    wire.settle()
    assert sent == [0, 1, 2]


def test_idle_connection_is_closed_after_a_keep_alive_shorter_than_the_first_wait(serve):
    wire = serve(echo, keep_alive_seconds=5).send(GET).settle()
    assert not wire.advance(4).ended
    assert wire.advance(2).ended


def test_connection_is_idle_again_after_an_answer_that_outlasted_its_clock(serve):
    answer = asyncio.Event()

    async def app(scope, receive, send):
        await answer.wait()
        await echo(scope, receive, send)

    wire = serve(app).send(GET).settle().advance(20)
    answer.set()
    assert wire.settle().statuses == [200]
    assert not wire.advance(70).ended
    assert wire.advance(10).ended


def test_half_closed_client_gets_its_answer(serve):
    gate = asyncio.Event()

    async def app(scope, receive, send):
        await gate.wait()
        await echo(scope, receive, send)

    wire = serve(app).send(post(b"a") + post(b"b")).settle()
    assert wire.protocol.eof_received() is True
    gate.set()
    wire.settle()
    assert [data for _, _, data in wire.replies()] == [b"a", b"b"] and wire.transport.closed


def test_drain_lets_the_answer_be_the_last(serve):
    wire = exchange(serve, echo, GET)
    wire.connections.drain()
    wire.send(GET).settle()
    assert wire.statuses == [200, 200] and b"connection: close" in wire.output and wire.ended


def test_root_path_is_ahead_of_the_path(serve):
    paths = []

    async def app(scope, receive, send):
        paths.append((scope["root_path"], scope["path"], scope["raw_path"]))
        await echo(scope, receive, send)

    wire = serve(app)
    wire.connections.root_path = "/api"
    wire.send(head()).settle()
    assert paths == [("/api", "/api/", b"/api/")]


def test_scheme_is_https_where_a_trusted_proxy_says_so_or_tls_ends_here(serve):
    schemes = []

    async def app(scope, receive, send):
        schemes.append(scope["scheme"])
        await echo(scope, receive, send)

    wire = serve(app)
    wire.connections.secure = lambda peer, headers: dict(headers).get(b"x-forwarded-proto") == b"https"
    wire.send(GET, head(b"X-Forwarded-Proto: https")).settle()
    wire = serve(app)
    wire.transport.extra["sslcontext"] = object()
    wire.send(GET).settle()
    assert schemes == ["http", "https", "https"]


# --- what is loaded for it ------------------------------------------------------------------------------------

HOST = """
import asyncio, sys
sys.path.insert(0, "tests")
from kit.cases import post
from kit.wire import Wire
from virtex import HttpProtocol, serve

async def app(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})

assert Wire(app).send(post(b"a")).settle().statuses == [200]
"""
UVICORN = "import uvicorn.protocols.http.httptools_impl"
MEASURE = """
import json, os, sys, time

def resident():
    if not os.path.exists("/proc/self/statm"):
        return 0.0
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

began, before = time.perf_counter(), resident()
{code}
print(json.dumps([1e3 * (time.perf_counter() - began), resident(), resident() - before, sorted(sys.modules)]))
"""
NOT_FOR_A_FOREIGN_APPLICATION = {"numpy", "orjson", "gunicorn", "httpx2"}
MAY_KNOW_OF_BATCH = {"virtex.batch", "virtex.batch.ring"}
MAY_KNOW_OF_SERVICE = {"virtex.service", "virtex.service.register", "virtex.service.seam"}


def loaded_by(code):
    """What a process has loaded that has run it, and what that took: the modules, ms, MB, MB more than before."""
    script = MEASURE.format(code=code)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    ms, rss, more, modules = json.loads(ended.stdout)
    return set(modules), f"{ms:.0f} ms, {rss:.0f} MB, {more:.0f} of them its own"


def test_hosting_a_foreign_application_loads_neither_numpy_nor_codec_nor_batcher():
    modules, ours = loaded_by(HOST)
    _, theirs = loaded_by(UVICORN)
    print(f"virtex's protocol, one request included: {ours}; uvicorn's, loaded: {theirs}")
    assert not modules & NOT_FOR_A_FOREIGN_APPLICATION
    own = {name for name in modules if name.startswith("virtex.")}
    assert {name for name in own if name.startswith("virtex.batch")} <= MAY_KNOW_OF_BATCH
    assert {name for name in own if name.startswith("virtex.service")} <= MAY_KNOW_OF_SERVICE
    rest = {name for name in own if name.count(".") == 1} - {"virtex.batch", "virtex.service"}
    assert rest == {"virtex.wire", "virtex.errors", "virtex.limits", "virtex.logs", "virtex.resident"}


def test_nothing_follows_an_answer_that_said_it_is_the_last(serve, caplog):
    async def app(scope, receive, send):
        await receive()
        raise ValueError("no answer")

    wire = serve(app, max_bytes=2000)
    wire.send(GET + b"GET / HTTP/1.1\r\nHost: " + b"a" * 3000)  # behind a 500 that closes there is a 503 now
    wire.transport.unsent = 100
    wire.protocol.pause_writing()
    wire.settle()
    wire.transport.unsent = 0
    wire.protocol.resume_writing()
    wire.settle()
    assert wire.statuses == [500] and wire.transport.ended and not wire.transport.closed
    assert "could not be written" not in caplog.text
