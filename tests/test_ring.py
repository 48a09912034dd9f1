import time

import pytest

from virtex import Tensor
from virtex._codec import items_of
from virtex.batch.ring import Ring, Ticket
from virtex.batch.rows import RowRing


class Recorder(Ticket):
    def __init__(self, items):
        super().__init__()
        self.items = list(items)
        self.count = len(self.items)
        self.answers = []

    def deliver(self, rows, error):
        self.answers.append((rows, error))


def spans(ring, limit):
    batch = ring.take(limit)
    assert batch.work == [ticket.items[start:stop] for ticket, start, stop in batch.spans]
    assert batch.size == sum(map(len, batch.work))
    return batch.work


def test_slots_come_out_in_the_order_they_went_in():
    ring = Ring(8)
    for items in ("ab", "c", "def"):
        assert ring.put(Recorder(items))
    assert ring.size == 6
    assert spans(ring, 8) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert ring.size == 0


def test_a_request_is_split_where_the_batch_is_full_and_its_rest_comes_first_in_the_next():
    ring = Ring(8)
    ring.put(Recorder("abcde"))
    ring.put(Recorder("f"))
    assert spans(ring, 2) == [["a", "b"]]
    assert spans(ring, 2) == [["c", "d"]]
    assert spans(ring, 2) == [["e"], ["f"]]


def test_a_full_ring_refuses_whatever_comes_and_keeps_what_it_has():
    ring = Ring(3)
    assert ring.put(Recorder("ab"))
    assert ring.put(Recorder("c"))
    assert not ring.put(Recorder("d")) and not ring.put(Recorder("efgh"))
    assert ring.size == 3
    assert spans(ring, 9) == [["a", "b"], ["c"]]


def test_a_ring_that_is_not_full_takes_a_request_whole_that_is_larger_than_it_and_then_none_until_it_is_not_full():
    """Among requests of one item each, a large one comes in as soon as any of them."""
    ring = Ring(3)
    assert ring.put(Recorder("ab")) and ring.put(Recorder("cdefg"))
    assert ring.size == 7
    for left in (5, 3):
        assert not ring.put(Recorder("x"))
        ring.take(2)
        assert ring.size == left
    assert not ring.put(Recorder("x"))
    ring.take(1)
    assert ring.put(Recorder("x"))
    assert spans(ring, 9) == [["f", "g"], ["x"]]


def test_a_cancelled_request_gives_back_the_slots_that_no_batch_has_taken():
    ring = Ring(4)
    first, second = Recorder("abc"), Recorder("d")
    ring.put(first)
    ring.put(second)
    ring.take(2)
    assert ring.cancel(first) == 1
    assert ring.size == 1
    assert ring.oldest is second
    assert ring.cancel(first) == 0
    assert spans(ring, 4) == [["d"]]


def test_a_batch_that_was_answered_lets_go_of_its_items():
    ring = Ring(1)
    ring.put(Recorder("a"))
    batch = ring.take(1)
    ring.release(batch)
    assert batch.work is None


def test_an_empty_ring_has_no_oldest():
    with pytest.raises(IndexError):
        _ = Ring(1).oldest


def test_a_ticket_is_delivered_when_its_last_slot_came_back_and_only_once():
    ticket = Recorder("abc")
    ticket.fill([1, 2])
    assert ticket.answers == []
    ticket.fill([3])
    assert ticket.answers == [([1, 2, 3], None)]
    ticket.fill([4])
    ticket.resolve([], ValueError())
    assert ticket.answers == [([1, 2, 3], None)]


def test_an_error_resolves_at_once_and_frees_items_and_rows():
    ticket = Recorder("abc")
    ticket.fill([1])
    error = ValueError("item 1")
    ticket.resolve([], error)
    assert ticket.answers == [([], error)]
    assert ticket.items is None and ticket.rows is None
    ticket.fill([2, 3])
    assert len(ticket.answers) == 1


def test_those_who_were_cancelled_are_passed_over_and_not_kept():
    ring = Ring(100)
    tickets = [Recorder(str(i % 10)) for i in range(100)]
    for ticket in tickets:
        ring.put(ticket)
    for ticket in tickets[:40] + tickets[41:90]:
        assert ring.cancel(ticket) == 1
    assert ring.size == 11
    assert ring.oldest is tickets[40]
    assert list(ring) == [tickets[40], *tickets[90:]]
    assert len(ring._tickets) <= 2 * ring.size
    assert [ticket for ticket, _, _ in ring.take(100).spans] == [tickets[40], *tickets[90:]]
    assert ring.size == 0 and not ring._tickets
    with pytest.raises(IndexError):
        _ = ring.oldest


@pytest.mark.parametrize("make", [Ring, lambda n: RowRing(Tensor("uint8"), 8, n, 1 << 20)], ids=["items", "rows"])
def test_who_leaves_costs_the_same_however_many_wait(make):
    def seconds(count):
        ring = make(count)
        tickets = [Recorder("1") for _ in range(count)]
        for ticket in tickets:
            ticket.items = items_of([1])
            ring.put(ticket)
        started = time.process_time()
        for ticket in reversed(tickets):
            ring.cancel(ticket)
        assert ring.size == 0
        return time.process_time() - started

    few, many = (min(seconds(count) for _ in range(3)) for count in (500, 8000))
    assert many < 4 * 16 * few, "sixteen times as many took more than sixteen times as long"
