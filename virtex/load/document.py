"""A report as one HTML file: no script, nothing fetched, light or dark as its reader has it.

Rules: whatever a user or a service wrote is escaped here, once, at the place where it enters the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from .. import __version__
from . import plots
from .report import (
    Report,
    Verdict,
    errors_of,
    items_per_second,
    load_of,
    milliseconds,
    number,
    percentile_rows,
    run_rows,
    total,
    verdicts,
    what,
)
from .run import Run

Card = tuple[str, str]  # a heading, and HTML


def as_html(report: Report) -> str:
    """A report of at least one run. Raises ImportError where matplotlib is missing."""
    shown = _best(report)
    plan = report.runs[0].plan
    is_one = report.mode == "run"
    cards = [("Percentiles", table(percentile_rows(shown)))] if is_one else [_curve(report)]
    cards += _plots(shown, "" if is_one else f" at {number(load_of(shown.plan))}")
    if report.sizes is not None:
        shares = report.sizes.shares()
        cards.append(("Batches of the service", plots.bars("sizes", "Batch sizes", shares, "items in a batch")))
    if not is_one:
        cards.append((f"{len(report.runs)} runs", table(run_rows(report))))
    cards += [("What was asked", facts(_asked(report))), ("Where it ran", facts(_flat(report.runs[0].machine)))]
    return page(plan.url, f"{what(report)}; virtex {__version__}", verdicts(report), _tiles(shown, report), cards)


def _best(report: Report) -> Run:
    """The run that is shown in full: the best, or at the knee, or the last that has answers, or the last."""
    at = report.best if report.best is not None else report.knee
    if at is not None:
        return report.runs[at]
    return next((run for run in reversed(report.runs) if run.answered), report.runs[-1])


def _tiles(run: Run, report: Report) -> dict[str, str]:
    tiles = {
        "right answers/s": f"{run.rate:,.1f}",
        "items/s": f"{items_per_second(run):,.1f}",
        "p50 ms": milliseconds(run.response.percentile(50)),
        "p99 ms": milliseconds(run.response.percentile(99)),
        "errors": f"{errors_of(run):,}",
    }
    return tiles | ({} if report.sizes is None else {"items in a batch": f"{report.sizes.mean:.1f}"})


def _curve(report: Report) -> Card:
    if not any(run.response.count for run in report.runs):
        return "Latency over throughput", nothing("no run had an answer")
    rule = (
        "<p>The knee is the point farthest below the straight line from the first to the last, the logarithm of the "
        "p99 over what was asked (Kneedle; Satopaa, Albrecht, Irwin, Raghavan 2011).</p>"
    )
    return "Latency over throughput", plots.curve(report) + (rule if report.mode == "sweep" else "")


def _plots(run: Run, where: str) -> list[Card]:
    if not run.response.count:
        return [(f"Latency{where}", nothing("there was no right answer"))]
    return [
        (f"Latency by percentile{where}", plots.percentiles(run.response, run.service)),
        (f"Response time, second by second{where}", plots.over_time(run.slices) + f"<p>{escape(total(run))}</p>"),
    ]


def _asked(report: Report) -> dict[str, str]:
    plan = report.runs[0].plan
    return {
        "url": plan.url,
        "load": what(report),
        "connections": f"{plan.most_connections:,} at most",
        "payloads": f"{len(plan.payloads):,}, of {sum(len(each.body) for each in plan.payloads):,} bytes together",
        "headers": ", ".join(sorted(plan.headers)) or "none but those of HTTP",
        "warm-up": f"{plan.warmup:g} s, not counted",
        "timeout": f"{plan.timeout:g} s",
    }


def _flat(machine: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in machine.items()}


# ---- pieces


def page(title: str, subtitle: str, said: Iterable[Verdict], tiles: Mapping[str, str], cards: Iterable[Card]) -> str:
    """The file. said: sentences. tiles: figures by their names. cards: their headings are text, the rest is HTML."""
    template = Template((files(__package__) / "report.html").read_text())
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        said="".join(f'<li class="{each.mood}">{escape(each.text)}</li>' for each in said),
        tiles="".join(f'<div class="card"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in tiles.items()),
        cards="".join(f'<section class="card"><h2>{escape(head)}</h2>{body}</section>' for head, body in cards),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of names."""
    lines = (
        "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in row) + "</tr>"
        for cell, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def facts(values: Mapping[str, str]) -> str:
    """Names and texts."""
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in values.items())
    return f'<dl class="facts">{"".join(lines)}</dl>'


def nothing(why: str) -> str:
    """In place of a plot."""
    return f"<p>Nothing to draw: {escape(why)}.</p>"
