"""Pages of other origins: who may read the answers, by both lanes, and in a real Chromium."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.browser import CHROMIUM, Browser
from kit.servers import ECHO, serving
from kit.services import BODY, EXECUTORS, Echo
from kit.wire import LiveWire, Wire

from virtex import Limits, Services, http_server
from virtex.service.seam import Head

US = "https://ours.example"
OTHER = b"https://other.example"
ALLOWED = (b"origin", US.encode())
EXPOSED = b"x-request-id, retry-after, inference-header-content-length"
PREFLIGHT = (b"access-control-request-method", b"POST")
both_lanes = pytest.mark.parametrize("ask", [ask_asgi, ask_direct])


def app_for(*origins, **options):
    return http_server("echo", Echo(), cors=list(origins) or [US, "http://localhost:3000"], **options)


def told(answer):
    """What an answer says of origins."""
    names = (b"access-control-", b"vary")
    return {name.decode(): value.decode() for name, value in answer.headers.items() if name.startswith(names)}


MAY_READ = {
    "access-control-allow-origin": US,
    "access-control-expose-headers": EXPOSED.decode(),
    "vary": "Origin",
}


# --- who is told what ----------------------------------------------------------------------------------------------


@both_lanes
def test_an_answer_names_the_origin_that_asked_and_no_other(ask):
    app = app_for()
    asked = [[ALLOWED], [(b"origin", b"http://localhost:3000")], [(b"origin", OTHER)], [(b"origin", b"null")], []]
    ours, local, *others = run(app, *(ask(app, BODY, headers=headers) for headers in asked))
    assert [answer.json["data"] for answer in (ours, local, *others)] == [[1]] * 5
    assert told(ours) == MAY_READ and told(local)["access-control-allow-origin"] == "http://localhost:3000"
    assert [told(answer) for answer in others] == [{"vary": "Origin"}] * 3


@both_lanes
def test_where_every_origin_may_the_answer_is_the_same_for_all(ask):
    app = app_for("*")
    for answer in run(app, ask(app, BODY, headers=[(b"origin", OTHER)]), ask(app, BODY)):
        assert told(answer) == {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED.decode()}


@both_lanes
def test_without_cors_nothing_is_said(ask):
    app = http_server("echo", Echo())
    answer, preflight = run(
        app, ask(app, BODY, headers=[ALLOWED]), ask(app, b"", "OPTIONS", headers=[ALLOWED, PREFLIGHT])
    )
    assert told(answer) == {} and (preflight.status, told(preflight)) == (405, {})


@both_lanes
@pytest.mark.parametrize("path", ["/", "/any/path", "/health/live", "/metrics", "/v2/models"])
def test_a_preflight_is_answered_on_every_path_and_lasts(ask, path):
    app = app_for()
    (answer,) = run(app, ask(app, b"", "OPTIONS", path, [ALLOWED, PREFLIGHT]))
    assert (answer.status, answer.body) == (200, b"")
    assert told(answer) == {
        "access-control-allow-origin": US,
        "access-control-allow-methods": "GET, HEAD, POST",
        "access-control-allow-headers": "content-type, content-encoding, accept, authorization, x-request-id, "
        "x-request-timeout-ms, inference-header-content-length",
        "access-control-max-age": "600",
        "vary": "Origin",
    }


@both_lanes
def test_a_preflight_of_another_origin_is_refused_by_name(ask):
    app = app_for()
    asks = [[(b"origin", OTHER), PREFLIGHT], [(b"origin", b"x" * 9000), PREFLIGHT], [PREFLIGHT], [ALLOWED]]
    other, long, none, no_preflight = run(app, *(ask(app, b"", "OPTIONS", headers=headers) for headers in asks))
    assert [answer.status for answer in (other, long, none, no_preflight)] == [403, 403, 403, 405]
    assert "https://other.example" in other.error and len(long.body) < 300
    assert told(other) == told(none) == {"vary": "Origin"} and told(no_preflight) == MAY_READ
    anyone = app_for("*")
    (answer,) = run(anyone, ask(anyone, b"", "OPTIONS", headers=[(b"origin", OTHER), PREFLIGHT]))
    assert told(answer)["access-control-allow-origin"] == "*" and "vary" not in told(answer)


@both_lanes
def test_a_preflight_is_answered_ahead_of_authorize_and_its_refusals_can_be_read(ask):
    app = app_for(authorize=lambda head: 401)
    preflight, refused = run(
        app, ask(app, b"", "OPTIONS", headers=[ALLOWED, PREFLIGHT]), ask(app, BODY, headers=[ALLOWED])
    )
    assert preflight.status == 200 and (refused.status, told(refused)) == (401, MAY_READ)


@both_lanes
def test_every_refusal_can_be_read(ask):
    app = app_for(limits=Limits(body=60))
    asks = [
        (200, b"", "GET", "/", []),
        (200, b"", "GET", "/health/ready", []),
        (404, b"", "GET", "/health/x", []),
        (405, b"", "PUT", "/", []),
        (400, b"{", "POST", "/", []),
        (415, BODY, "POST", "/", [(b"content-type", b"image/jpeg")]),
        (406, BODY, "POST", "/", [(b"accept", b"image/jpeg")]),
        (413, b"x" * 61, "POST", "/", []),
        (422, b'{"data":["no"]}', "POST", "/", []),
        (500, b'{"data":["bug"]}', "POST", "/", []),
        (200, b'{"data":[]}', "POST", "/", []),
    ]
    answers = run(app, *(ask(app, body, method, path, [ALLOWED, *more]) for _, body, method, path, more in asks))
    assert [answer.status for answer in answers] == [status for status, *_ in asks]
    for answer in answers[1:]:
        assert told(answer) == MAY_READ
    assert answers[0].headers[b"access-control-allow-origin"] == US.encode()


def test_get_varies_by_both_of_its_headers():
    app = app_for()

    async def main():
        opened = await ask_page(app)
        await app.shutdown()
        return [value for name, value in opened if name == b"vary"]

    async def ask_page(app):
        await app.startup()
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: " + US.encode() + b"\r\n\r\n")
        return [line.split(b": ", 1) for line in wire.output.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]]

    assert asyncio.run(main()) == [b"Accept", b"Origin"]


@pytest.mark.parametrize("kind", EXECUTORS)
def test_in_every_executor(kind):
    app = EXECUTORS[kind](cors=[US])
    answers = run(app, *(ask_direct(app, body, headers=[ALLOWED]) for body in (BODY, b'{"data":["bug"]}')))
    assert [(answer.status, told(answer)) for answer in answers] == [(200, MAY_READ), (500, MAY_READ)]


@both_lanes
def test_while_it_starts_drains_and_after_its_end(ask):
    class Slow(Echo):
        async def setup(self, worker):
            await go.wait()

    async def main():
        nonlocal go
        go = asyncio.Event()
        app = http_server("slow", Slow(), cors=[US])
        loading = asyncio.create_task(app.startup())
        await asyncio.sleep(0)

        async def both():
            answers = [
                await ask(app, b"", "OPTIONS", headers=[ALLOWED, PREFLIGHT]),
                await ask(app, BODY, headers=[ALLOWED]),
            ]
            assert [told(answer)["access-control-allow-origin"] for answer in answers] == [US, US]
            return [answer.status for answer in answers]

        assert await both() == [200, 503]
        go.set()
        await loading
        assert await both() == [200, 200]
        app.drain()
        assert await both() == [200, 200]
        await app.shutdown()
        assert await both() == [200, 503]

    go = None
    asyncio.run(main())


@both_lanes
def test_of_several_services_each_has_its_own(ask):
    services = Services(app_for(US), http_server("open", Echo(), cors=["*"]), http_server("closed", Echo()))
    paths = ["/echo", "/open/x", "/closed"]
    answers = run(services, *(ask(services, BODY, path=path, headers=[ALLOWED]) for path in paths))
    assert [told(answer).get("access-control-allow-origin") for answer in answers] == [US, "*", None]
    preflights = run(services, *(ask(services, b"", "OPTIONS", path, [ALLOWED, PREFLIGHT]) for path in paths))
    assert [answer.status for answer in preflights] == [200, 200, 405]


# --- on a connection -----------------------------------------------------------------------------------------------


def head(method, *lines):
    return b"\r\n".join([method + b" / HTTP/1.1", b"Host: a", *lines, b"", b""])


@pytest.fixture
def wire(event_loop):
    app = app_for(limits=Limits(body=1 << 20))
    event_loop.run_until_complete(app.startup())
    yield LiveWire(app, loop=event_loop)
    event_loop.run_until_complete(app.shutdown())


FROM_US = b"Origin: " + US.encode()


def said_to(wire, n=-1):
    status, headers, _ = wire.settle().replies()[n]
    return status, headers.get(b"access-control-allow-origin"), headers.get(b"vary")


def test_the_same_head_again_is_told_the_same_and_another_origin_is_not(wire):
    ours = head(b"POST", FROM_US, b"Content-Length: 12") + BODY
    for _ in range(3):
        wire.send(ours)
        assert said_to(wire) == (200, US.encode(), b"Origin")
    wire.send(head(b"POST", b"Origin: " + OTHER, b"Content-Length: 12") + BODY)
    assert said_to(wire) == (200, None, b"Origin")


def test_answers_of_one_kind_have_the_same_headers_by_which_the_wire_knows_their_head():
    async def main():
        app = app_for()
        await app.startup()
        answers = []
        for origin in (US.encode(), US.encode(), OTHER):
            exchange = app.open(Head("POST", "/", [(b"origin", origin)], len(BODY), None), app._clock())
            exchange.write(BODY)
            answers.append(await exchange.complete())
        await app.shutdown()
        return [answer.headers for answer in answers]

    first, second, other = asyncio.run(main())
    assert first is second and other != first


def test_a_body_that_grows_too_large_breaks_off_or_stays_away_is_refused_readably(wire):
    other = LiveWire(wire.app, loop=wire.loop)
    wire.send(head(b"POST", FROM_US, b"Transfer-Encoding: chunked"), b"200000\r\n" + b"x" * 1_200_000)
    assert said_to(wire) == (413, US.encode(), b"Origin")
    other.send(head(b"POST", FROM_US, b"Content-Length: 12"), b"{").advance(100)
    assert said_to(other) == (408, US.encode(), b"Origin")


def test_what_is_no_request_names_no_origin(wire):
    wire.send(b"POST / HTTP/1.1\r\nOrigin: " + US.encode() + b"\r\n\r\n")  # no Host
    assert said_to(wire) == (400, None, b"Origin")


def test_a_preflight_with_a_body_to_come_is_answered_ahead_of_it(wire):
    wire.send(head(b"OPTIONS", FROM_US, b"Access-Control-Request-Method: POST", b"Content-Length: 5"))
    assert said_to(wire) == (200, US.encode(), b"Origin")
    wire.send(b"12345" + head(b"POST", FROM_US, b"Content-Length: 12") + BODY)
    assert said_to(wire)[0] == 200 and len(wire.statuses) == 2


# --- origins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origins",
    [
        ["*"],
        ("https://a",),
        ["http://localhost:3000", "https://xn--bcher-kva.example", "http://127.0.0.1:80801"[:-1], "http://[::1]:8080"],
        ["chrome-extension://abcdef", "capacitor://localhost", "http://a_b.example", "https://a.example:80"],
    ],
    ids=["any", "one", "several", "other schemes"],
)
def test_origins_as_browsers_send_them(origins):
    assert http_server("echo", Echo(), cors=origins).options.cors == origins


@pytest.mark.parametrize(
    "origin",
    [
        *("example.com", "//example.com", "https://", "https:example.com", "null", "", "https//example.com", "://a"),
        *("https://example.com/", "https://example.com/app", "https://example.com?x", "https://example.com#x"),
        *("https://Example.com", "HTTPS://example.com", "https://bücher.example", "https://user@example.com"),
        *(
            "https://example.com:443",
            "http://example.com:80",
            "http://a:",
            "http://a:0",
            "http://a:99999",
            "http://a:x",
        ),
        *("https://*.example.com", "*", "https://a b", "https://a\r\nx: y", " https://a", 5, None, b"https://a"),
    ],
)
def test_an_origin_that_no_browser_sends_is_an_error_at_the_start(origin):
    with pytest.raises(
        ValueError, match=r"http_server\(cors=.*: expected None, \[\"\*\"\] alone, or a list of origins"
    ):
        http_server("echo", Echo(), cors=["https://ours.example", origin])


@pytest.mark.parametrize(
    "cors", ["*", US, [], {US: 1}, 5, True, iter([US])], ids=["*", "str", "none", "dict", "int", "bool", "iterator"]
)
def test_what_is_no_list_of_origins_is_an_error_at_the_start(cors):
    with pytest.raises(ValueError, match=r"http_server\(cors="):
        http_server("echo", Echo(), cors=cors)


# --- a page --------------------------------------------------------------------------------------------------------

SERVED = (
    ECHO
    + """
import base64, io
from PIL import Image
from virtex import ItemError, Services
from virtex.serial import decode_pil_from_bytes

class Pixels(Echo):
    def process_request(self, data):
        return [decode_pil_from_bytes(item) for item in data]
    def process_response(self, image):
        return [image.width, image.height, image.getpixel((0, 0))]

def authorize(head):
    return None if (b"authorization", b"Bearer swordfish") in head.headers else 401

ours = ["http://127.0.0.1:{page}"]
app = Services(
    http_server("numbers", Echo(), cors=ours, authorize=authorize),
    http_server("pixels", Pixels(), cors=ours),
    http_server("closed", Echo()),
)
"""
)
PAGE = """<!doctype html><title>theirs</title><script>
const base = "http://127.0.0.1:PORT";
async function ask(path, body, headers) {
    const response = await fetch(base + path, {method: "POST", body, headers});
    const exposed = ["x-request-id", "date"].map(name => response.headers.has(name));
    return [response.status, await response.json(), ...exposed];
}
async function numbers(key) {
    const headers = {"content-type": "application/json", ...(key && {authorization: "Bearer " + key})};
    return ask("/numbers", JSON.stringify({data: [5.1, [3.5, 1.4]]}), headers);
}
async function image(text) {
    const canvas = Object.assign(document.createElement("canvas"), {width: 3, height: 2});
    const draw = canvas.getContext("2d");
    draw.fillStyle = "#0000ff";
    draw.fillRect(0, 0, 3, 2);
    const item = text ?? canvas.toDataURL("image/png").split(",")[1];
    const headers = {"content-type": "application/json", "x-request-id": "page-1"};
    return ask("/pixels/any", JSON.stringify({data: [item]}), headers);
}
async function failed(path) {
    return ask(path, '{"data":[1]}', {}).then(() => "read", error => error.name);
}
</script>"""


class Page(BaseHTTPRequestHandler):
    """The page of another origin."""

    text = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *args):
        pass


@pytest.fixture
def pages():
    """A server of pages, on two ports: two origins."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Page) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    yield [server.server_address[1] for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_a_page_of_another_origin_posts_numbers_and_an_image_and_reads_the_answers(kind, pages):
    ours, theirs = pages
    with serving(kind, SERVED.replace("{page}", str(ours))) as server, Browser() as browser:
        Page.text = PAGE.replace("PORT", str(server.port)).encode()
        browser.open(f"http://127.0.0.1:{ours}/")
        browser.until("document.title === 'theirs'")
        answer = {"data": [5.1, [3.5, 1.4]], "error": None}
        assert browser.value("numbers('swordfish')") == [200, answer, True, False]
        status, refused, *_ = browser.value("numbers()")
        assert (status, refused) == (401, {"data": [], "error": "not authorized"})
        assert browser.value("image()") == [200, {"data": [[3, 2, [0, 0, 255, 255]]], "error": None}, True, False]
        status, refused, *_ = browser.value("image('AAAA')")
        assert status == 422 and "expected the bytes of a file" in refused["error"]
        assert browser.value("failed('/numbers/x')") == "read"
        assert browser.value("failed('/closed')") == browser.value("failed('/unknown')") == "TypeError"
        browser.open(f"http://127.0.0.1:{theirs}/")
        browser.until("document.title === 'theirs'")
        assert browser.value("failed('/pixels')") == "TypeError"
        assert browser.value("numbers('swordfish').catch(error => error.name)") == "TypeError"
        assert json.loads(server.request("POST", "/pixels", b'{"data":[]}')[1]) == {"data": [], "error": None}
