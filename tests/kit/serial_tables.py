"""The tables of docs/serial.md: what of each library comes back equal, and what is refused.

    PYTHONPATH=.:tests python -m kit.serial_tables             writes those of the libraries that are installed
    PYTHONPATH=.:tests .venv-tf/bin/python -m kit.serial_tables tf    writes that one

A library has tests/kit/serial_<library>.py with cases(), refused() and same().
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from virtex import serial

PAGE = Path(__file__).parents[2] / "docs" / "serial.md"
LIBRARIES = sorted({name.removeprefix("encode_") for name in serial.__all__ if name.startswith("encode_")} - {"json"})
NEEDED = {"pickle": {"trusted": True}}  # beside the text


def kit_of(library: str) -> Any:
    """Its cases; None where the library is not installed."""
    try:
        return importlib.import_module(f"kit.serial_{library}")
    except ImportError:
        return None


INSTALLED = [library for library in LIBRARIES if kit_of(library)]


def encode(library: str, value: object) -> str:
    text = getattr(serial, f"encode_{library}")(value)
    assert isinstance(text, str)
    return text


def decode(library: str, text: str) -> object:
    return getattr(serial, f"decode_{library}")(text, **NEEDED.get(library, {}))


def outcome(library: str, value: object) -> str:
    """What the page says of a value: tried, and not copied from the case."""
    try:
        text = encode(library, value)
    except TypeError as error:
        return f"TypeError: {str(error).removesuffix(f': {error.__cause__}')}"  # whose words are another library's
    return "equal" if kit_of(library).same(value, decode(library, text)) else "NOT EQUAL"


def table(library: str) -> str:
    kit = kit_of(library)
    lines = ["| what | comes back |", "|---|---|"]
    lines += [f"| {cell(name)} | {cell(outcome(library, value))} |" for name, value in kit.cases()]
    lines += [f"| {cell(name)} | {cell(outcome(library, value))} |" for name, value, _ in kit.refused()]
    return "\n".join(lines)


def cell(text: str) -> str:
    return re.sub(r"([|<\[*])", r"\\\1", text)


def placed(page: str, library: str, made: str) -> str:
    """The page with a table between its markers."""
    start, end = f"<!-- serial: {library} -->", "<!-- end -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    assert pattern.search(page), f"docs/serial.md has no place for {library}: expected {start} ... {end}"
    return pattern.sub(lambda _: f"{start}\n{made}\n{end}", page)


def main(libraries: list[str]) -> None:
    page = PAGE.read_text()
    for library in libraries:
        page = placed(page, library, table(library))
    PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:] or INSTALLED)
