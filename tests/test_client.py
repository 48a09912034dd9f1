"""HttpClient against servers that answer byte for byte what a test says, each face of it: plain, asyncio, uvloop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop

from virtex.client import HttpClient
from virtex.errors import ClientError
from virtex.message import HttpMessage
from virtex.wire import _pools

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"
DEADLINE = 10.0  # seconds; nothing here takes one


@dataclass
class Wire:
    """A connection as the peer sees it."""

    sock: socket.socket
    number: int

    def read(self) -> tuple[bytes, bytes] | None:
        """The next request, head and body; None where the client has left."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            if not byte:
                return None
            head += byte
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = bytearray()
        while len(body) < length:
            body += self.sock.recv(length - len(body))
        return head, bytes(body)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


@dataclass
class Peer:
    """A server for one test: `answer` runs once per connection, in a thread of its own."""

    answer: Callable[[Wire], None]
    context: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    wires: list[Wire] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Peer]:
        with socket.create_server((self.host, 0), backlog=128) as self.listener, ThreadPoolExecutor(40) as threads:
            self.port = self.listener.getsockname()[1]
            threads.submit(self._accept, threads)
            try:
                yield self
            finally:
                self.listener.shutdown(socket.SHUT_RDWR)
                for wire in self.wires:
                    wire.sock.close() if wire.sock.fileno() < 0 else _hang_up(wire.sock)

    def url(self, path: str = "/", scheme: str = "http") -> str:
        return f"{scheme}://{self.host}:{self.port}{path}"

    def _accept(self, threads: ThreadPoolExecutor) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(DEADLINE)
            threads.submit(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            with self.context.wrap_socket(sock, server_side=True) if self.context else sock as sock:
                wire = Wire(sock, len(self.wires))
                self.wires.append(wire)
                self.answer(wire)
        except OSError:
            pass  # the client left, as many of these tests want


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def reply(content: object, status: str = "200 OK", headers: str = "") -> bytes:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def echo(wire: Wire) -> None:
    while (request := wire.read()) is not None:
        wire.send(reply({"data": orjson.loads(request[1])["data"], "error": None}))


def always(answer: bytes) -> Callable[[Wire], None]:
    def run(wire: Wire) -> None:
        while wire.read() is not None:
            wire.send(answer)

    return run


def once(answer: bytes) -> Callable[[Wire], None]:
    """Answer one request and close the connection."""

    def run(wire: Wire) -> None:
        wire.read()
        wire.send(answer)

    return run


@contextmanager
def serving(answer: Callable[[Wire], None], **options: Any) -> Iterator[Peer]:
    with Peer(answer, **options).running() as peer:
        yield peer


Face = Callable[..., Any]


def _plain(client: HttpClient, method: str, *args: Any) -> Any:
    return getattr(client, method)(*args)


def _on(run: Callable[[Coroutine[Any, Any, Any]], Any]) -> Face:
    return lambda client, method, *args: run(getattr(client, f"{method}_async")(*args))


@pytest.fixture(params=[_plain, _on(asyncio.run), _on(uvloop.run)], ids=["plain", "asyncio", "uvloop"])
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


def message(*items: Any) -> HttpMessage:
    return HttpMessage(data=list(items))


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
        assert answer.error == f"{url}: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply({"data": [7]}),
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\n{"data\r\n6\r\n":[7]}\r\n0\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n{"data":[7],"error":null}',
    ],
    ids=["after 1xx", "chunked", "ended by the connection"],
)
def test_every_framing_of_a_reply_is_read_whole_and_byte_by_byte(face: Face, answer: bytes) -> None:
    def dribble(wire: Wire) -> None:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.read()
        for byte in answer:
            wire.send(bytes([byte]))

    for script in (once(answer), dribble):
        with serving(script) as peer, HttpClient(peer.url()) as client:
            assert face(client, "post", message(1)).data == [7]


def test_a_refusal_is_read_though_the_server_takes_no_more_of_the_body(face: Face) -> None:
    done = threading.Event()

    def refuse(wire: Wire) -> None:
        wire.sock.recv(1000)
        wire.send(reply({"data": [], "error": "too large"}, "413 Content Too Large", "connection: close\r\n"))
        done.wait(DEADLINE)  # no more is read, and the connection stays: only the reply can end the post

    with serving(refuse) as peer, HttpClient(peer.url(), timeout=DEADLINE) as client:
        answer = face(client, "post", message("x" * 30_000_000))
        done.set()
        assert answer.error == "too large"


def test_no_answer_in_time_is_an_error_and_its_connection_is_closed(face: Face) -> None:
    left = threading.Event()

    def silent(wire: Wire) -> None:
        wire.read()
        if wire.read() is None:
            left.set()

    with serving(silent) as peer, HttpClient(peer.url(), timeout=0.05) as client:
        assert face(client, "post", message(1)).error == f"{peer.url()}: no answer within 0.05 s"
        assert left.wait(DEADLINE)


# Connections


def test_one_connection_serves_both_faces_and_several_loops_one_after_another() -> None:
    with serving(echo) as peer, HttpClient(peer.url()) as client:
        for n in range(3):
            assert client.post(message(n)).data == [n]
            assert asyncio.run(client.post_async(message(n))).data == [n]
            assert uvloop.run(client.post_async(message(n))).data == [n]
        assert len(peer.wires) == 1


@pytest.mark.parametrize(
    "answer",
    [reply({"data": [1]}, headers="connection: close\r\n"), reply({"data": [1]}) + reply({"data": ["of nobody"]})],
    ids=["close", "surplus"],
)
def test_a_connection_that_ends_or_is_out_of_step_is_not_used_again(face: Face, answer: bytes) -> None:
    with serving(always(answer)) as peer, HttpClient(peer.url()) as client:
        for _ in range(3):
            assert face(client, "post", message(1)).data == [1]
        assert len(peer.wires) == 3


def test_a_connection_that_the_server_closed_while_idle_is_replaced(face: Face) -> None:
    gone = threading.Event()

    def leave(wire: Wire) -> None:
        once(reply({"data": [1]}))(wire)
        wire.sock.close()
        gone.set()

    with serving(leave) as peer, HttpClient(peer.url()) as client:
        for _ in range(3):
            gone.clear()
            assert face(client, "post", message(1)).error is None
            assert gone.wait(DEADLINE)


def test_threads_share_a_client_and_each_gets_its_own_answers() -> None:
    def post(n: int) -> bool:
        return client.post(message(n, str(n))).data == [n, str(n)]

    with serving(echo) as peer, HttpClient(peer.url()) as client, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(post, range(400)))
        assert len(peer.wires) <= 8


def test_the_plain_face_works_while_a_loop_runs_in_the_thread() -> None:
    async def main() -> list[Any]:
        return [client.post(message(1)).data, *(answer.data for answer in client.post_bundle([message(2), message(3)]))]

    with serving(echo) as peer, HttpClient(peer.url()) as client:
        assert asyncio.run(main()) == [[1], [2], [3]]


def test_a_cancelled_post_closes_its_connection() -> None:
    arrived, left = threading.Event(), threading.Event()

    def wait(wire: Wire) -> None:
        wire.read()
        arrived.set()
        if wire.read() is None:
            left.set()

    async def main() -> None:
        task = asyncio.create_task(client.post_async(message(1)))
        assert await asyncio.to_thread(arrived.wait, DEADLINE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with serving(wait) as peer, HttpClient(peer.url()) as client:
        asyncio.run(main())
        assert left.wait(DEADLINE)


FORK = """
import os, sys
from virtex.client import HttpClient
from virtex.message import HttpMessage
client = HttpClient(sys.argv[1])
assert client.post(HttpMessage(data=["parent"])).data == ["parent"]
go_read, go_write = os.pipe()
child = os.fork()
if child == 0:
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

    def until_left(wire: Wire) -> None:
        echo(wire)
        ended.wait(DEADLINE)

    with serving(until_left) as peer:
        command = [sys.executable, "-W", "error", "-c", FORK, peer.url()]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            ended.wait(DEADLINE)  # both connections have ended, though the child still lives
            assert len(peer.wires) == 2
            process.communicate(b"\n", timeout=DEADLINE)
        assert process.returncode == 0


def test_a_child_forked_while_another_thread_held_the_lock_can_still_post() -> None:
    with serving(echo) as peer, HttpClient(peer.url()) as client:
        client.post(message(1))
        pool = client._pool
        assert pool in _pools
        pool._lock.acquire()
        pool.forget()  # what the child runs
        assert client.post(message(2)).data == [2]
        assert len(peer.wires) == 2


DROPPED = """
import asyncio, gc, sys
from virtex.client import HttpClient
from virtex.message import HttpMessage
for n in range(2):
    client = HttpClient(sys.argv[1])
    assert client.post(HttpMessage(data=[n])).data == [n]
    assert asyncio.run(client.post_async(HttpMessage(data=[n]))).data == [n]
    if n == 0:
        del client  # the other one lives until the interpreter ends
        gc.collect()
"""


def test_a_dropped_client_leaves_no_warning() -> None:
    with serving(echo) as peer:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", DROPPED, peer.url()]
        ended = subprocess.run(command, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


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


# TLS


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def test_https_posts_over_one_verified_connection(face: Face) -> None:
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with (
        serving(echo, context=_server_context()) as peer,
        HttpClient(peer.url(scheme="https"), ssl_context=trusting) as client,
    ):
        for item in ("small", "x" * 5_000_000, "small"):
            assert face(client, "post", message(item)).data == [item]
        assert len(peer.wires) == 1


def test_a_certificate_nobody_vouches_for_is_an_error(face: Face) -> None:
    with serving(echo, context=_server_context()) as peer, HttpClient(peer.url(scheme="https")) as client:
        assert "certificate verify failed" in face(client, "post", message(1)).error


def test_no_descriptor_is_left_behind(face: Face) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    with serving(once(b"")) as peer, HttpClient(peer.url(), timeout=5) as client:
        for _ in range(20):
            face(client, "post", message(1))
    assert before is None or len(os.listdir("/proc/self/fd")) <= before
