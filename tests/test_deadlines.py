"""Whoever waits too long is answered."""

import asyncio

from kit.asks import ask_direct
from kit.services import BODY, Gate, Life, Watching

from virtex import Limits, http_server
from virtex.service.deadlines import Deadlines
from virtex.service.seam import Head


def test_an_answer_that_comes_too_late_is_a_504_and_the_queue_goes_on():
    async def main():
        gate = Gate()
        watching = Watching()
        app = http_server("gate", gate, limits=Limits(answer_seconds=0.05), observer=watching)
        await app.startup()
        late = await asyncio.wait_for(ask_direct(app, b'{"data":[1, 2]}'), 5)
        gate.go.set()
        after = await asyncio.wait_for(ask_direct(app, b'{"data":[3]}'), 5)
        await app.shutdown()
        return late, after, watching

    late, after, watching = asyncio.run(main())
    assert (late.status, late.error) == (504, "no answer within 0.05 s")
    assert after.json["data"] == [3]
    assert watching.drops == [("deadline passed", 2)]
    assert watching.requests == [(504, 2), (200, 1)]


def test_the_time_for_an_answer_counts_from_the_headers_not_from_the_bodys_end():
    async def main():
        gate = Gate()
        app = http_server("gate", gate, limits=Limits(answer_seconds=30))
        await app.startup()
        now = app._clock()
        young = app.open(Head("POST", "/", [], None, None), now)
        old = app.open(Head("POST", "/", [], None, None), now - 29_950_000_000)  # its body took all but 50 ms
        for exchange in (young, old):
            exchange.write(b'{"data":[1]}')
            exchange.complete()
        late = await asyncio.wait_for(old, 5)
        in_time = young.done()
        gate.go.set()
        answered = await asyncio.wait_for(young, 5)
        await app.shutdown()
        return late.status, in_time, answered.status

    assert asyncio.run(main()) == (504, False, 200)


def test_a_request_that_started_the_service_is_told_when_that_takes_too_long():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread", limits=Limits(answer_seconds=0.05))
        late = await asyncio.wait_for(ask_direct(app, BODY), 5)
        handler.go.set()
        await app.shutdown()
        return late

    late = asyncio.run(main())
    assert (late.status, late.error) == (503, "still starting after 0.05 s")


class Waits:
    def __init__(self, begun):
        self.begun = begun
        self.resolved = False

    def expire(self):
        self.resolved = True


def test_one_timer_does_for_all_the_soonest_deadline_first_and_none_runs_while_nothing_waits(loop):
    waiting = [Waits(loop.now + 2 * 10**9), Waits(loop.now), Waits(loop.now + 10**9)]
    deadlines = Deadlines(loop, loop.clock, 5.0, lambda: [each for each in waiting if not each.resolved])
    for each in waiting:
        deadlines.watch(each.begun)
        assert loop.timers == 1
    seen = []
    for _ in range(9):
        loop.advance(1)
        seen.append([each.resolved for each in waiting].count(True))
    assert seen == [0, 0, 0, 0, 0, 1, 2, 3, 3]
    assert loop.timers == 0


def test_whoever_is_answered_in_time_does_not_expire_and_nothing_is_watched_after_the_end(loop):
    waiting = [Waits(loop.now)]
    deadlines = Deadlines(loop, loop.clock, 5.0, list)
    deadlines.watch(waiting[0].begun)
    loop.advance(6)
    assert not waiting[0].resolved and loop.timers == 0
    deadlines.watch(loop.now)
    deadlines.stop()
    assert loop.timers == 0
