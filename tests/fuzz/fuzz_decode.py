"""The whole decode against orjson, the standard library's base64 and NumPy.

`python tests/fuzz/fuzz_decode.py -max_total_time=60` needs atheris. The fuzzer's bytes choose a good body, text or
document and up to six edits of it, because bytes at random are hardly ever nearly right. What runs inside the extension
does not guide it: the libFuzzer targets beside this file are there for that.
"""

import sys
import warnings
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

with atheris.instrument_imports(include=["virtex", "kit.oracle"]):
    import seeds
    from kit import decimals, oracle

    from virtex import ItemError, _codec

warnings.simplefilter("ignore")
ROWS = [("f4", (3,)), (">i2", (2, 3)), ("?", ()), ("<U2", (1,)), ("M8[s]", (1,)), ("f8", (2, 2))]
DOCUMENTS = list(seeds.documents())
TEXTS = [oracle.b64(doc).encode() for doc in DOCUMENTS]
NUMBERS = [text.encode() for text in [*decimals.KNOWN, *decimals.NO_NUMBERS, "true", "false", "null", "[1]"]]
WORDS = [word.replace("\\\\", "\\").replace('\\"', '"').encode() for word in seeds.WALK_WORDS + seeds.NPY_WORDS]
WORDS += [b"\x93NUMPY", b"\\u0041", b"\\/", b'"data"', b"\xef\xbb\xbf", b'","', TEXTS[0], b'"' + TEXTS[0] + b'",']


def edited(fdp, data):
    for _ in range(fdp.ConsumeIntInRange(0, 6)):
        at = fdp.ConsumeIntInRange(0, len(data))
        cut = fdp.ConsumeIntInRange(0, 3)
        piece = fdp.PickValueInList(WORDS) if fdp.ConsumeBool() else fdp.ConsumeBytes(fdp.ConsumeIntInRange(0, 4))
        data = data[:at] + piece + data[at + cut :]
    return data


def body_of(fdp, names):
    texts = [fdp.PickValueInList(TEXTS)] * fdp.ConsumeIntInRange(1, 4)
    if fdp.ConsumeBool():
        texts[-1] = edited(fdp, texts[-1])
    space = fdp.PickValueInList([b"", b" ", b"\n\t\r "])
    items = [b'"' + text + b'"' for text in texts]
    if names:
        items = [b'{"a":' + space + item + b"," + space + b'"bc":' + item + b"}" for item in items]
    error = b',"error":' + space + b"null" if fdp.ConsumeBool() else b""
    return b'{"data":' + space + b"[" + (b"," + space).join(items) + b"]" + space + error + space + b"}"


def numbers_of(fdp, shape):
    """Nested lists of that shape, now and then of another."""
    if not shape:
        return fdp.PickValueInList(NUMBERS)
    count = shape[0] + fdp.PickValueInList([0] * 30 + [1])
    return b"[" + b",".join([numbers_of(fdp, shape[1:]) for _ in range(count)]) + b"]"


def check_numbers(fdp):
    dtype, shape = fdp.PickValueInList([*ROWS, ("u1", (2,)), ("f2", (3,)), ("i8", ()), ("f8", (2, 0))])
    items = [numbers_of(fdp, shape) for _ in range(fdp.ConsumeIntInRange(1, 3))]
    body = edited(fdp, b'{"data":[' + b",".join(items) + b"]}")
    oracle.check_walk(body, None, dtype, shape)
    named = [b'{"a":' + item + b',"bc":' + item + b"}" for item in items]
    oracle.check_walk(edited(fdp, b'{"data":[' + b",".join(named) + b"]}"), ("a", "bc"), dtype, shape)


def check_document(doc):
    """As an item between two good ones, of rows of each kind, and alone: raw, and in base64."""
    text = oracle.b64(doc)
    alone = oracle.check_text(text)
    for dtype, shape in ROWS:
        oracle.check_walk(f'{{"data":["{text}","{text}"]}}'.encode(), None, dtype, shape)
    oracle.check_walk(b'{"data":["' + b'","'.join([TEXTS[0], text.encode(), TEXTS[0]]) + b'"]}')
    try:
        found = _codec.decode_npy(doc)
    except ItemError:
        assert alone is None
        return
    assert (alone is not None) == (len(found) == 1)


def test_one(data):
    fdp = atheris.FuzzedDataProvider(data)
    kind = fdp.ConsumeIntInRange(0, 6)
    if kind > 4:
        check_numbers(fdp)
        return
    if kind == 0:
        check_document(edited(fdp, fdp.PickValueInList(DOCUMENTS)))
        return
    if kind == 1:
        oracle.check_text(edited(fdp, fdp.PickValueInList(TEXTS)).decode("latin-1"))
        return
    names = ("a", "bc") if kind == 2 else None
    dtype, shape = fdp.PickValueInList(ROWS)
    body = edited(fdp, body_of(fdp, names))
    oracle.check_walk(body, names, dtype, shape)
    oracle.check_strings(body)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
