"""How much memory this process has, and how much it may have.

Rules: asks the system; knows nothing of Virtex.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GROUP_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")  # the third is that of version 1


def resident() -> int:
    """Bytes of memory that this process has now; where the system does not say that, the most that it had."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return most_resident()


def most_resident() -> int:
    """Bytes of memory that this process had at most so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Memory(NamedTuple):
    """size: in bytes. said_by: "the machine", or the file of a cgroup."""

    size: int
    said_by: str


def memory(root: Path = Path("/")) -> Memory:
    """What this process may have together with who shares it: that of the machine, or of its tightest cgroup.

    root: where /proc and /sys are. A cgroup outside a container's own is not seen from within.
    """
    found = [Memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine")]
    for group in _groups(root):
        for path in map(group.joinpath, GROUP_FILES):
            text = _read(path)
            if text.isdecimal() and int(text):  # no limit is "max", or there is no such file
                found.append(Memory(int(text), str(path)))
    return min(found)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the cgroups that bound the memory of this process: its own, and those around it (cgroups(7))."""
    paths: dict[bool, str] = {}  # by whether it is version 2
    for line in _read(root / "proc/self/cgroup").split("\n"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers or "memory" in controllers.split(","):
            paths[not controllers] = path
    for line in _read(root / "proc/self/mountinfo").split("\n"):
        mount, _, system = line.partition(" - ")
        kind, _, rest = system.partition(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in rest.rpartition(" ")[2].split(",")):
            top, point = mount.split(" ")[3:5]
            path = paths.get(kind == "cgroup2", "")
            below = path.removeprefix("" if top == "/" else top) if (path + "/").startswith(top) else ""
            folder = root / point.lstrip("/")
            group = folder / below.strip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(folder))


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).strip()  # the path of a mount is any bytes
    except OSError:
        return ""
