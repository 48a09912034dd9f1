"""Bodies into rows and rows into bodies: the walk against orjson, texts against NumPy."""

import base64
import contextlib
import gc
import json
import sys
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.oracle import BAD_ITEM, NOT_JSON, b64, check_strings, check_text, check_walk, fast, npy, read, slow

from virtex import ItemError, _codec, codec_info

rng = np.random.default_rng(3)


@pytest.fixture(params=codec_info()["available"])
def isa(request):
    before = codec_info()["isa"]
    _codec._use_isa(request.param)
    yield request.param
    _codec._use_isa(before)


def texts(arrays):
    return [_codec.encode_numpy(a) for a in arrays]


def message(values, **style):
    return json.dumps({"data": values}, **style).encode()


def rows_of(items, like):
    rows = np.full_like(like, 99)
    items.into(rows)
    return rows


# -- what the walk takes

ROWS = {
    "f4": rng.random((3, 5), "f4"),
    "images": rng.random((2, 3, 20, 20), "f4"),
    "numbers": rng.random(4),
    "bools": rng.random((3, 7)) > 0.5,
    "u1": rng.integers(0, 255, (40, 1), "u1"),
    "c16": rng.random((2, 2)) + 1j,
    "text": np.array([["ab", "c"], ["é", ""]]),
    "dates": np.array([["2020-01-01"], ["NaT"]], "M8[us]"),
    "empty": np.zeros((3, 0), "f4"),
    "one": rng.random((1, 1000)),
    "bfloat16": rng.random((2, 3)).astype(ml_dtypes.bfloat16),
    "over 1 MB": rng.random((2, 1 << 17)),
    "hundreds": rng.random((300, 2), "f4"),
}


@pytest.fixture(params=ROWS)
def rows(request):
    return ROWS[request.param]


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2}], ids=["json", "compact", "indented"])
def test_a_body_goes_into_rows(isa, rows, style):
    body = message(texts(rows), **style)
    for form in (body, bytearray(body), memoryview(body)):
        items = _codec.scan(form)
        assert len(items) == len(rows)
        assert items.names is None
        assert rows_of(items, rows).tobytes() == rows.tobytes()


def test_headers_as_numpy_writes_them_are_taken_too(isa, rows):
    if rows.dtype == ml_dtypes.bfloat16:
        return  # NumPy writes '<V2'
    items = _codec.scan(message([b64(npy(row)) for row in rows]))
    assert rows_of(items, rows).tobytes() == rows.tobytes()


@pytest.mark.parametrize("pad", range(6))
def test_header_and_data_may_share_a_quantum(isa, pad):
    """Headers of every length modulo 3, with data of every length modulo 3: twice, from a parse and from memory."""
    for n in range(1, 8):
        data = rng.integers(0, 255, (3, n), "u1")
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n},), }}".encode() + b" " * pad + b"\n"
        docs = [b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + row.tobytes() for row in data]
        for _ in range(2):
            assert rows_of(_codec.scan(message(list(map(b64, docs)))), data).tolist() == data.tolist()
            assert [_codec.decode_numpy(b64(doc)).tolist() for doc in docs] == data.tolist()


def test_a_remembered_header_does_not_cover_up_another_one():
    """Headers that differ in their last byte alone, whose bits share a character with the data."""
    for size in (129, 130, 131):
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }".ljust(size - 11)
        doc = b"\x93NUMPY\1\0" + (size - 10).to_bytes(2, "little") + header + b"\n"
        assert _codec.decode_numpy(b64(doc + b"\1\2")).tolist() == [1, 2]
        for last in b"x\x0b":
            with pytest.raises(ItemError, match="after the dict"):
                _codec.decode_numpy(b64(doc[:-1] + bytes([last]) + b"\1\2"))
            assert check_walk(message([b64(doc[:-1] + bytes([last]) + b"\1\2")]), None, "u1", (2,)) is False


def test_a_part_of_the_items_goes_into_a_part_of_the_rows():
    data = rng.random((10, 4))
    items = _codec.scan(message(texts(data)))
    rows = np.zeros((12, 4))
    items.into(rows[1:4], 2, 5)
    items.into(rows[4:4], 10)
    items.into(rows[9:], 7)
    expected = np.zeros((12, 4))
    expected[1:4], expected[9:] = data[2:5], data[7:]
    assert (rows == expected).all()


def test_the_error_member_of_a_message_is_no_surprise(isa):
    data = rng.random((2, 4))
    for style in ({}, {"separators": (",", ":")}, {"indent": 2}):
        body = json.dumps({"data": texts(data), "error": None}, **style).encode()
        assert rows_of(_codec.scan(body), data).tolist() == data.tolist()
        assert _codec.strings(body) == texts(data)
        assert all(_codec.scan(body[:n]) is None for n in range(len(body)))
    assert rows_of(_codec.scan(_codec.encode_rows(data)), data).tolist() == data.tolist()
    assert len(_codec.scan(b'{"data":[],"error":null}')) == 0


def test_no_items_are_items():
    for body in (b'{"data":[]}', b' {\n"data"\t: [\r ] } '):
        items = _codec.scan(body)
        assert len(items) == 0
        items.into(np.zeros((0, 3)))
    assert len(_codec.items_of([])) == 0


def test_nothing_beyond_the_rows_is_written(isa):
    for n in (1, 2, 3, 4, 5, 47, 48, 49, 64, 100):
        data = rng.integers(0, 255, (3, n), "u1")
        room = np.full((5, n), 7, "u1")
        _codec.scan(message(texts(data))).into(room[1:4])
        assert (room[[0, 4]] == 7).all()
        assert (room[1:4] == data).all()


# -- members

NAMES = ("image", "mask")


def test_named_members_go_into_an_array_each(isa):
    images, masks = rng.random((4, 3), "f4"), rng.random((4, 2, 2)) > 0.5
    pairs = [dict(zip(NAMES, pair, strict=True)) for pair in zip(texts(images), texts(masks), strict=True)]
    pairs[2] = dict(reversed(pairs[2].items()))
    for style in ({}, {"indent": 1}):
        items = _codec.scan(message(pairs, **style), NAMES)
        assert len(items) == 4
        assert items.names == NAMES
        a, b = np.zeros_like(images), np.zeros_like(masks)
        items.into([a, b])
        assert (a == images).all()
        assert (b == masks).all()


def test_a_member_twice_is_left_to_the_parser():
    body = f'{{"data":[{{"image":"{A}","image":"{B}"}}]}}'.encode()
    assert check_walk(body, NAMES) is False
    body = f'{{"data":[{{"image":"{A}","mask":"{B}","image":"{B}"}}]}}'.encode()
    assert check_walk(body, NAMES) is False


def test_many_columns_and_rows_find_room():
    names = [f"n{i}" for i in range(16)]
    data = rng.random((50, 16, 2))
    body = message([dict(zip(names, texts(row), strict=True)) for row in data])
    columns = [np.zeros((50, 2)) for _ in names]
    _codec.scan(body, names).into(columns)
    assert (np.stack(columns, 1) == data).all()


@pytest.mark.parametrize(
    "item",
    [
        {"image": 0},
        {"image": 0, "mask": 1, "x": 2},
        {"image": 0, "masks": 1},
        [0, 1],
        "text",
        None,
        {},
        {"mask": 1},
    ],
)
def test_objects_of_other_members_are_item_errors(item):
    good = dict(zip(NAMES, texts([np.zeros(3, "f4")] * 2), strict=True))
    body = message([good, item])
    assert _codec.scan(body, NAMES) is None
    assert slow(body, NAMES, "f4", (3,))[:2] == (BAD_ITEM, 1)


def test_the_lowest_wrong_item_is_named_whichever_its_column():
    good = texts([np.zeros(3, "f4")])[0]
    bad = good[:-2] + "*="
    for first, second in (({"mask": bad}, {"image": bad}), ({"image": bad}, {"mask": bad}), ({"mask": bad},) * 2):
        body = message([{"image": good, "mask": good} | change for change in ({}, first, second)])
        assert check_walk(body, NAMES)
        assert fast(body, NAMES, "f4", (3,))[:2] == (BAD_ITEM, 1)


@pytest.mark.parametrize("names", [(), ("a", "a"), [str(i) for i in range(17)]])
def test_impossible_names_are_a_value_error(names):
    with pytest.raises(ValueError, match="different names"):
        _codec.scan(b'{"data":[]}', names)


# -- surprises

A, B = texts([np.arange(3, dtype="f4"), np.ones(3, "f4")])
OTHER = _codec.encode_numpy(np.arange(4, dtype="f4"))
SURPRISES = {
    "an escaped plus": f'{{"data":["{A.replace("A", chr(92) + "u0041", 1)}"]}}',
    "an escape in the data": f'{{"data":["{A[:-4]}{chr(92)}u0041{A[-3:]}"]}}',
    "an escaped slash": '{"data":["' + _codec.encode_numpy(np.full(3, 255, "u1")).replace("/", "\\/") + '"]}',
    "an escaped key": '{"d\\u0061ta":["' + A + '"]}',
    "another member before": f'{{"id":1,"data":["{A}"]}}',
    "another member after": f'{{"data":["{A}"],"id":1}}',
    "a duplicate key": f'{{"data":["{A}"],"data":["{B}"]}}',
    "a nested list": f'{{"data":[["{A}"]]}}',
    "text among numbers": '{"data":[[1,"2",3]]}',
    "a text before numbers": f'{{"data":["{A}",[1,2,3]]}}',
    "numbers before a text": f'{{"data":[[1,2,3],"{A}"]}}',
    "a number before a list": '{"data":[1,[1,2,3]]}',
    "a list before a number": '{"data":[[1,2,3],1]}',
    "lists without an end": '{"data":[[1,2,3]}',
    "a list too many": '{"data":[[1,2,3]]]}',
    "lists without a comma": '{"data":[[1,2,3][1,2,3]]}',
    "a comma behind lists": '{"data":[[1,2,3],]}',
    "null": '{"data":[null]}',
    "one string": f'{{"data":"{A}"}}',
    "mixed signatures": f'{{"data":["{A}","{OTHER}"]}}',
    "a trailing comma": f'{{"data":["{A}",]}}',
    "a comma missing": f'{{"data":["{A}" "{B}"]}}',
    "a leading comma": f'{{"data":[,"{A}"]}}',
    "something after": f'{{"data":["{A}"]}}x',
    "a second document": f'{{"data":["{A}"]}}{{}}',
    "NUL after": f'{{"data":["{A}"]}}\0',
    "a byte order mark": "\ufeff" + f'{{"data":["{A}"]}}',
    "form feed between": f'{{"data":\f["{A}"]}}',
    "vertical tab after": f'{{"data":["{A}"]}}\v',
    "a no-break space": f'{{"data":[\xa0"{A}"]}}',
    "no quote at the end": f'{{"data":["{A}x]}}',
    "an open string": f'{{"data":["{A}',
    "an open list": f'{{"data":["{A}"',
    "an open object": f'{{"data":["{A}"]',
    "a quote too early": f'{{"data":["{A[:-8]}"]}}',
    "a text too long": f'{{"data":["{A}AAAA"]}}',
    "nothing": "",
    "a short text": '{"data":["AAAA"]}',
    "an empty text": '{"data":[""]}',
    "a list": f'["{A}"]',
    "upper case": f'{{"DATA":["{A}"]}}',
    "no header": '{"data":["' + "A" * 400 + '"]}',
    "not UTF-8": f'{{"data":["{A}"]}}\udcff',
}


@pytest.mark.parametrize("name", SURPRISES)
def test_a_surprise_is_left_to_the_parser(isa, name):
    body = SURPRISES[name].encode("utf-8", "surrogateescape")
    assert _codec.scan(body) is None
    check_walk(body)


def test_what_lies_within_a_text_is_found_when_it_is_decoded():
    big = _codec.encode_numpy(np.zeros(3000, "f4"))
    for inside in ('"', "\\", "\\u0041", "\n", "\0", "é", "\\/", '\\"', " ", "=", "-", '","', '"]}'):
        for at in (300, 1000, len(big) - 20):
            body = f'{{"data":["{big}","{big[:at]}{inside}{big[at + len(inside.encode()) :]}"]}}'.encode()
            assert check_walk(body, None, "f4", (3000,)) is True
            result = fast(body, None, "f4", (3000,))
            assert result == NOT_JSON or result[:2] == (BAD_ITEM, 1)


@pytest.mark.parametrize("second", ["5", "[]", '["x"]', '["x", "y"]', '{"a":1}'])
def test_a_second_list_that_the_walk_jumped_over_is_an_item_error(second):
    """The first text ends early, and the quote that the walk expects at its end belongs to another one."""
    text = _codec.encode_numpy(np.zeros(300, "f4"))
    inside = text[:260] + f'"],"data":{second},"x":["'
    body = f'{{"data":["{inside.ljust(len(text), "A")}"]}}'.encode()
    assert "x" in orjson.loads(body)
    items = _codec.scan(body)
    with pytest.raises(ItemError) as error:
        items.into(np.zeros((1, 300), "f4"))
    assert error.value.index == 0


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"data":',
        b'{"data":["',
        b"   ",
        b'{"data":[]}}',
        b'{"data":[],"error":1}',
        b'{"data":[],"error":null,"x":1}',
        b'{"data":[],}',
        b'{"error":null,"data":[]}',
        b'{"data":[],"error":nul}',
        b'{"data":[],"Error":null}',
    ],
)
def test_other_bodies_are_left_alone(body):
    assert _codec.scan(body) is None
    assert _codec.strings(body) is None


def test_every_truncation_is_left_alone():
    body = message([A, B])
    for n in range(len(body)):
        assert _codec.scan(body[:n]) is None
    assert _codec.scan(body) is not None


PIECES = [
    b'"',
    b"\\",
    b",",
    b"]",
    b"[",
    b"}",
    b"{",
    b":",
    b" ",
    b"\n",
    b"data",
    b"A",
    b"=",
    b"/",
    b"\x00",
    b"\xc3\xa9",
    b"\\u0041",
    b"null",
    b"1",
    A.encode(),
    f'"{A}"'.encode(),
    f',"{B}"'.encode(),
    b'"data"',
    b'"image"',
    b'"mask":',
    b',"error":null',
    b'"error"',
]


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([None, NAMES]))
def test_fast_and_slow_never_disagree(data, names):
    item = A if names is None else {"image": A, "mask": B}
    body = message([item] * data.draw(st.integers(1, 3)), indent=data.draw(st.sampled_from([None, 1])))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.sampled_from([0, 0, 1, 2, len(A)]))
        body = body[:at] + data.draw(st.sampled_from(PIECES)) + body[at + cut :]
    check_walk(body, names)


@settings(max_examples=400, deadline=None)
@given(st.binary(min_size=1, max_size=4), st.integers(0, 400), st.sampled_from(["f4", "|b1", "<M8[ns]", "<U2", "S3"]))
def test_a_damaged_text_is_what_numpy_makes_of_it_or_refused(damage, at, descr):
    text = _codec.encode_numpy(np.zeros(5, descr)).encode()
    at %= len(text)
    check_text((text[:at] + damage + text[at + len(damage) :]).decode("latin-1"))
    doc = npy(np.zeros(5, descr))
    at %= len(doc)
    check_text(b64(doc[:at] + damage + doc[at + len(damage) :]))


# -- what fits the rows


def test_another_dtype_or_shape_is_an_item_error_with_both():
    for make in (_codec.scan, lambda body: _codec.items_of(orjson.loads(body)["data"])):
        items = make(message([A, B]))
        for dtype, shape in (("f4", (2, 4)), ("f8", (2, 3)), ("i4", (2, 3)), ("f4", (2, 3, 1)), ("f4", (2,))):
            rows = np.zeros(shape, dtype)
            with pytest.raises(ItemError) as error:
                items.into(rows)
            assert error.value.index == 0
            assert f"expected {rows.dtype} {rows.shape[1:]}, got float32 (3,)" in str(error.value)


def test_mixed_signatures_name_the_first_that_does_not_fit():
    items = _codec.items_of([A, B, OTHER, A])
    with pytest.raises(ItemError, match="item 2: expected float32") as error:
        items.into(np.zeros((4, 3), "f4"))
    assert error.value.index == 2
    items.into(np.zeros((2, 3), "f4"), 0, 2)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(1, 2, 3),
        np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))[None],
        np.array([["ab"]], ">U2"),
        np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))[None],
    ],
    ids=["big-endian", "Fortran", "big-endian text", "both"],
)
def test_other_layouts_are_brought_into_order(array):
    texts_ = [_codec.encode_numpy(array[0])] * 3
    for items in (_codec.scan(message(texts_)), _codec.items_of(texts_), _codec.scan_npy(npy(array[0]) * 3)):
        rows = np.zeros((3, *array.shape[1:]), array.dtype.newbyteorder("="))
        items.into(rows)
        assert (rows == array).all()


def test_a_wrong_text_of_another_layout_is_named():
    text = _codec.encode_numpy(np.arange(6, dtype=">f4"))
    body = message([text, text[:-9] + "*" + text[-8:]])
    assert check_walk(body, None, "f4", (6,)) is True
    assert fast(body, None, "f4", (6,))[:2] == (BAD_ITEM, 1)


def test_bools_that_are_neither_are_refused(isa):
    good, bad = npy(np.zeros(200, bool)), npy(np.zeros(200, bool))[:-1] + b"\2"
    assert check_walk(message([b64(good), b64(bad)]), None, "?", (200,)) is True
    for items in (_codec.scan(message([b64(good), b64(bad)])), _codec.scan_npy(good + bad)):
        with pytest.raises(ItemError, match="0 or 1") as error:
            items.into(np.zeros((2, 200), bool))
        assert error.value.index == 1


GARBLED = {
    "text": ("<U2", np.array(["ab", "cd"]), b"\0\0\x11\0"),
    "surrogates": ("<U2", np.array(["ab", "cd"]), b"\0\xdc\0\0"),
    "big-endian text": (">U2", np.array(["ab", "cd"], ">U2"), b"\0\0\xdc\0"),
    "bools": ("?", np.zeros(4, bool), b"\2"),
    "int4": (ml_dtypes.int4, np.zeros(4, ml_dtypes.int4), b"\x10"),
    "float6": (ml_dtypes.float6_e3m2fn, np.zeros(4, ml_dtypes.float6_e3m2fn), b"\x40"),
}


@pytest.mark.parametrize("name", GARBLED)
def test_bits_that_a_dtype_has_not_are_refused_on_every_road(isa, name):
    dtype, array, end = GARBLED[name]
    good = base64.b64decode(_codec.encode_numpy(array))
    bad = good[: -len(end)] + end
    stacked = _codec.encode_npy([array, array])[: -len(end)] + end
    columns = bytearray(_codec.encode_npy([array, array]))
    columns[:192] = _codec.encode_npy([array, array])[:192].replace(b": False", b": True ")
    columns[-len(end) :] = end
    roads = [
        _codec.scan(message([b64(good), b64(bad)])),
        _codec.items_of([b64(good), b64(bad)]),
        _codec.scan_npy(good + bad),
        _codec.scan_npy(stacked, array.ndim),
        _codec.scan_npy(bytes(columns), array.ndim),
    ]
    for items in roads:
        for rows in (np.zeros((2, *array.shape), dtype), np.zeros((2, *array.shape), np.dtype(dtype).newbyteorder())):
            with pytest.raises(ItemError, match="got others") as error:
                items.into(rows)
            assert error.value.index == 1
    for read_one in (lambda: _codec.decode_numpy(b64(bad)), lambda: _codec.decode_npy(good + bad)):
        with pytest.raises(ItemError, match="got others"):
            read_one()


def test_a_document_in_fortran_order_that_does_not_fit_is_not_copied():
    body = npy(np.asfortranarray(np.zeros((1000, 1000))))
    tracemalloc.start()
    try:
        with pytest.raises(ItemError, match=r"item 0: expected float32 \(1000,\), got float64 \(1000,\)"):
            _codec.scan_npy(body, 1).into(np.zeros((1000, 1000), "f4"))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000, "the rows alone"
    finally:
        tracemalloc.stop()


def test_documents_are_admitted_before_they_are_decoded():
    told = []

    def admit(before, count):
        told.append((before, count))
        if before > 400:
            raise OverflowError

    doc, other = _codec.encode_npy([np.float32(1)]), _codec.encode_npy([np.float64(1)])
    assert len(_codec.decode_npy(doc * 5, admit)) == 5
    with pytest.raises(OverflowError):
        _codec.decode_npy(doc * 100_000, admit)
    with pytest.raises(OverflowError):
        _codec.scan_npy((doc + other) * 100_000, 0, admit)
    with pytest.raises(ItemError) as error:
        _codec.decode_npy(doc * 300 + b"x" + doc, admit)
    assert error.value.index == 300
    whole = [(0, 256), (256, 256), (512, 256)]
    assert told == [(0, 5), *whole, *whole, (0, 256), (256, 45)]


def test_values_that_hide_behind_a_quote_within_a_text_are_not_parsed(monkeypatch):
    text = _codec.encode_numpy(np.zeros(100_000, "f4"))
    hidden = f'{text[:300]}"],"x":[{"[],[[]],{}," * 12_000}0],"data":["'
    body = f'{{"data":["{text}","{hidden.ljust(len(text), "A")}"]}}'.encode()
    assert "x" in orjson.loads(body)
    items = _codec.scan(body)
    monkeypatch.setattr(orjson, "loads", None)
    with pytest.raises(ItemError, match="a quote within a text") as error:
        items.into(np.zeros((2, 100_000), "f4"))
    assert error.value.index == 1


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([[0.0] * 3], TypeError),
        (np.zeros((3, 3), "f4"), ValueError),
        (np.zeros((2, 3), "f4").T, ValueError),
        (np.zeros((2, 6), "f4")[:, ::2], ValueError),
        (np.array(1.0), ValueError),
        (np.broadcast_to(np.float32(1), (2, 3)), ValueError),
    ],
)
def test_rows_that_are_none_are_the_callers_error(rows, error):
    check_callers_error(rows, error)


def test_rows_that_are_read_only_are_the_callers_error():
    rows = np.zeros((2, 3), "f4")
    rows.flags.writeable = False
    check_callers_error(rows, ValueError)


def check_callers_error(rows, error):
    for items in (_codec.scan(message([A, B])), _codec.items_of([A, B])):
        with pytest.raises(error, match="expected") as caught:
            items.into(rows)
        assert not isinstance(caught.value, ItemError)


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 3), (2, 1), (3, None)])
def test_a_range_that_is_none_is_a_value_error(start, stop):
    with pytest.raises(ValueError, match="expected 0 <= start <= stop <= 2"):
        _codec.scan(message([A, B])).into(np.zeros((2, 3), "f4"), start, stop)


# -- nested lists of numbers


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        ([1, 2.5, -3], "f4", (3,)),
        (7, "i8", ()),
        ([[1, 2], [3, 4]], "u1", (2, 2)),
        ([True, False], "?", (2,)),
        ([], "f4", (0,)),
        ([1e300], "f8", (1,)),
        ([2**63], "u8", (1,)),
        ([-(2**63)], "i8", (1,)),
        ([1.5], "c8", (1,)),
        ([1.5, 2], "f2", (2,)),
        ([0.5, 3], ml_dtypes.bfloat16, (2,)),
        ([1, 2], ">i2", (2,)),
    ],
)
def test_numbers_go_into_rows(value, dtype, shape):
    items = _codec.items_of(orjson.loads(orjson.dumps([value, value])))
    rows = np.zeros((2, *shape), dtype)
    items.into(rows)
    expected = np.array([value, value], np.dtype(dtype))
    assert (rows == expected).all()


@pytest.mark.parametrize(
    ("items", "names", "has"),
    [
        ([[1.5]], None, True),
        ([7], None, True),
        ([0.5], None, True),
        ([[]], None, True),
        (["text", [1]], None, True),
        ([[1], "text"], None, True),
        (["text", "text"], None, False),
        ([np.zeros(3)], None, False),
        ([], None, False),
        ([{"a": "text", "b": [1]}], ("a", "b"), True),
        ([{"a": "text", "b": "text"}, {"a": 1, "b": "text"}], ("a", "b"), True),
        ([{"a": "text", "b": "text"}, None], ("a", "b"), False),
    ],
)
def test_items_say_whether_any_array_came_as_numbers(items, names, has):
    assert _codec.items_of(items, names).has_numbers is has


def test_arrays_as_text_or_documents_are_no_numbers():
    assert not _codec.scan(message(texts([np.zeros(3), np.zeros(3)]))).has_numbers
    assert not _codec.scan_npy(npy(np.zeros(3))).has_numbers


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "reason"),
    [
        ([256], "u1", (1,), "from 0 to 255.*got 256"),
        ([-1], "u1", (1,), "got -1"),
        ([2**31], "i4", (1,), "2147483648"),
        ([2**63], "i8", (1,), "9223372036854775808"),
        ([1e39], "f4", (1,), r"float32 holds, got 1e\+39"),
        ([70000], "f2", (1,), "float16 holds, got 70000"),
        ([1.5], "i4", (1,), "fractions"),
        ([1.0], "i4", (1,), "fractions"),
        ([True], "f4", (1,), "booleans"),
        ([1], "?", (1,), "integers"),
        (["1"], "f4", (1,), "text"),
        ([None], "f4", (1,), "other values"),
        ([1, 2], "f4", (3,), r"float32 \(3,\), got a list of 2 in place of a list of 3"),
        ([[1, 2]], "f4", (1,), "a list in place of a number"),
        ([[1], 2], "f4", (2, 1), "got 2 in place of a list of 1"),
        ([[1, 2], [2, 3, 4]], "f4", (2, 2), "got a list of 3 in place of a list of 2"),
        (5, "f4", (1,), "got 5 in place of a list of 1"),
        ([{}], "f4", (1,), "other"),
        ([2**64], "u8", (1,), "from 0 to 18446744073709551615.*got 18446744073709551616"),
        ([-(2**63) - 1], "f8", (1,), "-9223372036854775809"),
        ([1], "M8[s]", (1,), "datetime64"),
        ([1], "U3", (1,), "<U3"),
        ({}, "f4", (), "dict"),
        (None, "f4", (), "NoneType"),
        ([2**53, -(2**63) - 1.0], "i8", (2,), "fractions or integers beyond 64 bits"),
    ],
)
def test_numbers_that_do_not_fit_are_item_errors(value, dtype, shape, reason):
    items = _codec.items_of([np.zeros(shape, dtype), value])
    with pytest.raises(ItemError, match=reason) as error:
        items.into(np.zeros((2, *shape), dtype))
    assert error.value.index == 1


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-300, 300) | st.floats(width=32) | st.floats() | st.booleans()


@settings(max_examples=500, deadline=None)
@given(st.data(), st.sampled_from(["?", *"bBhHiIqQefdgFDG", ">i2", ">f4", "bfloat16", "float8_e5m2", "int4", "uint2"]))
def test_numbers_are_what_numpy_makes_of_each_or_refused(data, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    value = data.draw(NUMBERS)
    rows = np.zeros((1, 2, 1), dtype)
    try:
        _codec.items_of([[[False if name == "?" else 0], [value]]]).into(rows[:1].reshape(1, 2, 1))
    except ItemError:
        assert not fits(value, dtype)
        return
    assert fits(value, dtype)
    with np.errstate(all="ignore"):
        expected = np.array([value]).astype(dtype)
    assert rows[0, 0, 0] == 0
    assert rows[0, 1].tobytes() == expected.tobytes() or (dtype.char in "gG" and rows[0, 1] == expected)


def fits(value, dtype):
    spans = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
    if dtype.kind == "b" or type(value) is bool:
        return dtype.kind == "b" and type(value) is bool
    if dtype.kind in "iu":
        return type(value) is int and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if dtype.name in spans:
        return type(value) is int and spans[dtype.name][0] <= value <= spans[dtype.name][1]
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.array([value]).astype(dtype).astype("c16"))[0])


@pytest.mark.parametrize("dtype", ["u1", "f4", ">i4", ml_dtypes.bfloat16, ml_dtypes.int4], ids=str)
def test_of_many_numbers_the_first_wrong_one_is_named(dtype):
    count, rows = 70_000, np.zeros((70_000, 2), dtype)
    values = [[1, 2]] * count
    _codec.items_of(values).into(rows)
    assert (rows == np.array([1, 2], dtype)).all()
    values[66_000] = [1, 2.5e38 if dtype != "u1" else 256]
    values[66_001] = [1, 1e39]
    if np.dtype(dtype).itemsize == 4 or dtype is ml_dtypes.bfloat16:
        values[66_000], values[66_001] = values[66_001], "AAAA"
    with pytest.raises(ItemError) as error:
        _codec.items_of(values).into(rows)
    assert error.value.index == 66_000
    values[65_999] = None
    with pytest.raises(ItemError, match="NoneType") as error:
        _codec.items_of(values).into(rows)
    assert error.value.index == 65_999


def test_text_among_numbers_takes_no_more_memory_than_it_has():
    """NumPy's arrays of text have room for the longest in every place: here 4 GB."""
    items = _codec.items_of([["x" * 1_000_000, *[""] * 1000]])
    rows = np.zeros((1, 1001), "f4")
    tracemalloc.start()
    try:
        with pytest.raises(ItemError, match="got text"):
            items.into(rows)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_rows_of_a_document_in_fortran_order_take_no_object_each():
    data = np.asfortranarray(np.arange(200_000, dtype="u1").reshape(-1, 2))
    body = npy(data)
    tracemalloc.start()
    try:
        items = _codec.scan_npy(body, 1)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()
    rows = np.zeros_like(data, order="C")
    items.into(rows)
    assert (rows == data).all()


# -- raw documents


@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, 4096, 70_000, 600_000])
def test_documents_are_copied_whole_at_any_distance(size):
    data = rng.integers(0, 255, size, "u1")
    doc = npy(data)
    for ahead in (0, 1, 5, 31, 32, 100):
        body = b"".join((b" " * ahead, doc))
        assert _codec.decode_npy(memoryview(body)[ahead:])[0].tobytes() == data.tobytes()
        rows = np.zeros(size + 8192, "u1")
        at = (np.frombuffer(body, "u1").ctypes.data + ahead + len(doc) - size + 17 - rows.ctypes.data) % 4096
        _codec.scan_npy(memoryview(body)[ahead:]).into(rows[at : at + size].reshape(1, size))
        assert rows[at : at + size].tobytes() == data.tobytes()
        assert not rows[:at].any()
        assert not rows[at + size :].any()


def test_documents_go_into_rows(rows):
    docs = [_codec.encode_npy(row) if row.ndim else npy(row) for row in rows]
    for body in (b"".join(docs), memoryview(b"".join(docs))):
        items = _codec.scan_npy(body, rows.ndim - 1)
        assert len(items) == len(rows)
        assert rows_of(items, rows).tobytes() == rows.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_one_document_of_one_more_dimension_is_its_rows(order):
    data = rng.random((5, 2, 3))
    body = npy(np.array(data, order=order))
    items = _codec.scan_npy(body, 2)
    assert len(items) == 5
    rows = np.zeros_like(data)
    items.into(rows[:2], 3, 5)
    items.into(rows[2:], 0, 3)
    assert (rows == np.concatenate([data[3:], data[:3]])).all()
    assert len(_codec.scan_npy(body)) == len(_codec.scan_npy(body, 3)) == 1
    assert len(_codec.scan_npy(body * 2, 2)) == 2
    assert len(_codec.scan_npy(npy(np.zeros((0, 3))), 1)) == 0


def test_documents_that_differ_are_compared_with_the_rows():
    items = _codec.scan_npy(npy(np.zeros(3)) + npy(np.zeros(4)))
    assert len(items) == 2
    with pytest.raises(ItemError, match=r"item 1: expected float64 \(3,\), got float64 \(4,\)"):
        items.into(np.zeros((2, 3)))


def test_bad_documents_are_named():
    good = npy(np.zeros(3))
    bodies = [(b"", 0), (b"x", 0), (good[:-1], 0), (good + b"x", 1), (good + good[:-1], 1), (good * 2 + good[:60], 2)]
    for bad, index in bodies:
        with pytest.raises(ItemError) as error:
            _codec.scan_npy(bad)
        assert error.value.index == index


@pytest.mark.parametrize("fortran", [b"False", b"True"])
def test_a_header_may_not_claim_rows_of_nothing(fortran):
    header = b"{'descr': '<f4', 'fortran_order': %b, 'shape': (100, 0), }" % fortran
    with pytest.raises(ItemError, match="rows of at least one byte"):
        _codec.scan_npy(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header, 1)


# -- signatures


def test_headers_alone_drive_no_signature_out():
    """Only items that were decoded whole are remembered: observable by time alone, so counted here by what is kept."""
    _codec.decode_numpy(A)
    before = _codec._remembered()
    for i in range(100):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({i + 1000},), }}".encode()
        with pytest.raises(ItemError):
            _codec.decode_numpy(b64(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header))
    assert _codec._remembered() == before
    for i in range(100):
        _codec.decode_numpy(_codec.encode_numpy(np.zeros(i + 1, "u1")))
    assert len(_codec._remembered()) == 32
    assert _codec._remembered()[0] == (np.dtype("u1"), (100,))
    _codec.decode_numpy(_codec.encode_numpy(np.zeros(80, "u1")))
    assert _codec._remembered()[0] == (np.dtype("u1"), (80,))
    assert len(set(_codec._remembered())) == 32


# -- lists of strings


@pytest.mark.parametrize(
    "values",
    [[], [""], ["a"], ["", "b", "c d"], ["x" * n for n in range(200)], ["{}[]:,'", "\x7f"], ["y" * 100_000] * 3],
)
@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2}], ids=["json", "compact", "indented"])
def test_plain_strings_are_taken(isa, values, style):
    body = message(values, ensure_ascii=False, **style)
    assert _codec.strings(body) == values
    assert _codec.strings(memoryview(body)) == values
    assert check_strings(body)


@pytest.mark.parametrize("value", ["é", "\U0001f600", '"', "\\", "\n", "\0", "\x1f", 1, None, ["a"], {}, 1.5, True])
def test_other_elements_are_left_to_the_parser(isa, value):
    for ascii_ in (True, False):
        for values in ([value], ["a" * 70, value], [value, "b"]):
            assert _codec.strings(message(values, ensure_ascii=ascii_)) is None


PLAIN = {"a short text", "an empty text", "mixed signatures", "no header", "a quote too early", "a text too long"}


@pytest.mark.parametrize("name", sorted(SURPRISES.keys() - PLAIN))
def test_surprises_among_strings_are_left_to_the_parser(isa, name):
    assert _codec.strings(SURPRISES[name].encode("utf-8", "surrogateescape")) is None


@pytest.mark.parametrize("end", [b"\\", b"\n", b"\0", b"\x1f", b"\x80", b"\xff", b"\xc3\xa9", b""])
def test_a_string_ends_with_a_quote_only(isa, end):
    for rest in (b"]}", b',"b"]}', b" ]}"):
        assert _codec.strings(b'{"data":["a' + end + rest) is None
        assert _codec.strings(b'{"data":["' + b"a" * 64 + end + rest) is None


def test_every_truncated_list_is_left_alone(isa):
    body = message(["a" * 40, "b" * 70])
    for n in range(len(body)):
        assert _codec.strings(body[:n]) is None


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, b'{"data":[', b"]}", b'"abc"', b"a" * 33, b"b" * 64]), max_size=12))
def test_strings_are_what_parsers_find(parts):
    check_strings(b"".join(parts))
    check_strings(b'{"data":[' + b"".join(parts) + b"]}")


# -- rows into a body


def test_a_reply_holds_every_row(isa, rows):
    body = _codec.encode_rows(rows)
    assert body == orjson.dumps({"data": texts(rows), "error": None})
    for row, text in zip(rows, orjson.loads(body)["data"], strict=True):
        array = read(text)
        assert (array.dtype, array.shape) == (rows.dtype, rows.shape[1:])
        assert array.tobytes() == row.tobytes()


def test_any_layout_of_rows_is_encoded():
    data = rng.random((6, 4, 2))
    for rows in (data[::2], data[:, ::-1], np.asfortranarray(data), data.swapaxes(0, 1), data[:0], data.astype(">f4")):
        assert orjson.loads(_codec.encode_rows(rows)) == {"data": texts(np.ascontiguousarray(rows)), "error": None}
    assert _codec.encode_rows(np.zeros((0, 3))) == b'{"data":[],"error":null}'


def test_rows_that_cannot_be_encoded_are_refused():
    with pytest.raises(ValueError, match="zeroth dimension"):
        _codec.encode_rows(np.float32(1))
    with pytest.raises(TypeError, match="pickle"):
        _codec.encode_rows(np.array([None]))


# -- lifetime and threads


def test_items_hold_the_body():
    data = rng.random((3, 1000))
    body = bytearray(message(texts(data)))
    items = _codec.scan(memoryview(body))
    with pytest.raises(BufferError):
        body.clear()
    rows = np.zeros_like(data)
    items.into(rows)
    assert (rows == data).all()
    del items
    gc.collect()
    body.clear()


def test_a_body_that_was_changed_is_an_error():
    body = bytearray(message([A, B]))
    items = _codec.scan(body)
    body[body.index(B.encode()) + 260] = ord("*")
    with pytest.raises(ItemError) as error:
        items.into(np.zeros((2, 3), "f4"))
    assert error.value.index == 1


def ran_meanwhile(items, rows):
    """Whether another thread got to run during into(), though the interpreter itself never asks for a switch."""
    ran, go = [], threading.Lock()
    go.acquire()
    thread = threading.Thread(target=lambda: go.acquire() and ran.append(True))
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        go.release()  # which does not give the GIL away
        items.into(rows)
        return bool(ran)
    finally:
        sys.setswitchinterval(before)
        thread.join(10)


def test_the_gil_is_released_for_large_items_only():
    large, small = np.zeros((1, 1 << 22)), np.zeros((1, 1000))
    items = _codec.scan(message(texts(large)))
    assert any(ran_meanwhile(items, large) for _ in range(50))
    items = _codec.scan(message(texts(small)))
    assert not any(ran_meanwhile(items, small) for _ in range(50))


def test_nothing_leaks():
    body = message(texts(rng.random((20, 100))))
    bad = message([A, A[:-4] + "****"])
    rows = np.zeros((20, 100))

    def work():
        for _ in range(200):
            _codec.scan(body).into(rows)
            _codec.encode_rows(rows)
            _codec.decode_numpy(A)
            _codec.strings(b'{"data":["a"]}')
            with contextlib.suppress(ItemError):
                _codec.scan(bad).into(np.zeros((2, 3), "f4"))

    work()
    gc.collect()
    blocks = sys.getallocatedblocks()
    references = sys.getrefcount(np.dtype("f8"))
    work()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 100
    assert abs(sys.getrefcount(np.dtype("f8")) - references) < 10


def test_rows_in_bytes_are_not_read_without_a_signature():
    with pytest.raises(TypeError, match="signature"):
        _codec.blob_items(bytes(16), 0, 1, None)
