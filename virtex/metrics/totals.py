"""What was counted, summed over the processes of a board.

Rules: reads a board and its schema; no HTTP, and no library of exposition. Counters and histograms are those of every
process there ever was, gauges those of the living.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .board import GAUGES, Board, WorkerState, here, is_alive
from .schema import BY_NAME, PLACES, is_in_seconds, labels_of


class Histogram(NamedTuple):
    """counts: how many observations each bucket has, itself alone; the last has no bound. sum: in the metric's unit."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float


class Totals:
    """The totals of one service, by the names of schema.METRICS, in their units. Raises KeyError for others."""

    def __init__(self, cells: list[int]) -> None:
        self._cells = cells

    def value(self, name: str, label: str = "") -> float:
        """Of a counter or gauge."""
        cell = self._cells[PLACES[name, label]]
        return cell / 1e9 if is_in_seconds(BY_NAME[name]) else float(cell)

    def values(self, name: str) -> dict[str, float]:
        """Of a counter with a label, by its value; of codes only those that were answered."""
        metric = BY_NAME[name]
        found = {label: self.value(name, label) for label in labels_of(metric)}
        return {code: n for code, n in found.items() if n} if metric.label == "code" else found

    def histogram(self, name: str, label: str = "") -> Histogram:
        """Of a histogram, for one value of its label."""
        metric, at = BY_NAME[name], PLACES[name, label]
        end = at + len(metric.bounds) + 1
        total = self._cells[end]
        return Histogram(metric.bounds, self._cells[at:end], total / 1e9 if is_in_seconds(metric) else float(total))


def totals(board: Board | None = None) -> dict[str, Totals]:
    """What each service that counts on a board did, by its name. board: by default that of this process."""
    sums: dict[str, list[int]] = {}
    alive: dict[int, bool] = {0: False}
    for block in (board or here()).blocks():
        if block.pid not in alive:
            alive[block.pid] = is_alive(block.pid)
        cells = block.cells
        if not alive[block.pid]:
            for gauge in GAUGES:
                cells[gauge] = 0
        before = sums.get(block.service)
        sums[block.service] = cells if before is None else [a + b for a, b in zip(before, cells, strict=True)]
    return {service: Totals(cells) for service, cells in sums.items()}


def workers(board: Board | None = None) -> list[WorkerState]:
    """The workers that live, by their index; under a server that is not gunicorn this process alone."""
    board = board or here()
    if board.roster is not None:
        return board.roster()
    found = totals(board).values()
    connections = round(sum(each.value("virtex_open_connections") for each in found))
    return [WorkerState(0, os.getpid(), "ready", connections, 0)]


def leads(board: Board | None = None) -> bool:
    """Whether this process is the lowest worker that is ready, or the lowest where none is: who acts for all."""
    living = workers(board)
    candidates = [worker for worker in living if worker.state == "ready"] or living
    return not candidates or min(candidates, key=lambda worker: worker.index).pid == os.getpid()
