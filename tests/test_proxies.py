"""Real proxies and clients: each answer arrives as it was given, and half of one is never taken for a whole."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit.proxies import TWO, haproxy, nginx
from kit.servers import ECHO, serving

from virtex import HttpClient, HttpMessage

SERVICE = ECHO.replace(
    "handler=Echo()",
    """handler=Echo(), limits=__import__("virtex").Limits(body=90_000),
    authorize=lambda head: int(head.path[1:]) if head.path[1:].isdigit() else None""",
)

EARLY = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})
"""

HALVES = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-length", b"9")] if scope["path"] == "/counted" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if scope["path"] == "/raises":
            raise ValueError("midway")
"""

SIZES = [100_000, 2_000_000, 10_000_000]  # the last one is more than the kernel takes
REFUSALS = {"/401": 401, "/403": 403, "/415": 415, "/503": 503, "/": 413}


@pytest.fixture(scope="module")
def service():
    with serving("serve", SERVICE) as server:
        yield server


@pytest.fixture(scope="module")
def early():
    with serving("serve", EARLY) as server:
        yield server


@pytest.fixture(scope="module", params=[nginx, haproxy])
def proxies(request, service, early):
    with request.param(service.port) as of_service, request.param(early.port) as of_early:
        yield of_service, of_early


@pytest.mark.parametrize("size", SIZES)
def test_a_refusal_arrives_through_a_proxy_whatever_the_body(proxies, size):
    of_service, of_early = proxies
    body = bytes(size)
    for way in of_service.ports:
        got = {path: of_service.post(way, path, body)[0] for path in REFUSALS}
        assert got == REFUSALS, f"{way}: {of_service.log}"
        assert of_early.post(way, "/", body) == (403, b"no"), f"{way}: {of_early.log}"


def by_http_client(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body)
        return connection.getresponse().status
    finally:
        connection.close()


def by_http_client_in_chunks(port, path, body):
    return by_http_client(port, path, iter([body[i : i + 65536] for i in range(0, len(body), 65536)]))


def by_urllib(port, path, body):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", body, timeout=20).status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def by_ours(port, path, body):
    async def post():
        async with HttpClient(f"http://127.0.0.1:{port}{path}", raise_errors=True) as client:
            await client.post_async(HttpMessage(data=["x" * len(body)]))

    with pytest.raises(Exception) as caught:
        asyncio.run(post())
    return caught.value.status


@pytest.mark.parametrize("ask", [by_http_client, by_http_client_in_chunks, by_urllib, by_ours])
def test_a_refusal_is_seen_by_clients_that_read_once_they_have_sent(service, early, ask):
    body = bytes(10_000_000)
    assert [ask(service.port, path, body) for path in ("/401", "/")] == [401, 413]
    if ask is not by_ours:  # it takes JSON only
        assert ask(early.port, "/", body) == 403


def test_a_refusal_of_one_connection_too_many_arrives():
    source = ECHO.replace("handler=Echo()", 'handler=Echo(), limits=__import__("virtex").Limits(connections=1)')
    with serving("serve", source) as server, server.connect() as first:
        first.sendall(b"G")
        assert by_http_client(server.port, "/", bytes(10_000_000)) == 503
        with nginx(server.port) as proxy:
            for way in proxy.ports:
                assert proxy.post(way, "/", bytes(1_000_000))[0] == 503, f"{way}: {proxy.log}"


def test_one_client_that_is_refused_does_not_take_the_service_down_for_others():
    """nginx does not ask an upstream that failed it once for 10 s, as it does by default."""
    with (
        serving("serve", SERVICE) as one,
        serving("serve", SERVICE) as other,
        nginx(one.port, TWO, ("two",), other=other.port) as proxy,
        ThreadPoolExecutor(2) as threads,
    ):
        wrong = threads.submit(lambda: [proxy.post("two", "/401", bytes(2_000_000))[0] for _ in range(20)])
        right = threads.submit(lambda: [proxy.post("two", "/", b'{"data":[1]}')[0] for _ in range(100)])
        assert (Counter(wrong.result()), Counter(right.result())) == ({401: 20}, {200: 100}), proxy.log


def test_half_an_answer_is_not_passed_on_as_a_whole():
    with serving("serve", HALVES) as server, nginx(server.port) as proxy:
        for way in proxy.ports:
            for path in ("/raises", "/returns", "/counted"):
                with pytest.raises(ConnectionError):  # broken off, or ended within the answer
                    proxy.post(way, path, b"")


SLOW = (
    ECHO
    + """
import time

class Slow(Echo):
    items = 0
    def run_inference(self, model_input):
        self.items += len(model_input)
        print("a batch runs", flush=True)
        time.sleep(0.3)
        return [self.items] * len(model_input)

app = http_server(name="slow", handler=Slow(), max_batch_size=4, executor={executor!r})
"""
)
REQUEST = b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n{"data":[1]}'


@pytest.mark.parametrize(
    ("kind", "executor"), [("serve", "inline"), ("serve", "thread"), ("gunicorn", "inline"), ("uvicorn", "inline")]
)
def test_clients_that_left_cost_hardly_any_inference(kind, executor):
    with serving(kind, SLOW.replace("{executor!r}", repr(executor))) as server:
        server.request("POST", "/", b'{"data":[1]}')
        with server.connect() as first:
            first.sendall(REQUEST)
            server.wait_log("a batch runs", 2)
            for _ in range(40):
                with server.connect() as leaving:
                    leaving.sendall(REQUEST)
            _, answer = server.request("POST", "/", b'{"data":[1]}')
        items = int(answer.split(b"[")[1].split(b"]")[0])
        assert 3 <= items <= 3 + 8, f"{items - 3} of 40 were computed"  # one batch may be cut before it is known
