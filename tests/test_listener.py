"""serve() in a program of one's own, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest
import uvloop

from virtex import Limits, RequestHandler, http_server, serve


class Echo(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, item):
        return item


REQUEST = b'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 14\r\n\r\n{"data":["a"]}'
ANSWER = b'{"data":["a"],"error":null}'


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def run(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(main, 20))

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
        while not listener.connections.requests:
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(listener.drain(10))
        again = asyncio.ensure_future(listener.drain(10))
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
        while not listener.connections.requests:
            await asyncio.sleep(0)
        await listener.close()
        with contextlib.suppress(ConnectionResetError):
            assert not await answer
        assert not listener.connections.open

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


# --- large bodies, which the transport reads into the exchange's buffer ---------------------------------------

MB = 1 << 20
HEADS = 2000  # bytes that the latest heads of connections that are open may count
SMALL_BUDGET = Limits(max_bytes=2 * MB + HEADS)


def large(size):
    """A request whose body has so many bytes."""
    body = b'{"data":["%b"]}' % (b"x" * (size - 13))
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def answer_of(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), head, await reader.readexactly(length)


def test_body_that_goes_over_the_budget_is_refused_and_gives_its_bytes_back_while_others_go_on(run):
    async def main():
        app = http_server(name="echo", handler=Echo, limits=SMALL_BUDGET)
        async with await serve(app, port=0) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            other_reader, other = await asyncio.open_connection("127.0.0.1", listener.port)
            first, second = large(3 * MB), large(MB)
            other.write(second[: MB // 2])
            await until(lambda: app.admission.bodies.held > MB // 2 - 1000)
            held = app.admission.bodies.held
            writer.write(first[: MB + MB // 2])
            await until(lambda: app.admission.bodies.held > 2 * MB - 1000)
            writer.write(first[MB + MB // 2 :][:2000])  # midway, and little enough that no reset follows the answer
            status, head, body = await answer_of(reader)
            assert status == 503 and b"connection: close" in head and b"retry-after: 1" in head, head
            assert b"more than %d bytes" % SMALL_BUDGET.max_bytes in body and await reader.read() == b""
            assert app.admission.bodies.held < held + HEADS
            other.write(second[MB // 2 :] + large(100))
            answers = [await answer_of(other_reader) for _ in range(2)]
            assert [status for status, _, _ in answers] == [200, 200] and len(answers[0][2]) > MB
            assert app.admission.bodies.held < HEADS
            writer.close()
            other.close()
        assert app.admission.bodies.held == 0

    run(main())


def test_large_body_cut_by_a_reset_gives_its_bytes_back(run):
    async def main():
        app = http_server(name="echo", handler=Echo, limits=SMALL_BUDGET)
        async with await serve(app, port=0) as listener:
            for _ in range(3):  # together more than the budget
                _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writer.write(large(2 * MB)[:MB])
                await until(lambda: app.admission.bodies.held > MB - 1000)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                await until(lambda: app.admission.bodies.held == 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(large(2 * MB))
            assert (await answer_of(reader))[0] == 200 and app.admission.bodies.held < HEADS
            writer.close()
        assert app.admission.bodies.held == 0

    run(main())
