"""Writes seed corpora and dictionaries for the libFuzzer targets: `python tests/fuzz/seeds.py DIRECTORY`."""

import io
import random
import sys
from pathlib import Path

import numpy as np
from kit import decimals

from virtex import _codec

ARRAYS = [
    np.arange(3, dtype="f4"),
    np.zeros((2, 3), ">i2"),
    np.array(True),
    np.zeros((0, 2)),
    np.array(["ab"]),
    np.array(["2020"], "M8[s]"),
    np.asfortranarray(np.ones((2, 2))),
    np.zeros((5, 1, 1), "c8"),
    np.array([b"abc"]),
]
REFUSED = [
    np.array(["2020"], "M8[25s]"),
    np.zeros(2, "V3"),
    np.zeros(1, [("a", "<f4"), (("t", "b"), "i1", (2, 2)), ("c", [("x", "<U3")])]),
    np.zeros(1, [("é", "i1"), ("λ", "i1")]),
    np.zeros(1, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
]
NPY_WORDS = [
    "'descr': ",
    "'fortran_order': ",
    "'shape': ",
    "True",
    "False",
    "'<f4'",
    "'|O'",
    "'bfloat16'",
    "(3,)",
    "()",
    "[('a', '<f4')]",
    "('a', '<i1', (2,))",
    "[25us]",
    "'<U2'",
    "'|V4'",
    "(1,1,1,1,1,1,1,1,1,1)",
    "9223372036854775807",
    "\\x93NUMPY",
    "'<M8[ns]'",
    ", ",
    "}",
]
WALK_WORDS = [
    "[[",
    "]]",
    "-1.5",
    '{\\"data\\":[',
    "]}",
    '\\"a\\":',
    '\\"bc\\":',
    '\\"AB',
    '\\"',
    ",",
    "{",
    "}",
    "\\\\",
    ',\\"error\\":null',
    '\\"ABCD\\"',
]


def documents():
    for array in ARRAYS + REFUSED:
        for version in ((1, 0), (2, 0), (3, 0)):
            out = io.BytesIO()
            try:
                np.lib.format.write_array(out, array, version=version)
            except UnicodeEncodeError:
                continue
            yield out.getvalue()
    yield from map(_codec.encode_npy, ([a] for a in ARRAYS))


def bodies():
    for flags in (b"\0\2", b"\1\2", b"\0\1", b"\1\0"):
        for items in (
            b"",
            b'"ABCD"',
            b' "ABCDABCDABCD" , "AB" ',
            b'{"a":"ABCD","bc":"ABCD"},{"bc":"ABCD", "a" : "ABCD"}',
            b"1, 2.5",
            b" [[1,2],[3]] , []",
            b'{"a":[1],"bc":"ABCD"},{"bc":"ABCD", "a" : 5 }',
        ):
            yield flags + b'{"data":[' + items + b"]}"
            yield flags + b' {\n"data" : [ ' + items + b" ]\r\t}"
            yield flags + b'{"data":[' + items + b'] , "error" : null }'


INPUT_WORDS = [
    '{\\"inputs\\":[{',
    '\\"data\\":[',
    '\\"data\\"',
    '\\"inputs\\"',
    '\\"shape\\":[2,3],',
    '\\"parameters\\":{',
    "},{",
    "}]}",
    "]]",
    "1.5,",
    "\\\\u0064",
    ":",
]


def requests():
    """Of V2: a byte that says how many lists there may be, then the head."""
    for most in b"\0\3":
        for head in (
            b'{"inputs":[{"name":"a","shape":[2],"datatype":"FP32","data":[1,2.5]}]}',
            b'{"id":"x\\"y","inputs" : [ {"data" : [[1],[2]] , "name":"a"} ,'
            b'{"data":[],"parameters":{"data":[3]}}] , "data":[4]}',
            b'{"inputs":[{"name":"a","datatype":"BYTES","shape":[1],"data":["a]"]}],"outputs":[{"name":"b"}]}',
            b'{"inputs":{"a":{"data":[1]}},"inputs":[{"data":[true,null]},{"d\\u0061ta":[1]}]}',
            b'[{"inputs":[{"data":[1]}]}]',
        ):
            yield bytes([most]) + head


NUMBER_WORDS = [
    "e-308",
    "E+",
    "0.",
    "e22",
    "9007199254740993",
    "00000000",
    "99999999",
    "true",
    "-0",
    "2250738585072014",
]


def numbers():
    for text in [*decimals.KNOWN, *decimals.NO_NUMBERS, *decimals.halfways(random.Random(1), 20)]:
        yield text.encode()


def write(directory, name, seeds, words=()):
    (directory / name).mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
        (directory / name / f"seed{i}").write_bytes(seed)
    (directory / f"{name}.dict").write_text("".join(f'"{word}"\n' for word in words))


def main(directory):
    write(directory, "npy", documents(), NPY_WORDS)
    texts = [_codec.encode_numpy(a).encode() for a in ARRAYS]
    write(directory, "base64", [*documents(), *texts, b"1234567890" * 5, b"T" * 700], ["=", "==", "0123456789"])
    write(directory, "numbers", numbers(), NUMBER_WORDS)
    write(directory, "walk", bodies(), WALK_WORDS)
    write(directory, "inputs", requests(), INPUT_WORDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
