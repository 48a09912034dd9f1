"""What it costs to take an image over HTTP into a batch: make bench, or see --help.

64 connections send one float32 image of 602112 bytes each, as base64 in JSON and as application/x-npy; the model reads
one number of it. Counted is the CPU time of the server (user and system), not that of the load generator, wrk, whose
request lies in one buffer. The yardstick is "bare": a server on uvloop that lets the kernel copy the same body into one
buffer and answers constant bytes. Beside it:

  tensor   a TensorHandler under the worker: bodies are decoded into the rows of the batch
  stacked  a RequestHandler under the worker: decode_numpy of each item, and np.stack
  plain    an ASGI callable under uvicorn: orjson, pybase64, np.load, and np.stack
  pickle   the same with the codec of Virtex 0.1: pickle and the standard library's base64

Every number is the median of several runs, interleaved. "busy" is the share of a core that the server used, "faults"
the pages per request that it had to be given. The copies are counted in runs of their own: memcpy, memmove and memset
of 4096 bytes or more. Ideal is none: the kernel copies the body into its place, and base64 is decoded from there into
the batch; for .npy it is one copy of the array, or none where the kernel writes into the batch.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from virtex.serial.numpy import encode_numpy

from .apps import IMAGE
from .host import (
    GUNICORN,
    HERE,
    PYTHON,
    UVICORN,
    Load,
    Running,
    conclude,
    cpus_apart,
    keep_installed,
    load,
    machine,
    need_proc,
    need_wrk,
    post,
    running,
    table,
    wrk_version,
)

Array = npt.NDArray[Any]

TARGETS = {"above bare": 130.0, "plain": 5.0, "pickle": 15.0, "stacked": 1.4}  # us at most, then ratios at least
COUNTED = 50  # requests whose copies are counted


def json_body(image: Array) -> bytes:
    return b'{"data":["%b"]}' % encode_numpy(image).encode()


def npy_body(image: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()


def pickle_body(image: Array) -> bytes:
    return json.dumps({"data": [base64.encodebytes(pickle.dumps(image)).decode()]}).encode()


class Wire(NamedTuple):
    """One way to send an image."""

    content_type: str
    body: Callable[[Array], bytes]


JSON = Wire("application/json", json_body)
NPY = Wire("application/x-npy", npy_body)
PICKLE = Wire("application/json", pickle_body)

# wire: {name: (what it is sent, what it runs)}
CASES: dict[str, dict[str, tuple[Wire, str]]] = {
    "json": {
        "bare": (JSON, "sink"),
        "tensor": (JSON, "virtex bench.apps:pixel"),
        "stacked": (JSON, "virtex bench.apps:stacked_pixel"),
        "plain": (JSON, "uvicorn bench.apps:plain_pixel_json"),
        "pickle": (PICKLE, "uvicorn bench.apps:plain_pixel_pickle"),
    },
    "npy": {
        "bare": (NPY, "sink"),
        "tensor": (NPY, "virtex bench.apps:pixel"),
        "stacked": (NPY, "virtex bench.apps:stacked_pixel"),
        "plain": (NPY, "uvicorn bench.apps:plain_pixel_npy"),
    },
}
NEEDS = {"bare": "uvloop", "tensor": "gunicorn", "stacked": "gunicorn", "plain": "pybase64", "pickle": "pybase64"}


def command(runs: str, port: str) -> list[str]:
    kind, _, app = runs.partition(" ")
    if kind == "sink":
        return [*PYTHON, str(HERE / "bare.py"), port, '{"data":[0.5],"error":null}', "--sink"]
    if kind == "virtex":
        return [*GUNICORN, "--bind", f"127.0.0.1:{port}", app]
    return [*UVICORN, "--port", port, app]


# Servers


class Service(NamedTuple):
    """A server that runs, and the file with the request body that it is sent."""

    name: str
    wire: Wire
    server: Running
    file: Path


def check(wire: Wire, constant: bool, port: int) -> str | None:
    """Whether the answers to three images are each the first number of its own; None while nobody answers."""
    generator = np.random.default_rng(0)
    for _ in range(3):
        image = generator.random(IMAGE, np.float32)
        came = post(port, wire.body(image), wire.content_type)
        if came is None:
            return None
        expected = [0.5 if constant else float(image[0, 0, 0])]
        if came[0] != 200 or not np.allclose(json.loads(came[1])["data"], expected, rtol=1e-6):
            return f"expected 200 and {expected}, got {came[0]} {came[1][:200]!r}"
    return ""


@contextmanager
def service(case: str, name: str, folder: Path, cpus: set[int], **environment: str) -> Iterator[Service]:
    wire, runs = CASES[case][name]
    file = folder / f"{case}-{name}"
    file.write_bytes(wire.body(np.random.default_rng(1).random(IMAGE, np.float32)))
    checked = partial(check, wire, name == "bare")
    with running(name, partial(command, runs), checked, cpus, environment) as server:
        yield Service(name, wire, server, file)


def send(one: Service, connections: int, seconds: int, cpus: set[int]) -> Load:
    return load(one.server, connections, seconds, cpus, f"@{one.file}", one.wire.content_type)


# Time


def measure(case: str, names: Sequence[str], arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All servers of one wire, interleaved."""
    serving, loading = cpus_apart()
    loads: dict[str, list[Load]] = {name: [] for name in names}
    with ExitStack() as stack:
        services = [stack.enter_context(service(case, name, folder, serving)) for name in names]
        for one in services:
            send(one, arguments.connections, 1, loading)  # caches, and the pages of the buffers
        for _ in range(arguments.runs):
            for one in services:
                loads[one.name].append(send(one, arguments.connections, arguments.seconds, loading))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return summary(loads)


def summary(loads: dict[str, list[Load]]) -> list[dict[str, Any]]:
    """A row for each server. Differences and ratios are taken within a round, of runs that are neighbours in time."""
    spent = {name: [1e6 * run.cpu_seconds / run.requests for run in runs] for name, runs in loads.items()}
    rows = []
    for name, runs in loads.items():
        row: dict[str, Any] = {"server": name, "us": round(median(spent[name]), 1)}
        if "bare" in spent:
            above = [mine - bare for mine, bare in zip(spent[name], spent["bare"], strict=True)]
            row["above_bare"] = round(median(above), 1)
        if "tensor" in spent:
            times = [mine / ours for mine, ours in zip(spent[name], spent["tensor"], strict=True)]
            row["of_tensor"] = round(median(times), 2)
        row["faults"] = round(median(run.faults / run.requests for run in runs), 1)
        row["per_second"] = round(median(run.requests / run.seconds for run in runs))
        row["busy"] = round(median(run.cpu_seconds / run.seconds for run in runs), 2)
        rows.append(row | {"runs": [list(run) for run in runs]})
    return rows


# Copies


def copies(case: str, names: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """Bytes copied and set per request, by memcpy, memmove and memset; empty where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("copies are not counted: no C compiler", file=sys.stderr)
        return {}
    library = folder / "copies.so"
    if not library.exists():
        source = str(HERE / "copies.c")
        flags = ["-O2", "-fno-builtin", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
        subprocess.run([compiler, *flags], check=True)
    return {name: count_copies(case, name, folder, library) for name in names}


def count_copies(case: str, name: str, folder: Path, library: Path) -> dict[str, float]:
    counters = folder / "counters"
    counters.write_bytes(bytes(16))
    preload = {"LD_PRELOAD": str(library), "VIRTEX_BENCH_COPIES": str(counters)}
    with service(case, name, folder, cpus_apart()[0], **preload) as one:
        before = read_counters(counters)
        post_all(one, COUNTED)
        copied, zeroed = (after - was for after, was in zip(read_counters(counters), before, strict=True))
    return {"copied": round(copied / COUNTED), "set": round(zeroed / COUNTED)}


def read_counters(file: Path) -> tuple[int, int]:
    copied, zeroed = np.fromfile(file, "uint64").tolist()
    return copied, zeroed


def post_all(one: Service, count: int) -> None:
    """One after another on one connection, so that no request is cut off by the end of the run."""
    body = one.file.read_bytes()
    connection = http.client.HTTPConnection("127.0.0.1", one.server.port, timeout=10)
    for _ in range(count):
        connection.request("POST", "/", body, {"content-type": one.wire.content_type})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{one.name}: {response.status} {response.read()[:200]!r}")
        response.read()
    connection.close()


# The command


COLUMNS = ("server", "us/request", "above bare", "of tensor", "requests/s", "busy", "faults", "copied", "set")


def report(saved: dict[str, Any]) -> str:
    """The figures as tables, each with what was aimed at."""
    texts = []
    for case in saved["cases"]:
        rows = [COLUMNS, *(cells(row, case["copies"]) for row in case["rows"])]
        texts += [f"{case['wire']}: a body of {case['body_bytes']} bytes", table(rows), *targets(case["rows"]), ""]
    return "\n".join(texts)


def cells(row: dict[str, Any], counted: dict[str, dict[str, float]]) -> tuple[str, ...]:
    above, times = row.get("above_bare"), row.get("of_tensor")
    copied = counted.get(row["server"], {})
    return (
        row["server"],
        f"{row['us']:.1f}",
        "-" if above is None else f"{above:.1f}",
        "-" if times is None else f"{times:.2f}",
        str(row["per_second"]),
        f"{row['busy']:.2f}",
        f"{row['faults']:.1f}",
        *(str(copied.get(key, "-")) for key in ("copied", "set")),
    )


def targets(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    found = {row["server"]: row for row in rows}
    if "bare" in found and "tensor" in found:
        came, most = found["tensor"]["above_bare"], TARGETS["above bare"]
        yield f"tensor above bare: {came:.1f} us, at most {most:g}: {'met' if came <= most else 'MISSED'}"
    for name in ("plain", "pickle", "stacked"):
        if name in found and "tensor" in found:
            came, least = found[name]["of_tensor"], TARGETS[name]
            yield f"{name} of tensor: {came:.2f}, at least {least:g}: {'met' if came >= least else 'MISSED'}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs per server and wire (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run (default: %(default)s)")
    parser.add_argument("--wires", default=",".join(CASES), help="of %(default)s (default: both)")
    parser.add_argument("--servers", default=",".join(NEEDS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/images.json"), help="where the figures go")
    parsed = parser.parse_args(arguments)
    parsed.wires = parsed.wires.split(",")
    parsed.servers = parsed.servers.split(",")
    for given, known in ((parsed.wires, CASES), (parsed.servers, NEEDS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"expected some of {', '.join(known)}, got {unknown[0]!r}")
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("bench/images.py")
    need_wrk("bench/images.py")
    keep_installed(arguments, NEEDS)
    cases = []
    with TemporaryDirectory(prefix="virtex-") as name:
        folder = Path(name)
        for case in arguments.wires:
            names = [server for server in arguments.servers if server in CASES[case]]
            rows = measure(case, names, arguments, folder)
            size = (folder / f"{case}-{names[0]}").stat().st_size
            cases.append({"wire": case, "body_bytes": size, "rows": rows, "copies": copies(case, names, folder)})
    found = machine("uvloop", "httptools", "orjson", "numpy", "gunicorn", "uvicorn", "pybase64")
    found["versions"]["wrk"] = wrk_version()
    saved = {
        "what": f"one float32 image {IMAGE} per request, its first number as the answer, one worker",
        "machine": found,
        "connections": arguments.connections,
        "runs": arguments.runs,
        "seconds": arguments.seconds,
        "targets": TARGETS,
        "cases": cases,
    }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
