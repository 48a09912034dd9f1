"""How a worker leaves: why and when, what those find whom it had accepted, and what ends it."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
from types import SimpleNamespace

import pytest
import uvloop
from gunicorn.arbiter import Arbiter
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
from virtex.workers.scoreboard import DRAINING, LOADING, READY, RESTARTING, Scoreboard
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

        async def stop(self, *told):
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


class Noted(Listener):
    """Notes how it is told to stop; what it does then is of the test."""

    def __init__(self, meanwhile=None):
        super().__init__(http_server("echo", Echo))
        self.told = []
        self.meanwhile = meanwhile

    async def stop(self, *told):
        self.told.append(told)
        if self.meanwhile is not None:
            await self.meanwhile()

    async def close(self):
        self.told.append("close")

    async def drain(self):
        self.told.append("drain")


class NotedPort(GrpcPort):
    def __init__(self):
        self.told = []

    async def stop(self, *told):
        self.told.append(told)


@pytest.mark.parametrize(
    ("workers", "how", "graceful", "expected"),
    [
        (1, "told", 30, (29.0, 7.0, False)),
        (2, "told", 30, (29.0, 0.0, True)),  # a sibling has who comes
        (1, "not ready", 30, (29.0, 0.0, False)),  # nobody comes
        (2, "not ready", 30, (29.0, 0.0, False)),
        (1, "quick", 30, (0.5, 0.0, False)),
        (2, "quick", 30, (0.5, 0.0, False)),
        (1, "told", 1, (0.5, 7.0, False)),
    ],
)
def test_how_long_it_answers_on_and_whom_it_leaves_to_others(
    run, monkeypatch, caplog, workers, how, graceful, expected
):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", "7")
    armed = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, exit: armed.append((seconds, exit)))  # noqa: A006
    caplog.set_level(logging.INFO)

    async def main():
        going, scoreboard, worker = leaving(workers, graceful_timeout=graceful)
        (going.on_quit if how == "quick" else going.on_term)()
        going._hurried.clear()  # nor does it end what has just begun
        listener, port = Noted(), NotedPort()
        await going.drain(listener, port, how != "not ready")
        assert not worker.alive and scoreboard.entry(0).state == DRAINING
        assert port.told == [expected]
        return listener.told

    assert run(main()) == [expected, "drain"]
    assert armed == [(graceful + 1.0, True)]  # beyond it, whatever still runs is ended
    (said,) = [record for record in caplog.records if getattr(record, "event", "") == "worker_drain"]
    assert (said.connections, said.seconds, said.by_signal) == (0, expected[0], True)


def test_where_nothing_can_be_traced_it_leaves_all_the_same(monkeypatch):
    def fails(*args, **kw):
        raise ValueError("stderr has no file")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", fails)
    leaving(1)[0].arm_watchdog()


def test_what_goes_wrong_as_it_stops_is_logged_and_the_application_shut_down(run, caplog):
    async def fails():
        raise RuntimeError("a socket")

    async def main():
        listener = Noted(fails)
        await leaving(1)[0].drain(listener, GrpcPort())
        return listener

    listener = run(main())
    assert "shutting the application down: RuntimeError('a socket')" in caplog.text
    assert listener.told[-1] == "drain"


def test_whoever_hurries_it_waits_for_nothing_that_does_not_end(run, monkeypatch):
    monkeypatch.setattr("virtex.workers.leaving.QUICK_SECONDS", 0.01)

    async def main():
        going, _, _ = leaving(1)
        listener, port = Noted(asyncio.Event().wait), NotedPort()
        draining = asyncio.ensure_future(going.drain(listener, port))
        await eventually(lambda: listener.told)
        going.on_quit()
        await draining
        assert listener.told[-1] == "close" and port.told[-1] == (0,)
        assert {task for task in asyncio.all_tasks() if "Event.wait" in repr(task.get_coro())} == set()

    run(main())


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


def test_a_delay_that_is_set_to_nothing_is_none(monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", "")
    settings.check(Config())
    assert settings.drain_delay() == 0


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


@pytest.mark.parametrize("signal", ["on_term", "on_quit"])
def test_a_signal_begins_it_however_often_it_comes(signal):
    told = []
    going, _, _ = leaving(1, worker_int=lambda worker: told.append(worker))
    for _ in range(3):
        getattr(going, signal)()
    assert going.begun.is_set() and going.is_told and going.is_quick is (signal == "on_quit")
    assert len(told) == (signal == "on_quit")


def not_yet_proven(**changed):
    """One worker, beside one of newer code that was never ready."""
    going, scoreboard, worker = leaving(1, **changed)
    scoreboard.own(scoreboard.take(2, 2), 2)
    return going, scoreboard, worker


@pytest.mark.parametrize("why", ["told at once", "gunicorn says so", "the service stops", "the master is gone"])
def test_it_waits_for_nobody_where(run, why):
    going, scoreboard, worker = not_yet_proven()
    if why == "told at once":
        going.on_quit()
    elif why == "gunicorn says so":
        worker.alive = False
    elif why == "the service stops":
        scoreboard.mark_stop()
    else:
        worker.ppid += 1
    run(asyncio.wait_for(going.wait_for_successor(), 0.05))


def test_the_log_says_that_it_serves_on(run, caplog):
    caplog.set_level(logging.INFO)
    going, _, _ = not_yet_proven(max_requests=5)

    async def main():
        going.look(5)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(going.wait_for_successor(), 0.01)

    run(main())
    assert caplog.messages == [
        "max_requests reached: 5 requests served; not acted on until a newer worker is ready",
        "worker 0 serves on until a newer worker is ready",
    ]
    caplog.clear()
    run(leaving(1)[0].wait_for_successor())
    assert not caplog.messages


# --- what could not start ------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Its time is that for which somebody slept."""
    clock = SimpleNamespace(now=0.0, ends=lambda: None)

    def sleep(seconds):
        clock.now += seconds
        clock.ends()

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr("virtex.workers.leaving.time", fake)
    return clock


def code_of(going):
    with pytest.raises(SystemExit) as caught:
        going.after_failure()
    return caught.value.code


def test_what_never_worked_ends_the_service_once(clock):
    cfg = Config()
    worker = SimpleNamespace(alive=True, ppid=os.getppid(), cfg=cfg, log=logging.getLogger("virtex"), max_requests=9)
    scoreboard = Scoreboard()
    going = Leaving(worker, scoreboard.take(1), scoreboard, Share(scoreboard, 0))
    assert [code_of(going), code_of(going)] == [Arbiter.WORKER_BOOT_ERROR, 1] and not clock.now


def test_what_worked_before_is_tried_again_ever_later(clock, caplog):
    going, _, _ = leaving(1)
    waited = []
    for _ in range(7):
        clock.now = 0.0
        assert code_of(going) == 1
        waited.append(round(clock.now))
    assert waited == [2, 4, 8, 16, 32, 60, 60] and "worker 0 did not start; another try in 2 s" in caplog.text
    going, _, _ = not_yet_proven()
    assert code_of(going) == 1 and "worker 0 did not start; those from before the reload serve on" in caplog.text


@pytest.mark.parametrize("why", ["told to", "the master is gone"])
def test_it_does_not_stay_for_its_pause_where(clock, why):
    going, _, worker = leaving(1)

    def ends():
        if why == "told to":
            worker.alive = False
        else:
            worker.ppid = -1

    clock.ends = ends
    assert code_of(going) == 1 and clock.now < 1
