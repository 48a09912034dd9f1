"""What HttpClient.post costs beside the HTTP library alone: make bench, or see --help.

Both post the same message of one 100-character string to the same Virtex echo over one connection that stays open, and
both end with its answer's bytes: HttpClient's read as a message, the library's (httpx2.Client) as they are. Turns are
short and interleaved, so that a busy moment of the machine strikes both; of each the median of its turns' CPU time and
of its wall time counts. The ratio of CPU time is what the client's own code costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from virtex import HttpClient, HttpMessage

from .host import GUNICORN, conclude, cpus_apart, machine, need_proc, running, table
from .serve import BODY, ITEM, REPLY, check

AIM = 1.3  # of the library's time


def turn(post: Callable[[], Any], count: int) -> tuple[float, float]:
    """Microseconds of CPU and of wall time that a post takes."""
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    for _ in range(count):
        post()
    return (time.thread_time_ns() - cpu) / count / 1e3, (time.perf_counter_ns() - wall) / count / 1e3


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both, interleaved."""
    serving, _ = cpus_apart()
    command = lambda port: [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:echo"]  # noqa: E731
    with running("virtex", command, check, serving) as server:
        url = f"http://127.0.0.1:{server.port}/"
        with HttpClient(url) as client, httpx2.Client(trust_env=False) as library:
            posts = _posts(client, library, url)
            turns: dict[str, list[tuple[float, float]]] = {name: [] for name in posts}
            for post in posts.values():
                turn(post, arguments.posts)
            for _ in range(arguments.turns):
                for name, post in posts.items():
                    turns[name].append(turn(post, arguments.posts))
    cpu = {name: round(median(cpu for cpu, _ in each), 1) for name, each in turns.items()}
    wall = {name: round(median(wall for _, wall in each), 1) for name, each in turns.items()}
    ratios = {kind: round(took["HttpClient"] / took["httpx2"], 3) for kind, took in (("cpu", cpu), ("wall", wall))}
    return {
        "what": "one post of a 100-character string, one connection",
        "machine": machine("httpx2", "httpcore2", "h11"),
        "posts": arguments.posts,
        "turns": arguments.turns,
        "cpu_microseconds": cpu,
        "wall_microseconds": wall,
        "of_library": ratios,
    }


def _posts(client: HttpClient, library: httpx2.Client, url: str) -> dict[str, Callable[[], Any]]:
    """What is timed, once its answer is seen to be right."""
    message = HttpMessage(data=[ITEM])
    body, headers = BODY.encode(), {"content-type": "application/json"}
    posts = {
        "HttpClient": lambda: client.post(message),
        "httpx2": lambda: library.post(url, content=body, headers=headers).content,
    }
    if posts["HttpClient"]().data != [ITEM] or posts["httpx2"]() != REPLY.encode():
        raise SystemExit("an answer is not the echo of what was posted")
    return posts


def report(saved: dict[str, Any]) -> str:
    """The figures as a table, and the ratio."""
    cpu, wall = saved["cpu_microseconds"], saved["wall_microseconds"]
    rows = [("a post", "CPU us", "wall us"), *((name, f"{cpu[name]:.1f}", f"{wall[name]:.1f}") for name in cpu)]
    ratios = saved["of_library"]
    return f"{table(rows)}\nHttpClient / httpx2: {ratios['cpu']:.2f} of CPU, {ratios['wall']:.2f} of time; aim {AIM}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=200, help="posts in a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=30, help="turns of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/client.json"), help="where the figures go")
    arguments = parser.parse_args(given)
    need_proc("bench/client.py")
    saved = measure(arguments)
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
