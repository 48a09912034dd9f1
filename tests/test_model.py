"""The life of a handler: made, set up, drained, torn down."""

import asyncio
import contextlib
import decimal
import itertools
import os
import sqlite3
import threading

import numpy as np
import pytest
from kit import needs
from kit.asks import ask_asgi, ask_direct, run
from kit.servers import eventually
from kit.services import BODY, AsyncEcho, AsyncLife, Echo, Hand, Life

from virtex import HttpMessage, Limits, Tensor, TensorHandler, http_server
from virtex.batch.company import Peer
from virtex.handler import Worker


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def test_it_is_live_but_not_ready_until_setup_is_done_which_runs_off_the_loop(ask):
    handler = Life()
    handler.go.clear()
    app = http_server("life", handler, executor="thread")

    async def main():
        starting = asyncio.ensure_future(app.startup(Worker(1, 2)))
        await asyncio.sleep(0)
        live, ready = (
            await ask(app, method="GET", path="/health/live"),
            await ask(app, method="GET", path="/health/ready"),
        )
        post = await ask(app, BODY)
        handler.go.set()
        await starting
        return live, ready, post, await ask(app, method="GET", path="/health/ready"), await ask(app, BODY)

    live, unready, refused, ready, answered = asyncio.run(main())
    assert (live.status, unready.status, refused.status) == (200, 503, 503)
    assert refused.headers[b"retry-after"] == b"1" and refused.error == "the service is starting"
    assert (ready.status, answered.status) == (200, 200)
    assert handler.threads["setup"] is handler.threads["process"] is not threading.main_thread()
    assert repr(handler.worker) == "Worker(index=1, count=2)"


@pytest.mark.parametrize("kind", [Life, AsyncLife])
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_every_method_runs_on_one_thread(kind, executor, ask):
    handler = kind()
    app = http_server("life", handler, executor=executor)
    run(app, ask(app, BODY))
    assert len(handler.threads) == 3 and len(set(handler.threads.values())) == 1
    assert (threading.main_thread() in handler.threads.values()) == (executor == "inline")


class OfOneThread(Echo):
    """Sets and opens what belongs to a thread or a context, and says what it finds of it."""

    def setup(self, worker):
        self.local = threading.local()
        self.local.model = "loaded"
        self.database = sqlite3.connect(":memory:")
        self.database.execute("create table answers (text)")
        decimal.setcontext(decimal.Context(prec=3))
        self.floats = np.seterr(divide="raise")
        self.torch = torch = needs.library("torch")
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")

    def found(self):
        self.database.execute("insert into answers values ('a')")
        return {
            "local": self.local.model,
            "prec": decimal.getcontext().prec,
            "errstate": np.geterr()["divide"],
            "grad": self.torch.is_grad_enabled(),
            "device": str(self.torch.zeros(1).device),
        }

    def run_inference(self, model_input):
        return [self.found() for _ in model_input]

    def teardown(self):
        self.last = self.found()
        self.database.close()
        self.torch.set_grad_enabled(True)
        self.torch.set_default_device("cpu")
        np.seterr(**self.floats)


class SetsUpAsync(OfOneThread):
    async def setup(self, worker):
        await asyncio.sleep(0)
        OfOneThread.setup(self, worker)

    async def teardown(self):
        await asyncio.sleep(0)
        OfOneThread.teardown(self)


class AsyncOfOneThread(SetsUpAsync):
    async def run_inference(self, model_input):
        await asyncio.sleep(0)
        return OfOneThread.run_inference(self, model_input)


@pytest.mark.parametrize(
    ("kind", "executor"),
    [
        (OfOneThread, "inline"),
        (OfOneThread, "thread"),
        (SetsUpAsync, "inline"),
        (SetsUpAsync, "thread"),
        (AsyncOfOneThread, "inline"),
    ],
)
def test_what_setup_sets_for_its_thread_holds_in_the_methods_and_in_teardown(kind, executor, ask):
    handler = kind()
    app = http_server("one", handler, executor=executor)
    (answer,) = run(app, ask(app, BODY))
    expected = {"local": "loaded", "prec": 3, "errstate": "raise", "grad": False, "device": "meta"}
    assert answer.json["data"] == [expected]
    assert handler.last == expected
    assert decimal.getcontext().prec == 28, "it is the service's own"


@pytest.mark.parametrize("kind", [OfOneThread, AsyncOfOneThread])
def test_validate_finds_what_setup_set_on_the_calling_thread(kind):
    handler = kind()
    OfOneThread.setup(handler, Worker())
    try:
        found = handler.validate(HttpMessage(data=[1]), strict=True).data[0]
        assert (found["local"], found["grad"], found["prec"]) == ("loaded", False, 3)
    finally:
        OfOneThread.teardown(handler)
        decimal.setcontext(decimal.Context(prec=28))


@pytest.mark.parametrize("method", ["setup", "teardown"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_an_exit_in_setup_or_teardown_is_an_error_and_not_obeyed(method, is_async, executor, caplog):
    def leave(self, *worker):
        raise SystemExit(3)

    async def leave_async(self, *worker):
        raise SystemExit(3)

    handler = type("Leaves", (Echo,), {method: leave_async if is_async else leave})()
    app = http_server("leaves", handler, executor=executor)
    with pytest.raises(RuntimeError, match="SystemExit: 3") if method == "setup" else contextlib.nullcontext():
        run(app)
    assert "SystemExit: 3" in caplog.text


def test_a_class_or_factory_is_called_once_where_setup_runs(ask):
    made = []

    class Made(Echo):
        def __init__(self):
            made.append(threading.current_thread())

    for source, executor in itertools.product((Made, lambda: Made()), ("inline", "thread")):
        app = http_server("made", source, executor=executor)
        assert made == []
        run(app, ask(app, BODY), ask(app, BODY))
        assert len(made) == 1 and (made[0] is threading.main_thread()) == (executor == "inline")
        made.clear()


def test_async_setup_and_teardown_are_awaited(ask):
    class Async(Echo):
        steps = ()

        async def setup(self, worker):
            await asyncio.sleep(0)
            self.steps += ("setup",)

        async def teardown(self):
            await asyncio.sleep(0)
            self.steps += ("teardown",)

    handler = Async()
    app = http_server("async", handler)
    run(app, ask(app, BODY))
    assert handler.steps == ("setup", "teardown")


@pytest.mark.parametrize("serve", [True, False], ids=["lifespan", "first request"])
def test_a_setup_that_fails_is_said_and_requests_get_a_503(serve, ask, caplog):
    class Broken(Echo):
        def setup(self, worker):
            raise OSError("no such model")

    app = http_server("broken", Broken())

    async def main():
        if serve:
            with pytest.raises(OSError, match="no such model"):
                await app.startup()
        first = await ask(app, BODY)
        second = await ask(app, BODY)
        live = await ask(app, method="GET", path="/health/live")
        await app.shutdown()
        return first, second, live

    for answer in asyncio.run(main()):
        assert answer.status == 503
        assert answer.error == "the handler's setup failed: OSError"
    assert "no such model" in caplog.text


def test_a_factory_of_something_else_fails_the_start():
    app = http_server("odd", lambda: 7)
    with pytest.raises(TypeError, match="expected a RequestHandler, the factory made a int"):
        run(app)


def test_async_methods_do_not_run_on_a_thread():
    app = http_server("odd", AsyncEcho(), executor="thread")
    with pytest.raises(TypeError, match="run_inference of AsyncEcho is async"):
        run(app)


def test_draining_is_unready_but_answers_and_shutdown_waits_for_answers(ask):
    handler = Life()
    app = http_server("life", handler, executor="thread")

    async def main():
        await app.startup()
        app.drain()
        ready = await ask(app, method="GET", path="/health/ready")
        answering = asyncio.ensure_future(ask(app, BODY))
        await asyncio.sleep(0)
        await app.shutdown()
        late = await ask(app, BODY)
        return ready, await answering, late

    ready, answered, late = asyncio.run(main())
    assert (ready.status, answered.status) == (503, 200)
    assert (late.status, late.error) == (503, "the service has shut down")
    assert "teardown" in handler.threads


def test_two_shutdowns_at_once_are_one():
    class Counts(Life):
        teardowns = 0

        def teardown(self):
            self.teardowns += 1

        def run_inference(self, model_input):
            self.go.wait(10)
            return model_input

    async def main():
        handler = Counts()
        app = http_server("life", handler, executor="thread")
        await app.startup()
        handler.go.clear()
        asking = asyncio.ensure_future(ask_direct(app, BODY))
        await asyncio.sleep(0.01)
        both = [asyncio.ensure_future(app.shutdown()) for _ in range(2)]
        await asyncio.sleep(0.01)
        early = [shutdown.done() for shutdown in both]
        handler.go.set()
        await asyncio.wait_for(asyncio.gather(*both), 60)
        return early, (await asking).status, handler.teardowns

    assert asyncio.run(main()) == ([False, False], 200, 1)


def test_a_teardown_that_raises_is_logged(caplog):
    class Broken(Echo):
        def teardown(self):
            raise OSError("stuck")

    run(http_server("broken", Broken()))
    assert "teardown of 'broken' raised" in caplog.text and "stuck" in caplog.text


def test_one_app_serves_one_loop_after_another_and_sets_up_in_each(ask):
    app = http_server("made", Life)
    for _ in range(2):
        (answer,) = run(app, ask(app, BODY))
        assert answer.status == 200


def test_one_app_serves_another_loop_though_it_was_never_shut_down(ask):
    app = http_server("made", Life)

    async def main():
        return await asyncio.wait_for(ask(app, BODY), 60)

    assert [asyncio.run(main()).status for _ in range(2)] == [200, 200]


def test_a_forked_process_begins_anew(ask):
    app = http_server("made", Life())
    run(app, ask(app, BODY))
    pid = os.fork()
    if not pid:
        (answer,) = run(app, ask(app, BODY))
        os._exit(0 if answer.status == 200 else 1)
    assert os.waitpid(pid, 0)[1] == 0


async def _tell_the_end_and_ask(app):
    """What is told of an end, though nothing has begun here; then what is asked begins it."""
    app.leave(Peer())
    app.drain()
    await app.shutdown()
    return (await ask_asgi(app, BODY)).status


def test_an_end_that_is_told_before_anything_began_changes_nothing():
    assert asyncio.run(_tell_the_end_and_ask(http_server("early", Echo()))) == 200


def test_an_end_that_is_told_after_the_loop_was_closed_ends_nothing(caplog):
    app = http_server("closed", Echo())
    asyncio.run(app.startup())
    assert asyncio.run(_tell_the_end_and_ask(app)) == 200
    assert "raised" not in caplog.text


def test_a_model_that_never_comes_back_does_not_keep_the_service_from_ending(caplog):
    class Hangs(Life):
        def run_inference(self, model_input):
            self.runs = True
            self.go.wait(60)
            return model_input

    async def main():
        handler = Hangs()
        app = http_server("hangs", handler, executor="thread", limits=Limits(answer_seconds=0.05))
        clock = Hand(app)
        await app.startup()
        handler.go.clear()
        asked = asyncio.ensure_future(ask_direct(app, BODY))
        await eventually(lambda: hasattr(handler, "runs"))
        clock.add(0.051)
        late = await asked
        await asyncio.wait_for(app.shutdown(), 30)
        handler.go.set()
        return late.status, "teardown" in handler.threads

    assert asyncio.run(main()) == (504, False)
    assert "has not come back" in caplog.text


def test_a_watchdog_over_an_inline_model_is_refused():
    with pytest.raises(ValueError, match='needs executor="thread"'):
        run(http_server("echo", Echo(), watchdog=1.0))


def test_an_app_on_two_loops_at_once_is_refused():
    app = http_server("echo", Echo())

    async def main():
        await app.startup()
        with pytest.raises(RuntimeError, match="already runs on another event loop"):
            await asyncio.to_thread(asyncio.run, app.startup())
        await app.shutdown()

    asyncio.run(main())


# ---- the example that GET / shows


class Sampled(Life):
    """Life with an example, or what it raises."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample

    def example(self):
        self.threads["example"] = threading.current_thread()
        if isinstance(self.sample, BaseException):
            raise self.sample
        return self.sample


class AsyncSampled(AsyncEcho):
    async def example(self):
        await asyncio.sleep(0)
        return ["async"]


class Rows(TensorHandler):
    def __init__(self, inputs):
        self.inputs = inputs

    def run_inference(self, batch):
        return batch


def info_of(handler, **options):
    app = http_server("sampled", handler, **options)
    (answer,) = run(app, ask_direct(app, method="GET"))
    return answer.json


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_the_example_is_asked_for_once_where_the_other_methods_run(executor):
    handler = Sampled([1, {"a": np.float32(0.5)}])
    assert info_of(handler, executor=executor)["example"] == [1, {"a": 0.5}]
    assert handler.threads["example"] is handler.threads["setup"]


def test_an_example_may_be_a_coroutine():
    assert info_of(AsyncSampled())["example"] == ["async"]


def test_the_example_of_declared_inputs_is_an_item_of_zeros_that_the_service_takes():
    handler = Rows({"a": Tensor("float32", (2,)), "b": Tensor("uint8")})
    example = info_of(handler)["example"]
    assert handler.process_request(example)["a"].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "sample",
    [ValueError("none"), SystemExit(3), "no list", [object()], [float("nan")], [1j]],
    ids=["raises", "exits", "no list", "no json", "not a number", "complex"],
)
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_an_example_that_fails_is_a_warning_and_the_service_starts(sample, executor, caplog):
    info = info_of(Sampled(sample), executor=executor)
    assert "example" not in info and info["name"] == "sampled"
    (record,) = [record for record in caplog.records if "example() failed" in record.message]
    assert record.levelname == "WARNING" and record.exc_info


def test_none_is_shown_where_there_is_none_or_it_is_long(caplog, monkeypatch):
    assert "example" not in info_of(Echo())
    assert "example" not in info_of(Sampled(["x" * 40_000]))
    monkeypatch.setattr(Tensor, "zeros", lambda self: pytest.fail("it was made to be thrown away"))
    assert "example" not in info_of(Rows(Tensor("float32", (3, 224, 224))))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_without_the_status_page_nobody_asks_for_an_example():
    handler = Sampled([1])
    assert "example" not in info_of(handler, status_page=False) and "example" not in handler.threads
