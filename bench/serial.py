"""What it costs to send each library's objects as text and have them back: make bench, or see --help.

Each library's own object of about 1 KB, 602112 bytes (an image of float32) and 16 MB is encoded and decoded by

  virtex     encode_x and decode_x
  original   the recipe of Virtex 0.1: a pickle of the array behind the object, base64 with line breaks
  public     the fastest safe way that others offer, and pybase64

Every way is first checked to bring an equal object back. A figure is the CPU time of the process for one encode and
one decode, the median of rounds in which the ways take turns. A library that is not installed is left out.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import math
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from virtex import serial

from .host import conclude, machine, table

SIZES = {"1 KB": 1024, "602112 B": 602112, "16 MB": 16 << 20}
ROUND_SECONDS = 0.02  # of one way in one round, at least one call
BESIDE = 1.15  # of decode_numpy's time, at most, for decode_torch of an image


class Way(NamedTuple):
    """How an object becomes text, and how text becomes an object."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class Case(NamedTuple):
    """A library: its object of so many bytes, whether two are equal, and the ways by name."""

    make: Callable[[int], Any]
    same: Callable[[Any, Any], bool]
    ways: dict[str, Way]


def floats(nbytes: int) -> Any:
    return np.random.default_rng(0).random(nbytes // 4, np.float32)


def pickled(array: Any) -> str:
    return base64.encodebytes(pickle.dumps(array)).decode()


def unpickled(text: str) -> Any:
    return pickle.loads(base64.decodebytes(text.encode()))


def torch_case() -> Case:
    import pybase64
    import torch
    from safetensors.torch import load, save

    return Case(
        lambda nbytes: torch.from_numpy(floats(nbytes)),
        torch.equal,
        {
            "virtex": Way(serial.encode_torch, serial.decode_torch),
            "original": Way(lambda tensor: pickled(tensor.numpy()), lambda text: torch.tensor(unpickled(text))),
            "public": Way(
                lambda tensor: pybase64.b64encode_as_string(save({"": tensor})),
                lambda text: load(pybase64.b64decode(text, validate=True))[""],
            ),
        },
    )


def tensorflow_case() -> Case:
    import pybase64
    import tensorflow as tf

    return Case(
        lambda nbytes: tf.constant(floats(nbytes)),
        lambda a, b: bool(tf.reduce_all(a == b)),
        {
            "virtex": Way(serial.encode_tf, serial.decode_tf),
            "original": Way(lambda tensor: pickled(tensor.numpy()), lambda text: tf.constant(unpickled(text))),
            "public": Way(
                lambda tensor: pybase64.b64encode_as_string(tf.io.serialize_tensor(tensor).numpy()),
                lambda text: tf.io.parse_tensor(pybase64.b64decode(text, validate=True), tf.float32),
            ),
        },
    )


def mxnet_case() -> Case:
    import pybase64

    serial.decode_mx(serial.encode_numpy(floats(64)))  # imports MXNet, whatever NumPy is there
    import mxnet

    return Case(
        lambda nbytes: mxnet.nd.array(floats(nbytes)),
        lambda a, b: bool((a == b).asnumpy().all()),
        {
            "virtex": Way(serial.encode_mx, serial.decode_mx),
            "original": Way(lambda array: pickled(array.asnumpy()), lambda text: mxnet.nd.array(unpickled(text))),
            "public": Way(
                lambda array: pybase64.b64encode_as_string(array.asnumpy().data),
                lambda text: mxnet.nd.array(np.frombuffer(pybase64.b64decode(text, validate=True), "f4")),
            ),
        },
    )


def frames_case(make: Callable[[int], Any]) -> Case:
    import io

    import pandas as pd
    import pyarrow as pa
    import pybase64

    def arrow(frame: Any) -> str:
        file = io.BytesIO()
        table = pa.Table.from_pandas(frame)
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        return pybase64.b64encode_as_string(file.getbuffer())

    def of_arrow(text: str) -> Any:
        return pa.ipc.open_stream(pybase64.b64decode(text, validate=True)).read_pandas()

    return Case(
        make,
        pd.DataFrame.equals,
        {
            "virtex": Way(serial.encode_pandas, serial.decode_pandas),
            "original": Way(pickled, unpickled),
            "public": Way(arrow, of_arrow),
        },
    )


def frame_of_numbers(nbytes: int) -> Any:
    import pandas as pd

    return pd.DataFrame(np.random.default_rng(0).random((nbytes // 160 or 1, 20)), columns=[f"c{i}" for i in range(20)])


def frame_of_all(nbytes: int) -> Any:
    """Two columns of numbers, one of text, one of datetimes and one of categories: about 40 bytes a row."""
    import pandas as pd

    rows = np.arange(nbytes // 40)
    kinds = pd.Categorical.from_codes(rows % 3, ["new", "old", "lost"])
    columns = {"price": rows / 7, "count": rows, "name": [f"item {i:06}" for i in rows], "kind": kinds}
    return pd.DataFrame(columns | {"seen": pd.date_range("2020", periods=len(rows), freq="s")})


def pillow_case() -> Case:
    import pybase64
    from PIL import Image

    def image(nbytes: int) -> Any:
        side = math.isqrt(nbytes // 3)
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))

    def bare(image: Any) -> str:
        width, height = image.size
        return f"{width} {height} {pybase64.b64encode_as_string(image.tobytes())}"

    def of_bare(text: str) -> Any:
        width, height, pixels = text.split()
        return Image.frombytes("RGB", (int(width), int(height)), pybase64.b64decode(pixels, validate=True))

    return Case(
        image,
        lambda a, b: bool(a == b),
        {
            "virtex": Way(serial.encode_pil, serial.decode_pil),
            "original": Way(lambda image: pickled(np.asarray(image)), lambda text: Image.fromarray(unpickled(text))),
            "public": Way(bare, of_bare),
        },
    )


# Of one more library: its name as it is imported, then what its objects are, and its case.
CASES: dict[str, Callable[[], Case]] = {
    "torch": torch_case,
    "tensorflow": tensorflow_case,
    "mxnet": mxnet_case,
    "pandas, floats": lambda: frames_case(frame_of_numbers),
    "pandas, mixed": lambda: frames_case(frame_of_all),
    "PIL, RGB": pillow_case,
}


# Time


def timed(call: Callable[[Any], Any], value: Any, calls: int) -> float:
    """Microseconds of CPU for one call."""
    start = time.process_time()
    for _ in range(calls):
        call(value)
    return 1e6 * (time.process_time() - start) / calls


def measure(case: Case, nbytes: int, runs: int) -> dict[str, dict[str, float]]:
    """Microseconds to encode and to decode, by way."""
    value = case.make(nbytes)
    steps: list[tuple[str, str, Callable[[Any], Any], Any, int]] = []
    for name, way in case.ways.items():
        text = way.encode(value)
        assert case.same(value, way.decode(text)), f"{name} brought another object back"
        for what, call, given in (("encode", way.encode, value), ("decode", way.decode, text)):
            calls = max(1, int(1e6 * ROUND_SECONDS / max(1.0, timed(call, given, 3))))
            steps.append((name, what, call, given, calls))
    spent: dict[tuple[str, str], list[float]] = {(name, what): [] for name, what, *_ in steps}
    for _ in range(runs):
        for name, what, call, given, calls in steps:
            spent[name, what].append(timed(call, given, calls))
    return {name: {what: round(median(spent[name, what]), 2) for what in ("encode", "decode")} for name in case.ways}


def beside_numpy(runs: int) -> float:
    """How long decode_torch of an image takes, decode_numpy's time being 1."""
    text = serial.encode_numpy(floats(602112))
    calls = [serial.decode_numpy, serial.decode_torch]
    pairs = [[timed(call, text, 200) for call in calls] for _ in range(runs)]
    return round(median(ours / plain for plain, ours in pairs), 3)


def report(saved: dict[str, Any]) -> str:
    rows = [("", "size", "way", "encode us", "decode us")]
    for row in saved["rows"]:
        for way, us in row["ways"].items():
            rows.append((row["library"], row["size"], way, f"{us['encode']:,.1f}", f"{us['decode']:,.1f}"))
    came = saved["torch_beside_numpy"]
    if came is None:
        return table(rows)
    verdict = "met" if came <= BESIDE else "MISSED"
    return f"{table(rows)}\ndecode_torch of an image: {came:.2f} of decode_numpy, at most {BESIDE:g}: {verdict}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, action="append", help="one library; several may be given")
    parser.add_argument("--runs", type=int, default=15, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/serial.json"), help="where the figures go")
    return parser.parse_args(arguments)


def module_of(library: str) -> str:
    return library.partition(",")[0]


def package_of(library: str) -> str:
    return {"PIL": "pillow"}.get(module_of(library), module_of(library))


def main() -> None:
    arguments = parse()
    rows = []
    for library in arguments.only or CASES:
        if importlib.util.find_spec(module_of(library)) is None:
            print(f"{library} is left out: it is not installed", file=sys.stderr)
            continue
        case = CASES[library]()
        for size, nbytes in SIZES.items():
            rows.append({"library": library, "size": size, "ways": measure(case, nbytes, arguments.runs)})
    has_torch = any(row["library"] == "torch" for row in rows)
    saved = {
        "machine": machine("numpy", "pybase64", *dict.fromkeys(package_of(row["library"]) for row in rows)),
        "runs": arguments.runs,
        "rows": rows,
        "torch_beside_numpy": beside_numpy(arguments.runs) if has_torch else None,
    }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
