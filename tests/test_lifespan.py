"""The lifespan of an ASGI application."""

from __future__ import annotations

import logging

import pytest

from virtex.wire.lifespan import Lifespan


def run(event_loop, app, state=None, mode="auto"):
    lifespan = Lifespan(app, {} if state is None else state, mode)

    async def both():
        await lifespan.startup()
        await lifespan.shutdown()

    event_loop.run_until_complete(both())


def test_lifespan_starts_and_stops_with_the_state_of_the_requests(event_loop):
    seen, state = [], {}

    async def app(scope, receive, send):
        scope["state"]["model"] = 1
        seen.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        seen.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    run(event_loop, app, state)
    assert seen == ["lifespan.startup", "lifespan.shutdown"] and state == {"model": 1}


def test_startup_that_fails_raises_with_the_applications_message(event_loop):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no model"})

    with pytest.raises(RuntimeError, match="no model"):
        run(event_loop, app)


def test_application_without_lifespan_is_served(event_loop):
    async def app(scope, receive, send):
        raise NotImplementedError(scope["type"])

    run(event_loop, app)
    run(event_loop, app, mode="off")
    with pytest.raises(RuntimeError, match="NotImplementedError"):
        run(event_loop, app, mode="on")


def test_shutdown_that_fails_is_logged(event_loop, caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "stuck"})

    with caplog.at_level(logging.ERROR):
        run(event_loop, app)
    assert "stuck" in caplog.text


def test_what_the_application_raises_in_its_shutdown_is_logged(event_loop, caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError("the disk is full")

    run(event_loop, app)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "lifespan raised" in record.message
    assert "the disk is full" in str(record.exc_info[1])
