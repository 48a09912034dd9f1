import asyncio
import contextlib
import threading

import pytest
from kit.names import shown

from virtex import HttpMessage, ItemError, RequestHandler
from virtex.errors import HandlerError
from virtex.handler import Worker


class Doubler(RequestHandler):
    """Doubles numbers; "bad" is refused, and numbers of another sign don't stack with the rest."""

    def __init__(self):
        self.decoded = []

    def process_request(self, data):
        self.decoded.append(list(data))
        if "bad" in data:
            raise ItemError("expected a number, got a str")
        if "bug" in data:
            raise ZeroDivisionError("secret")
        if len({x < 0 for x in data}) > 1:
            raise ValueError("these don't stack")
        return data

    def run_inference(self, model_input):
        if 13 in model_input:
            raise RuntimeError("secret")
        return [2 * x for x in model_input]

    def process_response(self, model_output_item):
        if model_output_item == 14:
            raise KeyError("secret")
        if model_output_item == 16:
            raise ItemError("eight is not served")
        return model_output_item


def test_validate_gives_the_reply():
    assert Doubler().validate(HttpMessage(data=[1, 2])) == HttpMessage(data=[2, 4])
    assert Doubler().validate(HttpMessage(data=[])) == HttpMessage(data=[])


def test_validate_runs_async_handlers():
    class Async(Doubler):
        async def run_inference(self, model_input):
            await asyncio.sleep(0)
            return model_input

    assert Async().validate(HttpMessage(data=[1])).data == [1]


class RunsALoop(Doubler):
    def run_inference(self, model_input):
        with contextlib.closing(asyncio.sleep(0, model_input)) as coroutine:
            return asyncio.run(coroutine)


class NeedsALoop(Doubler):
    def run_inference(self, model_input):
        assert asyncio.get_running_loop().is_running()
        self.thread = threading.current_thread()
        return model_input


class Awaits(NeedsALoop):
    async def run_inference(self, model_input):
        await asyncio.sleep(0)
        return NeedsALoop.run_inference(self, model_input)


async def within_a_loop(handler, items):
    return handler.validate(HttpMessage(data=items), strict=True)


def test_validate_refuses_what_the_server_would_a_loop_within_the_loop():
    with pytest.raises(HandlerError, match="run_inference raised RuntimeError"):
        RunsALoop().validate(HttpMessage(data=[1]), strict=True)
    with pytest.raises(HandlerError, match="run_inference raised RuntimeError"):
        asyncio.run(within_a_loop(RunsALoop(), [1]))


@pytest.mark.parametrize("kind", [NeedsALoop, Awaits])
def test_validate_runs_within_a_loop_on_the_calling_thread(kind):
    handler = kind()
    assert handler.validate(HttpMessage(data=[1]), strict=True).data == [1]
    assert handler.thread is threading.current_thread()


@pytest.mark.parametrize("kind", [NeedsALoop, Awaits])
def test_validate_works_where_a_loop_runs(kind):
    handler = kind()
    assert asyncio.run(within_a_loop(handler, [1])).data == [1]
    if kind is NeedsALoop:
        assert handler.thread is threading.current_thread()


def test_validate_leaves_the_threads_event_loop_as_it_is():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        assert Doubler().validate(HttpMessage(data=[1])).data == [2]
        assert asyncio.get_event_loop_policy().get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (["bad"], "item 0: expected a number"),
        (["bug"], "process_request raised ZeroDivisionError"),
        ([13], "run_inference raised RuntimeError"),
        ([7], "process_response raised KeyError"),
        ([object()], "message gave a object"),
        ("abc", "of type str; expected a list"),
    ],
    ids=shown,
)
def test_validate_is_none_with_a_line_in_the_log_or_raises_when_strict(data, says, caplog):
    message = HttpMessage(data=data)
    assert Doubler().validate(message) is None
    assert says in caplog.text
    with pytest.raises((HandlerError, ItemError), match=says):
        Doubler().validate(message, strict=True)


def test_validate_finds_an_answer_that_can_not_be_sent():
    class Odd(Doubler):
        def process_response(self, model_output_item):
            return object()

    with pytest.raises(HandlerError, match="process_response gave a object that can't be sent"):
        Odd().validate(HttpMessage(data=[1]), strict=True)


def test_the_three_methods_are_required_and_the_others_do_nothing():
    with pytest.raises(TypeError, match="abstract"):
        RequestHandler()
    handler = Doubler()
    assert handler.setup(Worker(1, 4)) is None and handler.teardown() is None and handler.example() == []
    assert repr(Worker(1, 4)) == "Worker(index=1, count=4)"
