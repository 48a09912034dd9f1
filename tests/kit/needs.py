"""Libraries that a test file needs: without one it is skipped, or, with --all-libraries, an error."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

every = False  # --all-libraries


def library(name: str) -> Any:
    """The library; for the head of a test file, ahead of what imports it."""
    if every:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed")
