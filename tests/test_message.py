import math
from enum import Enum

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.names import shown

from virtex import HttpMessage
from virtex.errors import HandlerError, RequestError
from virtex.message import decode_message, encode_data


def test_a_message_is_a_dict_of_data_and_error():
    message = HttpMessage(data=[1], id="a")
    assert message == {"data": [1], "error": None, "id": "a"}
    assert HttpMessage() == {"data": [], "error": None}
    assert HttpMessage(error="no").error == "no"
    assert orjson.loads(message.json) == message


def test_encode_and_decode_change_the_elements_in_place_and_return_none():
    message = HttpMessage(data=[1, 2])
    assert message.encode(lambda x, by: x * by, by=3) is None
    assert message.data == [3, 6]
    assert message.decode(str) is None
    assert message.data == ["3", "6"]


def test_validate_says_whether_the_message_can_be_sent():
    assert HttpMessage(data=[1, "a", None, np.float32(2)]).validate()
    assert not HttpMessage(data=[object()]).validate()
    assert not HttpMessage(data=[math.nan]).validate()
    with pytest.raises(TypeError, match="nan is no JSON number"):
        _ = HttpMessage(data=[[math.nan]]).json


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.lists(json_values, max_size=5))
def test_every_json_value_survives_both_ways(items):
    assert decode_message(b'{"data":' + encode_data(items) + b"}") == items


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b'{"data":[NaN]}', "expected JSON"),
        (b'{"data":[1]}x', "expected JSON"),
        (b'\xef\xbb\xbf{"data":[1]}', "expected JSON"),
        (b'{"data":["\xff"]}', "expected JSON"),
        (b'{"data":[' + b"[" * 2000 + b"]" * 2000 + b"]}", "expected JSON"),
        (b"[1]", 'expected an object {"data": \\[...\\]}, got a list'),
        (b'"data"', "got a string"),
        (b"null", "got null"),
        (b"3", "got a number"),
        (b"{}", 'got one without "data"'),
        (b'{"data":null}', 'expected a list in "data", got null'),
        (b'{"data":{"a":1}}', 'expected a list in "data", got an object'),
        (b'{"data":"abc"}', 'expected a list in "data", got a string'),
        (b'{"data":true}', 'expected a list in "data", got a boolean'),
        (b'{"data":[18446744073709551616]}', "byte 9 does not fit 64 bits"),
        (b'{"data":[-9223372036854775809]}', "does not fit 64 bits"),
        (b'{"data":["1", 99999999999999999999]}', "byte 14 does not fit 64 bits"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_is_no_message_is_a_400_that_says_what_was_expected(body, says):
    with pytest.raises(RequestError, match=says) as error:
        decode_message(body)
    assert error.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[18446744073709551615]}',
        b'{"data":[-9223372036854775808]}',
        b'{"data":["99999999999999999999"]}',
        b'{"data":["\\"99999999999999999999"]}',
        b'{"data":[1.8446744073709551616]}',
        b'{"data":[18446744073709551616.0]}',
        b'{"data":[1e99, 0.00000000000000000000001]}',
        b'{"99999999999999999999": 1, "data":[]}',
        b'{"data":[1],"id":18446744073709551616}',
        b'{"data":[1],"data":[2],"more":{"data":3}}',
    ],
    ids=repr,
)
def test_long_digits_that_are_no_integer_beyond_64_bits_are_taken(body):
    assert decode_message(body) == orjson.loads(body)["data"]


@given(st.lists(json_values, max_size=5), st.integers())
def test_integers_are_refused_exactly_where_orjson_would_make_them_floats(items, number):
    body = b'{"data":[' + orjson.dumps(items) + b", %d ]}" % number
    if -(2**63) <= number < 2**64:
        assert decode_message(body) == [items, number]
    else:
        with pytest.raises(RequestError, match=f"byte {body.rindex(b', ') + 2} "):
            decode_message(body)


def test_numpy_values_are_numbers_and_nested_lists():
    rows = [np.float32(0.5), np.int64(3), np.bool_(True), np.arange(4, dtype="<f8").reshape(2, 2), np.str_("a")]
    assert orjson.loads(encode_data(rows)) == [0.5, 3, True, [[0, 1], [2, 3]], "a"]


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3).T, np.arange(3, dtype=">i4"), np.arange(8)[::3]], ids=repr
)
def test_arrays_that_orjson_does_not_take_as_they_are_become_lists_all_the_same(array):
    assert orjson.loads(encode_data([array])) == [array.tolist()]


@pytest.mark.parametrize(
    "row",
    [
        math.nan,
        math.inf,
        np.float32("nan"),
        [1, [2, -math.inf]],
        {"a": {"b": math.nan}},
        np.array([1, np.nan]),
        (math.nan,),
        np.array([None, math.nan]),
        np.array([(1, math.nan)], "i4,f4"),
        np.array([(1, math.nan)], "i4,f4")[0],
        np.array([math.nan], ml_dtypes.bfloat16),
        ml_dtypes.bfloat16(math.inf),
        Enum("Odd", {"nan": math.nan}).nan,
    ],
    ids=repr,
)
def test_a_float_that_is_not_finite_names_its_item(row):
    with pytest.raises(HandlerError, match="item 1: process_response gave a .* -?(nan|inf) is no JSON number"):
        encode_data([None, row, "null"])


UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("text", ["2021-03-04T05:06:07.123456789", "1960-02-29T23:59:59", "1970-01-01"])
def test_datetimes_are_the_text_that_orjson_writes(unit, text):
    moment = np.datetime64(text).astype(f"M8[{unit}]")
    expected = orjson.dumps(moment.astype("M8[us]"), option=orjson.OPT_SERIALIZE_NUMPY)
    array = np.array([[moment], [np.datetime64("NaT")]], f"M8[{unit}]")
    assert encode_data([moment]) == b"[%b]" % expected
    assert encode_data([{"at": [moment, array]}]) == b'[{"at":[%b,[[%b],[null]]]}]' % (expected, expected)
    assert encode_data([array.astype(array.dtype.newbyteorder())]) == b"[[[%b],[null]]]" % expected
    assert HttpMessage(data=[(moment, 0.5)]).json == b'{"data":[[%b,0.5]],"error":null}' % expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.datetime64(5, "25s"), '"1970-01-01T00:02:05"'),
        (np.datetime64(2, "7D"), '"1970-01-15T00:00:00"'),
        (np.array([1, 2], "M8[2M]"), '["1970-03-01T00:00:00","1970-05-01T00:00:00"]'),
        (np.datetime64(1_500_000, "ps"), '"1970-01-01T00:00:00.000001"'),
        (np.datetime64("NaT", "as"), "null"),
        (np.array([-1], "M8[fs]"), '["1969-12-31T23:59:59.999999"]'),
        (np.datetime64("0001-01-01", "s"), '"0001-01-01T00:00:00"'),
        (np.datetime64("9999-12-31", "D"), '"9999-12-31T00:00:00"'),
        (np.datetime64("NaT"), "null"),
        (np.datetime64("NaT", "ns"), "null"),
        (np.array([np.datetime64(5, "25s"), 1.5], object), '["1970-01-01T00:02:05",1.5]'),
        (Enum("Odd", {"moment": np.datetime64(5, "25s")}).moment, '"1970-01-01T00:02:05"'),
        (np.timedelta64(3, "2h"), '"PT6H"'),
        (np.timedelta64(-3, "W"), '"-P3W"'),
        (np.timedelta64(1, "Y"), '"P1Y"'),
        (np.timedelta64(90, "s"), '"PT90S"'),
        (np.timedelta64(1500, "ms"), '"PT1.5S"'),
        (np.timedelta64(-(2**63) + 1, "as"), '"-PT9.223372036854775807S"'),
        (np.timedelta64("NaT", "s"), "null"),
        (np.array([[1], [0]], "m8[us]"), '[["PT0.000001S"],["PT0S"]]'),
    ],
    ids=str,
)
def test_datetimes_and_timedeltas_are_iso_8601_texts(value, text):
    for row in (value, {"a": [value]}, (value,)):
        expected = text if row is value else f'{{"a":[{text}]}}' if isinstance(row, dict) else f"[{text}]"
        assert encode_data([row]).decode() == f"[{expected}]"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.datetime64(10**12, "D"), "before the year 1 or after 9999"),
        (np.datetime64("0000-12-31"), "before the year 1 or after 9999"),
        (np.datetime64(2**62, "7Y"), "before the year 1 or after 9999"),
        (np.datetime64(2**62, "25s"), "before the year 1 or after 9999"),
        (np.timedelta64(5), "without a unit"),
        (np.array([5]).view("M8"), "without a unit"),
        (np.longdouble(1.5), r"(longdouble|float128) has no JSON form: convert it"),
        (np.array([1], "G"), "has no JSON form: convert it"),
        (np.ma.masked, "a masked value has no JSON form: fill it first"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), "a masked value has no JSON form: fill it first"),
    ],
)
def test_what_has_no_json_form_says_what_would_have(value, says):
    for row in (value, [value], {"a": value}):
        with pytest.raises(HandlerError, match=rf"item 1: process_response gave a .* can't be sent: .*{says}"):
            encode_data([1, row])


def test_a_masked_array_without_masked_values_is_sent():
    assert encode_data([np.ma.array([1, 2])]) == b"[[1,2]]"


def test_lists_too_deep_to_write_are_an_error():
    row = []
    row.append(row)
    with pytest.raises(HandlerError, match="item 0: process_response gave a list"):
        encode_data([row])


def test_null_and_none_are_no_floats():
    assert encode_data([None, "null", {"a": None}, [None]]) == b'[null,"null",{"a":null},[null]]'


@pytest.mark.parametrize("row", [object(), b"bytes", 1j, {1: 2}, {"a": {3}}, 2**64, np.array([1j])], ids=shown)
def test_what_json_can_not_carry_names_its_item_and_type(row):
    with pytest.raises(HandlerError, match=f"item 2: process_response gave a {type(row).__name__} that can't be sent"):
        encode_data([1, 2, row])
