"""Calls of a connection, by lanes: over HTTP/2 one connection has many calls under way, each from a client in a loop.

The batcher waits for connections that were just answered (virtex/batch/company.py). One that has 32 calls under way is
never done, so it would be waited for never, and each call be a batch of its own. A lane is what a connection is over
HTTP/1.1: one call at a time.

Rules: names and numbers only.
"""

from __future__ import annotations

Address = tuple[str, str]


class Lanes:
    """The lanes that are taken, of all connections of a server."""

    def __init__(self) -> None:
        self._of: dict[Address, tuple[list[int], list[int]]] = {}  # free lanes; how many are taken, and there are

    def take(self, address: Address) -> int:
        """The lane of a call that begins. One that a call has just left is taken again first."""
        free, counts = self._of.setdefault(address, ([], [0, 0]))
        counts[0] += 1
        if free:
            return free.pop()
        counts[1] += 1
        return counts[1] - 1

    def leave(self, address: Address, lane: int) -> None:
        """The call is over."""
        free, counts = self._of[address]
        free.append(lane)
        counts[0] -= 1
        if not counts[0]:
            del self._of[address]  # nobody says when a connection ends
