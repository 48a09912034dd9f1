"""serve() in a program of one's own, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import struct
import threading

import pytest
import uvloop
from kit.asks import Echo
from kit.servers import CERTIFICATE, eventually, listens, read_answer
from kit.workers import scoreboard_of

from virtex import HttpProtocol, Limits, http_server, serve
from virtex.wire.listener import Listener
from virtex.workers.share import PATIENCE, Share

REQUEST = b'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 14\r\n\r\n{"data":["a"]}'
ANSWER = b'{"data":["a"],"error":null}'


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def run(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(main, 60))

    return run


def echo(handler=Echo):
    return http_server(name="echo", handler=handler)


async def ask(port=None, path=None, request=REQUEST):
    opening = asyncio.open_connection("127.0.0.1", port) if path is None else asyncio.open_unix_connection(path)
    reader, writer = await opening
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_free_port_is_chosen_and_known(run):
    async def main():
        async with await serve(echo(), port=0) as listener:
            assert listener.port > 0
            return await ask(listener.port)

    assert run(main()).endswith(ANSWER)


def test_unix_socket(run, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        async with await serve(echo(), uds=path) as listener:
            with pytest.raises(ValueError, match="expected a TCP socket"):
                print(listener.port)
            return await ask(path=path)

    assert run(main()).endswith(ANSWER)


def test_bound_socket(run):
    async def main():
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        async with await serve(echo(), sock=sock) as listener:
            assert listener.port == sock.getsockname()[1]
            return await ask(listener.port)

    assert run(main()).endswith(ANSWER)


def test_address_in_use_is_said_by_its_name(run):
    async def main():
        async with await serve(echo(), port=0) as listener:
            with pytest.raises(OSError, match=rf"can't listen on \('127.0.0.1', {listener.port}\)"):
                await serve(echo(), port=listener.port)

    run(main())


def test_setup_that_fails_is_raised_and_nothing_listens(run):
    class Failing(Echo):
        def setup(self, worker):
            raise FileNotFoundError("model.bin")

    async def main():
        with pytest.raises(FileNotFoundError, match=r"model\.bin"):
            await serve(echo(Failing), port=0)

    run(main())


async def statuses(port):
    """What a loading service says: live, ready, to a message; and the last answer whole."""
    requests = [
        b"GET /health/%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % name for name in (b"live", b"ready")
    ]
    answers = [await ask(port, request=request) for request in [*requests, REQUEST]]
    return [int(answer.split()[1]) for answer in answers], answers[-1]


def bound():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def loading(kind, gate, error=None):
    """A service whose setup() waits for the gate, and leaves the loop free meanwhile."""

    class InThread(Echo):
        def setup(self, worker):
            gate.wait(60)
            if error:
                raise error

    class Awaiting(Echo):
        async def setup(self, worker):
            while not gate.is_set():
                await asyncio.sleep(0.001)
            if error:
                raise error

    if kind == "thread":
        return http_server(name="loading", handler=InThread, executor="thread")
    return http_server(name="loading", handler=lambda: Awaiting())


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_probes_are_answered_and_messages_refused_while_a_setup_that_leaves_the_loop_free_runs(run, kind):
    async def main():
        gate, (sock, port) = threading.Event(), bound()
        starting = asyncio.ensure_future(serve(loading(kind, gate), sock=sock))
        await eventually(lambda: listens(port))
        seen, refusal = await statuses(port)
        assert not starting.done()
        gate.set()
        async with await starting:
            return seen, refusal, (await statuses(port))[0]

    seen, refusal, later = run(main())
    assert seen == [200, 503, 503] and later == [200, 200, 200]
    assert b"retry-after: 1" in refusal and b"the service is starting" in refusal


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_setup_that_fails_while_probes_are_answered_is_raised_and_nothing_listens_any_more(run, kind):
    async def main():
        gate, (sock, port) = threading.Event(), bound()
        starting = asyncio.ensure_future(serve(loading(kind, gate, FileNotFoundError("model.bin")), sock=sock))
        await eventually(lambda: listens(port))
        assert (await statuses(port))[0] == [200, 503, 503]
        gate.set()
        with pytest.raises(FileNotFoundError, match=r"model\.bin"):
            await starting
        assert not listens(port)

    run(main())


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_quick_setup_has_nobody_refused(run, kind, monkeypatch):
    monkeypatch.setattr("virtex.wire.listener.QUICK_START_SECONDS", 60)  # on a busy machine none is quick

    async def main():
        gate, (sock, port) = threading.Event(), bound()
        sock.listen()  # so that the request can be there before the application is
        asking = asyncio.ensure_future(ask(port))
        starting = asyncio.ensure_future(serve(loading(kind, gate), sock=sock))
        await asyncio.sleep(0)
        gate.set()
        async with await starting:
            return await asking

    assert run(main()).endswith(ANSWER)


def test_drain_answers_what_was_taken_then_refuses_connections(run):
    gate = asyncio.Event()

    class Waiting(Echo):
        async def run_inference(self, model_input):
            await gate.wait()
            return model_input

    async def main():
        listener = await serve(echo(Waiting), port=0)
        port = listener.port
        answer = asyncio.ensure_future(ask(port))
        while not listener.connections.heads_taken:
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(listener.drain(1000))
        again = asyncio.ensure_future(listener.drain(1000))
        while listener.sockets and not listener.connections.draining:
            await asyncio.sleep(0)
        gate.set()
        assert (await answer).endswith(ANSWER)
        await draining
        await again
        await listener.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await ask(port)

    run(main())


def test_close_cuts_what_is_not_answered(run):
    class Stuck(Echo):
        async def run_inference(self, model_input):
            await asyncio.sleep(3600)

    async def main():
        listener = await serve(echo(Stuck), port=0)
        answer = asyncio.ensure_future(ask(listener.port))
        while not listener.connections.heads_taken:
            await asyncio.sleep(0)
        await listener.close()
        with contextlib.suppress(ConnectionResetError):
            assert not await answer
        assert not listener.connections.members

    run(main())


def test_any_asgi_application_is_started_and_stopped(run):
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            seen.append((await receive())["type"])
            await send({"type": "lifespan.startup.complete"})
            seen.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

    async def main():
        async with await serve(app, port=0) as listener:
            return await ask(listener.port)

    assert run(main()).endswith(b"\r\n\r\nhello")
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


def test_application_that_does_not_stop_is_left_behind(run, caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.sleep(3600)

    async def main():
        listener = await serve(app, port=0)
        await listener.close()

    run(main())
    assert "did not shut down within 1 s" in caplog.text


# --- accepting, and to the end ---------------------------------------------------------------------------------


class Siblings:
    """Others on the same socket, who never are quicker; whether they take what is left is said."""

    def __init__(self, take):
        self.take = take

    def may_accept(self):
        return True

    def has_more(self, connections):
        return True

    def waited_in_vain(self):
        pass

    def has_ready_sibling(self):
        return self.take


async def listening(share=None, tls=None, handler=Echo):
    """A listener, and its socket once more."""
    listener = Listener(echo(handler), Limits(idle_seconds=1000))
    await listener.begin()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    again = sock.dup()
    again.setblocking(False)
    await listener.listen(sock, 100, tls, share)
    return listener, again


def connect(listener, count):
    """The kernel takes them at once, whether the server has turned or not."""
    return [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(count)]


async def ask_by(sock, **tls):
    reader, writer = await asyncio.open_connection(sock=sock, **tls)
    writer.write(REQUEST)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("share", [None, Siblings(take=False)], ids=["alone", "last of several"])
def test_connections_that_wait_when_it_stops_are_answered_though_they_ask_later(run, share):
    async def main():
        listener, again = await listening(share)
        again.close()
        clients = connect(listener, 40)
        draining = asyncio.ensure_future(listener.drain(1000))
        while not listener.connections.draining:
            await asyncio.sleep(0)
        answers = await asyncio.gather(*map(ask_by, clients))
        await draining
        return answers

    answers = run(main())
    assert [answer.endswith(ANSWER) for answer in answers] == [True] * 40, answers


def test_connections_that_wait_are_left_to_those_who_listen_on(run):
    async def main():
        listener, again = await listening(Siblings(take=True))
        clients = connect(listener, 10)
        await listener.drain(1000)
        for client in clients:
            with client, again.accept()[0]:
                pass
        with pytest.raises(BlockingIOError):
            again.accept()
        again.close()

    run(main())


READY = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("others", [True, False], ids=["handed over", "nobody else"])
@pytest.mark.parametrize("kind", ["accepted", "kept alive", "half asked"])
def test_a_check_that_was_accepted_finds_the_address_served_where_others_serve_on(run, kind, others):
    async def main():
        listener, again = await listening(Siblings(take=others))
        again.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        request = READY % b"/health/ready"
        await eventually(lambda: listener.connections.members)
        if kind == "kept alive":
            writer.write(request)
            assert (await read_answer(reader))[0] == 200
        sent = 20 if kind == "half asked" else 0
        writer.write(request[:sent])
        stopping = asyncio.ensure_future(listener.stop(10, hands_over=others))
        await eventually(lambda: listener.connections.draining)
        writer.write(request[sent:])
        status, head, _ = await read_answer(reader)
        assert b"connection: close" in head
        writer.close()
        await stopping
        return status

    assert run(main()) == (200 if others else 503)


def test_what_waits_for_company_is_answered_at_half_of_the_grace_where_others_serve_on(run):
    async def main():
        app = http_server(name="echo", handler=Echo, max_time_on_queue=3600)
        listener = await serve(app, port=0)
        _, half = await asyncio.open_connection("127.0.0.1", listener.port)
        half.write(REQUEST[:-4])  # for a while the batch waits for it, then for nobody
        answer = asyncio.ensure_future(ask(listener.port))
        await eventually(lambda: listener.connections.heads_taken == 2)
        await listener.stop(2, hands_over=True)
        half.close()
        return await answer

    assert run(main()).endswith(ANSWER)


@pytest.mark.parametrize("waits", ["delay", "answers", "handshake"])
def test_close_ends_a_drain_that_waits_and_shuts_the_application_down(run, waits):
    seen = []

    class Ends(Echo):
        def teardown(self):
            seen.append("teardown")

        async def run_inference(self, model_input):
            await asyncio.sleep(3600 if model_input == ["a"] else 0)

    async def main():
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(CERTIFICATE)
        listener, again = await listening(tls=server if waits == "handshake" else None, handler=Ends)
        again.close()
        (client,) = connect(listener, 1)
        if waits == "answers":
            client.send(REQUEST)
            await eventually(lambda: listener.connections.heads_taken)
        draining = asyncio.ensure_future(listener.drain(3600, 3000 if waits == "delay" else 0))
        await eventually(lambda: listener.connections.closing)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        await listener.close()
        client.close()
        await draining

    run(main())
    assert seen == ([] if waits == "answers" else ["teardown"])  # for the model has not come back


def test_connection_that_comes_last_and_says_nothing_does_not_hold_the_end_up(run):
    async def main():
        listener, again = await listening()
        again.close()
        (client,) = connect(listener, 1)
        await listener.drain(1000)
        client.setblocking(False)
        assert client.recv(100) == b""
        client.close()

    run(main())


def test_tls_handshake_may_be_finished_while_draining_but_is_not_waited_for_long(run):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(CERTIFICATE)
    context = ssl.create_default_context(cafile=CERTIFICATE)

    async def main():
        listener, again = await listening(tls=server)
        again.close()
        client, silent = connect(listener, 2)
        draining = asyncio.ensure_future(listener.drain(1000))
        while not listener.connections.draining:
            await asyncio.sleep(0)
        answer = await ask_by(client, ssl=context, server_hostname="localhost")
        await draining
        silent.close()
        return answer

    assert run(main()).endswith(ANSWER)


def test_hung_sibling_does_not_throttle_accepting(run):
    class Counting(Share):
        pauses = 0

        def waited_in_vain(self):
            super().waited_in_vain()
            self.pauses += 1

    async def main():
        share = Counting(scoreboard_of(0, 0), 0)
        listener, again = await listening(share)
        again.close()
        clients = []
        for count in 1, 100, 200:
            clients += connect(listener, count - len(clients))
            await eventually(lambda count=count: len(listener.connections.members) == count)
        assert share.pauses <= PATIENCE
        await listener.close()
        for client in clients:
            client.close()

    run(main())


def test_connections_that_come_at_once_are_spread_over_those_who_share_a_socket(run):
    async def main():
        board = scoreboard_of(0, 0)
        first, again = await listening(Share(board, 0))
        second = Listener(echo())
        await second.begin()
        await second.listen(again, 100, None, Share(board, 1))
        clients = connect(first, 64)
        both = first.connections.members, second.connections.members
        await eventually(lambda: sum(map(len, both)) == 64)
        sizes = [len(each) for each in both]
        for client in clients:
            client.close()
        await first.close()
        await second.close()
        return sizes

    sizes = run(main())
    assert max(sizes) <= 48, sizes


# --- where it listens ------------------------------------------------------------------------------------------


def unix_socket(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    return sock


def test_unix_socket_that_nobody_listens_on_is_replaced_and_ones_own_is_removed(run, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        unix_socket(path).close()
        for _ in range(2):
            async with await serve(echo(), uds=path):
                assert (await ask(path=path)).endswith(ANSWER)
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
            assert not os.path.exists(path)

    run(main())


def test_unix_socket_of_somebody_else_is_left_alone(run, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        with unix_socket(path) as other:
            other.listen()
            with pytest.raises(OSError, match=r"can't listen on '.*/s': .*in use"):
                await serve(echo(), uds=path)
        listener = await serve(echo(), uds=path)
        os.unlink(path)
        with unix_socket(path):
            await listener.drain()
            assert os.path.exists(path)

    run(main())


def test_file_that_is_no_socket_is_not_removed(run, tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(OSError, match=r"can't listen on '.*/s': there is a file that is no socket"):
        run(serve(echo(), uds=str(tmp_path / "s")))
    assert (tmp_path / "s").read_text() == "precious"


def several(*hosts):
    """What a name with several addresses resolves to."""

    def getaddrinfo(_, port, **hints):
        return [found for host in hosts for found in resolve(host, port, **hints)]

    resolve = socket.getaddrinfo
    return getaddrinfo


def test_every_address_of_a_host_is_served_on_one_port(run, monkeypatch):
    async def main():
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", several("::1", "127.0.0.1", "127.0.0.1", "2001:db8::1"))
            listener = await serve(echo(), "localhost", 0)
        async with listener:
            for host in "::1", "127.0.0.1":
                with socket.create_connection((host, listener.port)) as sock:
                    sock.setblocking(False)
                    assert (await ask_by(sock)).endswith(ANSWER)

    run(main())


def test_host_without_an_address_of_this_machine_is_refused(run):
    with pytest.raises(OSError, match=r"can't listen on \('2001:db8::1', 0, 0, 0\)"):
        run(serve(echo(), "2001:db8::1", 0))


# --- large bodies, which the transport reads into the exchange's buffer ---------------------------------------

MB = 1 << 20
HEADS = 2000  # bytes that the latest heads of connections that are open may count
SMALL_BUDGET = Limits(max_bytes=2 * MB + HEADS)


def large(size):
    """A request whose body has so many bytes."""
    body = b'{"data":["%b"]}' % (b"x" * (size - 13))
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_body_that_goes_over_the_budget_is_refused_and_gives_its_bytes_back_while_others_go_on(run):
    async def main():
        app = http_server(name="echo", handler=Echo, limits=SMALL_BUDGET)
        async with await serve(app, port=0) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            other_reader, other = await asyncio.open_connection("127.0.0.1", listener.port)
            first, second = large(3 * MB), large(MB)
            other.write(second[: MB // 2])
            await eventually(lambda: app.model.admission.bodies.held > MB // 2 - 1000)
            held = app.model.admission.bodies.held
            writer.write(first[: MB + MB // 2])
            await eventually(lambda: app.model.admission.bodies.held > 2 * MB - 1000)
            writer.write(first[MB + MB // 2 :][: 2 * HEADS])  # midway
            status, head, body = await read_answer(reader)
            assert status == 503 and b"connection: close" in head and b"retry-after: 1" in head, head
            assert b"more than %d bytes" % SMALL_BUDGET.max_bytes in body and await reader.read() == b""
            assert app.model.admission.bodies.held < held + HEADS
            other.write(second[MB // 2 :] + large(100))
            answers = [await read_answer(other_reader) for _ in range(2)]
            assert [status for status, _, _ in answers] == [200, 200] and len(answers[0][2]) > MB
            assert app.model.admission.bodies.held < HEADS
            writer.close()
            other.close()
        assert app.model.admission.bodies.held == 0

    run(main())


def test_large_body_cut_by_a_reset_gives_its_bytes_back(run):
    async def main():
        app = http_server(name="echo", handler=Echo, limits=SMALL_BUDGET)
        async with await serve(app, port=0) as listener:
            for _ in range(3):  # together more than the budget
                _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writer.write(large(2 * MB)[:MB])
                await eventually(lambda: app.model.admission.bodies.held > MB - 1000)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                await eventually(lambda: app.model.admission.bodies.held == 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(large(2 * MB))
            assert (await read_answer(reader))[0] == 200 and app.model.admission.bodies.held < HEADS
            writer.close()
        assert app.model.admission.bodies.held == 0

    run(main())


# --- HttpProtocol alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", REQUEST[:40]])
def test_a_connection_that_asks_nothing_before_the_first_request_leaves_no_trace(run, caplog, first):
    async def main():
        app = echo()
        loop = asyncio.get_running_loop()
        async with await loop.create_server(lambda: HttpProtocol(app), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            _, probe = await asyncio.open_connection("127.0.0.1", port)
            probe.write(first)
            await probe.drain()
            probe.close()
            await probe.wait_closed()
            answer = await ask(port)  # accepted behind it
        await app.shutdown()
        return answer

    assert run(main()).endswith(ANSWER)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
