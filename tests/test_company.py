"""Who is waited for."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtex.company import Company, Peer

WINDOW = 5


class Model:
    """The rule in so many words: everybody who was answered and has nothing open, for as long as the window."""

    def __init__(self):
        self.arriving = 0
        self.open = [0] * 4
        self.answered = [None] * 4

    def until(self, now):
        for i, at in enumerate(self.answered):
            if at is not None and at <= now - WINDOW:
                self.answered[i] = None
        if self.arriving:
            return now + WINDOW
        return max((at + WINDOW for at in self.answered if at is not None), default=0)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["arrives", "answered", "leaves", "until"]), st.integers(0, 3)), max_size=60
)


@given(EVENTS)
def test_it_is_the_rule_in_whatever_order_things_happen(events):
    company, peers, model = Company(WINDOW), [Peer() for _ in range(4)], Model()
    for now, (event, i) in enumerate(events, 1):
        if event == "arrives":
            company.arrives(peers[i])
            model.arriving += 1
            model.open[i] += 1
            model.answered[i] = None
        elif event == "answered" and model.open[i]:
            company.arrived()
            model.arriving -= 1
            company.answered(peers[i], now)
            model.open[i] -= 1
            model.answered[i] = None if model.open[i] else now
        elif event == "leaves":
            company.leaves(peers[i])
            model.answered[i] = None
        elif event == "until":
            assert company.until(now) == model.until(now)
        assert [peer.open for peer in peers] == model.open
        assert [bool(peer.answered) for peer in peers] == [at is not None for at in model.answered]


def test_who_comes_and_goes_again_and_again_leaves_the_others_as_they_were():
    company, (first, second) = Company(WINDOW), (Peer(), Peer())
    for peer in (first, second):
        company.arrives(peer)
        company.arrived()
        company.answered(peer, 1)
    for _ in range(2):
        company.arrives(first)
        company.arrived()
        assert company.until(2) == 1 + WINDOW
        company.answered(first, 2)
        assert company.until(2) == 2 + WINDOW
    company.leaves(first)
    assert company.until(3) == 1 + WINDOW
    company.leaves(second)
    assert company.until(3) == 0


def test_a_window_of_zero_waits_for_nobody():
    company, peer = Company(0), Peer()
    company.arrives(peer)
    assert company.until(1) == 0
    company.arrived()
    company.answered(peer, 2)
    assert company.until(3) == 0 and peer.answered == 0


def test_a_clock_that_begins_at_zero_counts_too():
    company, peer = Company(WINDOW), Peer()
    for _ in range(2):
        company.arrives(peer)
        company.arrived()
        company.answered(peer, 0)
    assert company.until(0) > 0
    company.leaves(peer)
    assert company.until(0) == 0


def test_a_client_without_a_connection_is_company_only_while_it_arrives():
    company = Company(WINDOW)
    company.arrives(None)
    assert company.until(1) == 1 + WINDOW
    company.arrived()
    company.answered(None, 2)
    assert company.until(3) == 0


class Kept(Peer):
    pass  # weak references need a class of Python


def test_who_is_not_expected_any_more_is_not_kept():
    company = Company(WINDOW)
    peers = [Kept() for _ in range(3)]
    for now, peer in enumerate(peers, 1):
        company.arrives(peer)
        company.arrived()
        company.answered(peer, now)
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
