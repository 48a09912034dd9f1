"""Declared text: str and bytes of any length, in messages, submit(), rows and answers."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import Gate

from virtex import Tensor, TensorHandler, http_server
from virtex._codec import encode_numpy
from virtex.batch.texts import Texts, source_of
from virtex.service.seam import LEFT, Head


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def b64(data):
    return base64.b64encode(data).decode()


def message(*items):
    return json.dumps({"data": items}).encode()


class Shouts(TensorHandler):
    """str in, str out."""

    inputs = Tensor("str", (2,))
    outputs = Tensor("str")

    def run_inference(self, batch):
        self.seen = (batch.dtype, batch.shape, batch.flags.c_contiguous)
        return ["+".join(row).upper() for row in batch]


class Reverses(TensorHandler):
    """bytes in, bytes out."""

    inputs = Tensor("bytes")
    outputs = Tensor("bytes", (2,))

    def run_inference(self, batch):
        return np.array([[each, each[::-1]] for each in batch], object)


class Embeds(TensorHandler):
    inputs = Tensor("str")

    def run_inference(self, batch):
        return np.float32([[len(text), text.count("a")] for text in batch])


class Mixed(TensorHandler):
    inputs = {"text": Tensor("str"), "raw": Tensor("bytes", (2,)), "numbers": Tensor("float32", (2,))}
    outputs = {"text": Tensor("str", (1,)), "sum": Tensor("float32")}

    def run_inference(self, batch):
        joined = [[text + b"".join(raw).decode()] for text, raw in zip(batch["text"], batch["raw"], strict=True)]
        return {"text": joined, "sum": batch["numbers"].sum(axis=1)}


def test_a_tensor_of_text_says_so_and_numpys_own_text_stays_what_it_is():
    text = Tensor("str", (2, 3))
    assert (text.text, text.dtype, text.nbytes) == (str, np.dtype(object), 48)
    assert (repr(text), text.describe()) == ("Tensor('str', (2, 3))", {"dtype": "str", "shape": [2, 3]})
    assert Tensor("bytes").zeros().tolist() == b"" and text.zeros().tolist() == [[""] * 3] * 2
    for dtype in ("U5", "S5", "<U5"):
        assert Tensor(dtype).text is None and Tensor(dtype).dtype == np.dtype(dtype)
    for dtype in (object, "O", str, bytes, "U", "S", "string"):
        with pytest.raises(TypeError, match="Tensor"):
            Tensor(dtype)


def test_strings_reach_the_model_as_they_are_and_come_back_so(ask):
    handler = Shouts()
    app = http_server("shouts", handler)
    (answer,) = run(app, ask(app, message(["é\0", ""], ["b", "\U0001f600" * 3])))
    assert answer.json == {"data": ["É\0+", "B+" + "\U0001f600" * 3], "error": None}
    assert handler.seen == (np.dtype(object), (2, 2), True)


def test_bytes_are_base64_both_ways(ask):
    app = http_server("reverses", Reverses())
    items = [b"", b"abc\0", bytes(range(256))]
    (answer,) = run(app, ask(app, message(*map(b64, items))))
    assert answer.json["data"] == [[b64(item), b64(item[::-1])] for item in items]


def test_what_is_made_of_text_alone_comes_as_numbers_or_npy_where_that_is_asked_for(ask):
    app = http_server("embeds", Embeds())
    numbers, npy = run(
        app, ask(app, message("banana", "")), ask(app, message("aa"), headers=[(b"accept", b"application/x-npy")])
    )
    assert numbers.json["data"] == [[6, 3], [0, 0]]
    assert npy.headers[b"content-type"] == b"application/x-npy"


def test_text_stands_beside_arrays_which_say_the_kind_of_the_answer(ask):
    app = http_server("mixed", Mixed())
    item = {"numbers": [1, 2], "text": "a", "raw": [b64(b"b"), b64(b"c")]}
    coded = {**item, "numbers": encode_numpy(np.float32([1, 2]))}
    one, two = run(app, ask(app, message(item, item)), ask(app, message(coded)))
    assert one.json["data"] == [{"text": ["abc"], "sum": 3}] * 2
    assert two.json["data"] == [{"text": ["abc"], "sum": 3}]


GOOD = {"numbers": [1, 2], "text": "a", "raw": ["", ""]}
WRONG = {
    "no string": (Shouts, [["a", "b"], ["a", 7]], 1, "expected a string, got int at [1]"),
    "too few": (Shouts, [["a"]], 0, "expected str (2,), got a list of 1 in place of a list of 2"),
    "no list": (Shouts, ["ab"], 0, "expected str (2,), got str in place of a list of 2"),
    "no base64": (Reverses, ["YQ==", "?"], 1, "base64"),
    "no text": (Reverses, [None], 0, "expected base64 of bytes, got NoneType"),
    "no object": (Mixed, [GOOD, 3], 1, "expected an object of the members ['text', 'raw', 'numbers'], got int"),
    "another member": (Mixed, [{**GOOD, "more": 1}], 0, "expected an object of the members"),
    "the lowest of several": (Mixed, [GOOD, {**GOOD, "numbers": [1]}, {**GOOD, "text": 1}, 5], 1, "numbers: expected"),
    "a member of a list": (Mixed, [{**GOOD, "raw": ["", "!"]}], 0, "raw: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_item_is_a_422_that_names_it_and_the_place(case, ask):
    handler, items, index, why = WRONG[case]
    app = http_server("wrong", handler())
    (answer,) = run(app, ask(app, message(*items)))
    assert (answer.status, answer.json["index"]) == (422, index)
    assert answer.error.startswith(f"item {index}: ") and why in answer.error
    assert app.budget.held == 0


def test_arrays_of_npy_are_no_text(ask):
    app = http_server("shouts", Shouts())
    (answer,) = run(app, ask(app, b"\x93NUMPY", headers=[(b"content-type", b"application/x-npy")]))
    assert answer.status == 415 and answer.headers[b"accept"] == b"application/json"


@pytest.mark.parametrize("handler", [Shouts, Reverses, Embeds, Mixed])
def test_what_the_service_says_of_itself_can_be_sent_to_it(handler, ask):
    async def told(app):
        said = (await ask(app, method="GET")).json
        return said, await ask(app, message(*said["example"]))

    app = http_server("says", handler())
    ((said, answer),) = run(app, told(app))
    assert answer.status == 200 and said["accepts"] == ["application/json"]
    described = handler.inputs.describe() if isinstance(handler.inputs, Tensor) else None
    assert described is None or said["inputs"] == described


@pytest.mark.parametrize(
    ("gives", "why"),
    [
        (lambda batch: [1] * len(batch), "expected str, got int"),
        (lambda batch: np.zeros(len(batch)), "expected str, got float"),
        (lambda batch: ["a"] * (len(batch) + 1), "2 rows; expected 1 rows of str"),
        (lambda batch: "a", "a str; expected 1 rows of str"),
        (lambda batch: [b"a"], "expected str, got bytes"),
        (lambda batch: ["\ud800"], "run_inference gave a str that can't be sent"),
    ],
)
def test_outputs_that_are_not_what_was_declared_are_a_500(gives, why, ask, caplog):
    class Gives(TensorHandler):
        inputs = outputs = Tensor("str")

        def run_inference(self, batch):
            return gives(batch)

    app = http_server("gives", Gives())
    (answer,) = run(app, ask(app, message("a")))
    assert answer.status == 500 and why in answer.error


def test_numpys_text_is_taken_for_declared_text(ask):
    class Gives(TensorHandler):
        inputs = Tensor("str")
        outputs = {"s": Tensor("str"), "b": Tensor("bytes")}

        def run_inference(self, batch):
            return {"s": batch.astype("U10"), "b": np.array([b"ab"] * len(batch))}

    app = http_server("gives", Gives())
    (answer,) = run(app, ask(app, message("x", "y")))
    assert answer.json["data"] == [{"s": "x", "b": b64(b"ab")}, {"s": "y", "b": b64(b"ab")}]


def test_a_program_submits_str_and_bytes_as_they_are():
    shouts, reverses = http_server("shouts", Shouts()), http_server("reverses", Reverses())
    (answer,) = run(shouts, shouts.submit([["a", "b"], np.array(["c", "d"])]))
    assert answer == ["A+B", "C+D"]
    (answer,) = run(reverses, reverses.submit([b"ab", b64(b"cd")]))
    assert [row.tolist() for row in answer] == [[b"ab", b"ba"], [b"cd", b"dc"]]


def test_validate_runs_a_handler_of_text_as_the_server_does():
    assert Shouts().validate(message_of([["a", "b"]]), strict=True).data == ["A+B"]


def message_of(data):
    from virtex import HttpMessage

    return HttpMessage(data=data)


def test_text_can_not_go_to_a_device():
    class Far(Shouts):
        device = "cpu"

    app = http_server("far", Far())
    with pytest.raises(TypeError, match="text can't be copied to a device"):
        run(app)


# --- rows -------------------------------------------------------------------------------------------------


def arrays_of(ring):
    return [array for slab in ring._slabs.values() for array in slab.arrays] + [a for pool in ring._pool for a in pool]


def kept_in(app):
    return [each for array in arrays_of(app.model.batcher.ring) for each in array.flat if each is not None]


class WaitsFor(Gate, TensorHandler):
    inputs = outputs = Tensor("str")
    process_request = TensorHandler.process_request
    process_response = TensorHandler.process_response


def test_texts_count_until_the_answer_and_the_rows_let_go_of_them_behind_it():
    async def main():
        handler = WaitsFor()
        app = http_server("waits", handler)
        await app.startup()
        body = message("x" * 10_000, "y" * 10_000)
        asked = asyncio.create_task(ask_direct(app, body))
        await handler.entered.wait()
        held = app.budget.held
        handler.go.set()
        answer = await asked
        found = held, app.budget.held, answer.json["data"], kept_in(app)
        await app.shutdown()
        return len(body), found

    size, (held, after, data, kept) = asyncio.run(main())
    assert held >= size and after == 0 and kept == []
    assert data == ["x" * 10_000, "y" * 10_000]


def test_rows_let_go_of_what_was_refused_or_given_up():
    async def main():
        handler = WaitsFor()
        app = http_server("waits", handler, max_time_on_queue=0)
        await app.startup()
        running = asyncio.create_task(ask_direct(app, message("runs")))
        await handler.entered.wait()
        stays = asyncio.create_task(ask_direct(app, message("stays")))
        await asyncio.sleep(0)
        refused = await ask_direct(app, message("large", "large", 5))
        assert kept_in(app) == ["stays"]
        exchange = app.open(Head("POST", "/", [], None, None), app._clock())
        exchange.complete(message("leaves", "leaves"))
        before = kept_in(app)
        exchange.cancel(LEFT)
        after = kept_in(app)
        handler.go.set()
        answers = await running, await stays
        end = kept_in(app)
        await app.shutdown()
        return refused, before, after, answers, end, app.budget.held

    refused, before, after, answers, end, held = asyncio.run(main())
    assert refused.status == 422
    assert sorted(before) == ["leaves", "leaves", "stays"] and after == ["stays"]
    assert [answer.json["data"] for answer in answers] == [["runs"], ["stays"]]
    assert (end, held) == ([], 0)


def test_a_source_of_text_fills_only_the_rows_it_is_asked_for():
    tensor = Tensor("bytes", (2,))
    rows = np.empty((2, 2), object)
    items = source_of([["YQ==", "Yg=="], [b"c", b""], ["ZA==", "ZQ=="]], tensor)
    assert isinstance(items, Texts) and len(items) == 3
    items.into(rows, 1, 3)
    assert rows.tolist() == [[b"c", b""], [b"d", b"e"]]


def test_a_piece_of_a_large_request_is_read_without_what_stands_before_it():
    """That took seconds of the loop for 100 000 items, and a batch that ran again read all of them for each item."""

    class Counts(list):
        read = 0

        def __getitem__(self, which):
            found = list.__getitem__(self, which)
            self.read += len(found) if isinstance(which, slice) else 1
            return found

    alone = Counts(["a"] * 1000)
    named = Counts([{"text": "a", "number": 1.0}] * 1000)
    source_of(alone, Tensor("str")).into(np.empty(1, object), 999, 1000)
    items = source_of(named, {"text": Tensor("str"), "number": Tensor("f4")})
    items.into([np.empty(1, object), np.empty(1, "f4")], 999, 1000)
    assert alone.read == 1 and named.read <= 2
