"""Batches ahead of the first request: of which sizes and items, where they run, and what comes of one that fails."""

import asyncio
import contextlib
import decimal
import threading

import numpy as np
import pytest
from kit.asks import ask_direct, run
from kit.servers import eventually
from kit.services import BODY, Echo, Watching

from virtex import Content, ItemError, Services, Tensor, TensorHandler, http_server
from virtex.errors import HandlerError


class Warm(Echo):
    """Records the batches that it gets, and in which order and thread it was called."""

    items = ("a", "b", "c")

    def __init__(self):
        self.calls = []
        self.batches = []
        self.places = set()

    def called(self, name):
        self.calls.append(name)
        self.places.add((threading.current_thread(), decimal.getcontext().prec))

    def setup(self, worker):
        decimal.setcontext(decimal.Context(prec=3))
        self.called("setup")

    def example(self):
        return list(self.items)

    def run_inference(self, batch):
        self.called("run")
        self.batches.append(list(batch))
        return batch

    def teardown(self):
        self.called("teardown")


class AsyncWarm(Warm):
    async def setup(self, worker):
        await asyncio.sleep(0)
        Warm.setup(self, worker)

    async def run_inference(self, batch):
        await asyncio.sleep(0)
        return Warm.run_inference(self, batch)

    async def teardown(self):
        await asyncio.sleep(0)
        Warm.teardown(self)


WAYS = [
    pytest.param(Warm, "inline", id="inline"),
    pytest.param(Warm, "thread", id="thread"),
    pytest.param(AsyncWarm, "inline", id="async"),
]
ways = pytest.mark.parametrize(("kind", "executor"), WAYS)


@ways
def test_the_example_is_repeated_to_each_size_where_batches_run_behind_setup(kind, executor):
    handler = kind()
    app = http_server("warm", handler, max_batch_size=4, executor=executor, warmup=(1, 4, 4))
    (answer,) = run(app, ask_direct(app, BODY))
    assert answer.status == 200
    assert handler.batches == [["a"], ["a", "b", "c", "a"], ["a", "b", "c", "a"], [1]]
    assert handler.calls == ["setup", "run", "run", "run", "run", "teardown"]
    assert len(handler.places) == 1, "one thread and one context for all of them"


@pytest.mark.parametrize(
    ("most", "warmup", "sizes"),
    [(8, True, [1, 8]), (1, True, [1]), (8, False, []), (8, (), []), (8, [8, 2], [8, 2])],
)
def test_true_is_one_and_the_largest_and_sizes_run_in_their_order(most, warmup, sizes):
    handler = Warm()
    run(http_server("warm", handler, max_batch_size=most, warmup=warmup))
    assert [len(batch) for batch in handler.batches] == sizes


class Rows(TensorHandler):
    inputs = Tensor("float32", (2,))
    outputs = Tensor("float32", (2,))

    def __init__(self):
        self.batches = []

    def run_inference(self, batch):
        self.batches.append(batch.copy())
        return batch


class Sampled(Rows):
    def example(self):
        return [[1, 2], [3, 4]]


@pytest.mark.parametrize("executor", ["inline", "thread"])
@pytest.mark.parametrize(("kind", "rows"), [(Rows, [[0, 0]] * 3), (Sampled, [[1, 2], [3, 4], [1, 2]])])
def test_declared_inputs_are_zeros_or_what_an_example_of_their_own_says(kind, rows, executor):
    handler = kind()
    run(http_server("rows", handler, max_batch_size=3, executor=executor, warmup=(3,)))
    (batch,) = handler.batches
    assert batch.dtype == np.float32 and batch.tolist() == rows


def test_items_as_one_array_and_files_are_run_too():
    class OneArray(Warm):
        items = ([1, 2], [3, 4])

        def process_request(self, data: np.ndarray):
            return data

    class Files(Warm):
        accepts = ("image/*",)
        items = (b"a",)

        def process_response(self, row):
            return Content(row, "image/png")

    for kind, rows in ((OneArray, [[1, 2], [3, 4], [1, 2]]), (Files, [b"a"] * 3)):
        handler = kind()
        run(http_server("kinds", handler, warmup=(3,)))
        assert np.asarray(handler.batches[0]).tolist() == rows


def test_a_handler_that_asks_who_asked_is_told_of_a_request_without_headers():
    class Asks(Warm):
        def run_inference(self, batch, requests):
            self.batches.append([(one.method, one.parameters) for one in requests])
            return batch

    handler = Asks()
    run(http_server("asks", handler, warmup=(2,)))
    assert handler.batches == [[("POST", {})] * 2]


# ---- what fails


def failing(step, error, kind=Warm):
    def fails(self, data):
        raise error

    async def fails_async(self, data):
        raise error

    return type("Fails", (kind,), {step: fails_async if kind is AsyncWarm and step == "run_inference" else fails})


def started(handler, **options):
    """What the start raised, and the answers of the service then: a message, live, ready."""

    async def main():
        app = http_server("fails", handler, **options)
        with pytest.raises(Exception) as raised:
            await app.startup()
        answers = [await ask_direct(app, BODY)]
        answers += [await ask_direct(app, method="GET", path=f"/health/{what}") for what in ("live", "ready")]
        await asyncio.gather(app.shutdown(), app.shutdown())
        return raised.value, answers

    return asyncio.run(main())


@ways
@pytest.mark.parametrize("step", ["process_request", "run_inference", "process_response"])
@pytest.mark.parametrize("error", [MemoryError("no room"), ItemError("too long")], ids=["bug", "refused"])
def test_a_batch_that_fails_fails_the_start_by_its_size_and_step_and_teardown_runs_once(
    kind, executor, step, error, caplog
):
    handler = failing(step, error, kind)()
    raised, answers = started(handler, executor=executor, max_batch_size=8, warmup=(1, 8))
    assert isinstance(raised, HandlerError)
    assert str(raised).startswith("warm-up with a batch of 1: ")
    assert step in str(raised) and "no room" not in str(raised)
    assert raised.__cause__ is error or isinstance(error, ItemError)
    assert [(one.status, one.error) for one in answers] == [(503, "the warm-up failed: HandlerError")] * 3
    assert [name for name in handler.calls if name != "run"] == ["setup", "teardown"]
    assert str(error) in caplog.text and "did not start" in caplog.text


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        ([1], "run_inference returned 1 rows for 2 items"),
        ({"a": 1}, "run_inference"),
        ([object(), object()], "process_response gave a object"),
        ([float("nan"), 1.0], "item 0: process_response gave a float that can't be sent: nan"),
    ],
    ids=["rows", "kind", "json", "nan"],
)
def test_results_are_checked_as_answers_are(gives, says):
    class Wrong(Warm):
        def run_inference(self, batch):
            return gives

    raised, _ = started(Wrong(), warmup=(2,))
    assert str(raised).startswith("warm-up with a batch of 2: ") and says in str(raised), raised


def test_a_batch_that_would_do_in_parts_fails_the_start():
    class Large(Warm):
        def run_inference(self, batch):
            if len(batch) > 4:
                raise MemoryError("no room")
            return Warm.run_inference(self, batch)

    raised, _ = started(Large(), max_batch_size=8, warmup=True)
    assert str(raised) == "warm-up with a batch of 8: run_inference raised MemoryError"


def test_what_is_not_as_declared_fails_the_start():
    class Wide(Rows):
        def run_inference(self, batch):
            return np.zeros((len(batch), 3), "float32")

    class Odd(Rows):
        def example(self):
            return [[1, 2], [1, 2, 3]]

    assert "warm-up with a batch of 2: run_inference" in str(started(Wide(), warmup=(2,))[0])
    raised, _ = started(Odd(), warmup=(1, 2))
    assert str(raised).startswith("warm-up with a batch of 2: process_request refused item 1: expected float32 (2,)")


@pytest.mark.parametrize(
    ("items", "error", "says"),
    [
        ((), TypeError, r"Warm\.example\(\) gives no items; define it"),
        (({1},), HandlerError, "a set that can't be sent"),
    ],
)
def test_an_example_that_is_none_fails_the_start_and_says_what_to_do(items, error, says):
    handler = Warm()
    handler.items = items
    with pytest.raises(error, match=says):
        run(http_server("none", handler, warmup=True))
    assert handler.calls == ["setup", "teardown"]


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_an_exit_in_the_warmup_is_an_error_and_not_obeyed(executor):
    raised, _ = started(failing("run_inference", SystemExit(3))(), executor=executor, warmup=(1,))
    assert "SystemExit: 3" in str(raised)


@pytest.mark.parametrize("kind", [Echo, Warm], ids=["raises", "sets up"])
def test_a_setup_that_raised_is_not_torn_down_and_one_whose_handler_can_not_run_is(kind):
    class Broken(Warm):
        def setup(self, worker):
            if kind is Echo:
                raise OSError("no such model")
            Warm.setup(self, worker)
            self.decode_item = 7

    handler = Broken()
    started(handler)
    assert handler.calls == ([] if kind is Echo else ["setup", "teardown"])


def test_a_signal_that_breaks_an_inline_warmup_off_leaves_it_torn_down(caplog):
    async def main():
        handler = failing("run_inference", asyncio.CancelledError("SIGTERM"))()  # as the worker's handler raises it
        app = http_server("broken off", handler, warmup=(1,))
        with pytest.raises(asyncio.CancelledError):
            await app.startup()
        await app.shutdown()
        return handler.calls

    assert asyncio.run(main()) == ["setup", "teardown"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# ---- meanwhile


class Slow(Warm):
    """Each of its batches waits until it is let through."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def run_inference(self, batch):
        result = super().run_inference(batch)
        assert self.go.wait(10)
        return result


class AsyncSlow(AsyncWarm):
    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    async def run_inference(self, batch):
        result = await super().run_inference(batch)
        while not self.go.is_set():
            await asyncio.sleep(0)
        return result


SLOW = pytest.mark.parametrize("kind", [Slow, AsyncSlow], ids=["thread", "async"])


def slow(kind, **options):
    handler = kind()
    executor = "thread" if kind is Slow else "inline"
    return handler, http_server("slow", handler, executor=executor, max_batch_size=8, warmup=(1, 8), **options)


@SLOW
def test_it_is_live_and_not_ready_while_it_warms_up_and_who_comes_early_waits_or_is_refused(kind):
    async def main():
        handler, app = slow(kind)
        starting = app.start()
        await eventually(lambda: handler.batches)
        live = await ask_direct(app, method="GET", path="/health/live")
        ready = await ask_direct(app, method="GET", path="/health/ready")
        refused = await ask_direct(app, BODY)
        handler.go.set()
        await starting
        answers = [await ask_direct(app, method="GET", path="/health/ready"), await ask_direct(app, BODY)]
        await app.shutdown()
        return [one.status for one in (live, ready, refused, *answers)]

    assert asyncio.run(main()) == [200, 503, 503, 200, 200]


@SLOW
def test_an_end_during_the_warmup_waits_for_its_batch_leaves_out_the_others_and_tears_down_once(kind):
    async def main():
        handler, app = slow(kind)
        starting = app.start()
        await eventually(lambda: handler.batches)
        ending = [asyncio.ensure_future(app.shutdown()) for _ in range(2)]
        await asyncio.sleep(0)
        assert "teardown" not in handler.calls, "its batch still runs"
        handler.go.set()
        await asyncio.gather(starting, *ending)
        await app.shutdown()
        return handler.calls

    assert asyncio.run(main()) == ["setup", "run", "teardown"]


@SLOW
def test_a_start_that_is_cancelled_in_the_warmup_tears_down_once(kind):
    async def main():
        handler, app = slow(kind)
        starting = app.start()
        await eventually(lambda: handler.batches)
        starting.cancel()
        ending = asyncio.ensure_future(app.shutdown())
        await asyncio.sleep(0)
        handler.go.set()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await asyncio.wait_for(ending, 5)
        return handler.calls

    assert asyncio.run(main()) == ["setup", "run", "teardown"]


def test_an_end_behind_a_failed_warmup_waits_for_the_teardown():
    class Lingers(failing("run_inference", KeyError("no such row"))):
        async def teardown(self):
            self.called("teardown")
            await self.left.wait()
            self.called("torn down")

    async def main():
        handler = Lingers()
        handler.left = asyncio.Event()
        app = http_server("lingers", handler, warmup=(1,))
        app.start()
        await eventually(lambda: "teardown" in handler.calls)
        ending = asyncio.ensure_future(app.shutdown())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not ending.done()
        handler.left.set()
        await asyncio.wait_for(ending, 5)
        return handler.calls

    assert asyncio.run(main()) == ["setup", "teardown", "torn down"]


def test_a_loop_that_was_closed_in_the_warmup_tears_nothing_down():
    async def begin():
        app.start()
        await eventually(lambda: handler.batches)

    handler, app = slow(AsyncSlow)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    app.model.starting.get_coro().close()  # as the garbage collector does; what awaits then is an error
    assert handler.calls == ["setup", "run"]


def test_one_of_several_that_fails_costs_the_others_nothing_but_their_end():
    well, ill = Warm(), failing("run_inference", KeyError("no such row"))()
    app = Services(http_server("well", well, warmup=(1,)), http_server("ill", ill, warmup=(1,)))

    async def main():
        with pytest.raises(HandlerError, match="warm-up with a batch of 1: run_inference raised KeyError"):
            await app.startup()
        await asyncio.gather(app.shutdown(), app.shutdown())

    asyncio.run(main())
    assert well.calls == ["setup", "run", "teardown"] and ill.calls == ["setup", "teardown"]


# ---- what is said and counted


def test_it_counts_nowhere_and_the_log_says_how_long_each_size_took(caplog):
    name, watching = "warm and uncounted", Watching()

    async def main():
        app = http_server(name, Warm(), max_batch_size=8, warmup=True, observer=watching)
        await app.startup()
        figures = await ask_direct(app, method="GET", path="/metrics/live")
        await app.shutdown()
        return figures.json["metrics"]

    with caplog.at_level("INFO", "virtex"):
        figures = asyncio.run(main())
    assert not any(figures["virtex_batches_total"].values()) and not watching.batches
    told = [record for record in caplog.records if getattr(record, "event", "") == "service_warmup"]
    assert [record.items for record in told] == [1, 8] and all(record.seconds > 0 for record in told)
    assert told[0].getMessage().startswith(f"service {name!r} has run a batch of 1; items=1 seconds=")


def test_a_batch_that_its_cost_bounds_is_told_as_large_as_it_was(caplog):
    class Costly(Warm):
        def cost(self, item):
            return 2

    async def main():
        app = http_server("costly", Costly(), max_batch_size=8, max_batch_cost=7, warmup=True)
        await app.startup()
        await app.shutdown()

    with caplog.at_level("INFO", "virtex"):
        asyncio.run(main())
    told = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "service_warmup"]
    assert "has run a batch of 3; items=3 " in told[1], told


@pytest.mark.parametrize("warmup", [(0,), (9,), (1, True), "18", 8, None, (1.0,), [-1]])
def test_sizes_that_no_batch_has_are_refused(warmup):
    with pytest.raises(ValueError, match=r"warmup=.*: expected True, or a list of whole numbers from 1 to max_batch"):
        http_server("odd", Echo(), max_batch_size=8, warmup=warmup)
