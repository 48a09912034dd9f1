"""Answers of the Open Inference Protocol: the outputs that were asked for, as JSON or as bytes."""

import numpy as np
import orjson
import pytest
from kit.asks import run
from kit.v2 import error_of, infer, outputs_of, tensor

from virtex import Content, RequestHandler, Tensor, TensorHandler, http_server
from virtex._codec import flat_numbers
from virtex.service.v2_write import Texts, tensor_of


class Three(TensorHandler):
    inputs = Tensor("f4", (2,))

    def run_inference(self, model_input):
        return {"x": model_input, "y": model_input.sum(1).astype("i4"), "t": np.array(["ä"] * len(model_input))}


ASKED = tensor("input", np.array([[1, 2], [3, 4]], "f4"))


def answer_to(handler, *tensors, **members):
    app = http_server("a", handler)
    (answer,) = run(app, infer(app, *tensors, **members))
    return answer


@pytest.mark.parametrize(
    ("members", "binary"),
    [
        ({}, set()),
        ({"parameters": {"binary_data_output": True}}, {"x", "y", "t"}),
        ({"parameters": {"binary_data_output": False}}, set()),
        ({"outputs": [{"name": "y"}]}, set()),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "x"}]}, {"y"}),
        (
            {
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "t"}],
                "parameters": {"binary_data_output": True},
            },
            {"t"},
        ),
        ({"outputs": []}, set()),
    ],
)
def test_the_outputs_that_are_asked_for_come_in_their_order_and_form(members, binary):
    answer = answer_to(Three(), ASKED, **members)
    length = answer.headers.get(b"inference-header-content-length")
    assert (length is not None) == bool(binary)
    assert answer.headers[b"content-type"] == (b"application/octet-stream" if binary else b"application/json")
    head = orjson.loads(answer.body[: int(length or len(answer.body))])
    assert [output["name"] for output in head["outputs"]] == [
        each["name"] for each in members.get("outputs") or [{"name": name} for name in "xyt"]
    ]
    assert {output["name"] for output in head["outputs"] if "parameters" in output} == binary
    expected = {"x": [[1, 2], [3, 4]], "y": [3, 7], "t": ["ä".encode()] * 2}
    for name, value in outputs_of(answer).items():
        assert (value if name == "t" else value.tolist()) == expected[name]


def test_an_id_comes_back_and_only_where_it_was_given():
    with_id, without = answer_to(Three(), ASKED, id='a"ä'), answer_to(Three(), ASKED)
    assert with_id.json["id"] == 'a"ä' and "id" not in without.json
    assert with_id.json["model_name"] == "a" and with_id.json["model_version"] == "1"


def test_requests_of_one_head_and_other_sizes_get_shapes_of_their_own():
    app = http_server("a", Three())
    asks = [infer(app, tensor("input", np.ones((n, 2), "f4"))) for n in (1, 2, 1, 3)]
    assert [outputs_of(answer)["x"].shape for answer in run(app, *asks)] == [(1, 2), (2, 2), (1, 2), (3, 2)]


def test_an_output_that_v2_has_no_datatype_for_is_a_501():
    class Complex(Three):
        def run_inference(self, model_input):
            return model_input.astype("c8")

    answer = answer_to(Complex(), ASKED)
    assert answer.status == 501 and "'output' is of complex64" in error_of(answer)


def test_values_of_a_tensor_handler_are_one_tensor():
    class Labels(Three):
        def run_inference(self, model_input):
            return model_input

        def process_response(self, row):
            return {"label": float(row[0])}

    assert outputs_of(answer_to(Labels(), ASKED))["data"] == [b'{"label":1.0}', b'{"label":3.0}']


class Image(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, item):
        return Content(item.encode() + b"\xff", "image/png")


def test_a_content_is_a_text_which_must_be_asked_for_as_bytes_where_it_is_no_utf_8():
    as_bytes = answer_to(Image(), tensor("x", [b"a"]), parameters={"binary_data_output": True})
    as_json = answer_to(Image(), tensor("x", [b"a"]))
    assert outputs_of(as_bytes)["data"] == [b"a\xff"]
    assert as_json.status == 400 and "binary_data" in error_of(as_json)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([1, 2], np.array([1, 2])),
        ([1, 2.5], np.array([1, 2.5])),
        ([True, False], np.array([True, False])),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([1 << 63], np.array([1 << 63], "u8")),
        ([np.float32(1.5)], np.array([1.5])),
        ([np.float32(0.1), np.float64(0.1), np.float16(0.1), 1], np.array([0.1, 0.1, 0.099975586, 1])),
        ([np.float32(np.inf), 1], np.array([np.inf, 1])),
        ([np.ones(2, "f4"), np.zeros(2, "f4")], np.array([[1, 1], [0, 0]], "f4")),
        (["a", "ä"], [b"a", "ä".encode()]),
        ([["a"], ["b"]], [b"a", b"b"]),
        ([1, "a"], [b"1", b'"a"']),
        ([True, 1], [b"true", b"1"]),
        ([1 << 63, -1], [b"9223372036854775808", b"-1"]),
        ([None], [b"null"]),
        ([[1], [2, 3]], [b"[1]", b"[2,3]"]),
        ([{"a": 1}], [b'{"a":1}']),
        ([np.ones(1, "f4"), np.ones(2, "f4")], [b"[1.0]", b"[1.0,1.0]"]),
        ([[]], [b"[]"]),
    ],
    ids=str,
)
def test_rows_of_json_are_numbers_texts_or_json(rows, expected):
    made = tensor_of(rows)
    if isinstance(expected, list):
        assert type(made) is Texts and made.values == expected and made.shape[0] == len(rows)
    else:
        assert made.dtype == expected.dtype and made.shape == expected.shape and made.tolist() == expected.tolist()


def test_flat_numbers_are_those_of_all_rows():
    rows = np.arange(12, dtype="f4").reshape(3, 4)
    assert flat_numbers(rows[:, ::2], b"<", b">") == b"<0.0,2.0,4.0,6.0,8.0,10.0>"
    assert flat_numbers(rows[1:2].astype(">i2"), b"", b"") == b"4,5,6,7"
    assert flat_numbers(np.empty((2, 0)), b"<", b">") == b"<>" and flat_numbers(rows.astype("c8"), b"", b"") is None
