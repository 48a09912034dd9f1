"""What the modules of virtex.serial share: how a library that is missing is named, and how a pickle is refused.

Rules: knows no library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from ..errors import ItemError


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


def refuse_pickle(data: bytes, expected: str) -> None:
    """Raise ItemError for the bytes of a pickle of protocol 2 to 5: what Virtex 0.1 sent of everything."""
    if len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5:
        raise ItemError(
            f"expected {expected}, got a pickle: Virtex 0.1 sent those, and only decode_pickle reads any: "
            "upgrade the client (docs/migrating.md, Payloads)"
        )
