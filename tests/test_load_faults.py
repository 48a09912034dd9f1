"""What befalls the requests of a load test: each is counted once, by its kind, and nothing hangs. Over real sockets."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import pytest
from kit.peer import Link, always, answering, echo, message, once, reply
from kit.servers import CERTIFICATE, ECHO, ROOT, free_port, serving

from virtex.load.lane import KINDS
from virtex.load.payloads import Payload, payload_of
from virtex.load.plan import Plan
from virtex.load.run import Run, run

ONE = [payload_of(message(1))]
RIGHT = {"data": [1], "error": None}
MODES: dict[str, dict[str, Any]] = {"open": {"rate": 500.0, "connections": 20}, "closed": {"connections": 4}}


def asked(url: str, count: int = 8, payloads: list[Payload] = ONE, **options: Any) -> Run:
    """A short run, in which every request was counted once."""
    plan = Plan(url, payloads, **({"count": count, "warmup": 0, "timeout": 60.0} | MODES["open"] | options))
    found = run(plan)
    assert found.answered + sum(found.errors.values()) == found.scheduled
    assert set(found.errors) <= set(KINDS)
    assert found.response.count == found.service.count == found.answered == sum(part.answered for part in found.slices)
    return found


def hang_up(link: Link) -> None:
    link.read()


def reset(link: Link) -> None:
    link.read()
    link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def keep_silent(link: Link) -> None:
    while link.read() is not None:
        pass


FAULTS: dict[str, tuple[Callable[[Link], None], str]] = {
    "half an answer": (once(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"), "closed"),
    "half a head": (once(b"HTTP/1.1 200 OK\r\ncontent-le"), "closed"),
    "half a chunk": (once(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n64\r\nhalf"), "closed"),
    "half, and then it would have closed": (
        once(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n\r\nhalf"),
        "closed",
    ),
    "nothing": (hang_up, "closed"),
    "a reset": (reset, "reset"),
    "another protocol": (always(b"SSH-2.0-OpenSSH_9.6\r\n"), "garbage"),
    "a number that is none": (always(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"), "garbage"),
    "two answers": (always(reply(RIGHT) + reply(RIGHT)), "garbage"),
    "a head without end": (always(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 60_000), "garbage"),
    "500": (always(reply({"data": [], "error": "broken"}, "500 Internal Server Error")), "5xx"),
    "404": (always(reply({"data": [], "error": "none"}, "404 Not Found")), "4xx"),
    "a redirect": (always(reply(b"", "302 Found", "location: /\r\n")), "3xx"),
    "200 with an error": (always(reply({"data": [], "error": "broken"})), "message"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_counted_by_its_kind(fault: str, mode: str) -> None:
    answer, kind = FAULTS[fault]
    with answering(answer) as peer:
        found = asked(peer.url(), **MODES[mode], **({"rate": None} if mode == "closed" else {}))
    assert found.errors == {kind: 8}
    assert found.answered == 0


def test_statuses_are_counted_each() -> None:
    with answering(always(reply({"error": "no room"}, "503 Service Unavailable"))) as peer:
        assert asked(peer.url()).statuses == {503: 8}
    with answering(always(reply(RIGHT))) as peer:
        assert asked(peer.url()).statuses == {200: 8}


def drop_second(link: Link) -> None:
    link.read()
    link.send(reply(RIGHT))
    link.read()


def test_a_kept_connection_that_is_closed_without_notice_is_told_from_half_an_answer() -> None:
    with answering(drop_second) as peer:
        found = asked(peer.url(), rate=None, connections=1)
    assert found.errors == {"dropped": 4}
    assert found.answered == 4


@pytest.mark.parametrize(
    ("body", "words", "processes"),
    [
        ({"data": [], "error": "item 1:\n  no"}, "item 1: no", 1),
        (b"<p>" + b"x" * 70_000, "<p>" + "x" * 197, 1),
        ({"error": {"code": 3}}, '{"error":{"code":3}}', 1),
        ([1], "[1]", 1),
        ([1], "[1]", 2),
    ],
    ids=("an error", "a page", "an error that is no text", "no object", "of another process"),
)
def test_the_words_of_the_first_error_are_kept(body: Any, words: str, processes: int) -> None:
    with answering(always(reply(body, "422 Unprocessable Content"))) as peer:
        assert asked(peer.url(), processes=processes).said == {"4xx": words}


@pytest.mark.parametrize("mode", MODES)
def test_where_nobody_listens_each_request_is_refused(mode: str) -> None:
    found = asked(f"http://127.0.0.1:{free_port()}", **({"rate": None} | MODES[mode]))
    assert found.errors == {"refused": 8}


def test_a_silent_server_costs_each_request_its_timeout() -> None:
    with answering(keep_silent) as peer:
        found = asked(peer.url(), timeout=0.2)
    assert found.errors == {"timeout": 8}


def test_what_waits_in_line_too_long_is_given_up() -> None:
    with answering(keep_silent) as peer:
        found = asked(peer.url(), connections=1, timeout=0.2, rate=100.0)
    assert set(found.errors) == {"timeout", "unsent"}
    assert found.sent == found.errors["timeout"]
    assert "all 1 connections busy" in found.why_not


def in_bytes(link: Link) -> None:
    while link.read() is not None:
        for byte in reply(RIGHT):
            link.send(bytes([byte]))


ANSWERS: dict[str, Callable[[Link], None]] = {
    "kept": echo,
    "byte by byte": in_bytes,
    "closed after each": once(reply(RIGHT, headers="connection: close\r\n")),
    "until its end": once(b'HTTP/1.1 200 OK\r\n\r\n{"data":[1],"error":null}'),
    "of HTTP/1.0": once(b'HTTP/1.0 200 OK\r\n\r\n{"data":[1],"error":null}'),
    "in chunks": always(
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"dat\r\n8\r\na": [1]}\r\n0\r\n\r\n'
    ),
    "after a hint": always(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + reply(RIGHT)),
    "of nothing": always(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "no JSON": always(reply(b'an "error" in words')),
    "null": always(reply(b'{"data": [1], "error": null}')),
    "large": always(reply({"data": ["x" * 1_000_000]})),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_right_however_it_comes(kind: str, mode: str) -> None:
    with answering(ANSWERS[kind]) as peer:
        found = asked(peer.url(), **({"rate": None} | MODES[mode]))
    assert found.answered == found.items == 8
    assert not found.errors


def test_a_large_body_is_written_as_the_server_reads_it() -> None:
    payload = payload_of(message("x" * 5_000_000))
    with answering(echo) as peer:
        found = asked(peer.url(), 3, [payload], rate=20.0)
    assert found.answered == 3


def test_an_answer_ahead_of_the_body_s_end_is_the_answer() -> None:
    def refuse(link: Link) -> None:
        link.sock.recv(1000)
        link.send(reply({"error": "too large"}, "413 Content Too Large", "connection: close\r\n"))
        link.sock.shutdown(socket.SHUT_WR)
        while link.sock.recv(65536):
            pass

    with answering(refuse) as peer:
        found = asked(peer.url(), 3, [payload_of(message("x" * 5_000_000))], rate=20.0)
    assert found.statuses == {413: 3}


def test_the_server_dies_in_the_midst() -> None:
    with serving("serve", ECHO) as server:
        plan = Plan(f"http://127.0.0.1:{server.port}", ONE, rate=400.0, seconds=2.0, timeout=60.0)
        found = run(plan, progress=lambda _: server.process.poll() is None and server.signal(signal.SIGKILL))
    assert found.scheduled == 800
    assert found.answered + sum(found.errors.values()) == 800
    assert found.answered > 0
    assert found.errors["refused"] > 0
    assert set(found.errors) <= {"refused", "reset", "closed", "dropped"}


def test_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    with answering(ANSWERS["large"], context=context, host="localhost") as peer:
        untrusted = asked(peer.url(scheme="https"), connections=4)
        monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE)
        found = asked(peer.url(scheme="https"), connections=4)
    assert untrusted.errors == {"tls": 8}
    assert found.answered == 8


def test_the_page_has_every_kind() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs" / "loadtest.md").read_text(), re.MULTILINE)
    assert dict(rows) == KINDS
