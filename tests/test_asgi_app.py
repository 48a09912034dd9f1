"""A service behind another's ASGI server."""

import asyncio
import threading
import time
from http import HTTPMethod

import pytest
from kit.asks import ask_asgi, run
from kit.servers import eventually
from kit.services import BODY, Echo, Life

from virtex import http_server


def test_root_path_is_stripped():
    app = http_server("echo", Echo())
    mounted, bare, beside = run(
        app,
        ask_asgi(app, method="GET", path="/ml/health/live", root_path="/ml"),
        ask_asgi(app, method="GET", path="/ml", root_path="/ml/"),
        ask_asgi(app, method="GET", path="/mlx", root_path="/ml"),
    )
    assert (mounted.status, bare.status, beside.status) == (200, 200, 405)


def test_a_client_that_left_while_a_batch_held_the_loop_costs_no_inference():
    """An ASGI server says who left only to who asks, and nobody has waited long enough to be asked for."""

    class Holds(Echo):
        calls = []

        def run_inference(self, model_input):
            self.calls.append(model_input)
            time.sleep(0.2 * (model_input == ["holds"]))
            return model_input

    async def main():
        app = http_server("holds", Holds())
        await app.startup()
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b'{"data":["left"]}'}]

        async def receive():
            return messages.pop()

        async def send(message):
            raise AssertionError("nobody is there")

        await ask_asgi(app, b'{"data":["holds"]}')
        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        await ask_asgi(app, b'{"data":["stays"]}')
        await app.shutdown()

    asyncio.run(main())
    assert Holds.calls == [["holds"], ["stays"]]


def test_clients_that_left_while_they_waited_behind_a_batch_are_noticed_when_it_comes_back():
    """They wait too shortly to be asked for otherwise: 50 ms."""
    go = threading.Event()

    class Holds(Echo):
        calls = []

        def run_inference(self, model_input):
            self.calls.append(model_input)
            go.wait(0.01 if len(self.calls) == 1 else 0)
            return model_input

    async def main():
        app = http_server("holds", Holds(), executor="thread", max_batch_size=2)
        await app.startup()
        holds = asyncio.ensure_future(ask_asgi(app, b'{"data":["holds"]}'))
        await eventually(lambda: Holds.calls)
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b'{"data":["left"]}'}]

        async def receive():
            return messages.pop()

        async def send(message):
            raise AssertionError("nobody is there")

        left = asyncio.ensure_future(app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send))
        await holds
        await left
        await ask_asgi(app, b'{"data":["stays"]}')
        await app.shutdown()

    asyncio.run(main())
    assert Holds.calls == [["holds"], ["stays"]]


def test_lifespan_starts_and_stops_the_service():
    async def main(handler):
        app = http_server("life", handler)
        messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
        sent = []

        async def receive():
            return messages.pop()

        async def send(message):
            sent.append(message)

        await app({"type": "lifespan"}, receive, send)
        return sent

    handler = Life()
    assert [m["type"] for m in asyncio.run(main(handler))] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert set(handler.threads) == {"setup", "teardown"}

    class Broken(Echo):
        def setup(self, worker):
            raise OSError("no such model")

    assert asyncio.run(main(Broken())) == [{"type": "lifespan.startup.failed", "message": "OSError: no such model"}]


def test_a_lifespan_that_is_cut_short_leaves_the_start_running():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread")
        starting = asyncio.ensure_future(app.startup())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        handler.go.set()
        await app.startup()
        answer = await ask_asgi(app, BODY)
        await app.shutdown()
        return answer

    assert asyncio.run(main()).status == 200


def test_other_scopes_are_refused():
    app = http_server("echo", Echo())
    with pytest.raises(RuntimeError, match="scope type 'mqtt'"):
        asyncio.run(app({"type": "mqtt"}, None, None))


@pytest.mark.parametrize("first", ["websocket.connect", "websocket.disconnect"])
def test_a_handshake_of_a_websocket_is_ended(first):
    sent = []

    async def receive():
        return {"type": first}

    async def send(message):
        sent.append(message)

    asyncio.run(http_server("echo", Echo())({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == ([{"type": "websocket.close", "code": 1000}] if first == "websocket.connect" else [])


def test_asgi_clients_are_known_by_their_address_and_forgotten():
    app = http_server("echo", Echo())

    async def main():
        await app.startup()
        for port in range(1, 3000):
            await ask_asgi(app, method="GET", path="/health/live", peer=("127.0.0.1", str(port)))
        known = len(app.model.admission.peers)
        one = app.model.admission.peer(["127.0.0.1", 5000])
        assert app.model.admission.peer(("127.0.0.1", "5000")) is one
        assert app.model.admission.peer(None) is None
        await app.shutdown()
        return known

    assert asyncio.run(main()) <= 1024


def test_requests_under_way_on_one_connection_are_as_many_peers_up_to_a_bound():
    """Over HTTP/2 an ASGI server says the same client of each: one peer for all would never be done, nor expected."""
    app = http_server("echo", Echo())

    async def main():
        await app.startup()
        admission, peers = app.model.admission, []
        for _ in range(100):
            peers.append(peer := admission.peer(("127.0.0.1", 5000)))
            peer.open += 1
        peers[7].open -= 1  # answered
        assert admission.peer(("127.0.0.1", 5000)) is peers[7]
        for peer in peers:
            peer.open = 0
        await app.shutdown()
        return len({id(peer) for peer in peers})

    assert asyncio.run(main()) == 64


def test_a_method_of_a_str_subclass_is_taken():
    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        answer = await ask_asgi(app, b'{"data":[1]}', method=HTTPMethod.POST)
        await app.shutdown()
        return answer.status

    assert asyncio.run(main()) == 200
