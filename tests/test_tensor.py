import asyncio
import io
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import orjson
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.tensors import VECTOR, Identity, Tokens, body, served, vector

from virtex import HttpMessage, ItemError, Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_npy, encode_numpy, items_of
from virtex.batch.rows import allocate
from virtex.errors import HandlerError, RequestError
from virtex.service.bodies import SMALLEST
from virtex.service.formats import NPY
from virtex.service.seam import Head


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


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
    assert answer.json["data"] == [[1, 2.5, -3]]


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
    assert answer.json["data"][1]["ids"] == [5, 7]
    assert wrong.status == 422 and wrong.error.startswith("item 1: mask: expected numbers that bool holds")
    assert names.error == "item 0: expected an object of the members ['ids', 'mask'], got ['ids']"
    assert npy.status == 415


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
    account = SimpleNamespace(admit_documents=lambda before, count: None)
    with pytest.raises(RequestError, match="one array an item"):
        NPY.source(b"", Tokens.inputs, account)
    with pytest.raises(ItemError, match="expected float32"):
        NPY.source(encode_npy([np.zeros(3)]), VECTOR, account).into(allocate(VECTOR, 1))


def test_a_document_of_fields_in_fortran_order_is_refused_before_it_is_copied():
    fields = "[" + ",".join(f"('f{i}','|V536870911')" for i in range(8)) + ",('z','|V24')]"
    head = f"{{'descr': {fields}, 'fortran_order': True, 'shape': (2,2)}}\n".encode()
    document = b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + b"A" * 64
    app = http_server("identity", Identity())
    (answer,) = run(app, ask_direct(app, document, headers=[(b"content-type", b"application/x-npy")]))
    assert answer.status == 422 and "a plain dtype, not a structured one" in answer.error


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
        (encode_npy([np.zeros(4, "float32")] * 2), [(b"content-type", b"application/x-npy")], 422),
    ],
    ids=["another dtype", "bad base64", "another shape"],
)
def test_a_large_body_that_is_refused_is_counted_so_and_its_memory_used_again(text, headers, status):
    async def main():
        app = http_server("tensor", Identity(), max_batch_size=2, max_queue_size=8)
        await app.startup()
        refused = []
        for _ in range(2):
            refused.append(in_large_memory(app, text, headers).status)
            await asyncio.sleep(0)  # it is given back when the transport that wrote it is done with it
        counts = app.model.admission.unsettled, app.model.admission.bodies.held, app.model.admission.bodies.kept
        await asyncio.wait_for(app.shutdown(), 5)
        return refused, counts

    assert asyncio.run(main()) == ([status] * 2, (0, 0, SMALLEST))
