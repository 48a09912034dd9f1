"""What the codec must agree with: JSON by orjson, base64 by the standard library, .npy by NumPy."""

import base64
import io
import json

import numpy as np
import orjson

from virtex import ItemError, _codec

NOT_JSON, NOT_A_MESSAGE, BAD_ITEM = "not JSON", "not a message", "bad item"


def b64(data):
    return base64.b64encode(data).decode()


def npy(array, version=None):
    """The document as NumPy writes it."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array), version=version, allow_pickle=False)
    return out.getvalue()


def canonical(text):
    """The bytes of strict base64, or ValueError. The standard library lets stray bits of the last character pass."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical")
    return data


def read(text):
    """What NumPy makes of a text, which must hold one document and nothing after it."""
    source = io.BytesIO(canonical(text))
    array = np.lib.format.read_array(source, allow_pickle=False)
    if source.read(1):
        raise ValueError("something after the data")
    return array


def data_of(body):
    """The list under "data" as a server finds it with a JSON parser; or NOT_JSON, NOT_A_MESSAGE."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return NOT_JSON
    if not isinstance(message, dict) or not isinstance(message.get("data"), list):
        return NOT_A_MESSAGE
    return message["data"]


def outcome(items, dtype, shape):
    """Rows as bytes, or which error: comparable."""
    columns = [np.zeros((len(items), *shape), dtype) for _ in items.names or (None,)]
    try:
        items.into(columns if items.names else columns[0])
    except ItemError as error:
        return BAD_ITEM, error.index, error.reason, error.offset
    except orjson.JSONDecodeError:
        return NOT_JSON
    return [column.tobytes() for column in columns]


def slow(body, names, dtype, shape):
    values = data_of(body)
    return values if isinstance(values, str) else outcome(_codec.items_of(values, names), dtype, shape)


def fast(body, names, dtype, shape):
    items = _codec.scan(body, names)
    return slow(body, names, dtype, shape) if items is None else outcome(items, dtype, shape)


def check_walk(body, names=None, dtype="f4", shape=(3,)):
    """Whether scan() took the body; and that it means what orjson and the slow path make of it."""
    assert fast(body, names, dtype, shape) == slow(body, names, dtype, shape)
    return _codec.scan(body, names) is not None


def check_strings(body):
    """Whether strings() took the body; and that orjson and the standard library find the same."""
    found = _codec.strings(body)
    if found is not None:
        for parsed in (orjson.loads(body), json.loads(bytes(body))):
            assert parsed in ({"data": found}, {"data": found, "error": None})
    return found is not None


def check_text(text):
    """Whether decode_numpy took a text; and that NumPy finds the same array in it. Returns None if it was refused."""
    try:
        array = _codec.decode_numpy(text)
    except ItemError:
        return None
    expected = read(text)
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.dtype.names or array.tobytes() == expected.tobytes()
    return array
