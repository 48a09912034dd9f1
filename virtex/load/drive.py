"""One process of a load test: sends what is due, takes what comes, and counts.

    schedule -> due -> a free lane, or a new one, or the line -> lane -> answer -> tally

Rules: one thread and no event loop, so that it runs anywhere: within a coroutine, a thread, a notebook. It reads the
clock; what the times mean, record.py knows. Never waits but in _wait(), and there for as long as nothing is due.

A request that finds no lane free is counted from when it was to be sent, whoever is at fault: nothing is omitted.
"""

from __future__ import annotations

import gc
import logging
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter_ns as clock

import orjson

from .lane import Address, Lane, requests_of
from .plan import Plan
from .readiness import READ, WRITE, Readiness, fine_timers
from .record import Slice, Tally
from .schedule import arrivals

log = logging.getLogger("virtex")

SECOND = 1_000_000_000
HOUSEKEEPING = SECOND // 50  # between two looks at what took too long
RECEIVED = 256 << 10  # bytes that are read at once
AT_FIRST = 32  # connections of an open loop that are made before it starts, by all processes together
MOST_SAID = 64 << 10  # bytes of an error that are kept for its words
IN_A_ROW = 32  # requests that are sent before what came is looked at

OnSlice = Callable[[Slice], object]


class Drive:
    """The share of one process in a plan.

    address: where to connect. index: which process it is. watch: a descriptor that ends the process's work when it can
    be read: its parent is gone.
    """

    def __init__(self, plan: Plan, address: Address, index: int = 0, watch: int | None = None) -> None:
        self.plan = plan
        self.address = address
        self.index = index
        self.watch = watch
        self.closed_loop = plan.rate is None
        self.most = len(range(index, plan.most_connections, plan.processes))
        self.timeout = int(plan.timeout * 1e9)
        self.requests = requests_of(plan)
        self.items = [payload.items for payload in plan.payloads]
        self.context = ssl.create_default_context() if address.tls_name is not None else None
        self.view = memoryview(bytearray(RECEIVED))
        self.readiness = Readiness()
        if watch is not None:
            self.readiness.register(watch, READ)
        self.lanes: dict[int, Lane] = {}
        self.idle: deque[Lane] = deque()  # the one that was idle longest sends next, so that all are used
        self.dropped: list[Lane] = []  # closed after all events of one look: their descriptors would be used again
        self.line: deque[tuple[int, int]] = deque()  # number and time of the requests that found no lane
        self.on_slice: OnSlice | None = None

    def __enter__(self) -> Drive:
        return self

    def __exit__(self, *_: object) -> None:
        for lane in [*self.lanes.values(), *self.dropped]:
            lane.close()
        self.readiness.close()

    # A run

    def warm_up(self) -> None:
        """Make connections, and send for a while what is not counted."""
        plan = self.plan
        if not self.closed_loop:
            for _ in range(min(self.most, -(-AT_FIRST // plan.processes), plan.count or AT_FIRST)):
                lane = self._open()
                if isinstance(lane, str):
                    break
                self.idle.append(lane)
        if plan.warmup:
            self._run(clock(), plan.count, plan.warmup, keep=False)

    def run(self, start: int, on_slice: OnSlice) -> Tally:
        """The run itself, from a given time on. on_slice: called when a second is over."""
        self.on_slice = on_slice
        return self._run(start, self.plan.count, self.plan.seconds, self.plan.keep)

    def _run(self, start: int, count: int | None, seconds: float | None, keep: bool) -> Tally:
        self.tally = Tally()
        self.start, self.keep = start, keep
        self.next_slice = start + SECOND
        self.taken = 0
        self.due: list[int] = []
        self.schedule: Iterator[list[int]] = iter(())
        if self.closed_loop:
            self.left = None if count is None else len(range(self.index, count, self.plan.processes))
            self.end = None if seconds is None else start + int(seconds * SECOND)
            self.resting = self.most
        else:
            self.schedule = arrivals(self.plan, self.index, count, seconds)
            self._make_due()
        gc.freeze()  # a look at all that the program holds would stop the clock for as long
        try:
            with fine_timers():
                self._loop()
        finally:
            gc.unfreeze()
        self._cut(clock())
        return self.tally

    def _loop(self) -> None:
        """Until everything is sent and answered, or given up."""
        next_look = 0
        while True:
            now = clock()
            if self.due and self.start + self.due[-1] <= now:
                self._send_due(now)
            if now >= next_look:
                if self._done(now):
                    return
                self._look_around(now)
                next_look = now + HOUSEKEEPING
            events = self.readiness.ready()
            for fd, what in events:
                lane = self.lanes.get(fd)
                if lane is not None:
                    self._advance(lane, what)
                elif fd == self.watch:
                    raise SystemExit("the process that started the load test is gone")
            if self.dropped:
                self._bury()
            if self.line:
                self._serve_line()
            if not events:
                self._wait(next_look)

    def _wait(self, until: int) -> None:
        """Until a lane is ready, or a time has come."""
        if self.due:
            until = min(until, self.start + self.due[-1])
        left = until - clock()
        if left > 0:
            self.readiness.wait(left / 1e9)

    def _done(self, now: int) -> bool:
        if self.due or self.line or (self.closed_loop and self._may_send(now)):
            return False
        return all(lane.number < 0 for lane in self.lanes.values())

    def _look_around(self, now: int) -> None:
        """What is done a few times a second."""
        for lane in list(self.lanes.values()):
            if lane.number >= 0 and lane.deadline < now:
                self._fail(lane, "timeout")
        while self.line and self.line[0][1] + self.timeout < now:
            number, scheduled = self.line.popleft()
            self._count_error("unsent", number, scheduled, 0)
        while now >= self.next_slice:
            self._cut(self.next_slice)
            self.next_slice += SECOND
        if self.closed_loop and now >= self.start:
            resting, self.resting = self.resting, 0
            for _ in range(resting):
                self._send_again()

    def _cut(self, now: int) -> None:
        ended = self.tally.cut((now - self.start) / SECOND)
        if self.on_slice is not None:
            self.on_slice(ended)

    # What is due

    def _make_due(self) -> None:
        """The next times, latest first: the next one is the last."""
        self.due = next(self.schedule, [])[::-1]

    def _send_due(self, now: int) -> None:
        for _ in range(IN_A_ROW):
            scheduled = self.start + self.due.pop()
            self.tally.new_lateness.append(now - scheduled)
            self._take(scheduled)
            if not self.due:
                self._make_due()
            if not self.due or self.start + self.due[-1] > now:
                return

    def _take(self, scheduled: int) -> None:
        """A request: its number is the next of this process."""
        number = self.taken * self.plan.processes + self.index
        self.taken += 1
        tally = self.tally
        tally.first = tally.first or scheduled
        tally.scheduled += 1
        if self.line or not (self.idle or len(self.lanes) < self.most):
            tally.waited += 1
            self.line.append((number, scheduled))
        else:
            self._dispatch(number, scheduled)

    def _serve_line(self) -> None:
        while self.line and (self.idle or len(self.lanes) < self.most):
            self._dispatch(*self.line.popleft())

    def _may_send(self, now: int) -> bool:
        return (self.left is None or self.left > 0) and (self.end is None or now < self.end)

    def _send_again(self) -> None:
        """One of the patient users of a closed loop."""
        now = clock()
        if self._may_send(now):
            if self.left is not None:
                self.left -= 1
            self._take(now)

    # Lanes

    def _open(self) -> Lane | str:
        """A lane that connects; or the kind of error, which is "" where there is no descriptor left for it."""
        try:
            lane = Lane(self.address, self.context, self.view)
        except OSError as error:
            if not self.lanes:
                raise
            self.most = len(self.lanes)
            log.warning("load test: %d connections at most: %s (ulimit -n)", self.most, error)
            return ""
        kind = lane.connect(self.address)
        if kind:
            lane.close()
            return kind
        fd = lane.sock.fileno()
        self.lanes[fd] = lane
        self.readiness.register(fd, READ | WRITE)
        return lane

    def _dispatch(self, number: int, scheduled: int) -> None:
        """Send a request on an idle lane or a new one."""
        lane = self.idle.popleft() if self.idle else self._open()
        if lane == "":
            self.tally.waited += 1
            self.line.appendleft((number, scheduled))
            return
        if isinstance(lane, str):
            self._count_error(lane, number, scheduled, 0)
            return
        lane.number = number
        lane.scheduled = scheduled
        lane.deadline = scheduled + self.timeout
        lane.unsent = self.requests[number % len(self.requests)]
        lane.sent = clock()
        self.tally.sent += 1
        self.tally.last_sent = lane.sent
        if lane.connected:
            kind = lane.go_on()
            if kind:
                self._fail(lane, kind)
            elif kind is None:
                self.readiness.modify(lane.sock.fileno(), READ | WRITE)

    def _advance(self, lane: Lane, what: int) -> None:
        """A lane is ready."""
        kind: str | None = ""
        if lane.unsent or not lane.connected:
            if not lane.connected:
                lane.sent = clock()
            kind = lane.go_on()
            if kind == "":
                self.readiness.modify(lane.sock.fileno(), READ)
        if lane.connected and what != WRITE:
            kind = lane.receive() or kind  # an answer may be there though the rest can't be written
        if lane.complete:
            self._answered(lane)
        elif kind:
            self._fail(lane, kind)

    def _answered(self, lane: Lane) -> None:
        done = clock()
        tally = self.tally
        tally.last = done
        number, status = lane.number, lane.status
        tally.statuses[status] += 1
        body = lane.body if isinstance(lane.body, bytes) else b"".join(lane.body)
        kind = _kind_of_answer(status, body)
        if kind:
            tally.new_errors[kind] += 1
            tally.said.setdefault(kind, body[:MOST_SAID])
        else:
            tally.new_response.append(done - lane.scheduled)
            tally.new_service.append(done - lane.sent)
            tally.items += self.items[number % len(self.items)]
        if self.keep:
            tally.answers.append((number, lane.scheduled, lane.sent, done, status, kind, body))
        lane.number = -1
        if lane.keeps and not lane.unsent:
            lane.reset()
            lane.kept = True
            self.idle.append(lane)
        else:
            self._drop(lane)
        if self.closed_loop:
            self._send_again()

    def _fail(self, lane: Lane, kind: str) -> None:
        self._drop(lane)
        if lane.number >= 0:  # else nobody misses it
            self._count_error(kind, lane.number, lane.scheduled, lane.sent)

    def _count_error(self, kind: str, number: int, scheduled: int, sent: int) -> None:
        self.tally.new_errors[kind] += 1
        if self.keep:
            self.tally.answers.append((number, scheduled, sent, clock(), 0, kind, b""))
        if self.closed_loop:
            self.resting += 1  # not at once: where nobody listens, that would be all that is done

    def _drop(self, lane: Lane) -> None:
        fd = lane.sock.fileno()
        self.readiness.unregister(fd)
        del self.lanes[fd]
        with suppress(ValueError):
            self.idle.remove(lane)
        self.dropped.append(lane)

    def _bury(self) -> None:
        for lane in self.dropped:
            lane.close()
        self.dropped.clear()


def _kind_of_answer(status: int, body: bytes) -> str:
    """The kind of error, "" for a right answer."""
    if not 200 <= status < 300:
        return f"{status // 100}xx"
    if body.endswith(b'"error":null}') or b'"error"' not in body:
        return ""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return "message" if isinstance(content, dict) and content.get("error") is not None else ""
