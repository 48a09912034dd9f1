"""Which worker takes a connection that waits for all of them: the one that has fewer.

Rules: knows the scoreboard, and neither sockets nor clocks; the listener asks it.
"""

from __future__ import annotations

import os

from ..metrics.board import is_alive
from .scoreboard import LOADING, Scoreboard

PATIENCE = 10  # pauses in which a sibling may show no sign of life before it is not waited for: 50 ms


class Share:
    """Whether this worker leaves a waiting connection to a sibling that has fewer.

    An idle sibling wakes up at once and shows a sign of life. One that shows none, though it was left a connection
    PATIENCE times and nobody took it, is stopped, dead or busy: it is not waited for until it shows one.
    """

    def __init__(self, scoreboard: Scoreboard, index: int) -> None:
        self._scoreboard = scoreboard
        self._index = index
        self.is_open = True  # False: what waits is left to a process to come
        self._asked: list[tuple[int, int]] = []  # age and turns of those who had fewer at the last look
        self._vain: dict[tuple[int, int], int] = {}  # how often each of them was waited for, as of that sign of life

    def may_accept(self) -> bool:
        """While it loads, a worker leaves new connections to siblings that can answer, if there are any."""
        if self._scoreboard.entry(self._index).state != LOADING:
            return True
        return self.is_open and not self._scoreboard.has_ready_sibling(self._index) and not _has_predecessor()

    def has_more(self, connections: int) -> bool:
        """Whether this worker, which has so many, is to let another one be quicker."""
        self._scoreboard.publish(self._index, connections)
        self._asked = self._scoreboard.fewer(connections)
        return any(self._vain.get(key, 0) < PATIENCE for key in self._asked)

    def waited_in_vain(self) -> None:
        """Nobody was quicker."""
        self._vain = {key: self._vain.get(key, 0) + 1 for key in self._asked}

    def has_ready_sibling(self) -> bool:
        """Whether somebody takes what this worker leaves; in a stop they would all wait for each other."""
        scoreboard = self._scoreboard
        if scoreboard.is_stopping():
            return scoreboard.is_handed_over()
        return scoreboard.has_ready_sibling(self._index)


def _has_predecessor() -> bool:
    """Whether the master that got SIGUSR2 still lives: its workers answer. gunicorn's master has its number so long."""
    pid = os.environ.get("GUNICORN_PID", "")
    return pid.isdecimal() and is_alive(int(pid))
