import pytest
from conftest import FakeLoop, ScriptedExecutor
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from kit.asks import Echo
from test_ring import Recorder

from virtex import Observer
from virtex.batch.batcher import Batcher
from virtex.batch.company import Peer
from virtex.batch.executors import InlineExecutor
from virtex.batch.steps import Steps
from virtex.errors import HandlerError, ItemError, RequestError

WINDOW = 0.005


class Watching(Observer):
    def __init__(self):
        self.batches = []
        self.drops = []

    def batch_done(self, batch):
        self.batches.append(batch)

    def dropped(self, reason, items):
        self.drops.append((reason, items))


class Rig:
    """A batcher over the fake loop and a scripted executor."""

    def __init__(self, loop, size=4, window=WINDOW, queue=16, depth=1, start=True, cells=None):
        self.loop = loop
        self.observer = Watching()
        self.executor = ScriptedExecutor(depth)
        self.batcher = Batcher(loop, size, window, queue, loop.clock, self.observer, cells)
        if start:
            self.start()

    def start(self):
        self.batcher.run_with(self.executor, Steps(Echo(), self.loop.clock))

    def send(self, items, peer=None):
        """A whole request: headers, body, admission."""
        self.batcher.company.arrives(peer)
        ticket = Recorder(items)
        self.batcher.admit(ticket, self.loop.now)
        return ticket

    def begins(self, peer):
        """The headers of a request, and some of its body."""
        self.batcher.company.arrives(peer)
        self.batcher.company.awaits(peer, self.loop.now)

    def answered(self, *peers):
        for peer in peers:
            self.batcher.company.settled(peer, self.loop.now)


@pytest.fixture
def rig(loop):
    return Rig(loop)


def test_admission_never_runs_the_model_and_everything_of_one_poll_shares_a_batch(rig):
    for item in "abc":
        rig.send(item)
    assert rig.executor.sizes == []
    assert len(rig.loop.ready) == 1
    rig.loop.step()
    assert rig.executor.sizes == [3]
    rig.executor.finish()
    assert rig.observer.batches[0].cut == "no company"


def test_a_lone_client_in_a_loop_never_waits(rig):
    peer = Peer()
    for _ in range(3):
        rig.send("a", peer)
        rig.loop.settle()
        assert rig.executor.running == 1
        rig.executor.finish()
        rig.answered(peer)
        rig.loop.advance(0.0001)
    assert [batch.cut for batch in rig.observer.batches] == ["no company"] * 3


def test_clients_in_a_loop_are_awaited_and_form_one_batch(rig):
    peers = [Peer() for _ in range(3)]
    for peer in peers:
        rig.send("a", peer)
    rig.loop.settle()
    rig.executor.finish()
    rig.answered(*peers)
    for peer in peers[:2]:
        rig.send("b", peer)
        rig.loop.settle()
    assert rig.executor.sizes == [3]
    rig.send("b", peers[2])
    rig.loop.settle()
    assert rig.executor.sizes == [3, 3]


def test_nobody_waits_longer_than_the_bound_for_a_client_that_does_not_come_back(rig):
    gone, here = Peer(), Peer()
    for peer in (gone, here):
        rig.send("a", peer)
    rig.loop.settle()
    rig.executor.finish()
    rig.answered(gone, here)
    rig.loop.advance(0.002)
    rig.send("b", here)
    rig.loop.settle()
    rig.loop.advance(0.002)
    assert rig.executor.sizes == [2]
    rig.loop.advance(0.002)  # 5 ms after the answer nobody is expected any more
    assert rig.executor.sizes == [2, 1]
    rig.executor.finish()
    assert rig.observer.batches[-1].cut == "no company"


def test_the_oldest_item_is_cut_when_the_window_ends_though_a_body_is_still_arriving(rig):
    rig.begins(Peer())
    rig.send("a")
    rig.loop.settle()
    rig.loop.advance(WINDOW - 0.001)
    rig.begins(Peer())
    assert rig.executor.sizes == []
    rig.send("b")
    rig.loop.advance(0.001)
    assert rig.executor.sizes == [2]
    rig.executor.finish()
    assert rig.observer.batches[0].cut == "time"
    assert rig.observer.batches[0].waits == pytest.approx([WINDOW, 0.001])


def test_an_unfinished_body_is_waited_for_once_and_costs_a_client_in_a_loop_no_more(rig):
    """One connection that sends a head and part of a body, then nothing; and new ones of its kind, one per window."""
    peer, waited = Peer(), 0
    rig.begins(Peer())
    for _ in range(100):
        rig.send("a", peer)
        rig.loop.settle()
        before = rig.loop.now
        while not rig.executor.running:
            rig.loop.advance(0.001)
        waited += rig.loop.now - before
        rig.executor.finish()
        rig.answered(peer)
        rig.loop.advance(0.0001)
        rig.begins(Peer())
    assert waited <= 2 * WINDOW * 1e9


def test_a_window_below_the_timers_grain_is_waited_for_once(loop):
    rig = Rig(loop, window=0.0003)
    rig.begins(Peer())
    rig.send("a")
    loop.settle()
    assert rig.executor.sizes == [] and loop.timers == 1
    loop.advance(0.001)
    assert rig.executor.sizes == [1]


def test_a_client_that_leaves_is_not_waited_for(rig):
    gone, here = Peer(), Peer()
    for peer in (gone, here):
        rig.send("a", peer)
    rig.loop.settle()
    rig.executor.finish()
    rig.answered(gone, here)
    rig.send("b", here)
    rig.loop.settle()
    assert rig.executor.sizes == [2]
    rig.batcher.company.leaves(gone)
    rig.batcher.wake()
    rig.loop.settle()
    assert rig.executor.sizes == [2, 1]


def test_a_connection_with_another_request_open_is_no_company(rig):
    pipelining = Peer()
    first = rig.send("a", pipelining)
    rig.loop.settle()
    rig.send("b", pipelining)
    rig.executor.finish()
    assert first.answers
    rig.answered(pipelining)
    rig.loop.settle()
    assert rig.executor.sizes == [1, 1]


def test_a_window_of_zero_never_waits(loop):
    rig = Rig(loop, window=0)
    peer = Peer()
    rig.batcher.company.arrives(peer)
    rig.answered(peer)
    rig.begins(Peer())
    rig.send("a")
    loop.settle()
    assert rig.executor.sizes == [1]
    assert loop.timers == 0
    assert peer.expected_since == 0
    rig.executor.finish()
    assert rig.observer.batches[0].cut == "no company"


def test_a_full_batch_is_cut_at_once_whoever_may_come(rig):
    rig.begins(Peer())
    rig.send("abcdef")
    rig.loop.settle()
    assert rig.executor.sizes == [4]
    rig.executor.finish()
    assert rig.observer.batches[0].cut == "full"


def test_a_busy_executor_lets_the_next_batch_grow(rig):
    rig.send("a")
    rig.loop.settle()
    for item in "bcd":
        rig.send(item)
        rig.loop.settle()
    assert rig.executor.sizes == [1]
    rig.executor.finish()
    assert rig.executor.sizes == [1], "the next cut lets reads and writes come between"
    rig.loop.settle()
    assert rig.executor.sizes == [1, 3]


def test_behind_a_running_batch_a_thread_gets_full_ones_only_and_one_at_a_time(loop):
    rig = Rig(loop, size=2, depth=2)
    rig.send("a")
    loop.settle()
    rig.send("b")
    loop.settle()
    assert rig.executor.sizes == [1]
    for item in "cde":
        rig.send(item)
        loop.settle()
    assert rig.executor.sizes == [1, 2]
    rig.executor.finish()
    loop.settle()
    assert rig.executor.sizes == [1, 2, 2]


def test_a_request_larger_than_a_batch_spans_batches_and_is_answered_once_in_order(rig):
    ticket = rig.send("abcdefghij")
    rig.loop.settle()
    for _ in range(3):
        assert not ticket.answers
        rig.executor.finish()
        rig.loop.settle()
    assert rig.executor.sizes == [4, 4, 2]
    assert ticket.answers == [([("row of", item) for item in "abcdefghij"], None)]


def test_an_item_error_names_the_index_within_the_request_and_drops_the_rest(rig):
    ticket = rig.send("abcdefghij")
    rig.loop.settle()
    rig.executor.finish()
    rig.loop.settle()
    rig.executor.finish(lambda items: ItemError("no good", 1))
    rig.loop.settle()
    ((rows, error),) = ticket.answers
    assert rows == [] and error.index == 5
    assert rig.executor.sizes == [4, 4], "what is left of a refused request costs no inference"
    assert rig.batcher.waiting == 0


def test_a_batch_that_breaks_off_fails_its_requests_and_the_next_one_runs(rig):
    one, two = rig.send("a"), rig.send("b")
    rig.loop.settle()
    later = rig.send("c")
    rig.executor.fail(MemoryError())
    rig.loop.settle()
    rig.executor.finish()
    assert "MemoryError" in str(one.answers[0][1]) and "MemoryError" in str(two.answers[0][1])
    assert later.answers == [([("row of", "c")], None)]


def test_a_cancelled_request_costs_no_inference_before_the_cut(rig):
    kept, left = rig.send("ab"), rig.send("cd")
    rig.batcher.cancel(left, "the client left")
    rig.loop.settle()
    assert rig.executor.sizes == [2]
    rig.executor.finish()
    assert kept.answers and not left.answers
    assert rig.observer.drops == [("the client left", 2)]


def hold(rig, seconds=0.5):
    """A batch that holds the loop for so long."""
    rig.send("x")
    rig.loop.settle()
    rig.loop.now += int(seconds * 1e9)
    rig.executor.finish()


def test_those_who_left_while_a_batch_held_the_loop_are_noticed_before_the_next_cut(rig):
    """Their requests are read in one turn of the loop, the ends of their connections in the next, or some later."""
    hold(rig)
    assert rig.batcher.is_busy and rig.batcher.is_settling
    left = [rig.send(item) for item in "ab"]
    rig.loop.step()
    rig.loop.step()
    assert rig.executor.sizes == [1]
    for ticket in left:
        rig.batcher.cancel(ticket, "the client left")
    rig.send("c")
    rig.loop.settle()
    assert rig.executor.works[1:] == [[["c"]]]
    assert not rig.batcher.is_settling


def test_those_who_come_one_in_each_turn_of_the_loop_do_not_run_one_by_one(rig):
    hold(rig)
    before = rig.send("a")
    for item in "bcdefgh":
        rig.loop.step()
        rig.batcher.cancel(before, "the client left")
        before = rig.send(item)
    rig.loop.settle()
    assert rig.executor.works[1:] == [[["h"]]]


def test_the_loop_does_not_settle_for_longer_than_a_tenth_of_what_it_was_held(rig):
    hold(rig)
    turns = 0
    while rig.executor.running == 0:
        rig.send("a") if turns < 3 or turns % 3 == 0 else None
        rig.loop.step()
        rig.loop.now += 4_000_000
        turns += 1
    assert 12 <= turns <= 14


@pytest.mark.parametrize(("held", "most"), [(0.004, 0.002), (0.06, 0.01), (0.5, 0.05)])
def test_settling_takes_ten_milliseconds_or_half_of_a_short_batch_and_a_tenth_of_a_long_one(rig, held, most):
    hold(rig, held)
    begun, before = rig.loop.now, rig.send("a")
    while rig.executor.running == 0:
        rig.batcher.cancel(before, "the client left")
        before = rig.send("a")
        rig.loop.step()
        rig.loop.now += 100_000
    assert abs((rig.loop.now - begun) / 1e9 - most) <= 0.0002


def test_a_short_batch_is_followed_by_the_next_cut_at_once(rig):
    hold(rig, 0.0019)
    rig.send("a")
    assert not rig.batcher.is_busy
    rig.loop.step()
    assert rig.executor.running == 1 and rig.batcher.is_busy


def test_an_idle_service_after_a_long_batch_is_idle(rig):
    hold(rig)
    rig.loop.advance(1)
    assert not rig.batcher.is_busy
    rig.send("a")
    rig.loop.step()
    assert rig.executor.running == 1


def test_a_full_queue_has_no_room_for_anybody_until_it_is_not_full(loop):
    rig = Rig(loop, queue=4, start=False)
    rig.send("abc")
    rig.send("defgh")
    with pytest.raises(RequestError, match=r"no room for 2 items: 8 of 4 wait \(max_queue_size\)") as later:
        rig.send("xy")
    assert later.value.status == 503
    assert (b"retry-after", b"1") in later.value.headers
    rig.start()
    loop.settle()
    with pytest.raises(RequestError, match=r"no room for 1 items: 4 of 4 wait"):
        rig.send("x")
    rig.executor.finish()
    loop.settle()
    rig.send("i")
    rig.executor.finish()
    loop.settle()
    assert rig.executor.sizes == [4, 4, 1]


def test_a_message_of_more_items_than_the_queue_holds_does_not_starve_under_a_steady_stream_of_small_ones(rig):
    """It comes again and again, as often as they do, and finds room as soon as they."""
    small = large = 0
    for turn in range(200):
        for items in ("a", "b" * 40, "a") if turn % 2 else ("a", "a", "b" * 40):
            try:
                rig.send(items)
            except RequestError:
                continue
            if len(items) == 1:
                small += 1
            else:
                large += 1
        rig.loop.settle()
        while rig.batcher.waiting >= 16 and rig.executor.running:
            rig.executor.finish()
            rig.loop.settle()
    assert large >= 40 and small >= 40


def serve(rig, items, seconds):
    """A batch, or several, of so many seconds each."""
    ticket = rig.send(items)
    rig.loop.settle()
    while rig.executor.running:
        rig.loop.now += round(seconds * 1e9)
        rig.executor.finish()
        rig.loop.settle()
    return ticket


def test_the_wait_is_that_of_what_runs_and_of_the_batches_that_wait(rig):
    assert rig.batcher.wait(1, rig.loop.now) == 0
    for _ in range(30):
        serve(rig, "abcd", 2)
    assert rig.batcher.wait(4, rig.loop.now) == 0, "an idle service takes whatever comes"
    rig.send("abcd")
    rig.loop.settle()
    assert rig.batcher.wait(4, rig.loop.now) == pytest.approx(4e9, rel=0.1)
    rig.loop.now += 1_500_000_000
    assert rig.batcher.wait(4, rig.loop.now) == pytest.approx(2.5e9, rel=0.1)
    rig.send("abcdabcd")
    assert rig.batcher.wait(4, rig.loop.now) == pytest.approx(6.5e9, rel=0.1)
    rig.loop.now += 60_000_000_000
    assert rig.batcher.wait(4, rig.loop.now) == pytest.approx(6e9, rel=0.1), "what is overdue takes no longer"


def test_behind_a_running_batch_one_that_the_thread_has_counts_in_full(loop):
    rig = Rig(loop, depth=2)
    for _ in range(30):
        serve(rig, "abcd", 2)
    rig.send("abcdabcd")
    loop.settle()
    assert rig.executor.running == 2
    loop.now += 500_000_000
    assert rig.batcher.wait(4, loop.now) == pytest.approx(5.5e9, rel=0.1)


def test_who_finds_no_room_is_told_to_come_again_when_there_is_some_as_far_as_batches_tell(loop):
    rig = Rig(loop, queue=6)
    for _ in range(30):
        serve(rig, "abcd", 2)
    rig.send("abcd")
    loop.settle()
    rig.send("abcdabcdabcd")

    def told():
        with pytest.raises(RequestError) as full:
            rig.send("a")
        return full.value.headers

    loop.now += 1_800_000_000
    assert told() == ((b"retry-after", b"5"),), "0.2 s of the one that runs, and 7 of those 12 go with two more of 2 s"
    for _ in range(3):
        loop.now += 10**12
        rig.executor.finish()
        loop.settle()
    rig.send("abcdefgh" * 4)
    assert told() == ((b"retry-after", b"60"),), "at most"


def test_a_batch_that_failed_tells_nothing_of_the_pace(rig):
    for _ in range(5):
        serve(rig, "abcd", 2)
    before = rig.batcher.pace.batch(4)
    for _ in range(5):
        rig.send("abcd")
        rig.loop.settle()
        rig.executor.fail(RuntimeError("at once"))
    rig.loop.settle()
    assert rig.batcher.pace.batch(4) == before


def test_what_keeps_the_loop_from_cutting_a_full_batch_counts_to_its_time(rig):
    """Answers that are written and requests that are read between two batches; but not that nobody asked."""
    for _ in range(40):
        rig.send("abcdabcd")
        rig.loop.settle()
        rig.loop.now += 1_000_000_000
        rig.executor.finish()
        rig.loop.now += 1_000_000_000
        rig.loop.settle()
        rig.loop.now += 1_000_000_000
        rig.executor.finish()
        rig.loop.now += 60_000_000_000
    assert rig.batcher.pace.batch(4) == pytest.approx(1.5e9, rel=0.1)


def test_nothing_is_cut_before_there_is_an_executor(loop):
    rig = Rig(loop, start=False)
    ticket = rig.send("a")
    loop.settle()
    rig.start()
    loop.settle()
    rig.executor.finish()
    assert ticket.answers


def test_whose_time_passed_while_their_batch_ran_expire_before_it_is_answered(rig):
    late = rig.send("a")
    rig.loop.settle()
    seen = []
    rig.batcher.due, rig.batcher.expire = rig.loop.now, lambda now: seen.extend(rig.batcher.unanswered())
    rig.executor.finish()
    assert seen == [late] and len(late.answers) == 1
    assert list(rig.batcher.unanswered()) == []


def test_draining_waits_for_nobody(rig):
    rig.begins(Peer())
    rig.send("a")
    rig.loop.settle()
    assert rig.executor.sizes == []
    rig.batcher.drain()
    rig.loop.settle()
    rig.executor.finish()
    assert rig.observer.batches[0].cut == "drain"


def test_a_report_has_the_seconds_of_its_own_batch(loop):
    class Slow(Echo):
        def run_inference(self, model_input):
            loop.now += 2_000_000
            return model_input

    rig = Rig(loop, start=False)
    rig.batcher.run_with(InlineExecutor(), Steps(Slow(), loop.clock))
    for _ in range(2):
        rig.send("a")
        loop.settle()
    assert [batch.seconds["run_inference"] for batch in rig.observer.batches] == [0.002, 0.002]


def test_idle_means_nothing_scheduled(rig):
    peers = [Peer() for _ in range(50)]
    for peer in peers:
        rig.send("a", peer)
        rig.loop.settle()
        while rig.executor.running:
            rig.executor.finish()
            rig.loop.settle()
        rig.answered(peer)
    rig.loop.advance(1)
    assert rig.loop.ready == [] and rig.loop.timers == 0


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request is answered once, with its own rows, in time."""

    tickets = Bundle("tickets")
    peers = Bundle("peers")

    def __init__(self):
        super().__init__()
        self.rig = Rig(FakeLoop(), size=4, queue=12, depth=2)
        self.names = iter(range(10**9))
        self.sent = []
        self.cancelled = set()

    @rule(target=peers)
    def connect(self):
        return Peer()

    @rule(target=tickets, count=st.integers(1, 12) | st.integers(1, 50), peer=st.none() | peers)
    def send(self, count, peer):
        items = [next(self.names) for _ in range(count)]
        try:
            ticket = self.rig.send(items, peer)
        except RequestError as error:
            assert error.status == 503 and self.rig.batcher.waiting >= 12
            self.rig.answered(peer)
            return None
        ticket.names, ticket.peer = items, peer
        self.sent.append(ticket)
        return ticket

    @rule(ticket=consumes(tickets))
    def leave(self, ticket):
        if ticket is not None and not ticket.resolved:
            ticket.resolved = True
            self.rig.batcher.cancel(ticket, "left")
            self.cancelled.add(ticket)

    @rule(peer=consumes(peers))
    def disconnect(self, peer):
        self.rig.batcher.company.leaves(peer)
        self.rig.batcher.wake()

    @rule()
    def finish(self):
        if self.rig.executor.running:
            self.rig.executor.finish()
            self._answer()

    @rule()
    def refuse(self):
        if self.rig.executor.running:
            self.rig.executor.finish(lambda items: ItemError("refused", 0))
            self._answer()

    @rule()
    def break_off(self):
        if self.rig.executor.running:
            self.rig.executor.fail(RuntimeError("broke"))
            self._answer()

    @rule()
    def step(self):
        self.rig.loop.step()

    @rule(ms=st.integers(0, 12))
    def pass_time(self, ms):
        self.rig.loop.settle()
        self.rig.loop.advance(ms / 1000)

    @rule()
    def drain(self):
        self.rig.batcher.drain()

    def _answer(self):
        for ticket in self.sent:
            if ticket.resolved and ticket.peer is not None:
                self.rig.answered(ticket.peer)
                ticket.peer = None

    @invariant()
    def each_request_is_answered_once_with_its_own_rows(self):
        for ticket in self.sent:
            assert len(ticket.answers) <= 1
            for rows, error in ticket.answers:
                assert error is not None or rows == [("row of", name) for name in ticket.names]
            assert not (ticket.answers and ticket in self.cancelled)

    @invariant()
    def batches_keep_to_their_maximum_and_the_order_of_arrival(self):
        assert all(size <= 4 for size in self.rig.executor.sizes)
        taken = [item for work in self.rig.executor.works for items in work for item in items]
        assert taken == sorted(taken)

    @invariant()
    def nobody_waits_past_the_bound_while_the_executor_is_free(self):
        batcher, loop = self.rig.batcher, self.rig.loop
        if batcher.waiting and not self.rig.executor.running and not loop.ready:
            assert loop.now - next(batcher.unanswered()).born <= WINDOW * 1e9 + 1e6
            assert loop.timers

    def teardown(self):
        while self.rig.loop.ready or self.rig.executor.running or self.rig.batcher.waiting:
            self.rig.loop.settle()
            self.finish()
            self.rig.loop.advance(0.01)
        for ticket in self.sent:
            assert len(ticket.answers) == (ticket not in self.cancelled)
        self.each_request_is_answered_once_with_its_own_rows()
        self.rig.loop.advance(1)
        assert not self.rig.loop.ready and not self.rig.loop.timers


TestLife = Life.TestCase


TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_request_that_can_not_take_its_rows_costs_the_rest_of_the_batch_nothing(rig):
    class Picky(Recorder):
        def fill(self, rows):
            raise ValueError("secret")

    picky = Picky("ab")
    rig.batcher.admit(picky, rig.loop.now)
    other = rig.send("c")
    rig.loop.settle()
    rig.executor.finish()
    ((rows, error),) = picky.answers
    assert rows == [] and isinstance(error, HandlerError) and "secret" not in str(error)
    assert other.answers == [([("row of", "c")], None)]
    assert rig.batcher.now == 0 and not rig.observer.batches[0].ok
