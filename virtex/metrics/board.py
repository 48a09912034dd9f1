"""Where processes count: blocks of cells in one anonymous mapping, which those that are forked after it share.

Rules: knows processes and memory, nothing of HTTP or loops, and of who is alive only what the kernel says. A block is
that of a service in a slot. One process at a time writes it; the successor that takes the slot goes on counting in it,
so nothing is lost with a process but what it had not counted. Nothing is freed: memory that nobody wrote to costs none.

    the board, words of 64 bits:  how many blocks are taken ... | block | block ...
    a block:                      1 once the rest is written | slot | pid | length of the name | name | cells
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ._metrics import Cells, next_number, unseen
from .locks import Locks
from .schema import CELLS, GAUGE, METRICS, PLACES, labels_of

log = logging.getLogger("virtex")

BLOCKS = 4096  # of one service in one slot each: 19 MB of address space
FEW = 256  # of a process that shares with nobody
NAME_BYTES = 128
_IS_WRITTEN, _SLOT, _PID, _LENGTH, _NAME = range(5)
_LINE = 8  # words of a cache line, which no two processes are to write
_AT_CELLS = _NAME + NAME_BYTES // 8
_WORDS = -(-(_AT_CELLS + CELLS) // _LINE) * _LINE
GAUGES = [PLACES[metric.name, label] for metric in METRICS if metric.kind == GAUGE for label in labels_of(metric)]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker, as its siblings see it. index: its slot. age: how many were started before it, and it, by its master.

    state: "starting", "ready", "draining" or "restarting".
    """

    index: int
    pid: int
    state: str
    connections: int
    age: int


class Block(NamedTuple):
    """What a block holds. cells: all of them, as they were when they were read."""

    slot: int
    pid: int
    service: str
    cells: list[int]


class Board:
    """The mapping. blocks: how many services of how many slots find room; for others see cells().

    roster: who the workers are, where somebody knows; else this process alone. master: the process that made it.
    locks: locks between those that share it.
    """

    def __init__(self, blocks: int = BLOCKS) -> None:
        self._most = blocks
        self._words = memoryview(mmap.mmap(-1, 8 * (_LINE + blocks * _WORDS))).cast("Q")
        self.roster: Callable[[], list[WorkerState]] | None = None
        self.master = os.getpid()
        self.locks = Locks()

    def use(self, slot: int = 0) -> None:
        """From now on this process counts here, in this slot; what gauges its predecessor left is over.

        Whatever counts already goes on from zero here, or from where that slot was.
        """
        for at in self._places():
            if self._is_of(at, slot):
                self._words[at + _PID] = 0
                for gauge in GAUGES:
                    self._words[at + _AT_CELLS + gauge] = 0
        _here.board, _here.slot = self, slot
        for name, cells in _here.cells.items():
            cells.move(self.block(slot, name))

    def block(self, slot: int, service: str) -> memoryview:
        """The cells of a service in a slot, which this process alone will write.

        On a board without room they are seen by nobody, and the log says so.
        """
        name = name_of(service)
        for at in self._places():
            if self._is_of(at, slot) and self._name_at(at) == name:
                break
        else:
            number = next_number(self._words)
            if number >= self._most:
                log.warning("service %r is not counted: %d blocks are taken", service, self._most)
                return unseen()
            at = _LINE + number * _WORDS
            padded = memoryview(name.ljust(NAME_BYTES, b"\0")).cast("Q")
            self._words[at + _NAME : at + _AT_CELLS] = padded
            self._words[at + _LENGTH] = len(name)
            self._words[at + _SLOT] = slot
            next_number(self._words[at + _IS_WRITTEN :])  # atomic: whoever sees it sees what was written before
        self._words[at + _PID] = os.getpid()
        return self._words[at + _AT_CELLS : at + _AT_CELLS + CELLS]

    def blocks(self) -> Iterator[Block]:
        """Every block that a process ever counted in."""
        for at in self._places():
            if self._words[at + _IS_WRITTEN]:
                slot, pid = self._words[at + _SLOT], self._words[at + _PID]
                cells = self._words[at + _AT_CELLS : at + _AT_CELLS + CELLS].tolist()
                yield Block(slot, pid, self._name_at(at).decode(), cells)

    def _places(self) -> range:
        taken = min(self._words[0], self._most)
        return range(_LINE, _LINE + taken * _WORDS, _WORDS)

    def _is_of(self, at: int, slot: int) -> bool:
        return bool(self._words[at + _IS_WRITTEN]) and self._words[at + _SLOT] == slot

    def _name_at(self, at: int) -> bytes:
        name = self._words[at + _NAME : at + _AT_CELLS].tobytes()
        return name[: self._words[at + _LENGTH]]


def name_of(service: str) -> bytes:
    """A service's name as a block holds it; of a long one the beginning, and a hash of all of it."""
    name = service.encode("utf-8", "backslashreplace")
    if len(name) <= NAME_BYTES:
        return name
    tag = "~" + hashlib.blake2b(name, digest_size=8).hexdigest()
    return name[: NAME_BYTES - len(tag)].decode("utf-8", "ignore").encode() + tag.encode()


class _Here:
    """Where this process counts: on a board of its own, until it uses another."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.slot = 0
        self.cells: dict[str, Cells] = {}


_here = _Here()


def here() -> Board:
    """The board on which this process counts."""
    if _here.board is None:
        Board(FEW).use()
    assert _here.board is not None
    return _here.board


def cells(service: str) -> Cells:
    """Where this process counts what happens in a service: those of one name count together."""
    found = _here.cells.get(service)
    if found is None:
        found = _here.cells[service] = Cells(here().block(_here.slot, service))
    return found


def _leave() -> None:
    """In a process that was just forked: what its parent counts is not its own."""
    _here.board = None
    if _here.cells:
        here()


os.register_at_fork(after_in_child=_leave)


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user, after setuid
    return True
