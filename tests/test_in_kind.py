"""Numbers in, numbers out; base64 in, base64 out: in every executor, by both shells."""

import asyncio
import json
import math

import ml_dtypes
import numpy as np
import orjson
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.tensors import AsyncIdentity, Identity, Tokens, served, vector

from virtex import HttpMessage, Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_npy, encode_numpy
from virtex.batch.outputs import rows_by_name
from virtex.errors import HandlerError
from virtex.serial._json import as_numbers, decimals

NPY = ((b"content-type", b"application/x-npy"),)
WANTS_NPY = ((b"accept", b"application/x-npy"),)


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


@pytest.fixture(params=["inline", "thread", "async"])
def app(request):
    handler = AsyncIdentity() if request.param == "async" else Identity()
    return http_server("kind", handler, executor="thread" if request.param == "thread" else "inline")


def data(*items):
    return orjson.dumps({"data": list(items)})


def text(*values):
    return encode_numpy(vector(*values))


def test_each_request_of_one_batch_is_answered_in_its_own_kind(app, ask):
    numbers, base64, mixed, documents, stacked, none = run(
        app,
        ask(app, data([1, 2.5, 3], [4, 5, 6])),
        ask(app, data(text(7, 8, 9))),
        ask(app, data(text(1, 2, 3), [0.1, 0, -0.0])),
        ask(app, encode_npy([vector(4, 5, 6)]), headers=NPY),
        ask(app, data([1, 2, 3]), headers=WANTS_NPY),
        ask(app, data()),
    )
    assert numbers.body == b'{"data":[[1.0,2.5,3.0],[4.0,5.0,6.0]],"error":null}'
    assert base64.body == b'{"data":["%b"],"error":null}' % text(7, 8, 9).encode()
    assert mixed.body == b'{"data":[[1.0,2.0,3.0],[0.1,0.0,-0.0]],"error":null}'
    assert documents.json["data"] == [text(4, 5, 6)]
    assert stacked.body == encode_npy([vector(1, 2, 3)])
    assert none.body == b'{"data":[],"error":null}'


def test_named_outputs_are_objects_and_any_number_among_the_inputs_makes_them_numbers(ask):
    app = http_server("tokens", Tokens())
    ids, mask = encode_numpy(np.array([5, 7])), encode_numpy(np.array([True, False]))
    mixed, base64, npy = run(
        app,
        ask(app, data({"ids": ids, "mask": mask}, {"ids": [5, 7], "mask": mask})),
        ask(app, data({"ids": ids, "mask": mask})),
        ask(app, data({"ids": [5, 7], "mask": mask}), headers=WANTS_NPY),  # which can't carry names
    )
    assert mixed.body == b'{"data":[{"sum":5,"ids":[5,7]},{"sum":5,"ids":[5,7]}],"error":null}'
    assert base64.json["data"] == [{"sum": 5, "ids": ids}]
    assert npy.json["data"] == [{"sum": 5, "ids": [5, 7]}]


def test_a_request_that_spans_batches_is_answered_whole(app, ask):
    app = http_server("kind", Identity(), max_batch_size=2)
    (answer,) = run(app, ask(app, data(*([i, 0, 0] for i in range(5)))))
    assert [row[0] for row in answer.json["data"]] == [0, 1, 2, 3, 4]


class Lists(Identity):
    """Answers whatever it is told to."""

    def __init__(self, outputs):
        self.outputs_of = outputs

    def run_inference(self, batch):
        return self.outputs_of(batch)


WHOLE = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u4", "i8", "u8", "e", "f", "d", ">f4", ">i2", ">f2", "bfloat16"])
def test_rows_of_every_plain_dtype_and_layout_are_numbers(dtype, order):
    array = np.array(WHOLE).astype(dtype, order=order)
    both = data([1, 2, 3], [4, 5, 6])
    (whole,) = served(Lists(lambda batch: array), both)
    single = served(Lists(lambda batch: array), data([1, 2, 3]), data([4, 5, 6]))
    assert whole.json["data"] == array.tolist()
    assert [answer.json["data"] for answer in single] == [array[:1].tolist(), array[1:].tolist()]


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2), (1, 1, 1), (64,), (65,), (2, 3, 500)], ids=str)
def test_rows_of_any_shape_are_written_one_by_one_and_together(shape):
    array = np.arange(128 * math.prod(shape), dtype="f4").reshape(128, *shape)
    rows = rows_by_name({"": array})
    parts = [rows.part(i, i + 1) for i in range(128)]
    assert orjson.loads(rows.json(True))["data"] == array.tolist()
    assert [orjson.loads(part.json(True))["data"] for part in parts] == [[row.tolist()] for row in array]
    assert orjson.loads(rows.part(63, 65).json(True))["data"] == array[63:65].tolist()


def test_integers_of_64_bits_and_numbers_at_the_ends_come_back():
    ends = np.array([2**64 - 1, 0], "u8"), np.array([-(2**63), 2**63 - 1]), np.finfo("f4")
    for array in (*ends[:2], np.array([ends[2].max, ends[2].tiny, ends[2].smallest_subnormal, -0.0], "f4")):
        came = json.loads(rows_by_name({"": array[None]}).json(True))["data"][0]
        assert np.array(came, array.dtype).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn]
)
def test_every_value_of_a_narrow_float_has_a_text_that_comes_back(dtype):
    dtype = np.dtype(dtype)
    bits = np.arange(256**dtype.itemsize if dtype.name != "float4_e2m1fn" else 16, dtype=f"u{dtype.itemsize}")
    values = bits.view(dtype)
    with np.errstate(invalid="ignore"):  # which bfloat16 says of its NaN
        finite = values[np.isfinite(values)]
    came = np.array(json.loads(rows_by_name({"": finite[None]}).json(True))["data"][0]).astype(dtype)
    assert came.tobytes() == finite.tobytes()


def test_the_text_of_a_narrow_float_is_the_shortest():
    half = np.array([0.1, 65504, 6e-8, 1 / 3], "e")
    assert rows_by_name({"": half[None]}).json(True) == b'{"data":[[0.1,65500.0,6e-8,0.3333]],"error":null}'
    as_numpy_writes = [float(np.format_float_scientific(x)) for x in np.arange(1, 0x7C00, dtype="u2").view("e")]
    assert decimals(np.dtype("e"))[1:0x7C00].tolist() == as_numpy_writes
    assert as_numbers(np.array([0.1], ml_dtypes.bfloat16)).tolist() == [0.1]


def test_narrow_integers_are_numbers():
    assert rows_by_name({"": np.array([[-8, 7]], ml_dtypes.int4)}).json(True) == b'{"data":[[-8,7]],"error":null}'


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "M8[s]", "m8[s]", np.longdouble], ids=str)
def test_what_json_has_no_number_for_stays_base64(dtype):
    array = np.array([[1, 2], [3, 4]]).astype(dtype)
    if array.dtype == np.longdouble and array.dtype.itemsize == 8:
        pytest.skip("no longer than a double here")
    (answer,) = served(Lists(lambda batch: array), data([1, 2, 3], [4, 5, 6]))
    assert answer.json["data"] == [encode_numpy(row) for row in array]
    (named,) = served(Lists(lambda batch: {"a": array, "n": np.zeros((2, 1))}), data([1, 2, 3], [4, 5, 6]))
    assert named.json["data"] == [{"a": encode_numpy(row), "n": [0.0]} for row in array]


def test_rows_of_no_dimension_are_what_they_are_in_either_kind():
    for item in ([0.1, 0, 0], text(0.1, 0, 0)):
        (answer,) = served(Lists(lambda batch: batch[:, 0]), data(item))
        assert answer.json["data"] == [float(np.float32(0.1))]


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", ["e", "f", "d", "bfloat16"])
def test_a_number_that_is_not_finite_is_a_500_that_names_the_item_and_costs_nobody_else_his_answer(
    app, ask, bad, dtype
):
    handler = Lists(lambda batch: np.where(batch == 9, float(bad), batch).astype(dtype))
    app = http_server("nan", handler)
    one, first, second, base64 = run(
        app,
        ask(app, data([9, 1, 1])),
        ask(app, data([1, 1, 1])),
        ask(app, data([1, 1, 1], [2, 2, 2], [1, 9, 1])),
        ask(app, data(text(9, 9, 9))),
    )
    assert first.json["data"] == [[1, 1, 1]] and base64.status == 200
    assert (one.status, second.status) == (500, 500)
    assert one.error.startswith(f"item 0: run_inference gave a ndarray that can't be sent: {bad} is no JSON number")
    assert second.error.startswith("item 2: run_inference gave a ndarray")


def test_a_number_that_is_not_finite_is_found_in_named_outputs():
    rows = rows_by_name({"a": np.zeros((3, 1)), "b": np.array([[0], [np.nan], [0]])})
    with pytest.raises(HandlerError, match="item 1: run_inference gave a dict that can't be sent: nan is no JSON"):
        rows.json(True)


def test_validate_answers_in_kind_too():
    assert Identity().validate(HttpMessage(data=[[1, 2, 3]])).data == [[1, 2, 3]]
    assert decode_numpy(Identity().validate(HttpMessage(data=[text(1, 2, 3)])).data[0]).tolist() == [1, 2, 3]
    item = {"ids": [1, 2], "mask": encode_numpy(np.array([True, True]))}
    assert Tokens().validate(HttpMessage(data=[item])).data == [{"sum": 3, "ids": [1, 2]}]


def test_a_tensor_handlers_own_process_response_and_a_bool_input_are_as_they_were():
    class Own(TensorHandler):
        inputs = Tensor("bool", (2,))

        def run_inference(self, batch):
            return batch

        def process_response(self, row):
            return encode_numpy(row)

    (answer,) = served(Own(), data([True, False]))
    assert decode_numpy(answer.json["data"][0]).tolist() == [True, False]


def test_rows_are_written_after_the_model_has_gone_on():
    """With a thread, the next batch may run while this one is answered."""

    class Fills(Identity):
        def __init__(self):
            self.out = np.zeros((64, 3), "f4")

        def run_inference(self, batch):
            self.out[: len(batch)] = batch
            return self.out[: len(batch)]

    app = http_server("fills", Fills(), executor="thread", max_batch_size=4)

    async def ask_all():
        return await asyncio.gather(*(ask_direct(app, data([i, i, i])) for i in range(64)))

    (answers,) = run(app, ask_all())
    assert [answer.json["data"][0][0] for answer in answers] == list(range(64))
