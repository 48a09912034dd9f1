"""How a worker leaves: why and when, what those find whom it had accepted, and what ends it."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
from types import SimpleNamespace

import pytest
import uvloop
from gunicorn.config import Config
from kit.asks import Echo
from kit.servers import eventually, read_answer
from kit.workers import scoreboard_of

from virtex import Services, http_server
from virtex.service.register import REGISTER
from virtex.wire.listener import Listener, serve
from virtex.workers import settings
from virtex.workers.grpc_port import GrpcPort
from virtex.workers.leaving import Leaving
from virtex.workers.scoreboard import DRAINING, LOADING, READY, RESTARTING
from virtex.workers.share import Share


class Ends(Echo):
    def __init__(self):
        self.has_ended = False

    def teardown(self):
        self.has_ended = True


def bare(service):
    return service


def one_of_several(service):
    return Services(service, http_server("other", Echo))


def inside_another(service):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(0)  # middleware that waits for something
            await service(scope, receive, send)

    return app


@pytest.fixture
def run():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield lambda main: runner.run(asyncio.wait_for(main, 20))
    faulthandler.cancel_dump_traceback_later()  # the watchdog, as the worker does


def leaving(workers, **changed):
    """The first of so many workers that are ready."""
    cfg = Config()
    for name, value in changed.items():
        cfg.set(name, value)
    worker = SimpleNamespace(
        alive=True, ppid=os.getppid(), cfg=cfg, log=logging.getLogger("virtex"), max_requests=cfg.max_requests or 1000
    )
    scoreboard = scoreboard_of(*[0] * workers)
    return Leaving(worker, 0, scoreboard, Share(scoreboard, 0)), scoreboard, worker


async def accepted(app):
    """A listener, and a connection that it has taken."""
    listener = await serve(app, port=0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await eventually(lambda: listener.connections.members)
    return listener, reader, writer


async def check(reader, writer, path):
    """What a check finds, and whether its connection ends."""
    writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
    status, head, _ = await read_answer(reader)
    return status, b"connection: close" in head


# --- whom it had accepted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health/ready", "/v2/health/ready"])
@pytest.mark.parametrize("holds", [bare, one_of_several, inside_another])
@pytest.mark.parametrize(("workers", "status"), [(2, 200), (1, 503)], ids=["one of two", "the only one"])
def test_a_check_that_it_had_accepted_finds_it_ready_where_a_sibling_serves_on(run, workers, status, holds, path):
    async def main():
        handler = Ends()
        going, scoreboard, _ = leaving(workers)
        listener, reader, writer = await accepted(holds(http_server("echo", handler)))
        going.on_term()
        draining = asyncio.ensure_future(going.drain(listener, GrpcPort()))
        await eventually(lambda: listener.connections.draining)
        assert scoreboard.entry(0).state == DRAINING and not handler.has_ended
        seen = await check(reader, writer, path)
        writer.close()
        await draining
        assert handler.has_ended
        return seen

    assert run(main()) == (status, True)


def test_a_sibling_that_leaves_too_is_nobody_to_leave_a_check_to(run):
    async def main():
        going, scoreboard, _ = leaving(2)
        listener, reader, writer = await accepted(http_server("echo", Echo))
        scoreboard.mark_stop()  # both: the whole service stops
        going.on_term()
        draining = asyncio.ensure_future(going.drain(listener, GrpcPort()))
        await eventually(lambda: listener.connections.draining)
        seen = await check(reader, writer, "/health/ready")
        writer.close()
        await draining
        return seen

    assert run(main()) == (503, True)


def test_the_application_is_shut_down_when_the_last_call_of_grpc_is_answered_though_nobody_asks_by_http(run):
    class Busy(GrpcPort):
        def __init__(self):
            self.answered = asyncio.Event()

        async def stop(self, grace, delay=0.0):
            await self.answered.wait()

    async def main():
        app, port = http_server("echo", Echo), Busy()
        listener = await serve(app, port=0)
        going, _, _ = leaving(1)
        going.on_term()
        draining = asyncio.ensure_future(going.drain(listener, port))
        await eventually(lambda: listener._stopping is not None and listener._stopping.done())
        for _ in range(20):
            await asyncio.sleep(0)
        assert app.model.state == "draining"  # not closed: it takes what the call has yet to ask
        assert await app.submit([1]) == [1]
        port.answered.set()
        await draining
        return app.model.state

    assert run(main()) == "closed"


# --- when it is over ---------------------------------------------------------------------------------------------


def test_a_signal_to_leave_at_once_ends_a_delay_and_still_tears_down(run, monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", "3000")

    async def main():
        handler = Ends()
        listener = await serve(http_server("echo", handler), port=0)
        going, _, _ = leaving(1, graceful_timeout=3600)
        going.on_term()
        draining = asyncio.ensure_future(going.drain(listener, GrpcPort()))
        await eventually(lambda: listener.connections.closing)
        assert listener.sockets and not draining.done()
        going.on_quit()
        await draining
        return handler.has_ended

    assert run(main())


@pytest.mark.parametrize(("delay", "graceful"), [("29", 30), ("30", 30), ("1.5", 3)])
def test_a_delay_that_leaves_no_time_to_answer_who_came_last_is_refused(monkeypatch, delay, graceful):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", delay)
    cfg = Config()
    cfg.set("graceful_timeout", graceful)
    with pytest.raises(
        ValueError, match=rf"DRAIN_DELAY={delay}: expected 2 s less than graceful_timeout, .* {graceful} s"
    ):
        settings.check(cfg)
    cfg.set("graceful_timeout", 32)
    settings.check(cfg)


# --- why and when -------------------------------------------------------------------------------------------------


def test_it_leaves_when_it_has_served_its_number_and_says_so_once(run, caplog):
    async def main():
        going, scoreboard, _ = leaving(1, max_requests=5)
        going.look(4)
        assert not going.begun.is_set()
        caplog.set_level(logging.INFO)
        for _ in range(3):
            going.look(5)
        listener = Listener(http_server("echo", Echo))
        await listener.begin()
        await asyncio.wait_for(going.wait_for_successor(), 1)
        await going.drain(listener, GrpcPort())
        return going.begun.is_set(), scoreboard.entry(0).state

    assert run(main()) == (True, RESTARTING)  # gunicorn replaces it
    assert caplog.text.count("max_requests reached: 5 requests served") == 1


@pytest.mark.parametrize("why", ["its master is gone", "its device is gone", "a file has changed"])
def test_it_leaves_because(run, caplog, monkeypatch, why):
    caplog.set_level(logging.INFO)
    going, _, worker = leaving(1)
    if why == "its master is gone":
        worker.ppid += 1
    elif why == "its device is gone":
        monkeypatch.setattr(REGISTER, "gone", "service 'x': its device is gone")
    else:
        worker.alive = False
    going.look(0)
    assert going.begun.is_set()
    said = {
        "its master is gone": ["the master is gone: stopping"],
        "its device is gone": ["service 'x': its device is gone"],
    }
    assert [record.message for record in caplog.records] == said.get(why, [])


def test_it_serves_on_until_a_worker_of_the_new_code_is_ready(run):
    async def main():
        going, scoreboard, _ = leaving(1)
        newer = scoreboard.take(2, 2)
        scoreboard.own(newer, 2)
        assert scoreboard.entry(newer).state == LOADING
        going.on_term()
        waiting = asyncio.ensure_future(going.wait_for_successor())
        await asyncio.sleep(0)
        going.on_term()  # gunicorn repeats it
        await asyncio.sleep(0)
        assert not waiting.done()
        scoreboard.set_state(newer, READY)
        await waiting

    run(main())
