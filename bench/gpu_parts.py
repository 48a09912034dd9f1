"""What bench/gpu.py measures, a part at a time: copies, networks offline, and the same networks served.

Run: python -m bench.gpu_parts PART, with what to do as JSON; prints the figures as a last line of JSON.
Each part is a process of its own, so that one that fails, or a device that it loses, costs the others nothing.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .host import GUNICORN, Running, fine_cpu_seconds, post, running
from .networks import Array, Case, Marks, cases, placed

COPIED = 64 << 20  # bytes of a copy that is timed
NPY = "application/x-npy"


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# Copies


def copies(said: dict[str, Any]) -> dict[str, Any]:
    """Gigabytes per second there and back: torch's own page-locked memory beside that of rows and of answers."""
    import torch

    from virtex import Tensor
    from virtex.batch.device import Cuda, Device

    device, size = said["device"], COPIED if said["device"] != "cpu" else 1 << 20
    rows = Tensor("uint8", (size,))
    there = torch.empty(size, dtype=torch.uint8, device=device)
    if torch.device(device).type == "cuda":
        ours = Cuda(device)
        host, memory, locked = ours.allocate(rows, 1), ours.buffer(size), ours.locked(size)
        into = ours.rows(memory, rows, 1)
        bare = torch.empty(size, dtype=torch.uint8).pin_memory()
        own = partial(ours.send, host, into), partial(ours.fetch, memory, locked, size)
    else:
        array = Device(device).allocate(rows, 1)[0]
        bare = torch.empty(size, dtype=torch.uint8)
        mine = torch.from_numpy(array)
        own = partial(there.copy_, mine), partial(mine.copy_, there)
    back = partial(bare.copy_, there, non_blocking=True)
    timed = {
        "h2d_bare": partial(there.copy_, bare, non_blocking=True),
        "h2d": own[0],
        "d2h_bare": back,
        "d2h": own[1],
    }
    found = {name: round(size / 1e6 / milliseconds(f, device), 2) for name, f in timed.items()}
    return found | {
        "h2d_of_bare": round(found["h2d"] / found["h2d_bare"], 3),
        "d2h_of_bare": round(found["d2h"] / found["d2h_bare"], 3),
    }


def milliseconds(f: Callable[[], Any], device: str) -> float:
    """Of one call, by the device's clock: the best of five runs of ten."""
    marks = Marks(device)
    for _ in range(6):  # the first one warms up
        marks.mark()
        for _ in range(10):
            f()
    marks.mark()
    return min(marks.milliseconds()[1:]) / 10


# Offline


def offline(case: Case, device: str, seconds: float) -> dict[str, float]:
    """Items per second without a server: of a batch that is there, and of one that is copied there and back."""
    import torch

    model = placed(case, device)
    host = torch.from_numpy(case.items(case.batch))
    host = host.pin_memory() if torch.device(device).type == "cuda" else host
    there = host.to(device)

    def copied() -> None:
        model(host.to(device, non_blocking=True)).cpu()

    with torch.inference_mode():
        resident = per_call(lambda: model(there), device, seconds)
        both = per_call(copied, device, seconds)
    return {"batch_ms": round(1e3 * resident, 3), "resident": case.batch / resident, "copied": case.batch / both}


def per_call(f: Callable[[], Any], device: str, seconds: float) -> float:
    """Seconds per call, over at least `seconds` of calls, the device's work included."""
    import torch

    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for _ in range(3):
        f()
    wait()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        for _ in range(4):
            f()
        calls += 4
        wait()
    return (time.perf_counter() - started) / calls


# Served


def served(said: dict[str, Any]) -> dict[str, Any]:
    """A case by workers of the service, beside itself offline where that is asked for."""
    case, device, seconds = cases(said["device"] == "cpu")[said["case"]], said["device"], said["seconds"]
    found: dict[str, Any] = offline(case, device, min(seconds, 2.0)) if said.get("offline") else {}
    found["workers"] = said["workers"]
    with TemporaryDirectory(prefix="virtex-") as name:
        settings = {"case": said["case"], "device": device, "graphs": said["graphs"], "folder": name}
        file = Path(name) / "body.npy"
        file.write_bytes(npy(case.items(case.sent)))
        command = partial(_command, said["workers"])
        check = partial(_check, case, device)
        environment = {"VIRTEX_BENCH_GPU": json.dumps(settings)}
        with running(said["case"], command, check, os.sched_getaffinity(0), environment) as server:
            _send(server, file, case, min(1.0, seconds), said)
            before = fine_cpu_seconds(server.pid)
            rate = _send(server, file, case, seconds, said)
            spent = fine_cpu_seconds(server.pid) - before
        seen = [json.loads(path.read_text()) for path in Path(name).glob("*.json")]
    found |= {"served": rate, "cpu_us": round(1e6 * spent / (rate * seconds), 2), **gaps(seen, case.batch)}
    if "copied" in found:
        found |= {"of_resident": rate / found["resident"], "of_copied": rate / found["copied"]}
    return found


def _command(workers: int, port: str) -> list[str]:
    return [*GUNICORN, "-w", str(workers), "--bind", f"127.0.0.1:{port}", "bench.gpu_app:app"]


def _check(case: Case, device: str, port: int) -> str | None:
    """Whether the service's answers are the network's; None while nobody answers. Devices round differently."""
    came = post(port, npy(case.items(3)), NPY)
    if came is None:
        return None
    if came[0] != 200:
        return f"expected 200, got {came[0]} {came[1][:300]!r}"
    import torch

    rows = np.stack([np.load(io.BytesIO(base64.b64decode(item))) for item in json.loads(came[1])["data"]])
    with torch.inference_mode():
        expected = placed(case, device)(torch.from_numpy(case.items(3)).to(device)).cpu().numpy()
    close = np.allclose(rows, expected, rtol=0.02, atol=0.02)
    return "" if close else f"expected {expected}, got {rows}"


def _send(server: Running, file: Path, case: Case, seconds: float, said: dict[str, Any]) -> float:
    """Items per second, of all clients together; each worker has three batches' worth of requests to answer."""
    clients = said["clients"]
    each = -(-3 * said["workers"] * case.batch // (case.sent * clients))
    posts = [sys.executable, "-m", "bench.posts", str(server.port), str(each), str(seconds), NPY, str(file)]
    processes = [subprocess.Popen(posts, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    printed = [process.communicate(timeout=seconds + 60)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a client ended with an error")
    return case.sent * sum(json.loads(one)["answers"] for one in printed) / seconds


def gaps(seen: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """The device between neighbouring full batches of a worker: how long it was busy with one, and idle behind it."""
    pairs = [
        pair
        for one in seen
        for pair in zip(one["sizes"], one["sizes"][1:], one["busy_ms"], one["idle_ms"], strict=False)
    ]
    full = [(busy, idle) for one, other, busy, idle in pairs if one == other == batch]
    sizes = {"batches": sum(len(one["sizes"]) for one in seen), "full": len(full)}
    if not full:
        return sizes
    busy, idle = (median(one) for one in zip(*full, strict=True))
    return {**sizes, "busy_ms": round(busy, 4), "gap_us": round(1e3 * idle, 1)}


PARTS = {"copies": copies, "served": served}

if __name__ == "__main__":
    if json.loads(sys.argv[2])["device"] == "cpu":
        import torch

        torch.set_num_threads(1)  # the server needs the other cores
    print(json.dumps(PARTS[sys.argv[1]](json.loads(sys.argv[2]))))
