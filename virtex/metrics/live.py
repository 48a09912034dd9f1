"""What GET /metrics/live says: the totals of a service over all its workers, and who they are, as JSON values.

Rules: reads totals; no HTTP. Names, labels and units are those of schema.METRICS.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .board import Board, here, name_of
from .schema import CELLS, HISTOGRAM, METRICS, Metric, labels_of
from .totals import Totals, totals, workers


def live(service: str, board: Board | None = None) -> dict[str, Any]:
    """The metrics of one service and the workers of its master. board: by default that of this process.

    A metric without a label is a number, or {"bounds", "counts", "sum"}; with one an object of these by its value.
    """
    board = board or here()
    counted = totals(board).get(name_of(service).decode()) or Totals([0] * CELLS)
    return {
        "metrics": {metric.name: _values(counted, metric) for metric in METRICS},
        "workers": [asdict(worker) for worker in workers(board)],
    }


def _values(counted: Totals, metric: Metric) -> Any:
    if metric.kind == HISTOGRAM:
        found: dict[str, Any] = {label: counted.histogram(metric.name, label)._asdict() for label in labels_of(metric)}
    elif metric.label:
        return counted.values(metric.name)
    else:
        found = {"": counted.value(metric.name)}
    return found if metric.label else found[""]
