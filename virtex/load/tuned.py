"""What a tuning found: a table and the line to paste, JSON, CSV, or one HTML file with its plots.

Rules: as report.py's: values in, text out, and names that keep their meaning.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from .. import __version__
from .command import write
from .fit import Cost, Settings
from .report import Verdict, aligned, milliseconds, number, times_of
from .run import Run

QUANTILE = 99.0
BETTER = 1.03  # times the rate of others: a lead that is more than what runs differ by
SCHEMA = "virtex.tune/1"
COLUMNS = (
    *("max_batch_size", "max_time_on_queue", "executor", "is_own", "is_best"),
    *("simulated_per_second", "held_per_second", "p99", "failed"),
)


@dataclass
class Tried:
    """Settings that were measured. simulated: the rate that the simulation granted. runs: their runs; best: the highest
    that held the bound. failed: why the service did not start with them, else ""."""

    settings: Settings
    simulated: float
    runs: list[Run] = field(default_factory=list)
    best: Run | None = None
    failed: str = ""

    @property
    def rate(self) -> float:
        """What held, in requests per second; 0: nothing did."""
        return self.best.plan.rate or 0.0 if self.best else 0.0

    def __str__(self) -> str:
        if self.failed:
            return f"does not start: {self.failed}"
        if self.best:
            return (
                f"holds {number(self.rate)} requests/s, p99 {milliseconds(self.best.response.percentile(QUANTILE))} ms"
            )
        if not self.runs:
            return "not measured"
        last = self.runs[-1]
        return f"does not hold {number(last.offered)} requests/s: p99 {milliseconds(last.response.percentile(99))} ms"


@dataclass
class Tuned:
    """What was found of an app. p99: the bound in seconds. own: the app's settings. batches: pairs of items and
    seconds. tried: in the order in which they were measured."""

    app: str
    p99: float
    own: Settings | None = None
    batches: list[tuple[int, float]] = field(default_factory=list)
    cost: Cost | None = None
    tried: list[Tried] = field(default_factory=list)
    interrupted: bool = False

    @property
    def best(self) -> Tried | None:
        """Whose rate is the highest; the app's own settings, where others lead by less than what runs differ by."""
        held = [each for each in self.tried if each.best]
        best = max(held, key=lambda each: each.rate, default=None)
        own = next((each for each in held if each.settings == self.own), None)
        return own if best and own and best.rate < own.rate * BETTER else best


def say_cost(cost: Cost) -> str:
    request = f", a request {cost.request * 1e6:,.0f} us besides" if cost.request else ""
    return f"{milliseconds(cost.base)} ms + n * {milliseconds(cost.per_item)} ms{request}"


def publish(asked: argparse.Namespace, found: Tuned) -> None:
    """Print it, and write the files that were asked for."""
    if not asked.quiet:
        print(as_table(found))
    if found.tried:
        write(asked, lambda ending: {".html": as_html, ".json": as_json, ".csv": as_csv}[ending](found))


def line_to_paste(found: Tuned) -> str:
    """The best settings as arguments of http_server(); "" where none hold."""
    return f"http_server(..., {found.best.settings})" if found.best else ""


def verdicts(found: Tuned) -> list[Verdict]:
    """What was decided, in sentences."""
    said = [Verdict("INTERRUPTED: this is what had come until then", "bad")] if found.interrupted else []
    best = found.best
    if best is None:
        return [*said, Verdict(f"MISSED: no settings hold a p99 of {milliseconds(found.p99)} ms", "bad")]
    kept = " with the settings that it has" if best.settings == found.own else ""
    return [
        *said,
        Verdict(f"held: a p99 of {milliseconds(found.p99)} ms up to {number(best.rate)} requests/s{kept}", "good"),
    ]


# ---- for people


def rows(found: Tuned) -> list[tuple[str, ...]]:
    """A row for each of the settings that were tried, the first of names."""
    named: list[tuple[str, ...]] = [
        ("", "max_batch_size", "time_on_queue", "executor", "simulated/s", "held/s", "p99 ms")
    ]
    for each in found.tried:
        settings = each.settings
        shown = each.best or (each.runs[-1] if each.runs else None)
        mark = "best" if each is found.best else "does not start" if each.failed else ""
        own = "the app's own" if settings == found.own else ""
        named.append(
            (
                ", ".join(filter(None, (mark, own))),
                f"{settings.max_batch_size:,}",
                f"{settings.max_time_on_queue:g}",
                settings.executor,
                number(each.simulated),
                number(each.rate) if each.best else f"not {number(shown.plan.rate or 0)}" if shown else "-",
                milliseconds(shown.response.percentile(QUANTILE)) if shown else "-",
            )
        )
    return named


def as_table(found: Tuned) -> str:
    lines = [] if found.cost is None else [f"{found.app}: a batch of n items takes {say_cost(found.cost)}"]
    if found.tried:
        lines += aligned(rows(found))
    lines += [verdict.text for verdict in verdicts(found)]
    return "\n".join([*lines, *filter(None, [line_to_paste(found)])])


# ---- for programs


def as_json(found: Tuned) -> str:
    """The whole of it, by SCHEMA. Times are seconds, rates requests per second; what is not known is null."""
    best = found.best
    document = {
        "schema": SCHEMA,
        "virtex": __version__,
        "app": found.app,
        "interrupted": found.interrupted,
        "p99": found.p99,
        "own": None if found.own is None else asdict(found.own),
        "best": None if best is None else asdict(best.settings) | {"held_per_second": best.rate},
        "cost": None if found.cost is None else asdict(found.cost),
        "batches": [{"items": size, "seconds": seconds} for size, seconds in found.batches],
        "tried": [_tried(found, each) | {"runs": [_run(run) for run in each.runs]} for each in found.tried],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_csv(found: Tuned) -> str:
    """A line for each of the settings, below one of names."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(_tried(found, each) for each in found.tried)
    return out.getvalue()


def _tried(found: Tuned, each: Tried) -> dict[str, Any]:
    return {
        **asdict(each.settings),
        "is_own": int(each.settings == found.own),
        "is_best": int(each is found.best),
        "simulated_per_second": each.simulated,
        "held_per_second": each.rate or None,
        "p99": each.best.response.percentile(QUANTILE) if each.best else None,
        "failed": each.failed or None,
    }


def _run(run: Run) -> dict[str, Any]:
    asked = {"rate": run.plan.rate, "answers_per_second": run.rate, "answered": run.answered}
    return asked | {"errors": dict(run.errors), "response": times_of(run.response)}


def as_html(found: Tuned) -> str:
    """One file. Raises ImportError where matplotlib is missing."""
    from . import plots
    from .document import page, table

    cards = [("The line to paste", f"<pre>{escape(line_to_paste(found))}</pre>")] if found.best else []
    curves = [(str(each.settings), each.runs) for each in found.tried if any(run.answered for run in each.runs)]
    if curves:
        cards.append(("p99 over the rate", plots.trials(curves, found.p99)))
    if found.cost is not None:
        cards.append(("What a batch takes", plots.cost(found.batches, found.cost.of)))
    cards.append(("What was tried", table(rows(found))))
    tiles = {}
    if found.best and found.best.best:
        tiles = {"requests/s": number(found.best.rate)}
        tiles["p99 ms"] = milliseconds(found.best.best.response.percentile(QUANTILE))
    if found.cost:
        tiles |= {"ms of a batch": milliseconds(found.cost.base), "ms of an item": milliseconds(found.cost.per_item)}
    return page(
        found.app, f"virtex tune, p99 {milliseconds(found.p99)} ms; virtex {__version__}", verdicts(found), tiles, cards
    )
