import math
from enum import Enum

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_null_and_none_are_no_floats():
    assert encode_data([None, "null", {"a": None}, [None]]) == b'[null,"null",{"a":null},[null]]'


@pytest.mark.parametrize("row", [object(), b"bytes", 1j, {1: 2}, {"a": {3}}, 2**64, np.array([1j])], ids=repr)
def test_what_json_can_not_carry_names_its_item_and_type(row):
    with pytest.raises(HandlerError, match=f"item 2: process_response gave a {type(row).__name__} that can't be sent"):
        encode_data([1, 2, row])
