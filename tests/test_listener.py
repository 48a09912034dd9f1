"""serve() in a program of one's own, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import uvloop

from virtex import RequestHandler, http_server, serve


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
