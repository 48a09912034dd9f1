"""When a post is tried again: a table of outcomes; waits, budget and Retry-After, with a clock that is given."""

from __future__ import annotations

import ssl
from typing import Any

import httpcore2
import pytest

from virtex.posting.outcomes import Outcome
from virtex.posting.retries import FULL, MOST, TRIES, Post, Retries, retry_after
from virtex.posting.targets import target_of


class Time:
    """A clock that stands until it is moved, and dice that show one number."""

    def __init__(self, dice: float = 0.0) -> None:
        self.now = 1000.0
        self.shows = dice

    def clock(self) -> float:
        return self.now

    def dice(self) -> float:
        return self.shows


class Place:
    def __init__(self) -> None:
        self.refusals = 0
        self.has_hope, self.given_up = True, False

    def refuse(self) -> bool:
        self.refusals += 1
        return self.has_hope

    def give_up(self) -> None:
        self.given_up = True


def retries(time: Time, mode: str = "safe") -> Retries:
    return Retries(mode, time.clock, time.dice)


def tried(time: Time, times: int = 1, timeout: float | None = 60.0, place: Any = None) -> Post:
    post = Post("POST", target_of("http://there/"), [], b"", timeout, time.clock, place)
    for _ in range(times):
        post.begin()
    return post


def full(after: str | None = "1") -> Outcome:
    return Outcome(503, [] if after is None else [(b"Retry-After", after.encode())], b"")


def broke(error: Exception, unsent: bool) -> Outcome:
    return Outcome(0, [], b"", error, unsent)


def bad_certificate() -> Exception:
    error = httpcore2.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    return error


CASES = {
    "an answer": (Outcome(200, [], b""), ()),
    "an item refused": (Outcome(422, [], b""), ()),
    "a failure of the handler": (Outcome(500, [(b"retry-after", b"1")], b""), ()),
    "no room": (full(), ("safe", "always")),
    "no room, no word when": (full(None), ()),
    "no room, nonsense when": (full("soon"), ()),
    "a gateway that lost its server": (Outcome(502, [], b""), ("always",)),
    "a gateway that waited": (Outcome(504, [], b""), ()),
    "nobody listens": (broke(httpcore2.ConnectError("refused"), True), ("safe", "always")),
    "closed before the first byte": (broke(httpcore2.ReadError("reset"), True), ("safe", "always")),
    "broken after it": (broke(httpcore2.ReadError("reset"), False), ("always",)),
    "half an answer": (broke(httpcore2.RemoteProtocolError("cut"), False), ("always",)),
    "a bad certificate": (broke(bad_certificate(), True), ()),
    "what can't be sent": (broke(httpcore2.LocalProtocolError("header"), True), ()),
}


@pytest.mark.parametrize("mode", ["safe", "always", "never"])
@pytest.mark.parametrize(("outcome", "modes"), CASES.values(), ids=CASES)
def test_what_is_tried_again_in_each_mode(outcome: Outcome, modes: tuple[str, ...], mode: str) -> None:
    time = Time()
    assert (retries(time, mode).wait(tried(time), outcome) is not None) == (mode in modes)


def test_another_mode_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"retry: expected one of \('safe', 'always', 'never'\), got 'maybe'"):
        Retries("maybe")


def test_a_connection_is_tried_four_times_and_the_bound_of_the_wait_doubles() -> None:
    time = Time(dice=1.0)
    refused = broke(httpcore2.ConnectError("refused"), True)
    waits = [retries(time).wait(tried(time, times), refused) for times in range(1, TRIES + 1)]
    assert waits == [0.1, 0.2, 0.4, None]
    time.shows = 0.25
    assert retries(time).wait(tried(time, 2), refused) == 0.05


def test_the_time_that_the_service_names_passes_first_and_the_jitter_is_bounded() -> None:
    time = Time(dice=0.5)
    assert retries(time).wait(tried(time), full("3")) == 3.05
    assert retries(time).wait(tried(time, 50), full("3")) == 3 + MOST / 2


def test_nothing_is_waited_for_that_comes_after_the_deadline() -> None:
    time = Time()
    policy = retries(time)
    post = tried(time, timeout=5.0)
    assert policy.wait(post, full("4")) == 4.0
    assert policy.wait(post, full("5")) is None
    assert policy.wait(post, full("9" * 400)) is None
    time.now += 2
    assert policy.wait(post, full("4")) is None
    assert policy.wait(tried(time, timeout=None), full("4000")) == 4000.0


@pytest.mark.parametrize(
    ("after", "date", "seconds"),
    [
        ("0", None, 0.0),
        ("120", None, 120.0),
        ("9" * 5000, None, float("inf")),
        ("-1", None, None),
        ("1.5", None, None),
        ("\u0661", None, None),
        ("", None, None),
        ("soon", None, None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None, None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 GMT", 30.0),
        ("Friday, 31-Dec-99 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 GMT", 30.0),
        ("Fri, 31 Dec 1999 23:59:29 GMT", "Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 99 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 GMT", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "yesterday", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:59 -0000", None),
    ],
    ids=str,
)
def test_retry_after_is_seconds_or_a_date_counted_from_the_date_of_the_answer(
    after: str, date: str | None, seconds: float | None
) -> None:
    headers = [(b"retry-after", after.encode("utf-8"))]
    if date is not None:
        headers.append((b"Date", date.encode()))
    assert retry_after(Outcome(503, headers, b"")) == seconds


def test_in_a_storm_of_503s_the_budget_holds_and_a_failure_stands() -> None:
    time = Time()
    policy = retries(time)
    again = 0
    for _ in range(1000):
        policy.budget.deposit()
        again += policy.wait(tried(time, 2), full()) is not None
    assert again == pytest.approx(FULL + 1000 * 0.2, abs=26)  # what is deposited into a full bucket runs over
    assert policy.wait(tried(time), full()) is None
    time.now += 1.0
    assert [policy.wait(tried(time), full()) is not None for _ in range(12)].count(True) in (10, 11)


def test_a_bundle_waits_for_a_token_and_says_where_there_was_no_room() -> None:
    time, place = Time(), Place()
    policy = retries(time)
    policy.budget.tokens = 0.0
    waits = [policy.wait(tried(time, place=place), full("0")) for _ in range(3)]
    assert waits == pytest.approx([0.1, 0.2, 0.3])
    assert place.refusals == 3
    assert policy.wait(tried(time, timeout=0.2, place=place), full("0")) is None
    assert policy.budget.tokens == pytest.approx(-3)


def test_a_bundle_hears_what_is_given_up_and_says_where_a_wait_is_worth_nothing() -> None:
    time, place = Time(), Place()
    policy = retries(time)
    assert policy.wait(tried(time, timeout=3.0, place=place), full("2")) is not None
    assert not place.given_up
    assert policy.wait(tried(time, timeout=2.0, place=place), full("2")) is None
    assert place.given_up
    place.has_hope = False
    assert policy.wait(tried(time, timeout=3.0, place=place), full("2")) is None


def test_each_try_tells_the_service_what_is_left_of_its_time() -> None:
    time = Time()
    post = tried(time, 0, timeout=2.5)
    first = post.begin()
    time.now += 1.0
    second, third = post.begin(), tried(time, 0, timeout=None).begin()
    assert (b"x-request-timeout-ms", b"2500") in first.headers
    assert (b"x-request-timeout-ms", b"1500") in second.headers
    assert b"x-request-timeout-ms" not in dict(third.headers)
    time.now += 2.0
    assert (b"x-request-timeout-ms", b"1") in post.begin().headers
