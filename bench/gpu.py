"""How much of a GPU is left when its batches come over HTTP: make bench-gpu, or see --help.

Parts, each a process of its own with a limit of time, one after another; one that fails is told and stops no other
but the first, without which there is nothing to measure. The figures are saved after each, and what all of them printed
is in a file beside them. A part that takes too long says where each of its threads stood.

    device           bench/gpu_first.py: whether torch, the driver and the card do what Virtex asks of them
    copies           rates there and back, beside a bare copy from torch's own page-locked memory
    tests            tests/test_gpu.py and test_gpu_models.py
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
from tempfile import TemporaryFile
from typing import Any

from .host import conclude, machine, need_proc, table
from .networks import cases

ROOT = Path(__file__).parent.parent
MOST = 240.0  # seconds of all parts, which their own limits go with
LINES = 30  # of what a part that failed had printed: the last ones
# What warns elsewhere, and the plugins that are there, are not what is tested; a test that hangs says where.
PYTEST = (
    *("-q", "--tb=short", "-p", "no:cacheprovider", "--no-header", "-W", "default", "-o", "addopts="),
    *("-o", "faulthandler_timeout=60", "tests/test_gpu.py", "tests/test_gpu_models.py"),
)


def parts(arguments: argparse.Namespace) -> dict[str, tuple[list[str], float]]:
    """The command of each part, and how many seconds it may take."""
    base = {"device": arguments.device, "seconds": arguments.seconds, "clients": arguments.clients, "graphs": ()}
    found = {
        "device": (["-m", "bench.gpu_first", arguments.device], 60.0),
        "copies": (part("copies", base), 30.0),
        "tests": (["-m", "pytest", *PYTEST], 75.0),
    }
    known = cases(arguments.device == "cpu")
    for name in known:
        found[name] = part("served", base | {"case": name, "workers": 1, "offline": True}), 40.0
    for workers in (2, 4):
        found[f"conv, {workers} workers"] = part("served", base | {"case": "conv", "workers": workers}), 40.0
    if arguments.device != "cpu":
        for name in ("conv", "encoder 10"):
            more = {"case": name, "workers": 1, "graphs": [known[name].batch]}
            found[f"{name}, graphs"] = part("served", base | more), 40.0
    longer = max(arguments.most / MOST, 1.0)
    return {name: (command, seconds * longer) for name, (command, seconds) in found.items()}


def part(name: str, said: dict[str, Any]) -> list[str]:
    return ["-m", "bench.gpu_parts", name, json.dumps(said)]


def run(command: list[str], seconds: float, log: Path | None = None) -> dict[str, Any]:
    """What a part found, or why it found nothing; what it started ends with it. log: a file for all that it prints."""
    if seconds <= 0:
        return {"failed": "no time was left"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with TemporaryFile("w+") as printed:  # not a pipe: what the part has started may hold that open
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | more,
        )
        late = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process, late)
        printed.seek(0)
        said = printed.read().strip()
    if log is not None:
        with log.open("a") as file:
            file.write(f"== {' '.join(command)}\n{said}\n")
    lines = said.splitlines() or [""]
    if late or process.returncode:
        why = [f"took more than {seconds:.0f} s"] if late else []
        return {"failed": "\n".join(why + _telling(lines)).strip()}
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except ValueError:
        found = {"said": lines[-1]}
    return found


def _telling(lines: list[str]) -> list[str]:
    """The last of what was printed; where threads were asked where they stand, that, and what was before."""
    asked = [i for i, line in enumerate(lines) if line.startswith("Fatal Python error: Aborted")]
    return lines[max(asked[0] - LINES // 3, 0) :][:LINES] if asked else lines[-LINES:]


def _end(process: subprocess.Popen[bytes], late: bool) -> None:
    """All that it started, which is a session of its own, as well. late: each says first where its threads stand."""
    for number in (signal.SIGABRT, signal.SIGTERM, signal.SIGKILL)[not late :]:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
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
    parser.add_argument("--most", type=float, default=MOST, help="seconds, of all parts (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"), help="where the figures go")
    return parser.parse_args(arguments)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    need_proc("bench/gpu.py")
    commands = parts(arguments)
    unknown = set(arguments.parts or ()) - set(commands)
    if unknown:
        raise SystemExit(f"--parts: {sorted(unknown)}: expected some of {list(commands)}")
    if arguments.device == "cpu":
        os.environ["VIRTEX_GPU_TESTS"] = "cpu"
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    log = arguments.json.with_suffix(".log")
    log.write_text("")
    until = time.monotonic() + arguments.most
    found: dict[str, dict[str, Any]] = {}
    saved: dict[str, Any] = {
        "what": "networks with random weights behind one service, items as application/x-npy over loopback",
        "machine": machine("torch", "uvloop", "httptools", "numpy", "gunicorn"),
        "parts": found,
    }
    for name in ["device", *(arguments.parts or commands)]:
        if name in found:
            continue
        print(f"{name} ...", end=" ", flush=True)
        begun = time.monotonic()
        command, most = commands[name]
        found[name] = run(command, min(most, until - begun), log)
        print(f"in {time.monotonic() - begun:.0f} s: {_brief(found[name])}", flush=True)
        arguments.json.write_text(json.dumps(saved, indent=1) + "\n")
        if name == "device" and "failed" in found[name]:
            print(f"bench/gpu.py measures nothing: {found[name]['failed']}")
            return 2
        if name == "device":
            saved["machine"] |= {key: str(value) for key, value in found[name].items() if key != "steps"}
    conclude(saved, arguments.json, report(found))
    print(f"what the parts printed: {log}")
    return int(any("failed" in one for one in found.values()))


def _brief(found: dict[str, Any]) -> str:
    return "failed" if "failed" in found else json.dumps(found)


if __name__ == "__main__":
    sys.exit(main())
