"""What the workers of one gunicorn master know of each other: a small anonymous mapping, made before the first fork.

A slot belongs to one worker: its master takes it, its process writes it, and a dead worker's slot is taken again by the
one that replaces it. Nothing here is on the path of a request.

    slot, 16 bytes:  state u32 | age u32 | pid u32 | connections u32
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

SLOTS = 1024
FREE, LOADING, READY, DRAINING = range(4)
_SLOT = struct.Struct("=IIII")
_HEADER = struct.Struct("=III")  # was a worker ever ready, failed starts since, slots that were ever used


class Entry(NamedTuple):
    """A slot, as its worker wrote it last."""

    state: int
    age: int
    pid: int
    connections: int


class Board:
    """The mapping. Writes are single aligned words of one owner; a reader may see a slot between two of them."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEADER.size + SLOTS * _SLOT.size)  # zeros: every slot is FREE

    def take(self, age: int) -> int:
        """Claim the lowest free slot for a worker that is about to be forked. Called in the master."""
        for index in range(SLOTS):
            entry = self.entry(index)
            if entry.state == FREE or (entry.pid and not _is_alive(entry.pid)):
                self._write(index, Entry(LOADING, age, 0, 0))
                served, failures, used = self._header()
                self._set_header(served, failures, max(used, index + 1))
                return index
        raise RuntimeError(f"expected at most {SLOTS} workers")

    def own(self, index: int, age: int) -> None:
        """Called in the process that was forked for the slot."""
        self._write(index, Entry(LOADING, age, os.getpid(), 0))

    def set_state(self, index: int, state: int) -> None:
        self._write(index, self.entry(index)._replace(state=state))
        if state == READY:
            self._set_header(1, 0, self._header()[2])

    def publish(self, index: int, connections: int) -> None:
        """How many connections this worker has."""
        self._write(index, self.entry(index)._replace(connections=connections))

    def fewest(self, index: int) -> int | None:
        """The connections of that other ready worker which has the fewest; None when there is no other."""
        others = (self.entry(other) for other in range(self._header()[2]) if other != index)
        return min((entry.connections for entry in others if entry.state == READY), default=None)

    def has_company(self, index: int) -> bool:
        """Whether another worker is ready."""
        others = (self.entry(other) for other in range(self._header()[2]) if other != index)
        return any(entry.state == READY and _is_alive(entry.pid) for entry in others)

    def release(self, index: int) -> None:
        self._write(index, Entry(FREE, 0, 0, 0))

    def entry(self, index: int) -> Entry:
        return Entry(*_SLOT.unpack_from(self._memory, _HEADER.size + index * _SLOT.size))

    def living(self) -> list[Entry]:
        """Every worker there is, or, without a pid, will be in a moment."""
        entries = [self.entry(index) for index in range(self._header()[2])]
        return [entry for entry in entries if entry.state != FREE and (not entry.pid or _is_alive(entry.pid))]

    def has_served(self) -> bool:
        """Whether any worker of this master was ever ready."""
        return bool(self._header()[0])

    def count_failure(self) -> int:
        """One more worker could not start since the last one that could; returns how many now."""
        served, failures, used = self._header()
        self._set_header(served, failures + 1, used)
        return failures + 1

    def _header(self) -> tuple[int, int, int]:
        served, failures, used = _HEADER.unpack_from(self._memory, 0)
        return served, failures, used

    def _set_header(self, served: int, failures: int, used: int) -> None:
        _HEADER.pack_into(self._memory, 0, served, failures, used)

    def _write(self, index: int, entry: Entry) -> None:
        _SLOT.pack_into(self._memory, _HEADER.size + index * _SLOT.size, *entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # a worker of another user, after setuid
    return True
