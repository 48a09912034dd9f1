"""What the log is told of requests that are refused."""

import pytest

from virtex.errors import RequestError
from virtex.service.refusals import Refusals

FULL, SLOW = RequestError(503, "no room", (), "full"), RequestError(503, "too long", (), "predicted")


@pytest.fixture
def refusals(loop):
    return Refusals(loop, "a")


def test_a_burst_has_a_line_at_once_and_its_number_every_ten_seconds_while_it_goes_on(loop, refusals, caplog):
    for _ in range(25):
        refusals.count(FULL)
        loop.advance(1)
    assert caplog.messages == [
        "service 'a' refuses requests: no room",
        "service 'a' refused 9 more within 10 s: full",
        "service 'a' refused 10 more within 10 s: full",
    ]
    loop.advance(5)
    assert caplog.messages[3:] == ["service 'a' refused 5 more within 10 s: full"]
    first, second = caplog.records[:2]
    assert (first.event, first.service, first.reason, first.requests) == ("refused", "a", "full", 1)
    assert second.requests == 9 and second.levelname == "WARNING"


def test_after_ten_quiet_seconds_it_is_over_and_nothing_runs(loop, refusals, caplog):
    refusals.count(FULL)
    loop.advance(10)
    assert len(caplog.messages) == 1 and loop.timers == 0
    refusals.count(FULL)
    assert caplog.messages == ["service 'a' refuses requests: no room"] * 2


def test_each_reason_is_a_burst_of_its_own(loop, refusals, caplog):
    for _ in range(3):
        refusals.count(FULL)
        refusals.count(SLOW)
    loop.advance(10)
    assert sorted(caplog.messages) == [
        "service 'a' refused 2 more within 10 s: full",
        "service 'a' refused 2 more within 10 s: predicted",
        "service 'a' refuses requests: no room",
        "service 'a' refuses requests: too long",
    ]


def test_at_the_end_what_was_not_said_is_said(loop, refusals, caplog):
    refusals.count(FULL)
    refusals.count(FULL)
    refusals.count(SLOW)
    refusals.stop()
    assert caplog.messages[2:] == ["service 'a' refused 1 more within 10 s: full"] and loop.timers == 0
