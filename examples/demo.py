"""Serves examples/digits.py with gunicorn and sends it the images it was not trained on: make demo, make serve."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import uvloop
from digits import split, train
from loadtest import HELP, load_test
from serving import HOST, START_SECONDS, free_port, gunicorn, stop_on_sigterm, wait_until_ready
from tqdm import tqdm

from virtex import HttpClient, HttpMessage
from virtex.errors import ClientError
from virtex.serial import encode_numpy

RATE = 200  # requests a second of --loadtest

SNIPPET = """
from sklearn.datasets import load_digits
from virtex import HttpClient, HttpMessage
from virtex.serial import encode_numpy

message = HttpMessage(data=list(load_digits().images[:3].astype("uint8")))
message.encode(encode_numpy)
print(HttpClient("{url}").post(message).data)
"""


# The load


def message_of(image: np.ndarray) -> HttpMessage:
    message = HttpMessage(data=[image])
    message.encode(encode_numpy)
    return message


async def in_lanes(count: int, todo: Sequence[int], work: Callable[[int], asyncio.Future[None]]) -> None:
    """Run work(x) for each x, `count` at a time."""
    rest = iter(todo)

    async def lane() -> None:
        for x in rest:
            await work(x)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(count):
            lanes.create_task(lane())


async def open_connections(client: HttpClient, message: HttpMessage, count: int) -> None:
    """Have every connection answered once, so that neither connecting nor a worker still training is measured."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            await asyncio.gather(*(client.post_async(message) for _ in range(count)))
            return
        except ClientError as error:
            if error.status != 503 or time.monotonic() > deadline:
                raise SystemExit(f"the service does not answer: {error}") from None
            await asyncio.sleep(0.05)


async def every_worker_answers(url: str, message: HttpMessage, connections: int) -> None:
    async with HttpClient(url, max_connections=connections, raise_errors=True) as client:
        await open_connections(client, message, connections)


async def send(url: str, images: np.ndarray, connections: int, rounds: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Post each image in a message of its own, `rounds` times over; answers (digit, batch), seconds of each, in all."""
    messages = [message_of(image) for image in images]
    answers = np.zeros((rounds * len(images), 2), int)
    seconds = np.zeros(rounds * len(images))

    async def post(n: int) -> None:
        began = time.perf_counter()
        answer = (await client.post_async(messages[n % len(messages)])).data[0]
        seconds[n] = time.perf_counter() - began
        answers[n] = answer["digit"], answer["batch"]
        bar.update()

    async with HttpClient(url, max_connections=connections, raise_errors=True) as client:
        await open_connections(client, messages[0], connections)
        with tqdm(total=len(answers), desc="images", unit="") as bar:
            began = time.perf_counter()
            await in_lanes(connections, range(len(answers)), post)
            return answers, seconds, time.perf_counter() - began


# The report


def report(answers: np.ndarray, seconds: np.ndarray, elapsed: float, digits: np.ndarray, offline: np.ndarray) -> bool:
    """Print what was measured; whether every answer is the one that the model gives without a server."""
    served = answers[:, 0]
    rounds = len(served) // len(digits)
    right = int((served == np.tile(digits, rounds)).sum())
    wrong = int((served != np.tile(offline, rounds)).sum())
    p50, p90, p99 = np.percentile(seconds * 1e3, (50, 90, 99))
    offline_accuracy = (offline == digits).mean()
    print(f"accuracy     {right / len(served):.6f} served, {offline_accuracy:.6f} offline ({len(digits)} images)")
    print(f"throughput   {len(served) / elapsed:.0f} requests/s")
    print(f"latency      p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms")
    print(f"batches      {batches(answers[:, 1])}")
    if wrong:
        print(
            f"{wrong} of {len(served)} answers are not the ones that the model gives without a server", file=sys.stderr
        )
    return not wrong and right == rounds * int((offline == digits).sum())


def batches(sizes: np.ndarray) -> str:
    """How many batches of which size formed: each image says how many it was read with, itself included."""
    formed = {size: max(1, round(count / size)) for size, count in sorted(Counter(sizes.tolist()).items())}
    mean = len(sizes) / sum(formed.values())
    return f"{sum(formed.values())}, of {mean:.1f} images on average: " + ", ".join(
        f"{n} of {s}" for s, n in formed.items()
    )


def demo(arguments: argparse.Namespace) -> bool:
    """Start the service, send it the held-out images, say how it went."""
    _, images, _, digits = split()
    print(f"digits: {len(images)} held-out images, {arguments.rounds} times over, {arguments.connections} connections")
    port = arguments.port or free_port()
    with gunicorn("digits:app", port, arguments.workers) as process:
        offline = train().predict(images.reshape(len(images), -1))
        wait_until_ready(process, port)
        url = f"http://{HOST}:{port}/"
        answers, seconds, elapsed = uvloop.run(send(url, images, arguments.connections, arguments.rounds))
    return report(answers, seconds, elapsed, digits, offline)


def show_load_test(arguments: argparse.Namespace) -> None:
    """Start the service, and send it each held-out image once, RATE of them a second."""
    messages = [message_of(image) for image in split()[1]]
    port = arguments.port or free_port()
    url = f"http://{HOST}:{port}/"
    with gunicorn("digits:app", port, arguments.workers) as process:
        wait_until_ready(process, port)
        uvloop.run(every_worker_answers(url, messages[0], arguments.connections))
        load_test(url, messages, RATE)


def serve(arguments: argparse.Namespace) -> None:
    """Start the service, say how to ask it, and wait for Ctrl-C."""
    port = arguments.port or free_port()
    url = f"http://{HOST}:{port}/"
    with gunicorn("digits:app", port, arguments.workers) as process:
        wait_until_ready(process, port)
        _, images, _, digits = split()
        body = message_of(images[0]).json.decode()
        print(f"\nThe service is on {url} (Ctrl-C stops it). A handwritten {digits[0]}, from the shell:\n")
        print(f"curl {url} -d '{body}'\n\nand three images from Python ({sys.executable}):")
        print(SNIPPET.format(url=url), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave the service running")
    parser.add_argument("--loadtest", action="store_true", help=HELP)
    parser.add_argument("--port", type=int, default=0, help="where it listens on 127.0.0.1 (default: a free port)")
    parser.add_argument("--workers", type=int, default=2, help="gunicorn workers (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="sending at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="how often each image is sent (default: %(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    stop_on_sigterm()
    try:
        if arguments.serve:
            serve(arguments)
            return 0
        if arguments.loadtest:
            show_load_test(arguments)
            return 0
        return 0 if demo(arguments) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
