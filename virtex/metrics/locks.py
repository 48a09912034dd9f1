"""Who acts for all: locks between the processes of a board. The kernel takes them back from a process that is dead.

Rules: knows processes and one file without a name, which those that are forked after it share. Within one process
nobody is locked out.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable
from threading import Event
from zlib import crc32

_NOTE_BYTES = 16
_NOTES = 1 << 12  # of so many keys; those that share a place write over each other's
PAUSE = 0.02  # seconds between two tries
_sleep = Event().wait


class Locks:
    """Locks by name, and with each a note that outlives who wrote it."""

    def __init__(self) -> None:
        self._file = _nameless_file()
        weakref.finalize(self, os.close, self._file)

    def take(self, key: str) -> bool:
        """Have the lock from now on; False while another process has it."""
        try:
            # Never open this file a second time in a process: to close it once would let go of every lock.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):  # POSIX leaves the choice
            return False
        return True

    def wait(self, key: str, seconds: float, sleep: Callable[[float], object] = _sleep) -> bool:
        """take(), for which others that have it now are waited for."""
        for _ in range(round(seconds / PAUSE)):
            if self.take(key):
                return True
            sleep(PAUSE)
        return self.take(key)

    def leave(self, key: str) -> None:
        """Let the next one have it."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(key))

    def join(self, key: str) -> None:
        """Be one of those who share this lock, which is nobody's alone."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _place(key))

    def leave_as_last(self, key: str) -> bool:
        """Undo join(); whether no other process is left that did."""
        is_last = self.take(key)
        self.leave(key)
        return is_last

    def note(self, key: str) -> bytes:
        """What was written down last, b"" at first."""
        note = os.pread(self._file, _NOTE_BYTES, _NOTE_BYTES * (_place(key) % _NOTES))
        return note.rstrip(b"\0")

    def write(self, key: str, note: bytes) -> None:
        """Write a note of at most 16 bytes, none of which is a zero."""
        os.pwrite(self._file, note.ljust(_NOTE_BYTES, b"\0"), _NOTE_BYTES * (_place(key) % _NOTES))


def _place(key: str) -> int:
    return crc32(key.encode("utf-8", "backslashreplace"))


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("virtex")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
