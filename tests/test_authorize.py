"""Who may ask: authorize= and api_key= of a service, by either shell, and the key that a client sends."""

import asyncio
import sys
import time
from pathlib import Path

import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.servers import ECHO, eventually, free_port, serving
from kit.services import BODY, Echo
from kit.wire import Wire

from virtex import HttpClient, HttpMessage, http_server
from virtex.service.seam import Head
from virtex.wire.connections import Connections

KEY = "sword~fish"


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def bearer(key, name=b"authorization"):
    return [(name, b"Bearer " + key.encode())]


def test_authorize_guards_everything_but_health_before_the_body_is_read(ask):
    seen = []

    def authorize(head):
        seen.append((head.method, head.path))
        return None if (b"authorization", b"Bearer good") in head.headers else 401

    app = http_server("guarded", Echo(), authorize=authorize)
    good = [(b"authorization", b"Bearer good")]
    let_in, kept_out, root, figures, health = run(
        app,
        ask(app, BODY, headers=good),
        ask(app, BODY),
        ask(app, method="GET"),
        ask(app, method="GET", path="/metrics/live"),
        ask(app, method="GET", path="/health/ready"),
    )
    assert let_in.status == 200
    assert (kept_out.status, root.status, figures.status) == (401, 401, 401)
    assert kept_out.headers[b"www-authenticate"] == b"Bearer" and kept_out.error == "not authorized"
    assert health.status == 200
    assert ("GET", "/health/ready") not in seen


@pytest.mark.parametrize("status_page", [True, False])
def test_authorize_is_not_asked_for_the_page_in_which_nothing_stands(status_page, ask):
    html = [(b"accept", b"text/html")]
    app = http_server("guarded", Echo(), authorize=lambda head: 401, status_page=status_page)
    page, head, post, figures = run(
        app,
        ask(app, method="GET", headers=html),
        ask(app, method="HEAD", headers=html),
        ask(app, BODY, headers=html),
        ask(app, method="GET", path="/metrics/live", headers=html),
    )
    assert (page.status, head.status) == ((200, 200) if status_page else (401, 401))
    assert (post.status, figures.status) == (401, 401)
    assert b"guarded" not in page.body


def test_authorize_is_asked_again_for_a_head_that_is_the_same():
    allowed = [None, 403]
    app = http_server("guarded", Echo(), authorize=lambda head: allowed.pop(0))
    head = Head("POST", "/", [], None, None)

    async def main():
        await app.startup()
        first = app.open(head, 0)
        first.cancel("enough")
        second = app.open(head, 0)
        await app.shutdown()
        return second.status

    assert asyncio.run(main()) == 403


def test_what_authorize_does_to_a_head_does_not_come_back_with_the_next_request():
    seen = []

    def authorize(head):
        seen.append((head.method, head.path, head.headers[:]))
        head.method, head.path = "GET", "/health/live"
        head.headers.append((b"x-user", b"one"))

    app = http_server("guarded", Echo(), authorize=authorize)
    head = Head("POST", "/a", [(b"host", b"b")], None, None)

    async def main():
        await app.startup()
        for _ in range(2):
            app.open(head, 0).cancel("enough")
        await app.shutdown()

    asyncio.run(main())
    assert seen == [("POST", "/a", [(b"host", b"b")])] * 2


@pytest.mark.parametrize(
    "authorize",
    [lambda head: 1 / 0, lambda head: 200, lambda head: 1, lambda head: "yes", lambda head: sys.exit(3)],
    ids=["raises", "200", "1", "a string", "exits"],
)
def test_an_authorize_that_fails_lets_nobody_in(authorize, ask, caplog):
    app = http_server("guarded", Echo(), authorize=authorize)
    (answer,) = run(app, ask(app, BODY))
    assert answer.status == 500
    assert "authorize" in caplog.text


def test_what_an_authorize_says_lets_in_or_refuses(ask):
    said = {"yes": True, "nothing": None, "no": False, "enough": 429}
    app = http_server("guarded", Echo(), authorize=lambda head: said[head.header("X-Who")])
    answers = run(app, *(ask(app, BODY, headers=[(b"x-who", who.encode())]) for who in said))
    assert [answer.status for answer in answers] == [200, 200, 401, 429]
    assert [answer.headers.get(b"www-authenticate") for answer in answers] == [None, None, b"Bearer", None]


def test_an_authorize_that_is_a_coroutine_is_an_error_at_the_start():
    async def authorize(head):
        return 401

    with pytest.raises(ValueError, match=r"http_server\(authorize=.*\): expected a function .* that is not async"):
        http_server("guarded", Echo(), authorize=authorize)


def test_a_head_gives_a_field_as_text_whatever_its_case_and_joins_several():
    head = Head("GET", "/", [(b"a", b"1"), (b"b", b"caf\xe9"), (b"a", b"2")], 0, None)
    assert [head.header(name) for name in ("a", "A", "B", "c")] == ["1, 2", "1, 2", "caf\xe9", ""]
    assert head.headers == [(b"a", b"1"), (b"b", b"caf\xe9"), (b"a", b"2")]


def test_a_key_opens_everything_and_without_it_only_health_and_the_empty_page_are_open(ask):
    app = http_server("guarded", Echo(), api_key=KEY, prom_mode="scrape", prom_port=free_port())
    asks = {
        "post": {"body": BODY},
        "what it is": {"method": "GET"},
        "figures": {"method": "GET", "path": "/metrics/live"},
        "metrics": {"method": "GET", "path": "/metrics"},
        "nothing": {"method": "GET", "path": "/v2/x"},
        "page": {"method": "GET", "headers": [(b"accept", b"text/html")]},
        "live": {"method": "GET", "path": "/health/live"},
        "ready": {"method": "GET", "path": "/health/ready"},
    }
    opened = [{**how, "headers": [*how.get("headers", ()), *bearer(KEY)]} for how in asks.values()]
    answers = run(app, *(ask(app, **how) for how in [*asks.values(), *opened]))
    without, given = answers[: len(asks)], answers[len(asks) :]
    assert [answer.status for answer in without] == [401] * 5 + [200] * 3
    assert [answer.status for answer in given] == [200, 200, 200, 200, 404, 200, 200, 200]
    assert without[0].error == "not authorized" and without[0].headers[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(KEY), 200),
        ([(b"authorization", b"bearer  sword~fish")], 200),  # RFC 9110 section 11.1: a scheme in any case
        ([], 401),
        ([(b"authorization", b"")], 401),
        ([(b"authorization", b"Bearer")], 401),
        ([(b"authorization", b"sword~fish")], 401),
        ([(b"authorization", b"Basic sword~fish")], 401),
        (bearer(KEY + "x"), 401),
        (bearer(KEY[:-1]), 401),
        (bearer(KEY.upper()), 401),
        ([(b"authorization", b"Bearer sword~f\xefsh")], 401),
        (bearer(KEY) * 2, 401),
        (bearer("other") + bearer(KEY), 401),
        (bearer(KEY, b"x-authorization"), 401),
    ],
    ids=range(14),
)
def test_one_bearer_with_the_very_key_lets_in(headers, status, ask):
    app = http_server("guarded", Echo(), api_key=KEY)
    (answer,) = run(app, ask(app, BODY, headers=headers))
    assert answer.status == status


def test_a_key_and_an_authorize_both_have_to_let_a_request_in(ask):
    app = http_server("guarded", Echo(), api_key=KEY, authorize=lambda head: head.header("x-who") == "me" or 403)
    me = [(b"x-who", b"me")]
    both, key, who, none = run(
        app, *(ask(app, BODY, headers=given) for given in (bearer(KEY) + me, bearer(KEY), me, []))
    )
    assert [answer.status for answer in (both, key, who, none)] == [200, 403, 401, 401]


def test_the_environment_has_a_key_where_the_argument_is_none(ask, monkeypatch):
    monkeypatch.setenv("VIRTEX_API_KEY", KEY)
    app, other = http_server("guarded", Echo()), http_server("guarded", Echo(), api_key="other")
    monkeypatch.delenv("VIRTEX_API_KEY")  # it was read when the service was made
    statuses = [run(app, ask(app, BODY, headers=given))[0].status for given in ([], bearer(KEY))]
    assert statuses == [401, 200]
    statuses = [run(other, ask(other, BODY, headers=given))[0].status for given in (bearer(KEY), bearer("other"))]
    assert statuses == [401, 200]


WRONG = {
    "": "an empty string",
    "sword fish": "one whose character 5 is none of these",
    "swordfish\n": "one whose character 9 is none of these",
    "schwertfisché": "one whose character 12 is none of these",
}


@pytest.mark.parametrize(("key", "fault"), [*WRONG.items(), (b"bytes", "a value of type bytes")], ids=ascii)
def test_a_key_that_can_not_be_sent_is_an_error_at_the_start_that_does_not_show_it(key, fault, monkeypatch):
    expected = "expected a key of letters, digits and signs of ASCII, got " + fault
    for make in (http_server, lambda *_, **given: HttpClient(**given)):
        with pytest.raises(ValueError, match=r"\(api_key=\.\.\.\): ") as error:
            make("guarded", Echo(), api_key=key)
        assert str(error.value).endswith(expected)
    if isinstance(key, str):
        monkeypatch.setenv("VIRTEX_API_KEY", key)
        with pytest.raises(ValueError, match=f"^the variable VIRTEX_API_KEY: {expected}$"):
            http_server("guarded", Echo())
        assert http_server("guarded", Echo(), api_key=KEY)


def test_on_one_connection_each_request_needs_the_key_and_the_same_head_is_not_checked_anew(monkeypatch):
    app = http_server("guarded", Echo(), api_key=KEY, max_time_on_queue=0)
    opened, open_ = [], app.open
    monkeypatch.setattr(app, "open", lambda head, now: opened.append(head) or open_(head, now))

    async def main():
        await app.startup()
        loop = asyncio.get_running_loop()
        wire = Wire(app, loop=loop, shared=Connections(app, clock=time.perf_counter_ns, loop=loop))
        for n, key in enumerate((KEY, KEY, KEY, "herring", KEY, None, KEY), 1):
            field = f"Authorization: Bearer {key}\r\n" if key else ""
            wire.send(f"POST / HTTP/1.1\r\nHost: a\r\n{field}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            await eventually(lambda n=n: len(wire.statuses) == n)
        await app.shutdown()
        return wire.statuses

    assert asyncio.run(main()) == [200, 200, 200, 401, 200, 401, 200]
    assert len(opened) == 5


def test_a_client_with_the_key_is_answered_and_nobody_is_told_the_key(monkeypatch):
    monkeypatch.setenv("VIRTEX_API_KEY", KEY)
    with serving("gunicorn", ECHO, "--log-level", "debug", "--access-logfile", "-") as server:
        url = f"http://127.0.0.1:{server.port}/"
        message = HttpMessage(data=["a"])
        with HttpClient(url, api_key=KEY) as friend, HttpClient(url, api_key="herring") as stranger:
            assert friend.post(message).data == ["a"]
            assert stranger.post(message).error.endswith("not authorized")
            assert asyncio.run(friend.post_async(message)).data == ["a"]
            assert KEY not in repr(friend)
        told = server.request("GET", "/", authorization=f"Bearer {KEY}")
        live = server.request("GET", "/metrics/live", authorization=f"Bearer {KEY}")
        titles = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (server.process.pid, *server.workers())]
        assert (told[0], live[0], server.request("GET", "/")[0]) == (200, 200, 401)
        assert not any(KEY.encode() in shown for shown in (told[1], live[1], *titles))
        server.stop()
        assert KEY not in server.log and "herring" not in server.log


def test_no_repr_has_the_key():
    app = http_server("guarded", Echo(), api_key=KEY)
    assert KEY not in f"{app!r} {app.options!r} {app._guard!r}"


def test_a_client_has_one_authorization():
    with pytest.raises(ValueError, match="^expected api_key or an authorization among headers, got both$"):
        HttpClient(api_key=KEY, headers={"Authorization": "Basic x"})
