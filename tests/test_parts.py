"""A batch whose model raised runs again in parts: who is to blame fails, and everyone else has the right answer."""

import asyncio
import gc
import json
import logging
import math
import weakref

import numpy as np
import pytest
from conftest import FakeLoop
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.asks import Echo, ask_direct, run
from kit.needs import library
from kit.tensors import VECTOR, Identity, Writes, body, vector
from test_ring import Recorder
from test_rows import ring_of

from virtex import ItemError, Limits, RequestHandler, Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, items_of
from virtex.batch.batcher import Batcher
from virtex.batch.device import Device
from virtex.batch.executors import AsyncExecutor, InlineExecutor, ThreadExecutor
from virtex.batch.items import steps_for
from virtex.batch.parts import PROVEN
from virtex.batch.row_steps import TensorSteps
from virtex.batch.rows import RowRing
from virtex.batch.steps import Steps, drive
from virtex.errors import HandlerError


class OutOfMemoryError(RuntimeError):
    """As torch's: nobody has to import that to know it."""


class Poisoned(Echo):
    """Raises for what `bad` names, and keeps what it was asked to run. most: items that its memory holds."""

    def __init__(self, bad=(), most=1 << 30, raises=RuntimeError):
        self.bad = set(bad)
        self.most = most
        self.raises = raises
        self.calls = []

    def run_inference(self, batch):
        self.calls.append(list(batch))
        if len(batch) > self.most:
            raise OutOfMemoryError("no room")
        if self.bad & set(batch):
            raise self.raises("secret")
        return batch

    @property
    def sizes(self):
        return [len(call) for call in self.calls]


def singly(steps, count):
    return steps.run([[i] for i in range(count)])


def failed(outcomes):
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]


# --- whom it finds, and how soon -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "bad", "sizes"),
    [
        (1, [0], [1]),
        (2, [1], [2, 1, 1]),
        (6, [2], [6, 1, 1, 1, 1, 1, 1]),
        (7, [6], [7, 2, 2, 2, 1]),
        (16, [5], [16, 4, 4, 4, 4, 1, 1, 1, 1]),
        (64, [0], [64, 16, 16, 16, 16, 4, 4, 4, 4, 1, 1, 1, 1]),
        (64, [0, 63], [64, 16, 16, 16, 16, *[4, 4, 4, 4, 1, 1, 1, 1] * 2]),
    ],
    ids=str,
)
def test_the_parts_that_run(count, bad, sizes):
    handler = Poisoned(bad)
    steps = Steps(handler)
    outcomes = singly(steps, count)
    assert (sorted(handler.sizes), failed(outcomes)) == (sorted(sizes), bad)
    assert steps.laps.retries == len(sizes) - 1
    assert [outcome for i, outcome in enumerate(outcomes) if i not in bad] == [
        [i] for i in range(count) if i not in bad
    ]


@pytest.mark.parametrize("bad", [range(2, 16), range(16)], ids=["one", "all"])
def test_a_request_that_fills_most_of_a_batch_costs_the_others_nothing(bad):
    """Each of four parts had some of it, so that the model seemed to fail on everything."""
    handler = Poisoned(bad)
    steps = Steps(handler)
    outcomes = steps.run([[0], list(range(2, 16)), [1]])
    assert failed(outcomes) == ([1] if 0 not in bad else [0, 1, 2])
    assert handler.sizes == [16, 4, 4, 4, 4, 2] and steps.laps.systemic == (0 in bad)


@settings(max_examples=50)
@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_innocent_requests_are_answered_within_the_number_of_runs_that_is_promised(drawn):
    count, bad = drawn
    handler = Poisoned(bad)
    steps = Steps(handler)
    outcomes = singly(steps, count)
    extra = len(handler.calls) - 1
    assert extra == steps.laps.retries
    assert extra <= count + (3 if 7 <= count <= 15 else 0)
    assert extra <= 2 * math.ceil(math.log2(count)) * len(bad)
    if steps.laps.systemic:
        quarters = handler.calls[1:5]
        assert failed(outcomes) == list(range(count)) and all(bad & set(call) for call in handler.calls)
        assert len(bad) == count or [len(part) for part in quarters] == [-(-(count - i) // 4) for i in range(4)]
    else:
        assert failed(outcomes) == sorted(bad)
        assert all(outcomes[i] == [i] for i in range(count) if i not in bad)


KINDS = ["good", "bad", "refused", "unnamed", "row", "refused row"]


class Mixed(Echo):
    """Whatever can be wrong with an item (who, kind). raised: the kinds that it raises for, the rest are rows."""

    def __init__(self):
        self.runs = 0

    def run_inference(self, batch, requests):
        assert [who for who, _ in batch] == requests
        self.runs += 1
        kinds = [kind for _, kind in batch]
        if "refused" in kinds:
            raise ItemError("refused", kinds.index("refused"))
        if "unnamed" in kinds:
            raise ItemError("unnamed", status=404)
        if "bad" in kinds:
            raise RuntimeError
        rows = {"row": KeyError("secret"), "refused row": ItemError("row", 17, status=409)}
        return [rows.get(kind, who) for who, kind in batch]


SAID = {"bad": (500, "RuntimeError"), "refused": (422, "refused"), "unnamed": (404, "unnamed")}
SAID |= {"row": (500, "row"), "refused row": (409, "row")}


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), min_size=1, max_size=12))
def test_whatever_else_is_in_a_batch_each_request_has_an_answer_that_is_its_own(kinds):
    work = [[(who, kind) for kind in request] for who, request in enumerate(kinds)]
    handler = Mixed()
    steps = Steps(handler)
    outcomes = steps.run(work, list(range(len(work))))
    assert handler.runs <= 1 + sum(map(len, kinds)) + 4
    for request, items, outcome in zip(kinds, work, outcomes, strict=True):
        if set(request) == {"good"}:
            assert outcome == [who for who, _ in items] or steps.laps.systemic
        elif not steps.laps.systemic:
            # One that a run has named settles its request, whatever else is wrong with others of its items
            assert (outcome.status, str(outcome).split()[-1]) in [SAID[kind] for kind in request if kind != "good"]


def test_the_error_is_that_of_the_lowest_failing_item_of_the_request():
    handler = Poisoned([3, 12, 17])
    outcomes = Steps(handler).run([[0], list(range(1, 20)), [20, 21], [22]])
    assert [outcomes[0], *outcomes[2:]] == [[0], [20, 21], [22]]
    assert str(outcomes[1]) == "item 2: run_inference raised RuntimeError"
    assert str(outcomes[1].__cause__) == "secret"


def test_what_is_left_of_a_part_when_its_culprit_is_gone_runs_again():
    handler = Poisoned([13, 14])
    outcomes = Steps(handler).run([[0, 1, 2], [13, 14], [5, 6]])
    assert failed(outcomes) == [1] and [outcomes[0], outcomes[2]] == [[0, 1, 2], [5, 6]]
    assert handler.calls[1:] == [[0, 1], [2, 13], [14, 5], [6], [2], [13], [5]]


@pytest.mark.parametrize(
    ("count", "good"), [(128, range(32)), (200, range(50, 100)), (32, range(8)), (20, [0, 1, 2, 3, 4])]
)
def test_where_most_fail_there_are_no_more_runs_than_items(count, good):
    handler = Poisoned(set(range(count)) - set(good))
    steps = Steps(handler)
    assert failed(singly(steps, count)) == sorted(handler.bad)
    assert count - 8 <= steps.laps.retries <= count


def test_a_request_of_one_item_fails_in_the_same_words_alone_and_in_company():
    alone, *_ = Steps(Poisoned([0])).run([[0]])
    first, *_ = singly(Steps(Poisoned([0])), 4)
    assert str(alone) == str(first) == "run_inference raised RuntimeError"


def test_no_more_runs_for_a_request_that_has_failed_already():
    handler = Poisoned([0, 1, 2, 3, 40])
    outcomes = Steps(handler).run([list(range(60)), [60], [61], [62], [63]])
    assert failed(outcomes) == [0] and outcomes[1:] == [[60], [61], [62], [63]]
    assert handler.sizes == [64, 16, 16, 16, 16, 4, 1]


def test_items_that_fail_only_together_all_have_their_answers():
    class Quarrels(Poisoned):
        def run_inference(self, batch):
            self.calls.append(list(batch))
            if {1, 14} <= set(batch):
                raise RuntimeError
            return batch

    handler = Quarrels()
    assert singly(Steps(handler), 16) == [[i] for i in range(16)]
    assert handler.sizes == [16, 4, 4, 4, 4]


# --- what is run again is what the clients sent ----------------------------------------------------------------------


class Spoils(Writes):
    """Writes in place, all of it, before it raises."""

    def __init__(self, bad=()):
        self.bad = bad
        self.seen = []

    def run_inference(self, batch):
        assert batch.flags.c_contiguous and batch.ctypes.data % 64 == 0
        self.seen.append(batch[:, 0].tolist())
        batch *= 2
        if set(batch[:, 0].tolist()) & {2 * value for value in self.bad}:
            raise RuntimeError
        return batch


def rows_in(outcomes):
    return [outcome if isinstance(outcome, Exception) else outcome.arrays()[""][:, 0].tolist() for outcome in outcomes]


class Kept(Recorder):
    def let_go(self):
        """Of nothing: what came is kept for a second run."""


def put(ring, *values):
    ticket = Kept(values)
    ticket.values = values
    ticket.items = items_of([vector(value, value, value).tolist() for value in values])
    return ticket if ring.put(ticket) else None


def taken(handler, *requests, size=16, **options):
    ring = ring_of(64, size)
    tickets = [put(ring, *values) for values in requests]
    return tickets, ring.take(size), TensorSteps(handler, False, **options)


@pytest.mark.parametrize("shares", [False, True])
def test_rows_that_the_model_has_written_to_are_read_anew(shares):
    handler = Spoils([3])
    _, batch, steps = taken(handler, [1], [2, 3], [4], [5, 6, 7], shares=shares)
    outcomes = steps.run(batch.work)
    assert failed(outcomes) == [1] and outcomes[1].index == 1
    del outcomes[1]
    assert rows_in(outcomes) == [[2], [8], [10, 12, 14]]
    assert handler.seen == [[1, 2, 3, 4, 5, 6, 7], [1, 2], [3, 4], [5, 6], [7], [3], [4]]


class Reuses(Spoils):
    """Has one buffer for all that it gives."""

    def __init__(self, bad=()):
        super().__init__(bad)
        self.buffer = np.empty((16, 3), "f4")

    def run_inference(self, batch):
        rows = self.buffer[: len(batch)]
        rows[...] = Spoils.run_inference(self, batch)
        return rows


def test_a_model_that_writes_its_answers_into_one_buffer_again_and_again_spoils_none():
    _, batch, steps = taken(Reuses([9]), *([i] for i in range(1, 13)))
    outcomes = steps.run(batch.work)
    assert failed(outcomes) == [8]
    assert rows_in(outcomes[:8] + outcomes[9:]) == [[2 * i] for i in range(1, 13) if i != 9]


class Named(TensorHandler):
    inputs = {"a": Tensor("f4", (3,)), "b": Tensor("i8")}

    def run_inference(self, batch):
        batch["b"] += 1
        batch["a"] *= 2
        if 5 in batch["b"]:
            raise RuntimeError
        return {"sum": batch["a"].sum(axis=1) + batch["b"], "a": batch["a"]}


def test_named_inputs_and_outputs():
    ring = RowRing(Named.inputs, 16, 64, 1 << 20)
    for values in ([1], [2, 3], [4], [6, 7]):
        ticket = Kept([])
        ticket.items = items_of([{"a": [value] * 3, "b": value} for value in values], ("a", "b"))
        ticket.count = len(values)
        assert ring.put(ticket)
    outcomes = TensorSteps(Named(), False).run(ring.take(16).work)
    assert failed(outcomes) == [2]
    assert [outcomes[i].arrays()["sum"].tolist() for i in (0, 1, 3)] == [[8], [15, 22], [43, 50]]
    assert outcomes[3].arrays()["a"].tolist() == [[12] * 3, [14] * 3]


def test_rows_that_moved_into_holes_are_found_again():
    ring = ring_of(64, 16)
    tickets = [put(ring, i) for i in range(1, 9)]
    ring.cancel(tickets[1])
    ring.cancel(tickets[4])
    batch = ring.take(16)
    outcomes = TensorSteps(Spoils([7]), False).run(batch.work)
    values = [ticket.values[0] for ticket, _, _ in batch.spans]
    assert values == [1, 7, 3, 4, 8, 6] and failed(outcomes) == [1]
    assert rows_in(outcomes[:1] + outcomes[2:]) == [[2], [6], [8], [16], [12]]


def test_who_left_meanwhile_is_not_run_again():
    handler = Spoils([1])
    tickets, batch, steps = taken(handler, [1], [2, 3], [4])
    tickets[1].resolve([], ValueError())
    outcomes = steps.run(batch.work)
    assert rows_in(outcomes[2:]) == [[8]] and failed(outcomes) == [0, 1]
    assert handler.seen[1:] == [[1], [4]]


def test_what_a_batch_was_made_of_goes_with_its_outcomes():
    """It was in a cycle, by the traceback of an error that nobody had asked for: charged no more, and kept for long."""

    class Sent(list):
        pass

    class Fails(Echo):
        def run_inference(self, batch):
            if ["bad"] in batch:
                raise RuntimeError("secret")
            return batch

    items = [Sent(["good"]), Sent(["bad"]), Sent(["good"])]
    left = [weakref.ref(item) for item in items]
    gc.collect()
    gc.disable()
    try:
        outcomes = Steps(Fails()).run([[item] for item in items])
        assert failed(outcomes) == [1] and outcomes[1].__cause__.args == ("secret",)
        del items[:], outcomes
        assert [each() for each in left] == [None] * 3
    finally:
        gc.enable()


def test_items_of_one_request_in_several_batches(loop):
    batcher = Batcher(loop, 4, 0, 64, loop.clock)
    batcher.run_with(InlineExecutor(), TensorSteps(Spoils([6]), False), ring_of(64))
    tickets = []
    for values in ([1, 2, 3], [4, 5], [6], [7, 8]):
        ticket = Kept([vector(*[value] * 3).tolist() for value in values])
        ticket.items = items_of(ticket.items)
        batcher.admit(ticket, loop.now)
        tickets.append(ticket)
    loop.settle()
    answers = [ticket.answers[0] for ticket in tickets]
    assert [len(ticket.answers) for ticket in tickets] == [1] * 4
    assert [error is None for _, error in answers] == [True, True, False, True]
    assert rows_in([answers[i][0] for i in (0, 1, 3)]) == [[2, 4, 6], [8, 10], [14, 16]]


def test_a_list_of_items_is_read_by_process_request_again():
    class Stacks(Poisoned):
        def process_request(self, data):
            return np.array(data, "f4")

        def run_inference(self, batch):
            batch *= 2
            return Poisoned.run_inference(self, batch)

    handler = Stacks([6])
    outcomes = Steps(handler).run([[1, 2], [3], [4, 5]])
    assert failed(outcomes) == [1] and [outcomes[0], outcomes[2]] == [[2, 4], [8, 10]]
    assert handler.calls[1:] == [[2], [4], [6], [8], [10]]


def test_what_process_request_makes_of_a_part_may_be_wrong_too():
    class Picky(Poisoned):
        def process_request(self, data):
            if data == [2]:
                raise ZeroDivisionError
            if data == [4]:
                raise ItemError("not alone", 0)
            return data

    outcomes = singly(Steps(Picky([0])), 5)
    assert failed(outcomes) == [0, 2, 4]
    assert str(outcomes[2]) == "process_request raised ZeroDivisionError"
    assert (outcomes[4].status, outcomes[4].index) == (422, 0)


def test_what_decode_item_made_is_made_again_and_no_item_is_decoded_twice_without_need():
    decoded = []

    class Decodes(Poisoned):
        @staticmethod
        def decode_item(item):
            decoded.append(item)
            if item == 3:
                raise ItemError("three")
            return [item]

        def process_request(self, data):
            return [each.pop() for each in data]

    handler = Decodes([1])
    outcomes = steps_for(handler).run([[0], [1], [2, 3], [4]])
    assert failed(outcomes) == [1, 2] and [outcomes[0], outcomes[3]] == [[0], [4]]
    assert decoded == [0, 1, 2, 3, 4, 0, 1, 4]


def test_arrays():
    class Takes(Poisoned):
        def process_request(self, data: np.ndarray):
            return data[:, 0]

    outcomes = steps_for(Takes([3])).run([np.ones((1, 2)), np.full((2, 2), 2.0), np.full((1, 2), 3.0)])
    assert failed(outcomes) == [2] and outcomes[:2] == [[1], [2, 2]]


def test_requests_that_are_fine_alone_are_searched_too_where_process_request_raised():
    class Both(Poisoned):
        def process_request(self, data):
            if "bad" in data:
                raise ItemError("no", data.index("bad"))
            return data

    outcomes = Steps(Both([2])).run([[1], ["bad"], [2], [3, 4]])
    assert failed(outcomes) == [1, 2] and [outcomes[0], outcomes[3]] == [[1], [3, 4]]


# --- ItemErrors, rows that are errors, and what is never run again ---------------------------------------------------


class Refuses(Poisoned):
    """Raises an ItemError with its index for the first item above 99, and what Poisoned does for others."""

    def run_inference(self, batch):
        for i, item in enumerate(batch):
            if item > 99:
                self.calls.append(list(batch))
                raise ItemError("too large", i, status=413)
        return Poisoned.run_inference(self, batch)


def test_an_item_error_with_its_index_is_its_owners_and_the_rest_runs_again():
    handler = Refuses()
    steps = Steps(handler)
    outcomes = steps.run([[1, 2], [3, 100, 4], [5], [101]])
    assert handler.calls == [[1, 2, 3, 100, 4, 5, 101], [1, 2, 5, 101], [1, 2, 5]]
    assert [(error.status, error.index) for error in (outcomes[1], outcomes[3])] == [(413, 1), (413, 0)]
    assert [outcomes[0], outcomes[2]] == [[1, 2], [5]]
    assert (steps.laps.retries, steps.laps.systemic) == (2, False)


def test_where_nobody_is_left_nothing_runs_again():
    handler = Refuses()
    assert failed(Steps(handler).run([[1, 100, 2]])) == [0]
    assert len(handler.calls) == 1


def test_an_item_error_in_a_part_is_no_failed_part():
    work = [[i] for i in range(16)]
    work[3] = [103]

    class Late(Refuses):
        """Looks at sizes first: refuses small parts only."""

        def run_inference(self, batch):
            if len(batch) > 4:
                self.calls.append(list(batch))
                raise RuntimeError
            return Refuses.run_inference(self, batch)

    handler = Late([0])
    outcomes = Steps(handler).run(work)
    assert failed(outcomes) == [0, 3] and outcomes[3].status == 413
    assert handler.sizes == [16, 4, 3, 4, 4, 4, 1, 1, 1]


@pytest.mark.parametrize("index", [None, -1, 16, 2**70, "1", 0.5], ids=str)
def test_an_item_error_whose_index_is_none_of_the_items_is_searched_for_and_keeps_its_status(index):
    class Odd(Poisoned):
        def run_inference(self, batch):
            self.calls.append(list(batch))
            if 5 in batch:
                raise ItemError("no", index, status=404)
            return batch

    handler = Odd()
    outcomes = singly(Steps(handler), 16)
    assert failed(outcomes) == [5] and (outcomes[5].status, outcomes[5].index) == (404, 0)
    assert handler.sizes == [16, 4, 4, 4, 4, 1, 1, 1, 1]


def test_item_errors_are_never_systemic():
    class All(Poisoned):
        def run_inference(self, batch):
            self.calls.append(batch)
            raise ItemError("no")

    handler = All()
    steps = Steps(handler)
    outcomes = singly(steps, 16)
    assert {error.status for error in outcomes} == {422} and len(set(map(id, outcomes))) == 16
    assert not steps.laps.systemic and len(handler.calls) == 1 + 4 + 16


ROWS = [ItemError("none", 5, status=404), KeyError("secret"), SystemExit(3), HandlerError("mine", 7)]
WORDS = [
    (404, "item 1: none"),
    *((500, f"item 1: run_inference gave a {k} in place of a row") for k in ("KeyError", "SystemExit")),
]
WORDS.append((500, "item 1: mine"))


@pytest.mark.parametrize(
    ("row", "said"), list(zip(ROWS, WORDS, strict=True)), ids=["ItemError", "KeyError", "SystemExit", "own"]
)
@pytest.mark.parametrize("form", ["list", "array", "iterator", "async", "rows", "json of rows"])
def test_an_exception_in_place_of_a_row_is_its_requests_error(row, said, form):
    class Gives(Echo):
        def run_inference(self, batch):
            self.runs = getattr(self, "runs", 0) + 1
            rows = [row if item == 2 else np.full(2, item) for item in range(len(batch))]
            if form == "array":
                array = np.empty(len(rows), object)
                array[:] = rows
                return array
            return iter(rows) if form == "iterator" else rows

    class Async(Gives):
        async def process_response(self, row):
            return row

    class Declared(Gives, TensorHandler):
        inputs = VECTOR
        outputs = None

    if form in ("rows", "json of rows"):
        handler = Declared()
        steps = TensorSteps(handler, form == "json of rows")
        outcomes = steps.run((np.zeros((5, 3)), [1, 2, 2]))
    else:
        handler = Async() if form == "async" else Gives()
        steps = Steps(handler)
        outcomes = drive(steps.run_async([[0], [0, 0], [0, 0]]))
    first, error, last = outcomes
    assert (error.status, str(error)) == said
    if form == "rows":
        first, last = list(first.arrays()[""]), list(last.arrays()[""])
    assert [each.tolist() for each in first + last] == [[0, 0], [3, 3], [4, 4]]
    assert handler.runs == 1 and not steps.laps.systemic
    assert not isinstance(row, ItemError) or row.index == 5


def test_rows_that_are_all_exceptions():
    class Gives(Identity):
        def run_inference(self, batch):
            return [ItemError(str(i)) for i in range(len(batch))]

    outcomes = TensorSteps(Gives(), False).run((np.zeros((3, 3)), [2, 1]))
    assert [str(outcome) for outcome in outcomes] == ["item 0: 0", "item 0: 2"]


def test_exceptions_do_not_make_up_for_rows_that_are_missing():
    class Gives(Identity):
        def run_inference(self, batch):
            return [ItemError("no")]

    for encodes in (False, True):
        outcomes = TensorSteps(Gives(), encodes).run((np.zeros((3, 3)), [2, 1]))
        assert {str(outcome) for outcome in outcomes} == {
            "run_inference returned 1 rows for 3 items; expected one per item"
        }


@pytest.mark.parametrize("wrong", [[1], {"a": 1}, "text", (1, 2)], ids=repr)
def test_rows_that_break_the_contract_are_never_run_again(wrong):
    class Wrong(Poisoned):
        def run_inference(self, batch):
            self.calls.append(batch)
            return wrong

    handler = Wrong()
    steps = Steps(handler)
    first, second = steps.run([[1], [2, 3]])
    assert first is second and type(first) is HandlerError and "run_inference returned" in str(first)
    assert len(handler.calls) == 1 and not steps.laps.systemic, "it has not raised"


def test_a_part_that_breaks_the_contract_fails_and_is_not_split():
    class Short(Poisoned):
        def run_inference(self, batch):
            rows = Poisoned.run_inference(self, batch)
            return rows[1:] if 0 in batch else rows

    handler = Short([15])
    outcomes = singly(Steps(handler), 16)
    assert failed(outcomes) == [0, 1, 2, 3, 15]
    assert handler.sizes == [16, 4, 4, 4, 4, 1, 1, 1, 1]
    assert {str(outcome) for outcome in outcomes[:4]} == {
        "run_inference returned 3 rows for 4 items; expected one per item"
    }


def test_what_an_iterator_raises_is_what_run_inference_raised():
    class Yields(Poisoned):
        def run_inference(self, batch):
            self.calls.append(list(batch))
            for i, item in enumerate(batch):
                if item == 3:
                    raise ItemError("three", i)
                if item == 1:
                    raise RuntimeError
                yield item

    outcomes = singly(Steps(Yields()), 5)
    assert failed(outcomes) == [1, 3] and outcomes[3].status == 422 and outcomes[1].status == 500


def test_a_handler_error_that_run_inference_raises_is_no_broken_contract():
    outcomes = singly(Steps(Poisoned([1], raises=HandlerError)), 3)
    assert failed(outcomes) == [1] and str(outcomes[1]) == "secret"


def test_process_response_is_called_once_for_each_row_that_came():
    class Encodes(Poisoned):
        def __init__(self):
            super().__init__([1])
            self.encoded = []

        def process_response(self, row):
            self.encoded.append(row)
            if row == 2:
                raise KeyError
            return row

    handler = Encodes()
    outcomes = singly(Steps(handler), 4)
    assert failed(outcomes) == [1, 2] and str(outcomes[2]) == "item 0: process_response raised KeyError"
    assert handler.encoded == [0, 2, 3]


# --- systemic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (2, 3), (3, 4), (4, 5), (6, 7), (7, 5), (64, 5), (512, 5)])
def test_a_model_that_fails_on_everything_is_given_up_after_four_quarters(count, runs):
    handler = Poisoned(range(count))
    steps = Steps(handler)
    outcomes = singly(steps, count)
    assert failed(outcomes) == list(range(count)) and len(handler.calls) == runs
    assert steps.laps.systemic and steps.laps.retries == runs - 1
    assert {str(outcome) for outcome in outcomes} == {"run_inference raised RuntimeError"}
    assert len(set(map(id, outcomes))) == 1, "its traceback is logged once"


def test_one_part_that_is_fine_is_enough_to_go_on():
    handler = Poisoned(range(48))
    steps = Steps(handler)
    assert failed(singly(steps, 64)) == list(range(48))
    assert not steps.laps.systemic and len(handler.calls) == 1 + 64


def test_a_success_or_a_refusal_is_not_systemic():
    for handler in (Poisoned(), Poisoned([1]), Refuses()):
        steps = Steps(handler)
        steps.run([[1], [2], [100]])
        assert not steps.laps.systemic


def test_without_isolation_a_batch_fails_whole_but_for_who_is_named():
    for handler, whole in ((Poisoned([1]), True), (Refuses(), False)):
        steps = Steps(handler)
        steps.isolates = False
        outcomes = steps.run([[1], [2], [100]])
        assert failed(outcomes) == [0, 1, 2] and len(handler.calls) == 1
        assert [outcome.status for outcome in outcomes] == [500, 500, 500 if whole else 413]
        assert (steps.laps.systemic, steps.laps.retries) == (whole, 0)


# --- memory of a device ----------------------------------------------------------------------------------------------


def torch_error():
    torch = library("torch")
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("where", ["run_inference", "process_request"])
def test_a_batch_that_is_too_large_for_the_device_is_halved_and_the_size_is_kept(where, caplog):
    class Large(Poisoned):
        def check(self, batch):
            if len(batch) > 8:
                raise torch_error()
            return batch

        def process_request(self, data):
            return self.check(data) if where == "process_request" else data

        def run_inference(self, batch):
            self.calls.append(list(batch))
            return self.check(batch)

    handler = Large()
    steps = Steps(handler)
    assert singly(steps, 32) == [[i] for i in range(32)]
    assert steps.laps.retries == 6 and not steps.laps.systemic  # 16; 8, 16 again, 8, 8, 8
    handler.calls.clear()
    assert singly(steps, 30) == [[i] for i in range(30)]
    assert handler.sizes == [8, 8, 8, 6] and steps.laps.retries == 0
    assert steps.run([list(range(9)), [9]]) == [list(range(9)), [9]]
    (record,) = [record for record in caplog.records if "out of memory" in record.getMessage()]
    assert record.levelno == logging.WARNING and "at most 8 items at once" in record.getMessage()
    assert (record.event, record.items) == ("out_of_memory", 8)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_an_error_of_that_name_will_do_and_lets_go_of_what_the_run_held(is_async):
    freed = []

    class Held:
        def __del__(self):
            freed.append(len(handler.calls))

    class Holds(Poisoned):
        def run_inference(self, batch):
            held = Held()  # noqa: F841
            return Poisoned.run_inference(self, batch)

    class HoldsAsync(Poisoned):
        async def run_inference(self, batch):
            held = Held()  # noqa: F841
            return Poisoned.run_inference(self, batch)

    handler = HoldsAsync(most=2) if is_async else Holds(most=2)
    assert drive(Steps(handler).run_async([[i] for i in range(4)])) == [[i] for i in range(4)]
    assert freed == [1, 2, 3]


def test_rows_of_a_large_batch_are_read_from_the_batch_itself_before_the_model_sees_it():
    class Large(Spoils):
        def run_inference(self, batch):
            if len(batch) > 4:
                batch *= 0
                raise OutOfMemoryError
            return Spoils.run_inference(self, batch)

    handler = Large()
    _, batch, steps = taken(handler, *([i] for i in range(1, 11)))
    assert rows_in(steps.run(batch.work)) == [[2 * i] for i in range(1, 11)]
    _, batch, _ = taken(handler, *([i] for i in range(1, 11)))
    handler.seen.clear()
    for ticket, _, _ in batch.spans:
        ticket.items = ()  # what was not kept is not needed
    handler.bad = [7]
    outcomes = steps.run(batch.work)
    assert failed(outcomes) == [6] and rows_in(outcomes[:6]) == [[2 * i] for i in range(1, 7)]
    assert all(value in range(1, 11) for call in handler.seen for value in call)


def test_an_item_that_is_too_large_alone_is_its_requests_error_and_teaches_nothing():
    class Huge(Poisoned):
        def run_inference(self, batch):
            self.calls.append(list(batch))
            if 0 in batch:
                raise OutOfMemoryError
            return batch

    handler = Huge()
    steps = Steps(handler)
    outcomes = singly(steps, 16)
    assert failed(outcomes) == [0] and str(outcomes[0]) == "run_inference raised OutOfMemoryError"
    assert steps.fits == 0 and not steps.laps.systemic


def test_a_device_without_any_memory_is_systemic():
    handler = Poisoned(most=0)
    steps = Steps(handler)
    assert failed(singly(steps, 16)) == list(range(16))
    assert steps.laps.systemic and steps.fits == 0 and len(handler.calls) <= 1 + 16 + 4


def test_after_a_long_time_without_an_error_more_items_are_tried():
    handler = Poisoned(most=4)
    steps = Steps(handler)
    singly(steps, 8)
    assert steps.fits == 4
    handler.most = 8
    singly(steps, 8)
    assert steps.proven == 1
    steps.proven = PROVEN - 1
    handler.calls.clear()
    singly(steps, 8)
    singly(steps, 8)
    assert handler.sizes == [4, 4, 8]


def test_a_poisonous_item_in_a_batch_of_parts():
    handler = Poisoned(most=8)
    steps = Steps(handler)
    singly(steps, 16)
    handler.bad, handler.calls = {3}, []
    outcomes = singly(steps, 16)
    assert failed(outcomes) == [3] and not steps.laps.systemic
    assert handler.sizes == [8, 2, 2, 1, 1, 2, 2, 8] and steps.laps.retries == 7


# --- who runs it, and where ------------------------------------------------------------------------------------------


class Async(Poisoned):
    async def run_inference(self, batch, requests):
        await asyncio.sleep(0)
        assert [f"asked for {item}" for item in batch] == requests
        return Poisoned.run_inference(self, batch)


class Waiting(Recorder):
    def __init__(self, items):
        super().__init__(items)
        self.came = asyncio.get_running_loop().create_future()

    def asker(self):
        return f"asked for {self.items[0]}"

    def deliver(self, rows, error):
        self.came.set_result(error or rows)


@pytest.mark.parametrize("executor", ["inline", "thread", "async"])
def test_every_executor_searches(executor):
    async def main():
        loop = asyncio.get_running_loop()
        kinds = {"inline": lambda loop: InlineExecutor(), "thread": lambda loop: ThreadExecutor(loop, "m")}
        made = kinds.get(executor, AsyncExecutor)(loop)
        batcher = Batcher(loop, 64, 0, 64)
        batcher.run_with(made, Steps(Async([5, 40]) if executor == "async" else Poisoned([5, 40])))
        futures = [Waiting([i]) for i in range(64)]
        for future in futures:
            batcher.admit(future, 0)
        answers = await asyncio.wait_for(asyncio.gather(*(future.came for future in futures)), 10)
        if executor == "thread":
            made.stop()
        return answers

    answers = asyncio.run(main())
    assert failed(answers) == [5, 40]
    assert all(answers[i] == [i] for i in range(64) if i not in (5, 40))


def test_a_handler_that_exits_while_a_part_runs_fails_its_batch_and_ends_nothing(loop):
    class Exits(Poisoned):
        def run_inference(self, batch):
            self.calls.append(batch)
            raise RuntimeError if len(batch) > 1 else SystemExit(3)

    batcher = Batcher(loop, 4, 0, 16, loop.clock)
    batcher.run_with(InlineExecutor(), Steps(Exits(), loop.clock))
    tickets = [Kept("a"), Kept("b")]
    for ticket in tickets:
        batcher.admit(ticket, loop.now)
    loop.settle()
    assert all("SystemExit" in str(ticket.answers[0][1]) for ticket in tickets)


def test_a_batch_on_a_device():
    torch = library("torch")

    class Doubles(TensorHandler):
        inputs = VECTOR

        def run_inference(self, batch):
            assert type(batch) is torch.Tensor
            batch *= 2
            if (batch == 8).any():
                raise RuntimeError
            return batch

    ring = ring_of(64, 16)
    for i in range(1, 9):
        put(ring, i)
    outcomes = TensorSteps(Doubles(), False, device=Device("cpu")).run(ring.take(16).work)
    assert failed(outcomes) == [3]
    assert rows_in(outcomes[:3] + outcomes[4:]) == [[2 * i] for i in range(1, 9) if i != 4]


def test_the_methods_are_timed_over_all_runs():
    loop = FakeLoop()

    class Slow(Poisoned):
        def run_inference(self, batch):
            loop.now += 10
            return Poisoned.run_inference(self, batch)

    steps = Steps(Slow([1]), loop.clock)
    singly(steps, 4)
    assert steps.laps.run_inference == 50


# --- over HTTP -------------------------------------------------------------------------------------------------------


class Served(Spoils):
    def run_inference(self, batch):
        assert self.held() > 0
        return Spoils.run_inference(self, batch)


def served(handler, *bodies, **options):
    app = http_server("parts", handler, **options)
    handler.held = lambda: app.budget.held

    async def asks():
        answers = await asyncio.gather(*(ask_direct(app, sent) for sent in bodies))
        assert app.model.admission.bodies.held == 0
        return answers

    (answers,) = run(app, asks())
    return answers


def numbers(*values):
    return json.dumps({"data": [[value] * 3 for value in values]}).encode()


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_bodies_are_charged_until_their_requests_are_answered_and_read_again(executor):
    bodies = [
        body(vector(*[1] * 3)),
        numbers(2, 3),
        numbers(4),
        body(*(vector(*[i] * 3) for i in range(5, 9))),
        b'{"data":["no"]}',
    ]
    answers = served(Served([4]), *bodies, executor=executor)
    assert [answer.status for answer in answers] == [200, 200, 500, 200, 422]
    assert answers[2].error.startswith("run_inference raised RuntimeError; request id ")
    assert decode_numpy(answers[0].json["data"][0]).tolist() == [2] * 3
    assert answers[1].json["data"] == [[4.0] * 3, [6.0] * 3]
    assert [decode_numpy(item)[0] for item in answers[3].json["data"]] == [10, 12, 14, 16]


def test_over_half_of_the_budget_nothing_is_kept_and_the_log_says_so_once(caplog):
    class Keeps(Spoils):
        def run_inference(self, batch):
            self.most = max(getattr(self, "most", 0), self.held())
            return Spoils.run_inference(self, batch)

    limits = Limits(max_bytes=1 << 20, body=1 << 19)
    handler = Keeps([3])
    app = http_server("parts", handler, limits=limits, max_batch_size=8, max_queue_size=32)
    handler.held = lambda: app.budget.held

    async def asks():
        for _ in range(2):
            app.budget.held += 1 << 19
            answers = await asyncio.gather(*(ask_direct(app, numbers(i)) for i in range(4)))
            assert [answer.status for answer in answers] == [500] * 4
            assert handler.most == 1 << 19
            app.budget.held -= 1 << 19
        answers = await asyncio.gather(*(ask_direct(app, numbers(i)) for i in range(4)))
        assert [answer.status for answer in answers] == [200, 200, 200, 500]
        assert app.budget.held == 0

    run(app, asks())
    assert len([record for record in caplog.records if "limits.max_bytes" in record.getMessage()]) == 1


def test_without_isolation_no_body_is_kept(caplog):
    held = []

    class Looks(Spoils):
        def run_inference(self, batch):
            held.append(app.budget.held)
            return Spoils.run_inference(self, batch)

    app = http_server("parts", Looks([3]), isolate_errors=False)
    answers = run(app, *(ask_direct(app, numbers(i)) for i in range(4)))
    assert [answer.status for answer in answers] == [500] * 4 and held == [0]
    assert "limits.max_bytes" not in caplog.text


class Lists(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, batch):
        if "bad" in batch:
            raise KeyError("secret")
        return [KeyError("secret") if item == "odd" else item for item in batch]

    def process_response(self, row):
        return row


def test_one_line_of_the_log_for_each_culprit_under_its_id(caplog):
    items = ["a", "bad", "b", "odd", "c"]
    answers = served(Lists(), *(json.dumps({"data": [item]}).encode() for item in items))
    assert [answer.status for answer in answers] == [200, 500, 200, 500, 200]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 2
    for answer, line in zip((answers[1], answers[3]), said, strict=True):
        words, _, name = answer.error.partition("; request id ")
        assert line == f"request {name}: {words}"
    assert "secret" in caplog.text and not any(b"secret" in answer.body for answer in answers)
