"""Libraries that an extra brings: imported when they are called for, and named where they are missing.

Rules: imports nothing of Virtex.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any


@contextmanager
def needs(function: str, libraries: str, extra: str) -> Iterator[None]:
    """Around the first import of other libraries: says which extra brings the one that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        reason = f"{function} needs {libraries}: install the extra [{extra}]"
        raise ImportError(reason, name=error.name) from error


@cache
def library(name: str, function: str, extra: str) -> Any:
    """The library of that name, imported by the first call of a function that needs it."""
    with needs(function, name, extra):
        return import_module(name)
