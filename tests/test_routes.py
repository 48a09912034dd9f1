"""What is answered without a body, by either shell."""

import asyncio

import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import BODY, Echo, Gate, Hand

from virtex import Limits, http_server


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 200, None),
        ("HEAD", "/", 200, None),
        ("GET", "/health/live", 200, None),
        ("HEAD", "/health/ready", 200, None),
        ("GET", "/predict", 405, b"POST"),
        ("OPTIONS", "*", 405, b"POST"),
        ("PUT", "/", 405, b"GET, HEAD, POST"),
        ("POST", "/health/live", 405, b"GET, HEAD"),
        ("POST", "/health/other", 404, None),
        ("GET", "/health/other", 404, None),
        ("GET", "/metrics", 404, None),
        ("GET", "/metrics/live", 200, None),
        ("HEAD", "/metrics/live", 200, None),
        ("POST", "/metrics/live", 405, b"GET, HEAD"),
        ("GET", "/metrics/other", 404, None),
        ("POST", "/metrics", 404, None),
        ("GET", "/v2/models/a", 404, None),
        ("POST", "/healthy", 400, None),
    ],
)
def test_routes(method, path, status, allow, ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, b"", method=method, path=path))
    assert answer.status == status
    assert answer.headers.get(b"allow") == allow
    if status >= 400:
        assert method in answer.error or path in answer.error or answer.error.startswith("expected")


def test_the_root_says_what_the_service_takes(ask):
    app = http_server("echo", Echo(), max_batch_size=7, limits=Limits(body=1000))
    (answer,) = run(app, ask(app, method="GET"))
    assert answer.json["name"] == "echo"
    assert answer.json["accepts"] == ["application/json", "application/x-npy"]
    assert (answer.json["max_batch_size"], answer.json["max_queue_size"]) == (7, 1024)
    assert answer.json["limits"]["body"] == 1000


def test_head_sends_the_length_of_get_and_no_body():
    app = http_server("echo", Echo())
    get, head = run(app, ask_asgi(app, method="GET"), ask_asgi(app, method="HEAD"))
    assert head.body == b""
    assert head.headers[b"content-length"] == b"%d" % len(get.body)


def test_a_model_that_hangs_is_not_live_any_more_where_a_watchdog_looks():
    async def main():
        gate = Gate()
        app = http_server("gate", gate, watchdog=0.05)
        clock = Hand(app)
        await app.startup()
        asked = asyncio.ensure_future(ask_direct(app, BODY))
        await gate.entered.wait()
        well = await ask_direct(app, method="GET", path="/health/live")
        clock.add(0.06)
        hung = await ask_direct(app, method="GET", path="/health/live")
        gate.go.set()
        await asked
        again = await ask_direct(app, method="GET", path="/health/live")
        await app.shutdown()
        return well.status, hung.status, again.status

    assert asyncio.run(main()) == (200, 503, 200)


def test_the_live_figures_are_those_of_this_service(ask):
    name = f"figures by {ask.__name__}"  # what has one name counts together
    app, other = http_server(name, Echo()), http_server("others", Echo())

    async def main():
        for each in (app, other):
            await each.startup()
        await ask(app, BODY)
        await ask(app, b"no json")
        told = await ask(app, method="GET", path="/metrics/live")
        later = await ask(app, method="GET", path="/metrics/live")
        for each in (app, other):
            await each.shutdown()
        return told, later, await ask(app, method="GET", path="/metrics/live")

    told, later, closed = asyncio.run(main())
    assert (told.status, told.headers[b"cache-control"]) == (200, b"no-store")
    assert (told.json["service"], told.json["state"], closed.json["state"]) == (name, "ready", "closed")
    assert told.json["metrics"]["virtex_requests_total"] == {"200": 1, "400": 1}
    assert told.json["now"] < later.json["now"]
    assert later.json["metrics"] == told.json["metrics"]  # who asks for them is not counted
