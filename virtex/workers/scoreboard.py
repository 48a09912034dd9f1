"""What the workers of one gunicorn master know of each other: a small anonymous mapping, made before the first fork.

A slot belongs to one worker: its master takes it, its process writes it, and a dead worker's slot is taken again by the
one that replaces it. Nothing here is on the path of a request.

    slot, words of 32 bits:  state | age | pid | connections | turns | generation

A generation is the workers between two reloads: they run the same code, or, at least, they were asked to.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import NamedTuple

from ..metrics.board import Board, WorkerState, is_alive

SLOTS = 1024
FREE, LOADING, READY, DRAINING, RESTARTING = range(5)  # RESTARTING: drains, and gunicorn will replace it
_NAMES = ("free", "starting", "ready", "draining", "restarting")

# The header's words. Each has one kind of writer: the master, a worker that becomes ready, one that fails.
_STOPPING, _USED, _NEWEST, _PROVEN, _FAILURES = range(5)
_HEADER_WORDS = 8
_SLOT_WORDS = 6
_STATE, _AGE, _, _CONNECTIONS, _TURNS, _ = range(_SLOT_WORDS)
_MOST = (1 << 32) - 1


class Entry(NamedTuple):
    """A slot, as its worker wrote it last. turns: how often it was about to take a connection, or told its number."""

    state: int
    age: int
    pid: int
    connections: int
    turns: int
    generation: int


class Scoreboard:
    """The mapping. Writes are single aligned words of one owner; a reader may see a slot between two of them.

    board: where the workers count, each in its slot.
    """

    def __init__(self) -> None:
        words = _HEADER_WORDS + SLOTS * _SLOT_WORDS
        self._words = memoryview(mmap.mmap(-1, 4 * words)).cast("I")  # zeros: every slot is FREE
        self._right, given = os.pipe()
        os.write(given, b"1")
        os.close(given)
        weakref.finalize(self, os.close, self._right)
        self.board = Board()
        self.board.roster = self.roster

    def take(self, age: int, generation: int = 1) -> int:
        """Claim a slot for a worker that is about to be forked: one that waits for a successor, else the lowest free.

        Called in the master. Raises RuntimeError when all are taken.
        """
        free = [index for index in range(self._words[_USED]) if self._is_free(self.entry(index))]
        left = [index for index in free if self.entry(index).state == RESTARTING]
        index = (left or free or [self._words[_USED]])[0]
        if index == SLOTS:
            raise RuntimeError(f"expected at most {SLOTS} workers")
        self._write(index, Entry(LOADING, age, 0, 0, 0, generation))
        self._words[_USED] = max(self._words[_USED], index + 1)
        self._words[_NEWEST] = generation
        return index

    @staticmethod
    def _is_free(entry: Entry) -> bool:
        return entry.state == FREE or (entry.pid != 0 and not is_alive(entry.pid))

    def own(self, index: int, age: int) -> None:
        """Called in the process that was forked for the slot."""
        self._write(index, self.entry(index)._replace(state=LOADING, age=age, pid=os.getpid()))

    def set_state(self, index: int, state: int) -> None:
        self._words[_at(index) + _STATE] = state
        if state == READY:
            self._words[_FAILURES] = 0
            generation = self.entry(index).generation
            if generation > self._words[_PROVEN]:
                self._words[_PROVEN] = generation

    def publish(self, index: int, connections: int) -> None:
        """How many connections this worker has; and a sign of life."""
        at = _at(index)
        self._words[at + _CONNECTIONS] = connections
        self._words[at + _TURNS] = (self._words[at + _TURNS] + 1) & _MOST

    def fewer(self, connections: int) -> list[tuple[int, int]]:
        """Age and turns of the ready workers that have fewer. By columns: it is asked for every connection."""
        words = self._words[_HEADER_WORDS : _at(self._words[_USED])].tolist()
        columns = (words[at::_SLOT_WORDS] for at in (_STATE, _CONNECTIONS, _AGE, _TURNS))
        return [
            (age, turns)
            for state, has, age, turns in zip(*columns, strict=True)
            if has < connections and state == READY
        ]

    def release(self, index: int) -> None:
        self._write(index, Entry(FREE, 0, 0, 0, 0, 0))

    def entry(self, index: int) -> Entry:
        at = _at(index)
        return Entry(*self._words[at : at + _SLOT_WORDS])

    def others(self, index: int) -> list[Entry]:
        """Every slot in use but this one."""
        entries = (self.entry(other) for other in range(self._words[_USED]) if other != index)
        return [entry for entry in entries if entry.state != FREE]

    def roster(self) -> list[WorkerState]:
        """The workers that live."""
        entries = enumerate(self.entry(index) for index in range(self._words[_USED]))
        return [
            WorkerState(index, entry.pid, _NAMES[entry.state], entry.connections, entry.age)
            for index, entry in entries
            if entry.state != FREE and entry.pid and is_alive(entry.pid)
        ]

    # --- who may go ---------------------------------------------------------------------------------------------

    def mark_stop(self, is_handed_over: bool = False) -> None:
        """All workers of this master stop, so nobody waits for a successor. Called in the master.

        is_handed_over: another master's workers listen on, after SIGUSR2.
        """
        self._words[_STOPPING] = 2 if is_handed_over else 1

    def is_stopping(self) -> bool:
        return bool(self._words[_STOPPING])

    def is_handed_over(self) -> bool:
        return self._words[_STOPPING] == 2

    @property
    def newest(self) -> int:
        """The generation that was begun last."""
        return self._words[_NEWEST]

    @property
    def failures(self) -> int:
        """How many workers could not start since the last one that could."""
        return self._words[_FAILURES]

    def has_served(self) -> bool:
        """Whether any worker of this master was ever ready."""
        return bool(self._words[_PROVEN])

    def is_proven(self) -> bool:
        """Whether a worker of the newest generation was ever ready, so that the next one can be expected to be."""
        return self._words[_PROVEN] >= self._words[_NEWEST]

    def has_ready_sibling(self, index: int) -> bool:
        """Whether another worker is ready."""
        return any(entry.state == READY and is_alive(entry.pid) for entry in self.others(index))

    def can_do_without(self, index: int) -> bool:
        """Whether this worker may go: another one is ready, or none will be sooner for its staying.

        False while the newest code has never been ready, for this worker's successor would run it.
        """
        return self.is_proven() and (self.has_ready_sibling(index) or not self._will_have_ready_sibling(index))

    def _will_have_ready_sibling(self, index: int) -> bool:
        age = self.entry(index).age
        return any(
            entry.state == RESTARTING
            or (entry.state == LOADING and entry.age > age and (not entry.pid or is_alive(entry.pid)))
            for entry in self.others(index)
        )

    def count_failure(self) -> int:
        """One more worker could not start since the last one that could; returns how many now."""
        self._words[_FAILURES] += 1
        return self._words[_FAILURES]

    def may_end_service(self) -> bool:
        """Whether a worker that can't start is to end all of them: true once.

        Another one that fails by then would have gunicorn break off its own end, with exit code 1 and a traceback.
        """
        return bool(os.read(self._right, 1))  # whoever reads the one byte; the kernel sees to it

    def _write(self, index: int, entry: Entry) -> None:
        at = _at(index)
        for i, word in enumerate(entry):
            self._words[at + i] = word


def _at(index: int) -> int:
    return _HEADER_WORDS + index * _SLOT_WORDS
