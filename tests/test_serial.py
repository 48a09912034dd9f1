"""virtex.serial: its names and what importing them costs; what they do is tested in test_codec."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from virtex import ItemError, serial

ROOT = Path(__file__).parents[1]
HEAVY = ("numpy", "pandas", "PIL", "torch", "tensorflow", "mxnet", "ml_dtypes", "orjson")


def imported(code):
    """Which heavy modules a fresh interpreter has after running code."""
    report = f"{code}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_importing_it_imports_no_library():
    assert imported("import virtex.serial") == "[]"


def test_a_function_imports_its_own_library_only():
    assert imported("from virtex.serial import encode_numpy") == "['numpy']"


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
