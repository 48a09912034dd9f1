"""What GET /metrics/live says, against the totals and workers of a board."""

import json
import os

from virtex.metrics.board import Board, WorkerState, cells
from virtex.metrics.live import live
from virtex.metrics.schema import CODES, CUTS, DROPS, METRICS, PLACES, STAGES


def test_a_service_that_counted_nothing_has_every_metric_at_zero():
    told = live("nobody", Board(1))["metrics"]
    assert list(told) == [metric.name for metric in METRICS]
    assert told["virtex_queries_total"] == 0 and told["virtex_requests_total"] == {}
    assert told["virtex_batches_total"] == dict.fromkeys(CUTS, 0)
    assert told["virtex_dropped_requests_total"] == dict.fromkeys(DROPS, 0)
    assert list(told["virtex_stage_duration_seconds"]) == list(STAGES)
    for metric in METRICS:
        if metric.bounds and not metric.label:
            assert told[metric.name] == {
                "bounds": metric.bounds,
                "counts": [0] * (len(metric.bounds) + 1),
                "sum": 0,
            }


def test_the_workers_of_a_board_are_summed_and_named():
    board = Board(4)
    code, busy = PLACES["virtex_requests_total", str(CODES[0])], PLACES["virtex_executor_busy_seconds_total", ""]
    for slot in (0, 1):
        counts = board.block(slot, "a")
        counts[code], counts[busy] = 3 + slot, 500_000_000
    board.block(0, "b")[code] = 100
    board.roster = lambda: [WorkerState(0, 17, "ready", 2, 1), WorkerState(1, 18, "draining", 0, 5)]
    told = live("a", board)
    assert told["metrics"]["virtex_requests_total"] == {str(CODES[0]): 7}
    assert told["metrics"]["virtex_executor_busy_seconds_total"] == 1.0
    assert told["workers"] == [
        {"index": 0, "pid": 17, "state": "ready", "connections": 2, "age": 1},
        {"index": 1, "pid": 18, "state": "draining", "connections": 0, "age": 5},
    ]
    assert json.loads(json.dumps(told))


def test_a_name_too_long_for_a_block_is_found_under_what_the_block_keeps_of_it():
    name = "ä" * 500
    cells(name).request(200, 1, 1000)
    assert live(name)["metrics"]["virtex_requests_total"] == {"200": 1}
    assert live(name)["workers"][0]["pid"] == os.getpid()
