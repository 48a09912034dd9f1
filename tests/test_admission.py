"""Who is taken in and who is refused."""

import asyncio

import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import BODY, Echo, Life

from virtex import Limits, http_server
from virtex.service.seam import Head


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def test_a_body_over_the_limit_is_a_413_declared_or_not(ask):
    app = http_server("echo", Echo(), limits=Limits(body=20))
    (declared,) = run(app, ask(app, b'{"data":["' + b"x" * 50 + b'"]}'))
    assert declared.status == 413
    assert declared.error == "a body of 63 bytes; the limit is 20"


def test_a_chunked_body_over_the_limit_is_a_413():
    app = http_server("echo", Echo(), limits=Limits(body=20))
    body = [b'{"data":["', b"x" * 50, b'"]}']
    (answer,) = run(app, ask_asgi(app, body, headers=[(b"content-length", b"?")]))
    assert answer.status == 413
    (after,) = run(app, ask_asgi(app, b'{"data":[1]}'))
    assert after.status == 200


def test_a_queue_without_room_is_a_503_with_retry_after_and_what_can_never_fit_a_413(ask):
    app = http_server("echo", Echo(), max_batch_size=2, max_queue_size=3)
    three, one, four = run(
        app, ask(app, b'{"data":[1,2,3]}'), ask(app, b'{"data":[4]}'), ask(app, b'{"data":[1,2,3,4]}')
    )
    assert three.json["data"] == [1, 2, 3]
    assert (one.status, one.headers.get(b"retry-after")) == (503, b"1")
    assert "no room for 1 items: 3 of 3 wait" in one.error
    assert four.status in (413, 503)
    (four,) = run(app, ask(app, b'{"data":[1,2,3,4]}'))
    assert four.status == 413
    assert "4 items in one request; the queue holds 3" in four.error


def test_without_room_a_request_is_refused_at_the_end_of_its_headers():
    async def main():
        app = http_server("echo", Echo(), max_batch_size=1, max_queue_size=1)
        await app.startup()
        first = app.open(Head("POST", "/", [], len(BODY), None), app._clock())
        first.complete(BODY)
        full = app.open(Head("POST", "/", [], len(BODY), None), app._clock())
        await first
        await app.shutdown()
        return full.status, b"".join(full.buffers)

    status, body = asyncio.run(main())
    assert status == 503 and b"no room for 1 items: 1 of 1 wait (max_queue_size)" in body


def test_without_lifespan_the_first_request_starts_it_and_waits(ask):
    handler = Life()
    app = http_server("life", handler)
    a, b = run(app, ask(app, b'{"data":[1]}'), ask(app, b'{"data":[2]}'), serve=False)
    assert (a.json["data"], b.json["data"]) == ([1], [2])


def test_who_waited_for_the_start_with_nothing_for_the_model_is_answered_too(ask):
    app = http_server("life", Life())
    empty, wrong = run(app, ask(app, b'{"data":[]}'), ask(app, b"[]"), serve=False)
    assert (empty.json["data"], wrong.status) == ([], 400)


def test_a_client_that_leaves_mid_body_is_forgotten():
    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b'{"da', "more_body": True}]

        async def receive():
            return messages.pop()

        async def send(message):
            raise AssertionError("nobody is there")

        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        await asyncio.wait_for(app.shutdown(), 5)

    asyncio.run(main())


def test_those_who_left_before_the_start_are_no_reason_to_refuse_others():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, max_queue_size=2, max_batch_size=1, executor="thread")
        for _ in range(3):
            exchange = app.open(Head("POST", "/", [], len(BODY), None), app._clock())
            exchange.write(BODY)
            exchange.complete()
            exchange.cancel("the client left")
        waiting = asyncio.gather(*(ask_direct(app, BODY) for _ in range(3)))
        await asyncio.sleep(0)
        handler.go.set()
        statuses = sorted(answer.status for answer in await asyncio.wait_for(waiting, 5))
        await app.shutdown()
        return statuses

    assert asyncio.run(main()) == [200, 200, 503]
