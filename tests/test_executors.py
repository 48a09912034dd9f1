import asyncio
import threading

import pytest
from kit.asks import Echo
from test_ring import Recorder

from virtex.batch.batcher import Batcher
from virtex.batch.executors import AsyncExecutor, InlineExecutor, ThreadExecutor
from virtex.batch.steps import Steps


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("method", ["process_request", "run_inference", "process_response"])
def test_whatever_an_inline_handler_raises_fails_its_batch_and_ends_nothing(loop, method, error):
    class Exits(Echo):
        pass

    def leave(self, given):
        if "a" in given:
            raise error
        return given

    setattr(Exits, method, leave)
    batcher = Batcher(loop, 4, 0, 16, loop.clock)
    batcher.run_with(InlineExecutor(), Steps(Exits(), loop.clock))
    first, second = Recorder("a"), Recorder("b")
    for ticket in (first, second):
        batcher.admit(ticket, loop.now)
        loop.settle()
    assert type(error).__name__ in str(first.answers[0][1])
    assert second.answers == [(["b"], None)]


def test_control_c_in_an_inline_handler_ends_the_program_once_its_requests_are_answered(loop):
    class Interrupted(Echo):
        def run_inference(self, model_input):
            raise KeyboardInterrupt

    batcher = Batcher(loop, 4, 0, 16, loop.clock)
    batcher.run_with(InlineExecutor(), Steps(Interrupted(), loop.clock))
    ticket = Recorder("a")
    batcher.admit(ticket, loop.now)
    with pytest.raises(KeyboardInterrupt):
        loop.settle()
    assert "KeyboardInterrupt" in str(ticket.answers[0][1])


class Future(Recorder):
    def __init__(self, items):
        super().__init__(items)
        self.came = asyncio.get_running_loop().create_future()

    def deliver(self, rows, error):
        super().deliver(rows, error)
        self.came.set_result(error or rows)


async def answers_of(executor, handler, *requests):
    loop = asyncio.get_running_loop()
    batcher = Batcher(loop, 8, 0, 64)
    batcher.run_with(executor, Steps(handler))
    futures = [Future(items) for items in requests]
    for future in futures:
        batcher.admit(future, 0)
    return await asyncio.wait_for(asyncio.gather(*(future.came for future in futures)), 10)


def test_a_thread_runs_batches_on_one_thread_of_its_own():
    class Where(Echo):
        def run_inference(self, model_input):
            return [threading.current_thread().name] * len(model_input)

    async def main():
        executor = ThreadExecutor(asyncio.get_running_loop(), "model")
        try:
            return await answers_of(executor, Where(), "a", "bc")
        finally:
            executor.stop()

    assert asyncio.run(main()) == [["model"], ["model", "model"]]


@pytest.mark.parametrize("left", ["bcd", "bd"], ids=["all of them", "some"])
def test_who_left_while_a_full_batch_waited_for_the_thread_costs_no_inference(left):
    go = threading.Event()

    class Holds(Echo):
        calls = []

        def run_inference(self, model_input):
            self.calls.append("".join(model_input))
            go.wait(10)
            return model_input

    async def main():
        loop = asyncio.get_running_loop()
        executor = ThreadExecutor(loop, "model")
        batcher = Batcher(loop, 3, 0, 64)
        batcher.run_with(executor, Steps(Holds()))
        futures = {items: Future(items) for items in ("a", "b", "c", "d", "e")}
        try:
            batcher.admit(futures["a"], 0)
            await asyncio.sleep(0)  # cut
            for items in "bcde":
                batcher.admit(futures[items], 0)
            await asyncio.sleep(0)
            assert batcher.waiting == 1
            assert [items for items in "abcde" if batcher.is_behind(futures[items])] == list("bcde")
            for items in left:
                futures[items].resolved = True
                batcher.cancel(futures[items], "the client left")
            go.set()
            stay = [future.came for items, future in futures.items() if items not in left]
            return await asyncio.wait_for(asyncio.gather(*stay), 10)
        finally:
            go.set()
            executor.stop()

    rows = asyncio.run(main())
    assert Holds.calls == ["a", *(["c"] if left == "bd" else []), "e"]
    assert rows == [[items] for items in "abcde" if items not in left]


def test_a_thread_survives_whatever_its_jobs_raise(caplog):
    class Exits(Echo):
        def run_inference(self, model_input):
            raise SystemExit("not the thread's to obey")

    async def main():
        executor = ThreadExecutor(asyncio.get_running_loop(), "model")
        try:
            (error,) = await answers_of(executor, Exits(), "a")
            with pytest.raises(RuntimeError, match="SystemExit: 7"):
                await executor.call(lambda: exec("raise SystemExit(7)"))
            with pytest.raises(ZeroDivisionError):
                await executor.call(lambda: 1 / 0)
            return error, await answers_of(executor, Echo(), "a")
        finally:
            executor.stop()

    error, after = asyncio.run(main())
    assert "SystemExit" in str(error)
    assert after == [["a"]]


def test_an_async_handler_runs_one_batch_at_a_time_on_the_loop():
    class Slow(Echo):
        running = most = 0

        async def run_inference(self, model_input):
            self.running += 1
            self.most = max(self.most, self.running)
            for _ in range(5):
                await asyncio.sleep(0)
            self.running -= 1
            return model_input

    async def main():
        handler = Slow()
        rows = await answers_of(AsyncExecutor(asyncio.get_running_loop()), handler, "abcdefgh", "ijklmnop", "q")
        return handler.most, rows

    assert asyncio.run(main()) == (1, [list("abcdefgh"), list("ijklmnop"), ["q"]])


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), SystemExit(3)], ids=repr)
def test_an_async_handler_that_is_cancelled_or_exits_fails_its_batch_only(raised):
    class Cancelled(Echo):
        async def run_inference(self, model_input):
            if model_input[0] == "x":
                raise raised
            return model_input

    async def main():
        executor = AsyncExecutor(asyncio.get_running_loop())
        (error,) = await answers_of(executor, Cancelled(), "x")
        return error, await answers_of(executor, Cancelled(), "a")

    error, after = asyncio.run(main())
    assert type(raised).__name__ in str(error)
    assert after == [["a"]]
