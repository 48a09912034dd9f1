"""The plots of a report, drawn by matplotlib as SVG to stand in an HTML page: text as text, colours as CSS variables.

Rules: numbers and our own words in, SVG out; what a user wrote never comes here. matplotlib is imported when something
is drawn. The page has to define --ink, --soft, --line, --a, --b, --c and --bad.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..extras import library as needed
from .record import Histogram, Slice
from .report import Report, load_of, middles
from .run import Run

SIZE = (7.2, 3.3)  # inches at 72 points
FINEST = 99.999  # percent: beyond it nobody has enough requests
POINTS = 400  # of a curve

# matplotlib wants colours of its own; each of these stands for a variable of the page.
INK, SOFT, LINE, A, B, C, BAD = (f"#0102{n:02x}" for n in range(7))
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", A: "a", B: "b", C: "c", BAD: "bad"}

STYLE = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
LINES = ((A, "-"), (B, "--"), (C, ":"))  # told apart without colours too


def library(name: str) -> Any:
    """A module of matplotlib. Raises ImportError that names the extra which brings it."""
    return needed(name, "an HTML report", "loadtest")


def svg(name: str, title: str, draw: Callable[[Any], None]) -> str:
    """A plot as an <svg> element. name: makes its ids its own. title: for who can't see it. draw: gets the axes."""
    matplotlib = library("matplotlib")
    figures = library("matplotlib.figure")
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = figures.Figure(figsize=SIZE, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), title)


def _inline(text: str, title: str) -> str:
    """The element alone, in the page's fonts and colours, without the ids that other plots have too."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    head = re.match(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', text)
    assert head
    opening = f'<svg class="plot" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{head[1]}" role="img">'
    return f"{opening}<title>{title}</title>{text[head.end() :].rstrip()}"


def _latency_axis(axes: Any) -> None:
    """Milliseconds on a logarithmic scale, as numbers that one reads."""
    ticker = library("matplotlib.ticker")
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(ticker.LogLocator(10, (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _thousands(axis: Any) -> None:
    ticker = library("matplotlib.ticker")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))


def over_time(slices: Sequence[Slice]) -> str:
    """Latency over time: p50, p99 and the most of each second, and the seconds in which requests failed."""

    def draw(axes: Any) -> None:
        at = [each.at for each in slices]
        for (colour, dashes), (label, q) in zip(LINES, (("p50", 50), ("p99", 99), ("max", 100)), strict=True):
            times = [1000 * each.response.percentile(q) for each in slices]
            axes.plot(at, times, dashes, color=colour, label=label, marker="." if len(at) < 60 else "")
        failed = [each.at for each in slices if each.errors]
        if failed:
            along = axes.get_xaxis_transform()
            axes.plot(failed, [0.02] * len(failed), "x", color=BAD, label="errors", transform=along, clip_on=False)
        axes.set_xlabel("seconds")
        axes.set_xlim(0, at[-1] * 1.03)
        axes.xaxis.set_major_locator(library("matplotlib.ticker").MaxNLocator(10, integer=True))
        _latency_axis(axes)
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)

    return svg("time", "Response time over the seconds of the test", draw)


def percentiles(response: Histogram, service: Histogram) -> str:
    """The percentile curve over 1 / (1 - q) on a logarithmic axis, as HdrHistogram's plotter draws it."""

    def draw(axes: Any) -> None:
        for (colour, dashes), label, times in (
            (LINES[0], "response time", response),
            (LINES[1], "service time", service),
        ):
            most = min(100 / (100 - FINEST), float(times.count))  # beyond, there is one request and no curve
            inverse = np.geomspace(1, max(most, 2), POINTS)
            axes.plot(
                *(inverse, [1000 * times.percentile(100 - 100 / each) for each in inverse]),
                *(dashes,),
                color=colour,
                label=label,
            )
        ticks = [each for each in (50, 90, 99, 99.9, 99.99, 99.999) if 100 / (100 - each) <= axes.get_xlim()[1]]
        axes.set_xscale("log")
        axes.set_xticks([100 / (100 - each) for each in ticks], [f"{each:g} %" for each in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("of the requests took no longer")
        _latency_axis(axes)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=2)

    return svg("percentiles", "Latency by percentile", draw)


def curve(report: Report) -> str:
    """Latency over throughput: a point for each run, with the knee and the bound."""
    runs = middles(report.runs)

    def draw(axes: Any) -> None:
        rates = [run.rate for run in runs]
        for (colour, dashes), q in zip(LINES, (50, 99, 99.9), strict=True):
            times = [1000 * run.response.percentile(q) for run in runs]
            axes.plot(rates, times, dashes, color=colour, marker="o", markersize=4, label=f"p{q:g}")
        for at, word in ((report.knee, "knee"), (report.best, "best")):
            if at is not None:
                _mark(axes, report.runs[at], word)
        if report.slo is not None:
            axes.axhline(1000 * report.slo, color=BAD, linewidth=1, label="bound of the p99")
        axes.set_xlabel("right answers per second")
        _thousands(axes.xaxis)
        _latency_axis(axes)
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)

    return svg("curve", "Latency over throughput, a point for each run", draw)


def _mark(axes: Any, run: Run, word: str) -> None:
    x, y = run.rate, 1000 * run.response.percentile(99)
    axes.plot([x], [y], "o", markersize=13, fillstyle="none", color=INK, markeredgewidth=1.4)
    axes.annotate(word, (x, y), (-10, 9), textcoords="offset points", ha="right", color=INK, fontweight="bold")


def bars(name: str, title: str, shares: Sequence[tuple[str, float]], label: str) -> str:
    """Shares of a whole, a bar for each."""

    def draw(axes: Any) -> None:
        names = [name for name, _ in shares]
        drawn = axes.bar(names, [100 * share for _, share in shares], color=A, width=0.7)
        axes.bar_label(drawn, [f"{share:.0%}" if share >= 0.005 else "" for _, share in shares], color=SOFT, padding=2)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(label)
        axes.set_ylabel("% of the batches")

    return svg(name, title, draw)


def trials(curves: Sequence[tuple[str, Sequence[Run]]], bound: float) -> str:
    """The p99 over the rate that was asked, a line for each of the settings. bound: of the p99, in seconds."""

    def draw(axes: Any) -> None:
        colours = (A, B, C, INK, SOFT)
        for at, (label, runs) in enumerate(curves):
            ordered = middles(runs)
            rates = [load_of(run.plan) for run in ordered]
            times = [1000 * run.response.percentile(99) for run in ordered]
            dashes = ("-", "--", ":", "-.")[at % 4]
            axes.plot(rates, times, dashes, color=colours[at % len(colours)], marker="o", markersize=4, label=label)
        axes.axhline(1000 * bound, color=BAD, linewidth=1, label="bound")
        axes.set_xlabel("requests per second")
        _thousands(axes.xaxis)
        _latency_axis(axes)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, fontsize=9)

    return svg("trials", "p99 over the rate, for each of the settings", draw)


def cost(batches: Sequence[tuple[int, float]], fitted: Callable[[float], float]) -> str:
    """What batches took, and the line that was fitted to it."""

    def draw(axes: Any) -> None:
        most = max(size for size, _ in batches)
        axes.plot([0, most], [1000 * fitted(0), 1000 * fitted(most)], "-", color=A, label="a + b n, fitted")
        sizes, seconds = zip(*batches, strict=True)
        axes.plot(sizes, [1000 * each for each in seconds], "o", color=B, label="measured")
        axes.set_xlabel("items in a batch")
        axes.set_ylabel("ms")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=2)

    return svg("cost", "What a batch takes", draw)
