"""Handlers whose process_request takes `data: np.ndarray`: in every executor, by both shells."""

import asyncio
import functools
import re
import threading
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import orjson
import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run
from kit.services import Watching
from test_batcher import Rig

from virtex import HttpMessage, ItemError, Limits, RequestHandler, http_server
from virtex._codec import encode_npy, encode_numpy
from virtex.batch.arrays import ArrayRing, array_dtype, stacked
from virtex.batch.company import Peer
from virtex.batch.ring import Ticket
from virtex.batch.steps import Steps
from virtex.serial import decode_numpy

if TYPE_CHECKING:
    import numpy.typing as hidden

NPY = [(b"content-type", b"application/x-npy")]


class Base(RequestHandler):
    """Notes what it is given."""

    def __init__(self):
        self.given = []

    def run_inference(self, batch):
        return batch * 2

    def process_response(self, row):
        return row


class Doubles(Base):
    def process_request(self, data: np.ndarray):
        assert type(data) is np.ndarray and data.flags.c_contiguous and data.flags.writeable and data.flags.owndata
        self.given.append((data.dtype.name, data.shape))
        if (data == 666).any():
            raise ItemError("expected no 666")
        if (data == 13).any():
            raise ZeroDivisionError
        data += 0.0  # its own: nobody else's numbers, and none that it is given again
        return data


class DoublesAsync(Doubles):
    async def process_request(self, data: "npt.NDArray[np.float64]"):
        await asyncio.sleep(0)
        return Doubles.process_request(self, data)


class Singles(Base):
    def process_request(self, data: npt.NDArray[np.float32]):
        self.given.append((data.dtype.name, data.shape))
        return data


class Bytes(Base):
    def process_request(self, data: npt.NDArray[np.uint8]):
        self.given.append((data.dtype.name, data.shape))
        return data


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


@pytest.fixture(params=["inline", "thread", "async"])
def serve(request):
    """Makes a service of the handler, and of its async kind."""

    def made(**kw):
        handler = DoublesAsync() if request.param == "async" else Doubles()
        app = http_server("arrays", handler, executor="thread" if request.param == "thread" else "inline", **kw)
        return handler, app

    return made


def data(*items):
    return orjson.dumps({"data": list(items)})


# ---- what a handler says


class Odd:
    def lists(self, data): ...
    def listed(self, data: list[Any]): ...
    def union(self, data: list[Any] | np.ndarray): ...
    def optional(self, data: np.ndarray | None): ...
    def unknown(self, data: "list[Nowhere]"): ...  # noqa: F821
    def matrix(self, data: np.matrix): ...
    def returns(self, data) -> np.ndarray: ...
    def bare(self, data: np.ndarray): ...
    def text(self, data: "np.ndarray"): ...
    def other_name(self, x: np.ndarray): ...
    def any(self, data: npt.NDArray[Any]): ...
    def floating(self, data: npt.NDArray[np.floating[Any]]): ...
    def generic(self, data: npt.NDArray[np.generic]): ...
    def halves(self, data: npt.NDArray[np.float16]): ...
    def text_singles(self, data: "npt.NDArray[np.float32]"): ...
    def long_form(self, data: np.ndarray[tuple[int, int], np.dtype[np.int64]]): ...
    def bools(self, data: npt.NDArray[np.bool_]): ...
    def brains(self, data: npt.NDArray[ml_dtypes.bfloat16]): ...
    def objects(self, data: npt.NDArray[np.object_]): ...
    def object(self, data: npt.NDArray[object]): ...
    def fields(self, data: npt.NDArray[np.void]): ...
    def integers(self, data: npt.NDArray[np.integer[Any]]): ...
    def strings(self, data: npt.NDArray[np.str_]): ...
    def moments(self, data: npt.NDArray[np.datetime64]): ...
    def either(self, data: npt.NDArray[np.float32 | np.float64]): ...
    def unseen(self, data: "hidden.NDArray[np.float32]"): ...


def handler_of(name, wraps=lambda f: f):
    return type("Odd", (), {"process_request": wraps(getattr(Odd, name))})()


TAKEN = {
    "bare": "f8",
    "text": "f8",
    "other_name": "f8",
    "any": "f8",
    "floating": "f8",
    "generic": "f8",
    "halves": "f2",
    "text_singles": "f4",
    "long_form": "i8",
    "bools": "?",
    "brains": ml_dtypes.bfloat16,
}


@pytest.mark.parametrize(("name", "dtype"), TAKEN.items(), ids=TAKEN)
def test_an_annotation_says_the_dtype(name, dtype):
    assert array_dtype(handler_of(name)) == np.dtype(dtype)
    assert array_dtype(handler_of(name, _wrapped)) == np.dtype(dtype)


def _wrapped(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args)

    return wrapper


@pytest.mark.parametrize("name", ["lists", "listed", "union", "optional", "unknown", "matrix", "returns"])
def test_without_that_annotation_nothing_changes(name):
    assert array_dtype(handler_of(name)) is None


@pytest.mark.parametrize("name", ["objects", "object", "fields", "integers", "strings", "moments", "either", "unseen"])
def test_an_array_that_numbers_can_not_fill_is_an_error_at_the_start(name):
    handler = type("Odd", (Base,), {"process_request": getattr(Odd, name)})()
    for start in (lambda: run(http_server("odd", handler)), lambda: handler.validate(HttpMessage(data=[1]))):
        with pytest.raises(TypeError, match=r"^Odd\.process_request: "):
            start()


def test_an_array_and_decode_item_are_an_error_at_the_start():
    handler = type("Odd", (Doubles,), {"decode_item": staticmethod(decode_numpy)})()
    for start in (lambda: run(http_server("odd", handler)), lambda: handler.validate(HttpMessage(data=[1]))):
        with pytest.raises(TypeError, match="Odd declares decode_item, and that process_request takes an array"):
            start()


def test_encode_item_goes_with_it(ask):
    handler = type("Text", (Doubles,), {"encode_item": staticmethod(lambda row: f"<{row[0]}>")})
    (answer,) = run(app := http_server("text", handler), ask(app, data([1], [2])))
    assert answer.json["data"] == ["<2.0>", "<4.0>"]


# ---- in a service


def test_requests_of_one_shape_are_one_array_and_each_has_its_rows(serve, ask):
    handler, app = serve()
    first, second, base64, documents, none = run(
        app,
        ask(app, data([1, 2.5], [3, 4])),
        ask(app, b'\n{ "data" : [ [ 5 , -6e0 ] ] , "error" : null } '),
        ask(app, data(encode_numpy(np.float32([7, 8])), [0.1, 0])),
        ask(app, encode_npy(np.array([9, 10])), headers=NPY),
        ask(app, data()),
    )
    assert first.json["data"] == [[2, 5], [6, 8]] and second.json["data"] == [[10, -12]]
    assert base64.json["data"] == [[14, 16], [0.2, 0]] and documents.json["data"] == [[18, 20]]
    assert none.body == b'{"data":[],"error":null}'
    assert handler.given == [("float64", (6, 2))]


def test_shapes_are_batches_of_their_own_and_no_error(serve, ask):
    watching = Watching()
    handler, app = serve(observer=watching)
    shapes = [(2,), (3,), (2,), (), (1, 2), (2,), (3,), (0,), (2, 0)]
    arrays = [np.full(shape, i, "f8") for i, shape in enumerate(shapes)]
    answers = run(app, *(ask(app, data(array.tolist())) for array in arrays))
    assert [answer.json["data"] for answer in answers] == [[(2 * array).tolist()] for array in arrays]
    expected = [(3, 2), (2, 3), (1,), (1, 1, 2), (1, 0), (1, 2, 0)]
    assert [shape for _, shape in handler.given] == expected
    assert watching.batches == [shape[0] for shape in expected]


def test_a_request_that_spans_batches_is_answered_in_order(serve, ask):
    handler, app = serve(max_batch_size=2)
    long, other = run(app, ask(app, data(*([i, i] for i in range(5)))), ask(app, data([7])))
    assert long.json["data"] == [[2 * i, 2 * i] for i in range(5)] and other.json["data"] == [[14]]
    assert [shape for _, shape in handler.given] == [(2, 2), (2, 2), (1, 2), (1, 1)]


def test_whose_item_it_was_is_found_and_the_others_are_answered(serve, ask):
    _, app = serve()
    good, bad, bug, also = run(
        app,
        *(ask(app, data(*items)) for items in ([[1, 2]], [[1, 1], [5, 666]], [[13, 13]], [[3, 3], [4, 4]])),
    )
    assert good.json["data"] == [[2, 4]] and also.json["data"] == [[6, 6], [8, 8]]
    assert (bad.status, bad.error) == (422, "item 1: expected no 666")
    assert bug.status == 500 and "process_request raised ZeroDivisionError" in bug.error


HUGE = 2**53 + 1
BAD = {
    "ragged": (Doubles, [[1, 2], [3]], "item 1: expected float64 (2,), got a list of 1 in place of a list of 2"),
    "ragged within": (Doubles, [[[1, 2], [3]]], "item 0: expected float64 (2, 2), got a list of 1"),
    "ragged, 10**27 numbers": (
        Doubles,
        [functools.reduce(lambda x, _: [x, *[0] * 7], range(30), 0)],
        f"item 0: expected float64 {(8,) * 30}, got 0 in place of a list of 8 at {'[0]' * 28}[1]",
    ),
    "ragged, 10**12 numbers": (
        Doubles,
        [functools.reduce(lambda x, _: [x, *[0] * 999], range(4), 0)],
        "item 0: expected float64 (1000, 1000, 1000, 1000), got 0 in place of a list of 1000 at [0][0][1]",
    ),
    "ragged, lists of none": (
        Doubles,
        [functools.reduce(lambda x, _: [x, *[0] * 7], range(29), [])],
        f"item 0: expected float64 {(8,) * 29 + (0,)}, got 0 in place of a list of 0 at {'[0]' * 28}[1]",
    ),
    "a list for a number": (Doubles, [[1, [2]]], "item 0: expected numbers that float64 holds, got a list in place of"),
    "a number for a list": (Doubles, [[[1], 2]], "item 0: expected float64 (2, 1), got 2 in place of a list of 1"),
    "depths": (Doubles, [1, [1]], "item 1: expected numbers that float64 holds, got a list in place of a number"),
    "text": (Doubles, [[1, "2"]], "item 0: expected numbers that float64 holds, got text"),
    "no base64": (Doubles, [[1], "abc"], "item 1: expected padded base64"),
    "no base64, behind text": (Doubles, [["x"], "abc"], "item 0: expected numbers that float64 holds, got text"),
    "null": (
        Doubles,
        [1, None],
        "item 1: expected base64 of a .npy document, or nested lists of numbers; got NoneType",
    ),
    "an object": (Doubles, [{"a": 1}], "item 0: expected base64 of a .npy document, or nested lists"),
    "a boolean": (Doubles, [[1, True]], "item 0: expected numbers that float64 holds, got booleans"),
    "an integer": (Doubles, [[0, 0], [1, HUGE]], f"item 1: expected integers that float64 holds exactly, got {HUGE}"),
    "an integer alone": (Doubles, [HUGE], f"item 0: expected integers that float64 holds exactly, got {HUGE}"),
    "a single's": (Singles, [[2**24 + 1]], "item 0: expected integers that float32 holds exactly, got 16777217 at [0]"),
    "a byte's": (Bytes, [[1, 256]], "item 0: expected integers from 0 to 255 (uint8), got 256"),
    "a fraction": (Bytes, [[0.5]], "item 0: expected numbers that uint8 holds, got fractions"),
    "too large": (Singles, [[1e39]], "item 0: expected numbers that float32 holds, got 1e+39"),
    "deep": (Doubles, [functools.reduce(lambda x, _: [x], range(40), 1)], "item 0: expected lists nested less than 32"),
    "no cast": (
        Bytes,
        [encode_numpy(np.zeros(1))],
        'item 0: expected an array of uint8, or of a dtype that "same_kind"',
    ),
    "bools": (Doubles, [encode_numpy(np.zeros(1, "?"))], "item 0: expected an array of float64, or of a dtype"),
    "text in base64": (Doubles, [encode_numpy(np.array("a"))], "item 0: expected an array of float64, or of a dtype"),
    "lost": (Doubles, [encode_numpy(np.array([HUGE]))], f"item 0: expected numbers that float64 holds, got {HUGE}"),
    "infinite": (Singles, [encode_numpy(np.array([1e39]))], "item 0: expected numbers that float32 holds, got 1e+39"),
    "unsigned": (Bytes, [encode_numpy(np.array([256], "u2"))], "item 0: expected numbers that uint8 holds, got 256"),
    "shapes": (Doubles, [encode_numpy(np.zeros(1)), [1, 2]], "item 1: expected float64 (1,), got a list of 2"),
}


@pytest.mark.parametrize(("kind", "items", "says"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_a_422_of_its_request_alone(ask, kind, items, says):
    handler = kind()
    app = http_server("arrays", handler)
    good, bad = run(app, ask(app, data([1, 2])), ask(app, data(*items)))
    assert good.json["data"] == [[2, 4]]
    assert bad.status == 422 and bad.error.startswith(says)
    assert len(handler.given) == 1
    with pytest.raises(ItemError, match=re.escape(says[8:60])):
        handler.validate(HttpMessage(data=items), strict=True)


def test_what_floats_hold_is_taken(ask):
    app = http_server("arrays", Singles())
    values = [2**24, 2**24 + 2, -(2**40), 1e20, 3.0000000000000001, -0.0]
    (answer,) = run(app, ask(app, data(values)))
    assert answer.json["data"] == [[float(str(x)) for x in np.float32(values) * 2]]


def test_base64_of_a_kind_is_cast_and_what_is_not_finite_stays_so():
    taken = stacked([encode_numpy(np.array([np.nan, np.inf, 1])), [1, 2, 3]], np.dtype("f4"), _none, 100)
    assert taken.dtype == "f4" and np.isnan(taken[0, 0]) and taken[1].tolist() == [1, 2, 3]
    assert stacked([encode_numpy(np.array([1, 2], ">i2"))], np.dtype("f8"), _none, 100).tolist() == [[1, 2]]
    assert stacked([encode_numpy(np.array([5], "i8"))], np.dtype("i1"), _none, 100).tolist() == [[5]]


def _none(count, nbytes):
    pass


def test_no_memory_is_taken_for_what_nobody_sent(ask):
    """The first item is large and the others are nothing: as many as the first would be 80 GB."""
    app = http_server("arrays", Doubles, max_queue_size=10**6)
    body = b'{"data":[[' + b"0," * 100_000 + b"0]" + b",[]" * 100_000 + b"]}"
    (answer,) = run(app, ask(app, body))
    assert answer.status == 422 and answer.error.startswith("item 1: expected float64 (100001,), got a list of 0")


def test_arrays_are_charged_and_more_items_than_the_queue_holds_taken(ask):
    app = http_server("arrays", Doubles, max_queue_size=600, limits=Limits(body=1 << 20, max_bytes=4 << 20))
    large, many, late = run(
        app,
        ask(app, b'{"data":[[' + b"0," * 500_000 + b"0]]}"),
        ask(app, data(*[0] * 601)),
        ask(app, data([1])),
    )
    (after,) = run(app, ask(app, data([1])))
    assert (large.status, many.status, late.status) == (503, 200, 503) and after.json["data"] == [[2]]
    assert "limits.max_bytes" in large.error and many.json["data"] == [0] * 601


def test_large_floats_need_no_parser_and_no_room_for_its_values(ask):
    """No integer is among them that float64 could miss: limits.values, which a parser has, does not hold for them."""
    app = http_server("arrays", Doubles, limits=Limits(values=100))
    floats = (
        b"1e300,-12345678901234567890.5,12345678901234567e1,0.12345678901234567,1e0000000000000000001,123456789012345,"
    )
    fits, refused = run(
        app,
        ask(app, b'{"data":[[' + floats * 50 + b"0]]}"),
        ask(app, b'{"data":[[%d,-%d]]}' % (2**53, HUGE)),
    )
    assert fits.status == 200, fits.error
    assert refused.status == 422 and f"exactly, got -{HUGE} at [1]" in refused.error


LARGE = {
    "float64": (Doubles, [2**53, -(2**53), 2**60, 12345678901234568, -(2**63), 3 * 2**62]),
    "float32": (Singles, [2**24, 123456000, -(2**40) * 3, 2**63]),
}


@pytest.mark.parametrize(("kind", "integers"), LARGE.values(), ids=LARGE)
def test_large_integers_that_the_dtype_holds_need_no_parser_either(ask, kind, integers):
    app = http_server("arrays", kind(), limits=Limits(values=3 * len(integers)))
    rows = [[n, 0.5] for n in integers]
    fits, refused, first = run(
        app,
        ask(app, data(*rows)),
        ask(app, data(*rows, [integers[0] + 1, 0])),
        ask(app, data([HUGE, 0], ["1", 0])),
    )
    assert fits.status == 200, fits.error
    given = np.asarray(fits.json["data"], array_dtype(kind()))  # as it is written, it is another decimal
    assert (given == np.asarray([[2 * n, 1] for n in integers], "f8")).all()
    assert refused.status == 413 and "limits.values" in refused.error  # a parser says what is wrong
    assert first.error.startswith("item 1: expected numbers that float")  # lists that are none come first


def test_what_a_parser_makes_of_a_body_is_charged_once(ask):
    limits = Limits(max_bytes=700_000, body=100_000)  # 5000 values are 400_000

    class Complex(Base):
        def process_request(self, data: npt.NDArray[np.complex128]):
            return data.real

    app = http_server("arrays", Complex(), limits=limits)
    (taken,) = run(app, ask(app, b'{"data":[[' + b"%d," % HUGE * 4999 + b"1]]}"))
    assert taken.status == 422 and "expected integers that complex128 holds exactly" in taken.error


def test_nothing_is_decoded_of_more_items_than_there_is_room_for():
    def refuse(count, nbytes):
        raise OverflowError(count)

    with pytest.raises(OverflowError, match="2"):
        stacked(["not looked at", "either"], np.dtype("f8"), refuse, 10**6)


def test_what_a_cast_makes_of_base64_is_charged_before():
    charged = []
    stacked([encode_numpy(np.zeros(1000, "i1"))], np.dtype("f8"), lambda _, nbytes: charged.append(nbytes), 10**6)
    assert sum(charged) == 2 * 8000  # the array of the item, and that of the request


def test_the_budget_is_whole_again(ask):
    app = http_server("arrays", Doubles)

    async def main():
        await ask(app, data([1, 2]))
        await ask(app, data([1], [2, 3]))
        return app.budget.held

    assert run(app, main()) == [0]


def test_the_root_says_what_is_taken():
    (answer,) = run(app := http_server("arrays", Singles), ask_direct(app, method="GET"))
    assert answer.json["inputs"] == {"dtype": "float32", "shape": None}
    assert answer.json["arrays"] == ["numbers", "base64"]


def test_validate_does_the_same():
    handler = Doubles()
    assert handler.validate(HttpMessage(data=[[1, 2], [3, 4]]), strict=True).data == [[2, 4], [6, 8]]
    assert handler.given == [("float64", (2, 2))]
    assert DoublesAsync().validate(HttpMessage(data=[encode_numpy(np.ones(2))]), strict=True).data == [[2, 2]]


def test_methods_run_on_the_thread_of_the_handler(ask):
    threads = []

    class Where(Base):
        def process_request(self, data: np.ndarray):
            threads.append(threading.current_thread())
            return data

    app = http_server("where", Where(), executor="thread")
    run(app, ask(app, data(1)))
    assert threads[0] is not threading.main_thread()


# ---- the ring


def ticket(*shape):
    made = Ticket()
    made.items = np.zeros(shape)
    made.count, made.weight = shape[0], 10 * shape[0]
    return made


def test_a_batch_takes_the_shape_of_the_oldest_and_the_others_keep_their_places():
    ring = ArrayRing(8)
    tickets = [ticket(2, 3), ticket(1, 4), ticket(3, 3), ticket(1, 4), ticket(4)]
    assert all(ring.put(each) for each in tickets), "the last one goes beyond eight"
    a, b, c, d, e = tickets
    assert not ring.put(ticket(10, 3)) and (ring.size, ring.held) == (11, 110)
    assert ring.take(4).spans == [(a, 0, 2), (c, 0, 2)] and ring.oldest is b
    assert ring.take(4).spans == [(b, 0, 1), (d, 0, 1)] and ring.oldest is c
    assert ring.take(4).spans == [(c, 2, 3)] and ring.oldest is e
    assert (ring.size, ring.held, list(ring)) == (4, 40, [e])
    assert ring.cancel(e) == 4 and ring.cancel(e) == 0 and not ring._rings
    assert (ring.size, ring.held, list(ring)) == (0, 0, [])


def test_a_batch_is_full_when_the_shape_of_the_oldest_fills_it():
    ring = ArrayRing(20)
    for shape in ((1, 3), (3, 4), (1, 3)):
        assert ring.put(ticket(*shape))
    assert ring.is_ready(2) and not ring.is_ready(3)  # three of the other shape wait for their turn
    ring.take(2)
    assert ring.is_ready(3)


def test_items_of_other_shapes_do_not_cut_a_batch_small(loop):
    rig = Rig(loop, start=False)  # four to a batch
    rig.batcher.run_with(rig.executor, Steps(Echo(), loop.clock), ArrayRing(16))
    rig.begins(Peer())  # somebody is awaited
    rig.batcher.admit(ticket(1, 2), loop.now)
    rig.batcher.admit(ticket(3, 5), loop.now)
    loop.settle()
    assert rig.executor.sizes == []
    rig.batcher.admit(ticket(3, 2), loop.now)
    loop.settle()
    assert rig.executor.sizes == [4]


def test_a_cancelled_ticket_is_passed_over_also_half_taken():
    ring = ArrayRing(20)
    a, b, c = ticket(3, 2), ticket(2, 1), ticket(1, 2)
    for each in (a, b, c):
        ring.put(each)
    ring.take(2)
    assert ring.cancel(a) == 1 and ring.oldest is b
    assert ring.cancel(b) == 2 and ring.oldest is c
    assert ring.take(5).spans == [(c, 0, 1)] and ring.size == 0


def test_the_ring_forgets_what_was_taken_out_of_turn():
    ring = ArrayRing(10**6)
    ring.put(first := ticket(1, 1))
    for _ in range(1000):
        ring.put(ticket(1, 2))
    first_taken = ring.take(1)
    assert first_taken.spans[0][0] is first
    while ring.size:
        ring.take(100)
    assert len(ring._tickets) == 0
