"""The table of cases over real sockets: alone, and pipelined behind another request."""

from __future__ import annotations

import re
import socket

import pytest
from kit.cases import CASES, GET
from kit.servers import ROOT, read_all, read_response, serving

ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})
"""

DIRECT = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from kit.wire import StubServer

class Live(StubServer):
    async def __call__(self, scope, receive, send):
        raise NotImplementedError  # gunicorn asks for one; we never call it
    async def startup(self, worker=None):
        pass
    def drain(self):
        pass
    async def shutdown(self):
        pass

app = Live()
"""


@pytest.fixture(
    scope="module",
    params=[("gunicorn", DIRECT), ("gunicorn", ASGI), ("serve", DIRECT)],
    ids=["gunicorn-direct", "gunicorn-asgi", "serve-direct"],
)
def server(request):
    kind, source = request.param
    with serving(kind, source) as running:
        yield running


def outcome(server, raw, expected, closes):
    """The statuses that come back, and whether the connection ends behind them."""
    statuses = []
    with server.connect(5) as sock:
        sock.sendall(raw)
        if closes:
            return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", read_all(sock))], True
        for _ in expected:
            statuses.append(read_response(sock, head_only=raw.startswith(b"HEAD"))[0])
        return statuses, is_ended(sock)


def is_ended(sock):
    sock.settimeout(0.0)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(5)


@pytest.mark.parametrize("ahead", [b"", GET], ids=["alone", "pipelined"])
def test_every_case_over_a_real_socket(server, ahead):
    wrong = []
    for case in CASES:
        words = case.outcome.split()
        closes = "close" in words
        expected = [200] * bool(ahead) + [int(word) for word in words if word.isdigit()]
        if ahead and case.raw.startswith(b"HEAD"):
            continue  # its reply cannot be told from a broken one without knowing that it is to a HEAD
        try:
            got = outcome(server, ahead + case.raw, expected, closes)
        except (OSError, AssertionError) as error:
            got = repr(error)
        if got != (expected, closes):
            wrong.append((case.name, expected, closes, got))
    assert wrong == []


def test_no_reset_destroys_the_answer_to_a_client_that_goes_on_sending(server):
    with server.connect(5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 30_000)
        text = read_all(sock)
    assert text.startswith(b"HTTP/1.1 400 ")


def test_server_survives_ten_thousand_bytes_of_noise(server):
    for seed in range(20):
        with server.connect(5) as sock:
            sock.sendall(bytes((seed * 7919 + i * i) % 256 for i in range(500)))
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock)[:9] in (b"", b"HTTP/1.1 ")
    assert outcome(server, GET, [200], False) == ([200], False)
