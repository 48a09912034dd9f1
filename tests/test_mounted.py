"""Services inside applications that wrap or mount them: started, told who they are, drained and ended as bare ones."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import threading
from collections import Counter

import pytest
from kit import needs
from kit.asks import Echo, ask_asgi
from kit.servers import DRAIN_DELAY, ECHO, HELD_DRAIN, serving, until

from virtex import Limits, http_server, serve
from virtex.service.register import REGISTER
from virtex.wire.guests import limits_of
from virtex.wire.protocol import hosted

needs.found("starlette", "fastapi")

TELLING = (
    ECHO
    + """
from contextlib import asynccontextmanager

class Telling(Echo):
    def __init__(self, name="a"):
        self.name = name
    def setup(self, worker):
        self.worker = worker
        print(f"setup {self.name} {worker.index} {worker.count}\\n", end="", flush=True)  # at once: threads write, too
    def teardown(self):
        print(f"teardown {self.name}\\n", end="", flush=True)
    def process_response(self, item):
        return len(item) if isinstance(item, str) and len(item) > 100 else [self.name, self.worker.index, item]

def make(name, **options):
    from virtex import Limits
    return http_server(name=name, handler=Telling(name), limits=Limits(body=100_000_000), **options)

@asynccontextmanager
async def lifespan(application):
    print("lifespan begins", flush=True)
    yield
    print("lifespan ends", flush=True)
"""
)
WAYS = {  # to hold a service: the code, and the paths of the services that are started ahead of any request
    "middleware": (
        """
from starlette.middleware.cors import CORSMiddleware
app = CORSMiddleware(make("a"), allow_origins=["*"])
""",
        {"a": "/"},
    ),
    "starlette": (
        """
from starlette.applications import Starlette
from starlette.routing import Mount
app = Starlette(routes=[Mount("/at/a", make("a"))], lifespan=lifespan)
""",
        {"a": "/at/a/"},
    ),
    "fastapi": (
        """
from fastapi import FastAPI
app = FastAPI(lifespan=lifespan)
app.mount("/a", make("a", executor="thread"))
app.mount("/b", make("b"))
""",
        {"a": "/a/", "b": "/b/"},
    ),
    "factory": (
        """
from fastapi import FastAPI
def app():
    made = FastAPI(lifespan=lifespan)
    made.mount("/a", make("a"))
    return made
""",
        {"a": "/a/"},
    ),
    "in the lifespan": (
        """
from fastapi import FastAPI
@asynccontextmanager
async def making(application):
    print("lifespan begins", flush=True)
    application.mount("/a", make("a"))
    yield
    print("lifespan ends", flush=True)
app = FastAPI(lifespan=making)
""",
        {"a": "/a/"},
    ),
    "at the first request": (
        """
from functools import lru_cache
service = lru_cache(make)
async def app(scope, receive, send):
    if scope["type"] == "http":
        await service("a")(scope, receive, send)
""",
        {},
    ),
    "in a thread at the first request": (
        """
import asyncio
from functools import lru_cache
service = lru_cache(make)
async def app(scope, receive, send):
    if scope["type"] == "http":
        await (await asyncio.to_thread(service, "a"))(scope, receive, send)
""",
        {},
    ),
}
LARGE = json.dumps({"data": ["x" * 80_000_000]}).encode()


def source_of(way):
    return TELLING + WAYS[way][0]


def ask(server, path, item="q"):
    status, body = server.request("POST", path, json.dumps({"data": [item]}).encode())
    assert status == 200, body
    return json.loads(body)["data"][0]


def started_with_the_first_request(way):
    return not WAYS[way][1]


@pytest.mark.parametrize("way", WAYS)
def test_under_gunicorn_each_is_started_told_its_worker_drained_and_ended_once(way, monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", str(DRAIN_DELAY))
    paths = WAYS[way][1]
    source = HELD_DRAIN + source_of(way)
    with serving("gunicorn", source, "--workers", "2", "--graceful-timeout", "2000") as server:
        server.wait_log("is ready; workers=2", 2)
        for name, path in paths.items():
            assert {f"setup {name} {index} 2" for index in (0, 1)} <= set(server.log.splitlines())
            until(lambda path=path: {ask(server, path)[1] for _ in range(8)} == {0, 1}, "both to answer", server)
            status, body = server.request("POST", path, LARGE)
            assert (status, json.loads(body)["data"]) == (200, [80_000_000])
        if not paths:
            until(lambda: len({ask(server, "/")[1] for _ in range(8)}) == 2, "both to answer", server)
        told = Counter(line for line in server.log.splitlines() if line.startswith("setup"))
        names = [*paths] or ["a"]
        assert told == {f"setup {name} {index} 2": 1 for name in names for index in (0, 1)}
        server.signal(signal.SIGTERM)
        for path in paths.values() or "/":
            until(lambda path=path: server.request("GET", f"{path}health/ready")[0] == 503, "unreadiness", server)
            assert server.request("GET", f"{path}health/live")[0] == 200
            ask(server, path)
        server.end_delay()
        assert server.wait_exit() == 0
        lines = server.log.splitlines()
        for name in names:
            assert lines.count(f"teardown {name}") == 2, server.log
        assert "Traceback" not in server.log and "docs/fastapi.md" not in server.log


@pytest.mark.parametrize("way", WAYS)
def test_in_a_program_each_is_started_and_ended_once(way):
    source = source_of(way).replace("def app():", "def made():") + ("app = made()\n" if way == "factory" else "")
    with serving("serve", source) as server:
        for name, path in WAYS[way][1].items():
            assert f"setup {name} 0 1" in server.log
            assert ask(server, path) == [name, 0, "q"]
            assert server.request("POST", path, LARGE)[0] == 200
        names = [*WAYS[way][1]]
        if not names:
            assert ask(server, "/") == ["a", 0, "q"]
            names = ["a"]
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        for name in names:
            assert (server.log.count(f"setup {name}"), server.log.count(f"teardown {name}")) == (1, 1)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("way", ["starlette", "fastapi"])
def test_they_start_ahead_of_the_applications_lifespan_and_end_after_it_and_the_log_names_them(way):
    with serving("serve", source_of(way)) as server:
        server.signal(signal.SIGTERM)
        server.wait_exit()
        said = [
            line.split()[0] for line in server.log.splitlines() if line.startswith(("setup", "teardown", "lifespan"))
        ]
        names = WAYS[way][1]
        assert said == ["setup"] * len(names) + ["lifespan"] * 2 + ["teardown"] * len(names)
        named = ", ".join(map(repr, names))
        assert f"started the services inside the application: {named}" in server.log


@pytest.mark.parametrize("way", ["middleware", "starlette", "fastapi", "factory", "in the lifespan"])
def test_a_setup_that_fails_stops_the_worker_and_says_why(way):
    source = source_of(way).replace("self.worker = worker", "raise FileNotFoundError('model.bin')")
    with serving("gunicorn", source, wait=False) as server:
        assert server.wait_exit() == 3
        assert "FileNotFoundError: model.bin" in server.log and "in setup" in server.log
        assert "is ready" not in server.log


def test_one_that_fails_later_is_unwell_alone():
    source = source_of("at the first request").replace("self.worker = worker", "raise FileNotFoundError('model.bin')")
    with serving("gunicorn", source) as server:
        server.wait_log("is ready; workers=1")
        assert server.request("POST", "/", b'{"data":["a"]}')[0] == 503
        assert server.request("GET", "/health/live")[0] == 503
        assert "FileNotFoundError: model.bin" in server.log and server.log.count("Booting worker") == 1


@pytest.mark.parametrize("kind", ["uvicorn", "granian", "hypercorn"])
@pytest.mark.parametrize("way", ["middleware", "starlette"])
def test_another_server_does_what_its_lifespan_reaches_and_the_log_says_the_rest(kind, way):
    with serving(kind, source_of(way)) as server:
        path = WAYS[way][1]["a"]
        assert server.log.count("setup a 0 1") == (way == "middleware")
        assert ask(server, path) == ["a", 0, "q"]
        assert server.log.count("setup a 0 1") == 1
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert server.log.count("teardown a") == (way == "middleware")
        said = "is started and ended by another" if way == "middleware" else "starts with its first request"
        assert server.log.count(f"service 'a' {said}") == server.log.count("docs/fastapi.md") == 1


# --- on one loop ---------------------------------------------------------------------------------------------------


class Life(Echo):
    def __init__(self):
        self.seen = []

    def setup(self, worker):
        self.seen.append(worker.index)

    def teardown(self):
        self.seen.append("down")


async def nothing(scope, receive, send):
    assert scope["type"] != "lifespan"


def test_what_somebody_else_has_begun_is_left_to_him():
    async def main():
        handler = Life()
        app = http_server("own", handler)
        async with await serve(app, port=0):
            async with await serve(nothing, port=0):
                pass
            assert handler.seen == [0] and (await ask_asgi(app, b'{"data":[1]}')).status == 200
        assert handler.seen == [0, "down"]

    asyncio.run(main())


def test_what_a_bare_server_is_served_beside_is_not_begun():
    async def main():
        handler = Life()
        beside, app = http_server("beside", handler), http_server("app", Echo)
        async with await serve(app, port=0):
            assert beside.loop is None and handler.seen == []

    asyncio.run(main())


def test_one_fails_and_those_that_were_begun_are_ended():
    class Failing(Echo):
        async def setup(self, worker):
            await asyncio.sleep(0)
            raise FileNotFoundError("model.bin")

    async def main():
        handlers = [Life(), Life()]
        apps = [http_server("a", handlers[0]), http_server("b", lambda: Failing()), http_server("c", handlers[1])]
        with pytest.raises(FileNotFoundError, match=r"model\.bin"):
            await serve(nothing, port=0)
        assert [handler.seen for handler in handlers] == [[0, "down"]] * 2 and len(apps) == 3

    asyncio.run(main())


def test_one_that_is_made_while_others_drain_is_unready_and_ended():
    async def main():
        handler = Life()
        host = hosted(nothing)
        await host.startup()
        host.drain()
        app = http_server("late", handler)
        await asyncio.sleep(0)
        assert (await ask_asgi(app, method="GET", path="/health/ready")).status == 503
        assert (await ask_asgi(app, b'{"data":[1]}')).status == 200
        await host.shutdown()
        assert handler.seen == [0, "down"]
        after = http_server("after", Echo)
        await asyncio.sleep(0)
        assert after.loop is None

    asyncio.run(main())


class NeverEnding(Life):
    async def teardown(self):
        await asyncio.Event().wait()


@pytest.mark.parametrize("handler", [Life(), NeverEnding()], ids=lambda handler: type(handler).__name__)
def test_an_application_that_never_shuts_down_does_not_cost_them_their_teardown(handler, caplog):
    ended = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def main():
        inside = http_server("inside", handler)
        await (await serve(app, port=0)).close()
        assert handler.seen == [0, "down"][: 1 + (type(handler) is Life)] and inside.loop is not None and ended

    asyncio.run(asyncio.wait_for(main(), 10))
    assert "did not shut down within" in caplog.text


def test_a_thread_may_make_one_and_serve_it_on_a_loop_of_its_own():
    def beside(seen):
        async def main():
            async with await serve(app, port=0):
                seen.append(app.loop is asyncio.get_running_loop())

        app = http_server("beside", Life())
        asyncio.run(main())

    async def main():
        seen = []
        async with await serve(nothing, port=0):
            thread = threading.Thread(target=beside, args=(seen,))
            thread.start()
            await asyncio.to_thread(thread.join)
        assert seen == [True]

    asyncio.run(main())


def test_a_service_that_nobody_holds_is_none():
    app = http_server("held", Echo)
    assert app in REGISTER.services()
    del app
    gc.collect()
    assert [service for service in REGISTER.services() if service.name == "held"] == []


def test_the_limits_of_connections_are_those_of_the_one_inside_and_of_several_the_widest(monkeypatch):
    monkeypatch.setattr(
        REGISTER, "_services", type(REGISTER._services)()
    )  # those of other test files are in this process
    assert limits_of(nothing) == Limits()
    apps = [http_server("a", Echo, limits=Limits(body=1 << 30, body_rate=99.0, connections=5, header_bytes=1000))]
    assert limits_of(nothing) == apps[0].limits == limits_of(apps[0])
    apps.append(http_server("b", Echo, limits=Limits(body=10, body_rate=9.0, connections=9, header_bytes=10)))
    wide = Limits(body=1 << 30, body_rate=9.0, connections=9, header_bytes=1000)
    assert limits_of(nothing) == wide and limits_of(apps[1]) == apps[1].limits
    del apps[0]
    assert limits_of(nothing).body == Limits().body  # of the application's own routes


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("proxy", ["", "/proxy"], ids=["the proxy strips it", "the proxy leaves it"])
def test_a_root_path_that_fastapi_is_told_of_leaves_the_paths_of_what_it_mounts(proxy):
    from fastapi import FastAPI

    app = FastAPI(root_path="/proxy")
    app.mount("/a", http_server("a", Echo))

    async def statuses():
        paths = {"/a/x/y": "POST", "/a/health/ready": "GET", "/a/": "GET", "/a/metrics": "GET"}
        body = b'{"data":["q"]}'
        return [(await ask_asgi(app, body, how, proxy + path, query_string=b"")).status for path, how in paths.items()]

    assert asyncio.run(statuses()) == [200, 200, 200, 404]


def test_max_requests_recycles_a_worker_and_the_services_inside_with_it():
    with serving("gunicorn", source_of("fastapi"), "--max-requests", "4") as server:
        server.wait_log("is ready; workers=1")
        for path in ("/a/", "/b/", "/a/", "/b/"):
            ask(server, path)
        server.wait_log("max_requests reached")
        server.wait_log("is ready; workers=1", 2)
        assert (ask(server, "/a/"), ask(server, "/b/")) == (["a", 0, "q"], ["b", 0, "q"])
        for name in "ab":
            until(lambda name=name: server.log.count(f"teardown {name}\n") == 1, "its teardown", server)
            assert server.log.count(f"setup {name} 0 1\n") == 2
        assert "Traceback" not in server.log
