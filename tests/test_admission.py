"""Who is taken in and who is refused."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import BODY, Echo, Life

from virtex import Limits, RequestHandler, Tensor, TensorHandler, http_server
from virtex.errors import RequestError
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


class Gate(RequestHandler):
    """Its batches take as long as the test says."""

    def setup(self, worker):
        self.go = asyncio.Queue()

    async def run_inference(self, model_input):
        await self.go.get()
        return model_input

    def process_request(self, data):
        return data

    def process_response(self, item):
        return item


class Paced:
    """A service whose batches take 2 s by a clock of its own."""

    def __init__(self, **options):
        self.now = 10**12
        self.app = http_server("paced", Gate, max_batch_size=4, **options)
        self.app.options = replace(self.app.options, clock=lambda: self.now)

    async def __aenter__(self):
        await self.app.startup()
        for _ in range(20):
            await self.served(self.app.submit([1, 2, 3, 4]))
        return self

    async def __aexit__(self, *_):
        for _ in range(100):
            self.app.model._handler.go.put_nowait(None)
        await self.app.shutdown()

    async def served(self, *asked):
        tasks = [asyncio.ensure_future(one) for one in asked]
        while not all(task.done() for task in tasks):
            await self.turn()
            if self.app.model.batcher.running_since:
                self.now += 2 * 10**9
                self.app.model._handler.go.put_nowait(None)
            await self.turn()
        return [task.exception() or task.result() for task in tasks]

    async def turn(self):
        for _ in range(10):
            await asyncio.sleep(0)

    async def begin(self, *counts):
        """The first is running, the others wait."""
        tasks = []
        for count in counts:
            tasks.append(asyncio.ensure_future(self.app.submit([0] * count)))
            await self.turn()
        return tasks

    def open(self, ms=None):
        headers = [] if ms is None else [(b"x-request-timeout-ms", b"%d" % ms)]
        return self.app.open(Head("POST", "/", headers, len(BODY), None), self.now)


def test_who_would_wait_beyond_its_deadline_is_refused_at_the_end_of_its_headers(caplog):
    async def main():
        async with Paced() as paced:
            tasks = await paced.begin(4, 4)
            refused = paced.open(5000)  # others may fill the third batch, with 2 s
            for taken in (paced.open(7000), paced.open()):
                taken.cancel("seen")
            await paced.served(*tasks)
            idle = paced.open(1)  # whatever was predicted, somebody has to find out
            idle.cancel("seen")
            return refused

    refused = asyncio.run(main())
    error = b"".join(refused.buffers)
    assert refused.status == 503 and (b"retry-after", b"1") in refused.headers
    assert b"about 6 s behind what runs and 4 items that wait, and is wanted within 5 s (limits." in error
    assert [record.reason for record in caplog.records if hasattr(record, "reason")][-1] == "predicted"


def test_what_a_program_submits_and_a_body_of_many_items_are_refused_so_when_they_are_there():
    async def main():
        async with Paced() as paced:
            tasks = await paced.begin(4)
            found = []
            for items, timeout in (([1] * 2, 5), ([1] * 8, 5), ([1] * 40, None)):
                task = asyncio.ensure_future(paced.app.submit(items, timeout=timeout))
                await paced.turn()
                found.append(task.exception().dropped if task.done() else "")
                tasks += [] if task.done() else [task]
            await paced.served(*tasks)
            return found, paced.app.budget.held

    found, held = asyncio.run(main())
    assert (found, held) == (["", "predicted", ""], 0)


def test_a_service_that_has_measured_nothing_refuses_nobody_for_its_deadline():
    async def main():
        paced = Paced()
        await paced.app.startup()
        tasks = await paced.begin(4, 4, 4)
        taken = paced.open(1)
        taken.cancel("seen")
        await paced.served(*tasks)
        await paced.app.shutdown()

    asyncio.run(main())


def test_a_prediction_that_is_far_too_long_locks_nobody_out_for_long():
    """After a stall each request finds the queue idle or is refused; what is served brings the pace back."""

    async def main():
        async with Paced() as paced:
            taken = []
            for _ in range(10):  # an hour each
                task = asyncio.ensure_future(paced.app.submit([1] * 4))
                await paced.turn()
                paced.now += 3600 * 10**9
                paced.app.model._handler.go.put_nowait(None)
                with suppress(RequestError):
                    await task
            assert paced.app.model.batcher.pace.batch(4) > 60e9
            for _ in range(80):
                tasks = await paced.begin(4, 1)
                taken.append(not tasks[1].done())
                await paced.served(*tasks)
            return taken

    taken = asyncio.run(main())
    assert not taken[0] and all(taken[-20:])


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
