"""Libraries that an install of Virtex does not bring: each is imported by the first call that needs it.

Rules: imports nothing by itself.
"""

from functools import cache
from importlib import import_module
from typing import Any


@cache
def library(name: str, function: str, extra: str) -> Any:
    """The library of that name, for a function. Raises ImportError that names the extra, where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # it is there, and broken
        raise ImportError(f"{function} needs {name}: install the extra [{extra}]") from None
