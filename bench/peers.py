"""Virtex beside what people would pick instead, on three jobs: make peers, or see --help.

  echo    a string of 100 characters, and back
  matrix  32 JSON numbers into a matrix product, 4 numbers out
  image   a float32 image of 602112 bytes as base64 in JSON, its mean out

bench/rivals/ has a file for each library: the three services as its documentation advises for speed, one worker each,
batches of 64 at most where it makes batches. Every server has the same one core, wrk another one. Only one server runs
at a time: some use a core with nothing to do. Each is started anew in each round, asked whether its answers are right,
warmed up, and measured at one connection and at 64. CPU time and memory are those of all its processes together. A
figure is the median of the rounds; "bare", bench/bare.py, is the yardstick of the same run.

What can't be measured is left out by name. On Linux the run lives in a network and a process namespace of its own:
there is nothing but loopback, so that nobody outside reaches a server nor a server anybody, and when the run ends, the
kernel ends what it started. Without that, Ray is left out, whose processes listen on every interface.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import subprocess
import sys
import time
import tokenize
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

import numpy as np

import virtex
from virtex.serial.numpy import encode_numpy

from .host import (
    GUNICORN,
    HERE,
    Load,
    Running,
    conclude,
    cpus_apart,
    fine_cpu_seconds,
    load,
    machine,
    need_proc,
    need_wrk,
    post,
    pss_bytes,
    running,
    table,
    wrk_version,
)

JOBS = ("echo", "matrix", "image")
RIVALS = HERE / "rivals"
IDLE_SECONDS = 3.0
PATIENCE = 3  # rounds that may fail, until a server is asked no more
APART = "VIRTEX_PEERS_APART"  # set in the namespaces of the run
NAMESPACES = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)


# The jobs


class Asked(NamedTuple):
    """One item of a job, and what its answer has to be."""

    item: Any
    answer: Any


def ask(job: str, generator: np.random.Generator, npy: bool = False) -> Asked:
    """npy: the image as base64 of a .npy document, as Virtex takes it; else of its bytes, which spares its header."""
    if job == "echo":
        text = "".join(generator.choice(list("abcdefghij"), 100))
        return Asked(text, text)
    if job == "matrix":
        row = generator.random(32, np.float32)
        return Asked(row.tolist(), (row @ WEIGHTS).tolist())
    image = generator.random((3, 224, 224), np.float32) * np.float32(generator.random())  # means apart
    return Asked(encode_numpy(image) if npy else base64.b64encode(image.tobytes()).decode(), float(image.mean()))


def body_of(asked: Asked) -> str:
    return json.dumps({"data": [asked.item]}, separators=(",", ":"))


# The servers


class Peer(NamedTuple):
    package: str  # whose version is told
    command: Callable[[str, str, str], list[str]]  # for a Python, a job and a port
    source: str = ""  # in rivals/
    brings: tuple[str, ...] = ()  # other packages whose versions matter
    path: str = "/"
    everywhere: bool = False  # listens on all interfaces, whatever it is told


def _uvicorn(app: str) -> Callable[[str, str, str], list[str]]:
    """What its own documentation advises for speed: uvloop, httptools, no line in a log for each request."""
    settings = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return lambda python, job, port: [
        *(python, "-m", "uvicorn", *settings, "--lifespan", "off", "--port", port),
        f"bench.rivals.{app}:{job}",
    ]


def _virtex(python: str, job: str, port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", f"bench.rivals.on_virtex:{job}"]


def _bare(python: str, job: str, port: str) -> list[str]:
    sink = ["--sink"] if job == "image" else []
    return [python, str(HERE / "bare.py"), port, '{"data":[0.5],"error":null}', *sink]


def _litserve(python: str, job: str, port: str) -> list[str]:
    return [python, "-W", "ignore", str(RIVALS / "on_litserve.py"), job, port]


def _mosec(python: str, job: str, port: str) -> list[str]:
    settings = ["--address", "127.0.0.1", "--port", port, "--log-level", "error"]
    return ["env", f"JOB={job}", python, str(RIVALS / "on_mosec.py"), *settings]  # it reads its arguments itself


def _bentoml(python: str, job: str, port: str) -> list[str]:
    service = f"bench.rivals.on_bentoml:{job.capitalize()}"
    return [python, "-W", "ignore", "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", port, "-q"]


def _ray(python: str, job: str, port: str) -> list[str]:
    """For throughput, and the replica answers on the port itself, with no proxy ahead of it."""
    reach = f"RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT={port}", f"RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT={int(port) + 1}"
    return ["env", "RAY_SERVE_THROUGHPUT_OPTIMIZED=1", *reach, python, str(RIVALS / "on_ray.py"), job]


UVICORN_BRINGS = ("uvicorn", "uvloop", "httptools")

PEERS: dict[str, Peer] = {
    "bare": Peer("uvloop", _bare, brings=("httptools",)),
    "Virtex": Peer("virtex", _virtex, "on_virtex.py", ("gunicorn", "uvloop", "httptools", "orjson")),
    "ASGI recipe": Peer("uvicorn", _uvicorn("on_asgi"), "on_asgi.py", ("uvloop", "httptools", "orjson", "pybase64")),
    "FastAPI": Peer("fastapi", _uvicorn("on_fastapi"), "on_fastapi.py", ("pydantic", *UVICORN_BRINGS)),
    "LitServe": Peer("litserve", _litserve, "on_litserve.py", ("fastapi", *UVICORN_BRINGS)),
    "mosec": Peer("mosec", _mosec, "on_mosec.py", ("orjson",), path="/inference"),
    "BentoML": Peer("bentoml", _bentoml, "on_bentoml.py", ("starlette", *UVICORN_BRINGS)),
    "Ray Serve": Peer("ray", _ray, "on_ray.py", UVICORN_BRINGS, everywhere=True),
}
QUICK = ("bare", "Virtex", "ASGI recipe", "FastAPI")


def environment(folder: str) -> dict[str, str]:
    """Of every server: nothing is reported to anybody, and what is written goes to the folder."""
    ray = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    return {"TMPDIR": folder, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": f"{folder}/bentoml"} | ray


def check(job: str, name: str, port: int) -> str | None:
    """Whether three items are each answered with what is theirs; None while nobody answers, or knows the path yet."""
    generator = np.random.default_rng(1)
    for _ in range(3):
        asked = ask(job, generator, npy=name == "Virtex")
        came = post(port, body_of(asked).encode(), path=PEERS[name].path)
        if came is None or came[0] == 404:
            return None
        if wrong := wrong_with(came, asked.answer, constant=name == "bare"):
            return wrong
    return ""


def wrong_with(came: tuple[int, bytes], answer: Any, constant: bool = False) -> str:
    """Empty where the reply has the answer, alone in "data" or, from BentoML, alone in a list."""
    if came[0] == 200:
        with suppress(ValueError, TypeError, KeyError):
            reply = json.loads(came[1])
            results = reply["data"] if isinstance(reply, dict) else reply
            if constant or (isinstance(answer, str) and results == [answer]):
                return ""
            numbers = not isinstance(answer, str) and np.shape(results) == np.shape([answer])
            if numbers and np.allclose(results, [answer], rtol=1e-4):
                return ""
    return f"expected 200 and {[answer]}, got {came[0]} {came[1][:200]!r}"


def lines_of_code(source: str) -> int:
    """Lines that hold code: neither empty, nor only a comment, nor a part of a docstring."""
    passed = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    readline = iter(source.splitlines(keepends=True)).__next__
    held: set[int] = set()
    for token in tokenize.generate_tokens(readline):
        if token.type not in passed:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            held.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(held)


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Those that are installed there."""
    asked = (
        "import importlib.metadata as m, json, sys\nfound = {}\nfor name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\nprint(json.dumps(found))"
    )
    ended = subprocess.run([python, "-c", asked, *packages], capture_output=True, text=True, check=True)
    return dict(json.loads(ended.stdout))


# The run


class Place(NamedTuple):
    """Where a peer runs, and what is there."""

    python: str
    versions: dict[str, str]


def find(names: Sequence[str], env: Path, apart: bool) -> tuple[dict[str, Place], dict[str, str]]:
    """Which Python has each peer, this one or that of the peers' environment; and why the others are left out."""
    pythons = [sys.executable] + [str(env / "bin/python")] * (env / "bin/python").exists()
    places: dict[str, Place] = {}
    left_out: dict[str, str] = {}
    for name in names:
        peer = PEERS[name]
        for python in pythons:
            there = versions(python, (peer.package, *peer.brings))
            if peer.package in there and name not in places:
                places[name] = Place(python, there | {"virtex": virtex.__version__} if name == "Virtex" else there)
        if name not in places:
            left_out[name] = f"{peer.package} is not installed: make peers"
        elif peer.everywhere and not apart:
            del places[name]
            left_out[name] = f"it listens on all interfaces, and here is no namespace for it ({NAMESPACES[0]}, ip)"
    return places, left_out


class Figures(NamedTuple):
    """One round of one server at one job."""

    single: Load
    many: Load
    idle_percent: float | None
    pss_bytes: int


def once(name: str, job: str, place: Place, arguments: argparse.Namespace, folder: str, output: IO[bytes]) -> Figures:
    serving, loading = cpus_apart()
    script = f"@{folder}/{job}-{'npy' if name == 'Virtex' else 'bytes'}", "application/json", PEERS[name].path
    command = partial(PEERS[name].command, place.python, job)
    with running(name, command, partial(check, job, name), serving, environment(folder), output) as server:
        load(server, 64, 1, loading, *script)  # caches, branch predictors, the interpreter's inline caches
        check(job, name, server.port)  # what wrk left behind is done
        single = load(server, 1, 1, loading, *script)
        many = load(server, 64, arguments.seconds, loading, *script)
        memory = pss_bytes(server.pid)
        check(job, name, server.port)
        return Figures(single, many, idle(server) if job == "echo" else None, memory)


def idle(server: Running) -> float:
    """The share of a core, in percent, that the server uses with nothing to do."""
    time.sleep(1)  # connections are closed, and what else follows a load
    before = fine_cpu_seconds(server.pid)
    time.sleep(IDLE_SECONDS)
    return 100 * (fine_cpu_seconds(server.pid) - before) / IDLE_SECONDS


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All servers at all jobs, interleaved. A round that fails is told; a server without a figure is left out."""
    places, left_out = find(arguments.servers, arguments.env, APART in os.environ)
    failures: dict[str, list[str]] = {}
    figures: dict[str, dict[str, list[Figures]]] = {name: {job: [] for job in JOBS} for name in places}
    with TemporaryDirectory(prefix="vx") as folder:  # short: sockets lie in it
        for job in JOBS:
            for kind in ("npy", "bytes"):
                asked = ask(job, np.random.default_rng(0), npy=kind == "npy")
                Path(folder, f"{job}-{kind}").write_text(body_of(asked))
        for job, name in ((job, name) for _ in range(arguments.runs) for job in JOBS for name in places):
            if len(failures.get(name, [])) == PATIENCE:
                continue
            with open(f"{folder}/said", "wb+") as output:
                try:
                    figures[name][job].append(once(name, job, places[name], arguments, folder, output))
                    print(".", end="", flush=True, file=sys.stderr)
                except SystemExit as stopped:
                    output.seek(0)
                    said = output.read().decode(errors="replace").strip()
                    failures.setdefault(name, []).append(f"{job}: {stopped}")
                    print(f"\n{name} failed: {stopped}\n{said[-2000:]}", file=sys.stderr)
        print(file=sys.stderr)
    kept = [name for name in places if all(figures[name].values())]
    left_out |= {name: failures[name][-1] for name in places if name not in kept}
    return {
        "what": "three jobs, one worker each, one core for the server",
        "machine": machine() | {"wrk": wrk_version()},
        "runs": arguments.runs,
        "seconds": arguments.seconds,
        "left_out": left_out,
        "failures": {name: whys for name, whys in failures.items() if name in kept},
        "results": [summary(name, places[name], figures[name]) for name in kept],
    }


def summary(name: str, place: Place, figures: dict[str, list[Figures]]) -> dict[str, Any]:
    source = PEERS[name].source
    return {
        "server": name,
        "package": PEERS[name].package,
        "versions": place.versions,
        "lines": lines_of_code((RIVALS / source).read_text()) if source else None,
        "idle_percent": round(median(one.idle_percent for one in figures["echo"] if one.idle_percent is not None), 2),
        "jobs": {job: _medians(rounds) for job, rounds in figures.items()},
    }


def _medians(rounds: Sequence[Figures]) -> dict[str, float]:
    return {
        "per_cpu_second": round(median(one.many.requests / max(one.many.cpu_seconds, 0.01) for one in rounds), 1),
        "per_second": round(median(one.many.requests / one.many.seconds for one in rounds), 1),
        "p50_ms": round(median(one.single.p50 for one in rounds), 3),
        "p99_ms": round(median(one.many.p99 for one in rounds), 3),
        "pss_mb": round(median(one.pss_bytes for one in rounds) / 1e6, 1),
    }


# The command


def apart() -> None:
    """Start this command again in namespaces of its own, where the system allows it."""
    if APART in os.environ:
        return
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*NAMESPACES, *inside, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if allowed:
        again = [sys.executable, "-m", "bench.peers", *sys.argv[1:]]
        os.execvpe(NAMESPACES[0], [*NAMESPACES, *inside, *again], os.environ | {APART: "1"})


def report(saved: dict[str, Any]) -> str:
    """The figures as a table, and who is not in it."""
    from .report import peers_columns

    lines = [table(peers_columns(saved))]
    lines += [f"{name} is left out: {why}" for name, why in saved["left_out"].items()]
    return "\n".join(lines + [f"{name} failed in: {'; '.join(whys)}" for name, whys in saved["failures"].items()])


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a load (default: %(default)s)")
    parser.add_argument("--servers", default=";".join(PEERS), help="some of: %(default)s")
    parser.add_argument("--quick", action="store_true", help=f"one short round of {'; '.join(QUICK)}: about a minute")
    parser.add_argument("--env", type=Path, default=HERE.parent / ".venv-peers", help="where the peers are installed")
    parser.add_argument("--json", type=Path, default=Path("build/peers.json"), help="where the figures go")
    arguments = parser.parse_args(given)
    arguments.servers = arguments.servers.split(";")
    if arguments.quick:
        arguments.runs, arguments.seconds, arguments.servers = 1, 1, list(QUICK)
    for name in arguments.servers:
        if name not in PEERS:
            parser.error(f"--servers: expected some of {'; '.join(PEERS)}, got {name!r}")
    return arguments


def main() -> None:
    arguments = parse()
    need_proc("bench/peers.py")
    need_wrk("bench/peers.py")
    apart()
    saved = measure(arguments)
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
