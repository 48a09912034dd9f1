"""Whether a GPU does what Virtex asks of it, a step at a time: the first part of bench/gpu.py, and of any first run.

Run: python -m bench.gpu_first DEVICE. Each step is printed when it begins, with how long it took when it ends, so what
was printed last is what failed or hangs. The last line is JSON: the card, its driver, torch, and the seconds of steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

SIZE = 1 << 20
SPIN = 200_000_000  # clocks of a GPU: about a tenth of a second


def main(name: str) -> int:
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for step, f in steps(name, found).items():
        print(f"{step} ...", end=" ", flush=True)
        begun = time.monotonic()
        f()
        seconds[step] = round(time.monotonic() - begun, 3)
        print(f"{seconds[step]} s", flush=True)
    print(json.dumps(found | {"steps": seconds}))
    return 0


def steps(name: str, found: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """By name, in order; each may use what those before it have made."""

    def libraries() -> None:
        import torch

        import virtex

        found.update(torch=torch.__version__, cuda=str(torch.version.cuda), virtex=virtex.__version__)

    def device() -> None:
        import torch

        if torch.device(name).type == "cuda" and not torch.cuda.is_available():
            raise SystemExit(f"torch {torch.__version__} finds no CUDA device")
        torch.ones(1, device=name).add_(1).cpu()  # makes a context, and launches
        is_cuda = torch.device(name).type == "cuda"
        found["device"] = torch.cuda.get_device_name(name) if is_cuda else name
        found["devices"] = torch.cuda.device_count() if is_cuda else 0

    known = {"import torch and virtex": libraries, "a context, and a kernel": device}
    if not name.startswith("cuda"):
        return known
    return known | {
        "the driver's version": partial(driver, found),
        "page-locked rows, there and back on two streams": partial(copies, name),
        "a wait for an event sleeps, and leaves the GIL to others": partial(sleeps, name, found),
        "three stages on three threads, and what is kept": partial(stages, name),
        "a graph, one that can't be captured, and one after it": partial(graphs, name),
        "out of memory, and then not": partial(memory, name),
    }


def driver(found: dict[str, Any]) -> None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout
        found["driver"] = said.partition("\n")[0].strip()


def copies(name: str) -> None:
    from virtex import Tensor
    from virtex.batch.device import Cuda

    cuda, rows = Cuda(name), Tensor("float32", (SIZE,))
    host, there, back = cuda.allocate(rows, 1), cuda.buffer(4 * SIZE), cuda.locked(4 * SIZE)
    host[:] = np.arange(SIZE, dtype=np.float32)
    if not cuda._here(host).is_pinned():
        raise SystemExit("torch does not take the rows for page-locked: copies would wait")
    into, out, done = cuda.stream(), cuda.stream(), cuda.event()
    with cuda.on(into):
        cuda.send(host, cuda.rows(there, rows, 1))
        done.record(into)
    with cuda.on(out):
        out.wait_event(done)
        cuda.fetch(there, back, 4 * SIZE)
        done.record(out)
    done.synchronize()
    expect((back.view(np.float32) == host[0]).all(), "other numbers came back")


def sleeps(name: str, found: dict[str, Any]) -> None:
    import torch

    from virtex.batch.device import Cuda

    cuda, turns, over = Cuda(name), 0, threading.Event()

    def turn() -> None:
        nonlocal turns
        while not over.wait(0.001):
            turns += 1

    stream, event = cuda.stream(), cuda.event()
    other = threading.Thread(target=turn)
    other.start()
    try:
        with cuda.on(stream):
            torch.cuda._sleep(SPIN)
            event.record(stream)
        begun, cpu = time.monotonic(), time.thread_time()
        event.synchronize()
        waited, cpu = time.monotonic() - begun, time.thread_time() - cpu
    finally:
        over.set()
        other.join()
    found["waited"] = {"seconds": round(waited, 4), "cpu": round(cpu, 4), "turns": turns}
    expect(waited > 0.01 and turns > 3, f"no wait, or another thread stood still: {found['waited']}")
    expect(cpu < waited / 2, f"the thread that waits spins: {found['waited']}")


def stages(name: str) -> None:
    from virtex import Tensor
    from virtex.batch.device import Cuda
    from virtex.batch.pipeline import Pipeline

    rows = Tensor("float32", (64,))
    pipeline = Pipeline(Cuda(name), rows, 8, rows)
    pipeline.prepare()
    host = pipeline.device.allocate(rows, 8)  # type: ignore[attr-defined]
    kept: list[tuple[Any, int]] = []

    def doubles(number: int, batch: Any) -> Any:
        kept.append((batch, number))
        return batch * 2

    for number in range(20):
        host[:] = number
        berth = elsewhere(partial(pipeline.load, host))
        elsewhere(partial(pipeline.run, berth, partial(doubles, number)))
        answers = elsewhere(partial(pipeline.wait, berth))
        expect((answers == 2 * number).all(), f"batch {number} was answered otherwise")
        del berth, answers  # or they would be kept, too
    expect(all((batch == number).all().item() for batch, number in kept), "what was kept has changed")


def elsewhere(f: Callable[[], Any]) -> Any:
    """What it gives on another thread, where it is no device's turn yet."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(f).result()


def graphs(name: str) -> None:
    import torch

    from virtex.batch.device import Cuda

    cuda = Cuda(name)
    stream, made = cuda.stream(), torch.ones(8, device=name)
    cuda.synchronize()
    for call in (triple, waits, triple):
        with cuda.on(stream):
            try:
                replay, given = cuda.capture(partial(call, made))
            except RuntimeError as error:
                expect(call is waits, f"a product can't be captured: {error}")
                continue
            expect(call is triple, "a wait of the host was captured")
            replay()
        cuda.synchronize()
        expect((given == 3).all().item(), "the graph gave something else")
    cuda.free()


def triple(made: Any) -> Any:
    return made * 3


def waits(made: Any) -> Any:
    return made.sum().item()


def memory(name: str) -> None:
    import torch

    from virtex.batch.device import Cuda
    from virtex.batch.parts import is_out_of_memory

    try:
        torch.empty(1 << 50, dtype=torch.uint8, device=name)
    except RuntimeError as error:
        expect(is_out_of_memory(error), f"it is a {type(error).__name__}")
    Cuda(name).free()
    expect(torch.ones(8, device=name).sum().item() == 8, "it adds otherwise")


def expect(is_so: Any, otherwise: str) -> None:
    if not is_so:
        raise SystemExit(otherwise)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
