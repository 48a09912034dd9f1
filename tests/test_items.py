"""decode_item and encode_item: items decoded one by one before the batch, rows encoded one by one after it."""

import asyncio
import functools
import gc
import importlib
import operator
import threading
import weakref

import numpy as np
import orjson
import pytest
from kit import needs
from kit.asks import ask_asgi, ask_direct, run
from kit.names import shown
from kit.services import Watching

from virtex import HttpMessage, ItemError, RequestHandler, Tensor, TensorHandler, http_server
from virtex.batch.items import declared, steps_for
from virtex.batch.outputs import rows_of
from virtex.batch.steps import drive
from virtex.errors import HandlerError
from virtex.serial import decode_numpy, encode_numpy


def number(item):
    """Reads "7"; an empty text is our fault."""
    if not isinstance(item, str):
        raise ItemError(f"expected a text, got a {type(item).__name__}", index=77)
    if not item:
        raise ZeroDivisionError("secret")
    try:
        return int(item)
    except ValueError:
        raise ItemError("expected digits", offset=3) from None


def text(row):
    if row == 14:
        raise KeyError("secret")
    return f"<{row}>"


class Doubles(RequestHandler):
    """Numbers as text; 99 is refused by process_request, and numbers of another sign do not stack with the rest."""

    decode_item = number
    encode_item = text

    def __init__(self):
        self.given = []

    def process_request(self, data):
        self.given.append(list(data))
        if 99 in data:
            raise ItemError("99 is not served")
        if len({x < 0 for x in data}) > 1:
            raise ValueError("these don't stack")
        return data

    def run_inference(self, model_input):
        return [2 * x for x in model_input]


class DoublesAsync(Doubles):
    async def process_request(self, data):
        await asyncio.sleep(0)
        return Doubles.process_request(self, data)

    async def process_response(self, model_output_item):
        await asyncio.sleep(0)
        return model_output_item


def outcomes(*requests, handler=None):
    steps = steps_for(handler or Doubles())
    work = [list(items) for items in requests]
    return asyncio.run(steps.run_async(work)) if steps.is_async else steps.run(work)


def body(*items):
    return orjson.dumps({"data": items})


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


# ---- what happens to a batch


@pytest.mark.parametrize("kind", [Doubles, DoublesAsync])
def test_the_batch_is_of_decoded_items_and_rows_are_encoded(kind):
    handler = kind()
    assert outcomes(["1"], ["2", "3"], handler=handler) == [["<2>"], ["<4>", "<6>"]]
    assert handler.given == [[1, 2, 3]]


@pytest.mark.parametrize("kind", [Doubles, DoublesAsync])
def test_an_item_that_can_not_be_decoded_is_named_and_enters_no_batch(kind):
    handler = kind()
    good, bad, also = outcomes(["1"], ["2", None, "no"], ["3"], handler=handler)
    assert (good, also) == (["<2>"], ["<6>"])
    assert isinstance(bad, ItemError)
    assert str(bad) == "item 1: expected a text, got a NoneType"
    assert handler.given == [[1, 3]]


def test_a_bad_items_offset_is_kept():
    (bad,) = outcomes(["no"])
    assert (bad.index, bad.offset) == (0, 3)


def test_what_else_decode_item_raises_is_the_handlers_fault_and_that_requests_alone():
    handler = Doubles()
    bug, good = outcomes(["1", ""], ["2"], handler=handler)
    assert good == ["<4>"]
    assert isinstance(bug, HandlerError)
    assert str(bug) == "item 1: decode_item raised ZeroDivisionError"
    assert str(bug.__cause__) == "secret"


def test_a_batch_of_bad_items_runs_nothing():
    handler = Doubles()
    assert [type(outcome) for outcome in outcomes(["no"], [""], handler=handler)] == [ItemError, HandlerError]
    assert handler.given == []


def test_nothing_is_decoded_behind_a_bad_item():
    seen = []

    class Counts(Doubles):
        @staticmethod
        def decode_item(item):
            seen.append(item)
            return number(item)

    outcomes(["1", "no", "2"], ["3"], handler=Counts())
    assert seen == ["1", "no", "3"]


def test_blame_is_found_among_decoded_items_and_none_is_decoded_twice():
    seen = []

    class Counts(Doubles):
        @staticmethod
        def decode_item(item):
            seen.append(item)
            return number(item)

    handler = Counts()
    good, unreadable, refused, also = outcomes(["1"], ["no"], ["2", "99"], ["3"], handler=handler)
    assert (good, also) == (["<2>"], ["<6>"])
    assert (str(unreadable), str(refused)) == ("item 0: expected digits (at offset 3)", "item 1: 99 is not served")
    assert seen == ["1", "no", "2", "99", "3"]
    assert handler.given[0] == [1, 2, 99, 3] and handler.given[-1] == [1, 3]


def test_requests_that_do_not_stack_run_each_alone():
    assert outcomes(["1"], ["-2"], ["3", "4"]) == [["<2>"], ["<-4>"], ["<6>", "<8>"]]


@pytest.mark.parametrize("kind", [Doubles, DoublesAsync])
def test_a_row_that_can_not_be_encoded_names_its_item_and_spares_the_others(kind):
    good, bug = outcomes(["1"], ["2", "7"], handler=kind())
    assert good == ["<2>"]
    assert str(bug) == "item 1: encode_item raised KeyError"
    assert isinstance(bug.__cause__, KeyError)


def test_encode_item_gets_what_process_response_gave():
    class Both(Doubles):
        def process_response(self, model_output_item):
            if model_output_item == 2:
                raise ZeroDivisionError
            return -model_output_item

    good, bug = outcomes(["2"], ["1"], handler=Both())
    assert good == ["<-4>"]
    assert str(bug) == "item 0: process_response raised ZeroDivisionError"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"bytes", "encode_item gave a bytes that can't be sent"),
        (float("nan"), "encode_item gave a float that can't be sent: nan is no JSON number"),
        ([{"a": float("inf")}], "encode_item gave a list that can't be sent: inf is no JSON number"),
        (2**70, "encode_item gave a int that can't be sent"),
        ("\ud800", "encode_item gave a str that can't be sent"),
    ],
    ids=shown,
)
def test_what_json_can_not_carry_is_said_of_encode_item(given, says):
    class Odd(Doubles):
        @staticmethod
        def encode_item(row):
            return given

    with pytest.raises(HandlerError, match=says):
        Odd().validate(HttpMessage(data=["1"]), strict=True)


@pytest.mark.parametrize("given", ["é", "plain", 1, 1.5, None, [1, {"a": [True]}], np.float32(2)], ids=shown)
def test_encode_item_may_give_any_json_value(given):
    class Gives(Doubles):
        @staticmethod
        def encode_item(row):
            return given

    assert Gives().validate(HttpMessage(data=["1"]), strict=True).data == [given]


def test_rows_are_encoded_before_the_model_may_fill_them_again():
    class Fills(RequestHandler):
        encode_item = encode_numpy

        def __init__(self):
            self.rows = np.zeros((2, 3))

        def process_request(self, data):
            return data

        def run_inference(self, model_input):
            self.rows[:] = model_input[0]
            return self.rows[: len(model_input)]

    steps = steps_for(Fills())
    (first,), (second,) = steps.run([[1, 1]]), steps.run([[2, 2]])
    assert decode_numpy(first[1]).tolist() == [1, 1, 1] and decode_numpy(second[1]).tolist() == [2, 2, 2]


def test_decoded_items_are_gone_while_the_model_runs():
    class Thing:
        pass

    class Watches(RequestHandler):
        decode_item = staticmethod(lambda item: Thing())

        def process_request(self, data):
            self.things = [weakref.ref(thing) for thing in data]
            return len(data)

        def run_inference(self, model_input):
            gc.collect()
            return [thing() is None for thing in self.things]

        def process_response(self, model_output_item):
            return model_output_item

    assert outcomes([1], [2, 3], handler=Watches()) == [[True], [True, True]]


def test_decoding_is_timed_with_process_request_and_encoding_with_process_response():
    ticks = iter(range(0, 10**12, 10**9))
    steps = steps_for(Doubles(), lambda: next(ticks))
    steps.run([["1"], ["2"]])
    assert steps.laps.seconds == {"process_request": 2.0, "run_inference": 1.0, "process_response": 1.0}
    steps.run([["no"]])
    assert steps.laps.seconds == {"process_request": 1.0}


# ---- what may be declared


class Holder:
    pass


@pytest.mark.parametrize(
    "function",
    [
        number,
        staticmethod(number),
        len,
        decode_numpy,
        functools.partial(operator.mul, 3),
        lambda item: item,
        float,
        np.float32(0).dtype.type,
        "text".join,
    ],
    ids=["function", "staticmethod", "builtin", "cython", "partial", "lambda", "type", "numpy", "method"],
)
def test_a_function_is_taken_as_it_is_and_not_bound(function):
    expected = function.__func__ if isinstance(function, staticmethod) else function
    kind = type("Kind", (Holder,), {"decode_item": function})
    assert declared(kind(), "decode_item") is expected
    assert declared(type("Child", (kind,), {})(), "decode_item") is expected


def test_an_instances_own_comes_first():
    handler = Doubles()
    handler.decode_item = functools.partial(int, base=16)
    assert outcomes(["a"], handler=handler) == [["<20>"]]
    handler.encode_item = None
    assert outcomes(["a"], handler=handler) == [[20]]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("decode_numpy", r"Odd.decode_item: expected a function of one item, got a str"),
        (classmethod(number), r"Odd.decode_item: expected a function of one item, got a classmethod"),
        (property(number), r"Odd.decode_item: expected a function of one item, got a property"),
        (
            lambda self, item: item,
            r"Odd.decode_item\(self, item\): expected a function of one item. It is no method: `self` is not passed",
        ),
        (lambda: None, r"Odd.decode_item\(\): expected a function of one item"),
        (asyncio.sleep, r"Odd.decode_item: expected a plain function, got an async one"),
    ],
    ids=["text", "classmethod", "property", "method", "of nothing", "async"],
)
def test_what_can_not_be_called_with_an_item_is_an_error_at_the_start(wrong, says):
    class Odd(Doubles):
        decode_item = wrong

    for start in (http_server("odd", Odd).startup, lambda: Odd().validate(HttpMessage(data=["1"]))):
        with pytest.raises(TypeError, match=says):
            asyncio.run(started(start))


async def started(start):
    starting = start()
    await starting


@pytest.mark.parametrize("name", ["decode_item", "encode_item"])
def test_a_tensor_handler_refuses_either_at_the_start(name):
    class Declares(TensorHandler):
        inputs = Tensor("float32", (3,))

        def run_inference(self, batch):
            return batch

    setattr(Declares, name, decode_numpy)
    for start in (
        http_server("odd", Declares).startup,
        lambda: Declares().validate(HttpMessage(data=[[1, 2, 3]])),
    ):
        with pytest.raises(TypeError, match=f"Declares.{name} would never run on a TensorHandler"):
            asyncio.run(started(start))


def test_methods_may_be_left_out_beside_what_stands_for_them_and_else_may_not():
    class Whole(RequestHandler):
        decode_item = number
        encode_item = text

        def run_inference(self, model_input):
            return model_input

    class Child(Whole):
        encode_item = str

    assert Whole().validate(HttpMessage(data=["1", "2"]), strict=True).data == ["<1>", "<2>"]
    assert Child().validate(HttpMessage(data=["1", "2"]), strict=True).data == ["1", "2"]

    class Half(RequestHandler):
        decode_item = number

        def run_inference(self, model_input):
            return model_input

    with pytest.raises(TypeError, match=r"abstract method '?process_response"):
        Half()

    class OtherHalf(RequestHandler):
        encode_item = text

        def run_inference(self, model_input):
            return model_input

    with pytest.raises(TypeError, match=r"abstract method '?process_request"):
        OtherHalf()


def test_a_handler_that_declares_neither_goes_the_old_way():
    class Plain(Doubles):
        decode_item = None
        encode_item = None

    assert type(steps_for(Plain())).__name__ == "Steps"
    assert steps_for(Plain()).run([[1]]) == [[2]]


# ---- in a service


@pytest.mark.parametrize("make", ["inline", "thread", "async"])
def test_every_request_has_its_own_answer_in_every_executor(make, ask):
    handler = DoublesAsync() if make == "async" else Doubles()
    watching = Watching()
    app = http_server("doubles", handler, executor="thread" if make == "thread" else "inline", observer=watching)
    good, bad, bug, also = run(app, *(ask(app, body(*items)) for items in (["1"], ["2", 3], [""], ["4", "5"])))
    assert (good.status, good.json["data"]) == (200, ["<2>"])
    assert (also.status, also.json["data"]) == (200, ["<8>", "<10>"])
    assert (bad.status, bad.error) == (422, "item 1: expected a text, got a int")
    assert bug.status == 500 and bug.error.startswith("item 0: decode_item raised ZeroDivisionError; request id")
    assert handler.given == [[1, 4, 5]] and watching.batches == [6]


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_items_are_decoded_and_rows_encoded_where_the_handler_runs(executor, ask):
    threads = set()

    class Says(Doubles):
        def setup(self, worker):
            threads.add(threading.current_thread())

        @staticmethod
        def decode_item(item):
            threads.add(threading.current_thread())
            return number(item)

        @staticmethod
        def encode_item(row):
            threads.add(threading.current_thread())
            return row

    app = http_server("says", Says, executor=executor)
    (answer,) = run(app, ask(app, body("1")))
    assert answer.json["data"] == [2]
    assert len(threads) == 1
    assert (threading.main_thread() in threads) == (executor == "inline")


def test_an_item_is_named_within_its_request_also_where_that_spans_batches(ask):
    app = http_server("doubles", Doubles, max_batch_size=2)
    bad, good = run(app, ask(app, body("1", "2", "3", "no")), ask(app, body("4")))
    assert (bad.status, bad.error) == (422, "item 3: expected digits (at offset 3)")
    assert good.json["data"] == ["<8>"]


def test_arrays_go_in_and_out(ask):
    class Negative(RequestHandler):
        decode_item = decode_numpy
        encode_item = encode_numpy

        def process_request(self, data):
            return np.stack(data)

        def run_inference(self, model_input):
            return -model_input

    app = http_server("negative", Negative)
    npy = ((b"accept", b"application/x-npy"),)
    request = body(encode_numpy(np.arange(3)))
    for answer in run(app, ask(app, request), ask(app, request, headers=npy)):  # text is no array: JSON all the same
        assert answer.headers[b"content-type"] == b"application/json"
        assert decode_numpy(answer.json["data"][0]).tolist() == [0, -1, -2]


def test_what_a_failing_decoder_held_is_let_go(ask):
    """The error that is kept for the log refers to what the decoder saw; it must not outlive the answer."""
    refs = []

    class Thing:
        pass

    class Fails(Doubles):
        @staticmethod
        def decode_item(item):
            thing = Thing()
            refs.append(weakref.ref(thing))
            raise ItemError("no")

    app = http_server("fails", Fails)
    (answer,) = run(app, ask(app, body("1")))
    assert answer.status == 422
    gc.collect()
    assert [ref() for ref in refs] == [None]


def test_plain_methods_need_no_loop():
    assert drive(steps_for(Doubles()).run_async([["1"]])) == [["<2>"]]


# ---- rows of any type


def refilled(row, fill):
    for i in range(3):
        fill(row, i)
        yield row


def pasted(image, i):
    image.paste(i, (0, 0, 1, 1))


@pytest.mark.parametrize("kind", ["torch", "PIL", "pandas", "list", "bytearray"])
def test_an_iterator_may_fill_the_same_row_again(kind):
    made = {
        "list": lambda _: refilled([0], lambda row, i: row.__setitem__(0, i)),
        "bytearray": lambda _: refilled(bytearray(1), lambda row, i: row.__setitem__(0, i)),
        "torch": lambda torch: refilled(torch.zeros(1), lambda row, i: row.fill_(i)),
        "PIL": lambda _: refilled(importlib.import_module("PIL.Image").new("L", (1, 1)), pasted),
        "pandas": lambda pd: refilled(pd.Series([0]), lambda row, i: row.__setitem__(0, i)),
    }
    library = None if kind in ("list", "bytearray") else needs.library(kind)
    rows = rows_of(made[kind](library), 3)
    assert [int(np.asarray(row).flat[0] if kind != "bytearray" else row[0]) for row in rows] == [0, 1, 2]


def test_rows_of_what_is_indexed_as_mxnets_arrays_are():
    class NDArray:
        shape = (3, 2)
        asnumpy = None
        __iter__ = property()  # hasattr() finds none, as of MXNet's

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return f"row {i}"

    assert rows_of(NDArray(), 3) == ["row 0", "row 1", "row 2"]
