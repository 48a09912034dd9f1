"""Several services in one app: paths, names, health, metrics and lives, by both lanes."""

import asyncio
import json
import re
import signal
import threading
from collections import Counter

import numpy as np
import pytest
from kit import needs
from kit.asks import ask_asgi, ask_direct, run
from kit.servers import DRAIN_DELAY, ECHO, HELD_DRAIN, serving, until
from kit.services import BODY, Echo
from kit.wire import LiveWire

from virtex import (
    HttpClient,
    HttpMessage,
    HttpProtocol,
    Limits,
    Server,
    Services,
    Tensor,
    TensorHandler,
    http_server,
    serve,
)
from virtex.service.register import REGISTER
from virtex.wire.guests import Guests, limits_of

both_lanes = pytest.mark.parametrize("ask", [ask_asgi, ask_direct])


class Named(Echo):
    """Answers with its name, and remembers its life."""

    def __init__(self, name="", seen=None):
        self.name = name
        self.seen = [] if seen is None else seen

    def setup(self, worker):
        self.seen.append(("setup", worker.index, worker.count))

    def teardown(self):
        self.seen.append("teardown")

    def process_response(self, item):
        return [self.name, item]


def named(*names, **options):
    return [http_server(name, Named(name), **options) for name in names]


def status_of(services, ask, *request):
    (answer,) = run(services, ask(services, *request))
    return answer


# --- paths ---------------------------------------------------------------------------------------------------------


@both_lanes
@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("/a", "a"),
        ("/a/", "a"),
        ("/a/any/path", "a"),
        ("/b", "b"),
        ("/b/a", "b"),
        ("/ä 1?", "ä 1?"),
        ("/ä 1?/x", "ä 1?"),
    ],
)
def test_a_message_goes_to_the_service_of_its_path(ask, path, answered):
    services = Services(*named("a", "b", "ä 1?"))
    assert status_of(services, ask, BODY, "POST", path).json["data"] == [[answered, 1]]


@both_lanes
@pytest.mark.parametrize(
    "path", ["/c", "/A", "/aa", "/", "//a", "/health/a", "/v2/a", "/metrics/live", "/c/health/ready"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_of_no_service_says_which_there_are(ask, path, method):
    answer = status_of(Services(*named("a", "b")), ask, BODY if method == "POST" else b"", method, path)
    if (method, path) == ("GET", "/"):
        assert answer.json["services"][0] == {"name": "a", "path": "/a", "state": "ready"}
    else:
        assert answer.status == (405 if path == "/" else 404)
        assert answer.error.endswith("messages are POSTed to /a, /b" if path == "/" else "the services are at /a, /b")


@both_lanes
def test_below_its_name_a_service_answers_all_that_a_single_one_does(ask):
    paths = ["/", "/health/live", "/health/ready", "/metrics/live", "/metrics", "/health/x", "/v2/x"]
    single = http_server("a", Named("a"), prom_mode="scrape", prom_port=9571)
    alone = run(single, *(ask(single, method="GET", path=path) for path in paths))
    services = Services(*named("a", prom_mode="scrape", prom_port=9571), *named("b"))
    several = run(services, *(ask(services, method="GET", path=f"/a{path}") for path in paths))
    assert [each.status for each in several] == [each.status for each in alone] == [200] * 5 + [404] * 2
    assert several[0].json == alone[0].json and several[3].json["service"] == "a"


@both_lanes
def test_a_name_is_what_the_path_decodes_to(ask):
    services = Services(*named("50% of it", "b"))
    assert status_of(services, ask, BODY, "POST", "/50% of it").json["data"] == [["50% of it", 1]]
    assert (
        status_of(Services(*named("50% of it", "b")), ask, b"", "GET", "/").json["services"][0]["path"]
        == "/50%25%20of%20it"
    )


def post(path, body=BODY, headers=b""):
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (path, headers, len(body)) + body


def data(wire):
    return [json.loads(body)["data"] for _, _, body in wire.settle().replies()]


@pytest.fixture
def wired(event_loop):
    """One connection to Services of a and b."""
    services = Services(*named("a", "b"))
    event_loop.run_until_complete(services.startup())
    yield LiveWire(services, loop=event_loop)
    event_loop.run_until_complete(services.shutdown())


def test_a_connection_that_alternates_is_answered_by_whom_it_asked(wired):
    order = b"aabbabbaab"
    for each in order:
        wired.send(post(b"/%c" % each, b'{"data":[%d]}' % each)).settle()
    assert data(wired) == [[[chr(each), each]] for each in order]


def test_pipelined_requests_to_several_come_back_in_their_order(wired):
    order = b"abbbaab"
    wired.send(b"".join(post(b"/%c" % each, b'{"data":[%d]}' % each) for each in order))
    assert data(wired) == [[[chr(each), each]] for each in order]


def test_a_head_that_was_refused_comes_again_and_reaches_its_own_service(wired):
    wired.send(post(b"/a")).settle()
    wired.app.budget.held += 1 << 40
    wired.send(post(b"/b")).settle()
    wired.app.budget.held -= 1 << 40
    wired.send(post(b"/b")).settle()
    assert wired.statuses == [200, 503, 200] and data(wired)[2] == [["b", 1]]


def test_the_same_head_again_does_not_ask_the_services(wired, monkeypatch):
    wired.send(post(b"/a"))
    monkeypatch.setattr(Services, "open", None)
    wired.send(post(b"/a"), post(b"/a"))
    assert data(wired) == [[["a", 1]]] * 3


def test_names_are_percent_decoded_and_a_prefix_is_stripped(event_loop):
    services = Services(*named("ä", "b"))
    event_loop.run_until_complete(services.startup())
    wire = LiveWire(services, loop=event_loop)
    wire.connections.root_path = "/api"
    wire.send(post(b"/api/%C3%A4/x?y"), post(b"/%62"))
    assert data(wire) == [[["ä", 1]], [["b", 1]]]
    event_loop.run_until_complete(services.shutdown())


def test_under_asgi_a_prefix_is_stripped_whether_the_path_has_it_or_not():
    services = Services(*named("a", "b"))
    answers = run(services, *(ask_asgi(services, BODY, path=path, root_path="/api") for path in ("/api/b", "/b")))
    assert [answer.json["data"] for answer in answers] == [[["b", 1]]] * 2


def test_a_connection_is_known_to_those_that_it_asked(wired, monkeypatch):
    known = []
    for name in ("join", "leave"):
        told = getattr(Server, name)
        monkeypatch.setattr(
            Server,
            name,
            lambda self, it, told=told, name=name: (known.append((name + "s", self.name)), told(self, it))[1],
        )
    wired.send(post(b"/a"), post(b"/a/x"), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").settle()
    wired.protocol.connection_lost(None)
    assert known == [("joins", "a"), ("leaves", "a")]


def test_what_breaks_off_is_refused_and_counted_by_its_service(event_loop, monkeypatch):
    a, b = named("a"), named("b", limits=Limits(body=100), cors=["https://x.example"])
    services = Services(*a, *b)
    event_loop.run_until_complete(services.startup())
    counted = []
    for server in services.servers:
        monkeypatch.setattr(server, "_cells", Counting(server, counted))
    wire = LiveWire(services, loop=event_loop)
    wire.send(b"POST /b HTTP/1.1\r\nHost: a\r\nOrigin: https://x.example\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n")
    wire.send(b"x" * 255)
    (reply,) = wire.settle().replies()
    assert reply[0] == 413 and reply[1][b"access-control-allow-origin"] == b"https://x.example"
    assert counted == [("b", 413)]
    garbage = LiveWire(services, loop=event_loop).send(b"\x00\x01\r\n\r\n").settle()
    assert garbage.statuses[0] in (400, 501) and len(counted) == 1
    event_loop.run_until_complete(services.shutdown())


class Counting:
    def __init__(self, server, counted):
        self._counted = counted
        self._name = server.name

    def refused(self, status):
        self._counted.append((self._name, status))

    def __getattr__(self, name):
        return lambda *_: None


# --- about all of them ---------------------------------------------------------------------------------------------


def test_health_is_that_of_all_and_names_who_is_unwell():
    async def main():
        services = Services(*named("a", "b"))
        await services.startup()
        get = [await ask_direct(services, b"", "GET", f"/health/{which}") for which in ("live", "ready")]
        assert [answer.json for answer in get] == [{"live": True}, {"ready": True}]
        services.servers[1].drain()
        assert (await ask_direct(services, b"", "GET", "/health/live")).status == 200
        ready = await ask_asgi(services, b"", "GET", "/health/ready")
        assert (ready.status, ready.error) == (503, "service 'b': not ready: the service is draining")
        assert ready.headers[b"retry-after"] == b"1"
        assert [(await ask_direct(services, b"", "GET", f"/{x}/health/ready")).status for x in "ab"] == [200, 503]
        assert (await ask_direct(services, BODY, "POST", "/b")).status == 200
        await services.shutdown()

    asyncio.run(main())


def series(answer, name="virtex_requests_total"):
    text = answer.body.decode()
    return {
        service: float(value) for service, value in re.findall(rf'{name}{{code="200",service="(\w+)"}} (\S+)', text)
    }


@both_lanes
def test_metrics_are_those_of_all_that_have_any(ask):
    one = {"prom_mode": "scrape", "prom_port": 9572}
    services = Services(*named("metered1", "metered2", **one), *named("unmetered"))

    async def scraped():
        for path in ("metered1", "metered2", "metered2", "unmetered"):
            assert (await ask(services, BODY, "POST", f"/{path}")).status == 200
        assert (await ask(services, b"", "HEAD", "/metrics")).status == 200
        return await ask(services, b"", "GET", "/metrics")

    (answer,) = run(services, scraped())
    counted = series(answer)
    assert set(counted) == {"metered1", "metered2"} and counted["metered2"] >= 2
    without = Services(*named("c", "d"))
    get, posted = run(without, ask(without, b"", "GET", "/metrics"), ask(without, BODY, "POST", "/metrics"))
    assert (get.status, posted.status) == (404, 405) and "prom_mode='off'" in get.error


@both_lanes
def test_metrics_show_the_services_that_let_the_request_in(ask):
    def key(word):
        return lambda head: None if (b"authorization", word) in head.headers else 401

    one = {"prom_mode": "scrape", "prom_port": 9573}
    services = Services(*named("locked1", authorize=key(b"1"), **one), *named("locked2", authorize=key(b"2"), **one))
    both, second = run(
        services,
        ask(services, b"", "GET", "/metrics"),
        ask(services, b"", "GET", "/metrics", [(b"authorization", b"2")]),
    )
    assert both.status == 401 and both.headers[b"www-authenticate"] == b"Bearer"
    assert set(re.findall(r'virtex_workers{service="(\w+)"}', second.body.decode())) == {"locked2"}
    assert status_of(Services(*named("a", authorize=key(b"1"))), ask, BODY, "POST", "/a").status == 401


# --- what is refused at the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["health", "metrics", "v2", "/", "a/b", ".", ".."])
def test_a_name_that_is_no_part_of_a_path_is_an_error_at_the_start(name):
    with pytest.raises(ValueError, match=f"name {re.escape(repr(name))}"):
        Services(*named("a", name))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Services(), "expected one server at least"),
        (lambda: Services(*named("a", "a")), "'a' is there twice"),
        (lambda: Services(Services(*named("a"))), "got a Services"),
        (lambda: Services(named("a", "b")), "got a list"),
        (lambda: Services(Echo()), "got a Echo"),
        (lambda: Services(*named("a"), limits=5), "expected a Limits"),
        (lambda: Services(*Services(*named("a", "b")).servers[:1]), "'a' is one of other Services"),
    ],
    ids=["none", "twice", "of services", "a list", "a handler", "limits", "shared"],
)
def test_what_can_not_be_served_together_is_an_error_at_the_start(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_server_that_has_begun_is_refused_and_stays_as_it_was():
    async def main():
        a, b = named("a", "b")
        await b.startup()
        with pytest.raises(ValueError, match="'b' has begun"):
            Services(a, b)
        assert not a.is_shared and a in REGISTER.services()
        await b.shutdown()

    asyncio.run(main())


# --- limits and room -----------------------------------------------------------------------------------------------


def test_limits_of_connections_are_its_own_and_others_each_services():
    a = http_server("a", Echo(), limits=Limits(body=10, values=5, answer_seconds=1.0, connections=7))
    b = http_server("b", Echo(), limits=Limits(body=20, values=9, answer_seconds=2.0, max_bytes=1 << 20))
    services = Services(a, b, limits=Limits(connections=3, max_bytes=1 << 21, body=5))
    assert limits_of(services) == Limits(connections=3, max_bytes=1 << 21, body=20, values=9, answer_seconds=2.0)
    assert (
        a.limits == a.options.limits == Limits(connections=3, max_bytes=1 << 21, body=10, values=5, answer_seconds=1.0)
    )
    assert a.budget is b.budget is services.budget and services.budget.budget == 1 << 21
    assert (
        Services(*named("c", limits=Limits(connections=5)), *named("d", limits=Limits(body=7))).limits.connections
        == 10_000
    )


@both_lanes
def test_a_body_is_as_large_as_its_service_lets_it(ask):
    services = Services(*named("a", limits=Limits(body=20)), *named("b"))
    body = b'{"data":[1],"x":"%b"}' % (b"y" * 50)
    assert [each.status for each in run(services, *(ask(services, body, "POST", path) for path in ("/a", "/b")))] == [
        413,
        200,
    ]


def test_a_queue_that_is_full_is_no_other_services():
    class Held(Echo):
        go = threading.Event()

        def run_inference(self, model_input):
            self.go.wait(20)
            return model_input

    async def main():
        services = Services(
            http_server("held", Held(), max_batch_size=1, max_queue_size=1, executor="thread"), *named("free")
        )
        await services.startup()
        asks = [asyncio.create_task(ask_direct(services, BODY, "POST", "/held")) for _ in range(6)]
        await asyncio.sleep(0)
        assert (await ask_direct(services, BODY, "POST", "/free")).status == 200
        Held.go.set()
        statuses = Counter(answer.status for answer in await asyncio.gather(*asks))
        assert set(statuses) == {200, 503} and statuses[503] >= 2
        await services.shutdown()

    asyncio.run(main())


class Rows(TensorHandler):
    inputs = Tensor("float32", (1024,))

    def run_inference(self, batch):
        return batch


def test_rows_of_declared_inputs_share_the_room_and_have_it_again_on_another_loop():
    a, b = (http_server(name, Rows, max_batch_size=64, max_queue_size=64) for name in "ab")
    services = Services(a, b)
    left = []

    async def main():
        await services.startup()
        left.append((services.budget.budget, services.budget.held))
        answer = await ask_direct(services, json.dumps({"data": [[0.5] * 1024]}).encode(), "POST", "/b")
        assert answer.status == 200 and np.array(answer.json["data"]).shape == (1, 1024)
        await services.shutdown()

    asyncio.run(main())
    asyncio.run(main())
    row = 4096
    assert left[0] == left[1] and left[0][1] == 0
    assert services.budget.most - left[0][0] >= 2 * 2 * 64 * row


# --- life ----------------------------------------------------------------------------------------------------------


def test_all_start_drain_and_end_once():
    async def main():
        services = Services(*named("a"), *named("b", executor="thread"))
        handlers = [server.options.handler for server in services.servers]
        assert services.loop is None and not services.is_hosted and services.name == "a, b"
        async with await serve(services, port=0):
            await services.startup()
            assert services.loop is asyncio.get_running_loop()
            assert [handler.seen for handler in handlers] == [[("setup", 0, 1)]] * 2
        assert [handler.seen for handler in handlers] == [[("setup", 0, 1), "teardown"]] * 2

    asyncio.run(main())


def test_one_that_fails_to_start_fails_all_and_the_others_are_torn_down():
    class Failing(Echo):
        async def setup(self, worker):
            await asyncio.sleep(0)
            raise FileNotFoundError("model.bin")

    async def main():
        (a,) = named("a")
        with pytest.raises(FileNotFoundError, match=r"model\.bin"):
            await serve(Services(a, http_server("b", Failing)), port=0)
        assert a.options.handler.seen == [("setup", 0, 1), "teardown"]

    asyncio.run(main())


def test_an_early_request_waits_for_its_own_service_only():
    class Slow(Echo):
        async def setup(self, worker):
            await go.wait()

    async def main():
        nonlocal go
        go = asyncio.Event()
        services = Services(http_server("slow", Slow()), *named("quick"))
        loading = asyncio.create_task(services.startup())
        assert (await ask_asgi(services, BODY, path="/quick")).status == 200
        slow = await ask_asgi(services, BODY, path="/slow")
        ready = await ask_direct(services, b"", "GET", "/health/ready")
        assert (slow.status, ready.status, loading.done()) == (503, 503, False)
        listed = await ask_direct(services, b"", "GET", "/")
        assert [each["state"] for each in listed.json["services"]] == ["starting", "ready"]
        go.set()
        await loading
        assert (await ask_asgi(services, BODY, path="/slow")).status == 200
        await services.shutdown()

    go = None
    asyncio.run(main())


def test_without_a_lifespan_each_starts_with_its_first_request():
    async def main():
        services = Services(*named("a", "b"))
        assert (await ask_asgi(services, BODY, path="/b")).json["data"] == [["b", 1]]
        assert [server.loop is None for server in services.servers] == [True, False]
        assert (await ask_asgi(services, b"", "GET", "/health/live")).status == 200
        await services.shutdown()

    asyncio.run(main())


def test_two_with_a_thread_each_run_side_by_side():
    meeting = threading.Barrier(2)

    class Meeting(Echo):
        def run_inference(self, model_input):
            meeting.wait(20)  # raises unless the other one is here at the same time
            return [threading.current_thread().name]

    services = Services(*(http_server(name, Meeting(), executor="thread") for name in "ab"))
    answers = run(services, *(ask_direct(services, BODY, "POST", f"/{name}") for name in "ab"))
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json["data"] != answers[1].json["data"]


def test_its_servers_are_hosted_once_whenever_they_were_made():
    async def main():
        guests = Guests(1)
        services = Services(*named("a", "b"))
        guests.take(None)
        late = Services(*named("c", "d"))
        assert [each for each in guests._all if each.name in ("a, b", "a", "b")] == [services]
        assert [each for each in guests._all if each.name in ("c, d", "c", "d")] == [late]
        REGISTER.remove(late)
        assert late not in guests._all
        await guests.shutdown()

    asyncio.run(main())


async def test_client(url):
    async with HttpClient(url) as client:
        return (await client.post_async(HttpMessage(data=[1, 2]))).data


test_client.__test__ = False


def test_a_client_posts_to_the_path_of_a_service():
    async def main():
        async with await serve(Services(*named("a", "b")), port=0) as listener:
            url = f"http://127.0.0.1:{listener.port}"
            assert await test_client(f"{url}/b") == [["b", 1], ["b", 2]]
            assert await test_client(f"{url}/a/") == [["a", 1], ["a", 2]]

    asyncio.run(main())


def test_a_protocol_of_ones_own_loop_serves_it():
    async def main():
        loop = asyncio.get_running_loop()
        services = Services(*named("a", "b"))
        server = await loop.create_server(lambda: HttpProtocol(services), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await test_client(f"http://127.0.0.1:{port}/b") == [["b", 1], ["b", 2]]
        server.close()
        await services.shutdown()

    asyncio.run(main())


# --- real servers --------------------------------------------------------------------------------------------------

SOURCE = (
    ECHO
    + """
from virtex import Limits, Services

class Telling(Echo):
    def __init__(self, name):
        self.name = name
    def setup(self, worker):
        self.worker = worker
        print(f"setup {self.name} {worker.index} {worker.count}\\n", end="", flush=True)
    def teardown(self):
        print(f"teardown {self.name}\\n", end="", flush=True)
    def process_response(self, item):
        return [self.name, self.worker.index, item]

services = app = Services(
    http_server("a", Telling("a"), executor="thread"),
    http_server("b", Telling("b"), limits=Limits(body=100_000_000)),
)
"""
)
WAYS = {  # to serve it: the code, and what stands ahead of its paths
    "itself": ("", ""),
    "wrapped": (
        "from starlette.middleware.cors import CORSMiddleware\napp = CORSMiddleware(services, allow_origins=['*'])\n",
        "",
    ),
    "mounted": ("from fastapi import FastAPI\napp = FastAPI()\napp.mount('/at', services)\n", "/at"),
}


def posted(server, path, item="q"):
    status, body = server.request("POST", path, json.dumps({"data": [item]}).encode())
    assert status == 200, body
    return json.loads(body)["data"][0]


@pytest.mark.parametrize("way", WAYS)
def test_under_gunicorn_all_are_told_their_worker_drained_and_ended_once(way, monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", str(DRAIN_DELAY))
    needs.found("starlette", "fastapi")
    code, at = WAYS[way]
    source = HELD_DRAIN + SOURCE + code
    with serving("gunicorn", source, "--workers", "2", "--graceful-timeout", "2000") as server:
        server.wait_log("is ready; workers=2", 2)
        told = Counter(line for line in server.log.splitlines() if line.startswith("setup"))
        assert told == {f"setup {name} {index} 2": 1 for name in "ab" for index in (0, 1)}
        for name in "ab":
            until(lambda name=name: {posted(server, f"{at}/{name}")[1] for _ in range(8)} == {0, 1}, "both", server)
        assert posted(server, f"{at}/b", "x" * 80_000_000)[0] == "b"
        assert server.request("POST", f"{at}/c", BODY)[0] == 404
        server.signal(signal.SIGTERM)
        for path in ("/health/ready", "/a/health/ready", "/b/health/ready"):
            until(lambda path=path: server.request("GET", at + path)[0] == 503, "unreadiness", server)
        assert posted(server, f"{at}/a")[0] == "a"
        server.end_delay()
        assert server.wait_exit() == 0
        assert Counter(line for line in server.log.splitlines() if line.startswith("teardown")) == {
            "teardown a": 2,
            "teardown b": 2,
        }
        assert "Traceback" not in server.log and "docs/fastapi.md" not in server.log


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["serve", "uvicorn"])
def test_in_a_program_and_under_another_server(kind, way):
    needs.found("starlette", "fastapi")
    code, at = WAYS[way]
    with serving(kind, SOURCE + code) as server:
        assert [posted(server, f"{at}/{name}")[0] for name in "ab"] == ["a", "b"]
        assert server.request("GET", f"{at}/a/health/ready")[0] == 200
        assert server.request("GET", f"{at}/health/ready")[0] == 200
        server.signal(signal.SIGTERM)
        server.wait_exit()
        seen = Counter(line for line in server.log.splitlines() if line.startswith(("setup", "teardown")))
        reached = kind == "serve" or way != "mounted"  # by the lifespan
        ends = {"teardown a": 1, "teardown b": 1} if reached else {}
        assert seen == {"setup a 0 1": 1, "setup b 0 1": 1, **ends}


@pytest.mark.parametrize("way", WAYS)
def test_a_setup_that_fails_stops_the_worker_and_says_why(way):
    source = SOURCE.replace("self.worker = worker", "if self.name == 'b': raise FileNotFoundError('model.bin')")
    with serving("gunicorn", source + WAYS[way][0], wait=False) as server:
        assert server.wait_exit() == 3
        assert "FileNotFoundError: model.bin" in server.log and "in setup" in server.log
        assert "worker index 0 is ready" not in server.log and server.log.count("teardown a") == 1
