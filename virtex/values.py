"""Values of a command line: an application, a number, a time; each is read from its text, or refused.

Rules: knows argparse alone, for every `virtex --help` reads it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def application(text: str) -> str:
    """MODULE:APP, as it is."""
    module, colon, name = text.partition(":")
    if not (module and colon and name) or module.endswith(".py") or "/" in module:
        there = module.removesuffix(".py").replace("/", ".") if module.strip("-0123456789") else "server"
        raise argparse.ArgumentTypeError(f"expected MODULE:APP first, such as {there}:{name or 'app'}, got {text!r}")
    return text


def above(kind: Callable[[str], float]) -> Callable[[str], float]:
    """What reads a number above 0. kind: int or float."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} above 0, got {text!r}")
        return value

    return read


def seconds(text: str) -> float:
    """The seconds of a time with its unit; without one it is in seconds."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(us|ms|s|m|h|)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time such as 50ms, 10s or 2m, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def some_seconds(text: str) -> float:
    """The same of a time that is not 0."""
    found = seconds(text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time above 0, got {text!r}")
    return found
