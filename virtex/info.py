"""What this installation of Virtex is and runs on, for a bug report or a wondering operator: virtex info.

Rules: looks and changes nothing; what can't be found out is None. A GPU is asked for by torch only where torch is
installed: else by nvidia-smi, where that is.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import __version__
from .limits import allowance
from .resident import memory

CORE = ("gunicorn", "httpcore2", "httptools", "httpx2", "multipart", "numpy", "orjson", "prometheus-client", "uvloop")
EXTRAS = (
    *("grpcio", "matplotlib", "ml_dtypes", "mxnet", "opentelemetry-instrumentation-asgi", "opentelemetry-sdk"),
    *("pandas", "pillow", "protobuf", "pyarrow", "ray", "tensorflow", "torch", "tqdm"),
)
SECONDS = 20.0  # for nvidia-smi: on a machine of many GPUs it takes some


def gather() -> dict[str, Any]:
    """Everything, as values of JSON."""
    return {
        "virtex": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "dependencies": {name: _version(name) for name in CORE},
        "extras": _extras(),
        "system": platform.platform(),
        "cpu": cpu(),
        "cores": cores(),
        "codec": _codec(),
        "gpu": _gpus(),
        "open_files": _open_files(),
        "memory": _memory(),
    }


def as_text(found: dict[str, Any]) -> str:
    """For people: a line for each, a library in a line of its own."""
    cores = found["cores"]
    lines = [
        ("virtex", found["virtex"]),
        ("python", found["python"]),
        ("system", found["system"]),
        ("cpu", found["cpu"] or "unknown"),
        ("cores", f"{cores['usable']} usable of {cores['all']}"),
        ("codec", _say_codec(found["codec"])),
        ("gpu", "; ".join(found["gpu"]["names"]) or "none"),
        (
            "",
            f"as {found['gpu']['told_by']} says" if found["gpu"]["told_by"] else "neither torch nor nvidia-smi is here",
        ),
        ("open files", f"{_say(found['open_files']['soft'])} (hard limit {_say(found['open_files']['hard'])})"),
        ("memory", f"{found['memory']['size']:,} bytes, as {found['memory']['said_by']} says"),
        ("max_bytes", f"{found['memory']['max_bytes']:,} bytes, by default, for one worker"),
        *((name, installed or "not installed") for name, installed in found["dependencies"].items()),
        *((name, installed) for name, installed in found["extras"].items()),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in lines)


def _say(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def _say_codec(codec: dict[str, Any]) -> str:
    if "error" in codec:
        return str(codec["error"])
    forced = ", forced by VIRTEX_SIMD" if codec["forced"] else ""
    return f"{codec['isa']} of {', '.join(codec['available'])}{forced}"


def _extras() -> dict[str, str]:
    """Of what an extra brings that which is here."""
    return {name: found for name in EXTRAS if (found := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> str | None:
    """The name of the processor."""
    if sys.platform == "darwin":
        return _said_by("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        found = re.search(r"^(?:model name|Model)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or None


def cores() -> dict[str, int]:
    """How many there are, and how many this process may use."""
    every = os.cpu_count() or 1
    return {"usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every, "all": every}


def _codec() -> dict[str, Any]:
    try:
        from ._codec import codec_info
    except ImportError as error:  # not built, or VIRTEX_SIMD asks for what this CPU has not
        return {"error": str(error)}
    return dict(codec_info())


def _gpus() -> dict[str, Any]:
    """Their names, and who told."""
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            return {"names": names, "told_by": "torch"}
        if torch.backends.mps.is_available():
            return {"names": ["Apple GPU (mps)"], "told_by": "torch"}
        return {"names": [], "told_by": "torch"}
    listed = _said_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {"names": listed.splitlines() if listed else [], "told_by": "nvidia-smi" if listed else None}


def _said_by(*command: str) -> str | None:
    """What a program prints; None where it is not there, fails, or says nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() or None if ended.returncode == 0 else None


def _memory() -> dict[str, Any]:
    """What this process may have, and what requests get of that where one worker is by itself."""
    found = memory()
    return {**found._asdict(), "max_bytes": allowance(None, found=found).max_bytes}


def _open_files() -> dict[str, int | None]:
    soft, hard = (None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    return {"soft": soft, "hard": hard}
