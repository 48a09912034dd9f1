"""How much of a GPU is left when its images come over HTTP: make bench-gpu, or see --help.

A small convolutional network classifies float32 images of 602112 bytes. Offline: the same network over batches of the
same size, first over one that is on the device already ("resident"), then each copied there from page-locked memory and
its scores copied back ("copied"), as the service does it. Served: a TensorHandler with `device` under the worker,
clients in processes of their own, more connections than two batches have items. The idle gap is the device's time
between the end of one batch's network and the start of the next one's, copies included, by its own clock.

Scores are compared with the offline network's before anything is timed. Runs where torch finds the device.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from .apps import IMAGE
from .host import GUNICORN, Running, conclude, fine_cpu_seconds, machine, need_proc, post, running, table

Array = npt.NDArray[Any]


def why_not(device: str) -> str | None:
    """Why nothing can be measured on a device; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def images(count: int) -> Array:
    return np.random.default_rng(0).random((count, *IMAGE), np.float32)


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# The network, and how long the device was idle between its batches

WIDTHS = (32, 64, 128, 256)  # channels after each convolution, each of which halves the image


def network() -> Any:
    """The same weights in every process."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    channels = IMAGE[0]
    for width in WIDTHS:
        layers += [torch.nn.Conv2d(channels, width, 3, 2, 1), torch.nn.ReLU()]
        channels = width
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 10)
    )


class Marks:
    """When each batch began and ended, by the device's own clock; by the host's where it is a CPU."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch = torch
        self.cuda = torch.device(device).type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = self.torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each mark and the next."""
        if self.cuda:
            self.torch.cuda.synchronize()
            return [one.elapsed_time(other) for one, other in zip(self.marks, self.marks[1:], strict=False)]
        return [1e3 * (other - one) for one, other in zip(self.marks, self.marks[1:], strict=False)]


# Offline


def offline(device: str, batch: int, seconds: float) -> dict[str, float]:
    """Images per second without a server."""
    import torch

    model = network().to(device).eval()
    host = torch.from_numpy(images(batch))
    host = host.pin_memory() if torch.device(device).type == "cuda" else host
    resident = host.to(device)

    def copied() -> None:
        model(host.to(device, non_blocking=True)).cpu()

    def computed() -> None:
        model(resident)

    with torch.inference_mode():
        return {name: batch / per_call(f, device, seconds) for name, f in (("resident", computed), ("copied", copied))}


def per_call(f: Callable[[], None], device: str, seconds: float) -> float:
    """Seconds per call, over at least `seconds` of calls, the device's work included."""
    import torch

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        f()
    wait()
    calls = 0
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        for _ in range(8):
            f()
        calls += 8
        wait()
    return (time.perf_counter() - started) / calls


def expected(count: int) -> Array:
    """The scores of the first images, by the network on the host."""
    import torch

    with torch.inference_mode():
        return network().eval()(torch.from_numpy(images(count))).numpy()


# Served


def check(scores: Array, port: int) -> str | None:
    """Whether the service's scores are the network's; None while nobody answers. Devices round differently."""
    came = post(port, npy(images(len(scores))), "application/x-npy")
    if came is None:
        return None
    if came[0] != 200:
        return f"expected 200, got {came[0]} {came[1][:300]!r}"
    rows = np.stack([np.load(io.BytesIO(base64.b64decode(item))) for item in json.loads(came[1])["data"]])
    return "" if np.allclose(rows, scores, rtol=0.02, atol=0.01) else f"expected scores {scores}, got {rows}"


def served(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Images per second over HTTP, and what the device saw."""
    seen = folder / "seen.json"
    environment = {
        "VIRTEX_BENCH_DEVICE": arguments.device,
        "VIRTEX_BENCH_BATCH": str(arguments.batch),
        "VIRTEX_BENCH_REPORT": str(seen),
    }
    file = folder / "image.npy"
    file.write_bytes(npy(images(1)[0]))
    with running("conv", command, partial(check, expected(3)), os.sched_getaffinity(0), environment) as server:
        send(server, file, arguments, 1.0)
        before = fine_cpu_seconds(server.pid)
        rate = send(server, file, arguments, arguments.seconds)
        spent = fine_cpu_seconds(server.pid) - before
    return {
        "per_second": round(rate),
        "cpu_us": round(1e6 * spent / (rate * arguments.seconds), 1),
        **gaps(json.loads(seen.read_text()), arguments.batch),
    }


def command(port: str) -> list[str]:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "bench.apps:classifier"]


def send(server: Running, file: Path, arguments: argparse.Namespace, seconds: float) -> float:
    """Answers per second, of all clients together."""
    each = -(-arguments.connections // arguments.clients)
    what = [str(server.port), str(each), str(seconds), "application/x-npy", str(file)]
    posts = [sys.executable, "-m", "bench.posts", *what]
    clients = [subprocess.Popen(posts, stdout=subprocess.PIPE, text=True) for _ in range(arguments.clients)]
    said = [client.communicate(timeout=seconds + 120)[0] for client in clients]
    if any(client.returncode for client in clients):
        raise SystemExit("a client ended with an error")
    return sum(json.loads(one)["answers"] for one in said) / seconds


def gaps(seen: dict[str, Any], batch: int) -> dict[str, float]:
    """The device between neighbouring full batches: how long it was busy with one, and idle until the next."""
    pairs = list(zip(seen["sizes"], seen["sizes"][1:], seen["busy_ms"], seen["idle_ms"], strict=False))
    full = [(busy, idle) for one, other, busy, idle in pairs if one == other == batch]
    sizes = {"batches": len(seen["sizes"]), "full": len(full)}
    if not full:
        return sizes
    busy, idle = (sum(one) for one in zip(*full, strict=True))
    return {
        **sizes,
        "busy_ms": round(median(one for one, _ in full), 3),
        "idle_ms": round(median(one for _, one in full), 3),
        "idle_share": round(idle / (busy + idle), 3),
    }


# The command


def report(saved: dict[str, Any]) -> str:
    served, alone = saved["served"], saved["offline"]
    rows = [("", "images/s", "of resident", "of copied")]
    for name, rate in (("resident", alone["resident"]), ("copied", alone["copied"]), ("served", served["per_second"])):
        rows.append((name, f"{rate:.0f}", f"{rate / alone['resident']:.3f}", f"{rate / alone['copied']:.3f}"))
    lines = [f"{served['full']} of {served['batches']} batches were full and followed by a full one"]
    if "idle_ms" in served:
        lines.append(
            f"between them the device was idle for {served['idle_ms']:.3f} ms after {served['busy_ms']:.3f} ms of work "
            f"(medians), {100 * served['idle_share']:.1f} % of the time"
        )
    return "\n".join([table(rows), *lines, f"{served['cpu_us']:.0f} us of the server's CPU time per image"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="a torch device; cpu only tries the program (default: cuda)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=192, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="processes that send (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of serving (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"), help="where the figures go")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    need_proc("bench/gpu.py")
    why = why_not(arguments.device)
    if why is not None:
        print(f"bench/gpu.py is skipped: {why}")
        return
    with TemporaryDirectory(prefix="virtex-") as name:
        saved = {
            "what": "a small convolutional network over float32 images (3, 224, 224) as application/x-npy, one worker",
            "machine": machine("torch", "uvloop", "httptools", "numpy", "gunicorn")
            | {"device": named(arguments.device)},
            "batch": arguments.batch,
            "connections": arguments.connections,
            "offline": offline(arguments.device, arguments.batch, min(arguments.seconds, 3.0)),
            "served": served(arguments, Path(name)),
        }
    conclude(saved, arguments.json, report(saved))


def named(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


if __name__ == "__main__":
    main()
