"""Names for parametrized tests."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """Its repr, without the addresses that differ from one run, or process, to the next."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
