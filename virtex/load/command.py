"""What `virtex loadtest` does: its arguments become plans, their runs a report, the report text and files.

Rules: prints, and writes the files that were asked for. What can't be meant is argparse.ArgumentError, before anything
is sent.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from ..extras import library
from ..message import HttpMessage
from . import about
from .live import LiveLine
from .modes import Search, failed_share, holds_at, search
from .payloads import Payload, payloads_of
from .plan import Plan
from .report import Report, as_csv, as_json, as_table, load_of, number
from .run import Run, run

SECONDS = 10.0  # of a run, where nothing else is said


def loadtest(asked: argparse.Namespace) -> bool:
    """Test, report; gives whether the bounds were held. Raises KeyboardInterrupt once the partial report is out."""
    with refusing():
        _check_modes(asked)
        plan = _plan(asked)
    need_for(asked.output)
    line = line_for(asked)
    before = about.metrics(plan.url, plan.headers)
    runs: list[Run] = []
    found: Search | None = None
    interrupted = False
    try:
        found = _go(asked, plan, runs, line)
    except KeyboardInterrupt:
        interrupted = True
        runs += line.partial()
    finally:
        line.wipe()
    sizes = about.sizes_between(before, about.metrics(plan.url, plan.headers))
    report = _report(asked, runs, found, sizes, interrupted)
    publish(asked, report)
    if interrupted:
        raise KeyboardInterrupt
    return holds(report, asked.max_errors)


def _go(asked: argparse.Namespace, plan: Plan, runs: list[Run], line: LiveLine) -> Search | None:
    """Run what was asked; each run is in `runs` as soon as it is over."""

    def watched(plan: Plan, progress: Any = None) -> Run:
        line.begin(plan, "" if plan.rate == asked.rate and not asked.sweep else f"{number(load_of(plan))}: ")
        runs.append(run(plan, line))
        return runs[-1]

    if asked.sweep is not None:
        name, loads = asked.sweep
        for load in loads:
            watched(replace(plan, **{name: load}))
    elif _searches(asked):
        return search(plan, asked.slo, errors=asked.max_errors, runner=watched)
    else:
        watched(plan)
    return None


def _report(asked: argparse.Namespace, runs: list[Run], found: Search | None, sizes: Any, interrupted: bool) -> Report:
    if asked.sweep is not None:
        return Report("sweep", runs, sizes, interrupted=interrupted)
    held = [at for at, run in enumerate(runs) if asked.slo and holds_at(run, asked.slo, asked.max_errors)]
    if not _searches(asked):
        return Report("run", runs, sizes, asked.slo, held[0] if held else None, interrupted=interrupted)
    if found is not None:
        held = [at for at, run in enumerate(runs) if run is found.best]
    best = max(held, key=lambda at: load_of(runs[at].plan), default=None)
    return Report("search", runs, sizes, asked.slo, best, found.limited_by if found else "", interrupted)


def holds(report: Report, errors: float) -> bool:
    """Whether there are answers, and no bound was missed. errors: the share that may fail.

    A sweep leads beyond what a service takes: of it one run is enough.
    """
    if report.slo is not None and report.best is None:
        return False
    right = [run.answered > 0 and failed_share(run) <= errors for run in report.runs]
    return all(right) and bool(right) if report.mode == "run" else any(right)


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


def _has_schedule(asked: argparse.Namespace) -> bool:
    """Whether it is an open loop."""
    return asked.rate is not None or _searches(asked) or (asked.sweep is not None and asked.sweep[0] == "rate")


def _check_modes(asked: argparse.Namespace) -> None:
    if asked.sweep is not None:
        beside = [f"--{name}" for name in ("rate", "connections", "slo") if getattr(asked, name) is not None]
        if asked.sweep[0] == "rate" and "--connections" in beside:
            beside.remove("--connections")  # how many there are at most
        if beside:
            raise ValueError(f"--sweep goes without {' and '.join(beside)}")
    if asked.arrivals == "poisson" and not _has_schedule(asked):
        raise ValueError("--arrivals is for a schedule: give --rate, too")


def _plan(asked: argparse.Namespace) -> Plan:
    seconds = asked.duration or (None if asked.requests else SECONDS)
    plan = Plan(
        url=asked.url,
        payloads=[Payload(b"")],  # until what a service says of itself has been asked for
        rate=asked.rate,
        connections=asked.connections or (None if _has_schedule(asked) else max(64, asked.processes)),
        arrivals=asked.arrivals,
        count=asked.requests,
        seconds=seconds,
        warmup=asked.warmup,
        processes=asked.processes,
        timeout=asked.timeout,
        headers=dict(asked.header),
    )
    return replace(plan, payloads=payloads_for(asked, plan.url, plan.headers))


def payloads_for(asked: argparse.Namespace, url: str, headers: Mapping[str, str]) -> list[Payload]:
    """What the arguments name, or, where they name nothing, what the service gives as its example or declares.

    Raises ValueError where there is nothing.
    """
    sources = [_message(each) if each.lstrip().startswith("{") else each for each in asked.data or ()]
    return payloads_of(sources or _samples(url, headers), items=asked.items, binary=asked.binary)


def _message(text: str) -> HttpMessage:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"--data {text!r}: expected JSON: {error}") from None
    if "data" not in value:
        raise ValueError(f'--data {text!r}: expected a message, {{"data": [...]}}')
    return HttpMessage(**value)


def _samples(url: str, headers: Mapping[str, str]) -> list[HttpMessage] | str:
    answer = about.ask(url, "/", headers)
    said = answer if isinstance(answer, dict) else {}
    if said.get("example"):
        return [HttpMessage(data=[item]) for item in said["example"]]
    declared = said.get("inputs") or {}
    if declared.get("shape") is not None:  # of one array of a known shape; several are too long only where large
        return f"{declared['dtype']}:{','.join(map(str, declared['shape']))}"
    why = "" if said else " (nothing there answers GET / with JSON: does the service run?)"
    raise ValueError(f"{url} gives no example: say by --data what to send{why}")


# ---- output


def need_for(output: Sequence[Path]) -> None:
    """Raise ImportError now, not after the test, where a library is missing that a report needs."""
    if any(path.suffix == ".html" for path in output):
        library("matplotlib", "an HTML report", "loadtest")


def line_for(asked: argparse.Namespace) -> LiveLine:
    logging.getLogger("virtex").addHandler(logging.NullHandler())  # or warnings that the report repeats would be here
    shown = not asked.quiet and (asked.progress or sys.stderr.isatty())
    return LiveLine(sys.stderr if shown else None)


def publish(asked: argparse.Namespace, report: Report) -> None:
    """Print it, and write the files."""
    if not asked.quiet:
        print(as_table(report))
    if report.runs:
        write(asked, lambda ending: _as(ending, report))


def write(asked: argparse.Namespace, text_for: Callable[[str], str]) -> None:
    """Write each file that was asked for; one that can't be written costs no other. Raises OSError after the last."""
    failed = []
    for path in asked.output:
        try:
            path.write_text(text_for(path.suffix))
        except OSError as error:
            failed.append(f"{path}: {error.strerror}")
            continue
        if not asked.quiet:
            print(f"written: {path}")
    if failed:
        raise OSError(f"not written: {', '.join(failed)}")


def _as(ending: str, report: Report) -> str:
    if ending == ".html":
        from .document import as_html

        return as_html(report)
    return as_json(report) if ending == ".json" else as_csv(report)
