"""HttpClient: what it sends, what it makes of an answer, bundles; each by all of its faces."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from typing import Any

import orjson
import pytest
from peer import DEADLINE, FACES, Face, Wire, echo, message, once, reply, serving

from virtex.client import HttpClient
from virtex.errors import ClientError
from virtex.message import HttpMessage


@pytest.fixture(params=FACES.values(), ids=FACES.keys())
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


# What is sent


def test_a_message_is_posted_and_its_answer_comes_back_in_order(face: Face) -> None:
    with serving(echo) as peer, HttpClient(peer.url()) as client:
        answer = face(client, "post", message(1, "zwei", [3.0, None]))
        assert isinstance(answer, HttpMessage)
        assert answer.data == [1, "zwei", [3.0, None]]
        assert answer.error is None


def test_the_request_names_its_path_host_type_and_length() -> None:
    seen = []

    def keep(wire: Wire) -> None:
        seen.append(wire.read())
        wire.send(reply({"data": [1]}))

    with serving(keep) as peer, HttpClient(headers={"X-Key": "s3cret"}) as client:
        client.post(peer.url("/a b/%2F?q=1 2"), message(1))
        head, body = seen[0]
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /a%20b/%2F?q=1%202 HTTP/1.1"
    assert f"host: {peer.url()[7:-1]}" in lines
    assert "content-type: application/json" in lines
    assert "x-key: s3cret" in lines
    assert orjson.loads(body)["data"] == [1]


def test_the_url_of_a_post_goes_before_the_clients() -> None:
    with serving(echo) as first, serving(echo) as second, HttpClient(first.url()) as client:
        assert client.post(second.url(), message(1)).data == [1]
        assert client.post(url=second.url(), message=message(2)).data == [2]
        assert client.post(message=message(3)).data == [3]
        assert len(second.wires) == 1
        assert len(first.wires) == 1


def test_a_host_name_is_looked_up(face: Face) -> None:
    with serving(echo) as peer, HttpClient(peer.url().replace("127.0.0.1", "localhost")) as client:
        assert face(client, "post", message(1)).data == [1]


def test_a_message_of_twenty_megabytes_goes_and_comes(face: Face) -> None:
    with serving(echo) as peer, HttpClient(peer.url()) as client:
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
        ({"max_connections": 0}, "max_connections: expected 1 or more, got 0"),
        ({"headers": {"Content-Length": "3"}}, "'Content-Length' belongs to the connection"),
        ({"headers": {"x": "a\r\nhost: evil"}}, "expected printable characters"),
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
        (reply(b"\x1f\x8b", headers="content-encoding: gzip\r\n"), "Content-Encoding gzip, which was not", 200),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "expected an HTTP reply, got bytes that are none", 0),
        (b"", "closed before the answer came", 0),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", "closed in the middle of the answer", 0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{", "closed in the middle of the answer", 0),
    ],
)
def test_an_answer_that_is_no_message_becomes_one_whose_error_says_why(
    face: Face, answer: bytes, words: str, status: int
) -> None:
    with serving(once(answer)) as peer, HttpClient(peer.url()) as client:
        got = face(client, "post", message(1))
        assert got.data == []
        assert words in got.error
    with serving(once(answer)) as peer, HttpClient(peer.url(), raise_errors=True) as client:
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
        assert answer.error == f"{url}: [Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"


# Bundles


def test_a_bundle_is_answered_in_order_whatever_order_the_answers_come_in(face: Face) -> None:
    answered = [threading.Event() for _ in range(5)]
    answered[4].set()

    def last_first(wire: Wire) -> None:
        while (request := wire.read()) is not None:
            n = orjson.loads(request[1])["data"][0]
            assert answered[n + 1].wait(DEADLINE)
            wire.send(reply({"data": [n]}))
            answered[n].set()

    with serving(last_first) as peer, HttpClient(peer.url()) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(4)])
        assert [answer.data for answer in answers] == [[0], [1], [2], [3]]


def test_no_more_messages_of_a_bundle_are_under_way_than_max_connections(face: Face) -> None:
    together = threading.Barrier(3)

    def in_threes(wire: Wire) -> None:
        while (request := wire.read()) is not None:
            together.wait(DEADLINE)  # passes only while three are under way
            wire.send(reply({"data": orjson.loads(request[1])["data"]}))

    with serving(in_threes) as peer, HttpClient(peer.url(), max_connections=3) as client:
        answers = face(client, "post_bundle", (message(n) for n in range(30)))
        assert [answer.data for answer in answers] == [[n] for n in range(30)]
        assert len(peer.wires) == 3


def test_one_failure_in_a_bundle_leaves_the_others_their_answers(face: Face) -> None:
    def odd_ones_fail(wire: Wire) -> None:
        while (request := wire.read()) is not None:
            n = orjson.loads(request[1])["data"][0]
            refusal = reply({"data": [], "error": f"no {n}"}, "422 Unprocessable Content")
            wire.send(refusal if n % 2 else reply({"data": [n]}))

    with serving(odd_ones_fail) as peer, HttpClient(peer.url()) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(4)])
        assert [answer.data for answer in answers] == [[0], [], [2], []]
        assert [answer.error for answer in answers] == [None, "no 1", None, "no 3"]
        client.raise_errors = True
        with pytest.raises(ClientError, match="422: no 1"):
            face(client, "post_bundle", [message(n) for n in range(4)])


def test_a_bundle_with_something_else_in_it_is_refused_before_anything_is_sent(face: Face) -> None:
    with serving(echo) as peer, HttpClient(peer.url()) as client:
        with pytest.raises(TypeError, match="expected an HttpMessage, got int"):
            face(client, "post_bundle", [message(1), 2])
        with pytest.raises(TypeError, match="expected an iterable of HttpMessages, got HttpMessage"):
            face(client, "post_bundle", message(1))
        assert face(client, "post_bundle", []) == []
        assert peer.wires == []


def test_each_message_of_a_bundle_has_its_own_time(face: Face) -> None:
    def never_for_one(wire: Wire) -> None:
        while (request := wire.read()) is not None:
            if orjson.loads(request[1])["data"] != [1]:
                wire.send(reply({"data": [0]}))

    with serving(never_for_one) as peer, HttpClient(peer.url(), timeout=0.1, max_connections=2) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(50)])
        assert [n for n, answer in enumerate(answers) if answer.error] == [1]


# The end


def test_close_ends_the_idle_connections_and_a_later_post_is_refused(face: Face) -> None:
    left = threading.Event()

    def until_left(wire: Wire) -> None:
        echo(wire)
        left.set()

    with serving(until_left) as peer:
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

    with serving(echo) as peer:
        client = asyncio.run(main(peer.url()))
        with pytest.raises(RuntimeError, match="closed"):
            client.post(message(1))
