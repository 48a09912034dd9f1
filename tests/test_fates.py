"""Whatever happens in whatever order, each request has a fate of its own: a machine over all of admission and batching.

Requests arrive in one piece or two, cost something, hold items that fail at any step, have deadlines, and leave at any
moment. Beside the ring of each kind runs the plainest model: a list of the slots that wait. `make soak` tries as many
lives as it has seconds.
"""

import logging
import os

import numpy as np
import orjson
import pytest
from conftest import FakeLoop, ScriptedExecutor
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kit.services import Watching

from virtex import ItemError, Limits, RequestHandler, Tensor, TensorHandler
from virtex.batch.arrays import ArrayRing
from virtex.batch.batcher import Batcher
from virtex.batch.company import Peer
from virtex.batch.costs import CostRing
from virtex.batch.executors import InlineExecutor
from virtex.batch.items import steps_for
from virtex.batch.row_steps import TensorSteps
from virtex.batch.rows import RowRing
from virtex.metrics._metrics import Cells
from virtex.service.admission import Admission
from virtex.service.bodies import Bodies
from virtex.service.formats import KINDS
from virtex.service.seam import LEFT, Head, Response, Waiter

EXAMPLES = int(os.environ.get("VIRTEX_FATES") or 60)
SIZE, CAPACITY, BUDGET = 4, 20, 10  # items of a batch, items from which on the queue is full, cost of a batch
MOST_ITEMS = CAPACITY + 1  # of a request
WINDOW, ANSWER, GRAIN = 5_000_000, 300_000_000, 1_000_000  # ns

# What an item does. BAD: it is refused at admission, where anything can be wrong with it then.
FINE, BAD, ITEM, RAISES, POISON, POINTED, RESPONSE = range(7)
CLIENTS = {BAD, ITEM, POINTED, RESPONSE}
RINGS = ("items", "costs", "arrays", "costly arrays", "rows")
FAILING = {  # those that are anything but FINE, by kind of ring
    "items": {ITEM, RAISES, POISON, POINTED, RESPONSE},
    "costs": {BAD, ITEM, RAISES, POISON, POINTED, RESPONSE},
    "arrays": {BAD, ITEM, RAISES, POISON, POINTED, RESPONSE},
    "costly arrays": {BAD, ITEM, RAISES, POISON, POINTED, RESPONSE},
    "rows": {BAD, POISON, POINTED, RESPONSE},
}

# The rules that admission and isolation have; who changes them changes these
MOST_POISON = 4  # items whose run_inference fails, from which on a batch may fail as a whole


def refusal(waiting):
    """The status of a request beside so many items that wait; None: it is taken, however many it has."""
    return 503 if waiting >= CAPACITY else None


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# ---- what is served


def name_of(row):
    return int(row[0])


def decoded(data):
    for row in data:
        if row[1] == ITEM:
            raise ItemError("expected another")
        if row[1] == RAISES:
            raise ValueError("broke")
    return data


class Lists(RequestHandler):
    def __init__(self, loop):
        self.loop = loop
        self.took = 0

    def process_request(self, data):
        return decoded(data)

    def run_inference(self, batch):
        self.loop.now += self.took
        for i, row in enumerate(batch):
            if row[1] == POISON:
                raise RuntimeError("poison")
            if row[1] == POINTED:
                raise ItemError("expected no such thing", i)
        return batch

    def process_response(self, row):
        if row[1] == RESPONSE:
            raise ItemError("expected another row")
        return name_of(row)


class Arrays(Lists):
    def process_request(self, data: np.ndarray):
        return decoded(data)


class Rows(TensorHandler):
    inputs = Tensor("float64", (3,))
    __init__, run_inference, process_response = Lists.__init__, Lists.run_inference, Lists.process_response


def cost(row):
    if row[1] == BAD:
        raise ItemError("expected something cheaper")
    return row[2]


# ---- who is served


class Request(Waiter):
    """What the model knows of one. Its items are [name, what it does, cost], and of another shape where it is long."""

    def __init__(self, machine, names, kinds, costs, is_long):
        self.machine = machine
        self.names, self.kinds, self.costs, self.is_long = names, kinds, costs, is_long
        self.exchange = None
        self.is_admitted = self.is_over = False
        self.batches = []

    def body(self, kind):
        items = [list(values) + [0] * self.is_long for values in zip(self.names, self.kinds, self.costs, strict=True)]
        if kind in ("arrays", "rows"):
            items = [[None, *item[1:]] if item[1] == BAD else item for item in items]
        return orjson.dumps({"data": items})

    def on_answer(self, exchange):
        try:
            assert exchange is self.exchange
            self.machine.answered(self, exchange.response)
        except Exception as error:  # who calls this would log it and go on
            self.machine.wrong = self.machine.wrong or error


class Scripted(ScriptedExecutor):
    def __init__(self, depth, taken):
        super().__init__(depth)
        self.taken = taken

    def start(self, batch, steps, done):
        self.taken(batch)
        super().start(batch, steps, done)


class Inline(InlineExecutor):
    running = 0

    def __init__(self, taken):
        super().__init__()
        self.taken = taken

    def start(self, batch, steps, done):
        self.taken(batch)
        super().start(batch, steps, done)


# What is drawn is little, for drawing takes longer than all else
COUNT = st.sampled_from([1, 1, 2, 3, 4, 5, 9, 10, 13, 21])
DOES = st.sampled_from([FINE] * 8 + [BAD, ITEM, RAISES, POISON, POINTED, RESPONSE])
COST = st.integers(0, 13)
PEER = st.integers(0, 3)  # 0: nobody knows who
OWN = st.sampled_from([None, None, None, None, 3, 40, 200])  # ms that the client waits


class Fates(RuleBasedStateMachine):
    """The machine. waiting: the model of the ring, (request, index) in order."""

    @initialize(kind=st.sampled_from(RINGS), executor=st.sampled_from(["inline", 1, 2]), early=st.integers(0, 3))
    def begin(self, kind, executor, early):
        self.kind = kind
        self.loop = loop = FakeLoop()
        self.cells = Cells()
        limits = Limits(answer_seconds=ANSWER / 1e9)
        self.batcher = Batcher(loop, SIZE, WINDOW / 1e9, CAPACITY, loop.clock, Watching(), self.cells)
        self.bodies = Bodies(limits.max_bytes)
        self.admission = Admission(
            *(loop, loop.clock, limits, self.batcher, Watching(), CAPACITY, self.bodies, self.cells)
        )
        self.executor = Inline(self.taken) if executor == "inline" else Scripted(executor, self.taken)
        self.handler = {"items": Lists, "costs": Lists, "rows": Rows}.get(kind, Arrays)(loop)
        self.peers = [None, Peer(), Peer(), Peer()]
        self.names = iter(range(1, 10**9))
        self.all, self.arriving, self.early, self.starting, self.waiting = [], [], [], [], []
        self.has_company = self.is_draining = False
        self.wrong = None
        if early != 3:
            self.start()

    @precondition(lambda self: self.admission.is_starting)
    @rule()
    def start(self):
        kind, loop = self.kind, self.loop
        costly = lambda capacity: CostRing(capacity, cost, BUDGET)  # noqa: E731
        rings = {
            "items": lambda: None,
            "costs": lambda: costly(CAPACITY),
            "arrays": lambda: ArrayRing(CAPACITY),
            "costly arrays": lambda: ArrayRing(CAPACITY, costly),
            "rows": lambda: RowRing(Rows.inputs, SIZE, CAPACITY, 1 << 20),
        }
        self.admission.kinds = KINDS
        self.admission.dtype = np.dtype("f8") if "arrays" in kind else None
        self.admission.inputs = Rows.inputs if kind == "rows" else None
        is_rows = kind == "rows"
        if is_rows:
            self.admission.most_kept = self.bodies.budget // 2
        steps = TensorSteps(self.handler, True, loop.clock) if is_rows else steps_for(self.handler, loop.clock)
        self.batcher.run_with(self.executor, steps, rings[kind]())
        self.starting, self.early = self.early, []
        self.admission.start()
        self._settle_early(self.starting)
        self.starting = []

    # ---- what may happen

    @rule(count=COUNT, does=DOES, at=COST, is_long=st.booleans(), peer=PEER, own=OWN, is_whole=st.booleans())
    def send(self, count, does, at, is_long, peer, own, is_whole):
        """The headers of a request, and with them all of its body, or some. at: which of its items is not FINE."""
        loop, peer = self.loop, self.peers[peer]
        if self.kind == "rows":  # each has its row at once: items that wait for one are those of test_rows
            count = min(count, self._rows_left())
            if count < 1:
                return
        costs = [(at + 5 * i) % 14 for i in range(count)]
        names = [next(self.names) for _ in costs]
        does = [does if i % 7 == at % min(7, count) else FINE for i in range(count)]
        request = Request(self, names, does, costs, is_long and "arrays" in self.kind)
        self.has_company |= peer is not None
        headers = [] if own is None else [(b"x-request-timeout-ms", b"%d" % own)]
        request.deadline = loop.now + min(ANSWER, ANSWER if own is None else own * 1_000_000)
        size = self.batcher.ring.size
        opened = self.admission.open(Head("POST", "/", headers, None, peer), loop.now)
        if isinstance(opened, Response):
            assert opened.status == 503
            assert size >= CAPACITY or len(self.early) >= CAPACITY or self._is_predicted(opened)
            return
        assert size < CAPACITY
        request.exchange = opened
        self.all.append(request)
        if is_whole:
            self._complete(request)
        else:
            opened.write(b"{")
            opened.await_rest(loop.now)
            self.arriving.append(request)

    @rule(count=st.integers(1, 7), at=COST, peer=PEER)
    def send_several(self, count, at, peer):
        """Requests of one item each."""
        for i in range(count):
            self.send(1, FINE, (at + 3 * i) % 14, i % 2 > 0, peer, None, True)

    @precondition(lambda self: self.arriving)
    @rule(at=st.integers(0, 99))
    def finish_body(self, at):
        self._complete(self.arriving.pop(at % len(self.arriving)), 1)

    def _complete(self, request, sent=0):
        exchange, now = request.exchange, self.loop.now
        request.is_due = max(request.deadline, now)
        exchange.write(request.body(self.kind)[sent:])
        if self.admission.is_starting:
            self.early.append(request)
            assert exchange.complete(b"", request) is exchange
            return
        allowed = self._refusals(request, now)
        answer = exchange.complete(b"", request)
        if isinstance(answer, Response):
            self._refused(request, answer, allowed)
        else:
            self._admitted(request, allowed)

    def _rows_left(self):
        return CAPACITY - self.batcher.ring.size - sum(len(one.names) for one in (*self.early, *self.arriving))

    def _refusals(self, request, now):
        has_holes = self.kind == "rows" and not self.starting
        size = self.batcher.ring.size if has_holes else len(self.waiting)
        allowed = {refusal(size)} - {None}
        if now >= request.deadline:
            allowed.add(504)
        if self.kind != "items" and BAD in request.kinds:
            allowed.add(422)
        return allowed

    def _refused(self, request, answer, allowed):
        assert answer.status in allowed or self._is_predicted(answer)
        request.is_over = True
        if answer.status == 422:
            assert orjson.loads(b"".join(answer.buffers))["index"] == request.kinds.index(BAD)

    def _is_predicted(self, answer):
        """Whether it says that there would be no answer in time, and that may be so."""
        has_ahead = self.batcher.waiting or self.executor.running
        return has_ahead and answer.status == 503 and b"the answer would take" in b"".join(answer.buffers)

    def _admitted(self, request, allowed):
        assert not allowed
        request.is_admitted = True
        self.waiting += [(request, i) for i in range(len(request.names))]

    @rule(at=st.integers(0, 99))
    def leave(self, at):
        there = [request for request in self.all if not request.is_over]
        if not there:
            return
        request = there[at % len(there)]
        request.is_over = True
        for those in (self.arriving, self.early):
            if request in those:
                those.remove(request)
        request.exchange.cancel(LEFT)
        self._forget(request)

    @rule(at=st.integers(1, 3))
    def disconnect(self, at):
        self.batcher.company.leaves(self.peers[at])
        self.peers[at] = Peer()
        self.batcher.wake()

    @precondition(lambda self: self.executor.running)
    @rule()
    def finish(self):
        self.executor.run()

    @rule()
    def go_on(self):
        """Whatever is due, until nothing is but timers."""
        self.loop.settle()
        while self.executor.running:
            self.executor.run()
            self.loop.settle()

    @precondition(lambda self: self.executor.running)
    @rule()
    def break_off(self):
        batch = self.executor._running[0][0]
        for request, _ in self._slots(batch):
            request.is_broken = True
        self.executor.fail(SystemExit())

    @rule()
    def step(self):
        self.loop.step()

    @rule(ms=st.sampled_from([0, 0, 1, 4, 6, 12, 70]))
    def pass_time(self, ms):
        self.loop.settle()
        self.loop.advance(ms / 1000)

    @rule(ms=st.sampled_from([2, 39, 300]))
    def be_held(self, ms):
        """Something else holds the loop; what is ready comes ahead of timers that are over."""
        self.loop.now += ms * 1_000_000
        self.loop.settle()
        self.loop.advance(0)

    @rule(ms=st.sampled_from([0, 2, 60]))
    def be_slow(self, ms):
        self.handler.took = ms * 1_000_000 if self.executor.depth == 1 and not self.executor.running else 0

    @precondition(lambda self: not self.admission.is_starting)
    @rule(really=st.integers(0, 4))
    def drain(self, really):
        if not really:
            self.is_draining = True
            self.batcher.drain()

    # ---- what follows

    def _slots(self, batch):
        by = {request.exchange: request for request in self.all}
        return [(by[ticket], i) for ticket, start, stop in batch.spans for i in range(start, stop)]

    def _front(self):
        """The slots of the next batch, and whether they fill it."""
        waiting = self.waiting
        if "arrays" in self.kind:
            waiting = [(request, i) for request, i in waiting if request.is_long == waiting[0][0].is_long]
        if "cost" not in self.kind:
            return waiting[:SIZE], len(waiting) >= SIZE
        front, total = [], 0
        for request, i in waiting[:SIZE]:
            if front and total + request.costs[i] > BUDGET:
                return front, True
            front.append((request, i))
            total += request.costs[i]
        return front, len(front) == SIZE or total >= BUDGET

    def taken(self, batch):
        """A batch was cut."""
        slots = self._slots(batch)
        assert 0 < len(slots) == batch.size <= SIZE
        assert batch.why != "time" or self.has_company
        if self.kind == "rows":
            assert {*slots} == {*self.waiting[: len(slots)]}, "rows that fill holes change the order"
            if not batch.is_shuffled:
                assert slots == self.waiting[: len(slots)]
        else:
            front, is_full = self._front()
            assert slots == front
            assert batch.why != "full" or is_full
            costs = [request.costs[i] for request, i in slots]
            assert batch.cost == (sum(costs) if "cost" in self.kind else None)
            assert "cost" not in self.kind or sum(costs) <= BUDGET or len(costs) == 1
        for request, _ in slots:
            assert not request.is_over and self.loop.now < request.deadline
            request.batches.append(slots)
        self.waiting = [slot for slot in self.waiting if slot not in set(slots)]

    def answered(self, request, response):
        """A request that was admitted, or waits for the start, has its answer."""
        assert not request.is_over, "it left, or has one"
        request.is_over = True
        body, status = orjson.loads(b"".join(response.buffers)), response.status
        if not request.is_admitted:
            self._answered_early(request, response)
        elif status == 504 or self.loop.now >= request.deadline:
            assert status == 504 and self.loop.now >= request.deadline
        elif status == 200:
            assert body == {"data": request.names, "error": None}
            assert not FAILING[self.kind] & set(request.kinds)
            assert not any(who is request for who, _ in self.waiting)
        else:
            self._check_failed(request, status, body.get("index"))
        self._forget(request)

    def _answered_early(self, request, response):
        if request in self.early:
            self.early.remove(request)
            assert response.status == 503 and self.loop.now >= request.deadline
            return
        at = self.starting.index(request)
        self._settle_early(self.starting[:at])
        self.starting = self.starting[at + 1 :]
        self._refused(request, response, self._refusals(request, self.loop.now))

    def _settle_early(self, requests):
        """The ring has taken them."""
        for request in requests:
            self._admitted(request, self._refusals(request, self.loop.now))

    def _check_failed(self, request, status, index):
        kinds, others = request.kinds, [who.kinds[i] for slots in request.batches for who, i in slots]
        if index is not None:
            assert kinds[index] in FAILING[self.kind]
        if status == 422:
            assert kinds[index] in CLIENTS
            assert kinds[index] not in kinds[:index], "the lowest that fails is named"
        else:
            assert status == 500
            spoilt = sum(kind in (POISON, POINTED) for kind in others) >= MOST_POISON
            assert spoilt or getattr(request, "is_broken", False) or {RAISES, POISON} & {*kinds}

    def _forget(self, request):
        self.waiting = [(who, i) for who, i in self.waiting if who is not request]

    # ---- what is always so

    @invariant()
    def each_answer_is_right(self):
        if self.wrong is not None:
            raise self.wrong

    @invariant()
    def the_ring_is_what_the_model_says(self):
        ring, waiting = self.batcher.ring, self.waiting
        assert list(ring) == list(dict.fromkeys(who.exchange for who, _ in waiting))
        if self.kind == "rows":
            assert len(waiting) <= ring.size < CAPACITY + MOST_ITEMS
            assert ring.held == (ring.newest.weight if ring.pending else 0)
            assert bool(waiting) == bool(ring.size)
            assert len(ring._slabs if not self.admission.is_starting else ()) <= CAPACITY // SIZE + 1
        else:
            assert ring.size == len(waiting) < CAPACITY + MOST_ITEMS
            assert ring.held == sum({who: who.exchange.weight for who, _ in waiting}.values())

    @invariant()
    def what_is_counted_is_what_there_is(self):
        there = [request for request in self.all if not request.is_over]
        assert self.admission.unsettled == len(there)
        assert self.bodies.held == sum(request.exchange.charged for request in self.all)
        assert all(request.exchange.charged == 0 for request in self.all if request.is_over)

    @invariant()
    def nobody_waits_past_his_time(self):
        for request in [*self.early, *(request for request in self.all if request.is_admitted)]:
            assert request.is_over or self.loop.now < request.is_due + 2 * GRAIN

    @invariant()
    def one_timer_runs_for_deadlines_one_for_the_next_cut_and_one_for_the_log(self):
        assert self.loop.timers <= 3

    @invariant()
    def nothing_waits_while_it_could_run(self):
        if self.loop.ready or not self.waiting or self.admission.is_starting:
            return
        running = self.executor.running
        is_full = self.batcher.ring.is_ready(SIZE) if self.kind == "rows" else self._front()[1]
        assert running == self.executor.depth or not is_full
        if not running:
            assert self.has_company and not self.is_draining
            assert self.loop.now <= self.waiting[0][0].exchange.born + WINDOW + GRAIN
            assert self.loop.timers

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        if self.admission.is_starting:
            self.start()
        for request in self.arriving:
            request.is_over = True
            request.exchange.cancel(LEFT)
        while self.loop.ready or self.executor.running or self.batcher.waiting:
            self.loop.settle()
            if self.executor.running:
                self.executor.run()
            self.loop.advance(0.01)
        self.loop.advance(1)
        self.each_answer_is_right()
        ring = self.batcher.ring
        assert all(request.is_over for request in self.all) and not self.waiting
        assert (ring.size, ring.held, list(ring._tickets)) == (0, 0, [])
        assert self.admission.unsettled == self.bodies.held == 0
        self.batcher.bursts.end()
        assert not self.loop.ready and not self.loop.timers
        for left in ("_slabs", "_costs", "_rings"):
            assert not getattr(ring, left, None)


TestFates = Fates.TestCase
TestFates.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
