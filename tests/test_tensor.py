import asyncio
import gc
import io
import itertools
import mmap
import threading
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import orjson
import pytest
from conftest import FakeLoop, ScriptedExecutor
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from kit.asks import ask_asgi, ask_direct, run
from test_ring import Recorder

from virtex import HttpMessage, ItemError, Limits, Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_npy, encode_numpy, items_of
from virtex.batch.batcher import Batcher
from virtex.batch.steps import TensorSteps, drive
from virtex.errors import HandlerError, RequestError
from virtex.service.bodies import SMALLEST
from virtex.service.seam import Head
from virtex.tensor import RowRing, Rows, allocate, reader

VECTOR = Tensor("float32", (3,))


class Identity(TensorHandler):
    inputs = VECTOR

    def run_inference(self, batch):
        return batch


class Kept(Identity):
    """Keeps every batch it gets."""

    def __init__(self):
        self.kept = []

    def run_inference(self, batch):
        self.kept.append((batch, batch.copy()))
        return batch


class Views(Identity):
    """Answers views of its batch that run backwards through memory and back."""

    def run_inference(self, batch):
        return batch[::-1][::-1]


class Writes(Identity):
    """Computes in place."""

    def run_inference(self, batch):
        batch *= 2
        return batch


class AsyncIdentity(Identity):
    async def run_inference(self, batch):
        await asyncio.sleep(0)
        return batch


def vector(*values):
    return np.array(values or (1, 2, 3), "float32")


def body(*arrays):
    return orjson.dumps({"data": [encode_numpy(array) for array in arrays]})


def served(handler, *bodies, headers=(), **kw):
    app = http_server("tensor", handler, **kw)
    return run(app, *(ask_direct(app, body, headers=headers) for body in bodies))


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


# ---- in


def test_the_model_gets_one_contiguous_aligned_view_of_all_items():
    seen = []

    class Looks(Identity):
        def run_inference(self, batch):
            seen.append(
                (batch.shape, batch.dtype, batch.flags.c_contiguous, batch.ctypes.data % 64, batch.base is None)
            )
            return batch

    first, second = served(Looks(), body(vector(1, 2, 3)), body(vector(4, 5, 6), vector(7, 8, 9)))
    assert seen == [((3, 3), np.dtype("float32"), True, 0, False)]
    assert [decode_numpy(item).tolist() for item in first.json["data"] + second.json["data"]] == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_nested_lists_are_decoded_too():
    (answer,) = served(Identity(), b'{"data":[[1, 2.5, -3]]}')
    assert decode_numpy(answer.json["data"][0]).tolist() == [1, 2.5, -3]


def document(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_npy_documents_are_items_and_one_document_may_be_rows_of_items(ask):
    app = http_server("tensor", Identity())
    npy = [(b"content-type", b"application/x-npy")]
    rows = np.arange(6, dtype="float32").reshape(2, 3)
    stacked, each, wrong = run(
        app,
        ask(app, document(rows), headers=npy),
        ask(app, document(rows[0]) + document(rows[1]), headers=[*npy, (b"accept", b"application/x-npy")]),
        ask(app, document(rows[0]) + document(rows[1, :2]), headers=npy),
    )
    assert [decode_numpy(item).tolist() for item in stacked.json["data"]] == rows.tolist()
    assert each.headers[b"content-type"] == b"application/x-npy"
    assert np.load(io.BytesIO(each.body)).tolist() == rows.tolist()
    assert wrong.status == 422 and "item 1: expected float32 (3,), got float32 (2,)" in wrong.error


def test_another_byte_order_is_no_other_dtype():
    (answer,) = served(Identity(), body(np.arange(3, dtype=">f4")))
    assert decode_numpy(answer.json["data"][0]).tolist() == [0, 1, 2]


def test_a_body_that_only_looks_like_json_is_a_400():
    text = body(vector())
    for broken in (text[:270] + b"\n" + text[271:], text[:270] + b"\xff" + text[271:]):
        (answer,) = served(Identity(), broken)
        assert answer.status == 400 and "expected JSON" in answer.error


BAD = {
    "another dtype": (encode_numpy(np.zeros(3)), "expected float32 (3,), got float64 (3,)"),
    "another shape": (encode_numpy(vector(1, 2)), "expected float32 (3,), got float32 (2,)"),
    "another number of dimensions": (encode_numpy(vector()[None]), "got float32 (1, 3)"),
    "corrupt": ("AAAA", "expected"),
    "lists of another shape": ([1, 2], "expected float32 (3,), got a list of 2 in place of a list of 3"),
    "lists in a list": ([[1], [2, 3], 4], "got a list in place of a number"),
    "a number out of range": ([1, 2, 1e39], "expected numbers that float32 holds, got 1e+39"),
    "a boolean": ([1, True, 2], "got booleans"),
    "text in a list": ([1, "2", 3], "got text"),
    "null": (None, "got NoneType"),
    "an object": ({"a": 1}, "got dict"),
}


@pytest.mark.parametrize(("item", "says"), BAD.values(), ids=BAD)
def test_a_wrong_item_is_a_422_with_its_index_and_never_enters_a_batch(item, says):
    batches = []

    class Looks(Identity):
        def run_inference(self, batch):
            batches.append(batch.tolist())
            return batch

    good = encode_numpy(vector(1, 2, 3))
    bad = orjson.dumps({"data": [good, item, good]})
    first, refused, last = served(Looks(), body(vector(4, 5, 6)), bad, body(vector(7, 8, 9)))
    assert refused.status == 422
    assert refused.error.startswith("item 1: ") and says in refused.error
    assert (first.status, last.status) == (200, 200)
    assert batches == [[[4, 5, 6], [7, 8, 9]]]


def decoded(item, tensor):
    rows = allocate(tensor, 1)
    items_of([item]).into(rows)
    return rows


@pytest.mark.parametrize(
    ("tensor", "item", "array"),
    [
        (Tensor("uint8", (2,)), [0, 255], np.array([0, 255], "u1")),
        (Tensor("int64", ()), -(2**63), np.array(-(2**63))),
        (Tensor("bool", (2,)), [True, False], np.array([True, False])),
        (Tensor("bfloat16", (1,)), [1.5], np.array([1.5], ml_dtypes.bfloat16)),
        (Tensor("float16", (1, 2)), [[1, 2]], np.array([[1, 2]], "f2")),
        (Tensor("float32", (2, 0)), [[], []], np.zeros((2, 0), "f4")),
        (Tensor("complex64", (1,)), encode_numpy(np.array([1j], "c8")), np.array([1j], "c8")),
    ],
    ids=repr,
)
def test_items_of_every_kind(tensor, item, array):
    (found,) = decoded(item, tensor)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes() and found.shape == array.shape


@pytest.mark.parametrize(
    ("tensor", "item"),
    [
        (Tensor("uint8", ()), 256),
        (Tensor("uint8", ()), -1),
        (Tensor("int8", ()), 1.0),
        (Tensor("bool", ()), 1),
        (Tensor("float16", ()), 70000),
        (Tensor("float32", (2,)), [0.5, False]),
        (Tensor("<U3", ()), ["abc"]),
        (Tensor("float32", (2,)), [[1], [2]]),
    ],
    ids=repr,
)
def test_no_cast_is_silent(tensor, item):
    with pytest.raises(ItemError):
        decoded(item, tensor)


class Tokens(TensorHandler):
    inputs = {"ids": Tensor("int64", (2,)), "mask": Tensor("bool", (2,))}
    outputs = {"sum": Tensor("int64"), "ids": Tensor("int64", (2,))}

    def run_inference(self, batch):
        return {"sum": (batch["ids"] * batch["mask"]).sum(axis=1), "ids": batch["ids"]}


def test_inputs_and_outputs_by_name(ask):
    app = http_server("tokens", Tokens())
    item = {"ids": [5, 7], "mask": encode_numpy(np.array([True, False]))}
    answer, wrong, names, npy = run(
        app,
        ask(app, orjson.dumps({"data": [item, item]})),
        ask(app, orjson.dumps({"data": [item, {**item, "mask": [1, 0]}]})),
        ask(app, orjson.dumps({"data": [{"ids": [5, 7]}]})),
        ask(app, b"", headers=[(b"content-type", b"application/x-npy")]),
    )
    assert [row["sum"] for row in answer.json["data"]] == [5, 5]
    assert decode_numpy(answer.json["data"][1]["ids"]).tolist() == [5, 7]
    assert wrong.status == 422 and wrong.error.startswith("item 1: mask: expected numbers that bool holds")
    assert names.error == "item 0: expected an object of the members ['ids', 'mask'], got ['ids']"
    assert npy.status == 415


# ---- out


def test_rows_of_no_dimension_are_numbers_and_booleans():
    class Sums(Identity):
        def run_inference(self, batch):
            return batch.sum(axis=1) if batch[0, 0] else batch.sum(axis=1) > 1

    numbers, booleans = served(Sums(), body(vector(1, 2, 3))), served(Sums(), body(vector(0, 2, 3)))
    assert numbers[0].body == b'{"data":[6.0],"error":null}'
    assert booleans[0].body == b'{"data":[true],"error":null}'


def test_process_response_gets_the_row_where_it_is_overridden():
    class Labels(Identity):
        def process_response(self, model_output_item):
            return {"label": "abc"[int(model_output_item.argmax())]}

    (answer,) = served(Labels(), body(vector(1, 2, 3), vector(9, 2, 3)))
    assert answer.json["data"] == [{"label": "c"}, {"label": "a"}]


def test_a_sequence_of_rows_will_do():
    class Lists(Identity):
        def run_inference(self, batch):
            return [row * 2 for row in batch]

    (answer,) = served(Lists(), body(vector(1, 2, 3)))
    assert decode_numpy(answer.json["data"][0]).tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (lambda batch: batch[1:], "1 rows for 2 items"),
        (lambda batch: batch[0, 0], "expected an array of 2 rows"),
        (lambda batch: "ab", "a str; expected an array of 2 rows"),
        (lambda batch: {}, "an empty dict"),
        (lambda batch: {"a": batch, "b": batch[1:]}, "'b' as 1 rows for 2 items"),
        (lambda batch: [vector(1), vector(1, 2)], "rows of different shapes"),
        (lambda batch: np.array([None, None]), "expected an array of 2 rows"),
        (lambda batch: batch.sum(axis=1) * np.nan, "item 0: run_inference gave a float that can't be sent: nan"),
    ],
)
def test_what_can_not_be_sent_is_a_500(outputs, says):
    class Odd(Identity):
        def run_inference(self, batch):
            return outputs(batch)

    (answer,) = served(Odd(), body(vector(), vector()))
    assert answer.status == 500
    assert says in answer.error


def test_declared_outputs_are_held_to():
    class Odd(Tokens):
        def run_inference(self, batch):
            return {"sum": batch["ids"].sum(axis=1).astype("f4"), "ids": batch["ids"]}

    app = http_server("tokens", Odd())
    (answer,) = run(app, ask_direct(app, orjson.dumps({"data": [{"ids": [5, 7], "mask": [True, True]}]})))
    assert answer.status == 500
    assert "'sum': 'float32 ()'" in answer.error and "declared" in answer.error


# ---- lifetime


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


def put(ring, *values):
    ticket = Recorder([vector(value, value, value).tolist() for value in values])
    ticket.values = values
    ticket.items = items_of(ticket.items)
    return ticket if ring.put(ticket) else None


def firsts(load):
    batch, counts = load.work
    assert sum(counts) == len(batch) == load.size
    return batch[:, 0].tolist()


def test_a_slab_is_used_again_only_when_nobody_holds_its_rows():
    ring = ring_of()
    put(ring, 1, 2)
    load = ring.take(4)
    address = load.work[0].ctypes.data
    others = len(ring._pool)
    load.release()
    assert len(ring._pool) == others + 1
    put(ring, 3)
    assert len(ring._pool) == others
    load = ring.take(4)
    assert load.work[0].ctypes.data == address
    kept = load.work[0][:1]
    load.release()
    assert len(ring._pool) == others
    put(ring, 5)
    load = ring.take(4)
    assert load.work[0].ctypes.data != address
    assert kept.tolist() == [[3, 3, 3]]


def test_holes_of_cancelled_rows_are_filled_from_the_tail():
    ring = ring_of()
    tickets = [put(ring, value) for value in (1, 2, 3, 4)]
    ring.cancel(tickets[0])
    ring.cancel(tickets[2])
    load = ring.take(4)
    assert sorted(firsts(load)) == [2, 4]
    rows = dict(zip([ticket.values for ticket, _, _ in load.spans], firsts(load), strict=True))
    assert rows == {(2,): 2, (4,): 4}
    assert ring.size == 0


def test_rows_that_fill_holes_come_back_in_the_order_of_their_request(loop):
    executor = ScriptedExecutor()
    batcher = Batcher(loop, 4, 0, 12, loop.clock)
    batcher.run_with(executor, TensorSteps(Identity()), ring_of())
    leaves, stays = Recorder([[1, 1, 1]]), Recorder([[2, 2, 2], [3, 3, 3], [4, 4, 4]])
    for ticket in (leaves, stays):
        ticket.items = items_of(ticket.items)
        batcher.admit(ticket, loop.now)
    batcher.cancel(leaves, "left")
    loop.settle()
    executor.run()
    ((rows, _),) = stays.answers
    assert rows._arrays[""][:, 0].tolist() == [2, 3, 4]


def test_a_request_that_was_taken_or_left_is_not_the_oldest_any_more():
    ring = ring_of()
    first, second, third = put(ring, 1, 2, 3), put(ring, 4, 5), put(ring, 6)
    assert ring.oldest is first
    ring.take(4).release()
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
    bad.items = reader(VECTOR, b'{"data":["%b","%b\x01"]}' % (good.encode(), good[:-1].encode()), False, None)
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
    loads = [ring.take(1) for _ in range(1024)]
    batches = [load.work[0] for load in loads]
    assert [batch["a"].tolist() for batch in batches] == [[[n, n, n]] for n in range(1024)]
    assert [batch["b"].tolist() for batch in batches] == [[n % 256] for n in range(1024)]
    assert all(array.ctypes.data % 64 == 0 for batch in batches for array in batch.values())
    pages = {batch["a"].ctypes.data // mmap.PAGESIZE for batch in batches}
    assert len(pages) <= 1024 * 64 / mmap.PAGESIZE + 16
    kept = batches[::2]
    del batches
    for load in loads:
        load.release()
    assert len(ring._pool) >= 512
    free = {arrays["a"].ctypes.data for arrays in ring._pool}
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


class Life(RuleBasedStateMachine):
    """Admit, spill over, cancel, refuse, answer, fail in any order: every request gets its own rows, once."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.loop = FakeLoop()
        self.executor = ScriptedExecutor(depth=2)
        self.batcher = Batcher(self.loop, 4, 0.005, 12, self.loop.clock)
        self.ring = ring_of()
        self.batcher.run_with(self.executor, TensorSteps(Identity()), self.ring)
        self.names = iter(range(1, 10**6))
        self.sent = []
        self.cancelled = set()

    @rule(target=tickets, count=st.integers(1, 12))
    def send(self, count):
        names = [next(self.names) for _ in range(count)]
        ticket = Recorder([[name] * 3 for name in names])
        ticket.items = items_of(ticket.items)
        ticket.names = names
        try:
            self.batcher.admit(ticket, self.loop.now)
        except RequestError as error:
            assert error.status == 503
            return None
        self.sent.append(ticket)
        return ticket

    @rule(count=st.integers(0, 11))
    def send_bad(self, count):
        ticket = Recorder([[-1, -1, -1]] * count + ["bad"])
        ticket.items = items_of(ticket.items)
        before = self.ring.size
        with pytest.raises((ItemError, RequestError)):
            self.batcher.admit(ticket, self.loop.now)
        assert self.ring.size == before

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
                assert error is not None or rows._arrays[""][:, 0].tolist() == ticket.names
            assert not (ticket.answers and ticket in self.cancelled)

    @invariant()
    def memory_is_bounded(self):
        assert len(self.ring._slabs) <= 4
        assert self.ring.size <= 12
        assert all(size <= 4 for size in self.executor.sizes)

    def teardown(self):
        while self.loop.ready or self.executor.running or self.batcher.waiting:
            self.loop.settle()
            self.finish()
            self.loop.advance(0.01)
        for ticket in self.sent:
            assert len(ticket.answers) == (ticket not in self.cancelled)
        self.each_request_is_answered_once_with_its_own_rows()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_seconds_are_those_of_one_batch():
    steps = TensorSteps(Identity(), itertools.count(0, 1_000_000).__next__)
    for _ in range(2):
        drive(steps.run((np.zeros((1, 3)), [1])))
        assert steps.seconds == {"run_inference": 0.001}


# ---- what is said of it


def test_the_root_publishes_inputs_and_outputs():
    app = http_server("tokens", Tokens())
    (answer,) = run(app, ask_direct(app, method="GET"))
    assert answer.json["inputs"] == {"ids": {"dtype": "int64", "shape": [2]}, "mask": {"dtype": "bool", "shape": [2]}}
    assert answer.json["outputs"]["sum"] == {"dtype": "int64", "shape": []}


def test_a_tensor_handler_without_inputs_does_not_start():
    class Bare(TensorHandler):
        def run_inference(self, batch):
            return batch

    with pytest.raises(TypeError, match="Bare.inputs: expected a Tensor"):
        run(http_server("bare", Bare()))


def test_a_tensor_handler_whose_process_request_would_never_run_does_not_start():
    class Odd(Identity):
        def process_request(self, data):
            return data

    with pytest.raises(TypeError, match="Odd.process_request would never run"):
        run(http_server("odd", Odd()))


def test_validate_and_example():
    assert Identity().validate(HttpMessage(data=Identity().example()), strict=True).data == [
        encode_numpy(vector(0, 0, 0))
    ]
    assert Tokens().validate(HttpMessage(data=Tokens().example()), strict=True).data[0]["sum"] == 0
    assert Identity().validate(HttpMessage(data=[[1, 2]])) is None
    with pytest.raises(ItemError, match=r"item 0: .*got a list of 2 in place of a list of 3"):
        Identity().validate(HttpMessage(data=[[1, 2]]), strict=True)
    with pytest.raises(HandlerError, match="1 rows for 2 items"):
        type("Odd", (Identity,), {"run_inference": lambda self, batch: batch[1:]})().validate(
            HttpMessage(data=[[1, 2, 3]] * 2), strict=True
        )


@pytest.mark.parametrize(
    "wrong",
    [
        ("object", ()),
        ("S0", ()),
        ("float32", (-1,)),
        ("float32", (1.5,)),
        ("float33", ()),
        ("bfloat16x", ()),
        (7, ()),
        ("f4,i2", ()),
        ("V4", ()),
        ("(2,)f4", ()),
        ("M8[25s]", ()),
        ("m8", ()),
    ],
    ids=str,
)
def test_a_tensor_that_can_not_be_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match="^Tensor"):
        Tensor(*wrong)


def test_reader_says_what_it_takes():
    account = SimpleNamespace(admit_documents=lambda count: None)
    with pytest.raises(RequestError, match="one array an item"):
        reader(Tokens.inputs, b"", True, account)
    with pytest.raises(ItemError, match="expected float32"):
        reader(VECTOR, encode_npy([np.zeros(3)]), True, account).into(allocate(VECTOR, 1))


def test_a_document_of_fields_in_fortran_order_is_refused_before_it_is_copied():
    fields = "[" + ",".join(f"('f{i}','|V536870911')" for i in range(8)) + ",('z','|V24')]"
    head = f"{{'descr': {fields}, 'fortran_order': True, 'shape': (2,2)}}\n".encode()
    document = b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + b"A" * 64
    app = http_server("identity", Identity())
    (answer,) = run(app, ask_direct(app, document, headers=[(b"content-type", b"application/x-npy")]))
    assert answer.status == 422 and "a plain dtype, not a structured one" in answer.error


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((1, 2), "M8[25s]"), "rows that can't be sent: datetime64\\[25s\\] does not travel"),
        (np.zeros(1, "f4,i2"), "rows that can't be sent: .* no structured or void"),
        (np.zeros(1, np.longdouble), "(longdouble|float128) has no JSON form: convert it"),
        (np.ma.array([1.5], mask=[True]), "a masked array, whose mask would be lost"),
    ],
    ids=["several units", "structured", "longdouble", "masked"],
)
def test_rows_that_do_not_travel_are_an_error_that_says_which(rows, says):
    with pytest.raises(HandlerError, match=says):
        Rows.of(rows, 1, None).json()
    if "can't be sent" in says:
        with pytest.raises(HandlerError, match=says):
            Rows.of(rows, 1, None).npy()


def test_parts_of_rows_join_without_aliasing():
    rows = Rows({"": np.arange(6.0).reshape(3, 2)})
    joined = Rows.joined([rows.part(0, 1).copy(), rows.part(1, 3)])
    assert len(joined) == 3
    rows._arrays[""][:] = 0
    gc.collect()
    assert joined._arrays[""].tolist() == [[0, 1], [2, 3], [4, 5]]


def in_large_memory(app, text, headers=()):
    """Put a request whose body the kernel would read into pooled memory; gives its answer."""
    exchange = app.open(Head("POST", "/", list(headers), len(text), None), app._clock())
    exchange.buffer(len(text))[:] = text
    exchange.charge(len(text))
    return exchange.complete()


@pytest.mark.parametrize(
    ("text", "headers", "status"),
    [
        (body(*[vector()] * 3, np.zeros(3, "float64")), (), 422),
        (b'{"data":["%b!"]}' % encode_numpy(vector())[:-1].encode(), (), 422),
        (body(*[vector()] * 9), (), 413),
        (encode_npy([vector()] * 9), [(b"content-type", b"application/x-npy")], 413),
        (encode_npy([np.zeros(4, "float32")] * 2), [(b"content-type", b"application/x-npy")], 422),
    ],
    ids=["another dtype", "bad base64", "too many", "too many rows", "another shape"],
)
def test_a_large_body_that_is_refused_is_counted_so_and_its_memory_used_again(text, headers, status):
    async def main():
        app = http_server("tensor", Identity(), max_batch_size=2, max_queue_size=8)
        await app.startup()
        refused = []
        for _ in range(2):
            refused.append(in_large_memory(app, text, headers).status)
            await asyncio.sleep(0)  # it is given back when the transport that wrote it is done with it
        counts = app.admission.unsettled, app.admission.bodies.held, app.admission.bodies.kept
        await asyncio.wait_for(app.shutdown(), 5)
        return refused, counts

    assert asyncio.run(main()) == ([status] * 2, (0, 0, SMALLEST))


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (lambda n, call: np.zeros((n, call)), "returned rows of {'': (1,)}, then of {'': (2,)}"),
        (lambda n, call: {"ab"[call - 1]: np.zeros(n)}, "returned rows of {'a': ()}, then of {'b': ()}"),
        (lambda n, call: dict.fromkeys("ab"[:call], np.zeros(n)), "then of {'a': (), 'b': ()}, for one request"),
    ],
    ids=["shapes", "names", "more names"],
)
def test_rows_of_two_batches_that_do_not_go_together_fail_their_request_alone(outputs, says):
    class Varies(Identity):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            return outputs(len(batch), self.calls)

    both, other = served(Varies(), body(*[vector()] * 3), body(vector()), max_batch_size=2)
    assert (both.status, other.status) == (500, 200)
    assert says in both.error


def test_labels_of_different_lengths_go_together():
    class Labels(Identity):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            return np.array(["a" * self.calls] * len(batch))

    (answer,) = served(Labels(), body(*[vector()] * 3), max_batch_size=2)
    assert answer.json["data"] == ["a", "a", "aa"]


class Reuses(Identity):
    """A model that writes all its outputs to one place; its second batch is done before the first is answered."""

    def setup(self, worker):
        self.place = np.zeros((2, 3), "float32")
        self.returned = threading.Event()

    def run_inference(self, batch):
        np.copyto(self.place[: len(batch)], batch)
        if batch[0, 0] == 2:
            self.returned.set()
        return self.place[: len(batch)]


class ReusesRows(Reuses):
    def process_response(self, row):
        return row


@pytest.mark.parametrize("handler", [Reuses, ReusesRows])
def test_a_model_that_reuses_its_outputs_changes_no_answer_that_is_not_made_yet(handler):
    async def main():
        model = handler()
        app = http_server("reuses", model, executor="thread", max_batch_size=1)
        await app.startup()
        asked = [asyncio.ensure_future(ask_direct(app, body(vector(n, n, n)))) for n in (1, 2)]
        for _ in range(5):
            await asyncio.sleep(0)  # both are cut now; the loop stands still until both have run
        model.returned.wait(5)
        answers = await asyncio.wait_for(asyncio.gather(*asked), 5)
        await app.shutdown()
        return [answer.json["data"][0] for answer in answers]

    decode = decode_numpy if handler is Reuses else np.array
    assert [decode(item).tolist() for item in asyncio.run(main())] == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_rows_of_a_request_over_two_batches_stay_as_they_were(executor):
    model_rows = [[n] * 3 for n in (1, 2, 3)]
    (answer,) = served(ReusesRows(), body(*map(np.float32, model_rows)), max_batch_size=1, executor=executor)
    assert answer.json["data"] == model_rows


def test_outputs_that_nobody_else_can_write_to_are_not_copied():
    fresh, kept = np.zeros((2, 3)), np.zeros((2, 3))
    rows = Rows({"fresh": fresh, "kept": kept, "view": np.zeros((4, 3))[:2]})
    at = {name: array.ctypes.data for name, array in rows._arrays.items()}
    del fresh  # kept is still referred to from here
    same = {name: array.ctypes.data == at[name] for name, array in rows.unshared()._arrays.items()}
    assert same == {"fresh": True, "kept": False, "view": False}
