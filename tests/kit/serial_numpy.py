"""What of NumPy travels and what is refused: the rows of the table in docs/serial.md."""

from __future__ import annotations

import ml_dtypes
import numpy as np

NUMBERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMBERS += ["float16", "float32", "float64", "complex64", "complex128"]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"]


def cases() -> list[tuple[str, object]]:
    ones = np.arange(12).reshape(3, 4)
    return [
        *((name, ones.astype(name)) for name in NUMBERS),
        *((f"{name} of ml_dtypes", np.arange(6).astype(getattr(ml_dtypes, name))) for name in NARROW),
        ("text of a fixed length", np.array(["a", "ü€"])),
        ("bytes of a fixed length", np.array([b"a", b"bc"])),
        ("datetimes of one unit", np.array(["2024-02-29", "NaT"], "M8[s]")),
        ("timedeltas of one unit", np.array([1, "NaT"], "m8[ms]")),
        ("another byte order", ones.astype(">f4")),
        ("Fortran order", np.asfortranarray(ones)),
        ("a slice with steps, by its values", ones[::2, ::-1]),
        ("no dimensions", np.array(1.5)),
        ("no elements", np.empty((0, 3))),
    ]


def refused() -> list[tuple[str, object, str]]:
    return [
        ("objects", np.array([{}]), "an array of object holds Python objects, which only pickle can carry"),
        ("structured dtypes", np.zeros(2, "i4,f8"), "does not travel, as no structured or void dtype does"),
        ("datetimes of several units", np.zeros(2, "M8[25s]"), "convert it to one unit"),
        ("masked arrays", np.ma.masked_array([1, 2], [True, False]), "masked"),
        *of_numpy_2(),
    ]


def of_numpy_2() -> list[tuple[str, object, str]]:
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return []
    array = np.array(["a"], np.dtypes.StringDType())
    return [
        ("StringDType", array, "convert it to a dtype of numbers or fixed-length strings"),
        ("more than 32 dimensions", np.zeros([1] * 33), "expected at most 32 dimensions, got 33"),
    ]


def same(a, b) -> bool:
    layout = a.flags.f_contiguous == b.flags.f_contiguous or not (a.flags.c_contiguous or a.flags.f_contiguous)
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes() and layout
