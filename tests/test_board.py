"""Where processes count, and what becomes of it when they fork, die and are replaced."""

from __future__ import annotations

import os
import re
import signal

import pytest
from kit.counts import counted, value

from virtex.metrics import board as boards
from virtex.metrics.board import NAME_BYTES, Board, here
from virtex.metrics.schema import METRICS
from virtex.metrics.totals import totals


@pytest.fixture
def board():
    with counted() as board:
        yield board


def in_child(f):
    """Run f in a process that was forked, as gunicorn forks a worker; returns its exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            f()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_process_that_uses_no_board_counts_on_its_own(board):
    boards.cells("a").request(200, 3, 5)
    assert here() is board
    assert value("a", "virtex_queries_total") == 3


def test_services_of_one_process_have_blocks_of_their_own_and_one_name_has_one(board):
    boards.cells("a").request(200, 1, 0)
    boards.cells("b").request(200, 10, 0)
    assert boards.cells("a") is boards.cells("a")
    boards.cells("a").request(200, 1, 0)
    assert {name: each.value("virtex_queries_total") for name, each in totals().items()} == {"a": 2, "b": 10}


@pytest.mark.parametrize("name", ["é" * NAME_BYTES, "x" * NAME_BYTES, "\ud800", "a b\n\0\0", "a"], ids=ascii)
def test_two_names_are_two_services_however_long_they_are(board, name):
    for one in (name, name + "1", name + "2"):
        boards.cells(one).request(200, 1, 0)
    assert len(totals()) == 3
    assert all(each.value("virtex_queries_total") == 1 for each in totals().values())
    if len(name.encode("utf-8", "replace")) <= NAME_BYTES and name.isprintable():
        assert name in totals()


def test_a_board_without_room_says_so_and_takes_nothing_from_others(caplog):
    with counted(Board(1)):
        boards.cells("a").request(200, 1, 0)
        boards.cells("one too many").request(200, 5, 0)
        assert [(name, each.value("virtex_queries_total")) for name, each in totals().items()] == [("a", 1)]
    assert re.search(r"'one too many' is not counted: 1 blocks are taken", caplog.text)


def test_processes_that_use_slots_of_one_board_are_summed_and_what_died_stays_counted(board):
    def work(slot):
        board.use(slot)
        boards.cells("a").request(200, 7, 0)

    assert [in_child(lambda slot=slot: work(slot)) for slot in (1, 2)] == [0, 0]
    assert value("a", "virtex_queries_total") == 14
    assert len(list(board.blocks())) == 2


def test_a_successor_goes_on_counting_where_the_dead_left_off_and_its_gauges_begin_at_zero(board):
    def work():
        board.use(1)
        boards.cells("a").request(200, 1, 0)
        boards.cells("a").queue(5, 50)
        boards.cells("a").in_flight(3)
        os.kill(os.getpid(), signal.SIGKILL)

    def succeed():
        board.use(1)
        assert [block.pid for block in board.blocks()] == [0]
        assert all(value("a", gauge) == 0 for gauge in gauges)
        boards.cells("a").request(200, 1, 0)
        boards.cells("a").queue(1, 10)
        assert value("a", "virtex_queue_items") == 1 and value("a", "virtex_requests_in_flight") == 0

    gauges = [metric.name for metric in METRICS if metric.kind == "gauge"]
    assert in_child(work) == -signal.SIGKILL
    assert next(board.blocks()).cells.count(5) == 1  # it is there, and nobody's
    assert all(value("a", gauge) == 0 for gauge in gauges)
    assert in_child(succeed) == 0
    assert value("a", "virtex_queries_total") == 2
    assert len(list(board.blocks())) == 1


def test_a_process_that_is_forked_and_uses_no_slot_does_not_write_its_parents(board):
    before = boards.cells("a")  # of a model that its parent has begun
    before.request(200, 1, 0)
    before.queue(3, 30)

    def work():
        before.request(200, 100, 0)
        before.queue(0, 0)
        boards.cells("a").request(200, 100, 0)
        assert here() is not board and value("a", "virtex_queries_total") == 200

    assert in_child(work) == 0
    assert value("a", "virtex_queries_total") == 1 and value("a", "virtex_queue_items") == 3


def test_what_counts_already_when_a_slot_is_taken_counts_there_from_then_on(board):
    early = boards.cells("a")
    early.request(200, 1, 0)
    late = Board(4)
    late.use(3)
    early.request(200, 10, 0)
    assert value("a", "virtex_queries_total") == 10
    assert [(block.slot, block.pid) for block in late.blocks()] == [(3, os.getpid())]
