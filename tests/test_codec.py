"""The codec against the standard library's base64 and NumPy's own reader and writer."""

import base64
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from virtex import ItemError, _codec, codec_info

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=codec_info()["available"])
def isa(request):
    before = codec_info()["isa"]
    _codec._use_isa(request.param)
    yield request.param
    _codec._use_isa(before)


def npy(array, version=None):
    """The document as NumPy writes it."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # version 3.0 can't be read by NumPy < 1.17
        np.lib.format.write_array(out, np.asanyarray(array), version=version, allow_pickle=False)
    return out.getvalue()


def npy_of(header, data=b"", version=1):
    """A document with any header."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + data


def b64(data):
    return base64.b64encode(data).decode()


def read(text):
    """What NumPy makes of it."""
    return np.lib.format.read_array(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)


def assert_same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


# -- instruction sets


def python(code, **env):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True)


def cpu_flags():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="reads /proc/cpuinfo's x86 flags")
def test_available_is_what_the_kernel_says_the_cpu_has():
    flags = cpu_flags()
    has_512 = {"avx512f", "avx512bw", "bmi2"} <= flags and bool({"avx512vbmi", "avx512_vbmi"} & flags)
    expected = ["scalar"] + ["avx2"] * ("avx2" in flags) + ["avx512"] * has_512
    assert codec_info()["available"] == expected


@pytest.mark.skipif("avx2" not in codec_info()["available"], reason="about x86's vector registers")
def test_vector_code_leaves_no_dirty_upper_halves():
    """A wide register in use on return or call slows all SSE code after it, the interpreter's too, several times."""
    dump = ["objdump", "-d", "--no-show-raw-insn", _codec.__file__]
    code = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    functions = re.findall(r"^[0-9a-f]+ <(vx_\w+_avx\w+)>:\n((?:.+\n)+)", code, re.MULTILINE)
    assert len(functions) == 7
    for name, body in functions:
        dirty = False
        for line in body.splitlines():
            instruction = line.split("\t")[-1]
            dirty = (dirty or bool(re.search("%[yz]mm", instruction))) and "vzeroupper" not in instruction
            leaves = re.match(r"(ret|call|jmp)\b", instruction) and not re.match(rf"jmp .*<{name}\b", instruction)
            assert not (leaves and dirty), f"{name}: {line}"


def test_every_kernel_does_what_the_oracle_in_c_does(tmp_path):
    """Some 26 million cases for each; tests/csrc/run also has them under sanitizers, and NEON's under qemu."""
    source, program = ROOT / "tests/csrc/test_base64.c", tmp_path / "driver"
    subprocess.run(["cc", "-O2", "-I", ROOT / "virtex/csrc", source, "-o", program], check=True)
    result = subprocess.run([program, *codec_info()["available"]], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("no difference") == len(codec_info()["available"])


def test_numbers_are_what_an_oracle_in_c_says(tmp_path):
    """Some 800,000 cases; tests/csrc/run has four times as many, also under sanitizers, and on arm64."""
    source, program = ROOT / "tests/csrc/test_numbers.c", tmp_path / "driver"
    subprocess.run(["cc", "-O2", "-I", ROOT / "virtex/csrc", source, "-lm", "-o", program], check=True)
    result = subprocess.run([program, "50000"], capture_output=True, text=True)
    assert result.returncode == 0 and "no difference" in result.stdout, result.stdout


def test_the_fastest_is_used_unless_one_is_forced():
    result = python("from virtex import codec_info; print(codec_info())", VIRTEX_SIMD="")
    info = eval(result.stdout)
    assert info == {"isa": info["available"][-1], "available": codec_info()["available"], "forced": False}


@pytest.mark.parametrize("name", codec_info()["available"])
def test_the_environment_forces_one(name):
    result = python("from virtex import codec_info; print(codec_info())", VIRTEX_SIMD=name)
    assert eval(result.stdout)["isa"] == name
    assert eval(result.stdout)["forced"] is True


FOREIGN = "avx2" if "neon" in codec_info()["available"] else "neon"


@pytest.mark.parametrize("name", ["sse9", "AVX2", " scalar", FOREIGN])
def test_what_cannot_be_had_is_an_import_error_that_says_what_can(name):
    result = python("import virtex._codec", VIRTEX_SIMD=name)
    assert result.returncode == 1
    assert "ImportError: VIRTEX_SIMD: expected one of " + ", ".join(codec_info()["available"]) in result.stderr
    assert repr(name) in result.stderr


def test_a_missing_extension_is_an_import_error(tmp_path):
    blocked = "import sys; sys.modules['virtex._codec'] = None; from virtex.serial import encode_numpy"
    result = python(blocked)
    assert result.returncode == 1
    assert "virtex._codec" in result.stderr
    assert "Error" in result.stderr


# -- bytes

LENGTHS = [*range(130), 191, 192, 193, 255, 256, 257, 383, 384, 385, 575, 576, 577, 1000, 4095, 65536, 1 << 21]


def test_bytes_are_what_the_standard_library_says(isa):
    data = np.random.default_rng(1).bytes(max(LENGTHS))
    for n in LENGTHS:
        text = _codec.encode_bytes(data[:n])
        assert text == b64(data[:n])
        assert _codec.decode_bytes(text) == data[:n]


def test_every_kind_of_input_is_taken(isa):
    for form in (str, str.encode, lambda t: bytearray(t.encode()), lambda t: memoryview(t.encode())):
        assert _codec.decode_bytes(form("TWFu")) == b"Man"
    assert _codec.encode_bytes(bytearray(b"Man")) == _codec.encode_bytes(memoryview(b"Man")) == "TWFu"


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("TQ", 2),
        ("TQ=", 3),
        ("TQ==TWFu", 2),
        ("====", 0),
        ("T===", 1),
        ("TR==", 1),
        ("TWG=", 2),
        ("TWFu\n", 5),
        ("TW Fu===", 2),
        ("-_-_", 0),
        ("TWF\\", 3),
        ('TWF"', 3),
        ("TW\x00u", 2),
        ("TWFé", 3),
        ("\uff21AAA", 0),
    ],
)
def test_what_is_not_strict_is_refused_with_its_offset(isa, text, offset):
    with pytest.raises(ItemError) as error:
        _codec.decode_bytes(text)
    assert error.value.offset == offset
    assert error.value.status == 422


@pytest.mark.parametrize("value", [None, 5, 1.5, ["TWFu"], {"a": 1}])
def test_what_is_no_text_is_an_item_error_that_names_its_type(value):
    for decode in (_codec.decode_bytes, _codec.decode_numpy):
        with pytest.raises(ItemError, match=f"expected a base64 string, got {type(value).__name__}"):
            decode(value)


def test_each_byte_at_each_position_gets_the_verdict_of_an_oracle(isa):
    text = bytearray(base64.b64encode(bytes(range(200, 256)) * 3))  # 168 bytes, 224 characters
    alphabet = set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    for at in range(0, len(text), 7):
        good = text[at]
        for c in range(256):
            text[at] = c
            if c in alphabet:
                assert _codec.decode_bytes(text) == base64.b64decode(text, validate=True)
            else:
                with pytest.raises(ItemError) as error:
                    _codec.decode_bytes(text)
                assert error.value.offset == at
        text[at] = good


# -- arrays

rng = np.random.default_rng(7)
ARRAYS = {
    "f4": rng.random((3, 5, 7), "f4"),
    "f2": np.arange(9, dtype="f2"),
    "f8 big-endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "longdouble": np.arange(3, dtype=np.longdouble),
    "complex": np.array([1 + 2j, np.nan], "c8"),
    "complex big-endian": np.array([1 + 2j, np.nan], ">c16"),
    "bool": np.array([[True, False]]),
    **{f"{k}{n}": np.array([0, 1, 100], f"{k}{n}") for k in "iu" for n in (1, 2, 4, 8)},
    "i2 big-endian": np.array([1, -2], ">i2"),
    "bytes": np.array([b"a", b"bcd"]),
    "strings": np.array([["a", "bcd"], ["é", "\U0001f600"]]),
    "strings big-endian": np.array(["ab"], ">U2"),
    "datetimes": np.array(["2020-01-01", "NaT"], "M8[ns]"),
    "timedeltas big-endian": np.array([1, 2], ">m8[D]"),
    "0-d": np.array(1.5),
    "0-d string": np.array("hello"),
    "empty": np.zeros((0, 3), "f4"),
    "empty inside": np.zeros((2, 0, 4), "i8"),
    "Fortran": np.asfortranarray(rng.random((4, 5))),
    "Fortran 3-d": np.asfortranarray(rng.random((2, 3, 4), "f4")),
    "one dimension backwards": np.arange(10)[::-1],
    "every other": np.arange(40).reshape(4, 10)[:, ::2],
    "axes swapped": rng.random((2, 3, 4)).swapaxes(1, 2),
    "broadcast": np.broadcast_to(np.float32(3), (2, 3)),
    "32 dimensions": np.zeros((1,) * 32, "u1"),
    "128 rows of nothing": np.zeros((127, 0), "f4"),
    "8 lists for an element": np.zeros((40, *[1] * 8), "u1"),
}


@pytest.fixture(params=ARRAYS)
def array(request):
    return ARRAYS[request.param]


def test_arrays_round_trip(isa, array):
    back = _codec.decode_numpy(_codec.encode_numpy(array))
    assert_same(back, array)
    assert back.flags.writeable
    assert back.flags.aligned
    assert back.ctypes.data % 64 == 0


def test_numpy_reads_what_is_written(array):
    text = _codec.encode_numpy(array)
    assert_same(read(text), array)
    assert len(text) % 4 == 0
    doc = base64.b64decode(text)
    assert (int.from_bytes(doc[8:10], "little") + (10 if doc[6] == 1 else 12)) % 192 == 0


@pytest.mark.parametrize("version", [None, (1, 0), (2, 0), (3, 0)])
def test_what_numpy_writes_is_read(isa, array, version):
    doc = npy(array, version)
    back = _codec.decode_numpy(b64(doc))
    assert_same(back, array)
    assert_same(_codec.decode_npy(doc)[0], array)
    if array.ndim > 1 and array.size > 1 and array.flags.f_contiguous and not array.flags.c_contiguous:
        assert back.flags.f_contiguous


def test_headers_of_every_length_are_read(isa):
    data = np.arange(5, dtype="<f4")
    dictionary = b"{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }"
    for pad in range(200):
        doc = npy_of(dictionary + b" " * pad + b"\n", data.tobytes())
        assert_same(_codec.decode_numpy(b64(doc)), data)


@pytest.mark.parametrize(
    "value",
    [
        1,
        2.5,
        True,
        1j,
        "text",
        b"bytes",
        [1, 2],
        [[1.5], [2]],
        np.float32(3),
        np.bool_(True),
        np.int64(-1),
        np.str_("x"),
        np.datetime64("2020-01-01"),
        range(3),
    ],
)
def test_array_likes_are_arrays(value):
    assert_same(_codec.decode_numpy(_codec.encode_numpy(value)), np.asarray(value))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4"])
def test_narrow_floats_go_by_name(isa, name):
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name))
    text = _codec.encode_numpy(array)
    assert f"'descr': '{name}'".encode() in base64.b64decode(text)
    assert_same(_codec.decode_numpy(text), array)
    assert_same(read(text), array)


@pytest.mark.parametrize(
    "value",
    [
        np.array([None]),
        np.array(["a", 1], object),
        np.zeros(2, [("a", "O")]),
        np.zeros(2, [("a", [("b", "O")])]),
        [{}],
    ],
)
def test_objects_are_a_type_error_that_says_why(value):
    with pytest.raises(TypeError, match=r"Python objects.*pickle"):
        _codec.encode_numpy(value)
    with pytest.raises(TypeError, match=r"Python objects.*pickle"):
        _codec.encode_npy([value])


def test_what_npy_would_lose_is_a_type_error():
    with pytest.raises(TypeError, match="masked"):
        _codec.encode_numpy(np.ma.array([1, 2], mask=[True, False]))
    if hasattr(np.dtypes, "StringDType"):
        with pytest.raises(TypeError):
            _codec.encode_numpy(np.array(["a"], np.dtypes.StringDType()))


def test_one_shape_in_two_orders_keeps_its_values():
    array = np.arange(6.0).reshape(2, 3)
    for _ in range(2):
        for order in "CF":
            back = _codec.decode_numpy(_codec.encode_numpy(np.array(array, order=order)))
            assert back.tolist() == array.tolist()
            assert back.flags.c_contiguous is (order == "C")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros(2, "V7"), r"V7 does not travel.*an array for each field"),
        (np.zeros(3, [("a", "<f4"), ("b", "i1", (2, 2))]), r"does not travel.*an array for each field"),
        (np.zeros(2, "V7")[0], r"does not travel"),
        (np.array([1, 2], "M8[25s]"), r"one unit, as in array.astype\('M8\[s\]'\)"),
        (np.timedelta64(2, "7D"), r"one unit, as in array.astype\('m8\[s\]'\)"),
        (np.array([1]).view("m8"), "one unit"),
        (np.zeros((1,) * 33), "at most 32 dimensions, got 3[34]"),
        (np.zeros((1000, 0)), "at most 128 nested rows, and 8 more"),
        (np.zeros((1000, *[1] * 9)), "8 more for each element"),
    ],
    ids=lambda value: f"{value.dtype}-{value.shape}"[:40] if hasattr(value, "dtype") else None,
)
def test_arrays_that_do_not_travel_are_a_type_error_with_the_remedy(array, says):
    for write in (_codec.encode_numpy, lambda a: _codec.encode_npy([a]), lambda a: _codec.encode_rows(np.array([a]))):
        with pytest.raises(TypeError, match=says):
            write(array)


def test_decoded_arrays_share_nothing(isa):
    text = _codec.encode_numpy(np.arange(100))
    first, second = _codec.decode_numpy(text), _codec.decode_numpy(text)
    first[:] = -1
    assert second.tolist() == list(range(100))
    assert not np.shares_memory(first, second)


def test_very_large_arrays_round_trip():
    array = np.arange(5 << 20)  # 40 MB: memory that glibc takes fresh from the system
    text = _codec.encode_numpy(array)
    assert (_codec.decode_numpy(text) == array).all()
    assert _codec.encode_rows(array[None])[10:-16] == _codec.encode_numpy(array).encode()
    assert (_codec.decode_npy(_codec.encode_npy(array))[0] == array).all()


def test_a_view_outlives_the_array():
    view = _codec.decode_numpy(_codec.encode_numpy(np.arange(1000)))[500:]
    for _ in range(10):
        _codec.decode_numpy(_codec.encode_numpy(np.zeros(1000, int)))
    assert view.tolist() == list(range(500, 1000))
    assert pickle.loads(pickle.dumps(view)).tolist() == view.tolist()


def test_every_input_form_is_an_array(isa):
    text = _codec.encode_numpy(np.arange(3))
    for form in (text, text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        assert _codec.decode_numpy(form).tolist() == [0, 1, 2]


# -- what is refused


def header(descr="'<f4'", order="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


DATA = np.zeros(2, "f4").tobytes()
BIG_FIELDS = "[" + ",".join(f"('f{i}','|V536870911')" for i in range(8)) + ",('z','|V24')]"
REFUSED = {
    "no magic": (b"PK\x03\x04" + b"\0" * 60, "magic"),
    "nothing": (b"", "magic"),
    "the magic alone": (b"\x93NUMPY", "version"),
    "version 4": (npy_of(header(), DATA, 4), "version"),
    "version 0": (npy_of(header(), DATA, 0), "version"),
    "a header that is not there": (b"\x93NUMPY\x01\0\xff\x0e{", "bytes"),
    "a header over the limit": (b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b" " * 100, "4096"),
    "objects": (npy_of(header("'|O'"), DATA), "Python objects"),
    "a structured dtype": (npy_of(header("[('a', '<f4')]"), DATA), "plain dtype, not a structured.*named inputs"),
    "objects in a field": (npy_of(header("[('a', '|O')]"), DATA), "structured"),
    "fields whose sizes overflow": (npy_of(header(BIG_FIELDS, shape="()"), b"A" * 16), "structured"),
    "fields, in Fortran order": (npy_of(header(BIG_FIELDS, "True", "(2, 2)"), b"A" * 64), "structured"),
    "a subarray": (npy_of(header("('<f4', (2,))"), DATA), "structured"),
    "void": (npy_of(header("'|V4'"), DATA), "plain dtype, not a void.*named inputs"),
    "void with an order": (npy_of(header("'<V4'"), DATA), "void"),
    "native order": (npy_of(header("'=f4'"), DATA), "dtype"),
    "several bytes without order": (npy_of(header("'|f4'"), DATA), "dtype"),
    "no order": (npy_of(header("'f4'"), DATA), "dtype"),
    "no such size": (npy_of(header("'<f5'"), DATA), "dtype"),
    "no size": (npy_of(header("'|S0'", shape="(1000000000000,)")), "dtype"),
    "a name of NumPy's": (npy_of(header("'float32'"), DATA), "'<f4', with byte order and size, or the name.*'float32'"),
    "unicode without order": (npy_of(header("'|U1'"), DATA), "dtype"),
    "a unit that is none": (npy_of(header("'<M8[x]'"), DATA), "one unit"),
    "two seconds": (npy_of(header("'<M8[2s]'", shape="(1,)"), bytes(8)), "one unit"),
    "one second, with its number": (npy_of(header("'<M8[1s]'", shape="(1,)"), bytes(8)), "one unit"),
    "weeks of days": (npy_of(header("'>m8[7D]'", shape="(1,)"), bytes(8)), "one unit"),
    "no unit": (npy_of(header("'<M8'", shape="(1,)"), bytes(8)), "one unit"),
    "an unknown name": (npy_of(header("'float7_e1'"), DATA), "dtype"),
    "a size beyond an int": (npy_of(header("'|S99999999999999999999'"), DATA), "dtype"),
    "order 0": (npy_of(header(order="0"), DATA), "True or False"),
    "a list for a shape": (npy_of(header(shape="[2]"), DATA), "tuple"),
    "no tuple": (npy_of(header(shape="(2)"), DATA), "comma"),
    "a negative dimension": (npy_of(header(shape="(-2,)"), DATA), "number"),
    "a signed dimension": (npy_of(header(shape="(+2,)"), DATA), "number"),
    "a leading zero": (npy_of(header(shape="(02,)"), DATA), "zero"),
    "a dimension that is True": (npy_of(header(shape="(True,)"), DATA), "number"),
    "a hexadecimal dimension": (npy_of(header(shape="(0x2,)"), DATA), "comma"),
    "an underscore": (npy_of(header(shape="(1_0,)"), DATA), "comma"),
    "33 dimensions": (npy_of(header(shape="(" + "1, " * 33 + ")"), DATA), "32 dimensions"),
    "rows of no elements": (npy_of(header(shape="(2, 100, 0)"), b""), "at most 128 nested rows, and 8 more"),
    "many rows of nothing": (npy_of(header(shape="(1000000, 0)"), b""), "at most 128 nested rows, and 8 more"),
    "rows in rows in rows": (npy_of(header("'|u1'", shape="(100" + ", 1" * 12 + ")"), bytes(100)), "8 nested"),
    "a dimension of 2**64": (npy_of(header(shape="(18446744073709551618,)"), DATA), "number"),
    "a shape that overflows": (npy_of(header(shape="(4294967296, 4294967296)"), DATA), "2\\*\\*63"),
    "an overflow beside a zero": (npy_of(header(shape="(0, 4611686018427387904, 8)")), "2\\*\\*63"),
    "bytes that overflow": (npy_of(header(shape="(4611686018427387904,)"), DATA), "2\\*\\*63"),
    "a shape that lies": (npy_of(header(shape="(1000000000,)"), DATA), "expected 4000000000 bytes.*got 8"),
    "too little data": (npy_of(header(), DATA[:-1]), "expected 8 bytes.*got 7"),
    "no dict": (npy_of(b"[]\n"), "dict"),
    "an empty dict": (npy_of(b"{}\n"), "keys"),
    "a key twice": (npy_of(header()[:-2] + b"'shape': (2,)}", DATA), "once"),
    "a key missing": (npy_of(b"{'descr': '<f4', 'shape': (2,)}", DATA), "keys"),
    "a key too many": (npy_of(header()[:-2] + b"'x': 1}", DATA), "once"),
    "something after the newline": (npy_of(header() + b" ", DATA), "after the dict"),
    "two newlines": (npy_of(header() + b"\n", DATA), "after the dict"),
    "a space before the dict": (npy_of(b" " + header(), DATA), "dict"),
    "something after the dict": (npy_of(header() + b";", DATA), "after the dict"),
    "a call": (npy_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': tuple([2])}", DATA), "tuple"),
    "an open string": (npy_of(b"{'descr': '<f4"), "end of the string"),
    "an escape": (npy_of(header("'\\x3cf4'"), DATA), "escape"),
    "a thousand parentheses": (npy_of(b"(" * 3000), "dict"),
    "bools that are neither": (npy_of(header("'|b1'"), b"\1\2"), "0 or 1"),
    "a code point too high": (npy_of(header("'<U2'", shape="(1,)"), b"a\0\0\0\0\0\x11\0"), "Unicode"),
    "code points of all bits": (npy_of(header("'<U2'", shape="(1,)"), b"\xff" * 8), "Unicode"),
    "a surrogate": (npy_of(header("'<U1'", shape="(2,)"), b"a\0\0\0\xff\xdf\0\0"), "Unicode"),
    "a surrogate, big-endian": (npy_of(header("'>U1'", shape="(2,)"), b"\0\0\0a\0\0\xd8\0"), "Unicode"),
    "a high one, big-endian": (npy_of(header("'>U1'", shape="(2,)"), b"\0\x11\0\0\0\0\0a"), "Unicode"),
    "text in Fortran order": (npy_of(header("'<U1'", "True", "(2, 2)"), bytes(15) + b"\1"), "Unicode"),
    "a float4 of 5 bits": (npy_of(header("'float4_e2m1fn'"), b"\0\x10"), "0 to 15"),
    "a float6 of 7 bits": (npy_of(header("'float6_e3m2fn'"), b"\0\x40"), "0 to 63"),
    "an int4 of 8 bits": (npy_of(header("'int4'"), b"\xff\0"), "0 to 15"),
    "a uint2 of 3 bits": (npy_of(header("'uint2'"), b"\3\4"), "0 to 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_document_is_refused_with_its_reason(isa, name):
    doc, reason = REFUSED[name]
    with pytest.raises(ItemError, match=reason):
        _codec.decode_numpy(b64(doc))
    with pytest.raises(ItemError, match=reason) as error:
        _codec.decode_npy(npy([1.5]) + doc if doc else doc)
    assert error.value.index == (1 if doc else 0)


def test_an_offset_points_into_the_text():
    doc = npy_of(header(shape="(2,x)"), DATA)
    with pytest.raises(ItemError) as error:
        _codec.decode_numpy(b64(doc))
    assert error.value.offset == doc.index(b"x") // 3 * 4
    with pytest.raises(ItemError) as error:
        _codec.decode_npy(doc)
    assert error.value.offset == doc.index(b"x")
    text = _codec.encode_numpy(np.zeros(1000))
    with pytest.raises(ItemError) as error:
        _codec.decode_numpy(text[:3000] + "*" + text[3001:])
    assert error.value.offset == 3000


def test_trailing_bytes_are_refused_in_text():
    with pytest.raises(ItemError, match="expected 8 bytes of data for float32 \\(2,\\), got 9"):
        _codec.decode_numpy(b64(npy_of(header(), DATA + b"x")))


def test_no_memory_is_taken_for_a_header_that_lies():
    lie = b64(npy_of(header("'<f8'", shape="(1000000000000,)"), DATA))
    with pytest.raises(ItemError):
        _codec.decode_numpy(lie)  # 8 TB: malloc would raise MemoryError


@pytest.mark.parametrize("cut", [0, 1, 5, 9, 11, 60, 127, 128, 131])
def test_truncation_anywhere_is_an_item_error(isa, cut):
    doc = npy(np.arange(1, dtype="i4"))
    with pytest.raises(ItemError):
        _codec.decode_numpy(b64(doc[:cut]))
    with pytest.raises(ItemError) as error:
        _codec.decode_npy(doc + doc[:cut] if cut else b"")
    assert error.value.index == (1 if cut else 0)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 150), byte=st.integers(0, 255), descr=st.sampled_from(["<f4", "|b1", "<M8[ns]", "<U2"]))
def test_a_changed_byte_means_what_it_means_to_numpy_or_is_refused(at, byte, descr):
    doc = bytearray(npy(np.zeros(8, descr)))
    doc[at % len(doc)] = byte
    try:
        ours = _codec.decode_numpy(b64(bytes(doc)))
    except ItemError:
        return
    assert_same(ours, np.lib.format.read_array(io.BytesIO(bytes(doc)), allow_pickle=False))


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        hnp.scalar_dtypes().filter(lambda d: d.itemsize),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=5),
    )
)
def test_any_array_round_trips_with_numpy_on_either_side(array):
    try:
        text = _codec.encode_numpy(array)
    except TypeError as error:
        assert array.dtype.kind in "mM" and "one unit" in str(error)
        return
    assert_same(_codec.decode_numpy(text), array)
    assert_same(read(text), array)
    assert_same(_codec.decode_numpy(b64(npy(array))), array)


# -- raw documents


def test_documents_one_after_another_are_items():
    arrays = [ARRAYS[name] for name in ("f4", "strings", "0-d", "empty", "Fortran", "datetimes")]
    body = b"".join(map(npy, arrays))
    for form in (body, bytearray(body), memoryview(body)):
        back = _codec.decode_npy(form)
        assert len(back) == len(arrays)
        for a, b in zip(arrays, back, strict=True):
            assert_same(a, b)
            assert b.ctypes.data % 64 == 0
            assert b.flags.writeable


def test_rows_are_stacked_into_one_document():
    rows = [rng.random((2, 3), "f4") for _ in range(4)]
    body = _codec.encode_npy(rows)
    assert_same(np.lib.format.read_array(io.BytesIO(body)), np.stack(rows))
    assert _codec.encode_npy(np.stack(rows)) == body
    assert _codec.encode_npy([np.asfortranarray(row) for row in rows]) == body
    assert_same(_codec.decode_npy(_codec.encode_npy([1.5, 2.5]))[0], np.array([1.5, 2.5]))
    assert_same(_codec.decode_npy(_codec.encode_npy(np.zeros((0, 3))))[0], np.zeros((0, 3)))


def test_rows_that_differ_are_named():
    with pytest.raises(ValueError, match=r"float32 \(2,\) in row 0 and float64 \(2,\) in row 1"):
        _codec.encode_npy([np.zeros(2, "f4"), np.zeros(2)])
    with pytest.raises(ValueError, match=r"row 2"):
        _codec.encode_npy([np.zeros(2), np.zeros(2), np.zeros((2, 1))])
    with pytest.raises(ValueError, match="at least one row"):
        _codec.encode_npy([])


# -- integers beyond 64 bits


def offset_by_hand(body):
    """Where the first integer beyond 64 bits stands, in the only list, by a tokenizer of regular expressions."""
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|(-?[0-9]+)([.eE][-+.0-9eE]*)?', body):
        if token[1] and not token[2] and not -(2**63) <= int(token[1]) < 2**64:
            return token.start()
    return -1


numbers = st.integers(-(2**70), 2**70) | st.sampled_from([-(2**63) - 1, -(2**63), 2**63, 2**64 - 1, 2**64])


@settings(max_examples=300, deadline=None)
@given(st.recursive(numbers | st.floats(-1e30, 1e30) | st.text('09"\\e.-'), lambda inner: st.lists(inner, max_size=5)))
def test_integers_beyond_64_bits_are_found_where_they_stand(value):
    body = b'{"data":%b}' % json.dumps([value]).encode()
    assert _codec.big_int_offset(body) == offset_by_hand(body)


@pytest.mark.parametrize(
    "body", [b"", b'"', b'"\\', b"-", b"1", b'"99999999999999999999', b'[1.5e+20,"\\",18446744073709551615]']
)
def test_what_is_cut_short_or_fits_is_no_integer_beyond_64_bits(body):
    assert _codec.big_int_offset(body) == -1


# -- threads


def test_threads_that_decode_at_once_get_their_own_arrays():
    texts = [(_codec.encode_numpy(np.full(300_000, i)), i) for i in range(4)]  # over 1 MB: the GIL is released
    wrong = []

    def work(text, i):
        for _ in range(10):
            if not (_codec.decode_numpy(text) == i).all():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=t) for t in texts]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert not any(t.is_alive() for t in threads)
    assert wrong == []


# -- what JSON will become


def made(value):
    """How many Python objects a JSON value is, small ones that CPython shares counted too."""
    if isinstance(value, dict):
        return 1 + sum(1 + made(one) for one in value.values())
    return 1 + (sum(map(made, value)) if isinstance(value, list) else 0)


json_texts = st.text(max_size=3) | st.text('[]{},:"\\', max_size=40)
json_values = st.recursive(
    st.none() | st.integers(-9, 10**6) | st.floats(-1e9, 1e9) | json_texts,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(json_texts, inner, max_size=9),
    max_leaves=60,
)


@settings(max_examples=100, deadline=None)
@given(json_values, st.integers(0, 200), st.sampled_from([True, False]))
def test_values_are_counted_before_they_are_parsed_and_never_too_few(value, pad, as_ascii):
    text = json.dumps(value, ensure_ascii=as_ascii)
    body = b" " * pad + text.encode()
    bound, width = _codec.weigh(body)
    exact = _codec.count_values(body, 10**9)
    assert made(value) <= exact + 1 <= bound + 1
    by_hand = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    assert exact == sum(map(by_hand.count, ",[{")) + 3 * by_hand.count(":")
    assert bound == sum(map(text.count, ",[{")) + 3 * text.count(":")
    assert _codec.count_values(body, 3) == exact or _codec.count_values(body, 3) > 3
    widest = ord(max(re.sub(r"\\u[0-9a-f]{4}", "", text), default="a"))
    assert width >= (4 if widest > 0xFFFF else 2 if widest > 0xFF else 1)


@pytest.mark.parametrize(
    ("text", "width"),
    [("a", 1), ("é", 1), ("ā", 2), ("字", 2), ("😀", 4), ("\\u00e9", 4), ("\\n", 1), ("a" * 999 + "\\n", 1)],
)
def test_the_width_of_characters_is_that_of_the_widest(text, width):
    for before, after in ((0, 100), (100, 100), (64 * 85 * 3, 70)):
        body = b"x" * before + text.encode() + b"x" * after
        assert _codec.weigh(body) == (0, width)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 129, 64 * 85, 64 * 85 + 1, 200_000])
@pytest.mark.parametrize("char", [b",", b"[", b"{", b":", b"]", b"}", b"\x7b\x5b", b"\x0c\xac"], ids=repr)
def test_no_count_overflows_its_byte(size, char):
    body = (char * size)[:size]
    assert _codec.weigh(body)[0] == sum(body.count(c) for c in (b",", b"[", b"{")) + 3 * body.count(b":")


def test_only_integers_within_data_must_fit_64_bits():
    big = b"18446744073709551616"
    for body, is_refused in (
        (b'{"data":[1],"id":%b}' % big, False),
        (b'{"id":%b,"data":[1]}' % big, False),
        (b'{"id":{"data":[%b]},"data":[1]}' % big, False),
        (b'{"id":["data",%b],"data":["data",1]}' % big, False),
        (b'{"data":[%b],"data":[1]}' % big, False),
        (b'{"data":[1],"data":[%b]}' % big, True),
        (b'{ "d\\u0061t\\u0061" : [[%b]]}' % big, True),
        (b'{"data":[1],"x":5,"\\u0064ata":[{"a":%b}]}' % big, True),
        (b'{"dat\\\\u0061":[%b],"data":[1]}' % big, False),
        (b'{"x":"data","y":[%b],"data":[]}' % big, False),
    ):
        assert _codec.big_int_offset(body) == (body.rindex(big) if is_refused else -1), body
        json.loads(body)


@pytest.mark.parametrize("dtype", ["<U3", ">U3", "bool", "float4_e2m1fn", "float6_e2m3fn", "int4", "uint2"])
def test_every_pattern_that_a_dtype_has_is_taken(isa, dtype):
    points = [0, 0x7F, 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF] * 9
    if "U" in dtype:
        array = np.array(points, dtype[0] + "u4").view(dtype)
    else:
        bits = {"bool": 2, "float6_e2m3fn": 64, "uint2": 4}.get(dtype, 16)
        array = np.arange(bits, dtype="u1").view(dtype if dtype == "bool" else getattr(ml_dtypes, dtype))
    assert_same(_codec.decode_numpy(_codec.encode_numpy(array)), array)
    rows = np.zeros_like(array)
    _codec.scan_npy(_codec.encode_npy(array), 0).into(rows)
    assert rows.tobytes() == array.tobytes()


def test_random_documents_and_what_handlers_do_with_them_crash_nothing():
    """As tests/fuzz/run has it for longer, and under AddressSanitizer; in a process of its own, which may die of it."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "tests/fuzz/fuzz_arrays.py", "60", "1", "250"],
        cwd=ROOT,
        env=os.environ | {"PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "seed 1: 250 rounds\n"), result.stderr[-3000:]
