"""What the Open Inference Protocol costs beside messages, and beside PyTriton where it is: python -m bench.v2 --help.

Two models, one worker each, load by wrk: the identity of 32 floats of six digits, and the mean of a float32 image of
602112 bytes. The numbers go as a message, as V2 in JSON and as V2 in bytes; the image as x-npy and as V2 in bytes,
above the yardstick "bare": a server on uvloop that lets the kernel copy the same body, and answers constant bytes.

--pytriton names the Python of an environment with nvidia-pytriton. It answers the same bytes on the same CPU; its time
is that of Triton and of the process of the model. Every figure is the median of several runs, interleaved.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from .apps import IMAGE, NUMBERS
from .host import (
    GUNICORN,
    HERE,
    PYTHON,
    Load,
    Running,
    conclude,
    cpus_apart,
    load,
    machine,
    need_proc,
    need_wrk,
    running,
    table,
    wrk_version,
)

TARGETS = {"JSON": 1.2, "bytes above bare": 1.15, "pytriton": 5.0}  # the last at least, the others at most
LENGTH = "Inference-Header-Content-Length"


def identity() -> Any:
    from virtex import Tensor, TensorHandler, http_server

    class Identity(TensorHandler):
        inputs = outputs = Tensor("float32", (NUMBERS,))

        def run_inference(self, batch: Any) -> Any:
            return batch

    return http_server(name="identity", handler=Identity)


def mean() -> Any:
    from virtex import Tensor, TensorHandler, http_server

    class Mean(TensorHandler):
        inputs, outputs = Tensor("float32", IMAGE), Tensor("float32")

        def run_inference(self, batch: Any) -> Any:
            return batch.mean((1, 2, 3))

    return http_server(name="mean", handler=Mean)


MODELS = {"identity": (NUMBERS,), "mean": IMAGE}


class Asked(NamedTuple):
    """A request. length: of V2's head where bytes are behind it, else ""."""

    path: str
    content_type: str
    body: bytes
    length: str = ""


def batch_of(model: str, seed: int) -> Any:
    """One item, with the batch's dimension. Of six digits, as people write numbers."""
    return np.random.default_rng(seed).random((1, *MODELS[model])).round(6).astype("f4")


def message(model: str, seed: int) -> Asked:
    text = json.dumps({"data": [[round(float(x), 6) for x in batch_of(model, seed).ravel()]]}, separators=(",", ":"))
    return Asked("/", "application/json", text.encode())


def x_npy(model: str, seed: int) -> Asked:
    file = io.BytesIO()
    np.save(file, batch_of(model, seed)[0])
    return Asked("/", "application/x-npy", file.getvalue())


def v2(is_binary: bool, model: str, seed: int) -> Asked:
    batch = batch_of(model, seed)
    given = {"name": "input", "shape": batch.shape, "datatype": "FP32"}
    if not is_binary:
        given["data"] = [round(float(x), 6) for x in batch.ravel()]
        text = json.dumps({"inputs": [given]}, separators=(",", ":"))
        return Asked(f"/v2/models/{model}/infer", "application/json", text.encode())
    given["parameters"] = {"binary_data_size": batch.nbytes}
    wanted = {"binary_data_output": True}
    head = json.dumps({"parameters": wanted, "inputs": [given]}, separators=(",", ":")).encode()
    return Asked(f"/v2/models/{model}/infer", "application/octet-stream", head + batch.tobytes(), str(len(head)))


v2_json, v2_bytes = partial(v2, False), partial(v2, True)

# model: {row: (what is sent, who answers)}
CASES: dict[str, dict[str, tuple[Callable[[str, int], Asked], str]]] = {
    "identity": {
        "message": (message, "virtex"),
        "V2 in JSON": (v2_json, "virtex"),
        "V2 in bytes": (v2_bytes, "virtex"),
        "pytriton": (v2_bytes, "pytriton"),
    },
    "mean": {
        "bare": (x_npy, "bare"),
        "x-npy": (x_npy, "virtex"),
        "V2 in bytes": (v2_bytes, "virtex"),
        "pytriton": (v2_bytes, "pytriton"),
    },
}


def command(model: str, who: str, pytriton: str, port: str) -> list[str]:
    if who == "bare":
        return [*PYTHON, str(HERE / "bare.py"), port, "{}", "--sink"]
    if who == "pytriton":
        return [pytriton, str(HERE / "rivals" / "on_pytriton.py"), model, port]
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", f"bench.v2:{model}()"]


def posted(port: int, asked: Asked) -> tuple[int, Any, bytes] | None:
    """Status, headers and body; None while nobody answers, or the model is not there yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"content-type": asked.content_type} | ({LENGTH: asked.length} if asked.length else {})
    try:
        connection.request("POST", asked.path, asked.body, headers)
        response = connection.getresponse()
        return None if response.status in (400, 404, 503) else (response.status, response.headers, response.read())
    except OSError:
        return None
    finally:
        connection.close()


def check(model: str, row: str, port: int) -> str | None:
    """Whether three answers are each that of their own request; None while nobody answers."""
    ask, who = CASES[model][row]
    for seed in range(3):
        came = posted(port, ask(model, seed))
        if came is None or who == "bare":
            return None if came is None else ""
        batch = batch_of(model, seed)
        expected = batch if model == "identity" else batch.mean((1, 2, 3))
        if came[0] != 200 or not np.allclose(_numbers(*came[1:]), expected.ravel(), rtol=1e-4):
            return f"expected 200 and {expected}, got {came[0]} {came[2][:300]!r}"
    return ""


def _numbers(headers: Any, body: bytes) -> Any:
    if LENGTH in headers:
        return np.frombuffer(body[int(headers[LENGTH]) :], "f4")
    said = json.loads(body)
    return np.array(said["outputs"][0]["data"] if "outputs" in said else said["data"]).ravel()


def measure(model: str, arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """All rows of one model, interleaved."""
    serving, loading = cpus_apart()
    rows = {row: case for row, case in CASES[model].items() if case[1] != "pytriton" or arguments.pytriton}
    loads: dict[str, list[Load]] = {row: [] for row in rows}
    scripts: dict[str, list[str]] = {}
    for row, (ask, _) in rows.items():
        asked = ask(model, 9)
        file = folder / f"{model} {row}"
        file.write_bytes(asked.body)
        scripts[row] = [f"@{file}", asked.content_type, asked.path, asked.length]

    def send(server: Running, seconds: int) -> Load:
        connections = arguments.connections if model == "identity" else max(1, arguments.connections // 4)
        return load(server, connections, seconds, loading, *scripts[server.name])

    with ExitStack() as stack, (folder / "log").open("wb") as log:
        servers = [
            stack.enter_context(
                running(
                    row, partial(command, model, who, arguments.pytriton), partial(check, model, row), serving, {}, log
                )
            )
            for row, (_, who) in rows.items()
        ]
        for server in servers:
            send(server, arguments.seconds)
        for _ in range(arguments.runs):
            for server in servers:
                loads[server.name].append(send(server, arguments.seconds))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return {row: summary(found) for row, found in loads.items()}


def summary(found: Sequence[Load]) -> dict[str, float]:
    cpu = median(one.cpu_seconds / one.requests for one in found)
    return {"cpu_us": cpu * 1e6, "per_cpu_second": 1 / cpu, "p50_ms": median(one.p50 for one in found)}


def report(saved: dict[str, Any]) -> str:
    """The figures as tables, and what was aimed at."""
    parts = []
    for model, rows in saved["models"].items():
        cells = [
            (row, f"{at['cpu_us']:.1f}", f"{at['per_cpu_second']:.0f}", f"{at['p50_ms']:.2f}")
            for row, at in rows.items()
        ]
        parts.append(f"{model}\n{table([('', 'CPU us', 'req/CPU-s', 'p50 ms'), *cells])}")
    return "\n".join([*parts, *targets(saved["models"])])


def targets(models: dict[str, Any]) -> Iterator[str]:
    numbers, images = models["identity"], models["mean"]
    cost = numbers["V2 in JSON"]["cpu_us"] / numbers["message"]["cpu_us"]
    yield f"V2 in JSON costs {cost:.2f} of a message: at most {TARGETS['JSON']}"
    bare = images["bare"]["cpu_us"]
    above = (images["V2 in bytes"]["cpu_us"] - bare) / (images["x-npy"]["cpu_us"] - bare)
    yield f"an image in bytes of V2 costs {above:.2f} of x-npy, above bare: at most {TARGETS['bytes above bare']}"
    for model, rows in models.items():
        if "pytriton" in rows:
            times = rows["V2 in bytes"]["per_cpu_second"] / rows["pytriton"]["per_cpu_second"]
            aim = TARGETS["pytriton"]
            yield f"{model}: {times:.1f} times the requests of PyTriton for a CPU-second: at least {aim}"


def version_of(pytriton: str) -> str:
    asked = "from importlib.metadata import version; print(version('nvidia-pytriton'))"
    return subprocess.run([pytriton, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.v2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--connections", type=int, default=64, help="that send; for images a quarter (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs per server (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run (default: %(default)s)")
    parser.add_argument("--pytriton", default="", metavar="PYTHON", help="of an environment with nvidia-pytriton")
    parser.add_argument(
        "--json", type=Path, default=Path("build/v2.json"), help="where the figures go (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    need_proc("bench/v2.py")
    need_wrk("bench/v2.py")
    described = machine("uvloop", "httptools", "orjson", "numpy", "gunicorn")
    described["versions"]["wrk"] = wrk_version()
    if arguments.pytriton:
        described["versions"]["nvidia-pytriton"] = version_of(arguments.pytriton)
    with TemporaryDirectory(prefix="virtex-bench-") as folder:
        models = {model: measure(model, arguments, Path(folder)) for model in CASES}
    saved = {
        "what": f"one worker, {arguments.connections} connections",
        "machine": described,
        "runs": arguments.runs,
        "seconds": arguments.seconds,
        "models": models,
    }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
