"""What items cost: where a batch is full, what cost() may give, and whom a cost() that fails concerns."""

import logging
import math
import re
import threading
from fractions import Fraction

import numpy as np
import pytest
from conftest import FakeLoop
from kit.asks import Echo, ask_asgi, ask_direct, run
from test_batcher import Rig, Watching
from test_ring import Recorder

from virtex import HttpMessage, ItemError, Tensor, TensorHandler, http_server
from virtex.batch.arrays import ArrayRing
from virtex.batch.company import Peer
from virtex.batch.costs import CostRing, costs_of, fitting
from virtex.batch.steps import Steps
from virtex.errors import HandlerError


def itself(item):
    return item


def ring_of(most, capacity=16, cost=itself):
    return CostRing(capacity, cost, most)


def put(ring, *items):
    ticket = Recorder(items)
    assert ring.put(ticket)
    return ticket


def taken(ring, limit=16):
    """All that waits, batch by batch."""
    works = []
    while ring.size:
        batch = ring.take(limit)
        assert batch.cost == sum(item for items in batch.work for item in items)
        works.append(batch.work)
    assert not ring._costs and not ring._waiting
    return works


def test_a_batch_is_the_longest_run_from_the_front_that_the_budget_holds():
    ring = ring_of(10)
    for item in (4, 6, 7, 2, 9, 1, 3):
        put(ring, item)
    assert taken(ring) == [[[4], [6]], [[7], [2]], [[9], [1]], [[3]]]


def test_an_item_over_the_budget_runs_alone_and_nobody_passes_it():
    ring = ring_of(10)
    for item in (1, 11, 0, 0, 12, 13):
        put(ring, item)
    assert taken(ring) == [[[1]], [[11]], [[0], [0]], [[12]], [[13]]]


def test_a_request_is_split_where_its_items_reach_the_budget():
    ring = ring_of(10)
    put(ring, 3, 3, 3, 3, 20, 1)
    put(ring, 9)
    assert taken(ring) == [[[3, 3, 3]], [[3]], [[20]], [[1], [9]]]


def test_items_bound_a_batch_as_before():
    ring = ring_of(10)
    put(ring, 1, 1, 1)
    put(ring, 0, 0)
    assert taken(ring, 2) == [[[1, 1]], [[1], [0]], [[0]]]


def test_it_is_full_when_what_waits_reaches_the_budget_and_knows_it_after_some_went():
    ring = ring_of(10)
    put(ring, 4)
    assert not ring.is_ready(16)
    leaves = put(ring, 5)
    assert not ring.is_ready(16)
    last = put(ring, 1)
    assert ring.is_ready(16)
    ring.cancel(leaves)
    assert not ring.is_ready(16)
    put(ring, 4)
    assert not ring.is_ready(16) and ring.is_ready(3)
    put(ring, 1)
    assert ring.is_ready(16)
    ring.cancel(last)
    put(ring, 2)
    assert ring.is_ready(16), "4 and 4 and 1 fit, 2 beside them does not"
    assert taken(ring) == [[[4], [4], [1]], [[2]]]


def test_huge_costs_leave_no_trace_in_what_comes_after_them():
    ring = ring_of(10)
    put(ring, 3)
    huge = put(ring, 1e300)
    ring.cancel(huge)
    assert not ring.is_ready(16)
    put(ring, 7)
    assert ring.is_ready(16)
    put(ring, 1e300, 1.5e308, 1.5e308, 0.5)
    assert ring.is_ready(16)
    assert len(taken(ring)) == 5


def test_a_refused_request_costs_no_call():
    calls = []
    ring = ring_of(10, 2, lambda item: calls.append(item) or 1)
    assert ring.put(Recorder("ab"))
    assert not ring.put(Recorder("c"))
    assert calls == ["a", "b"]


@pytest.mark.parametrize("make", [lambda new: new(16), lambda new: ArrayRing(16, new)], ids=["items", "arrays"])
def test_where_cost_raises_the_ring_is_as_it_was(make):
    def cost(item):
        return 1 / float(np.sum(item))

    ring = make(lambda capacity: CostRing(capacity, cost, 10))
    first = Recorder([])
    first.items, first.count, first.weight = np.ones((2, 3)), 2, 7
    ring.put(first)
    for shape in ((2, 3), (2, 4)):
        bad = Recorder([])
        bad.items, bad.count, bad.weight = np.ones(shape), 2, 5
        bad.items[1] = 0
        with pytest.raises(HandlerError, match="cost raised ZeroDivisionError") as error:
            ring.put(bad)
        assert error.value.index == 1 and isinstance(error.value.__cause__, ZeroDivisionError)
        assert (ring.size, ring.held, list(ring), ring.newest) == (2, 7, [first], first)
        assert set(getattr(ring, "_rings", [(3,)])) == {(3,)}
    assert [ticket for ticket, _, _ in ring.take(4).spans] == [first]
    assert (ring.size, ring.held) == (0, 0)


@pytest.mark.parametrize(
    ("given", "cost"),
    [
        (0, 0),
        (7, 7),
        (2.5, 2.5),
        (np.int8(3), 3),
        (np.uint64(2**64 - 1), 2**64),
        (np.float32(0.5), 0.5),
        (np.float16(1.5), 1.5),
        (Fraction(1, 4), 0.25),
    ],
    ids=repr,
)
def test_numbers_are_costs(given, cost):
    (got,) = costs_of(itself, [given])
    assert type(got) is float and got == cost


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (-1, "-1.0"),
        (-0.5, "-0.5"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (np.float32("nan"), "nan"),
        (10**400, "inf"),
        (True, "a bool"),
        (np.True_, "a bool"),
        (None, "a NoneType"),
        ("7", "a str"),
        ([1], "a list"),
        (np.array([1]), "a ndarray"),
        (1j, "a complex"),
    ],
    ids=["below", "barely", "nan", "inf", "numpy", "huge", "bool", "bool_", "None", "str", "list", "array", "complex"],
)
def test_what_is_no_finite_number_from_0_is_the_handlers_fault(given, says):
    with pytest.raises(HandlerError, match=re.escape(f"item 1: cost gave {says}: expected a finite number from 0")):
        costs_of(itself, [1, given])


def test_one_that_fits_never_is_still_one():
    assert fitting([], 10) == (0, 0)
    assert fitting([11, 1], 10) == (1, 11)
    assert fitting([1, 11], 10) == (1, 1)


# ---- when a batch is cut


def rig_of(most, **settings):
    rig = Rig(FakeLoop(), start=False, **settings)
    rig.batcher.run_with(rig.executor, Steps(Echo(), rig.loop.clock), ring_of(most))
    return rig


def test_a_batch_that_costs_enough_is_cut_at_once_whoever_may_come():
    rig = rig_of(10, size=8)
    rig.begins(Peer())
    rig.send([4, 5])
    rig.loop.settle()
    assert rig.executor.sizes == []
    rig.send([1])
    rig.loop.step()
    assert rig.executor.works == [[[4, 5], [1]]]
    rig.executor.finish()
    (report,) = rig.observer.batches
    assert (report.cut, report.cost) == ("full", 10)


def test_behind_a_running_batch_a_thread_gets_what_costs_enough_and_what_is_less_grows():
    rig = rig_of(10, size=8, depth=2)
    rig.send([1])
    rig.loop.settle()
    rig.send([6])
    rig.loop.settle()
    assert rig.executor.sizes == [1]
    rig.send([5])
    rig.loop.settle()
    assert rig.executor.works == [[[1]], [[6]]]
    rig.executor.finish()
    rig.loop.settle()
    assert rig.executor.sizes == [1, 1], "the 5 is not full, and a batch is out"
    rig.executor.finish()
    rig.loop.settle()
    assert rig.executor.works[2:] == [[[5]]]


def test_a_request_over_several_budgets_is_answered_once_in_order():
    rig = rig_of(10, size=8)
    ticket = rig.send([6, 5, 30, 2, 2, 2, 6])
    rig.loop.settle()
    while rig.executor.running:
        rig.executor.finish()
        rig.loop.settle()
    assert rig.executor.works == [[[6]], [[5]], [[30]], [[2, 2, 2]], [[6]]]
    assert ticket.answers == [([("row of", item) for item in (6, 5, 30, 2, 2, 2, 6)], None)]


def test_arrays_of_a_shape_are_cut_by_their_cost_and_other_shapes_keep_their_places():
    ring = ArrayRing(16, lambda capacity: CostRing(capacity, lambda row: row.size, 6))
    for shape in ((1, 3), (2, 2), (2, 3), (3, 2)):
        ticket = Recorder([])
        ticket.items, ticket.count = np.zeros(shape), shape[0]
        ring.put(ticket)
    assert ring.is_ready(16), "2 and 3 and 3 of three numbers"
    batches = [ring.take(16) for _ in range(4)]
    assert [[work.shape for work in batch.work] for batch in batches] == [
        [(1, 3), (1, 3)],
        [(2, 2), (1, 2)],
        [(1, 3)],
        [(2, 2)],
    ]
    assert [batch.cost for batch in batches] == [6, 6, 3, 4]
    assert ring.size == 0


# ---- a service


class Counts(Echo):
    """Words; costs their letters."""

    def __init__(self):
        self.asked = []
        self.batches = []

    def cost(self, item):
        self.asked.append((item, threading.current_thread()))
        if item == "refuse":
            raise ItemError("expected another word", 7, status=409)
        if item == "exit":
            raise SystemExit(3)
        if item == "wrong":
            return "many"
        return len(item)

    def run_inference(self, batch):
        self.batches.append(batch)
        return batch


@pytest.mark.parametrize("ask", [ask_direct, ask_asgi])
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_a_service_asks_once_for_each_item_on_the_loop_and_keeps_to_its_budget(ask, executor):
    handler, observer = Counts(), Watching()
    app = http_server("c", handler, max_batch_cost=6, max_time_on_queue=0, executor=executor, observer=observer)
    first, second = run(app, ask(app, b'{"data":["abc","de","fg"]}'), ask(app, b'{"data":["hijklmnopqr","s"]}'))
    assert (first.json["data"], second.json["data"]) == (["abc", "de", "fg"], ["hijklmnopqr", "s"])
    assert handler.asked == [(word, threading.main_thread()) for word in ("abc", "de", "fg", "hijklmnopqr", "s")]
    assert handler.batches == [["abc", "de"], ["fg"], ["hijklmnopqr"], ["s"]]
    assert [batch.cost for batch in observer.batches] == [5, 2, 11, 1]


@pytest.mark.parametrize("ask", [ask_direct, ask_asgi])
def test_a_cost_that_fails_is_the_answer_of_its_request_and_nobody_elses(ask, caplog):
    app = http_server("c", Counts(), max_batch_cost=6)
    with caplog.at_level(logging.ERROR):
        good, refused, ends, number, wrong = run(
            app, *[ask(app, b'{"data":["a",%b]}' % item) for item in (b'"b"', b'"refuse"', b'"exit"', b"7", b'"wrong"')]
        )
    assert good.json["data"] == ["a", "b"]
    assert (refused.status, refused.json["index"]) == (409, 1)
    assert refused.error == "item 1: expected another word"
    says = {ends: "cost raised SystemExit", number: "cost raised TypeError", wrong: "cost gave a str: expected"}
    for answer, what in says.items():
        assert (answer.status, answer.json["index"]) == (500, 1)
        assert answer.error.startswith(f"item 1: {what}")
        name = answer.error.rpartition(" ")[2]
        (line,) = [record for record in caplog.records if getattr(record, "request_id", None) == name]
        assert what in line.getMessage()
    assert len(caplog.records) == 3


def test_what_a_program_submits_costs_too():
    handler = Counts()
    app = http_server("c", handler, max_batch_cost=3)

    async def ask():
        with pytest.raises(HandlerError, match="item 0: cost raised TypeError"):
            await app.submit([7])
        return await app.submit(["ab", "cd"])

    assert run(app, ask()) == [["ab", "cd"]]
    assert handler.batches == [["ab"], ["cd"]]


def test_without_a_budget_nobody_is_asked():
    handler, observer = Counts(), Watching()
    app = http_server("c", handler, observer=observer)
    (answer,) = run(app, ask_direct(app, b'{"data":["refuse"]}'))
    assert answer.json["data"] == ["refuse"]
    assert handler.asked == [] and observer.batches[0].cost is None


def test_an_array_costs_what_its_rows_do():
    class Arrays(Counts):
        def process_request(self, data: np.ndarray):
            return data

        def cost(self, item):
            assert type(item) is np.ndarray
            return item.size

        def process_response(self, row):
            return row

    handler = Arrays()
    app = http_server("c", handler, max_batch_cost=4)
    (answer,) = run(app, ask_direct(app, b'{"data":[[1,2],[3,4],[5,6]]}'))
    assert answer.json["data"] == [[1, 2], [3, 4], [5, 6]]
    assert [batch.shape for batch in handler.batches] == [(2, 2), (1, 2)]


class Rows(TensorHandler):
    inputs = Tensor("float32", (3,))

    def cost(self, item):
        return 1

    def run_inference(self, batch):
        return batch


class Async(Counts):
    async def cost(self, item):
        return 1


class Two(Counts):
    def cost(self, item, model):
        return 1


class Attribute(Counts):
    cost = 3.5


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Echo, r"max_batch_cost=8: expected Echo\.cost\(self, item\), Echo has none"),
        (Async, r"Async\.cost: expected a plain method, got an async one"),
        (Two, r"Two\.cost\(item, model\): expected a method of one item, cost\(self, item\)"),
        (Attribute, r"Attribute\.cost: expected a method of one item, got a float"),
        (Rows, r"max_batch_cost=8 means nothing for Rows: its inputs are declared"),
    ],
    ids=["none", "async", "two", "attribute", "declared"],
)
def test_a_budget_without_a_cost_that_can_be_asked_is_an_error_at_the_start(handler, says):
    app = http_server("c", handler(), max_batch_cost=8)
    with pytest.raises(TypeError, match=says):
        run(app)


def test_an_instance_may_have_a_cost_of_its_own():
    handler = Echo()
    handler.cost = len
    app = http_server("c", handler, max_batch_cost=8)
    (answer,) = run(app, ask_direct(app, b'{"data":["a"]}'))
    assert answer.status == 200


def test_the_root_says_what_the_budget_is():
    app = http_server("c", Counts(), max_batch_cost=8.5)
    (answer,) = run(app, ask_direct(app, method="GET"))
    assert answer.json["max_batch_cost"] == 8.5


def test_validate_asks_as_the_server_would():
    handler = Counts()
    assert handler.validate(HttpMessage(data=["ab", "c"]), strict=True).data == ["ab", "c"]
    assert [item for item, _ in handler.asked] == ["ab", "c"]
    with pytest.raises(HandlerError, match="item 1: cost raised TypeError"):
        handler.validate(HttpMessage(data=["ab", 7]), strict=True)
    with pytest.raises(ItemError, match="item 0: expected another word"):
        handler.validate(HttpMessage(data=["refuse"]), strict=True)
    assert Rows().validate(HttpMessage(data=[[1, 2, 3]]), strict=True) is not None
