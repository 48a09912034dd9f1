"""The names of Virtex 0.1, one by one."""

import pytest
from kit.prom import count, total

from virtex.metrics.board import Board
from virtex.metrics.exposition import Ours, registry_of, render
from virtex.metrics.legacy import NAMES


@pytest.fixture(scope="module")
def text():
    """After three requests of 8 ms, two of them with 2 items that were answered, in a batch of 4."""
    board = Board(4)
    for name, *values in COUNTED:
        name, _, label = name.partition(" ")
        count(board, "counted", name, *values, label=label)
    return render(registry_of(Ours({"counted": True}, board)), "")[1].decode()


COUNTED = [
    ("virtex_requests_total 200", 2),
    ("virtex_requests_total 422", 1),
    ("virtex_queries_total", 4),
    ("virtex_request_queries", 2, 2),
    ("virtex_request_duration_seconds", 0.008, 0.008, 0.008),
    ("virtex_stage_duration_seconds process_request", 0.002),
    ("virtex_stage_duration_seconds run_inference", 0.003),
    ("virtex_stage_duration_seconds process_response", 0.004),
    ("virtex_batch_size", 4),
    ("virtex_queue_items", 7),
    ("virtex_requests_in_flight", 9),
]
EXPECTED = {
    "requests_total": 3,
    "queries_total": 4,
    "queries_per_request_count": 2,
    "queries_per_request_sum": 4,
    "server_latency_milliseconds_count": 3,
    "server_latency_milliseconds_sum": 24,
    "process_request_latency_milliseconds_sum": 2,
    "run_inference_latency_milliseconds_sum": 3,
    "process_response_latency_milliseconds_sum": 4,
    "inference_batch_size_count": 1,
    "inference_batch_size_sum": 4,
    "request_queue_size": 7,
    "response_queue_size": 9,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_name_says_what_it_said(name, text):
    assert total(text, name, service="counted") == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize(("name", "items"), [("server_throughput_rps", 1), ("server_throughput_qps", 2)])
def test_throughput_is_one_over_the_duration_of_a_request(name, items, text):
    assert total(text, name + "_count", service="counted") == 3
    mean = total(text, name + "_sum", service="counted") / 3
    assert items / 0.01 < mean < items / 0.005  # the bucket of 8 ms


def test_there_are_twelve_and_each_is_there(text):
    assert len(NAMES) == 12
    for name in NAMES:
        assert f"# TYPE {name} " in text


def test_they_are_there_only_if_asked_for(text):
    text = render(registry_of(Ours({"counted": False}, Board(4))), "")[1].decode()
    assert [name for name in NAMES if f"# TYPE {name} " in text] == []
