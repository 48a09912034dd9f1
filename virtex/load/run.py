"""A load test: its processes are started, watched and ended, and what they found is one Run.

Rules: the only file of the room that starts processes. One process is this one; several are new interpreters: they
import nothing of the program's own, so that it need not be guarded by __name__, and they end when their parent does.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import perf_counter_ns as clock
from typing import Any

import orjson

import virtex

from .. import info
from .drive import Drive
from .lane import Address, addresses_of, reachable
from .plan import Plan
from .record import Answer, Histogram, Slice, Tally

log = logging.getLogger("virtex")

LATE = 0.002  # seconds after its time that a request may be sent
MOST_LATE = 0.01  # of all requests
BEFORE_START = 20_000_000  # nanoseconds from when all are ready to the start of the run
MOST_WORDS = 200  # characters of an error that a report repeats
PATIENCE = 10.0  # seconds that a process may take to end

Progress = Callable[[Slice], object]


@dataclass
class Run:
    """What a load test found.

    plan: what was asked. scheduled, sent: requests that were to be sent, and were. answered: right answers: status 2xx,
    and no error in a message. items: of these. seconds: from the first request's time to the last answer. offered:
    requests per second, as asked or, in a closed loop, as sent. rate: right answers per second. client_kept_rate:
    whether the client sent in time, that is no more than 1 % of the requests later than 2 ms after their time; and
    found a connection for them. why_not: if not, how far it was off. response, service: of the right answers, the time
    from when each was to be sent, and from when it was. lateness: from when a request was to be sent until the client
    came to it. errors: how many of each kind, of lane.KINDS. statuses: answers of each status. said: of each kind of
    error that came as an answer, the words of the first. slices: one per second.
    machine: where it ran. answers: with keep, one for each request, in the order of the schedule.
    """

    plan: Plan
    scheduled: int = 0
    sent: int = 0
    answered: int = 0
    items: int = 0
    seconds: float = 0.0
    offered: float = 0.0
    rate: float = 0.0
    client_kept_rate: bool = True
    why_not: str = ""
    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)


def run(plan: Plan, progress: Progress | None = None) -> Run:
    """Run a load test, and wait for its end.

    progress: called about once a second with what came in that second; between two requests, so it is to be quick.

    Raises OSError where the URL's host is not found, RuntimeError where a process of the test ended before its time.
    That nobody answers is an error of each request, and no exception.
    """
    address = reachable(addresses_of(plan.url), min(plan.timeout, 5.0))
    slices: list[Slice] = []

    def on_slice(ended: Slice) -> None:
        slices.append(ended)
        if progress is not None:
            progress(ended)

    if plan.processes == 1:
        with Drive(plan, address) as drive:
            drive.warm_up()
            tally = drive.run(clock() + BEFORE_START, on_slice)
    else:
        tally = _run_in_processes(plan, address, on_slice)
    found = _found(plan, tally, slices)
    if not found.client_kept_rate:
        log.warning("load test: %s", found.why_not)
    return found


def _found(plan: Plan, tally: Tally, slices: list[Slice]) -> Run:
    seconds = max(tally.last - tally.first, 0) / 1e9
    span = (tally.last_sent - tally.first) / 1e9
    offered = plan.rate or (tally.sent / span if span > 0 else 0.0)
    why_not = "" if plan.rate is None else _why_not(plan, tally)
    return Run(
        plan=plan,
        scheduled=tally.scheduled,
        sent=tally.sent,
        answered=tally.answered,
        items=tally.items,
        seconds=seconds,
        offered=offered,
        rate=tally.answered / seconds if seconds > 0 else 0.0,
        client_kept_rate=not why_not,
        why_not=why_not,
        response=tally.response,
        service=tally.service,
        lateness=tally.lateness,
        errors=tally.errors,
        statuses=tally.statuses,
        said={kind: words_of(body) for kind, body in tally.said.items()},
        slices=slices,
        machine=machine(),
        answers=[Answer._make(answer) for answer in sorted(tally.answers)],
    )


def words_of(body: bytes) -> str:
    """What an error says, in one line."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    words = content.get("error") if isinstance(content, dict) else None
    text = words if isinstance(words, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())[:MOST_WORDS]


def was_late(found: Run | Tally) -> bool:
    """Whether the client itself could not send in time."""
    return found.lateness.share_above(LATE) > MOST_LATE


def _why_not(plan: Plan, tally: Tally) -> str:
    """How the client failed to keep the rate; "" where it did."""
    reasons = []
    if was_late(tally):
        late, p99 = tally.lateness.share_above(LATE), tally.lateness.percentile(99) * 1000
        reasons.append(
            f"it sent {late:.1%} of them more than {LATE * 1000:g} ms late (p99 {p99:.1f} ms): use more processes than "
            f"{plan.processes}, other cores than the service's, or a lower rate"
        )
    waited = tally.waited / max(tally.scheduled, 1)
    if waited > MOST_LATE:
        reasons.append(
            f"{waited:.1%} of them found all {plan.most_connections} connections busy and waited in line: the service "
            "is too slow for the rate, or connections= is too low"
        )
    whole = f"the client did not keep the rate of {plan.rate:g} requests/s, and the response times say so: "
    return whole + "; ".join(reasons) if reasons else ""


# Several processes


def _run_in_processes(plan: Plan, address: Address, on_slice: Callable[[Slice], None]) -> Tally:
    with ExitStack() as stack:
        children = [stack.enter_context(_child(plan, address, index)) for index in range(plan.processes)]
        for child in children:
            child.receive()  # it is warm
        start = clock() + BEFORE_START
        for child in children:
            child.link.send(start)
        return _collect(children, on_slice)


def _collect(children: list[Child], on_slice: Callable[[Slice], None]) -> Tally:
    """What all of them counted. A second is over when each has reported it."""
    at_work = {child.link: child for child in children}
    seconds: dict[int, list[Slice]] = {}
    tally = Tally()
    while at_work:
        for link in wait(list(at_work)):
            child = at_work[link]  # type: ignore[index]
            came = child.receive()
            if isinstance(came, Tally):
                tally.merge(came)
                del at_work[child.link]
            else:
                seconds.setdefault(child.slices, []).append(came)
                child.slices += 1
        over = min((child.slices for child in at_work.values()), default=max(child.slices for child in children))
        for second in sorted(number for number in seconds if number < over):
            first, *others = seconds.pop(second)
            for other in others:
                first.merge(other)
            on_slice(first)
    return tally


class Child:
    """A process of the load test, as its parent sees it."""

    def __init__(self, index: int, process: subprocess.Popen[bytes], link: Connection) -> None:
        self.index = index
        self.process = process
        self.link = link
        self.slices = 0

    def receive(self) -> Any:
        """What it sends next. Raises RuntimeError if it ended instead."""
        try:
            return self.link.recv()
        except (EOFError, OSError):
            code = self.process.wait(PATIENCE)
            raise RuntimeError(
                f"process {self.index} of the load test ended with {code} before it was done; what it said is above"
            ) from None


@contextmanager
def _child(plan: Plan, address: Address, index: int) -> Iterator[Child]:
    ours, theirs = socket.socketpair()
    path = os.pathsep.join([str(Path(virtex.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from virtex.load.process import main; main({theirs.fileno()})"],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)},
            process_group=0,  # an interrupt from the keyboard is its parent's, who ends it
        )
    link = Connection(ours.detach())
    try:
        with suppress(OSError):  # it ended at once: receive() says so
            link.send((plan, address, index))
        yield Child(index, process, link)
    finally:
        link.close()  # by which it ends, if it has not yet
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def machine() -> dict[str, Any]:
    """Where a test runs: CPU, cores that it may use, system, versions."""
    return {
        "cpu": info.cpu(),
        "cores": info.cores()["usable"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "virtex": virtex.__version__,
    }
