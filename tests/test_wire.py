"""The client's connections: replies however they are framed, reuse, time, threads, loops, forks, TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from peer import DEADLINE, FACES, Face, Wire, always, echo, message, once, reply, serving

from virtex.client import HttpClient
from virtex.wire import Origin, Pool, Reply, _pools, drive, exchange

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


@pytest.fixture(params=FACES.values(), ids=FACES.keys())
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


# Replies


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


def test_a_connection_in_use_when_the_client_is_closed_answers_and_ends(face: Face) -> None:
    left = threading.Event()

    def close_and_answer(wire: Wire) -> None:
        wire.read()
        client.close()
        wire.send(reply({"data": [1]}))
        if wire.read() is None:
            left.set()

    with serving(close_and_answer) as peer:
        client = HttpClient(peer.url())
        assert face(client, "post", message(1)).data == [1]
        assert left.wait(DEADLINE)


def test_an_answer_that_came_before_the_connection_broke_is_read() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(reply({"data": [], "error": "too large"}, "413 Content Too Large"))
    theirs.close()  # from here on, sending is EPIPE
    pool = Pool(1, None)
    outcome = drive([exchange(pool, Origin("http", "peer", 80), ours, [b"POST / HTTP/1.1\r\n\r\n"])], 1, DEADLINE)[0]
    assert isinstance(outcome, Reply)
    assert outcome.status == 413
    assert ours.fileno() == -1  # and the connection is not kept


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
