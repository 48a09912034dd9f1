"""The codec against a memory copy and against other ways to carry arrays, interleaved in one run.

`python -m bench.codec` prints two tables and saves their figures; `--saved` prints those of a saved run, `--draw` makes
a picture of them. VIRTEX_SIMD forces an instruction set. Every way is first checked to bring the same numbers back. A
figure is the median of rounds in which all ways take turns, in CPU time of the thread: on a machine that does
other things too, a clock on the wall measures those as well.
"""

import argparse
import base64
import gc
import io
import json
import os
import pickle
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pyarrow
import pybase64
import safetensors.numpy

from virtex import _codec, codec_info
from virtex.batch.outputs import rows_by_name
from virtex.info import cpu
from virtex.serial import decode_numpy, encode_json, encode_numpy

IMAGE = 3 * 224 * 224  # float32 values: 602112 bytes
SIZES = [64, 1024, 65536, 4 * IMAGE, 4 << 20]
TARGETS = {  # of memcpy, or ns; what the project set out to reach with AVX2
    "1 image": (0.36, 0.45),
    "1 image from DRAM": (0.80, 0.80),
    "8 images in one body": (0.85, 0.90),
    "64 B into a row": (70, 70),
    "64 B to a new array": (150, None),
    "32 x 64 B, each": (25, 25),
}


# -- the codec and the copy


def body_of(rows):
    return b'{"data":["' + b'","'.join(encode_numpy(row).encode() for row in rows) + b'"]}'


class Case:
    """Bodies and rows of one size, taken in turn, so that a pool larger than the caches comes from DRAM each time."""

    def __init__(self, name, count, values, pool=1):
        rng = np.random.default_rng(0)
        self.name, self.turn, self.per_item = name, 0, count > 8
        self.rows = [rng.random((count, values), "f4") for _ in range(pool)]
        self.bodies = [body_of(rows) for rows in self.rows]
        self.into = np.empty_like(self.rows[0])
        self.copies = [np.empty_like(self.rows[0]) for _ in range(pool)] if pool > 1 else [self.into]
        self.count, self.nbytes = count, self.rows[0].nbytes
        if pool == 1:  # spares the small ones the pool's bookkeeping
            self.decode = lambda scan=_codec.scan, body=self.bodies[0], rows=self.into: scan(body).into(rows)
            self.encode = lambda encode=_codec.encode_rows, rows=self.rows[0]: encode(rows)

    def next(self):
        self.turn = (self.turn + 1) % len(self.rows)
        return self.turn

    def decode(self):
        i = self.next()
        _codec.scan(self.bodies[i]).into(self.copies[i % len(self.copies)])

    def encode(self):
        return _codec.encode_rows(self.rows[self.next()])

    def copy(self):
        i = self.next()
        np.copyto(self.copies[i % len(self.copies)], self.rows[i])

    def check(self):
        for _ in self.rows:
            self.decode()
            assert (self.copies[self.turn % len(self.copies)] == self.rows[self.turn]).all()
            assert self.encode()[:-14] == self.bodies[self.turn][:-1]


class Small(Case):
    """One array, without the walk; the items are found beforehand."""

    def __init__(self, name, new):
        super().__init__(name, 1, 16)
        self.text, self.items = encode_numpy(self.rows[0][0]), _codec.scan(self.bodies[0])
        self.array = self.rows[0][0]
        if new:
            self.decode = lambda: decode_numpy(self.text)
            self.check = lambda: None
        else:
            self.decode = lambda: self.items.into(self.into)
        self.encode = lambda: encode_numpy(self.array)

    def check(self):
        self.decode()
        assert (self.into == self.rows[0]).all()


def cases():
    return [
        Case("1 image", 1, IMAGE),
        Case("1 image from DRAM", 1, IMAGE, pool=160),
        Case("8 images in one body", 8, IMAGE),
        Small("64 B into a row", False),
        Small("64 B to a new array", True),
        Case("32 x 64 B, each", 32, 16),
        Case("scan and into, 64 B", 1, 16),
    ]


# -- other ways to carry one array


def arrow_encode(array):
    sink = pyarrow.BufferOutputStream()
    pyarrow.ipc.write_tensor(pyarrow.Tensor.from_numpy(array), sink)
    return sink.getvalue()


def npy_encode(array):
    out = io.BytesIO()
    np.save(out, array)
    return base64.b64encode(out.getvalue())


MSGSPEC = msgspec.json.Encoder(), msgspec.json.Decoder(dict[str, list[bytes]])
FROM_BYTES = {"dtype": "f4"}
WAYS = {
    "virtex": (lambda a: _codec.encode_rows(a[None]), None),
    "pybase64 + orjson": (
        lambda a: orjson.dumps({"data": [pybase64.b64encode_as_string(a.data)]}),
        lambda b: np.frombuffer(pybase64.b64decode(orjson.loads(b)["data"][0], validate=True), **FROM_BYTES),
    ),
    "msgspec": (
        lambda a: MSGSPEC[0].encode({"data": [a.data]}),
        lambda b: np.frombuffer(MSGSPEC[1].decode(b)["data"][0], **FROM_BYTES),
    ),
    "stdlib base64 + json": (
        lambda a: json.dumps({"data": [base64.b64encode(a).decode()]}),
        lambda b: np.frombuffer(base64.b64decode(json.loads(b)["data"][0], validate=True), **FROM_BYTES),
    ),
    "np.save + base64": (npy_encode, lambda b: np.load(io.BytesIO(base64.b64decode(b)))),
    "pickle + base64": (lambda a: base64.encodebytes(pickle.dumps(a)), lambda b: pickle.loads(base64.decodebytes(b))),
    "float lists, orjson": (
        lambda a: orjson.dumps({"data": [a]}, option=orjson.OPT_SERIALIZE_NUMPY),
        lambda b: np.array(orjson.loads(b)["data"][0], "f4"),
    ),
    "safetensors (binary)": (lambda a: safetensors.numpy.save({"a": a}), lambda b: safetensors.numpy.load(b)["a"]),
    "pyarrow tensor (binary)": (arrow_encode, lambda b: pyarrow.ipc.read_tensor(pyarrow.BufferReader(b)).to_numpy()),
    "memcpy": (None, None),
}


def virtex_decoder(array):
    rows = np.empty((1, *array.shape), array.dtype)

    def decode(body):
        _codec.scan(body).into(rows)
        return rows[0]

    return decode


def way(name, array):
    """Functions without arguments: encode and decode of this array."""
    encode, decode = WAYS[name]
    copy = np.empty_like(array)
    if name == "memcpy":
        return (lambda: np.copyto(copy, array),) * 2
    decode = decode or virtex_decoder(array)
    made = encode(array)
    assert (decode(made) == array).all(), name
    return lambda: encode(array), lambda: decode(made)


# -- numbers of JSON into rows


def short_numbers(rng, shape):
    """Of 4 to 8 digits, with a sign now and then."""
    decimals = rng.integers(2, 6, shape)
    return np.vectorize(round)(rng.uniform(-100, 100, shape), decimals)


NUMBERS = {  # the values as they are written, the dtype of the rows, and how many times faster the aim is
    "32 floats of 6 digits": (lambda rng: np.round(rng.random((1, 32)), 6), "f4", None),
    "1000 x 64, 17 digits": (lambda rng: rng.random((1000, 64)), "f4", 4),
    "1000 x 64, 4 to 8 digits": (lambda rng: short_numbers(rng, (1000, 64)), "f4", 4),
    "1000 x 64 int64": (lambda rng: rng.integers(-(2**63), 2**63 - 1, (1000, 64)), "i8", 5),
    "1000 x 64 uint8": (lambda rng: rng.integers(0, 256, (1000, 64)), "u1", None),
    "1 image, 17 digits": (lambda rng: rng.random((1, 3, 224, 224)), "f4", 4),
}
PARSED = "orjson + np.asarray"


def number_ways(name):
    """The body, and functions without arguments that bring its numbers into the same rows."""
    make, dtype, _ = NUMBERS[name]
    values = make(np.random.default_rng(2))
    body = orjson.dumps({"data": values.tolist()})
    rows = np.empty(values.shape, dtype)

    def straight():
        _codec.scan(body).into(rows)
        return rows

    def parsed():
        rows[...] = np.asarray(orjson.loads(body)["data"], dtype)
        return rows

    expected = values.astype(dtype)
    for fill in (straight, parsed):
        rows.fill(0)
        assert (fill() == expected).all(), name
    return body, {"virtex": straight, PARSED: parsed}


# -- rows into numbers of JSON

WHOLE = "orjson, the whole array"
ROWS = (64, 4)  # a batch of scores, float32


def written_ways():
    """Functions without arguments that write the same rows: as one text, and as the replies of requests."""
    rows = np.random.default_rng(3).random(ROWS, "f4")

    def replies(each):
        batch = rows_by_name({"": rows})
        return [batch.part(i, i + each).json(True) for i in range(0, ROWS[0], each)]

    ways = {
        WHOLE: lambda: orjson.dumps(rows, None, orjson.OPT_SERIALIZE_NUMPY),
        "encode_json": lambda: encode_json(rows),
        "the reply of one request": lambda: replies(64),
        "the replies of 16 requests": lambda: replies(4),
        "the replies of 64 requests": lambda: replies(1),
    }
    for name, call in ways.items():
        came = call()
        lists = [orjson.loads(came)] if name in (WHOLE, "encode_json") else [orjson.loads(one)["data"] for one in came]
        assert (np.concatenate(lists).astype("f4") == rows).all(), name
    return ways


# -- measuring


def once(call, repeats):
    begin = time.thread_time_ns()
    for _ in range(repeats):
        call()
    return (time.thread_time_ns() - begin) / repeats


def interleaved(calls, rounds, budget_ns=4_000_000):
    """Median nanoseconds of each call; all take turns in each round, so that a slow spell hits them alike."""
    repeats = {name: max(1, min(20_000, int(budget_ns / max(once(call, 3), 20)))) for name, call in calls.items()}
    samples = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(once(call, repeats[name]))
    finally:
        gc.enable()
    return {name: statistics.median(s) for name, s in samples.items()}


def header():
    """What the figures depend on."""
    info = codec_info()
    packages = " ".join(f"{name} {version(name)}" for name in ("numpy", "orjson", "pybase64"))
    python = f"python {platform.python_version()}, {packages}"
    return [
        f"virtex isa={info['isa']} (forced: {'yes' if info['forced'] else 'no'}; "
        f"available: {' '.join(info['available'])})",
        f"{cpu()}, {len(os.sched_getaffinity(0))} cores, {platform.platform()}, {python}",
    ]


def measure(rounds):
    results = {"header": header(), "isa": codec_info()["isa"], "cases": {}, "numbers": {}, "ways": {}}
    for case in cases():
        case.check()
        calls = {"decode": case.decode, "encode": case.encode, "memcpy": case.copy, "empty call": lambda: len("")}
        results["cases"][case.name] = interleaved(calls, rounds) | {"bytes": case.nbytes, "items": case.count}
    for name in NUMBERS:
        body, calls = number_ways(name)
        count = NUMBERS[name][0](np.random.default_rng(2)).size
        results["numbers"][name] = interleaved(calls, rounds) | {"bytes": len(body), "numbers": count}
    results["written"] = interleaved(written_ways(), rounds)
    for size in SIZES:
        array = np.random.default_rng(1).random(size // 4, "f4")
        calls = {}
        for name in WAYS:
            calls[name, "encode"], calls[name, "decode"] = way(name, array)
        for (name, kind), ns in interleaved(calls, max(3, rounds // 3)).items():
            results["ways"].setdefault(name, {}).setdefault(kind, {})[str(size)] = ns
    return results


# -- showing


def case_row(name, case):
    target = TARGETS.get(name, (None, None))
    cells = [name]
    for kind, goal in zip(("decode", "encode"), target, strict=True):
        if case["bytes"] > 4096:
            cells += [
                f"{case[kind] / 1000:.1f} µs",
                f"{case['memcpy'] / case[kind]:.2f}",
                f"{goal:.2f}" if goal else "",
            ]
        else:
            each = case["items"]
            cells += [f"{case[kind] / each:.0f} ns", "", f"{goal} ns" if goal else ""]
    return [*cells, f"{case['memcpy'] / 1000:.1f} µs"]


def number_row(name, case):
    ns, aim = case["virtex"], NUMBERS[name][2]
    return [
        name,
        f"{ns / 1000:.2f} µs",
        f"{ns / case['numbers']:.1f} ns",
        f"{case['bytes'] / ns:.2f}",
        f"{case[PARSED] / 1000:.2f} µs",
        f"{case[PARSED] / ns:.1f}",
        f"{aim}" if aim else "",
    ]


def written_row(name, ns, written):
    aim = "" if name in (WHOLE, "the replies of 64 requests") else "1.2"
    return [name, f"{ns / 1000:.2f} µs", f"{ns / written[WHOLE]:.2f}", aim]


def tables(results):
    """Lines of Markdown: the codec against memcpy, then against other ways."""
    head = ["", "decode", "of memcpy", "aim", "encode", "of memcpy", "aim", "memcpy"]
    yield from table(head, [case_row(name, case) for name, case in results["cases"].items()])
    yield f"An empty Python call: {results['cases']['1 image']['empty call']:.0f} ns."
    yield ""
    if "numbers" in results:
        head = ["numbers of JSON into rows", "virtex", "each", "GB/s of text", PARSED, "times", "aim"]
        yield from table(head, [number_row(name, case) for name, case in results["numbers"].items()])
    if "written" in results:
        head = ["64 x 4 float32 into numbers of JSON", "", "of orjson", "aim"]
        yield from table(head, [written_row(name, ns, results["written"]) for name, ns in results["written"].items()])
    for kind in ("decode", "encode"):
        rows = [
            [name, *(f"{int(size) / ns[kind][size]:.3g}" for size in map(str, SIZES))]
            for name, ns in results["ways"].items()
        ]
        yield from table([f"{kind}, GB/s of array", *(f"{size} B" for size in SIZES)], rows)


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


COLOURS = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#000000"]


def draw(path, results):
    """GB/s over size, both logarithmic: decoding left, encoding right."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="960" height="420" font-family="sans-serif" font-size="11">',
        '<rect width="960" height="420" fill="white"/>',
    ]
    for panel, kind in enumerate(("decode", "encode")):
        left = 50 + panel * 370
        parts += axes(left, kind)
        for (name, ns), colour in zip(results["ways"].items(), COLOURS, strict=True):
            points = " ".join(f"{left + x_of(size):.1f},{y_of(size / ns[kind][str(size)]):.1f}" for size in SIZES)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"><title>{name}'
                "</title></polyline>"
            )
    for i, (name, colour) in enumerate(zip(results["ways"], COLOURS, strict=True)):
        parts.append(f'<text x="790" y="{60 + 20 * i}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="50" y="410" fill="#555">{results["header"][1]}; {results["isa"]}</text></svg>')
    path.write_text("\n".join(parts))


def x_of(size):
    return 330 * np.log2(size / 64) / np.log2((4 << 20) / 64)


def y_of(gbs):
    return 370 - 330 * (np.log10(max(gbs, 0.01)) + 2) / 4.2


def axes(left, kind):
    yield f'<text x="{left}" y="25" font-size="14">{kind}, GB/s of array over its size</text>'
    for size, label in zip(SIZES, ("64 B", "1 KB", "64 KB", "588 KB", "4 MB"), strict=True):
        x = left + x_of(size)
        yield f'<line x1="{x:.1f}" y1="30" x2="{x:.1f}" y2="370" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{386 if label != "588 KB" else 397}" text-anchor="middle">{label}</text>'
    for gbs in (0.01, 0.1, 1, 10, 100):
        yield f'<line x1="{left}" y1="{y_of(gbs):.1f}" x2="{left + 330}" y2="{y_of(gbs):.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - 4}" y="{y_of(gbs) + 4:.1f}" text-anchor="end">{gbs:g}</text>'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--json", type=Path, default=Path("build/codec.json"), help="where to save the figures, or find them"
    )
    parser.add_argument("--saved", action="store_true", help="measure nothing: use the saved figures")
    parser.add_argument("--draw", type=Path, help="an SVG file")
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.saved else measure(args.rounds)
    args.json.write_text(json.dumps(results, indent=1))
    print(*results["header"], "", *tables(results), sep="\n")
    if args.draw:
        draw(args.draw, results)


if __name__ == "__main__":
    main()
