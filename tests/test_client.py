"""HttpClient: what it sends, what it makes of an answer, bundles, connections; each by all of its faces."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop
from kit.asks import Echo
from kit.peer import DEADLINE, FACES, Face, Link, always, answering, echo, message, once, reply
from kit.servers import CERTIFICATE

from virtex import Limits, http_server, serve
from virtex.client import HttpClient
from virtex.errors import ClientError
from virtex.message import HttpMessage
from virtex.posting.pool import EXPIRY
from virtex.posting.retries import Retries


@pytest.fixture(params=FACES.values(), ids=FACES.keys())
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


# What is sent


def test_a_message_is_posted_and_its_answer_comes_back_in_order(face: Face) -> None:
    with answering(echo) as peer, HttpClient(peer.url()) as client:
        answer = face(client, "post", message(1, "zwei", [3.0, None]))
        assert isinstance(answer, HttpMessage)
        assert answer.data == [1, "zwei", [3.0, None]]
        assert answer.error is None


def test_the_request_names_its_path_host_type_and_length() -> None:
    seen = []

    def keep(link: Link) -> None:
        seen.append(link.read())
        link.send(reply({"data": [1]}))

    with answering(keep) as peer, HttpClient(headers={"X-Key": "s3cret"}) as client:
        client.post(peer.url("/a b/%2F?q=1 2"), message(1))
        head, body = seen[0]
    target, *lines = head.decode().split("\r\n")
    lines = [line.lower() for line in lines]
    assert target == "POST /a%20b/%2F?q=1%202 HTTP/1.1"
    assert f"host: {peer.url()[7:-1]}" in lines
    assert "content-type: application/json" in lines
    assert "x-key: s3cret" in lines
    assert orjson.loads(body)["data"] == [1]


def test_the_url_of_a_post_goes_before_the_clients() -> None:
    with answering(echo) as first, answering(echo) as second, HttpClient(first.url()) as client:
        assert client.post(second.url(), message(1)).data == [1]
        assert client.post(url=second.url(), message=message(2)).data == [2]
        assert client.post(message=message(3)).data == [3]
        assert len(second.links) == 1
        assert len(first.links) == 1


def test_a_host_name_is_looked_up(face: Face) -> None:
    with answering(echo) as peer, HttpClient(peer.url().replace("127.0.0.1", "localhost")) as client:
        assert face(client, "post", message(1)).data == [1]


def test_a_message_of_twenty_megabytes_goes_and_comes(face: Face) -> None:
    with answering(echo) as peer, HttpClient(peer.url()) as client:
        item = "x" * 20_000_000
        assert face(client, "post", message(item)).data == [item]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1, 2],), TypeError, "expected an HttpMessage, got list"),
        (({"data": [1]},), TypeError, "expected an HttpMessage, got dict"),
        (("http://127.0.0.1:1/",), TypeError, "expected an HttpMessage, got NoneType"),
        ((HttpMessage(data=[1]),), ValueError, "no URL to post to"),
        (
            ("ftp://host/", HttpMessage(data=[1])),
            ValueError,
            "expected a URL like http://host:8081/path, got 'ftp://host/'",
        ),
        (("http://me:pw@host/", HttpMessage(data=[1])), ValueError, "credentials in a URL end up in logs"),
    ],
)
def test_what_is_no_message_or_no_url_is_refused_by_name(
    face: Face, arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with HttpClient() as client, pytest.raises(error, match=words.replace("(", r"\(")):
        face(client, "post", *arguments)


def test_data_that_is_no_list_is_refused(face: Face) -> None:
    wrong = message()
    wrong["data"] = (1, 2)
    with (
        HttpClient("http://127.0.0.1:1/") as client,
        pytest.raises(TypeError, match="expected a list of items"),
    ):
        face(client, "post", wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "host:80"}, "expected a URL like"),
        ({"timeout": 0}, "timeout: expected seconds above 0 or None, got 0"),
        ({"timeout": float("inf")}, "timeout: expected seconds above 0 or None, got inf"),
        ({"max_connections": 0}, "max_connections: expected 1 or more, got 0"),
        ({"headers": {"Content-Length": "3"}}, "'Content-Length' belongs to the connection"),
        ({"headers": {"x": "a\r\nhost: evil"}}, "expected printable characters"),
        ({"headers": {"x": "5 \u20ac"}}, "x: expected printable characters of Latin-1, got '5 \u20ac'"),
        ({"headers": {"x": 3}}, "x: expected printable characters of Latin-1, got 3"),
        ({"headers": {"X-Request-Timeout-Ms": "5"}}, "'X-Request-Timeout-Ms' says what is left of timeout="),
        ({"url": "http://host:65536/"}, "http://host:65536/: expected a port from 1 to 65535"),
        ({"headers": {"a b": "c"}}, "expected a name of letters"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HttpClient(**options)


# What comes back


@pytest.mark.parametrize(
    ("answer", "words", "status"),
    [
        (reply({"data": [], "error": "item 3: not base64"}, "422 Unprocessable Content"), "item 3: not base64", 422),
        (reply(b"<html>bad gateway</html>", "502 Bad Gateway"), "status 502 with 24 bytes: '<html>bad gateway", 502),
        (reply({"data": "abc"}), "expected a message, got status 200", 200),
        (reply([1, 2]), "expected a message, got status 200 with 5 bytes: '[1,2]'", 200),
        (reply(b""), "expected a message, got status 200 with 0 bytes", 200),
        (reply(b"", "308 Permanent Redirect", "location: https://there/\r\n"), "a redirect to https://there/", 308),
        (reply(b"no gzip", headers="content-encoding: gzip\r\n"), "broken or cut: Not a gzipped file", 0),
        (reply(b"no zlib", headers="content-encoding: deflate\r\n"), "while decompressing data", 0),
        (reply(b"{}", headers="content-encoding: br\r\n"), "'br': expected gzip, deflate or identity", 0),
        (reply({"data": [1], "error": ""}), "an error without words, status 200", 200),
        (reply({"data": [1], "error": False}), "false", 200),
        (reply({"data": [1], "error": {}}, "500 Internal Server Error"), "{}", 500),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "illegal status line", 0),
        (b"", "disconnected without sending a response", 0),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", "without sending complete message body", 0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{", "without sending complete message body", 0),
    ],
)
def test_an_answer_that_is_no_message_becomes_one_whose_error_says_why(
    face: Face, answer: bytes, words: str, status: int
) -> None:
    with answering(once(answer)) as peer, HttpClient(peer.url()) as client:
        got = face(client, "post", message(1))
        assert got.data == []
        assert words in got.error
    with answering(once(answer)) as peer, HttpClient(peer.url(), raise_errors=True) as client:
        with pytest.raises(ClientError) as caught:
            face(client, "post", message(1))
        assert caught.value.status == status
        assert words in caught.value.message["error"]


def test_a_refused_connection_becomes_an_error_with_its_url(face: Face) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with HttpClient(url) as client:
        answer = face(client, "post", message(1))
        assert answer.data == []
        refused = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"
        assert answer.error in (f"{url}: {refused}", f"{url}: All connection attempts failed")


def raw_deflate(content: bytes) -> bytes:
    return zlib.compress(content, wbits=-15)


CODED = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "Deflate": raw_deflate}


@pytest.mark.parametrize(("coding", "compress"), CODED.items(), ids=CODED)
def test_a_compressed_answer_is_read_and_one_that_is_cut_anywhere_is_an_error(
    face: Face, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(b'{"data": [7]}')
    header = f"content-encoding: {coding}\r\n"
    answers = iter([reply(whole[:length], headers=header) for length in range(len(whole) + 1)])

    def next_answer(link: Link) -> None:
        while link.read() is not None:
            link.send(next(answers))

    with answering(next_answer) as peer, HttpClient(peer.url()) as client:
        got = [face(client, "post", message(1)) for _ in range(len(whole) + 1)]
    assert got[-1].data == [7] and got[-1].error is None
    assert all(answer.data == [] and answer.error for answer in got[:-1])
    assert "broken or cut" in got[-2].error


def test_an_answer_of_several_codings_and_members_is_read(face: Face) -> None:
    members = gzip.compress(b'{"data":') + gzip.compress(b" [7]}")
    answer = reply(zlib.compress(members), headers="content-encoding: gzip, identity\r\ncontent-encoding: deflate\r\n")
    with answering(always(answer)) as peer, HttpClient(peer.url()) as client:
        assert face(client, "post", message(1)).data == [7]


def test_no_answer_in_time_is_an_error_and_its_connection_is_closed(face: Face) -> None:
    left = threading.Event()

    def silent(link: Link) -> None:
        link.read()
        if link.read() is None:
            left.set()

    with answering(silent) as peer, HttpClient(peer.url(), timeout=0.05) as client:
        assert face(client, "post", message(1)).error == f"{peer.url()}: no answer within 0.05 s"
        assert left.wait(DEADLINE)


def test_a_post_whose_connection_breaks_is_not_sent_again() -> None:
    read = []

    def answer_the_first(link: Link) -> None:
        read.append(link.read())
        link.send(reply({"data": [1]}))
        read.append(link.read())

    async def main(client: HttpClient) -> list[HttpMessage]:
        return [await client.post_async(message(1)), await client.post_async(message(2))]

    for post_twice in (lambda: [client.post(message(1)), client.post(message(2))], lambda: asyncio.run(main(client))):
        read.clear()
        with answering(answer_the_first) as peer, HttpClient(peer.url()) as client:
            first, second = post_twice()
            assert first.data == [1]
            assert "disconnected without sending a response" in second.error
            assert (len(read), len(peer.links)) == (2, 1)


# Bundles


def test_a_bundle_is_answered_in_order_whatever_order_the_answers_come_in(face: Face) -> None:
    answered = [threading.Event() for _ in range(5)]
    answered[4].set()

    def last_first(link: Link) -> None:
        while (request := link.read()) is not None:
            n = orjson.loads(request[1])["data"][0]
            assert answered[n + 1].wait(DEADLINE)
            link.send(reply({"data": [n]}))
            answered[n].set()

    with answering(last_first) as peer, HttpClient(peer.url()) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(4)])
        assert [answer.data for answer in answers] == [[0], [1], [2], [3]]


def test_no_more_messages_of_a_bundle_are_under_way_than_max_connections(face: Face) -> None:
    together = threading.Barrier(3)

    def in_threes(link: Link) -> None:
        while (request := link.read()) is not None:
            together.wait(DEADLINE)  # passes only while three are under way
            link.send(reply({"data": orjson.loads(request[1])["data"]}))

    with answering(in_threes) as peer, HttpClient(peer.url(), max_connections=3) as client:
        answers = face(client, "post_bundle", (message(n) for n in range(30)))
        assert [answer.data for answer in answers] == [[n] for n in range(30)]
        assert len(peer.links) == 3


def test_one_failure_in_a_bundle_leaves_the_others_their_answers(face: Face) -> None:
    def odd_ones_fail(link: Link) -> None:
        while (request := link.read()) is not None:
            n = orjson.loads(request[1])["data"][0]
            refusal = reply({"data": [], "error": f"no {n}"}, "422 Unprocessable Content")
            link.send(refusal if n % 2 else reply({"data": [n]}))

    with answering(odd_ones_fail) as peer, HttpClient(peer.url()) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(4)])
        assert [answer.data for answer in answers] == [[0], [], [2], []]
        assert [answer.error for answer in answers] == [None, "no 1", None, "no 3"]
        client.raise_errors = True
        with pytest.raises(ClientError, match="422: no 1"):
            face(client, "post_bundle", [message(n) for n in range(4)])


def test_a_bundle_with_something_else_in_it_is_refused_before_anything_is_sent(face: Face) -> None:
    with answering(echo) as peer, HttpClient(peer.url()) as client:
        with pytest.raises(TypeError, match="expected an HttpMessage, got int"):
            face(client, "post_bundle", [message(1), 2])
        with pytest.raises(TypeError, match="expected an iterable of HttpMessages, got HttpMessage"):
            face(client, "post_bundle", message(1))
        assert face(client, "post_bundle", []) == []
        assert peer.links == []


def test_each_message_of_a_bundle_has_its_own_time(face: Face) -> None:
    def never_for_one(link: Link) -> None:
        while (request := link.read()) is not None:
            if orjson.loads(request[1])["data"] != [1]:
                link.send(reply({"data": [0]}))

    with answering(never_for_one) as peer, HttpClient(peer.url(), timeout=0.5, max_connections=2) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(50)])
        assert [n for n, answer in enumerate(answers) if answer.error] == [1]


# The end


def test_close_ends_the_idle_connections_and_a_later_post_is_refused(face: Face) -> None:
    left = threading.Event()

    def until_left(link: Link) -> None:
        echo(link)
        left.set()

    with answering(until_left) as peer:
        client = HttpClient(peer.url())
        client.post(message(1))
        client.close()
        client.close()
        assert left.wait(DEADLINE)
        with pytest.raises(RuntimeError, match="this HttpClient is closed"):
            face(client, "post", message(1))


def test_a_client_is_a_context_manager_of_both_kinds() -> None:
    async def main(url: str) -> HttpClient:
        async with HttpClient(url) as client:
            assert (await client.post_async(message(1))).data == [1]
        await client.aclose()
        return client

    with answering(echo) as peer:
        client = asyncio.run(main(peer.url()))
        with pytest.raises(RuntimeError, match="closed"):
            client.post(message(1))


# Connections


def test_a_connection_is_used_again_by_plain_code_and_within_each_loop() -> None:
    async def main() -> None:
        for n in range(3):
            assert (await client.post_async(message(n))).data == [n]

    with answering(echo) as peer, HttpClient(peer.url()) as client:
        for n in range(3):
            assert client.post(message(n)).data == [n]
            asyncio.run(main())
            uvloop.run(main())
        assert len(peer.links) == 1 + 3 + 3


def test_a_connection_that_the_server_ends_is_not_used_again(face: Face) -> None:
    answer = reply({"data": [1]}, headers="connection: close\r\n")
    with answering(always(answer)) as peer, HttpClient(peer.url()) as client:
        for _ in range(3):
            assert face(client, "post", message(1)).data == [1]
        assert len(peer.links) == 3


def test_a_connection_is_given_up_before_the_server_would_close_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < EXPIRY < Limits().keep_alive_seconds
    monkeypatch.setattr("virtex.posting.pool.EXPIRY", 0.0)
    with answering(echo) as peer, HttpClient(peer.url()) as client:
        assert [client.post(message(n)).data for n in range(2)] == [[0], [1]]
        assert len(peer.links) == 2


def test_no_more_idle_connections_are_kept_than_max_connections() -> None:
    together = threading.Barrier(4)
    left = threading.Semaphore(0)

    def in_fours(link: Link) -> None:
        link.read()
        together.wait(DEADLINE)
        link.send(reply({"data": [1]}))
        if link.read() is None:
            left.release()

    with (
        answering(in_fours) as peer,
        HttpClient(peer.url(), max_connections=1) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        assert all(answer.data == [1] for answer in threads.map(client.post, [message(1)] * 4))
        assert all(left.acquire(timeout=DEADLINE) for _ in range(3))
        assert not left.acquire(blocking=False)


def test_nothing_is_taken_from_the_environment_and_no_cookie_is_kept(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = []

    def keep(link: Link) -> None:
        while (request := link.read()) is not None:
            heads.append(request[0].lower())
            link.send(reply({"data": [1]}, headers="set-cookie: a=b\r\n"))

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    with answering(keep) as peer, HttpClient(peer.url()) as client:
        answers = face(client, "post_bundle", [message(1)] * 20)
        assert {tuple(answer.data) for answer in answers} == {(1,)}
        assert not any(b"cookie" in head for head in heads)


def test_a_connection_that_the_server_closed_while_idle_is_replaced(face: Face) -> None:
    gone = threading.Event()

    def leave(link: Link) -> None:
        once(reply({"data": [1]}))(link)
        link.sock.close()
        gone.set()

    with answering(leave) as peer, HttpClient(peer.url()) as client:
        for _ in range(3):
            gone.clear()
            assert face(client, "post", message(1)).error is None
            assert gone.wait(DEADLINE)


def test_threads_share_a_client_and_each_gets_its_own_answers() -> None:
    def post(n: int) -> bool:
        return client.post(message(n, str(n))).data == [n, str(n)]

    with answering(echo) as peer, HttpClient(peer.url()) as client, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(post, range(400)))
        assert len(peer.links) <= 8


def test_the_plain_face_works_while_a_loop_runs_in_the_thread() -> None:
    async def main() -> list[Any]:
        return [client.post(message(1)).data, *(answer.data for answer in client.post_bundle([message(2), message(3)]))]

    with answering(echo) as peer, HttpClient(peer.url()) as client:
        assert asyncio.run(main()) == [[1], [2], [3]]


def test_a_cancelled_post_closes_its_connection() -> None:
    arrived, left = threading.Event(), threading.Event()

    def wait(link: Link) -> None:
        link.read()
        arrived.set()
        if link.read() is None:
            left.set()

    async def main() -> None:
        task = asyncio.create_task(client.post_async(message(1)))
        assert await asyncio.to_thread(arrived.wait, DEADLINE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with answering(wait) as peer, HttpClient(peer.url()) as client:
        asyncio.run(main())
        assert left.wait(DEADLINE)


def test_a_connection_in_use_when_the_client_is_closed_answers_and_ends(face: Face) -> None:
    left = threading.Event()

    def close_and_answer(link: Link) -> None:
        link.read()
        client.close()
        link.send(reply({"data": [1]}))
        if link.read() is None:
            left.set()

    with answering(close_and_answer) as peer:
        client = HttpClient(peer.url())
        assert face(client, "post", message(1)).data == [1]
        assert left.wait(DEADLINE)


FORK = """
import os, signal, sys
from virtex.client import HttpClient
from virtex.message import HttpMessage
client = HttpClient(sys.argv[1])
assert client.post(HttpMessage(data=["parent"])).data == ["parent"]
go_read, go_write = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(20)
    answer = client.post(HttpMessage(data=["child"])).data
    client.close()
    os.read(go_read, 1)
    os._exit(answer != ["child"])
assert client.post(HttpMessage(data=["parent again"])).data == ["parent again"]
client.close()
sys.stdin.readline()
os.write(go_write, b"x")
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_opens_its_own_connection_and_holds_none_of_its_parents() -> None:
    ended = threading.Barrier(3)

    def until_left(link: Link) -> None:
        echo(link)
        ended.wait(DEADLINE)

    with answering(until_left) as peer:
        command = [sys.executable, "-W", "error", "-c", FORK, peer.url()]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            ended.wait(DEADLINE)  # both connections have ended, though the child still lives
            assert len(peer.links) == 2
            process.communicate(b"\n", timeout=DEADLINE)
        assert process.returncode == 0


BUSY_FORK = """
import os, signal, sys, threading
from virtex.client import HttpClient
from virtex.message import HttpMessage
client = HttpClient(sys.argv[1])
post = lambda item: client.post(HttpMessage(data=[item])).data == [item]
assert post("idle")
held = []
thread = threading.Thread(target=lambda: held.append(post("held")))
thread.start()
sys.stdin.readline()  # the server has read it
child = os.fork()
if child == 0:
    signal.alarm(10)  # ends a child that waits for what it shares with nobody
    os._exit(not post("child"))
assert os.waitpid(child, 0)[1] == 0
assert post("parent")
thread.join()
assert held == [True]
"""


def test_a_child_forked_during_a_post_of_another_thread_can_post_and_the_answer_is_the_parents() -> None:
    arrived, release = threading.Event(), threading.Event()

    def hold(link: Link) -> None:
        while (request := link.read()) is not None:
            item = orjson.loads(request[1])["data"][0]
            if item == "held":
                arrived.set()
                assert release.wait(DEADLINE)
            if item == "parent":
                release.set()
            link.send(reply({"data": [item]}))

    with answering(hold) as peer:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BUSY_FORK, peer.url()]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            assert arrived.wait(DEADLINE)
            process.communicate(b"\n", timeout=2 * DEADLINE)
        assert process.returncode == 0


DROPPED = """
import asyncio, gc, sys, uvloop
from virtex.client import HttpClient
from virtex.message import HttpMessage

async def inside():
    client = HttpClient(sys.argv[1])
    answers = await client.post_bundle_async([HttpMessage(data=[n]) for n in range(30)])
    assert [answer.data for answer in answers] == [[n] for n in range(30)]

for run in asyncio.run, uvloop.run:
    for n in range(2):
        client = HttpClient(sys.argv[1])
        assert client.post(HttpMessage(data=[n])).data == [n]
        assert run(client.post_async(HttpMessage(data=[n]))).data == [n]
        if n == 0:
            del client  # the other one lives longer, the last until the interpreter ends
            gc.collect()
    run(inside())
    gc.collect()
"""


def test_a_dropped_client_leaves_no_warning() -> None:
    with answering(echo) as peer:
        command = [sys.executable, "-W", "error", "-c", DROPPED, peer.url()]
        ended = subprocess.run(command, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_no_descriptor_is_left_behind(face: Face) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    with answering(once(b"")) as peer, HttpClient(peer.url(), timeout=5) as client:
        for _ in range(20):
            face(client, "post", message(1))
    assert before is None or len(os.listdir("/proc/self/fd")) <= before


# TLS


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def test_https_posts_over_a_verified_connection(face: Face) -> None:
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with (
        answering(echo, context=_server_context()) as peer,
        HttpClient(peer.url(scheme="https"), ssl_context=trusting) as client,
    ):
        for item in ("small", "x" * 5_000_000, "small"):
            assert face(client, "post", message(item)).data == [item]


def test_a_certificate_nobody_vouches_for_is_an_error(face: Face) -> None:
    with answering(echo, context=_server_context()) as peer, HttpClient(peer.url(scheme="https")) as client:
        assert "certificate verify failed" in face(client, "post", message(1)).error


@pytest.mark.parametrize("size", [1, 8])
def test_a_default_service_answers_every_message_of_a_bundle(size: int) -> None:
    async def main() -> list[HttpMessage]:
        app = http_server("echo", Echo(), max_batch_size=size)
        async with (
            await serve(app, "127.0.0.1", 0) as listener,
            HttpClient(f"http://127.0.0.1:{listener.port}") as client,
        ):
            bundle = await client.post_bundle_async([message(n, n + 1, n + 2) for n in range(300)])
            return [*bundle, await client.post_async(message(*range(50)))]

    answers = uvloop.run(main())
    assert [answer.error for answer in answers] == [None] * 301
    assert [answer.data for answer in answers] == [*([n, n + 1, n + 2] for n in range(300)), [*range(50)]]


# Retries, deadlines, unix sockets


def test_a_client_without_a_url_says_what_to_give_it(face: Face) -> None:
    with HttpClient() as client, pytest.raises(ValueError) as caught:
        face(client, "post", message(1))
    assert str(caught.value) == "no URL to post to: expected HttpClient(url) or post(url, message)"


def test_validate_message_raises_for_what_can_not_be_posted() -> None:
    HttpClient.validate_message(message(1))
    with pytest.raises(TypeError, match="expected an HttpMessage, got dict"):
        HttpClient.validate_message({"data": [1]})  # type: ignore[arg-type]
    wrong = message()
    wrong["data"] = "abc"
    with pytest.raises(TypeError, match="expected a list of items, got str"):
        HttpClient.validate_message(wrong)


def test_a_503_is_tried_again_when_its_time_is_over_and_the_waits_are_those_of_the_service(face: Face) -> None:
    full = reply({"data": [], "error": "full"}, "503 Service Unavailable", "retry-after: 7\r\n")
    answers, waits = iter([full, full, reply({"data": [1]})]), []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def each(link: Link) -> None:
        while link.read() is not None:
            link.send(next(answers))

    with answering(each) as peer, HttpClient(peer.url()) as client:
        client._retries = Retries("safe", dice=lambda: 0.0, sleep=waits.append, sleep_async=sleep)
        assert face(client, "post", message(1)).data == [1]
        assert len(peer.links) == 1
    assert waits == [7.0, 7.0]


@pytest.mark.parametrize(("retry", "sent"), [("safe", 1), ("never", 1), ("always", 4)])
@pytest.mark.parametrize(
    "half", [b"", b"HTTP/1.1 200 OK\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"]
)
def test_what_breaks_after_a_byte_was_written_is_sent_again_only_with_always(
    face: Face, half: bytes, retry: str, sent: int
) -> None:
    async def sleep(seconds: float) -> None:
        pass

    with answering(once(half)) as peer, HttpClient(peer.url()) as client:
        client._retries = Retries(retry, sleep=lambda seconds: None, sleep_async=sleep)
        assert face(client, "post", message(1)).error
        assert len(peer.links) == sent


def test_an_answer_that_drips_does_not_stretch_the_deadline(face: Face) -> None:
    gone = threading.Event()

    def drip(link: Link) -> None:
        link.read()
        try:
            for byte in reply({"data": [1]}) * 1000:
                link.send(bytes([byte]))
                gone.wait(0.01)
        finally:
            gone.set()

    with answering(drip) as peer, HttpClient(peer.url(), timeout=0.3) as client:
        assert "no answer within 0.3 s" in face(client, "post", message("x" * 10)).error
        assert gone.wait(DEADLINE)


def test_the_service_is_told_what_is_left_and_a_header_of_that_name_is_refused() -> None:
    heads = []

    def keep(link: Link) -> None:
        while (request := link.read()) is not None:
            heads.append(request[0].lower())
            link.send(reply({"data": [1]}))

    with answering(keep) as peer:
        for timeout in (5.0, None):
            with HttpClient(peer.url(), timeout=timeout) as client:
                client.post(message(1))
    left = int(heads[0].split(b"x-request-timeout-ms: ")[1].split(b"\r\n")[0])
    assert 0 < left <= 5000
    assert b"x-request-timeout-ms" not in heads[1]
    with pytest.raises(ValueError, match="says what is left of timeout="):
        HttpClient(headers={"X-Request-Timeout-Ms": "1"})


def test_the_index_and_the_id_of_a_refusal_are_the_errors(face: Face) -> None:
    refused = reply(
        {"data": [], "error": "item 3: no", "index": 3}, "422 Unprocessable Content", "X-Request-Id: abc\r\n"
    )
    with (
        answering(always(refused)) as peer,
        HttpClient(peer.url(), raise_errors=True) as client,
        pytest.raises(ClientError) as caught,
    ):
        face(client, "post", message(1))
    assert (caught.value.status, caught.value.index, caught.value.request_id) == (422, 3, "abc")


def test_a_unix_socket_is_posted_to_and_one_that_is_missing_is_an_error(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "s"

    def serve_one() -> None:
        with listener.accept()[0] as sock:
            echo(Link(sock, 0))

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as threads:
        listener.bind(str(path))
        listener.listen()
        served = threads.submit(serve_one)
        with HttpClient(uds=path) as client:
            assert face(client, "post", message(1)).data == [1]
        served.result(DEADLINE)
    with HttpClient(uds=tmp_path / "none", retry="never") as client:
        assert "http://localhost/: " in (error := face(client, "post", message(1)).error)
        assert "No such file" in error or "attempts failed" in error


def test_a_thousand_posts_of_thirty_threads_are_each_answered() -> None:
    with (
        answering(echo) as peer,
        HttpClient(peer.url(), max_connections=30) as client,
        ThreadPoolExecutor(30) as threads,
    ):
        answers = list(threads.map(lambda n: client.post(message(n)).data, range(1000)))
    assert answers == [[n] for n in range(1000)]
