"""What a request leaves behind when it is over: nothing that the garbage collector would have to find."""

import asyncio
import gc
from contextlib import AsyncExitStack, contextmanager

import pytest
from kit.asks import Echo, ask_asgi
from kit.wire import StubServer, Wire

from virtex import http_server, serve

BODY = b'{"data":["x"]}'
REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@contextmanager
def collected():
    """The objects that only the collector could free, of those made within."""
    found = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def plain(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("http only")
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def over_a_socket(app, times):
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    for _ in range(times):
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
    return writer


async def through_asgi(app, times):
    for _ in range(times):
        assert (await ask_asgi(app, BODY)).status == 200


@pytest.mark.parametrize("way", ["direct", "asgi application", "asgi shell"])
def test_a_request_leaves_no_cycles(way):
    async def main():
        async with AsyncExitStack() as stack:
            app = plain if way == "asgi application" else http_server("echo", Echo())
            if way == "asgi shell":
                await app.startup()
                stack.push_async_callback(app.shutdown)
                ask = through_asgi
            else:
                app, ask = await stack.enter_async_context(await serve(app, port=0)), over_a_socket
            left = [await ask(app, 3)]  # caches fill; the connection itself is not what is asked about
            with collected() as found:
                left.append(await ask(app, 50))
            for writer in filter(None, left):
                writer.close()
            return found

    assert asyncio.run(main()) == []


@pytest.mark.parametrize("hosts", [False, True])
def test_a_connection_leaves_no_cycles(hosts, event_loop):
    app = plain if hosts else StubServer(event_loop)

    def connect():
        wire = Wire(app, loop=event_loop).send(REQUEST).settle()
        assert wire.statuses == [200]
        wire.protocol.connection_lost(None)
        wire.transport.protocol = None  # an event loop's forgets it too
        wire.settle()

    connect()
    with collected() as found:
        connect()
    assert [made for made in found if type(made).__module__.startswith("virtex.")] == []
