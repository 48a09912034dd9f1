"""Rows that are sent as they are: of torch, TensorFlow, pandas and NumPy; and what is said of those that can't be."""

import subprocess
import sys
import types
from decimal import Decimal
from pathlib import PurePosixPath

import numpy as np
import orjson
import pytest
from kit import needs
from kit.asks import ask_asgi, ask_direct, run

from virtex import Content, HttpMessage, RequestHandler, Tensor, TensorHandler, http_server
from virtex.errors import HandlerError
from virtex.message import encode_data
from virtex.serial._foreign import plain, remedy

torch = needs.library("torch")
pd = needs.library("pandas")


class Gives(RequestHandler):
    """Answers with what it was made with, row by row."""

    def __init__(self, rows, respond=None):
        self.rows = rows
        self.respond = respond or (lambda row: row)

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        return self.rows

    def process_response(self, row):
        return self.respond(row)


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


FRAME = pd.DataFrame({"label": ["cat", "dog"], "score": np.float32([0.5, 0.25]), "n": [1, 2]})
ROWS = {
    "tensor": (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "tensor of one dimension": (torch.tensor([0.5, 1.5]), [0.5, 1.5]),
    "tensor that needs a gradient": (torch.ones(2, 1, requires_grad=True), [[1.0], [1.0]]),
    "bfloat16": (torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16), [[0.5], [2.0]]),
    "a view that is not contiguous": (torch.arange(6).reshape(3, 2).T[:, ::2].T, [[0, 1], [4, 5]]),
    "conjugated": (torch.ones(2, dtype=torch.complex64).conj().imag.neg(), [0.0, 0.0]),
    "tensors in a list": ([torch.tensor(1), torch.tensor([2])], [1, [2]]),
    "frame": (FRAME, [{"label": "cat", "score": 0.5, "n": 1}, {"label": "dog", "score": 0.25, "n": 2}]),
    "frame of numbers": (FRAME[["score", "n"]], [{"score": 0.5, "n": 1.0}, {"score": 0.25, "n": 2.0}]),
    "frame without names": (pd.DataFrame(np.arange(4).reshape(2, 2)), [[0, 1], [2, 3]]),
    "series": (FRAME["score"], [0.5, 0.25]),
    "series of text": (FRAME["label"], ["cat", "dog"]),
    "what is missing": (pd.Series([1, None], dtype="Int64"), [1, None]),
    "no times": (pd.Series(["2026-01-31T12:00:00", None], dtype="datetime64[ns]"), ["2026-01-31T12:00:00", None]),
    "dicts of arrays": (
        [{"a": torch.ones(2), "b": np.arange(2)}, {"a": np.float32(0.5), "b": [torch.tensor(True)]}],
        [{"a": [1.0, 1.0], "b": [0, 1]}, {"a": 0.5, "b": [True]}],
    ),
    "frames in a dict": ([{"top": FRAME}, {"top": FRAME["n"]}], [{"top": FRAME.to_dict("records")}, {"top": [1, 2]}]),
    "scalars of numpy": ([np.float16(0.5), np.bool_(True)], [0.5, True]),
    "an index, a zone": (
        [FRAME.index, pd.Timestamp("2026-01-31T12:00:00.5", tz="UTC")],
        [[0, 1], "2026-01-31T12:00:00.500000+00:00"],
    ),
    "categories": (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
    "a duration": (pd.Series(pd.to_timedelta([90, 1], unit="s")), ["PT90S", "PT1S"]),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_is_sent_as_it_is(case, ask):
    rows, expected = ROWS[case]
    app = http_server("gives", Gives(rows))
    (answer,) = run(app, ask(app, b'{"data":[0,0]}'))
    assert answer.status == 200, answer.error
    assert answer.json["data"] == expected
    assert [type(one) for one in answer.json["data"]] == [type(one) for one in expected]
    assert Gives(rows).validate(HttpMessage(data=[0, 0]), strict=True).data == expected


def test_what_a_row_refers_to_may_be_filled_again(ask):
    memory = torch.zeros(2)

    def respond(row):
        memory.fill_(row)
        return {"it": memory}

    app = http_server("fills", Gives([1, 2], respond))
    (answer,) = run(app, ask(app, b'{"data":[0,0]}'))
    assert answer.json["data"] == [{"it": [1.0, 1.0]}, {"it": [2.0, 2.0]}]


@pytest.mark.parametrize(
    "row",
    [
        torch.tensor([1.0, float("nan")]),
        {"a": [torch.tensor(float("inf"))]},
        pd.Series([1.0, float("nan")]),
        pd.DataFrame({"a": [float("nan")]}),
        {"a": pd.Series({"x": float("inf")})},
        pd.Series([1.0, float("nan"), "a"], dtype=object),
    ],
    ids=["tensor", "in a dict", "series", "frame", "object", "of objects"],
)
def test_a_number_that_is_not_finite_is_still_no_null(row):
    with pytest.raises(HandlerError, match="item 1: process_response gave .* is no JSON number"):
        encode_data([0, row])


CANT = {
    "bytes": (b"x", r"call encode_bytes\(value\), or answer with Content\(value, type\)"),
    "set": ({1}, r"call sorted\(value\) or list\(value\)"),
    "complex": (1j, r"send \[value.real, value.imag\]"),
    "decimal": (Decimal(1), r"call float\(value\) or str\(value\)"),
    "range": (range(3), r"call list\(value\)"),
    "path": (PurePosixPath("a"), r"PurePosixPath is no JSON value: call str\(value\)"),
    "sparse": (torch.eye(2).to_sparse(), r"call tensor.to_dense\(\)"),
    "meta": (torch.empty(2, device="meta"), "on the device meta has no data"),
    "complex tensor": (torch.ones(1, dtype=torch.complex64), "complex"),
    "labels that stand twice": (pd.Series([1, 2], index=["a", "a"]), r"call series.tolist\(\)"),
    "in a dict": ({"a": [b"x"]}, r"call encode_bytes"),
    "content in a list": ([Content(b"", "a/b")], "the answer of a request of one item"),
    "tolist": (types.SimpleNamespace(tolist=list), r"call its tolist\(\)"),
    "asnumpy": (types.SimpleNamespace(asnumpy=list), r"call its asnumpy\(\)"),
    "masked": (np.ma.array([1], mask=[True]), r"fill it first"),
}


@pytest.mark.parametrize("case", CANT)
def test_what_can_not_be_sent_says_what_to_call(case):
    row, words = CANT[case]
    with pytest.raises(HandlerError, match=f"item 0: process_response gave a .* that can't be sent: .*{words}"):
        encode_data([row])


def test_pictures_and_unknown_objects():
    image = needs.library("PIL.Image").new("L", (1, 1))
    assert remedy(image).startswith(": call encode_pil(value), or answer with Content")
    assert remedy(object()) == ""


class Flat:
    """A tensor as eager TensorFlow has it, as far as this needs it."""

    dtype = "float32"

    def __init__(self, array):
        self._array = array

    def numpy(self):
        return self._array


@pytest.fixture
def tensorflow(monkeypatch):
    """Its real tests are with test_serial_tf, which has the library; this one is about what is asked of it."""
    module = types.ModuleType("tensorflow")
    module.Tensor, module.Variable, module.string = Flat, int, "string"
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    monkeypatch.setattr(Flat, "__module__", "tensorflow.python.framework.ops")


def test_tensors_of_tensorflow_are_sent(tensorflow):
    assert orjson.loads(encode_data([Flat(np.float32([0.5])), {"a": Flat(np.float32(1))}])) == [[0.5], {"a": 1.0}]
    with pytest.raises(HandlerError, match="nan is no JSON number"):
        encode_data([Flat(np.float32([np.nan]))])


class Sums(TensorHandler):
    inputs = Tensor("f4", (2,))

    def run_inference(self, batch):
        return batch

    def process_response(self, row):
        return {"sum": torch.from_numpy(row).sum(), "row": row}


def test_a_tensor_handler_that_makes_json_may_give_tensors(ask):
    app = http_server("sums", Sums())
    (answer,) = run(app, ask(app, b'{"data":[[1,2]]}'))
    assert answer.json["data"] == [{"sum": 3.0, "row": [1.0, 2.0]}]


def test_no_library_is_imported_for_values_that_are_not_of_it():
    code = (
        "import sys; from virtex.message import encode_data\n"
        "class T: pass\n"
        "try: encode_data([T()])\n"
        "except Exception as error: assert 'T is no JSON value' in str(error), error\n"
        "assert not {'torch', 'tensorflow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_of_a_library_and_no_value_of_it_stays_as_it_is():
    for value in (torch.float32, torch.Size([1]), pd.Period("2026"), 1, None, "a"):
        assert plain(value) is value
