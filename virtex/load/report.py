"""What a load test found, as a table for people, as JSON and as CSV.

Rules: values in, text out; knows no clock, no sockets, no files. The JSON and the CSV are read by other programs: what
stands in them keeps its name and meaning, and a change of that is another SCHEMA.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .. import __version__
from .plan import Plan
from .record import PERCENTILES, Histogram, Slice
from .run import Run

SCHEMA = "virtex.loadtest/1"
MOST_WRONG = 0.01  # of all requests that may fail before that is said ahead of how the client did
FLAT = 2.0  # a sweep whose p99 grows by less than this factor has no knee
OPEN, CLOSED = "open loop", "closed loop"


@dataclass(frozen=True)
class Sizes:
    """The batches that a service ran meanwhile. bounds: the most items of each bucket but the last, which has none."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def mean(self) -> float:
        return self.sum / sum(self.counts)

    def shares(self) -> list[tuple[str, float]]:
        """The buckets from the first to the last that holds something: which sizes, and their share of the batches."""
        names = ["1", *(_sizes_between(a, b) for a, b in zip(self.bounds, self.bounds[1:], strict=False))]
        names.append(f"> {self.bounds[-1]:g}")
        used = [at for at, count in enumerate(self.counts) if count]
        total = sum(self.counts)
        return [(names[at], self.counts[at] / total) for at in range(used[0], used[-1] + 1)]


def _sizes_between(below: float, most: float) -> str:
    return f"{most:g}" if most - below == 1 else f"{below + 1:g}-{most:g}"


@dataclass(frozen=True)
class Report:
    """Everything that is reported of one command.

    mode: "run", "sweep" or "search". sizes: of the batches from before the first run to after the last, warm-up
    included; None where the service doesn't say. slo: the p99 in seconds that was asked for, if any. best: which run is
    the highest that holds it. limited_by: of a search, as Search has it. interrupted: it was stopped, and this is what
    had come until then.
    """

    mode: str
    runs: Sequence[Run]
    sizes: Sizes | None = None
    slo: float | None = None
    best: int | None = None
    limited_by: str = ""
    interrupted: bool = False
    knee: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.mode == "sweep":
            object.__setattr__(
                self, "knee", knee([(load_of(run.plan), run.response.percentile(99)) for run in self.runs])
            )


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Where more load begins to cost more latency than it brings: the index of that point, None where there is none.

    points: load and p99 of each run. The knee is the point that is farthest below the straight line from the first to
    the last, the logarithm of the latency over the load, both brought to 0..1: Satopaa, Albrecht, Irwin, Raghavan,
    "Finding a 'Kneedle' in a Haystack", ICDCS Workshops 2011, without its smoothing. The logarithm, since an overloaded
    service's latency grows as long as the test lasts, and would hide everything below it.
    """
    known = sorted((load, math.log(p99), at) for at, (load, p99) in enumerate(points) if p99 > 0)
    if len(known) < 3 or known[-1][1] - min(p99 for _, p99, _ in known) < math.log(FLAT):
        return None
    (first, lowest, _), (last, highest, _) = known[0], known[-1]
    if last == first or highest <= lowest:
        return None
    below = [((x - first) / (last - first) - (y - lowest) / (highest - lowest), -x, at) for x, y, at in known]
    return max(below)[2]


def load_of(plan: Plan) -> float:
    """What a run asks of the service: requests per second, in a closed loop connections."""
    return plan.most_connections if plan.rate is None else plan.rate


def middles(runs: Iterable[Run]) -> list[Run]:
    """For each load, ascending, the run of the middle p99, where it was measured again. Only runs with answers."""
    by_load: dict[float, list[Run]] = {}
    for run in runs:
        if run.response.count:
            by_load.setdefault(load_of(run.plan), []).append(run)
    ordered = (sorted(by_load[load], key=lambda run: run.response.percentile(99)) for load in sorted(by_load))
    return [same[len(same) // 2] for same in ordered]


def errors_of(run: Run) -> int:
    return sum(run.errors.values())


def number(load: float) -> str:
    """A rate or a number of connections, in as many digits as are of use."""
    return f"{load:,.0f}" if load >= 100 else f"{load:,.3g}"


def percent(q: float) -> str:
    return f"p{q:g}"


# ---- JSON


def as_json(report: Report) -> str:
    """The whole report, by SCHEMA. Times are seconds; what is not known, as the p99 of no answer, is null."""
    return json.dumps(as_dict(report), indent=1, allow_nan=False) + "\n"


def as_dict(report: Report) -> dict[str, Any]:
    slo, sizes = report.slo, report.sizes
    return {
        "schema": SCHEMA,
        "virtex": __version__,
        "mode": report.mode,
        "interrupted": report.interrupted,
        "machine": report.runs[0].machine if report.runs else {},
        "slo": None if slo is None else {"p99": slo, "best": report.best, "limited_by": report.limited_by or None},
        "knee": report.knee,
        "batch_sizes": None if sizes is None else {"bounds": sizes.bounds, "counts": sizes.counts, "mean": sizes.mean},
        "runs": [_run(run) for run in report.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "plan": _plan(run.plan),
        "scheduled": run.scheduled,
        "sent": run.sent,
        "answered": run.answered,
        "items": run.items,
        "seconds": run.seconds,
        "offered_per_second": run.offered,
        "answers_per_second": run.rate,
        "items_per_second": items_per_second(run),
        "client_kept_rate": run.client_kept_rate,
        "why_not": run.why_not or None,
        "response": times_of(run.response),
        "service": times_of(run.service),
        "lateness": times_of(run.lateness),
        "errors": dict(run.errors),
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "said": run.said,
        "slices": [_slice(each) for each in run.slices],
    }


def _plan(plan: Plan) -> dict[str, Any]:
    """Of headers the names alone: their values are keys and tokens."""
    return {
        "url": plan.url,
        "loop": OPEN if plan.rate is not None else CLOSED,
        "rate": plan.rate,
        "connections": plan.most_connections,
        "arrivals": plan.arrivals if plan.rate is not None else None,
        "requests": plan.count,
        "seconds": plan.seconds,
        "warmup": plan.warmup,
        "processes": plan.processes,
        "timeout": plan.timeout,
        "seed": plan.seed,
        "payloads": len(plan.payloads),
        "headers": sorted(plan.headers),
    }


def times_of(times: Histogram) -> dict[str, Any]:
    """A histogram as values of JSON."""
    return {
        "count": times.count,
        **{name: _known(getattr(times, name)) for name in ("mean", "std", "min", "max")},
        "percentiles": {f"{q:g}": _known(times.percentile(q)) for q in PERCENTILES},
    }


def _slice(each: Slice) -> dict[str, Any]:
    times = {name: _known(each.response.percentile(q)) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}
    return {"at": each.at, "answered": each.answered, "errors": dict(each.errors), **times}


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def items_per_second(run: Run) -> float:
    return run.items / run.seconds if run.seconds else 0.0


# ---- CSV


def as_csv(report: Report) -> str:
    """One line for each run, below one of names (RFC 4180). Times are seconds; what is not known is empty."""
    out = io.StringIO()
    rows = [_row(run) for run in report.runs]
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


COLUMNS = (
    *("url", "loop", "rate", "connections", "arrivals", "processes"),
    *("scheduled", "sent", "answered", "items", "seconds", "offered_per_second", "answers_per_second"),
    *("items_per_second", "client_kept_rate", "errors"),
    *(f"{kind}_{name}" for kind in ("response", "service") for name in ("mean", "std", "min", "max")),
    *(f"{kind}_{percent(q)}" for kind in ("response", "service") for q in PERCENTILES),
)


def _row(run: Run) -> dict[str, Any]:
    whole = _run(run)
    flat = whole["plan"] | whole | {"errors": errors_of(run), "client_kept_rate": int(run.client_kept_rate)}
    for kind in ("response", "service"):
        times = whole[kind]
        flat |= {f"{kind}_{name}": times[name] for name in ("mean", "std", "min", "max")}
        flat |= {f"{kind}_p{q}": value for q, value in times["percentiles"].items()}
    return {name: flat[name] for name in COLUMNS}


# ---- for people


def milliseconds(seconds: float) -> str:
    """Three digits that count, more for what takes seconds: 0.214, 3.21, 1,234."""
    if math.isnan(seconds):
        return "-"
    ms = seconds * 1000
    return f"{ms:,.{max(0, min(3, 2 - math.floor(math.log10(ms))))}f}" if ms > 0 else "0"


def what(report: Report) -> str:
    """What was asked, in a line, without the URL."""
    loads = sorted(load_of(run.plan) for run in report.runs)
    plan = report.runs[0].plan
    span = " to ".join(f"{number(load)}" for load in dict.fromkeys((loads[0], loads[-1])))
    length = f"{plan.count:,} requests" if plan.count is not None else f"{plan.seconds:g} s"
    pieces = [f"{plan.processes} processes"] if plan.processes > 1 else []
    if plan.rate is None:
        pieces = ["closed loop", f"{span} connections", *pieces]
    else:
        pieces = ["open loop", f"{span} requests/s", f"{plan.arrivals} arrivals", *pieces]
    if report.mode != "run":
        pieces = [f"{report.mode} of {len(report.runs)} runs", *pieces]
    return ", ".join([*pieces, length])


def as_table(report: Report) -> str:
    """The report as lines of text."""
    if not report.runs:
        return "nothing was measured"
    first = report.runs[0]
    lines = [first.plan.url, what(report)]
    if report.mode == "run":
        lines += [*aligned(percentile_rows(first)), total(first)]
    else:
        lines += aligned(run_rows(report))
    if report.sizes is not None:
        shares = "  ".join(f"{name}: {share:.1%}" for name, share in report.sizes.shares())
        lines.append(f"batches of {report.sizes.mean:.1f} items on average; {shares}")
    return "\n".join([*lines, *(verdict.text for verdict in verdicts(report))])


def total(run: Run) -> str:
    answered = f"{run.answered:,} right answers to {run.sent:,} requests in {run.seconds:.1f} s"
    items = f", {items_per_second(run):,.1f} items/s" if run.items else ""
    return f"{answered}: {run.rate:,.1f}/s{items}"


def percentile_rows(run: Run) -> list[tuple[str, ...]]:
    """The times of one run as the rows of a table, the first of names."""
    rows = [("ms", "mean", *map(percent, PERCENTILES), "max")]
    for kind, times in (("response time", run.response), ("service time", run.service)):
        quantiles = (times.percentile(q) for q in PERCENTILES)
        rows.append((kind, *map(milliseconds, (times.mean, *quantiles, times.max))))
    return rows


def run_rows(report: Report) -> list[tuple[str, ...]]:
    """A row for each run, the first of names."""
    load = "connections" if report.runs[0].plan.rate is None else "rate asked"
    quantiles = (50.0, 90.0, 99.0, 99.9)
    rows = [(load, "answers/s", *(f"{percent(q)} ms" for q in quantiles), "max ms", "errors")]
    for at, run in enumerate(report.runs):
        times = (*(run.response.percentile(q) for q in quantiles), run.response.max)
        mark = "  knee" if at == report.knee else "  best" if at == report.best else ""
        asked = f"{number(load_of(run.plan))}{mark}" + ("" if run.client_kept_rate else "  client too slow")
        rows.append((asked, f"{run.rate:,.1f}", *map(milliseconds, times), f"{errors_of(run):,}"))
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in map(tuple, rows)
    ]


class Verdict(NamedTuple):
    """A sentence beside the figures. mood: "bad", "good", or "" for a remark."""

    text: str
    mood: str = ""


def verdicts(report: Report) -> list[Verdict]:
    """What has to be said besides the figures, the worst first."""
    found = []
    if report.interrupted:
        found.append(Verdict("INTERRUPTED: these are the figures of what came until then", "bad"))
    slow, wrong = _slow(report), _wrong(report)
    failed, asked = sum(map(errors_of, report.runs)), sum(run.scheduled for run in report.runs)
    found += [*wrong, *slow] if failed > MOST_WRONG * asked else [*slow, *wrong]
    if report.runs and report.runs[0].plan.rate is None:
        found.append(Verdict("closed loop: times are those of users who wait for each answer before they ask again"))
    if report.mode == "sweep":
        found.append(Verdict(_knee(report)))
    if report.slo is not None:
        found.append(Verdict(_slo(report, report.slo), "bad" if report.best is None else "good"))
    return found


def _slow(report: Report) -> list[Verdict]:
    late = [run for run in report.runs if not run.client_kept_rate]
    if not late:
        return []
    several = f" in {len(late)} of {len(report.runs)} runs, the last of which" if len(report.runs) > 1 else ""
    return [Verdict(f"THE CLIENT WAS TOO SLOW{several}: {late[-1].why_not}", "bad")]


def _wrong(report: Report) -> list[Verdict]:
    """How many errors of each kind, and what the first of a kind said."""
    errors = sum((run.errors for run in report.runs), Counter[str]())
    if not errors:
        return []
    said = {kind: words for run in reversed(report.runs) for kind, words in run.said.items()}
    counts = Verdict("errors: " + ", ".join(f"{kind} {n:,}" for kind, n in errors.most_common()), "bad")
    return [counts, *(Verdict(f"the first {kind} said: {said[kind]}", "bad") for kind in errors if said.get(kind))]


def _knee(report: Report) -> str:
    if report.knee is None:
        return f"no knee: the p99 grew by less than a factor of {FLAT:g}, or too few runs have answers"
    run = report.runs[report.knee]
    unit = "connections" if run.plan.rate is None else "requests/s"
    p99 = milliseconds(run.response.percentile(99))
    return f"knee: {number(load_of(run.plan))} {unit}, {run.rate:,.1f} answers/s at a p99 of {p99} ms"


def _slo(report: Report, slo: float) -> str:
    bound = f"p99 of {milliseconds(slo)} ms"
    if report.best is None:
        return f"MISSED: {bound} held at no rate" if report.mode == "search" else f"MISSED: {bound}"
    if report.mode == "run":
        return f"held: {bound}"
    rate = load_of(report.runs[report.best].plan)
    why = {"client": "; the client could not send faster", "high": "; more was not asked for"}
    return f"held: {bound} up to {number(rate)} requests/s{why.get(report.limited_by, '')}"
