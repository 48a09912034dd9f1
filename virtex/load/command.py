"""What `virtex loadtest` does: its arguments become plans, their runs a report, the report text and files.

Rules: prints, and writes the files that were asked for. What can't be meant is argparse.ArgumentError, before anything
is sent.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from ..message import HttpMessage
from ..serial._needs import library
from . import peer
from .live import Line
from .modes import Search, search, sweep
from .payloads import Payload, payload_of
from .plan import Plan
from .report import Report, as_csv, as_json, as_table, failed_share
from .run import Run, run

SECONDS = 10.0  # of a run, where nothing else is said


def loadtest(asked: argparse.Namespace) -> bool:
    """Test, report; gives whether the bounds were held. Raises KeyboardInterrupt once the partial report is out."""
    with refusing():
        _check_modes(asked)
        plan = _plan(asked)
    need_for(asked.output)
    line = line_for(asked)
    before = peer.metrics(plan.url, plan.headers)
    runs: list[Run] = []
    found: Search | None = None
    interrupted = False
    try:
        found = _go(asked, plan, runs, line)
    except KeyboardInterrupt:
        interrupted = True
        runs += partial_run(plan, line)
    finally:
        line.wipe()
    sizes = peer.sizes_between(before, peer.metrics(plan.url, plan.headers))
    report = _report(asked, runs, found, sizes, interrupted)
    publish(asked, report)
    if interrupted:
        raise KeyboardInterrupt
    return holds(report, asked.max_errors)


def _go(asked: argparse.Namespace, plan: Plan, runs: list[Run], line: Line) -> Search | None:
    """Run what was asked; each run is in `runs` as soon as it is over."""
    if asked.sweep is not None:
        name, loads = asked.sweep
        for at, load in enumerate(loads, 1):
            line.label = f"{at} of {len(loads)}, {name} {load:,.6g}: "
            runs += sweep(plan, **{"rates" if name == "rate" else name: [load]}, progress=line)
    elif _searches(asked):
        found = search(plan, asked.slo, errors=asked.max_errors, progress=line)
        runs += found.runs
        return found
    else:
        runs.append(run(plan, line))
    return None


def _report(asked: argparse.Namespace, runs: list[Run], found: Search | None, sizes: Any, interrupted: bool) -> Report:
    if asked.sweep is not None:
        return Report("sweep", runs, sizes, interrupted=interrupted)
    if _searches(asked):
        best = None if found is None or found.best is None else runs.index(found.best)
        return Report("search", runs, sizes, asked.slo, best, found.limited_by if found else "", interrupted)
    held = bool(asked.slo and runs and runs[0].response.percentile(99) <= asked.slo)
    return Report("run", runs, sizes, asked.slo, 0 if held else None, interrupted=interrupted)


def holds(report: Report, errors: float) -> bool:
    """Whether there are answers, and no bound was missed. errors: the share that may fail.

    A sweep leads beyond what a service takes: of it one run is enough.
    """
    if report.slo is not None and report.best is None:
        return False
    right = [run.answered > 0 and failed_share(run) <= errors for run in report.runs]
    return all(right) and bool(right) if report.mode == "run" else any(right)


def partial_run(plan: Plan, line: Line) -> list[Run]:
    """What had come of a run that was stopped, as far as its seconds tell; none where not one was over."""
    slices = line.slices
    if not slices:
        return []
    found = Run(plan, slices=slices, seconds=slices[-1].at, answered=sum(each.answered for each in slices))
    for each in slices:
        found.errors += each.errors
        found.response.merge(each.response)
    found.sent = found.scheduled = found.answered + sum(found.errors.values())
    found.offered, found.rate = found.sent / found.seconds, found.answered / found.seconds
    return [found]


# ---- arguments


@contextmanager
def refusing() -> Iterator[None]:
    """What is wrong with the arguments, within, is said as that."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise argparse.ArgumentError(None, str(error)) from error


def _searches(asked: argparse.Namespace) -> bool:
    return asked.slo is not None and asked.rate is None and asked.connections is None and asked.sweep is None


def _check_modes(asked: argparse.Namespace) -> None:
    if asked.sweep is not None:
        beside = [f"--{name}" for name in ("rate", "connections", "slo") if getattr(asked, name) is not None]
        if asked.sweep[0] == "rate" and "--connections" in beside:
            beside.remove("--connections")  # how many there are at most
        if beside:
            raise ValueError(f"--sweep goes without {' and '.join(beside)}")
    is_open = asked.rate is not None or _searches(asked) or (asked.sweep is not None and asked.sweep[0] == "rate")
    if asked.arrivals == "poisson" and not is_open:
        raise ValueError("--arrivals is for a schedule: give --rate, too")


def _plan(asked: argparse.Namespace) -> Plan:
    seconds = asked.duration or (None if asked.requests else SECONDS)
    is_closed = asked.rate is None and not _searches(asked) and (asked.sweep is None or asked.sweep[0] != "rate")
    plan = Plan(
        url=asked.url,
        payloads=[Payload(b"")],  # until what a service says of itself has been asked for
        rate=asked.rate,
        connections=asked.connections or (max(64, asked.processes) if is_closed else None),
        arrivals=asked.arrivals,
        count=asked.requests,
        seconds=seconds,
        warmup=asked.warmup,
        processes=asked.processes,
        timeout=asked.timeout,
        headers=dict(asked.header),
    )
    return replace(plan, payloads=payloads_for(asked, plan.url, plan.headers))


def payloads_for(asked: argparse.Namespace, url: str, headers: Any) -> Sequence[Payload]:
    """What the arguments name, or, where they name nothing, what the service gives as its example.

    Raises ValueError where there is none.
    """
    found = [payload_of(_message(text, "--data")) for text in asked.data or ()]
    return found or _sampled(url, headers)


def _message(text: str | bytes, where: str) -> HttpMessage:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise ValueError(f'{where}: expected {{"data": [...]}}')
    return HttpMessage(**value)


def _sampled(url: str, headers: Any) -> list[Payload]:
    said = peer.ask(url, "/", headers)
    items = said.get("example") if isinstance(said, dict) else None
    if not items:
        raise ValueError(
            "the service gives no example: say what to send by --data, --json-file, --npy, --array, --lines"
        )
    return [payload_of(HttpMessage(data=[item])) for item in items]


# ---- output


def need_for(output: Sequence[Path]) -> None:
    """Raise ImportError now, not after the test, where a library is missing that a report needs."""
    if any(path.suffix == ".html" for path in output):
        library("matplotlib", "an HTML report", "loadtest")


def line_for(asked: argparse.Namespace) -> Line:
    logging.getLogger("virtex").addHandler(logging.NullHandler())  # or warnings that the report repeats would be here
    shown = not asked.quiet and (asked.progress or sys.stderr.isatty())
    return Line(sys.stderr if shown else None)


def publish(asked: argparse.Namespace, report: Report) -> None:
    """Print it, and write the files."""
    if not asked.quiet:
        print(as_table(report))
    for path in asked.output if report.runs else ():
        path.write_text(_as(path.suffix, report))
        if not asked.quiet:
            print(f"written: {path}")


def _as(ending: str, report: Report) -> str:
    if ending == ".html":
        from .document import as_html

        return as_html(report)
    return as_json(report) if ending == ".json" else as_csv(report)
