"""Whoever waits too long is answered."""

import asyncio
import gc
import re
import time
import weakref
from random import Random

import pytest
from kit.asks import Echo, ask_asgi, ask_direct
from kit.services import BODY, Gate, Hand, Life, Watching

from virtex import Limits, http_server
from virtex.service.deadlines import Deadlines
from virtex.service.exchange import Exchange
from virtex.service.seam import NEVER, Head


def test_an_answer_that_comes_too_late_is_a_504_and_the_queue_goes_on():
    async def main():
        gate = Gate()
        watching = Watching()
        app = http_server("gate", gate, limits=Limits(answer_seconds=0.05), observer=watching)
        clock = Hand(app)
        await app.startup()
        asked = asyncio.ensure_future(ask_direct(app, b'{"data":[1, 2]}'))
        await gate.entered.wait()
        clock.add(0.051)
        late = await asyncio.wait_for(asked, 60)
        gate.go.set()
        after = await asyncio.wait_for(ask_direct(app, b'{"data":[3]}'), 60)
        await app.shutdown()
        return late, after, watching

    late, after, watching = asyncio.run(main())
    assert late.status == 504 and re.fullmatch(r"no answer within 0.05 s: .* s with the model", late.error)
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
        late = await asyncio.wait_for(old, 60)
        in_time = young.done()
        gate.go.set()
        answered = await asyncio.wait_for(young, 60)
        await app.shutdown()
        return late.status, in_time, answered.status

    assert asyncio.run(main()) == (504, False, 200)


def test_a_request_that_started_the_service_is_told_when_that_takes_too_long():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread", limits=Limits(answer_seconds=0.05))
        late = await asyncio.wait_for(ask_direct(app, BODY), 60)
        handler.go.set()
        await app.shutdown()
        return late

    late = asyncio.run(main())
    assert (late.status, late.error) == (503, "still starting after 0.05 s")


class Waits:
    has_own_time = False
    listed = 0

    def __init__(self, deadline):
        self.deadline = deadline
        self.resolved = False

    def expire(self, now):
        assert now >= self.deadline
        self.resolved = True


class Cutter:
    """What Deadlines knows of a batcher."""

    due = NEVER


def waiting_for(loop, *seconds):
    return [Waits(loop.now + round(each * 1e9)) for each in seconds]


def test_one_timer_does_for_all_the_soonest_deadline_first_and_none_runs_while_nothing_waits(loop):
    waiting = waiting_for(loop, 7, 5, 6)
    deadlines = Deadlines(loop, loop.clock, Cutter(), lambda: waiting)
    for each in waiting:
        deadlines.watch(each)
        assert loop.timers == 1
    seen = []
    for _ in range(9):
        loop.advance(1)
        seen.append([each.resolved for each in waiting].count(True))
    assert seen == [0, 0, 0, 0, 0, 1, 2, 3, 3]
    assert loop.timers == 0


def test_whoever_is_answered_in_time_does_not_expire_and_nothing_is_watched_after_the_end(loop):
    (answered, left) = waiting_for(loop, 5, 5)
    deadlines = Deadlines(loop, loop.clock, Cutter(), list)
    deadlines.watch(answered)
    loop.advance(6)
    assert not answered.resolved and loop.timers == 0
    deadlines.add(left)
    deadlines.watch(*waiting_for(loop, 5))
    deadlines.stop()
    assert loop.timers == 0 and deadlines.unlisted == NEVER
    loop.advance(6)
    assert not left.resolved
    kept = weakref.ref(left)
    del left
    assert kept() is None


def test_a_timer_that_ends_does_not_begin_again_for_whoever_was_answered(loop):
    deadlines = Deadlines(loop, loop.clock, Cutter(), list)
    late, answered = waiting_for(loop, 3, 5)
    for each in (answered, late):
        deadlines.add(each)
    answered.resolved = True
    deadlines.forget(answered.listed)
    deadlines.expire(late.deadline)  # to the nanosecond, as the batcher may ask
    assert late.resolved and loop.timers == 0


def test_some_that_are_due_at_the_same_time_may_be_in_order_already(loop):
    waiting = waiting_for(loop, 1, *[5] * 9)
    deadlines = Deadlines(loop, loop.clock, Cutter(), lambda: waiting)
    deadlines.watch(waiting[0])
    loop.advance(2)
    (own,) = waiting_for(loop, 3)
    deadlines.add(own)
    loop.advance(4)
    assert own.resolved and all(each.resolved for each in waiting)


def test_who_is_in_order_already_and_waits_for_less_by_now_expires_then(loop):
    deadlines = Deadlines(loop, loop.clock, Cutter(), list)
    early, other = waiting_for(loop, 9, 6)
    for each in (early, other):
        deadlines.add(each)
    (early.deadline,) = [each.deadline for each in waiting_for(loop, 3)]
    deadlines.add(early)
    loop.advance(4)
    assert early.resolved and not other.resolved
    loop.advance(9)
    assert other.resolved and loop.timers == 0


@pytest.mark.parametrize("seed", range(20))
def test_times_of_their_own_mix_with_the_services_and_each_expires_at_its_own(loop, seed):
    random = Random(seed)
    waiting, passes = [], []
    cutter = Cutter()

    def those():
        passes.append(loop.now)
        return [each for each in waiting if not each.resolved]

    deadlines = Deadlines(loop, loop.clock, cutter, those)
    began = loop.now
    for _ in range(500):
        loop.advance(random.random() / 100)
        if random.random() < 0.5:
            (one,) = waiting_for(loop, 1.0)  # the service's
            if one.deadline < deadlines.unlisted:
                deadlines.watch(one)
        else:
            (one,) = waiting_for(loop, random.random())
            deadlines.add(one)
        waiting.append(one)
        if random.random() < 0.7:  # it is answered in time
            random.choice(waiting).resolved = True
        late = [each for each in waiting if not each.resolved and each.deadline < loop.now - 2_000_000]
        assert not late and loop.timers <= 1
        assert cutter.due >= loop.now - 2_000_000
    loop.advance(2)
    assert all(each.resolved for each in waiting) and loop.timers == 0
    assert len(passes) <= 2 + (loop.now - began) / 10**9  # one pass a second, which is the service's time


def test_those_that_were_answered_are_not_kept_until_their_time_is_over(loop):
    deadlines = Deadlines(loop, loop.clock, Cutter(), list)
    kept = []
    for _ in range(1000):
        (one,) = waiting_for(loop, 60)
        deadlines.add(one)
        one.resolved = True
        kept.append(weakref.ref(one))
    del one
    assert sum(each() is not None for each in kept) < 100


def test_many_that_wait_are_not_gone_through_for_each_that_comes(loop):
    class Counts(Waits):
        looks = 0

        @property
        def resolved(self):
            Counts.looks += 1
            return False

        @resolved.setter
        def resolved(self, value): ...

    deadlines = Deadlines(loop, loop.clock, Cutter(), list)
    for i in range(2000):
        deadlines.add(Counts(loop.now + 60 * 10**9 + i))
    assert Counts.looks < 3 * 2000


# ---- a time of its own


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("is_early", [False, True])
def test_who_has_its_answer_or_has_left_is_not_kept_until_the_time_is_over_that_it_gave(leaves, is_early):
    async def main():
        gate = Gate()
        app = http_server("gate", gate)
        before = exchanges()
        if not is_early:
            await app.startup()
        asked = app.open(Head("POST", "/", asking(20_000), None, None), app._clock())
        asked.write(b'{"data":["an answer"]}')
        asked.complete()
        await asyncio.wait_for(gate.entered.wait(), 60)
        if leaves:
            asked.cancel("left")
        gate.go.set()
        if not leaves:
            await asyncio.wait_for(asked, 60)
        del asked
        while app.model.batcher.running_since:
            await asyncio.sleep(0)
        kept = exchanges() - before
        await app.shutdown()
        return kept

    assert asyncio.run(main()) == set()


def test_what_spans_two_batches_is_put_in_order_once(loop):
    (one,) = waiting_for(loop, 5)
    deadlines = Deadlines(loop, loop.clock, Cutter(), lambda: [one, one])
    deadlines.watch(one)
    one.deadline += 10**9
    loop.advance(5.5)
    assert one.listed and not one.resolved
    deadlines.forget(one.listed)
    loop.advance(2)
    assert not one.resolved


def exchanges():
    gc.collect()
    return {id(one) for one in gc.get_objects() if type(one) is Exchange}


def asking(ms, *headers):
    return [(b"x-request-timeout-ms", b"%d" % ms), *headers]


@pytest.mark.parametrize("ask", [ask_direct, ask_asgi])
def test_a_request_may_ask_for_less_time_but_not_for_more(ask):
    async def main():
        gate = Gate()
        app = http_server("gate", gate, limits=Limits(answer_seconds=0.2))
        await app.startup()
        since = time.perf_counter()
        less, more = await asyncio.wait_for(
            asyncio.gather(*(ask(app, b'{"data":[1]}', headers=asking(ms)) for ms in (30, 999_999_999))), 5
        )
        took = time.perf_counter() - since
        gate.go.set()
        await app.shutdown()
        return less, more, took

    less, more, took = asyncio.run(main())
    assert less.status == more.status == 504 and took > 0.19
    assert less.error.startswith("no answer within 0.03 s: ") and more.error.startswith("no answer within 0.2 s: ")


@pytest.mark.parametrize("ask", [ask_direct, ask_asgi])
@pytest.mark.parametrize("sent", [b"0", b"", b"-1", b"1.5", b"1e3", b" 5", b"05", b"1000000000", b"\xb2", b"x" * 300])
def test_a_time_that_is_none_is_a_400(ask, sent):
    async def main():
        app = http_server("echo", Echo)
        return await ask(app, b'{"data":[1]}', headers=[(b"x-request-timeout-ms", sent)])

    answer = asyncio.run(main())
    assert answer.status == 400 and len(answer.body) < 400
    assert answer.error.startswith("X-Request-Timeout-Ms ")
    assert answer.error.endswith("expected whole ms from 1 to 999999999")


def test_what_is_late_before_the_cut_costs_no_inference_and_is_told_where_its_time_went():
    async def main():
        gate = Gate()
        app = http_server("gate", gate, max_time_on_queue=0)
        await app.startup()
        first = asyncio.create_task(ask_direct(app, b'{"data":[1]}'))
        await gate.entered.wait()
        late = await asyncio.wait_for(ask_direct(app, b'{"data":[2, 3]}', headers=asking(20)), 60)
        free = app.model.batcher.waiting
        gate.go.set()
        await first
        await app.shutdown()
        return late, free, gate.calls

    late, free, calls = asyncio.run(main())
    assert late.status == 504 and re.search(r" s queued$", late.error)
    assert free == 0 and calls == [[1]]


def test_what_is_late_when_the_loop_comes_to_cut_costs_no_inference():
    class Counts(Echo):
        sizes = []

        def run_inference(self, model_input):
            self.sizes.append(len(model_input))
            return model_input

    async def main():
        app = http_server("counts", Counts, max_time_on_queue=0)
        await app.startup()
        exchange = app.open(Head("POST", "/", asking(10), None, None), app._clock())
        exchange.write(b'{"data":[1]}')
        exchange.complete()
        while app._clock() < exchange.deadline:
            pass  # something else holds the loop
        answer = await asyncio.wait_for(exchange, 60)
        await app.shutdown()
        return answer

    assert asyncio.run(main()).status == 504
    assert Counts.sizes == []


def test_a_body_that_is_there_too_late_is_not_admitted():
    async def main():
        gate = Gate()
        app = http_server("gate", gate)
        await app.startup()
        head = Head("POST", "/", asking(10), None, None)
        exchange = app.open(head, app._clock() - 15_000_000)
        exchange.write(b'{"data":[1]}')
        answer = exchange.complete()
        await app.shutdown()
        return answer, gate.calls

    answer, calls = asyncio.run(main())
    assert answer.status == 504 and b" s until it was queued" in answer.buffers[0] and calls == []


def test_inline_a_504_comes_when_the_model_is_back_and_no_late_item_is_run_for_it():
    class Slow(Echo):
        sizes = []

        def run_inference(self, model_input):
            self.sizes.append(len(model_input))
            clock.add(0.03)
            return model_input

    async def main():
        nonlocal clock
        app = http_server("slow", Slow, max_batch_size=2, max_time_on_queue=0)
        clock = Hand(app)
        await app.startup()
        asks = [ask_direct(app, b'{"data":[1]}', headers=asking(ms)) for ms in (20, 10_000, 20, 20)]
        answers = await asyncio.wait_for(asyncio.gather(*asks), 60)
        await app.shutdown()
        return [answer.status for answer in answers]

    clock = None
    assert asyncio.run(main()) == [504, 200, 504, 504]
    assert Slow.sizes == [2]
