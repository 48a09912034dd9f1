import asyncio
import mmap

import pytest
from conftest import FakeLoop, ScriptedExecutor
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from kit.asks import ask_direct, run
from kit.tensors import VECTOR, Identity, Kept, Views, Writes, body, vector
from test_ring import Recorder

from virtex import ItemError, Limits, Tensor, http_server
from virtex._codec import decode_numpy, encode_numpy, items_of
from virtex.batch.batcher import Batcher
from virtex.batch.row_steps import TensorSteps
from virtex.batch.rows import RowRing, allocate
from virtex.errors import RequestError
from virtex.service.formats import JSON


@pytest.mark.parametrize("executor", ["inline", "thread", "async"])
@pytest.mark.parametrize("kind", [Identity, Kept, Views, Writes])
def test_no_request_ever_sees_anothers_bytes(kind, executor):
    """Many rounds through few buffers: each reply is checked against its own input."""
    handler = kind()
    if executor == "async":
        plain = handler.run_inference

        class Async(kind):
            async def run_inference(self, batch):
                await asyncio.sleep(0)
                return plain(batch)

        handler = Async()
    app = http_server("tensor", handler, max_batch_size=4, executor="thread" if executor == "thread" else "inline")

    async def client(i):
        for n in range(25):
            arrays = [vector(i, n, k) for k in range(1 + (i + n) % 6)]
            answer = await ask_direct(app, body(*arrays))
            assert answer.status in (200, 503)
            if answer.status == 200:
                factor = 2 if kind is Writes else 1
                got = [decode_numpy(item).tolist() for item in answer.json["data"]]
                assert got == [(array * factor).tolist() for array in arrays]

    run(app, *(client(i) for i in range(8)))
    if kind is Kept:
        assert all((batch == copy).all() for batch, copy in handler.kept), "what a handler keeps stays its own"


def ring_of(capacity=12, size=4, limit=1 << 20):
    return RowRing(VECTOR, size, capacity, limit)


@pytest.mark.parametrize("names", [None, ("x", "y")])
def test_a_batch_that_is_thinned_has_the_rows_of_those_who_stay_and_their_askers(names):
    inputs = VECTOR if names is None else dict.fromkeys(names, VECTOR)
    ring = RowRing(inputs, 8, 8, 1 << 20)
    tickets = []
    for values in ([1], [2, 3], [4], [5, 6]):
        items = [[value] * 3 for value in values]
        ticket = Recorder(items if names is None else [dict.fromkeys(names, item) for item in items])
        ticket.items = items_of(ticket.items, names)
        assert ring.put(ticket)
        tickets.append(ticket)
    batch = ring.take(8)
    batch.askers = list("abcd")
    tickets[0].resolved = tickets[2].resolved = True
    batch.thin()
    rows, counts, spans = batch.work
    for array in [rows] if names is None else rows.values():
        assert array.tolist() == [[value] * 3 for value in (2, 3, 5, 6)]
    assert counts == [2, 2] and batch.size == 4 and batch.askers == ["b", "d"]
    assert [ticket for ticket, _, _ in batch.spans] == [tickets[1], tickets[3]] and spans == batch.spans
    ring.release(batch)


def put(ring, *values):
    ticket = Recorder([vector(value, value, value).tolist() for value in values])
    ticket.values = values
    ticket.items = items_of(ticket.items)
    return ticket if ring.put(ticket) else None


def firsts(batch):
    rows, counts, _ = batch.work
    assert sum(counts) == len(rows) == batch.size
    return rows[:, 0].tolist()


def test_those_who_asked_stand_in_the_order_of_the_rows_that_fill_holes():
    class Answers(Identity):
        def run_inference(self, batch, requests):
            return [[row, request.names[0]] for row, request in zip(batch[:, 0].tolist(), requests, strict=True)]

        def process_response(self, row, request):
            return f"{row[0]:g} of {row[1]} and {request.names[0]}"

    ring = ring_of()
    tickets = []
    for names in ((1, 2), (3,), (4, 5), (6, 7)):
        ticket = Told([])
        ticket.items, ticket.count, ticket.names = items_of([[name] * 3 for name in names]), len(names), names
        assert ring.put(ticket)
        tickets.append(ticket)
    ring.cancel(tickets[1])
    batch = ring.take(4)
    assert batch.is_shuffled and firsts(batch) == [1, 2, 4]
    outcomes = TensorSteps(Answers(), True).run(batch.work, [ticket.asker() for ticket, _, _ in batch.spans])
    assert outcomes == [["1 of 1 and 1"], ["2 of 1 and 1"], ["4 of 4 and 4"]]


def test_a_slab_is_used_again_only_when_nobody_holds_its_rows():
    ring = ring_of()
    put(ring, 1, 2)
    batch = ring.take(4)
    address = batch.work[0].ctypes.data
    others = len(ring._pool)
    ring.release(batch)
    assert len(ring._pool) == others + 1
    put(ring, 3)
    assert len(ring._pool) == others
    batch = ring.take(4)
    assert batch.work[0].ctypes.data == address
    kept = batch.work[0][:1]
    ring.release(batch)
    assert len(ring._pool) == others
    put(ring, 5)
    batch = ring.take(4)
    assert batch.work[0].ctypes.data != address
    assert kept.tolist() == [[3, 3, 3]]


def test_holes_of_cancelled_rows_are_filled_from_the_tail():
    ring = ring_of()
    tickets = [put(ring, value) for value in (1, 2, 3, 4)]
    ring.cancel(tickets[0])
    ring.cancel(tickets[2])
    batch = ring.take(4)
    assert sorted(firsts(batch)) == [2, 4]
    rows = dict(zip([ticket.values for ticket, _, _ in batch.spans], firsts(batch), strict=True))
    assert rows == {(2,): 2, (4,): 4}
    assert ring.size == 0


def test_rows_that_fill_holes_come_back_in_the_order_of_their_request(loop):
    executor = ScriptedExecutor()
    batcher = Batcher(loop, 4, 0, 12, loop.clock)
    batcher.run_with(executor, TensorSteps(Identity(), False), ring_of())
    leaves, stays = Recorder([[1, 1, 1]]), Recorder([[2, 2, 2], [3, 3, 3], [4, 4, 4]])
    for ticket in (leaves, stays):
        ticket.items = items_of(ticket.items)
        batcher.admit(ticket, loop.now)
    batcher.cancel(leaves, "left")
    loop.settle()
    executor.run()
    ((rows, _),) = stays.answers
    assert rows.arrays()[""][:, 0].tolist() == [2, 3, 4]


def test_a_request_that_was_taken_or_left_is_not_the_oldest_any_more():
    ring = ring_of()
    first, second, third = put(ring, 1, 2, 3), put(ring, 4, 5), put(ring, 6)
    assert ring.oldest is first
    ring.release(ring.take(4))
    assert ring.oldest is second
    assert ring.cancel(second) == 1
    assert ring.oldest is third
    assert ring.cancel(second) == 0


def test_the_buffer_of_those_who_all_left_is_pooled():
    ring = ring_of()
    first, second = put(ring, 1, 2, 3, 4), put(ring, 5)
    others = len(ring._pool)
    ring.cancel(first)
    assert len(ring._pool) == others + 1 and ring.size == 1
    ring.cancel(second)
    assert len(ring._pool) == others + 2 and ring.size == 0


def test_a_body_that_turns_out_to_be_no_json_takes_no_rows():
    ring = ring_of(size=1)  # the first item is in a buffer of its own when the second fails
    bad = Recorder("a")
    good = encode_numpy(vector())
    bad.items = JSON.source(b'{"data":["%b","%b\x01"]}' % (good.encode(), good[:-1].encode()), VECTOR, None)
    bad.count = 2
    with pytest.raises(RequestError, match="expected JSON") as error:
        ring.put(bad)
    assert error.value.status == 400
    assert ring.size == 0


def test_rows_spill_over_into_the_next_slab_and_a_refused_request_rolls_back():
    ring = ring_of()
    put(ring, 1, 2, 3)
    with pytest.raises(ItemError, match="item 2"):
        bad = Recorder([[4, 4, 4], [5, 5, 5], [6, 6]])
        bad.items = items_of(bad.items)
        ring.put(bad)
    assert ring.size == 3 and len(ring._slabs) == 1
    put(ring, 7, 8)
    assert firsts(ring.take(4)) == [1, 2, 3, 7]
    assert firsts(ring.take(4)) == [8]


def test_who_sends_and_leaves_can_not_take_more_slabs_than_the_queue_has():
    ring = ring_of(capacity=12, size=4)
    for _ in range(50):
        tickets = [put(ring, value) for value in range(4)]
        for ticket in tickets[1:]:
            if ticket is not None:
                ring.cancel(ticket)
    assert len(ring._slabs) <= 4
    assert ring.size <= 12


def test_memory_that_does_not_fit_is_refused_with_the_batch_that_would():
    with pytest.raises(MemoryError, match="max_batch_size=2 with max_queue_size=8 would fit"):
        RowRing(Tensor("float32", (1000,)), 8, 32, 60_000)
    assert RowRing(Tensor("float32", (1000,)), 2, 8, 56_000).slabs == 7, "to the last byte"
    with pytest.raises(MemoryError, match="not even batches of one would fit"):
        RowRing(Tensor("float32", (1000,)), 8, 32, 5_000)
    app = http_server("tensor", Identity(), limits=Limits(max_bytes=1))
    with pytest.raises(MemoryError):
        run(app)


def test_small_buffers_share_pages_and_are_still_told_apart():
    inputs = {"a": VECTOR, "b": Tensor("uint8"), "none": Tensor("int64", (0,))}
    ring = RowRing(inputs, 1, 1024, 1 << 20)
    tickets = []
    for n in range(1024):
        ticket = Recorder([{"a": [n, n, n], "b": n % 256, "none": []}])
        ticket.items = items_of(ticket.items, tuple(inputs))
        assert ring.put(ticket)
        tickets.append(ticket)
    taken = [ring.take(1) for _ in range(1024)]
    batches = [one.work[0] for one in taken]
    assert [batch["a"].tolist() for batch in batches] == [[[n, n, n]] for n in range(1024)]
    assert [batch["b"].tolist() for batch in batches] == [[n % 256] for n in range(1024)]
    assert all(array.ctypes.data % 64 == 0 for batch in batches for array in batch.values())
    pages = {batch["a"].ctypes.data // mmap.PAGESIZE for batch in batches}
    assert len(pages) <= 1024 * 64 / mmap.PAGESIZE + 16
    kept = batches[::2]
    del batches
    for one in taken:
        ring.release(one)
    assert len(ring._pool) >= 512
    free = {arrays[0].ctypes.data for arrays in ring._pool}
    assert not free & {batch["a"].ctypes.data for batch in kept}, "what is kept is nobody else's"


@pytest.mark.parametrize(
    ("shape", "size", "most", "queue"),
    [
        ((3,), 8, 4 << 30, 1024),
        ((3,), 512, 4 << 30, 2048),
        ((1000,), 512, 16_384_000, 512),  # half is four buffers of 2,048,000 bytes: one waits
        ((1000,), 512, 20_480_000, 1024),
        ((1000,), 512, 12_000_000, 512),  # half is less than that, but all of it is enough
    ],
)
def test_the_default_queue_is_what_fits_into_half_of_the_memory(shape, size, most, queue):
    class Wide(Identity):
        inputs = Tensor("float32", shape)

    app = http_server("wide", Wide(), max_batch_size=size, limits=Limits(max_bytes=most, body=100_000))
    (root,) = run(app, ask_direct(app, method="GET"))
    assert root.json["max_queue_size"] == app.max_queue_size == queue


def test_a_queue_that_was_asked_for_is_never_made_smaller():
    limits = Limits(max_bytes=16_384_000, body=100_000)
    app = http_server("wide", Identity(), max_batch_size=512, max_queue_size=4096, limits=limits)
    run(app)
    assert app.max_queue_size == 4096

    class Wide(Identity):
        inputs = Tensor("float32", (1000,))

    with pytest.raises(MemoryError, match="max_queue_size"):
        run(http_server("wide", Wide(), max_batch_size=512, max_queue_size=4096, limits=limits))


def test_large_batches_take_memory_only_when_they_are_written():
    array = allocate(Tensor("float32", (224, 224, 3)), 512)
    assert array.nbytes == 512 * 602112
    assert not array[511, 0, 0, 0]


class Told(Recorder):
    """A request that is told of itself."""

    def asker(self):
        return self


class Asks(Identity):
    """Finds out who is told of another's row."""

    def run_inference(self, batch, requests):
        for row, request in zip(batch[:, 0].tolist(), requests, strict=True):
            assert row in request.names
        return batch


class Life(RuleBasedStateMachine):
    """Admit, spill over, decode late, cancel, refuse, answer, fail in any order: a request gets its own rows, once."""

    tickets = Bundle("tickets")

    @initialize(size=st.sampled_from([3, 4, 20]))
    def begin(self, size):
        self.loop = FakeLoop()
        self.executor = ScriptedExecutor(depth=2)
        self.batcher = Batcher(self.loop, size, 0.005, 12, self.loop.clock)
        self.ring = ring_of(size=size)
        self.batcher.run_with(self.executor, TensorSteps(Asks(), False), self.ring)
        self.names = iter(range(1, 10**6))
        self.sent = []
        self.cancelled = set()

    def admitted(self, ticket):
        """Whether it was; it is to be unless the queue is full, however many items it has."""
        size, is_sure = self.ring.size, not self.ring.pending  # else, what is decoded now may turn out wrong
        try:
            self.batcher.admit(ticket, self.loop.now)
        except RequestError as error:
            assert error.status == 503 and size >= 12
            return False
        assert size < 12 or not is_sure
        self.sent.append(ticket)
        return True

    @rule(target=tickets, count=st.integers(1, 12) | st.integers(1, 60))
    def send(self, count):
        names = [next(self.names) for _ in range(count)]
        ticket = Told([[name] * 3 for name in names])
        ticket.items = items_of(ticket.items)
        ticket.names, ticket.weight, ticket.bad = names, 1000, None
        return ticket if self.admitted(ticket) else None

    @rule(target=tickets, good=st.integers(0, 11) | st.integers(0, 60), more=st.integers(0, 9))
    def send_bad(self, good, more):
        """What is decoded at once is refused at once, and leaves nothing behind."""
        names = [next(self.names) for _ in range(good)]
        ticket = Told([*([name] * 3 for name in names), "bad", *[[0, 0, 0]] * more])
        ticket.items = items_of(ticket.items)
        ticket.names, ticket.weight, ticket.bad = names, 1000, good
        size, slabs, is_sure = self.ring.size, len(self.ring._slabs), not self.ring.pending
        try:
            return ticket if self.admitted(ticket) else None
        except ItemError as error:
            assert error.index == good and not self.ring.pending and not self.ring.held
            assert not is_sure or (self.ring.size, len(self.ring._slabs)) == (size, slabs)
            return None

    @rule(ticket=consumes(tickets))
    def leave(self, ticket):
        if ticket is not None and not ticket.resolved:
            ticket.resolved = True
            self.batcher.cancel(ticket, "left")
            self.cancelled.add(ticket)

    @rule()
    def finish(self):
        if self.executor.running:
            self.executor.run()

    @rule()
    def fail(self):
        if self.executor.running:
            self.executor.fail(RuntimeError("broke"))

    @rule()
    def step(self):
        self.loop.step()

    @rule()
    def pass_time(self):
        self.loop.settle()
        self.loop.advance(0.006)

    @invariant()
    def each_request_is_answered_once_with_its_own_rows(self):
        for ticket in self.sent:
            assert len(ticket.answers) <= 1
            for rows, error in ticket.answers:
                if isinstance(error, ItemError):
                    assert error.index == ticket.bad
                else:
                    assert "broke" in repr(getattr(error, "__cause__", None)) if error else ticket.bad is None
                    assert error is not None or rows.arrays()[""][:, 0].tolist() == ticket.names
            assert not (ticket.answers and ticket in self.cancelled)

    @invariant()
    def memory_is_bounded_and_what_is_pending_is_the_newest(self):
        ring = self.ring
        rows = -(-12 // ring.max_batch_size) * ring.max_batch_size
        assert sum(slab.filled for slab in ring._slabs.values()) == ring.size - ring.pending <= rows
        assert len(ring._slabs) <= -(-12 // ring.max_batch_size)
        assert all(size <= ring.max_batch_size for size in self.executor.sizes)
        assert ring.held == (1000 if ring.pending else 0)
        if ring.pending:
            newest = ring.newest
            assert ring.pending <= newest.count - newest.taken and len(newest.items) == newest.count
        waiting = {ticket for slab in ring._slabs.values() for ticket, _, _ in slab.spans}
        assert not [ticket for ticket in waiting if not ring.pending and ticket.items]

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        while self.loop.ready or self.executor.running or self.batcher.waiting:
            self.loop.settle()
            self.finish()
            self.loop.advance(0.01)
        for ticket in self.sent:
            assert len(ticket.answers) == (ticket not in self.cancelled)
        self.each_request_is_answered_once_with_its_own_rows()
        assert not self.ring._slabs and not self.ring.pending and not self.ring.held


TestLife = Life.TestCase


TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
