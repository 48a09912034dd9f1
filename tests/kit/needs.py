"""Libraries that a test file needs: without one it is skipped, or, with --all-libraries, an error."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest

every = False  # --all-libraries, of make test-all and make compat


def library(name: str) -> Any:
    """The library; for the head of a test file, ahead of what imports it."""
    if every:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed")


def found(*names: str) -> None:
    """library(), for what another process is to import."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            library(name)


def time() -> None:
    """Leave out of make test what takes long, and adds little to what shorter tests show."""
    if not every:
        pytest.skip("runs with --all-libraries alone: it takes long")
