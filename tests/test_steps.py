import asyncio
import itertools

import numpy as np
import pytest
from kit.names import shown
from kit.tensors import Identity
from test_handler import Doubler

from virtex import ItemError, Tensor
from virtex.batch.items import steps_for
from virtex.batch.outputs import rows_of
from virtex.batch.row_steps import TensorSteps
from virtex.batch.steps import Steps, async_methods, drive
from virtex.errors import HandlerError


def outcomes(*requests, handler=None):
    steps = Steps(handler or Doubler())
    work = [list(items) for items in requests]
    return drive(steps.run_async(work)) if steps.is_async else steps.run(work)


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


def test_a_model_that_raises_fails_those_for_whose_items_it_does():
    first, second = outcomes([1], [13])
    assert first == [2]
    assert str(second) == "run_inference raised RuntimeError"


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
    good, bad, bug = asyncio.run(steps.run_async([[1], ["bad"], [7]]))
    assert good == [2]
    assert isinstance(bad, ItemError) and isinstance(bug, HandlerError)


def test_each_step_is_timed():
    ticks = iter(range(0, 10**12, 10**9))
    steps = Steps(Doubler(), lambda: next(ticks))
    steps.run([[1], [2]])
    assert steps.laps.seconds == {"process_request": 1.0, "run_inference": 1.0, "process_response": 1.0}


def test_a_plain_handler_that_awaits_is_a_bug_said_plainly():
    async def sleeps():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="without async methods has awaited"):
        drive(sleeps())


def test_seconds_are_those_of_one_batch():
    steps = TensorSteps(Identity(), False, itertools.count(0, 1_000_000).__next__)
    for _ in range(2):
        steps.run((np.zeros((1, 3)), [1]))
        assert steps.laps.seconds == {"run_inference": 0.001}


def test_nothing_is_measured_without_a_clock():
    steps = Steps(Doubler())
    steps.run([[1], [2]])
    assert steps.laps.seconds == {}


# --- statuses of its own ---------------------------------------------------------------------------------------------


class Lookup:
    """Refuses what it does not know: in process_request, or where a row is encoded."""

    def __init__(self, early, index):
        self.early = early
        self.index = index

    def process_request(self, data):
        for i, item in enumerate(data):
            if self.early and item < 0:
                raise ItemError(f"no {item}", i if self.index else None, status=404 if item == -1 else 409)
        return data

    def run_inference(self, batch):
        return batch

    def process_response(self, row):
        if row < 0:
            raise ItemError(f"no {row}", status=404 if row == -1 else 409)
        return row


@pytest.mark.parametrize("early", [True, False], ids=["process_request", "process_response"])
@pytest.mark.parametrize("index", [True, False], ids=["with its index", "without"])
def test_a_request_has_status_and_words_of_its_lowest_failing_item_and_others_their_rows(early, index):
    outcomes = Steps(Lookup(early, index)).run([[1], [2, -2, -1], [3, 4], [-1, -2]])
    assert outcomes[0] == [1] and outcomes[2] == [3, 4]
    assert [(error.status, error.index, error.reason) for error in (outcomes[1], outcomes[3])] == [
        (409, 1, "no -2"),
        (404, 0, "no -1"),
    ]


def test_where_nobody_is_found_the_status_stays():
    class Together(Lookup):
        def process_request(self, data):
            if len(data) > 1:
                raise ItemError("not together", status=413)
            return data

    (outcome,) = Steps(Together(True, True)).run([[1, 2]])
    assert (outcome.status, outcome.index) == (413, None)


def test_what_decodes_an_item_may_say_its_status():
    class Decoding(Lookup):
        @staticmethod
        def decode_item(item):
            if item < 0:
                raise ItemError("gone", status=410)
            return item

    outcomes = steps_for(Decoding(False, False)).run([[1, -1], [2]])
    assert (outcomes[0].status, outcomes[0].index, outcomes[1]) == (410, 1, [2])


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("kind", [Steps, TensorSteps])
def test_a_run_that_raises_is_systemic_and_a_refused_item_or_a_wrong_count_is_not(kind, is_async):
    class Runs(Doubler):
        inputs = Tensor("float32", (2,))
        outputs = None

        def run_inference(self, batch):
            if isinstance(self.gives, Exception):
                raise self.gives
            return self.gives

    class RunsAsync(Runs):
        async def run_inference(self, batch):
            return Runs.run_inference(self, batch)

    found = []
    for gives in (RuntimeError("the device is lost"), ItemError("no", 0), [[1, 2]], [[1, 2], [3, 4]]):
        handler = (RunsAsync if is_async else Runs)()
        handler.gives = gives
        steps = Steps(handler) if kind is Steps else TensorSteps(handler, True)
        work = [[1], [2]] if kind is Steps else (np.ones((2, 2), "float32"), [1, 1])
        drive(steps.run_async(work)) if is_async else steps.run(work)
        found.append(steps.laps.systemic)
    assert found == [True, False, False, False]
