"""Who is taken in and who is refused."""

import asyncio
import json

import numpy as np
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import BODY, Echo, Life

from virtex import Limits, Tensor, TensorHandler, http_server
from virtex.service.seam import Head


class Arrays(Echo):
    def process_request(self, data: np.ndarray):
        return data


class Rows(TensorHandler):
    inputs = Tensor("float32", (1,))

    def run_inference(self, batch):
        return batch


KINDS = [Echo, Arrays, Rows]


def text(items):
    return b'{"data":%b}' % json.dumps(items).encode()


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_more_items_than_the_queue_holds_is_taken_and_others_meanwhile_are_503(ask, kind):
    """As in 0.1; lists, arrays and declared inputs alike."""
    app = http_server("echo", kind(), max_batch_size=2, max_queue_size=3)
    numbers = [[float(n)] for n in range(50)]
    large, one, next_large = run(
        app, ask(app, text(numbers)), ask(app, b'{"data":[[4.0]]}'), ask(app, text(numbers[:7]))
    )
    assert large.json["data"] == numbers
    assert (one.status, one.headers.get(b"retry-after")) == (503, b"1")
    assert "no room for 1 items: 50 of 3 wait (max_queue_size)" in one.error
    assert next_large.status == 503
    small, large = run(app, ask(app, b'{"data":[[4.0]]}'), ask(app, text(numbers)))
    assert (small.json["data"], large.json["data"]) == ([[4.0]], numbers)
    assert app.budget.held == 0


@pytest.mark.parametrize("bad", [30, 49])
def test_what_is_wrong_in_a_message_of_more_items_than_there_are_rows_is_its_422_and_frees_all(ask, bad):
    app = http_server("rows", Rows, max_batch_size=2, max_queue_size=3)
    numbers = [[float(n)] for n in range(50)]
    wrong, other = run(app, ask(app, text([*numbers[:bad], "no", *numbers[bad:]])), later(ask, app, text(numbers)))
    assert wrong.status == 422 and wrong.error.startswith(f"item {bad}: ") and wrong.json["index"] == bad
    assert other.json["data"] == numbers
    assert app.budget.held == 0 and not app.model.batcher.ring.size


async def later(ask, app, body):
    """When nothing waits any more."""
    while not app.model.admission.unsettled:
        await asyncio.sleep(0)
    while app.model.admission.unsettled:
        await asyncio.sleep(0)
    return await ask(app, body)


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
