"""The budget of limits.max_bytes, with memory for large bodies that arrive.

Rules: knows bytes, not requests. Memory that nobody has written to costs nothing, so a body is given it when it is
announced, and charged as it arrives. A large body gets memory of a pool, page-aligned, so that the kernel can write it
into its final place and the codec can read it there.
"""

from __future__ import annotations

import mmap
import sys

from ..limits import MOST_BYTES, allowance
from .seam import Budget

KEPT = 64 << 20  # bytes of free memory that a worker keeps for the next large bodies; half of a small budget
SMALLEST = 64 << 10


class Bodies(Budget):
    """The budget, and a pool. said: limits.max_bytes, which may be None.

    most: the budget ahead of rows. why: where that comes from. kept: bytes of free memory that wait for the next large
    body.
    """

    def __init__(self, said: int | None) -> None:
        super().__init__(said or MOST_BYTES)
        self.most = self.budget
        self.why = ""
        self.kept = 0
        self._said = said
        self._life: object = None
        self._free: dict[int, list[mmap.mmap]] = {}

    def count_for(self, life: object, workers: int) -> None:
        """Begin to count in a process and on a loop: what was held elsewhere, rows too, went with that.

        life: the same for all services that share the budget there. workers: how many processes share the memory.
        """
        if self._life == life:
            return
        if self._life is not None:
            self.held = 0
        self._life = life
        self.most, self.why = allowance(self._said, workers, self.parts)
        self.budget = self.most

    def take(self, n: int) -> memoryview:
        """Memory for n bytes, of unknown content, on a page of its own."""
        size = max(SMALLEST, 1 << (n - 1).bit_length())
        free = self._free.get(size)
        if free:
            self.kept -= size
            return memoryview(free.pop())[:n]
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:n]

    def give_back(self, view: memoryview) -> None:
        """Let memory from take() be used again, unless somebody still looks at it or enough is kept."""
        memory = view.obj
        try:
            view.release()
        except BufferError:
            return  # a reader has it open; the memory goes with the last of them
        assert isinstance(memory, mmap.mmap)
        size = len(memory)
        if self.kept + size <= min(KEPT, self.most // 2) and sys.getrefcount(memory) <= _ALONE:
            self.kept += size
            self._free.setdefault(size, []).append(memory)


def _alone() -> int:
    memory = mmap.mmap(-1, 1)
    return sys.getrefcount(memory)


_ALONE = _alone()
