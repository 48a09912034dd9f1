"""Numbers of JSON, straight into rows: against orjson and NumPy, bit for bit, and the same refusals on both roads."""

import json
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import decimals
from kit.oracle import BAD_ITEM, NOT_JSON, check_walk, fast, slow

from virtex import ItemError, _codec, codec_info
from virtex.errors import RequestError
from virtex.serial import decode_json, encode_json

FLOATS = ["f2", "f4", "f8", ">f4", "bfloat16", "float8_e5m2", "c8", "g"]
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", "int4"]


@pytest.fixture(params=codec_info()["available"])
def isa(request):
    before = codec_info()["isa"]
    _codec._use_isa(request.param)
    yield request.param
    _codec._use_isa(before)


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def body_of(items):
    return b'{"data":[' + ",".join(items).encode() + b"]}"


def read(items, dtype, shape=()):
    found = _codec.scan(body_of(items))
    assert found.has_numbers
    rows = np.empty((len(found), *shape), dtype)
    found.into(rows)
    return rows


# -- values


def test_the_table_of_powers_is_what_its_script_writes():
    root = Path(__file__).parent
    made = subprocess.run(
        [sys.executable, root / "csrc" / "make_powers.py"], capture_output=True, text=True, check=True
    )
    assert made.stdout == (root.parent / "virtex" / "csrc" / "powers.h").read_text()


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
def test_hard_decimals_are_what_orjson_and_numpy_make_of_them(dtype):
    rng = random.Random(7)
    texts = [*decimals.KNOWN, *decimals.halfways(rng, 300), *decimals.any_of(rng, 3000)]
    for text in texts:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            assert "infinity" in str(error)
            assert fast(body_of([text]), None, dtype, ()) == NOT_JSON
            continue
        with np.errstate(over="ignore"):
            expected = np.asarray([value], dtype)
        if not np.isfinite(expected).all():
            assert fast(body_of([text]), None, dtype, ())[0] == BAD_ITEM, text
        else:
            assert read([text], dtype).tobytes() == expected.tobytes(), text


def test_half_way_between_doubles_is_decided_by_exact_arithmetic():
    rng = random.Random(8)
    for _ in range(500):
        bits = rng.getrandbits(63) % (0x7FE << 52)
        low, high = decimals.float_of(bits), decimals.float_of(bits + 1)
        digits, _, power = decimals.digits_of((low + high) / 2).partition("e")
        even = bits + bits % 2
        for text, nearest in (
            (f"{digits}e{power}", even),
            (f"{digits}{'0' * 900}1e{int(power) - 901}", bits + 1),
            (f"{int(digits) - 1}{'9' * 900}e{int(power) - 900}", bits),
        ):
            assert read([text], "f8").tobytes() == struct.pack("<Q", nearest)


def test_a_float32_is_rounded_twice_as_numpy_rounds_it():
    text = str(2**60 + 2**36 + 1)  # just above half way between two of them; as a double, half way
    assert read([text, text + ".0"], "f4").tolist() == [2.0**60] * 2 == np.asarray([int(text)] * 2, "f4").tolist()
    assert slow(body_of([text]), None, "f4", ()) == fast(body_of([text]), None, "f4", ())


@pytest.mark.parametrize(("text", "sign"), [("-0", False), ("-0.0", True), ("-0e0", True), ("0", False)])
@pytest.mark.parametrize("dtype", FLOATS[:5])
def test_minus_nothing_is_an_integer_unless_it_has_a_point_or_an_exponent(text, sign, dtype):
    assert np.signbit(read([text], dtype_of(dtype)).astype("f8")[0]) == sign


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-300, 300) | st.floats(width=32) | st.floats() | st.booleans()
TEXTS = NUMBERS.map(lambda value: json.dumps(value, allow_nan=True)) | st.sampled_from(
    [*decimals.KNOWN, *decimals.NO_NUMBERS, "null", "[]", "[1]", "{}"]
)
SPACE = st.text(" \n\r\t", max_size=2)


@settings(max_examples=500, deadline=None)  # tests/fuzz/run has more
@given(st.data(), st.sampled_from(["?", *FLOATS, *INTEGERS]))
def test_both_roads_agree_whatever_comes(data, name):
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 2), (0,), (2, 0), (1, 2, 1)]))

    def nested(depth):
        if depth == len(shape):
            return data.draw(SPACE) + data.draw(TEXTS) + data.draw(SPACE)
        length = shape[depth] + data.draw(st.sampled_from([0] * 30 + [-1, 1]))
        return f"[{','.join([nested(depth + 1) for _ in range(length)]) or data.draw(SPACE)}]{data.draw(SPACE)}"

    body = body_of([nested(0) for _ in range(data.draw(st.integers(1, 3)))])
    check_walk(body, None, dtype_of(name), shape)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1))
def test_any_floats_are_what_json_dumps_wrote(values):
    for separators in ((",", ":"), (", ", ": ")):
        items = [json.dumps(value, separators=separators) for value in values]
        assert read(items, "f8", (3,)).tobytes() == np.array(values).tobytes()


def test_every_integer_of_a_byte_and_its_neighbours(isa):
    for dtype in ("i1", "u1"):
        for number in range(-300, 301):
            limits = np.iinfo(dtype)
            assert (fast(body_of([str(number)]), None, dtype, ())[0] != BAD_ITEM) == (
                limits.min <= number <= limits.max
            )


# -- what is no number


@pytest.mark.parametrize("text", decimals.NO_NUMBERS, ids=ascii)
@pytest.mark.parametrize("dtype", ["f4", "i8", "?"])
def test_what_is_no_number_of_json_is_refused_as_the_parser_refuses_it(text, dtype):
    for items in ([text], ["1", text], [text, "1"], [f"[{text}]"], [f"[1,{text},1]"]):
        shape = (3,) if "1," in items[0] else (1,) if items[0][:1] == "[" else ()
        check_walk(body_of(items), None, dtype, shape)


@pytest.mark.parametrize("dtype", ["f4", "u1", "?", "bfloat16"])
def test_a_body_cut_anywhere_is_no_body(isa, dtype):
    number = "true" if dtype == "?" else "12"
    body = f' {{ "data" : [ [ [{number}, {number}] , [{number},{number} ] ] ] , "error" : null }} '.encode()
    for n in range(len(body)):
        assert fast(body[:n], None, dtype_of(dtype), (2, 2)) == slow(body[:n], None, dtype_of(dtype), (2, 2))
    assert len(fast(body, None, dtype_of(dtype), (2, 2))) == 1


@pytest.mark.parametrize(
    ("item", "dtype", "shape", "reason"),
    [
        ("[[1,2],[3]]", "f4", (2, 2), r"got a list of 1 in place of a list of 2 at \[1\]$"),
        ("[[1,2]]", "f4", (2, 2), r"got a list of 1 in place of a list of 2$"),
        ("[[1,2],3]", "f4", (2, 2), r"got 3 in place of a list of 2 at \[1\]$"),
        ("[1,[2]]", "f4", (2,), r"a list in place of a number at \[1\]$"),
        ('[[1,2],[3,"4"]]', "f4", (2, 2), r"got text at \[1\]\[1\]$"),
        ("[1,null]", "f4", (2,), r"other values at \[1\]$"),
        ("[1,true]", "f4", (2,), r"booleans at \[1\]$"),
        ("[1,1.0]", "i4", (2,), r"fractions or integers beyond 64 bits at \[1\]$"),
        ("[1,256]", "u1", (2,), r"from 0 to 255 \(uint8\), got 256 at \[1\]$"),
        ("[[0],[1e39]]", "f4", (2, 1), r"float32 holds, got 1e\+39 at \[1\]\[0\]$"),
        ("[[0],[65520]]", "f2", (2, 1), r"float16 holds, got 65520 at \[1\]\[0\]$"),
        ("[[0],[1e39]]", "bfloat16", (2, 1), r"bfloat16 holds, got 1e\+39 at \[1\]\[0\]$"),
        ("[[0],[8]]", "int4", (2, 1), r"int4 holds, got 8 at \[1\]\[0\]$"),
        ("1.5", "i4", (), r"fractions or integers beyond 64 bits$"),
    ],
)
def test_an_error_says_where_within_its_item_it_is(item, dtype, shape, reason):
    good = json.dumps(np.zeros(shape, "i4").tolist())
    with pytest.raises(ItemError, match=reason) as error:
        body = body_of([good, good, item])
        (_codec.scan(body) or _codec.items_of(orjson.loads(body)["data"])).into(np.zeros((3, *shape), dtype_of(dtype)))
    assert error.value.index == 2


class Account:
    def __init__(self, error=None):
        self.error = error
        self.asked = []

    def parse(self, body):
        self.asked.append(bytes(body))
        if self.error:
            raise self.error
        return orjson.loads(body)["data"]


def test_a_parser_is_asked_once_and_only_for_numbers_that_are_not_taken():
    account = Account()
    body = body_of(["[1]", "[2]", "[3]"])
    items = _codec.scan(body, None, account)
    items.into(np.zeros((3, 1), "f4"))
    assert not account.asked
    rows = np.zeros((3, 1), "c16")  # a dtype of the parser's road
    for _ in range(2):
        items.into(rows)
    assert account.asked == [body] and rows[:, 0].tolist() == [1, 2, 3]


def test_what_the_parser_raises_is_raised():
    items = _codec.scan(body_of(["[1]", "[1e999]"]), None, Account(RequestError(400, "expected JSON")))
    with pytest.raises(RequestError, match="expected JSON"):
        items.into(np.zeros((2, 1), "f4"))


# -- items


@pytest.mark.parametrize("shape", [(), (2,), (2, 1)])
def test_items_go_into_rows_in_any_parts(isa, shape):
    values = np.arange(40 * int(np.prod(shape)), dtype="f4").reshape(40, *shape)
    items = _codec.scan(body_of([json.dumps(row) for row in values.tolist()]))
    assert len(items) == 40
    for start, stop in ((0, 7), (7, 8), (8, 8), (8, 40), (0, 40), (39, 40), (3, 5), (20, 21)):
        rows = np.zeros((stop - start, *shape), "f4")
        items.into(rows, start, stop)
        assert (rows == values[start:stop]).all()


def test_long_lists_are_counted_with_every_instruction_set(isa):
    rng = random.Random(3)
    for _ in range(200):
        shape = tuple([rng.randint(1, 5) for _ in range(rng.randint(1, 4))])
        values = np.random.default_rng(1).integers(-9, 10 ** rng.randint(1, 9), (rng.randint(1, 9), *shape))
        indent = rng.choice([None, 1, 7])
        items = [json.dumps(row, indent=indent) for row in values.tolist()]
        assert (read(items, "i8", shape) == values).all()


def test_named_members_may_be_numbers_and_text_side_by_side(isa):
    images, scales = np.random.default_rng(0).random((20, 2, 3), "f4"), np.arange(20.0)
    items = [
        {"scale": float(scale), "image": _codec.encode_numpy(image), "flag": [bool(scale > 3)]}
        for image, scale in zip(images, scales, strict=True)
    ]
    found = _codec.scan(json.dumps({"data": items}).encode(), ["image", "scale", "flag"])
    rows = [np.empty((20, 2, 3), "f4"), np.empty(20), np.empty((20, 1), "?")]
    found.into(rows)
    assert found.has_numbers
    assert (rows[0] == images).all() and (rows[1] == scales).all() and (rows[2][:, 0] == (scales > 3)).all()
    parts = [np.empty_like(row[5:9]) for row in rows]
    found.into(parts, 5, 9)
    assert all((part == row[5:9]).all() for part, row in zip(parts, rows, strict=True))


TEXT = json.dumps(_codec.encode_numpy(np.float32([1, 2])))
MEMBERS = [
    "[1,2]",
    "[1.5,-2]",
    "[1]",
    "3",
    "[1,2,3]",
    "[1,x]",
    "[1,null]",
    '["a",2]',
    TEXT,
    TEXT[:-5] + '"',
    "{}",
    "[[1,2]]",
    "",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MEMBERS), st.sampled_from(MEMBERS), st.booleans()), min_size=1, max_size=4))
def test_both_roads_agree_on_named_members(members):
    items = [f'{{"a":{a},"b" : {b} }}' if first else f'{{"b":{b},"a":{a}}}' for a, b, first in members]
    check_walk(body_of(items), ("a", "b"), "f4", (2,))


def test_bytes_beside_the_body_are_not_read_as_numbers():
    whole = b'{"data":[12345]}6789'
    items = _codec.scan(memoryview(whole)[:16])
    rows = np.zeros(1, "i8")
    items.into(rows)
    assert rows[0] == 12345
    assert _codec.scan(memoryview(whole)[:14]) is None


def test_a_body_that_changes_is_an_error_and_no_crash():
    body = bytearray(body_of(["[1,2]", "[3,4]"]))
    items = _codec.scan(body)
    body[:] = body.replace(b"]]}", b"777").replace(b"[1", b"11")
    with pytest.raises((ItemError, orjson.JSONDecodeError)):
        items.into(np.zeros((2, 2), "f4"))
    body[:] = body_of(["[1]"]).ljust(len(body))
    with pytest.raises(ItemError, match="a body that has changed"):
        items.into(np.zeros((2, 2), "f4"))


def test_more_numbers_than_are_converted_at_once():
    values = np.arange(70_000 * 2) % 256
    items = [f"[{a},{b}]" for a, b in values.reshape(-1, 2).tolist()]
    rows = read(items, ml_dtypes.bfloat16, (2,))
    assert (rows == values.reshape(-1, 2).astype(ml_dtypes.bfloat16)).all()
    items[69_000] = "[1e39,1]"
    with pytest.raises(ItemError, match=re.escape("got 1e+39 at [0]")) as error:
        read(items, ml_dtypes.bfloat16, (2,))
    assert error.value.index == 69_000


# -- alone


@pytest.mark.parametrize(
    "array",
    [
        np.float32([[0.1, 1e-7, 3.4e38], [-0.0, 16777216, 1.5]]),
        np.float64([0.1, 5e-324, 1.7976931348623157e308, 1e22]),
        np.float16([0.1, 65504, 6e-8]),
        np.array(2.5),
        np.array([True, False]),
        np.array([[-(2**63)], [2**63 - 1]]),
        np.uint64([2**64 - 1]),
        np.zeros((2, 0, 3), "f4"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">i4")[::2],
        np.array([0.1, 3e38], ml_dtypes.bfloat16),
        np.array([-8, 7], ml_dtypes.int4),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_comes_back_from_json(array):
    text = encode_json(array)
    for form in (text, text.encode(), bytearray(text.encode()), f" {text}\n"):
        back = decode_json(form, array.dtype, array.shape)
        assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


def test_a_dtype_may_be_a_name():
    assert decode_json("[1,2]", "bfloat16", (2,)).dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1,2", "^expected JSON: "),
        ("1,2", "^expected JSON: "),
        ("[1],[2]", "^expected JSON: "),
        ("", "^expected JSON: "),
        ('[1]],"data":[[1]', "^expected JSON: "),
        ('[1]],"error":null}', "^expected JSON: "),
        ("[1]]}", "^expected JSON: "),
        ("\ud800", "^expected JSON: "),
        (f"[{2**64}]", r"^expected integers of at most 64 bits \(at offset 1\)$"),
        (json.dumps(_codec.encode_numpy(np.float32([1]))), "nested lists of numbers; got str$"),
        ("null", "nested lists of numbers; got NoneType$"),
        ("[1,2]", r"^expected float32 \(1,\), got a list of 2 in place of a list of 1$"),
        ('["1"]', r"got text at \[0\]$"),
        ("[1e39]", r"got 1e\+39 at \[0\]$"),
    ],
)
def test_what_is_no_array_of_that_shape_is_an_item_error(text, says):
    with pytest.raises(ItemError, match=says) as error:
        decode_json(text, "f4", (1,))
    assert error.value.index is None


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.longdouble([1]), np.array([None])], ids=str)
def test_what_is_no_number_is_a_type_error(array):
    with pytest.raises(TypeError, match="expected an array of bool, integers or floats"):
        encode_json(array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f8", ml_dtypes.bfloat16])
def test_a_float_that_is_not_finite_is_a_type_error(value, dtype):
    with pytest.raises(TypeError, match=f"{value} is no JSON number"):
        encode_json(np.array([1, value], dtype))
