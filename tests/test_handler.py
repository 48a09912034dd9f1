import asyncio
import collections
import contextlib
import threading

import numpy as np
import pytest
from kit.names import shown

from virtex import HttpMessage, ItemError, RequestHandler
from virtex.batch.steps import Steps, async_methods, drive, rows_of
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


def outcomes(*requests, handler=None):
    return drive(Steps(handler or Doubler()).run([list(items) for items in requests]))


def test_requests_get_their_own_rows():
    assert outcomes([1], [2, 3]) == [[2], [4, 6]]


def test_a_refused_item_costs_no_other_request_its_answer():
    good, bad, also = outcomes([1], [2, "bad"], [3])
    assert (good, also) == ([2], [6])
    assert isinstance(bad, ItemError)
    assert str(bad) == "item 1: expected a number, got a str"


def test_blame_is_found_one_request_at_a_time_then_the_rest_goes_on_together():
    handler = Doubler()
    outcomes([1], ["bad"], [3, 4], handler=handler)
    assert handler.decoded == [[1, "bad", 3, 4], [1], ["bad"], ["bad"], [3, 4], [1, 3, 4]]


def test_a_raising_process_request_is_a_500_of_its_request_alone_without_the_text():
    good, bug = outcomes([1], ["bug"])
    assert good == [2]
    assert str(bug) == "process_request raised ZeroDivisionError"
    assert str(bug.__cause__) == "secret"


def test_the_lowest_failing_item_is_named_even_where_it_is_the_handlers_fault():
    (error,) = outcomes([1, "bug", "bad"])
    assert str(error) == "item 1: process_request raised ZeroDivisionError"
    (error,) = outcomes([1, "bad", 2, "bad"])
    assert error.index == 1


def test_an_item_error_that_knows_its_index_is_believed():
    class Knows(Doubler):
        def process_request(self, data):
            self.decoded.append(data)
            raise ItemError("no", 2)

    handler = Knows()
    assert outcomes([1, 2, 3], handler=handler)[0].index == 2
    assert len(handler.decoded) == 1


@pytest.mark.parametrize("index", [-1, 3, 2**70, "1", 0.5, object()], ids=shown)
def test_an_index_that_is_none_of_the_items_is_looked_for(index):
    class Odd(Doubler):
        def process_request(self, data):
            if "bad" in data:
                raise ItemError("no", index)
            return data

    good, bad = outcomes([1], [2, 3, "bad"], handler=Odd())
    assert good == [2]
    assert str(bad) == "item 2: no"


def test_an_error_that_a_handler_raises_again_and_again_stays_its_own():
    always = ItemError("no", 0)

    class Same(Doubler):
        def process_request(self, data):
            raise always

    first, second = outcomes([1], [2], handler=Same())
    first.index += 1
    assert (second.index, always.index) == (0, 0)


def test_an_item_error_of_a_subclass_that_calls_no_init_is_one_too():
    class Bare(ItemError):
        def __init__(self):
            pass

    class Raises(Doubler):
        def process_request(self, data):
            if "bad" in data:
                raise Bare
            return data

    good, bad = outcomes([1], ["bad"], handler=Raises())
    assert good == [2]
    assert str(bad) == "item 0: expected another item"


@pytest.mark.parametrize(("rows", "says"), [(1, "returned 1 rows for 2 items"), (3, "more than 2 rows for 2 items")])
def test_rows_are_counted_where_a_length_says_something_else(rows, says):
    class Columns:
        def __len__(self):
            return 2

        def __iter__(self):
            return iter(range(rows))

    with pytest.raises(HandlerError, match=says):
        rows_of(Columns(), 2)


def test_requests_that_do_not_stack_run_each_alone():
    assert outcomes([1], [-2], [3, 4]) == [[2], [-4], [6, 8]]


def test_a_raising_model_fails_every_request_of_its_batch():
    first, second = outcomes([1], [13])
    assert first is second
    assert str(first) == "run_inference raised RuntimeError"


def test_a_raising_process_response_names_the_item_and_spares_the_others():
    good, bug, refused = outcomes([1], [2, 7], [3, 8])
    assert good == [2]
    assert str(bug) == "item 1: process_response raised KeyError"
    assert isinstance(refused, ItemError) and refused.index == 1


def test_async_methods_mean_the_same():
    class Async(Doubler):
        async def process_request(self, data):
            await asyncio.sleep(0)
            return Doubler.process_request(self, data)

        async def process_response(self, model_output_item):
            await asyncio.sleep(0)
            return Doubler.process_response(self, model_output_item)

    handler = Async()
    assert list(async_methods(handler)) == ["process_request", "process_response"]
    steps = Steps(handler)
    assert steps.is_async
    good, bad, bug = asyncio.run(steps.run([[1], ["bad"], [7]]))
    assert good == [2]
    assert isinstance(bad, ItemError) and isinstance(bug, HandlerError)


def test_each_step_is_timed():
    ticks = iter(range(0, 10**12, 10**9))
    steps = Steps(Doubler(), lambda: next(ticks))
    drive(steps.run([[1], [2]]))
    assert steps.seconds == {"process_request": 1.0, "run_inference": 1.0, "process_response": 1.0}


class Frame:
    """Iterates over its columns, as a DataFrame does; rows are at iloc."""

    iloc = ("first row", "second row")

    def __len__(self):
        return 2

    def __iter__(self):
        return iter(["column"])


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        ([1, 2], [1, 2]),
        (collections.deque([1, 2]), [1, 2]),
        (range(2), [0, 1]),
        ((x for x in "ab"), ["a", "b"]),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (Frame(), ["first row", "second row"]),
    ],
    ids=shown,
)
def test_rows_iterate_along_the_zeroth_dimension(outputs, rows):
    assert rows_of(outputs, 2) == rows


def test_rows_of_an_array_are_its_subarrays():
    assert [row.tolist() for row in rows_of(np.arange(4).reshape(2, 2), 2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([1], "returned 1 rows for 2 items"),
        ([1, 2, 3], "returned 3 rows for 2 items"),
        (np.zeros((3, 2)), "returned 3 rows for 2 items"),
        (iter([1]), "returned 1 rows for 2 items"),
        (iter(int, 1), "gave more than 2 rows for 2 items"),
        ({"a": 1, "b": 2}, "returned a dict; expected 2 rows"),
        ({1, 2}, "returned a set"),
        ("ab", "returned a str"),
        (b"ab", "returned a bytes"),
        (None, "returned a NoneType"),
        (7, "returned a int"),
        ((1, 2), "returned a tuple, which may be several results"),
        (np.float32(1), "no dimensions|returned a float32"),
        (np.array(1), "of no dimensions"),
    ],
    ids=shown,
)
def test_other_outputs_are_refused_with_what_came(outputs, says):
    with pytest.raises(HandlerError, match=says):
        rows_of(outputs, 2)


def test_an_endless_iterator_is_read_to_one_row_too_many():
    read = []
    with pytest.raises(HandlerError):
        rows_of((read.append(i) for i in iter(int, 1)), 3)
    assert len(read) == 4


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


def test_a_plain_handler_that_awaits_is_a_bug_said_plainly():
    async def sleeps():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="without async methods has awaited"):
        drive(sleeps())


def test_the_three_methods_are_required_and_the_others_do_nothing():
    with pytest.raises(TypeError, match="abstract"):
        RequestHandler()
    handler = Doubler()
    assert handler.setup(Worker(1, 4)) is None and handler.teardown() is None and handler.example() == []
    assert repr(Worker(1, 4)) == "Worker(index=1, count=4)"
