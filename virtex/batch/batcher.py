"""When a batch is cut, who runs it, who gets which row.

Rules: by a clock it decides when a batch is cut, and nothing else. The loop's thread alone admits, cancels and cuts.
Nothing polls: a cut is considered when a request is admitted, when company leaves, when a batch comes back, and at one
timer's end.

A batch is cut when the executor is free and
    it is full;
    or nobody is expected who could join it (company.py);
    or its oldest item has waited max_time_on_queue;
    or the service drains.
While the executor is busy the ring goes on filling, so the next batch is as large as it can be; only a full one is
handed to a thread early, one deep, so that the thread need not wait for the loop between two batches.

After a batch that may have held the loop for long, what came meanwhile is read before the next cut: the requests, and
the ends of the connections whose clients have left.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import HandlerError, Headers, ItemError, RequestError, moved
from ..logs import Bursts, Tracebacks
from ..metrics._metrics import Cells, Clock
from ..observer import BatchReport, Observer
from .company import Company
from .executors import Executor
from .isolate import failure_of
from .pace import Pace
from .ring import Batch, Ring, Ticket
from .steps import Laps, Steps

NEVER = 1 << 62  # ns: a time that does not come
GRAIN = 1_000_000  # ns: uvloop's timers count milliseconds
LONG = 2_000_000  # ns that a batch took, from which on the loop settles before the next cut: it takes 10 us or so
SETTLING = 10  # the part of those ns that settling may take at most: a tenth,
SETTLES = 10_000_000  # or so many ns where that is more, of which half a batch is the most
MOST_RETRY = 60  # seconds that a client is asked to wait at most: what comes then nobody can tell
QUIET_TURNS = 4  # of the loop without a new request, until it has settled: an ASGI server takes some to say who left


def retry_in(ns: float) -> Headers:
    """When to come again, in whole seconds from 1 to 60 (RFC 9110 section 10.2.3)."""
    return ((b"retry-after", b"%d" % min(max(math.ceil(ns / 1e9), 1), MOST_RETRY)),)


class Batcher:
    """The ring of waiting requests, and the rule by which batches are cut from it.

    max_time_on_queue: seconds. Until run_with() nothing is cut and requests wait. loop: whose call_soon and call_later
    are used. clock: nanoseconds. cells: where it counts; None: nowhere. RequestError from admit(): 503 with Retry-After
    while the queue is full, whatever comes; one that is not takes any request, as ring.py says.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        max_batch_size: int,
        max_time_on_queue: float,
        max_queue_size: int,
        clock: Callable[[], int] = time.perf_counter_ns,
        observer: Observer | None = None,
        cells: Cells | None = None,
    ) -> None:
        self._loop = loop
        self._clock = Clock(clock)
        self._observer = observer
        self._cells = cells or Cells()
        self.tracebacks = Tracebacks(clock)
        self.bursts = Bursts(loop.call_later)
        self.max_batch_size = max_batch_size
        self._window = round(max_time_on_queue * 1e9)
        self.ring = Ring(max_queue_size)
        self.company = Company(self._window)
        self._executor: Executor | None = None
        self._steps: Steps
        self._asks = False  # whether the handler is told who asked
        self._running: list[Batch] = []
        self._call_soon = loop.call_soon
        self._cut_soon = self._cut  # bound once, not once per batch
        self._take_back = self._done
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._settles_until = 0  # 0: nothing has to settle
        self._newest: Ticket | None = None  # in the ring, at the last look while settling
        self._quiet = 0  # turns of the loop since that one came
        self._back_at = 0  # when the latest batch came back
        self.pace = Pace(max_batch_size)
        self.due = NEVER  # from then on, expire() has something to do: the first deadline, in ns
        self.expire: Callable[[int], None]  # answers the requests whose time is over at that time, who ever knows
        self.on_long: Callable[[], None] | None = None  # a batch of LONG or more is answered, and the loop settles
        self.per_item = 0  # ns that each item of the latest batch took
        self.now = 0  # the time at which the batch came back that is being answered; 0 between batches
        self.judge: Callable[[Batch, int], None] | None = None  # gets each batch, and how many of its spans got rows

    def run_with(self, executor: Executor, steps: Steps, ring: Ring | None = None) -> None:
        """Start cutting. steps: what a batch goes through. ring: replaces the present, empty one."""
        self.ring = ring or self.ring
        self._executor = executor
        self._steps = steps
        self._asks = steps.asks
        self.wake()

    @property
    def waiting(self) -> int:
        """Items in the ring."""
        return self.ring.size

    @property
    def running_since(self) -> int:
        """When the oldest batch that has not come back was cut, in ns; 0 when none is out."""
        return self._running[0].cut_at if self._running else 0

    @property
    def is_busy(self) -> bool:
        """Whether what waits does so behind a batch: one is out, or what came while one ran is still being read."""
        return bool(self._running) or self.is_settling

    def is_behind(self, ticket: Ticket) -> bool:
        """Whether items of a request wait behind a batch: in the ring, or in one that waits for the executor."""
        if ticket.taken < ticket.count:
            return self.is_busy
        running = self._running
        return len(running) > 1 and ticket.cut_at == running[-1].cut_at

    @property
    def is_settling(self) -> bool:
        """Whether what came while a long batch ran is still being read."""
        return self._settles_until > 0 and self._clock.now() < self._settles_until

    def room_for(self, count: int) -> None:
        """Raise RequestError as admit() would, without admitting anything."""
        ring = self.ring
        if ring.size >= ring.capacity:
            waiting = f"{ring.size} of {ring.capacity} wait (max_queue_size)"
            retry = retry_in(self._until(ring.size - ring.capacity + 1, self._clock.now()))
            raise RequestError(503, f"no room for {count} items: {waiting}", retry, "full")

    def wait(self, count: int, now: int) -> float:
        """Nanoseconds until so many more items would be answered, as served batches tell; 0 with nothing ahead of them.

        So an idle service takes whatever comes, and learns its pace anew.
        """
        ring = self.ring
        if not ring.size and not self._running:
            return 0.0
        return self._until(ring.size + count, now)

    def _until(self, items: int, now: int) -> float:
        pace, running = self.pace, self._running
        ahead = 0.0
        for i, batch in enumerate(running):
            took = pace.batch(batch.size)
            ahead += took if i else max(took - (now - max(batch.cut_at, self._back_at)), 0.0)
        return pace.wait(items, ahead, len(running))

    def admit(self, ticket: Ticket, now: int) -> None:
        """Put a request of one item or more in the ring. Never runs the model: a cut is call_soon'd."""
        ticket.count = len(ticket.items)
        ticket.born = now
        if self.ring.pending:
            self._refill()  # those who left may have left rows
        if not self.ring.put(ticket):
            self.room_for(ticket.count)
        self._count_queue()
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._cut_soon)

    def cancel(self, ticket: Ticket, reason: str) -> None:
        """Take a request out that nobody wants answered any more; what no batch has taken yet costs no inference."""
        self.ring.cancel(ticket)
        self._count_queue()
        if self._observer is not None:
            self.tell(self._observer.dropped, reason, ticket.count - ticket.returned)
        self.wake()

    def unanswered(self) -> Iterator[Ticket]:
        """The requests in batches that run, then those that wait; a request that spans both comes twice."""
        for batch in self._running:
            for ticket, _, _ in batch.spans:
                yield ticket
        yield from self.ring

    def drain(self) -> None:
        """From now on wait for nobody."""
        self._draining = True
        self.wake()

    def wake(self) -> None:
        """Consider a cut soon: something changed that may have been waited for."""
        if self.ring.size and not self._scheduled:
            self._scheduled = True
            self._call_soon(self._cut_soon)

    def tell(self, f: Callable[..., None], *args: Any) -> None:
        """Tell the observer; what it raises must not reach the requests."""
        try:
            f(*args)
        except (Exception, SystemExit) as error:
            self.tracebacks.log(error, "the observer raised")

    def _cut(self, due: bool = False) -> None:
        self._scheduled = False
        executor = self._executor
        if executor is None or not self.ring.size:
            return
        now = self._clock.now()
        if now >= self.due:
            self.expire(now)
        if self.ring.pending:
            self._refill()
        if not self.ring.size:
            return
        if not self._running:
            if self._settles_until and not self._has_settled(now):
                self._scheduled = True
                self._call_soon(self._cut_soon)
                return
            why = self._why(now, due)
            if why is None:
                return
        elif len(self._running) < executor.depth and self._is_full():
            why = "full"
        else:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self.ring.take(self.max_batch_size)
        batch.why = why
        batch.cut_at = now
        if self._asks:
            batch.askers = [ticket.asker() for ticket, _, _ in batch.spans]
        self._count(batch)
        self._running.append(batch)
        executor.start(batch, self._steps, self._take_back)
        self.wake()

    def _refill(self) -> None:
        """Let more of a request be decoded for which there were no rows; what is wrong with it is its answer."""
        ticket = self.ring.newest
        try:
            self.ring.refill()
        except Exception as error:
            ticket.resolve([], error)
        self._count_queue()

    def _count(self, batch: Batch) -> None:
        """A batch is cut."""
        cells = self._cells
        cut_at = batch.cut_at
        for ticket, start, stop in batch.spans:
            ticket.cut_at = cut_at
            cells.waited(cut_at - ticket.born, stop - start)
        cells.cut(batch.why, batch.size)
        self._count_queue()

    def _count_queue(self) -> None:
        """What waits has changed."""
        ring = self.ring
        self._cells.queue(ring.size, ring.held + (ring.size - ring.pending) * ring.slot_bytes)

    def _count_back(self, batch: Batch) -> int:
        """It came back now; while another one ran it was with the executor, but only waited there.

        Returns how long it took, in ns: where it was full when the last one came back, with the answers of that one and
        what else kept the loop from cutting it.
        """
        laps: Laps = batch.laps or Laps()
        busy = self.now - max(batch.cut_at, self._back_at)
        took = busy
        if batch.why == "full" and batch.spans:
            newest: Ticket = batch.spans[len(batch.spans) - 1][0]
            took = self.now - max(newest.born, self._back_at)
        self._back_at = self.now
        self._cells.done(busy, laps.process_request, laps.run_inference, laps.process_response, laps.retries)
        if laps.retries:
            self._tell_retries(batch, laps.retries)
        return took

    def _tell_retries(self, batch: Batch, calls: int) -> None:
        text = f"a batch of {batch.size} items took {calls} repeated calls of the handler, to find whose item failed"
        fields = {"event": "batch_retried", "items": batch.size, "requests": len(batch.spans), "retries": calls}
        self.bursts.tell(logging.INFO, "retried", text, fields)

    def _has_settled(self, now: int) -> bool:
        newest = self.ring.newest
        self._quiet = self._quiet + 1 if newest is self._newest else 0
        self._newest = newest
        if self._quiet < QUIET_TURNS and now < self._settles_until:
            return False
        self._settles_until = 0
        self._newest = None
        return True

    def _is_full(self) -> bool:
        ring = self.ring
        return (ring.size >= self.max_batch_size or ring.has_costs) and ring.is_ready(self.max_batch_size)

    def _why(self, now: int, due: bool) -> str | None:
        """Why a batch is to be cut now; None: it is not, and the timer runs."""
        if self._is_full():
            return "full"
        if self._draining:
            return "drain"
        expected = self.company.until(now)
        if not expected:
            return "no company"
        at = min(self.ring.oldest.born + self._window, expected)
        # A timer may come up to one grain early: what is due within it is due, or it would spin on the remainder.
        if at - now <= (GRAIN if due else 0):
            return "time"
        if self._timer is None:
            self._timer = self._loop.call_later(math.ceil((at - now) / GRAIN) / 1000, self._on_timer)
        return None

    def _on_timer(self) -> None:
        self._timer = None
        self._cut(due=True)

    def _done(self, batch: Batch) -> None:
        """Give each request its rows, exactly once; the next cut comes after the replies and whatever else is due."""
        self.now = self._clock.now()
        held = self.now - batch.cut_at
        self.per_item = held // max(batch.size, 1)
        self._settles_until = self.now + max(held // SETTLING, min(held // 2, SETTLES)) if held >= LONG else 0
        took = self._count_back(batch)
        try:
            if self.now >= self.due:
                self.expire(self.now)  # those in this batch, too: it still runs, as far as unanswered() tells
            self._running.remove(batch)
            answered = self._answer(batch)
        finally:
            self.now = 0
        if answered:
            self.pace.served(batch.size, took, batch.why == "full")
        if self.judge is not None:
            self.judge(batch, answered)
        if self._settles_until and self.on_long is not None:
            self.on_long()
        if self._observer is not None and batch.size:
            self.tell(self._observer.batch_done, self._report(batch, answered == len(batch.spans)))
        self.ring.release(batch)
        self.wake()

    def _answer(self, batch: Batch) -> int:
        """Returns how many of its spans got rows."""
        if batch.is_shuffled:
            batch.sort()
        answered = len(batch.spans)
        outcomes, batch.outcomes = batch.outcomes, []  # or rows of a batch that was answered would still be held
        for i, (ticket, start, _) in enumerate(batch.spans):
            ticket.cut_at = batch.cut_at
            ticket.batch_size = batch.size
            outcome = outcomes[i]
            if type(outcome) is list or not isinstance(outcome, (HandlerError, ItemError)):
                try:
                    ticket.fill(outcome)
                    continue
                except Exception as error:  # its rows of several batches do not go together, or find no room
                    outcome = error if isinstance(error, (HandlerError, RequestError)) else failure_of(error)
            answered -= 1
            if not ticket.resolved:
                self.ring.cancel(ticket)
                self._count_queue()
                ticket.resolve([], moved(outcome, start))  # from within the span to within the request
        return answered

    def _report(self, batch: Batch, ok: bool) -> BatchReport:
        waits = [(batch.cut_at - ticket.born) / 1e9 for ticket, start, stop in batch.spans for _ in range(start, stop)]
        laps: Laps = batch.laps or Laps()
        return BatchReport(batch.size, batch.why, waits, laps.seconds, ok, batch.cost, laps.retries)
