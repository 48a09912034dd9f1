"""What a figure means without its machine is nothing: every run begins with it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from virtex import codec_info


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def pytest_report_header():
    info = codec_info()
    forced = "yes" if info["forced"] else "no"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = " ".join(f"{name} {version(name)}" for name in ("numpy", "orjson", "pybase64"))
    return [
        f"virtex isa={info['isa']} (forced: {forced}; available: {' '.join(info['available'])})",
        f"{cpu_model()}, {cores} cores, {platform.platform()}, python {platform.python_version()}, {packages}",
    ]
