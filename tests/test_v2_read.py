"""Infer requests of the Open Inference Protocol: what becomes of their tensors, and that what is wrong is a 400."""

import json
import random

import ml_dtypes
import numpy as np
import orjson
import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run
from kit.v2 import body_of, error_of, infer, outputs_of, sent, tensor
from numpy.typing import NDArray

from virtex import Limits, RequestHandler, Tensor, TensorHandler, http_server
from virtex._codec import list_items, lists_in
from virtex.service.v2 import DTYPES

both_lanes = pytest.mark.parametrize("ask", [ask_asgi, ask_direct])
BF16 = np.dtype(ml_dtypes.bfloat16)


def identity(dtype, shape, **more):
    class Identity(TensorHandler):
        inputs = Tensor(dtype, shape)
        outputs = inputs

        def run_inference(self, model_input):
            return model_input

    return http_server("identity", Identity(), **more)


def some(dtype, shape):
    values = np.random.default_rng(1).integers(0, 2 if dtype.kind == "b" else 100, shape)
    return (values / 4 if dtype.kind in "fV" else values).astype(dtype)


# --- declared inputs


@both_lanes
@pytest.mark.parametrize("datatype", [*DTYPES, "BF16"])
def test_every_datatype_goes_in_and_out_in_each_form(ask, datatype):
    dtype = DTYPES.get(datatype, BF16)
    asked, batches = [], []
    for n in (1, 3, 9):  # up to 3 batches
        for shape in ((), (3,), (2, 2)):
            batch = some(dtype, (n, *shape))
            app = identity(dtype, shape, max_batch_size=3)
            for binary in (False, True):
                for nested in (False, True):
                    given = tensor("input", batch, binary, nested)
                    asked.append((app, infer(app, given, ask=ask, parameters={"binary_data_output": nested})))
                    batches.append(batch)
    for i in range(0, len(asked), 4):
        answers = run(asked[i][0], *(ask for _, ask in asked[i : i + 4]))
        for answer, batch in zip(answers, batches[i : i + 4], strict=True):
            got = outputs_of(answer)["output"]
            assert got.dtype == dtype and got.shape == batch.shape and got.tobytes() == batch.tobytes()


class Two(TensorHandler):
    inputs = {"a": Tensor("f4", (2,)), "b": Tensor("i8")}

    def run_inference(self, model_input):
        return {"sum": model_input["a"].sum(1) + model_input["b"], "b": model_input["b"]}


@both_lanes
def test_inputs_come_in_any_order_and_each_in_a_form_of_its_own(ask):
    a, b = np.arange(6, dtype="f4").reshape(3, 2), np.arange(3)
    asks = []
    app = http_server("two", Two())
    for binary_a in (False, True):
        for binary_b in (False, True):
            tensors = [tensor("a", a, binary_a), tensor("b", b, binary_b)]
            asks += [infer(app, *tensors, ask=ask), infer(app, *reversed(tensors), ask=ask)]
    for answer in run(app, *asks):
        sums = outputs_of(answer)
        assert sums["sum"].tolist() == [1, 6, 11] and sums["b"].tolist() == [0, 1, 2]


def test_a_head_may_have_any_other_members_in_any_order_and_spaces():
    head = """ { "model_name" : "two", "parameters":{"priority":0,"data":[1]}, "x":[[{"data":[9]}]],
        "inputs" : [ {"datatype":"FP32", "data" : [ [1 , 2] , [ 3, 4.5] ],"shape":[2,2],"more":{"data":["]"]},
        "name":"a"},
        {"data":[ 5, 6 ],"name":"b","datatype":"INT64","shape":[2]} ], "id" : "\\u00e4\\"" } """
    app = http_server("two", Two())
    (answer,) = run(app, sent(app, head.encode()))
    assert answer.json["id"] == 'ä"' and outputs_of(answer)["sum"].tolist() == [8, 13.5]


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"", "JSON"),
        (b"[]", "inputs"),
        (b'{"inputs":{}}', "inputs"),
        (b'{"inputs":[]}', "inputs"),
        (b'{"inputs":[7]}', "inputs[0]"),
        (b'{"inputs":[{"name":7}]}', "inputs[0]"),
        (b'{"inputs":[{"name":"input","datatype":7}]}', "'datatype'"),
    ],
)
def test_a_head_that_is_none_is_told_where(head, told):
    app = identity("f4", (2,))
    (answer,) = run(app, sent(app, head))
    assert answer.status == 400 and told in error_of(answer)


GOOD = {"name": "input", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "x"}, "inputs: expected the names input, got x"),
        ({"datatype": "FP64"}, "expected FP32 [n, 2], got FP64 [2, 2]"),
        ({"datatype": "FP99"}, "got FP99"),
        ({"datatype": "BYTES", "data": ["a"] * 4}, "got BYTES"),
        ({"shape": [4]}, "expected FP32 [n, 2], got FP32 [4]"),
        ({"shape": [2, 3]}, "got FP32 [2, 3]"),
        ({"shape": [0, 2], "data": []}, "expected an item at least"),
        ({"shape": []}, "'shape'"),
        ({"shape": 2}, "'shape'"),
        ({"shape": [2.0, 2]}, "'shape'"),
        ({"shape": [True, 2]}, "'shape'"),
        ({"shape": [-2, 2]}, "'shape'"),
        ({"shape": [1 << 63, 2]}, "'shape'"),
        ({"shape": [1 << 61, 2]}, "numbers"),
        ({"shape": [3, 2]}, "input 'input': expected a list of 6, got one of 4"),
        ({"shape": [1, 2]}, "input 'input': expected a list of 2, got one of 4"),
        ({"data": None}, "'data'"),
        ({"data": 7}, "'data'"),
        ({"data": "x"}, "'data'"),
        ({"data": {}}, "'data'"),
        ({"data": [1, 2, "3", 4]}, "input 'input': expected numbers, got text"),
        ({"data": [1, 2, None, 4]}, "input 'input': expected numbers, got text, null"),
        ({"data": [1, 2, True, 4]}, "got booleans at [2]"),
        ({"data": [1, 2, [3], 4]}, "input 'input'"),
        ({"data": [[1, 2], [3]]}, "item 1: input 'input': expected float32 (2,), got a list of 1"),
        ({"data": [[1, 2], [3, 4], [5, 6]]}, "expected a list of 2, got one of 3"),
        (
            {"data": [[1, 2], [3, True]]},
            "item 1: input 'input': expected numbers that float32 holds, got booleans at [1]",
        ),
        ({"data": [[[1, 2]], [[3, 4]]]}, "input 'input'"),
        ({"data": [1, 2, 3, 1e60]}, "input 'input'"),
        ({"parameters": {"binary_data_size": 16}}, "got both"),
        ({"parameters": {"binary_data_size": -1}, "data": None}, "binary_data_size"),
        ({"parameters": {"binary_data_size": 1.5}, "data": None}, "binary_data_size"),
        ({"parameters": {"binary_data_size": 1 << 70}, "data": None}, "binary_data_size"),
        ({"parameters": {"binary_data_size": 16}, "data": None}, "expected 16 bytes behind the head"),
        ({"parameters": {"binary_data_size": 12}, "data": None}, "expected 16 bytes for FP32 [2, 2]"),
        ({"parameters": []}, "'parameters'"),
    ],
    ids=str,
)
def test_a_tensor_that_is_wrong_is_a_400_that_names_it_and_where(wrong, told):
    app = identity("f4", (2,))
    (answer,) = run(app, sent(app, json.dumps({"inputs": [{**GOOD, **wrong}]}).encode()))
    assert answer.status == 400 and told in error_of(answer)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-NaN", b"01", b"1.", b"+1", b"0x1", b"1e400", b"1" * 30])
def test_what_is_no_number_of_json_is_a_400_that_names_the_byte(number):
    app = identity("f4", (2,))
    head = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,2],"data":[1,%b]}]}' % number
    (answer,) = run(app, sent(app, head))
    assert answer.status == 400 and "input 'input'" in error_of(answer)
    if number == b"NaN":
        assert f"char {head.index(b'NaN')}" in error_of(answer)


@pytest.mark.parametrize(
    ("members", "status", "told"),
    [
        ({"id": 7}, 400, "'id'"),
        ({"outputs": [{"name": "none"}]}, 400, "there is no 'none'; expected one of output"),
        ({"outputs": [7]}, 400, "outputs[0]"),
        ({"outputs": {}}, 400, "outputs"),
        ({"outputs": [{"name": "output", "parameters": {"classification": 3}}]}, 501, "classification"),
        ({"outputs": [{"name": "output", "parameters": {"shared_memory_region": "a"}}]}, 501, "shared_memory"),
        ({"parameters": 7}, 400, "'parameters'"),
        ({"parameters": {"timeout": -1}}, 400, "timeout"),
        ({"parameters": {"timeout": "1"}}, 400, "timeout"),
        ({"parameters": {"timeout": 1 << 60}}, 400, "timeout"),
        ({"inputs": [{**GOOD, "data": None, "parameters": {"shared_memory_region": "a"}}]}, 501, "shared memory"),
        ({"inputs": [GOOD, GOOD]}, 400, "inputs: expected the names input, got input, input"),
    ],
    ids=str,
)
def test_a_wish_that_can_not_be_met_is_refused_by_name(members, status, told):
    app = identity("f4", (2,))
    (answer,) = run(app, sent(app, orjson.dumps({"inputs": [GOOD], **members})))
    assert answer.status == status and told in error_of(answer)


def test_inputs_of_different_numbers_of_items_are_refused():
    app = http_server("two", Two())
    (answer,) = run(app, infer(app, tensor("a", np.ones((2, 2), "f4")), tensor("b", np.arange(3))))
    assert answer.status == 400 and "input 'b': expected as many items as 'a' has, 2, got 3" in error_of(answer)


def test_a_bool_that_is_neither_0_nor_1_is_refused_where_it_stands():
    app = identity("?", (2,))
    head, blob = body_of(tensor("input", np.ones((3, 2), "?"), True))
    (answer,) = run(app, sent(app, head, blob[:4] + b"\2\1"))
    assert answer.status == 400 and "item 2: input 'input'" in error_of(answer)


def test_nan_goes_in_as_bytes_and_out_as_null_or_as_bytes():
    app = identity("f4", (2,))
    batch = np.array([[np.nan, 1], [np.inf, -np.inf]], "f4")
    given = tensor("input", batch, True)
    as_json, as_bytes = run(app, infer(app, given), infer(app, given, parameters={"binary_data_output": True}))
    assert as_json.json["outputs"][0]["data"] == [None, 1, None, None]
    assert outputs_of(as_bytes)["output"].tobytes() == batch.tobytes()


def test_more_items_than_the_queue_can_hold_are_answered_where_nothing_waits():
    app = identity("u1", (), max_batch_size=2, max_queue_size=4)
    many = np.arange(11, dtype="u1")
    for binary in (False, True):
        (answer,) = run(app, infer(app, tensor("input", many, binary)))
        assert outputs_of(answer)["output"].tolist() == many.tolist()


class Numbers(RequestHandler):
    def process_request(self, data: NDArray[np.float32]):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        return model_output_item


@pytest.mark.parametrize(("handler", "shape"), [(Echo, (3,)), (Numbers, (3, 2))], ids=["numbers", "arrays"])
def test_of_a_list_handler_too_nan_comes_back(handler, shape):
    batch = np.full(shape, np.nan, "f4")
    batch[0] = 1.5
    app = http_server("a", handler(), max_batch_size=2)  # less than come at once
    given = tensor("x", batch, True)
    as_json, as_bytes = run(app, infer(app, given), infer(app, given, parameters={"binary_data_output": True}))
    assert as_json.json["outputs"][0]["data"] == [None if n != n else n for n in batch.ravel().tolist()]
    assert np.array_equal(outputs_of(as_bytes)["data"], batch, equal_nan=True)


@pytest.mark.parametrize("shape", [[1 << 61, 0], [2, 1 << 61, 0], [101, 0]], ids=str)
def test_items_of_nothing_are_no_more_than_values_may_be(shape):
    said = {"name": "input", "datatype": "FP32", "shape": shape}
    none = orjson.dumps({"inputs": [{**said, "data": []}]})
    empty = orjson.dumps({"inputs": [{**said, "parameters": {"binary_data_size": 0}}]})
    limits = Limits(values=100)
    declared = identity("f4", (*shape[1:-1], 0), limits=limits) if shape[1:-1] != [1 << 61] else None
    for app in (declared, http_server("numbers", Numbers(), limits=limits), http_server("echo", Echo(), limits=limits)):
        for answer in [] if app is None else run(app, sent(app, none), sent(app, empty)):
            assert answer.status == 413 and "limits.values" in error_of(answer)


def test_the_rows_of_an_array_are_counted_before_each_becomes_an_object():
    app = http_server("numbers", Numbers(), limits=Limits(values=100))
    fits, not_fit = (tensor("input", np.zeros(n, "u1"), True) for n in (100, 101))
    good, bad = run(app, infer(app, fits), infer(app, not_fit))
    assert good.status == 200 and bad.status == 413 and "limits.values" in error_of(bad)


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
@pytest.mark.parametrize("shape", [(3,), (3, 2)], ids=str)
def test_an_array_that_comes_in_bytes_may_be_of_numbers_or_of_rows(dtype, shape):
    batch = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    app = http_server("numbers", Numbers())
    for answer in run(app, infer(app, tensor("input", batch, False)), infer(app, tensor("input", batch, True))):
        assert outputs_of(answer)["data"].tolist() == batch.tolist()


@pytest.mark.parametrize("where", [{"data": [1]}, {"parameters": {"binary_data_size": 0}}], ids=["json", "binary"])
def test_a_shape_that_no_machine_counts_is_refused(where):
    app = http_server("echo", Echo())
    said = {"name": "input", "datatype": "FP32", "shape": [1 << 61, 1 << 61], **where}
    (answer,) = run(app, sent(app, orjson.dumps({"inputs": [said]})))
    assert answer.status in (400, 413) and error_of(answer)


def test_values_that_no_kernel_takes_are_charged_before_a_parser_makes_them():
    app = identity("f4", (2,), limits=Limits(values=100))
    (answer,) = run(app, sent(app, b'{"inputs":[{"name":"input","x":[%b0],"data":["a"]}]}' % (b"0," * 200)))
    assert answer.status == 413 and "limits.values" in error_of(answer)


@pytest.mark.parametrize("dtype", ["c8", "S3", "U3", "M8[s]"])
def test_what_v2_has_no_datatype_for_is_a_501(dtype):
    app = identity(dtype, ())
    (answer,) = run(app, infer(app, tensor("input", np.ones(1, "f4"))))
    assert answer.status == 501 and "input" in error_of(answer)


# --- list handlers


@both_lanes
def test_texts_are_items_and_bytes_where_they_are_no_utf_8(ask):
    seen = []

    class Sees(Echo):
        def process_request(self, data):
            seen.extend(data)
            return data

        def process_response(self, item):
            return len(item)

    app = http_server("sees", Sees())
    texts = [b"a", "ä".encode(), b"", b"\xff\0"]
    as_json, as_bytes = run(
        app, infer(app, tensor("x", texts[:3]), ask=ask), infer(app, tensor("x", texts, True), ask=ask)
    )
    assert seen == ["a", "ä", "", "a", "ä", "", b"\xff\0"]
    assert outputs_of(as_json)["data"].tolist() == [1, 1, 0] and outputs_of(as_bytes)["data"].tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "u8", "?", BF16], ids=str)
def test_numbers_are_numbers_or_lists_of_them(dtype, binary):
    app = http_server("echo", Echo())
    flat, deep = some(np.dtype(dtype), (3,)), some(np.dtype(dtype), (2, 3, 2))
    answers = run(app, *(infer(app, tensor("x", each, binary)) for each in (flat, deep)))
    for answer, each in zip(answers, (flat, deep), strict=True):
        got = outputs_of(answer)["data"]
        assert got.astype("f8").tolist() == each.astype("f8").tolist() and (got.dtype == bool) == (dtype == "?")


def test_texts_in_more_dimensions_are_lists():
    app = http_server("echo", Echo())
    said, blob = tensor("x", [b"a", b"b", b"c", b"d"], True)
    (answer,) = run(app, infer(app, ({**said, "shape": [2, 2]}, blob)))
    assert answer.json["outputs"] == [
        {"name": "data", "datatype": "BYTES", "shape": [2, 2], "data": ["a", "b", "c", "d"]}
    ]


@pytest.mark.parametrize(
    ("shape", "data", "told"),
    [
        ([2], ["a"], "expected 2 strings"),
        ([1], ["a", "b"], "expected 1 strings"),
        ([2], ["a", 1], "got '1' at [1]"),
        ([2], [1, 2], "expected strings, got numbers"),
        ([2, 0], [], "expected strings"),
        ([1 << 61], ["a"], "strings"),
    ],
)
def test_texts_that_are_wrong_are_a_400(shape, data, told):
    app = http_server("echo", Echo())
    said = {"name": "x", "datatype": "BYTES", "shape": shape, "data": data}
    (answer,) = run(app, sent(app, orjson.dumps({"inputs": [said]})))
    assert answer.status == 400 and told in error_of(answer) and "input 'x'" in error_of(answer)


@pytest.mark.parametrize(
    ("shape", "blob", "told"),
    [
        ([1], b"\1\0\0\0", "goes beyond the 4 bytes"),
        ([1], b"\xff\xff\xff\xffab", "goes beyond the 6 bytes"),
        ([1], b"\1\0\0", "expected 1 texts"),
        ([2], b"\1\0\0\0a\2\0\0", "goes beyond"),
        ([1], b"\1\0\0\0ab", "got 1 bytes more"),
        ([1 << 61], b"\1\0\0\0a", "texts"),
        ([3], b"\0\0\0\0" * 2, "expected 3 texts"),
    ],
)
def test_lengths_that_are_wrong_are_a_400(shape, blob, told):
    app = http_server("echo", Echo())
    said = {"name": "x", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(blob)}}
    (answer,) = run(app, infer(app, (said, blob)))
    assert answer.status == 400 and told in error_of(answer) and "input 'x'" in error_of(answer)


def test_a_list_handler_takes_one_tensor():
    app = http_server("echo", Echo())
    two, odd = run(
        app,
        infer(app, tensor("x", [b"a"]), tensor("y", [b"b"])),
        sent(app, b'{"inputs":[{"name":"x","datatype":"FP7","shape":[1],"data":[1]}]}'),
    )
    assert "expected one, got 2" in error_of(two) and "expected BYTES or one of" in error_of(odd)


class Arrays(RequestHandler):
    def process_request(self, data: NDArray[np.float32]):
        self.seen = data
        return data

    def run_inference(self, model_input):
        return model_input + 1

    def process_response(self, model_output_item):
        return model_output_item


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_handler_of_arrays_gets_one(binary, nested):
    app = http_server("arrays", Arrays())
    batch = np.arange(6, dtype="f4").reshape(2, 3)
    (answer,) = run(app, infer(app, tensor("x", batch, binary, nested)))
    got = outputs_of(answer)["data"]
    assert got.dtype == np.float32 and got.tolist() == (batch + 1).tolist()


def test_an_array_is_refused_as_in_a_message():
    app = http_server("arrays", Arrays())
    big = {"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [1, 16777217]}
    short = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3]}
    lost, few = run(app, *(sent(app, orjson.dumps({"inputs": [one]})) for one in (big, short)))
    assert lost.status == few.status == 400
    assert "holds exactly, got 16777217" in error_of(lost) and "expected a list of 4, got one of 3" in error_of(few)


# --- the walk


def mutated(rng, body):
    data = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        action = rng.randrange(3)
        if action == 0:
            data[at] = rng.choice(b'{}[]",:\\0 1eE.-tnu\xff\0')
        elif action == 1:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 12)]
        if not data:
            break
    return bytes(data)


def test_any_body_is_answered_and_as_a_parser_reads_it():
    """Broken ones: a 4xx. Those that a parser takes: what it takes them for."""
    rng = random.Random(7)
    app = identity("f4", (2,), max_batch_size=3)
    head, blob = body_of(tensor("input", np.arange(4, dtype="f4").reshape(2, 2), True))
    bodies = [mutated(rng, orjson.dumps({"inputs": [GOOD], "id": "a", "parameters": {"b": [1]}})) for _ in range(600)]
    blobs = [
        (mutated(rng, head), blob[: rng.choice([16, 16, 15, 0])] + b"x" * rng.choice([0, 0, 1])) for _ in range(300)
    ]
    answers = run(app, *(sent(app, body) for body in bodies), *(sent(app, *each) for each in blobs))
    for body, answer in zip(bodies, answers, strict=False):
        if answer.status == 200:
            (given,) = json.loads(body)["inputs"]
            assert (
                outputs_of(answer)["output"].tolist() == np.array(given["data"], "f4").reshape(given["shape"]).tolist()
            )
        else:
            assert 400 <= answer.status < 500, (body, answer.body)
            error_of(answer)
    for answer in answers[len(bodies) :]:
        assert answer.status == 200 or (400 <= answer.status < 500 and error_of(answer))
    assert 20 < sum(answer.status == 200 for answer in answers) < 800


def test_what_is_left_without_its_lists_says_where_they_are():
    body = b'{"inputs":[{"data":[1,[2]],"parameters":{"data":[3]}},{"data" : [] }],"data":[4],"more":[{"data":[5]}]}'
    rest, places = lists_in(body)
    assert (
        rest == b'{"inputs":[{"data":[0],"parameters":{"data":[3]}},{"data" : [1] }],"data":[4],"more":[{"data":[5]}]}'
    )
    assert [body[start:end] for start, end in places] == [b"[1,[2]]", b"[]"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"data":["a"]}]}',
        b'{"inputs":[{"d\\u0061ta":[1]}]}',
        b'{"inp\\u0075ts":[{"data":[1]}]}',
        b'{"inputs":[%b0]}' % (b'{"data":[1]},' * 33),
        b'{"inputs":[{"data":[1',
        b'{"inputs":[{"data',
    ],
    ids=len,
)
def test_what_the_walk_leaves_to_a_parser(body):
    assert lists_in(body) is None


def test_a_list_must_be_in_its_body():
    for start, end in ((0, 9), (9, 9), (9, 99)):
        with pytest.raises(ValueError, match="expected a list behind byte 8"):
            list_items(b'{"data" :[1]}', start, end, 1, 1, None)


# --- declared text


class Joins(TensorHandler):
    """Text of each kind beside numbers, all of them answered."""

    inputs = {"s": Tensor("str"), "n": Tensor("i4"), "b": Tensor("bytes", (2,))}
    outputs = {"t": Tensor("str", (2,)), "b": Tensor("bytes"), "n": Tensor("i4")}

    def run_inference(self, model_input):
        texts, pairs = model_input["s"], model_input["b"]
        assert all(type(text) is str for text in texts) and all(type(one) is bytes for one in pairs.ravel())
        return {
            "t": [[text, text.upper()] for text in texts],
            "b": [b"".join(pair) for pair in pairs],
            "n": model_input["n"],
        }


def joined(pairs_in_bytes, binary):
    pairs, blob = tensor("b", [b"x", b"\0\xff" if pairs_in_bytes else b"y\0", b"", b"z"], pairs_in_bytes)
    texts = tensor("s", ["é\0".encode(), b""], binary)
    return texts, tensor("n", np.int32([7, 8]), not binary), ({**pairs, "shape": [2, 2]}, blob)


@both_lanes
def test_declared_text_goes_in_and_out_as_json_and_as_bytes(ask):
    app = http_server("joins", Joins(), max_batch_size=1)
    asked = [(a, b, {"binary_data_output": b}) for a in (False, True) for b in (False, True) if b or not a]
    answers = run(app, *(infer(app, *joined(a, b), ask=ask, parameters=said) for a, b, said in asked))
    for (in_bytes, _, _), answer in zip(asked, answers, strict=True):
        found = outputs_of(answer)
        assert found["t"] == ["é\0".encode(), "É\0".encode(), b"", b""] and found["n"].tolist() == [7, 8]
        assert found["b"] == [b"x\0\xff" if in_bytes else b"xy\0", b"z"]
    (said,) = run(app, ask(app, method="GET", path="/v2/models/joins"))
    assert said.json["inputs"][2] == {"name": "b", "datatype": "BYTES", "shape": [-1, 2]}
    assert said.json["outputs"][0] == {"name": "t", "datatype": "BYTES", "shape": [-1, 2]}


def test_declared_text_that_is_wrong_is_a_400_that_names_the_tensor():
    app = http_server("texts", identity("str", ()).options.handler)
    said = {"name": "input", "datatype": "BYTES", "shape": [2]}
    blobs = {
        "item 1: input 'input': expected UTF-8": tensor("input", [b"a", b"\xff"], True),
        "input 'input': the length of text 1, at byte 5": ({**said, **binary_of(9)}, b"\1\0\0\0a\xff\xff\xff\xff"),
        "input 'input': expected strings, got numbers": ({**said, "data": [1, 2]}, b""),
        "input 'input': expected 2 strings": ({**said, "data": ["a"]}, b""),
        "input 'input': expected BYTES [n], got FP32": tensor("input", np.float32([1, 2])),
    }
    for reason, given in blobs.items():
        (answer,) = run(app, infer(app, given))
        assert answer.status == 400 and reason in error_of(answer), reason
    assert app.budget.held == 0


def binary_of(size):
    return {"parameters": {"binary_data_size": size}}
