"""How much of a GPU is left when its batches come over HTTP: make bench-gpu, or see --help.

Parts, each with a limit of time, one after another; one that fails is told and stops no other:

    tests            tests/test_gpu.py and test_gpu_models.py
    copies           rates there and back, beside a bare copy from torch's own page-locked memory
    conv, encoder 10, encoder 128, identity    each offline and served: "resident" is a batch that is on the device
                     already, "copied" one that is copied there and its answer back, one after another
    conv, 2 workers; conv, 4 workers           as many workers on the GPUs there are
    conv, graphs; encoder 10, graphs           run_inference as a CUDA graph

The gap is the device's time from the end of one batch's network to the start of the next one's, by its own clock, where
both were full. Answers are compared with the offline network's before anything is timed. The exit status is 1 where a
part failed, and 2 where there is no such device. --device cpu tries the program, small.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .host import conclude, machine, need_proc, table
from .networks import cases

ROOT = Path(__file__).parent.parent


def why_not(device: str) -> str | None:
    """Why nothing can be measured on a device; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def named(device: str) -> dict[str, str]:
    """The card, its driver, and what torch was built for."""
    import torch

    if torch.device(device).type != "cuda":
        return {"device": device}
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "unknown"
    with suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.partition("\n")[0].strip()
    return {
        "device": torch.cuda.get_device_name(device),
        "devices": str(torch.cuda.device_count()),
        "driver": driver,
        "cuda": str(torch.version.cuda),
    }


def parts(arguments: argparse.Namespace) -> dict[str, tuple[list[str], float]]:
    """The command of each part, and how many seconds it may take."""
    pytest = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "tests/test_gpu.py",
        "tests/test_gpu_models.py",
    ]
    base = {"device": arguments.device, "seconds": arguments.seconds, "clients": arguments.clients, "graphs": ()}
    found = {"tests": (pytest, 75.0), "copies": (part("copies", base), 30.0)}
    known = cases(arguments.device == "cpu")
    for name in known:
        found[name] = part("served", base | {"case": name, "workers": 1, "offline": True}), 40.0
    for workers in (2, 4):
        found[f"conv, {workers} workers"] = part("served", base | {"case": "conv", "workers": workers}), 40.0
    if arguments.device != "cpu":
        for name in ("conv", "encoder 10"):
            more = {"case": name, "workers": 1, "graphs": [known[name].batch]}
            found[f"{name}, graphs"] = part("served", base | more), 40.0
    return found


def part(name: str, said: dict[str, Any]) -> list[str]:
    return ["-m", "bench.gpu_parts", name, json.dumps(said)]


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """What a part found, or why it found nothing; what it started ends with it."""
    if seconds <= 0:
        return {"failed": "no time was left"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        said = None
    finally:
        _end(process)
    if said is None:
        return {"failed": f"took more than {seconds:.0f} s"}
    lines = said.strip().splitlines() or [""]
    if process.returncode:
        return {"failed": "\n".join(lines[-15:])}
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except ValueError:
        found = {"said": lines[-1]}
    return found


def _end(process: subprocess.Popen[str]) -> None:
    """All that it started, which is a session of its own, as well."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
        time.sleep(0.2)  # its servers are not ours to wait for
    process.wait()


# The command


def report(found: dict[str, dict[str, Any]]) -> str:
    head = ("", "ms a batch", "resident/s", "copied/s", "served/s", "of resident", "of copied", "gap us", "CPU us/item")
    rows: list[Sequence[str]] = [head]
    for name, one in found.items():
        if "served" in one:
            rows.append((name, *(_shown(one, key, digits) for key, digits in COLUMNS)))
    lines = [table(rows)] if len(rows) > 1 else []
    if "h2d" in (copied := found.get("copies", {})):
        for way, name in (("h2d", "to the device"), ("d2h", "back")):
            share = copied[f"{way}_of_bare"]
            lines.append(f"copies {name}: {copied[way]} GB/s; bare: {copied[f'{way}_bare']} GB/s; {share:.2f} of it")
    if "said" in (tests := found.get("tests", {})):
        lines.append(f"tests: {tests['said']}")
    return "\n".join([*lines, *(f"FAILED {name}: {one['failed']}" for name, one in found.items() if "failed" in one)])


COLUMNS = (
    *(("batch_ms", 3), ("resident", 0), ("copied", 0), ("served", 0)),
    *(("of_resident", 3), ("of_copied", 3), ("gap_us", 0), ("cpu_us", 1)),
)


def _shown(one: dict[str, Any], key: str, digits: int) -> str:
    return f"{one[key]:.{digits}f}" if key in one else "-"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="a torch device; cpu only tries the program (default: cuda)")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="those alone (default: all)")
    parser.add_argument("--clients", type=int, default=4, help="processes that send (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of serving, for each part (default: %(default)s)")
    parser.add_argument("--most", type=float, default=240.0, help="seconds, of all parts (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"), help="where the figures go")
    return parser.parse_args(arguments)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    need_proc("bench/gpu.py")
    why = why_not(arguments.device)
    if why is not None:
        print(f"bench/gpu.py measures nothing: {why}")
        return 2
    commands = parts(arguments)
    unknown = set(arguments.parts or ()) - set(commands)
    if unknown:
        raise SystemExit(f"--parts: {sorted(unknown)}: expected some of {list(commands)}")
    if arguments.device == "cpu":
        os.environ["VIRTEX_GPU_TESTS"] = "cpu"
    until = time.monotonic() + arguments.most
    found: dict[str, dict[str, Any]] = {}
    for name in arguments.parts or commands:
        print(f"{name} ...", end=" ", flush=True)
        begun = time.monotonic()
        command, most = commands[name]
        found[name] = run(command, min(most, until - begun))
        print(f"{'failed' if 'failed' in found[name] else 'done'} in {time.monotonic() - begun:.0f} s", flush=True)
    saved = {
        "what": "networks with random weights behind one service, items as application/x-npy over loopback",
        "machine": named(arguments.device) | machine("torch", "uvloop", "httptools", "numpy", "gunicorn"),
        "parts": found,
    }
    conclude(saved, arguments.json, report(found))
    return int(any("failed" in one for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
