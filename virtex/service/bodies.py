"""The budget of limits.max_bytes, and memory for large bodies that arrive.

Whatever a client makes us hold counts, from the byte that arrives to the byte that the kernel has taken: heads, bodies
and what they become, answers. Rules: knows bytes, not requests. A byte is charged when it has arrived, not when it was
announced: announcing costs a client nothing, and memory that nobody has written to costs us nothing either. A large
body gets memory of a pool, page-aligned, so that the kernel can write it into its final place and the codec can read it
there.
"""

from __future__ import annotations

import mmap
import sys

from ..errors import RETRY_SOON, RequestError

KEPT = 64 << 20  # bytes of free memory that a worker keeps for the next large bodies
SMALLEST = 64 << 10


class Bodies:
    """At most `budget` bytes at a time; `held` says how many there are, whoever they are of.

    kept: bytes of free memory that wait for the next.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self.kept = 0
        self._free: dict[int, list[mmap.mmap]] = {}

    def charge(self, n: int) -> None:
        """So many bytes have arrived. Raises RequestError (503) when that is over the budget; they count anyway."""
        self.held += n
        if self.held > self.budget:
            raise self.refusal()

    def is_full(self) -> bool:
        """Whether more counts than there is room for."""
        return self.held > self.budget

    def refusal(self) -> RequestError:
        """What to raise when there is no room."""
        return RequestError(503, f"no room: {self.full}", RETRY_SOON)

    @property
    def full(self) -> str:
        """Why there is no room."""
        return f"requests and answers take more than {self.budget} bytes (limits.max_bytes)"

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
        if self.kept + size <= KEPT and sys.getrefcount(memory) <= _ALONE:
            self.kept += size
            self._free.setdefault(size, []).append(memory)


def _alone() -> int:
    memory = mmap.mmap(-1, 1)
    return sys.getrefcount(memory)


_ALONE = _alone()
