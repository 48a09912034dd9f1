"""What was counted, for tests: on a board of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from virtex.metrics import board as boards
from virtex.metrics.board import Board
from virtex.metrics.totals import Totals, totals


@contextmanager
def counted(board: Board | None = None) -> Iterator[Board]:
    """A board on which nothing was counted yet, for what this process does within."""
    before = dict(boards._here.cells)
    boards._here.cells.clear()
    try:
        board = board or Board(16)
        board.use()
        yield board
    finally:
        boards._here.cells.clear()
        boards._here.cells.update(before)
        Board(256).use()


def of(service: str) -> Totals:
    return totals()[service]


def value(service: str, name: str, label: str = "") -> float:
    return of(service).value(name, label)


def answers(service: str) -> dict[int, float]:
    """How many were answered, by status."""
    return {int(code): n for code, n in of(service).values("virtex_requests_total").items()}


def drops(service: str) -> dict[str, float]:
    """How many were dropped, by reason."""
    return {reason: n for reason, n in of(service).values("virtex_dropped_requests_total").items() if n}


def lost(service: str) -> dict[str, float]:
    """How many ended otherwise than with rows, by reason."""
    errors = of(service).values("virtex_request_errors_total").items()
    return drops(service) | {reason: n for reason, n in errors if n}
