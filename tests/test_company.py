"""Who is waited for."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtex.batch.company import WARY, Company, Peer

WINDOW = 5


class Model:
    """The rule in so many words: who was answered and has nothing open, and whose body is awaited, for the window."""

    def __init__(self):
        self.wary = 0
        self.open = [0] * 4
        self.since = [None] * 4
        self.known = [False] * 4
        self.late = [False] * 4
        self.awaited = [None] * 4  # since when the body of its request is, one at a time

    def awaits(self, i, now):
        self.awaited[i] = now
        if not (self.late[i] if self.known[i] else self.wary):
            self.since[i] = now

    def arrived(self, i, took):
        self.awaited[i] = self.since[i] = None
        if self.known[i]:
            self.late[i] = took > WINDOW
        else:
            self.wary = WARY if took > WINDOW else max(self.wary - 1, 0)

    def answered(self, i, now):
        self.known[i] = True
        self.open[i] -= 1
        if not self.open[i]:
            self.since[i] = now

    def until(self, now):
        for i, at in enumerate(self.since):
            if at is not None and at <= now - WINDOW:
                self.since[i] = None
                self.wary = self.wary if self.known[i] else WARY
        return max((at + WINDOW for at in self.since if at is not None), default=0)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["arrives", "awaits", "arrived", "answered", "leaves", "until"]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=80,
)


@given(EVENTS)
def test_it_is_the_rule_in_whatever_order_things_happen(events):
    company, peers, model = Company(WINDOW), [Peer() for _ in range(4)], Model()
    now = 1
    for event, i, passes in events:
        now += passes
        waits = model.awaited[i] is not None
        if event == "arrives" and not waits:
            company.arrives(peers[i])
            model.open[i] += 1
            model.since[i] = None
        elif event == "awaits" and model.open[i] and not waits:
            company.awaits(peers[i], now)
            model.awaits(i, now)
        elif event == "arrived" and waits:
            took = now - model.awaited[i]
            company.arrived(peers[i], took)
            model.arrived(i, took)
        elif event == "answered" and model.open[i] > waits:
            company.settled(peers[i], now)
            model.answered(i, now)
        elif event == "leaves":
            company.leaves(peers[i])
            model.since[i] = None
        elif event == "until":
            assert company.until(now) == model.until(now)
        assert [peer.open for peer in peers] == model.open
        assert [bool(peer.expected_since) for peer in peers] == [at is not None for at in model.since]


def test_who_comes_and_goes_again_and_again_leaves_the_others_as_they_were():
    company, (first, second) = Company(WINDOW), (Peer(), Peer())
    for peer in (first, second):
        company.arrives(peer)
        company.settled(peer, 1)
    for _ in range(2):
        company.arrives(first)
        assert company.until(2) == 1 + WINDOW
        company.settled(first, 2)
        assert company.until(2) == 2 + WINDOW
    company.leaves(first)
    assert company.until(3) == 1 + WINDOW
    company.leaves(second)
    assert company.until(3) == 0


def test_a_window_of_zero_waits_for_nobody():
    company, peer = Company(0), Peer()
    company.arrives(peer)
    company.awaits(peer, 1)
    assert company.until(1) == 0
    company.arrived(peer, 1)
    company.settled(peer, 2)
    assert company.until(3) == 0 and peer.expected_since == 0


def test_a_clock_that_begins_at_zero_counts_too():
    company, peer = Company(WINDOW), Peer()
    for _ in range(2):
        company.arrives(peer)
        company.settled(peer, 0)
    assert company.until(0) > 0
    company.leaves(peer)
    assert company.until(0) == 0


def test_a_client_that_cannot_be_told_from_others_is_never_company():
    company = Company(WINDOW)
    company.arrives(None)
    company.awaits(None, 1)
    assert company.until(1) == 0
    company.arrived(None, 1)
    company.settled(None, 2)
    assert company.until(3) == 0


def awaited(company, peer, now):
    company.arrives(peer)
    company.awaits(peer, now)
    return company.until(now)


def test_a_body_is_waited_for_until_the_window_after_its_head_ends():
    company, peer = Company(WINDOW), Peer()
    assert awaited(company, peer, 10) == 10 + WINDOW
    assert company.until(9 + WINDOW) == 10 + WINDOW
    assert company.until(10 + WINDOW) == 0


def test_strangers_who_dribble_one_after_the_other_are_waited_for_once():
    company = Company(WINDOW)
    assert awaited(company, Peer(), 1)
    assert company.until(1 + WINDOW) == 0
    waits = [awaited(company, Peer(), now) for now in range(1 + WINDOW, 1000, WINDOW)]
    assert not any(waits)


def test_strangers_who_begin_and_leave_in_time_are_waited_for_once():
    company, peer = Company(WINDOW), Peer()
    assert awaited(company, peer, 1)
    company.arrived(peer, 1 << 62)
    company.settled(peer, 2)
    company.leaves(peer)
    assert not awaited(company, Peer(), 3)


def test_strangers_are_waited_for_again_when_enough_of_them_came_in_time():
    company = Company(WINDOW)
    awaited(company, Peer(), 1)
    now = 1 + WINDOW
    assert company.until(now) == 0
    for _ in range(WARY):
        peer = Peer()
        assert not awaited(company, peer, now)
        company.arrived(peer, WINDOW)
    assert awaited(company, Peer(), now)


def test_a_client_whose_body_came_late_is_waited_for_again_when_one_came_in_time():
    company, peer = Company(WINDOW), Peer()
    now = 1
    for took, waits in ((1, True), (WINDOW + 1, True), (WINDOW + 1, False), (WINDOW, False), (1, True)):
        company.arrives(peer)
        peer.is_known = True
        company.awaits(peer, now)
        assert bool(company.until(now)) is waits
        company.arrived(peer, took)
        now += 100


class Kept(Peer):
    pass  # weak references need a class of Python


def test_who_is_not_expected_any_more_is_not_kept():
    company = Company(WINDOW)
    peers = [Kept() for _ in range(3)]
    for now, peer in enumerate(peers, 1):
        company.arrives(peer)
        company.settled(peer, now)
    kept = [weakref.ref(peer) for peer in peers]
    company.leaves(peers[1])
    peers.clear()
    del peer
    gc.collect()
    assert [ref() is not None for ref in kept] == [True, False, True]
    company.until(100)
    gc.collect()
    assert [ref() is not None for ref in kept] == [False, False, False]


def test_no_peer_at_all_is_an_error_and_no_crash():
    with pytest.raises((AttributeError, TypeError)):
        Company(WINDOW).leaves(None)
