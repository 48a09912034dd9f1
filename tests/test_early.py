"""Requests that are there before the handler is: read as it says once it is there, answered where it never is."""

import asyncio

import orjson
import pytest
from kit.services import BODY, Life

from virtex import http_server
from virtex.errors import RequestError
from virtex.service.seam import Head


class Sees(Life):
    """Takes images; its setup() waits, and fails where it is told to."""

    accepts = ("image/*",)

    def __init__(self, fails):
        super().__init__()
        self.go.clear()
        self.fails = fails

    def setup(self, worker):
        super().setup(worker)
        if self.fails:
            raise LookupError("no weights")

    def process_response(self, item):
        return type(item).__name__


def started_by(handler, asks):
    """What came of requests to a service whose first one started it: asks(app, go), go() lets setup() end."""

    async def main():
        app = http_server("sees", handler, executor="thread")

        async def go():
            handler.go.set()
            await asyncio.wait([app.model.starting])

        try:
            return await asyncio.wait_for(asks(app, go), 20)
        finally:
            await app.shutdown()

    return asyncio.run(main())


def opened(app, kind):
    return app.open(Head("POST", "/", [(b"content-type", kind)], None, None), app._clock())


async def completed(exchange, body=BODY):
    exchange.write(body)
    response = exchange.complete()
    response = await asyncio.wait_for(response, 5) if response is exchange else response
    return response.status, orjson.loads(b"".join(response.buffers))


@pytest.mark.parametrize(
    ("kind", "status", "data"), [(b"image/png", 200, ["bytes"]), (b"", 200, ["int"]), (b"video/mp4", 415, [])]
)
def test_a_body_that_ends_when_the_handler_is_there_is_read_as_that_says(kind, status, data):
    async def asks(app, go):
        arriving = opened(app, kind)
        await go()
        return await completed(arriving)

    got, said = started_by(Sees(fails=False), asks)
    assert (got, said["data"]) == (status, data)


def test_a_body_that_ends_when_the_start_has_failed_is_answered_at_once():
    async def asks(app, go):
        arriving = opened(app, b"image/png")
        await go()
        return await completed(arriving)

    status, said = started_by(Sees(fails=True), asks)
    assert status == 503 and said["error"] == "the handler's setup failed: LookupError"


def test_what_a_program_asks_waits_for_the_start():
    async def asks(app, go):
        app.begin()
        asked = asyncio.create_task(app.submit([1, "a"]))
        await asyncio.sleep(0)
        await go()
        return await asked

    assert started_by(Sees(fails=False), asks) == ["int", "str"]


def test_a_start_that_fails_is_told_each_by_an_error_of_its_own():
    async def asks(app, go):
        app.begin()
        asked = [asyncio.create_task(app.submit([1])) for _ in range(2)]
        await asyncio.sleep(0)
        await go()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second = started_by(Sees(fails=True), asks)
    assert type(first) is type(second) is RequestError and first.status == second.status == 503
    assert first is not second
