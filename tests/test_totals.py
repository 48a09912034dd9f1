"""Names, buckets and units: what cells become."""

from __future__ import annotations

import os

import pytest
from kit.counts import counted, of
from kit.workers import scoreboard_of

from virtex.metrics import board as boards
from virtex.metrics.board import WorkerState
from virtex.metrics.schema import BY_NAME, CELLS, METRICS, PLACES, SECONDS, SIZES, labels_of
from virtex.metrics.totals import workers


@pytest.fixture
def cells():
    with counted():
        yield boards.cells("a")


def test_no_two_metrics_share_a_cell_and_none_is_left_over():
    taken = []
    for metric in METRICS:
        for label in labels_of(metric):
            at = PLACES[metric.name, label]
            taken += range(at, at + (len(metric.bounds) + 2 if metric.bounds else 1))
    assert sorted(taken) == list(range(CELLS))


def test_names_and_units_are_those_of_prometheus():
    for name, kind, text, label, values, bounds in METRICS:
        assert name.startswith("virtex_") and text.endswith(".") and "service" not in label
        assert name.endswith("_total") == (kind == "counter")
        assert bool(bounds) == (kind == "histogram") and list(bounds) == sorted(set(bounds))
        assert bool(values) == (label not in ("", "code"))
        assert "_seconds" not in name or kind == "counter" or bounds == SECONDS


@pytest.mark.parametrize("at", range(len(SECONDS)))
def test_a_time_falls_into_the_bucket_whose_bound_it_does_not_exceed(cells, at):
    bound = round(SECONDS[at] * 1e9)
    cells.waited(bound, 2)
    cells.waited(bound + 1, 3)
    found = of("a").histogram("virtex_queue_wait_seconds")
    assert found.counts == [2 * (i == at) + 3 * (i == at + 1) for i in range(len(SECONDS) + 1)]
    assert found.sum == pytest.approx((5 * bound + 3) / 1e9)
    assert found.bounds == SECONDS


def test_a_time_that_is_none_and_one_beyond_every_bound_are_counted_too(cells):
    for ns in (-5, 0, 10**14):
        cells.encoded(ns)
    found = of("a").histogram("virtex_stage_duration_seconds", "encode")
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (2, 1, 3) and found.sum == 10**5


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 64, 65, 4096, 4097, 1 << 40])
def test_a_size_falls_into_the_bucket_whose_bound_it_does_not_exceed(cells, size):
    cells.cut("full", size)
    found = of("a").histogram("virtex_batch_size")
    at = next((i for i, bound in enumerate(SIZES) if size <= bound), len(SIZES))
    assert found.counts == [int(i == at) for i in range(len(SIZES) + 1)] and found.sum == size


def test_a_step_that_was_not_run_has_no_duration_and_seconds_are_seconds(cells):
    cells.done(2_500_000_000, -1, 0, 1_000_000, 3)
    found = {
        stage: of("a").histogram("virtex_stage_duration_seconds", stage)
        for stage in BY_NAME["virtex_stage_duration_seconds"].values
    }
    assert {stage: sum(each.counts) for stage, each in found.items() if sum(each.counts)} == {
        "run_inference": 1,
        "process_response": 1,
    }
    assert found["process_response"].sum == 0.001
    assert of("a").value("virtex_executor_busy_seconds_total") == 2.5
    assert of("a").value("virtex_retries_total") == 3


@pytest.mark.parametrize("status", [0, 199, 200, 599, 600, 10**6])
def test_a_status_that_there_is_not_is_counted_nowhere(cells, status):
    cells.refused(status)
    assert of("a").values("virtex_requests_total") == ({str(status): 1} if 200 <= status < 600 else {})
    assert sum(next(iter(boards.here().blocks())).cells) == (200 <= status < 600)


@pytest.mark.parametrize(
    "wrong", [lambda cells: cells.lost("bored"), lambda cells: cells.cut("bored", 1)], ids=["lost", "cut"]
)
def test_a_reason_that_there_is_not_is_refused(cells, wrong):
    with pytest.raises(KeyError, match="bored"):
        wrong(cells)


def test_connections_open_and_close_and_none_is_closed_that_was_not_counted(cells):
    for more in (-1, 1, 1, -1):
        cells.connections(more)
    assert of("a").value("virtex_open_connections") == 1


def test_workers_are_those_of_the_scoreboard_that_live_else_this_process(cells):
    cells.connections(1)
    assert workers() == [WorkerState(0, os.getpid(), "ready", 1, 0)]
    scoreboard = scoreboard_of(4, 7)
    assert workers(scoreboard.board) == [
        WorkerState(0, os.getpid(), "ready", 4, 1),
        WorkerState(1, os.getpid(), "ready", 7, 2),
    ]
    scoreboard._write(1, scoreboard.entry(1)._replace(pid=2**22 + 1))  # above any pid there is
    assert [each.index for each in workers(scoreboard.board)] == [0]
