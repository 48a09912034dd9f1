"""How many requests of JSON numbers a server answers per second of its own CPU: python -m bench.numbers --help.

An item is 32 floats of six digits, its answer four of them; one item a request, one worker, load by wrk. The yardsticks
are our own echo of a string of 100 characters, and a careful ASGI callable (orjson, np.asarray, no batches) under
uvicorn. Every figure is the median of several runs, interleaved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from . import serve
from .apps import NUMBERS, SCORES
from .host import (
    GUNICORN,
    UVICORN,
    Running,
    conclude,
    cpus_apart,
    keep_installed,
    load,
    need_proc,
    need_wrk,
    post,
    running,
)

TEXTS = [f"0.{(i * 7919 + 104729) % 899999 + 100000}" for i in range(NUMBERS)]
BODY = f'{{"data":[[{",".join(TEXTS)}]]}}'
REPLY = f'{{"data":[[{",".join(text.rstrip("0") for text in TEXTS[:SCORES])}]],"error":null}}'


def _virtex(app: str) -> Callable[[str], list[str]]:
    return lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", f"bench.apps:{app}"]


# name: (the module it needs, its command line for a port, what is sent, what comes back)
SERVERS: dict[str, tuple[str, Callable[[str], list[str]], str, str]] = {
    "virtex": ("gunicorn", _virtex("numbers"), BODY, REPLY),
    "virtex, data: np.ndarray": ("gunicorn", _virtex("listed_numbers"), BODY, REPLY),
    "virtex, echo of text": ("gunicorn", _virtex("echo"), serve.BODY, serve.REPLY),
    "uvicorn": ("uvicorn", lambda port: [*UVICORN, "--port", port, "bench.apps:plain_numbers"], BODY, REPLY),
}


def check_of(name: str) -> Callable[[int], str | None]:
    """Says what is wrong with that server's answer; None while nobody answers."""

    def check(port: int) -> str | None:
        came, expected = post(port, SERVERS[name][2].encode()), (200, SERVERS[name][3].encode())
        return None if came is None else "" if came == expected else f"expected {expected}, got {came}"

    return check


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All servers, interleaved."""
    serving, loading = cpus_apart()
    rates: dict[str, list[float]] = {name: [] for name in arguments.servers}

    def ask(server: Running, seconds: int) -> float:
        done = load(server, arguments.connections, seconds, loading, SERVERS[server.name][2])
        return done.requests / done.cpu_seconds

    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(name, SERVERS[name][1], check_of(name), serving)) for name in arguments.servers
        ]
        for server in servers:
            ask(server, 1)  # caches, branch predictors, the interpreter's inline caches
        for _ in range(arguments.runs):
            for server in servers:
                rates[server.name].append(ask(server, arguments.seconds))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return {
        "what": f"{NUMBERS} floats in, {SCORES} out, one worker, {arguments.connections} connections",
        "machine": serve.machine_of(serving, loading),
        "runs": arguments.runs,
        "seconds": arguments.seconds,
        "per_cpu_second": {name: round(median(found)) for name, found in rates.items()},
        "each": rates,
    }


def report(saved: dict[str, Any]) -> str:
    """The figures as a table."""
    rates = saved["per_cpu_second"]
    beside = [name for name in ("uvicorn", "virtex, echo of text") if name in rates]
    lines = [saved["what"], f"{'server':<26}{'req/CPU-s':>10}" + "".join(f"  of {name}" for name in beside)]
    for name, rate in rates.items():
        lines.append(
            f"{name:<26}{rate:>10}" + "".join(f"{rate / rates[other]:>{len(other) + 5}.2f}" for other in beside)
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs per server (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/numbers.json"), help="where the figures go")
    parsed = parser.parse_args(arguments)
    parsed.servers = list(SERVERS)
    return parsed


def main() -> None:
    arguments = parse()
    need_proc("bench/numbers.py")
    need_wrk("bench/numbers.py")
    keep_installed(arguments, {name: server[0] for name, server in SERVERS.items()})
    saved = measure(arguments)
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
