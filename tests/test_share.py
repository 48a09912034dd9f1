"""Which worker takes a connection that waits for all of them."""

import os

import pytest
from kit.workers import scoreboard_of

from virtex.workers.scoreboard import LOADING
from virtex.workers.share import PATIENCE, Share


def test_sibling_that_gives_no_sign_of_life_is_waited_for_a_while_only():
    scoreboard = scoreboard_of(0, 3, 9)
    share = Share(scoreboard, 0)
    assert not share.has_more(3)
    for _ in range(PATIENCE):
        assert share.has_more(5)
        share.waited_in_vain()
    assert not share.has_more(5)
    assert share.has_more(10)  # the other one has fewer too, and may be well
    scoreboard.publish(1, 3)
    assert share.has_more(5)


@pytest.mark.parametrize(
    ("pid", "takes"), [(os.getpid, False), (lambda: 1 << 30, True), (str, True)], ids=["lives", "gone", "none"]
)
def test_while_it_loads_it_leaves_connections_to_the_workers_of_the_master_before(monkeypatch, pid, takes):
    monkeypatch.setenv("GUNICORN_PID", str(pid()))  # gunicorn's, on SIGUSR2
    scoreboard = scoreboard_of(0)
    assert Share(scoreboard, 0).may_accept()
    scoreboard.set_state(0, LOADING)
    assert Share(scoreboard, 0).may_accept() is takes


@pytest.mark.parametrize("is_handed_over", [False, True])
def test_in_a_stop_nobody_takes_what_is_left_but_the_workers_of_the_next_master(is_handed_over):
    scoreboard = scoreboard_of(0, 0)
    share = Share(scoreboard, 0)
    assert share.has_ready_sibling()
    scoreboard.mark_stop(is_handed_over)
    assert scoreboard.is_stopping() and share.has_ready_sibling() is is_handed_over
