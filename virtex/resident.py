"""How much memory this process has.

Rules: asks the system; knows nothing of Virtex.
"""

from __future__ import annotations

import resource
import sys


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
