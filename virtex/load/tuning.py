"""What `virtex tune` does: measures what a batch costs, has a simulation propose settings, measures these, decides.

Rules: a service is asked only while its trial lasts, and one runs at a time. The clock is for the budget alone. What
can't be meant is argparse.ArgumentError, before anything is started.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson

from ..message import HttpMessage
from . import about
from .command import line_for, need_for, payloads_for, refusing
from .fit import Cost, Proposal, Settings, candidates, fit, propose, sizes_to
from .live import LiveLine
from .modes import holds_at, search
from .payloads import NPY, Payload, payload_of
from .plan import Plan
from .report import number
from .run import Run, run
from .trial import Trial, TrialError
from .tuned import BETTER, QUANTILE, Tried, Tuned, publish, say_cost

ERRORS = 0.001  # the share that may fail
MOST_TRIED = 4  # settings that are measured beside those of the app
EACH = 25.0  # seconds of the budget for each of them
RUNS = 10  # that a search takes, about
COST_PART = 0.15  # of the budget, for what a batch costs
PATIENT = 64  # clients that show how many requests there may be in a second
FIRST = 0.7  # of the rate that is expected: where a search begins
SHORTEST, LONGEST = 0.5, 10.0  # seconds of a run
BOUNDS = 20  # times the bound that a run lasts at least: a queue that grows by 5 % then shows in the p99


def tune(asked: argparse.Namespace) -> bool:
    """Tune and report; gives whether some settings hold the bound. Raises KeyboardInterrupt once the report is out."""
    need_for(asked.output)
    found = Tuned(asked.app, asked.p99)
    line = line_for(asked)
    try:
        Tuner(asked, found, line).run()
    except KeyboardInterrupt:
        found.interrupted = True
    finally:
        line.wipe()
    publish(asked, found)
    if found.interrupted:
        raise KeyboardInterrupt
    return found.best is not None


class _Enough(Exception):
    """These settings don't hold what others do, or the budget is spent."""


class Tuner:
    """The stages of one tuning, whose results go into `found` as they come."""

    def __init__(self, asked: argparse.Namespace, found: Tuned, line: LiveLine) -> None:
        self.asked = asked
        self.found = found
        self.line = line
        self._ends = self._until = time.monotonic() + asked.budget  # of all, of the present trial
        self._headers = dict(asked.header)
        self._payloads: Sequence[Payload] = ()
        self._ceiling = math.inf  # requests/s of patient clients

    def run(self) -> None:
        """All of it. Raises TrialError where the app itself does not start, or does not answer."""
        with refusing():
            first = self._trial({"max_time_on_queue": 0.0})
        with first as trial:
            self._learn(trial)
        chosen = self._propose()
        affordable = (self._ends - time.monotonic()) / (RUNS * len(chosen))
        seconds = max(SHORTEST, BOUNDS * self.found.p99, min(LONGEST, affordable))
        for at, proposal in enumerate(chosen):
            if at < 2 or time.monotonic() < self._ends:  # a tuning has something to compare, whatever it takes
                self._try(proposal, seconds, 1 / (len(chosen) - at))

    def _trial(self, options: dict[str, Any]) -> Trial:
        self.line.show(f"starting {self.asked.app}")
        return Trial(self.asked.app, ({"max_batch_size": self.asked.up_to} if self.asked.up_to else {}) | options)

    def _say(self, text: str) -> None:
        """A stage is over."""
        self.line.wipe()
        if not self.asked.quiet:
            print(text, file=sys.stderr, flush=True)

    # ---- what a batch costs

    def _learn(self, trial: Trial) -> None:
        """Fill in the app's own settings, and what its batches cost."""
        found = self.found
        found.own = Settings(**trial.own)
        with refusing():
            self._payloads = payloads_for(self.asked, trial.url, self._headers)
        sizes = sizes_to(self.asked.up_to or found.own.max_batch_size)
        seconds = min(1.0, COST_PART * self.asked.budget / len(sizes))
        for size in sizes:
            self.line.show(f"measuring batches of {size}")
            took = self._time_batch(trial, size, seconds)
            if took is None:
                break
            found.batches.append((size, took))
            if took > found.p99:
                break
        self.line.show(f"measuring {PATIENT} patient clients")
        self._ceiling = run(self._plan(trial, self._payloads, seconds, connections=PATIENT)).rate or math.inf
        found.cost = cost_of(found.batches, self._ceiling)
        self._say(f"{found.app}: a batch of n items takes {say_cost(found.cost)}")

    def _time_batch(self, trial: Trial, size: int, seconds: float) -> float | None:
        """Seconds of a batch that is one request. None where the service does not take so many items at once."""
        plan = self._plan(trial, [of_size(self._payloads, size)], seconds, connections=1)
        before = about.metrics(trial.url, plan.headers)
        result = run(plan)
        after = about.metrics(trial.url, plan.headers)
        if before is None or after is None:
            raise TrialError("GET /metrics/live was not answered: what does authorize= ask for? --header can send it")
        if result.answered and not result.errors:
            return batch_seconds(before, after)
        if size > 1:
            return None
        what = ", ".join(f"{kind} {count}" for kind, count in result.errors.most_common()) or "no answer"
        raise TrialError(f"{self.asked.app} does not answer what is sent ({what}): --data says what it takes")

    def _plan(self, trial: Trial, payloads: Sequence[Payload], seconds: float, **more: Any) -> Plan:
        of_all = {"timeout": self.asked.timeout, "headers": self._headers, "warmup": min(0.3, seconds / 4)}
        return Plan(trial.url, payloads, seconds=seconds, **of_all, **more)

    # ---- which settings hold the bound

    def _propose(self) -> list[Proposal]:
        """The app's own settings, and the best that the simulation knows."""
        found, asked = self.found, self.asked
        assert found.cost and found.own
        self.line.show("simulating")
        executors = (asked.executor,) if asked.executor else ("inline", "thread")
        possible = candidates(found.cost, found.p99, asked.up_to or found.own.max_batch_size, executors)
        ranked = propose(found.cost, found.p99, QUANTILE, [each for each in possible if each != found.own])
        count = max(1, min(MOST_TRIED, round(asked.budget / EACH)))
        return [*propose(found.cost, found.p99, QUANTILE, [found.own]), *shortlist(ranked, count)]

    def _try(self, proposal: Proposal, seconds: float, share: float) -> None:
        """Measure settings. seconds: of a run. share: of what is left of the budget, once the service is there."""
        tried = Tried(proposal.settings, proposal.rate)
        self.found.tried.append(tried)
        try:
            with self._trial(asdict(proposal.settings)) as trial:
                self._until = time.monotonic() + share * max(0.0, self._ends - time.monotonic())
                self._search(trial, tried, seconds)
        except TrialError as error:
            if tried.settings == self.found.own:
                raise
            tried.failed = str(error).splitlines()[0].removeprefix("the service did not start: ")
        self._say(f"{tried.settings}: {tried}")

    def _search(self, trial: Trial, tried: Tried, seconds: float) -> None:
        """The highest rate that holds. What does not hold a little more than the best so far is not looked into."""
        lead = max(each.rate for each in self.found.tried)
        first = lead * BETTER or FIRST * min(tried.simulated, self._ceiling)

        def measure(plan: Plan, progress: Any = None) -> Run:
            self.line.begin(plan, f"{tried.settings}: {number(plan.rate or 0)}: ")
            tried.runs.append(run(plan, self.line))
            is_behind = lead and len(tried.runs) == 1 and not self._held(tried.runs)
            if is_behind or time.monotonic() > self._until:
                raise _Enough
            return tried.runs[-1]

        plan = self._plan(trial, self._payloads, seconds, processes=self.asked.processes)
        try:
            tried.best = search(plan, self.found.p99, first=max(first, 1.0), errors=ERRORS, runner=measure).best
        except _Enough:
            tried.best = max(self._held(tried.runs), key=lambda run: run.plan.rate or 0, default=None)

    def _held(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if holds_at(run, self.found.p99, ERRORS)]


# ---- pieces


def of_size(payloads: Sequence[Payload], size: int) -> Payload:
    """One request of so many items, taken from these in turn."""
    if payloads[0].content_type == NPY:
        several = [payloads[at % len(payloads)].body for at in range(size)]
        return Payload(b"".join(several), size, NPY)
    items = [item for payload in payloads for item in orjson.loads(payload.body)["data"]]
    if not items:
        raise TrialError("expected an item at least in what --data says")
    return payload_of(HttpMessage(data=[items[at % len(items)] for at in range(size)]))


def batch_seconds(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """How long a batch was out with the executor on average, between two looks at the metrics."""
    busy, sizes = "virtex_executor_busy_seconds_total", "virtex_batch_size"
    batches = sum(after[sizes]["counts"]) - sum(before[sizes]["counts"])
    return (after[busy] - before[busy]) / batches if batches else None


def cost_of(batches: Sequence[tuple[int, float]], ceiling: float) -> Cost:
    """The cost of batches, and of a request besides: what patient clients wait for that is not the batch."""
    fitted = fit(batches) if len(batches) > 1 else Cost(batches[0][1], 1e-9)
    return replace(fitted, request=max(0.0, 1 / ceiling - fitted.of(PATIENT) / PATIENT))


def shortlist(ranked: Sequence[Proposal], count: int) -> list[Proposal]:
    """The first of each batch size and executor: what the simulation can tell apart. Those at rate 0 hold nothing."""
    found: dict[tuple[int, str], Proposal] = {}
    for each in ranked:
        if each.rate > 0:
            found.setdefault((each.settings.max_batch_size, each.settings.executor), each)
    return list(found.values())[:count]
