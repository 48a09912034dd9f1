"""What a worker tells the C library about memory."""

import ctypes
import os

import pytest

from virtex.workers.memory import keep_freed_memory


@pytest.fixture
def told(monkeypatch):
    """What mallopt() was told."""
    told = []

    class Library:
        mallopt = staticmethod(lambda *option: told.append(option))

    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    return told


def test_freed_memory_is_kept_unless_the_environment_says_what_to_do(told, monkeypatch):
    keep_freed_memory(1 << 30)
    assert told == [(-3, 32 << 20), (-1, 256 << 20)]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    keep_freed_memory(1 << 30)
    assert len(told) == 2


def test_in_a_small_container_no_more_is_kept_than_requests_get(told):
    keep_freed_memory(64 << 20)
    assert told[1] == (-1, 64 << 20)


def test_a_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory(1 << 30)
