"""Random documents, structured and dated ones among them, and what handlers do with the arrays that are accepted.

python tests/fuzz/fuzz_arrays.py [seconds] [seed] [rounds]    says how many rounds there were

A failure, a crash too, leaves in build/fuzz/arrays-round which seed and round it was. What is found is a crash, a
report of AddressSanitizer (tests/fuzz/run preloads it), an exception that is not documented, an answer that is no JSON,
or more memory than was charged.
"""

import json
import os
import random
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit import oracle

from virtex import ItemError, _codec
from virtex.errors import HandlerError
from virtex.message import HttpMessage, encode_data
from virtex.service.exchange import VALUE_BYTES

NOTE = Path(__file__).parents[2] / "build/fuzz/arrays-round"
UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "x", ""]
NAMES = ["bfloat16", "float8_e5m2", "float4_e2m1fn", "float6_e3m2fn", "int4", "uint2", "float32", "object", "float9"]
SIZES = [0, 1, 2, 3, 4, 7, 8, 16, 255, 4096, 2**27, 536870911, 2**29 - 1, 2**31 - 1, 2**32, 2**63]
SIMPLE = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "f16", "c8", "c16", "c32", "O"]


def simple(rng):
    """A dtype in a string, mostly one that NumPy knows."""
    order = rng.choice("<<<<>|=") if rng.random() < 0.98 else ""
    kind = rng.random()
    if kind < 0.4:
        code = rng.choice(SIMPLE)
        return ("|" if code in ("b1", "i1", "u1") else order) + code
    if kind < 0.7:
        step = rng.choice(["", "", "", "1", "2", "7", "25", str(2**31 - 1), str(2**31)])
        unit = rng.choice(UNITS)
        return f"{order}{rng.choice('mM')}8" + (f"[{step}{unit}]" if unit else "")
    if kind < 0.9:
        code = rng.choice("SUUUV")
        return (
            "|" if code == "S" else order
        ) + f"{code}{rng.choice(SIZES) if rng.random() < 0.3 else rng.randint(1, 5)}"
    return rng.choice(NAMES)


def fields(rng, depth=0):
    """A structured dtype, whose sizes may add up to more than an int holds."""
    big = rng.choice(SIZES)
    found = []
    for i in range(rng.randint(0, 10)):
        descr = repr(rng.choice([f"|V{big}", f"|S{big}", simple(rng)]))
        if depth < 3 and rng.random() < 0.1:
            descr = fields(rng, depth + 1)
        shape = f", {dimensions(rng)}" if rng.random() < 0.2 else ""
        found.append(f"('f{i if rng.random() < 0.95 else 0}', {descr}{shape})")
    return "[" + ", ".join(found) + "]"


def dimensions(rng):
    kind = rng.random()
    if kind < 0.7:
        shape = [rng.randint(0, 4) for _ in range(rng.randint(0, 4))]
    elif kind < 0.9:
        shape = [rng.choice([1, 1, 1, 0, 2, 100]) for _ in range(rng.randint(0, 40))]
    else:
        shape = [rng.choice([*SIZES, 2**20]) for _ in range(rng.randint(1, 4))]
    return "(" + "".join(f"{n}, " for n in shape).removesuffix(" " if len(shape) == 1 else ", ") + ")"


def document(rng):
    """A document, and the base64 of it."""
    descr = fields(rng) if rng.random() < 0.15 else repr(simple(rng))
    shape = dimensions(rng)
    order = rng.choice(["False", "False", "True"])
    head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    size = rng.randint(0, 300)
    if rng.random() < 0.9:  # of the right size, whether the codec takes such a dtype or not
        try:
            dtype = np.dtype(eval(descr))
            size = min(abs(dtype.itemsize) * int(np.prod(eval(shape), dtype=object)), 5000)
        except Exception:  # the codec has its own opinion
            size = 8
    data = rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size, b"a\0\0\0" * (size // 4) + b"\1" * (size % 4)])
    return b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + data


NUMPYS = (TypeError, ValueError, OverflowError, np.exceptions.DTypePromotionError, MemoryError)


def numpy(f, *args):
    """What NumPy makes of it, which may be an error, but nothing worse."""
    try:
        return f(*args)
    except NUMPYS:
        return None


def use(array):
    """What handlers do with an array."""
    assert array.dtype.names is None and array.dtype.subdtype is None and array.flags.owndata is False
    assert array.dtype.kind != "V" or array.dtype.type.__module__ == "ml_dtypes"
    assert array.dtype.kind not in "mM" or np.datetime_data(array.dtype)[1] == 1
    again = _codec.decode_numpy(_codec.encode_numpy(array))
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())
    stacked = numpy(_codec.encode_npy, [array, array])  # of too many dimensions or rows of nothing, perhaps
    assert stacked is None or _codec.decode_npy(stacked)[0].tobytes() == 2 * array.tobytes()
    numpy(np.stack, [array, array])
    numpy(np.sort, array.reshape(-1))
    numpy(np.concatenate, [array.reshape(-1), array.reshape(-1)[::-1]])
    numpy(lambda: (array == array.copy(), array < array, array.max(), array.sum(), str(array), repr(array)))
    for dtype in ("f8", "f4", "i8", "O", "U", "S", "?", "c16", "M8[us]", "M8[Y]", "m8[ns]", array.dtype.newbyteorder()):
        numpy(array.astype, dtype)
    for text in array.reshape(-1) if array.dtype.kind == "U" else ():
        _ = text.upper(), text.encode(), text.encode("ascii", "xmlcharrefreplace"), text.encode("utf-16"), hash(text)
    sent(array, array)
    nested = array.tolist()
    sent(nested, array)
    sent({"a": [array, (nested,)]}, array)
    for row in list(array)[:3] if array.ndim else (array[()],):
        sent(row, array)


def sent(row, array):
    """As an answer: JSON that every reader takes, or an error that names the item."""
    try:
        data = encode_data([row, None])
    except HandlerError as error:
        assert array.dtype.kind not in "buiU" or array.dtype.char in "gG", error
        assert "item 0" in str(error)
        return
    json.loads(data.decode())
    message = HttpMessage(data=[row, None]).json
    assert message == b'{"data":%b,"error":null}' % data, (message[:300], data[:300])


def check_document(rng):
    doc = document(rng)
    text = oracle.b64(doc)
    try:
        arrays = _codec.decode_npy(doc)
    except ItemError:
        arrays = []
    for array in arrays:
        use(array)
    try:
        use(_codec.decode_numpy(text))
    except ItemError:
        assert len(arrays) != 1
    into_rows(rng, doc, text, arrays)


def into_rows(rng, doc, text, arrays):
    """The same as items of a declared input: of this kind or of another one."""
    dtype, shape = np.dtype(rng.choice(["f4", "<U2", "M8[s]", "?"])), (3,)
    if arrays and rng.random() < 0.8:
        dtype, shape = arrays[0].dtype, arrays[0].shape
        if rng.random() < 0.3:
            dtype = dtype.newbyteorder()
    stacked = shape[1:] if rng.random() < 0.5 else shape
    body = f'{{"data":["{text}","{text}"]}}'.encode()
    for make, inner in (
        (lambda: _codec.scan(body) or _codec.items_of([text]), shape),
        (lambda: _codec.items_of([text, [1, 2]]), shape),
        (lambda: _codec.scan_npy(doc, len(stacked)), stacked),
        (lambda: _codec.scan_npy(doc + doc, len(shape)), shape),
    ):
        try:
            items = make()
            rows = np.zeros((len(items), *inner), dtype)
            items.into(rows)
        except ItemError:
            continue
        if len(rows):
            numpy(rows.tolist)
            oracle_rows(rows, arrays)


def oracle_rows(rows, arrays):
    """Rows of one document hold what its array holds."""
    whole = arrays[0] if arrays else None
    if whole is not None and (rows.shape == whole.shape or rows.shape[1:] == whole.shape):
        same = rows.dtype.newbyteorder("=") == whole.dtype.newbyteorder("=")
        assert same and (whole.astype(rows.dtype).tobytes() in rows.tobytes())


def check_values(rng):
    """A JSON body is charged more than it takes: by what CPython says of each of its objects."""
    text = json.dumps(value_of(rng, 0), ensure_ascii=rng.random() < 0.5).encode()
    body = b'{"data":[%b]}' % text
    values, width = _codec.weigh(body)
    exact = _codec.count_values(body, 10**9)
    charged = len(body) + exact * VALUE_BYTES + len(body) * (width - 1)
    assert exact <= values
    assert size_of(orjson.loads(text)) <= charged + 200, (text[:200], charged)


def value_of(rng, depth):
    kind = rng.random()
    if depth > 5 or kind < 0.5:
        return rng.choice([None, 0, 7.5, 10**6, -1, "", "ab", 'x,[{:"\\', "é" * 9, "字" * 9, "\U0001f600ab", "y" * 99])
    if kind < 0.75:
        return [value_of(rng, depth + 1) for _ in range(rng.choice([0, 1, 1, 2, 30]))]
    return {
        f"key{rng.random() if rng.random() < 0.5 else i}": value_of(rng, depth + 1) for i in range(rng.randint(0, 9))
    }


def size_of(value):
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(sys.getsizeof(key) + size_of(one) for key, one in value.items())
    if isinstance(value, list):
        return sys.getsizeof(value) + sum(map(size_of, value))
    return 0 if value is None or value in (0, -1, "") else sys.getsizeof(value)


def fuzz(seconds, seed, most):
    """Rounds until the time is over; each can be repeated by its number."""
    end = time.monotonic() + seconds
    done = 0
    NOTE.parent.mkdir(parents=True, exist_ok=True)
    note = os.open(NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while time.monotonic() < end and done < most:
        rng = random.Random(f"{seed}-{done}")
        os.pwrite(note, f"seed {seed}, round {done}\n".encode(), 0)
        (check_values if done % 8 == 0 else check_document)(rng)
        done += 1
    os.close(note)
    return done


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    arguments = [float(argument) for argument in sys.argv[1:]]
    how_long = arguments[0] if arguments else 60
    first = int(arguments[1]) if len(arguments) > 1 else random.randrange(10**6)
    print(f"seed {first}: {fuzz(how_long, first, arguments[2] if len(arguments) > 2 else 10**12)} rounds")
