"""What workers know of each other."""

from __future__ import annotations

import subprocess

import pytest

from virtex.workers.scoreboard import DRAINING, FREE, LOADING, READY, RESTARTING, Scoreboard


def test_scoreboard_gives_the_lowest_free_slot_and_takes_back_a_dead_workers():
    scoreboard = Scoreboard()
    assert [scoreboard.take(age) for age in (1, 2, 3)] == [0, 1, 2]
    scoreboard.own(0, 1)
    scoreboard.release(1)
    assert scoreboard.take(4) == 1
    scoreboard._write(2, scoreboard.entry(2)._replace(pid=2**22 + 1))  # above any pid there is
    assert scoreboard.take(5) == 2


def test_scoreboard_knows_whether_any_worker_was_ever_ready():
    scoreboard = Scoreboard()
    scoreboard.take(1)
    scoreboard.own(0, 1)
    assert not scoreboard.has_served() and scoreboard.count_failure() == 1 and scoreboard.count_failure() == 2
    assert [entry.state for entry in scoreboard.others(1)] == [LOADING]
    scoreboard.set_state(0, READY)
    scoreboard.set_state(0, DRAINING)
    assert scoreboard.has_served() and scoreboard.count_failure() == 1


@pytest.mark.parametrize(
    ("others", "may_go"),
    [
        ([], True),
        ([(2, READY, 1)], True),
        ([(3, LOADING, 1)], False),
        ([(1, LOADING, 1)], True),  # it was there before, and hangs
        ([(3, LOADING, 1), (4, READY, 1)], True),
        ([(3, DRAINING, 1)], True),
        ([(3, RESTARTING, 1)], False),
        ([(3, RESTARTING, 1), (4, READY, 1)], True),
        ([(3, LOADING, 2)], False),
        ([(3, LOADING, 2), (1, READY, 1)], False),
        ([(3, READY, 2)], True),
        ([(3, FREE, 2)], False),  # it failed and left
    ],
)
def test_worker_may_go_when_the_newest_code_works_and_another_is_ready_or_none_will_be_soon(others, may_go):
    scoreboard = Scoreboard()
    scoreboard.own(scoreboard.take(2), 2)
    scoreboard.set_state(0, READY)
    for index, (age, state, generation) in enumerate(others, 1):
        scoreboard.own(scoreboard.take(age, generation), age)
        scoreboard.set_state(index, state)
    if any(generation == 2 for _, _, generation in others):
        scoreboard.take(9, 2)  # the newest was taken last
    assert scoreboard.can_do_without(0) is may_go


def test_worker_that_is_gone_is_nobodys_sibling():
    scoreboard = Scoreboard()
    for age in 1, 2:
        scoreboard.own(scoreboard.take(age), age)
        scoreboard.set_state(age - 1, READY)
    assert scoreboard.has_ready_sibling(0)
    scoreboard._write(1, scoreboard.entry(1)._replace(pid=2**22 + 1))  # above any pid there is
    assert not scoreboard.has_ready_sibling(0)


def test_a_successor_takes_the_slot_that_waits_for_it_before_a_lower_one_that_is_free():
    gone = subprocess.Popen(["true"])
    gone.wait()
    scoreboard = Scoreboard()
    for age in (1, 2):
        scoreboard.own(scoreboard.take(age), age)
    scoreboard._write(1, scoreboard.entry(1)._replace(pid=gone.pid, state=RESTARTING))
    scoreboard.release(0)
    assert scoreboard.take(3) == 1
    assert scoreboard.take(4) == 0
