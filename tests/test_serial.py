"""virtex.serial: its names, what importing them costs, what they share; what they do is tested by test_serial_*."""

import base64
import io
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from virtex import ItemError, serial
from virtex._codec import decode_block, encode_pieces, items_of

ROOT = Path(__file__).parents[1]
HEAVY = ("numpy", "pandas", "pyarrow", "PIL", "torch", "tensorflow", "mxnet", "ml_dtypes", "orjson")


def imported(code):
    """Which heavy modules a fresh interpreter has after running code."""
    report = f"{code}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def png():
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    return serial.encode_bytes(file.getvalue())


def test_importing_it_imports_no_library():
    assert imported("import virtex.serial") == "[]"


def test_a_function_imports_its_own_library_only():
    assert imported("from virtex.serial import encode_numpy") == "['numpy']"


def test_importing_every_name_imports_none_of_the_libraries():
    assert imported("from virtex.serial import *") == "['numpy']"


@pytest.mark.parametrize(
    ("call", "missing", "said"),
    [
        ("encode_pandas(None)", "pandas", "encode_pandas needs pandas and pyarrow: install the extra [pandas]"),
        ("decode_pandas('')", "pyarrow", "decode_pandas needs pandas and pyarrow: install the extra [pandas]"),
        ("encode_pil(None)", "PIL", "encode_pil needs Pillow: install the extra [pillow]"),
        ("decode_pil('')", "PIL", "decode_pil needs Pillow: install the extra [pillow]"),
        ("decode_pil_from_bytes('')", "PIL", "decode_pil_from_bytes needs Pillow: install the extra [pillow]"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(call, missing, said):
    code = f"import sys; sys.modules[{missing!r}] = None; from virtex.serial import *; {call}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"ImportError: {said}" in ended.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda: serial.decode_bytes(bytestr=serial.encode_bytes(_bytes=b"a")),
        lambda: serial.decode_numpy(bytestr=serial.encode_numpy(obj=[1.0])),
        lambda: serial.decode_pandas(bytestr=serial.encode_pandas(obj=pd.Series([1]))),
        lambda: serial.decode_pickle(bytestr=serial.encode_pickle(obj=[1]), trusted=True),
        lambda: serial.decode_pil(bytestr=serial.encode_pil(image=Image.new("L", (1, 1)))),
        lambda: serial.decode_pil_from_bytes(bytestr=png()),
    ],
    ids=["bytes", "numpy", "pandas", "pickle", "pil", "pil_from_bytes"],
)
def test_arguments_may_be_given_by_the_names_that_the_first_virtex_had(call):
    call()


# -- what Virtex 0.1 wrote


def of_old(value, lines=True):
    text = base64.encodebytes(pickle.dumps(value)).decode()
    return text if lines else text.replace("\n", "")


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("size", [1, 100, 1000])
@pytest.mark.parametrize("decode", ["numpy", "pandas", "pil"])
def test_a_pickle_of_the_first_virtex_is_told_from_garbage(decode, size, lines):
    with pytest.raises(ItemError, match=r"pickle: Virtex 0\.1 sent those.*docs/migrating\.md") as caught:
        getattr(serial, f"decode_{decode}")(of_old(np.zeros(size), lines))
    assert caught.value.status == 422


@pytest.mark.parametrize("trusted", [{"trusted": True}, {"key": b"secret"}])
@pytest.mark.parametrize("lines", [True, False])
def test_a_pickle_of_the_first_virtex_is_none_of_ours(lines, trusted):
    with pytest.raises(ItemError, match=r"pickle: Virtex 0\.1 sent those"):
        serial.decode_pickle(of_old([1], lines), **trusted)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_each_protocol_are_known(protocol):
    for value in (None, [1], np.zeros(3), "text", b"", {}):
        text = base64.b64encode(pickle.dumps(value, protocol)).decode()
        with pytest.raises(ItemError, match="it begins as a pickle"):
            serial.decode_numpy(text)


@pytest.mark.parametrize("size", [1, 57, 58, 1000])
def test_lines_of_the_first_virtex_are_named(size):
    with pytest.raises(ItemError, match=r"Virtex 0\.1 wrote line breaks"):
        serial.decode_bytes(base64.encodebytes(b"a" * size).decode())


def test_a_declared_input_says_it_too():
    with pytest.raises(ItemError, match="it begins as a pickle"):
        items_of([of_old(np.zeros(3))]).into(np.empty((1, 3)))


# -- the codec's parts that they share


@pytest.mark.parametrize("seed", range(50))
def test_pieces_are_encoded_as_if_they_were_one(seed):
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.choice((0, 1, 2, 3, 4, 100, 1000))) for _ in range(rng.randrange(9))]
    text = encode_pieces(pieces)
    assert text == base64.b64encode(b"".join(pieces)).decode()
    block = decode_block(text)
    assert block.tobytes() == b"".join(pieces)
    assert block.flags.writeable and block.ctypes.data % 64 == 0


@pytest.mark.parametrize("name", serial.__all__)
def test_each_name_is_there_and_listed(name):
    assert callable(getattr(serial, name))
    assert name in dir(serial)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"virtex\.serial.*encode_nothing"):
        serial.encode_nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from virtex.serial import encode_nothing")


def test_arrays_and_bytes_go_there_and_back():
    array = np.arange(6.0).reshape(2, 3)
    assert serial.decode_numpy(serial.encode_numpy(array)).tolist() == array.tolist()
    assert serial.decode_bytes(serial.encode_bytes(b"\0\xff")) == b"\0\xff"
    with pytest.raises(ItemError):
        serial.decode_bytes("AB=C")
