"""The line that a long run shows while it lasts: how fast, how slow, how wrong, in the last second.

Rules: writes to a terminal, by carriage returns, and wipes what it wrote.
"""

from __future__ import annotations

from typing import TextIO

from .plan import Plan
from .record import Slice
from .report import milliseconds
from .run import Run

WIPE = "\r\x1b[K"  # to the start of the line, and clear to its end: ECMA-48 8.3.41, EL


class LiveLine:
    """One line of a terminal; called with each second of a run. out: None shows nothing."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._label = ""
        self._plan: Plan | None = None
        self._slices: list[Slice] = []

    def begin(self, plan: Plan, label: str = "") -> None:
        """Another run. label: what stands ahead of its figures."""
        self._plan, self._label, self._slices = plan, label, []

    def __call__(self, second: Slice) -> None:
        before = self._slices[-1].at if self._slices else 0.0
        self._slices.append(second)
        self.show(line_of(second, second.at - before))

    def show(self, text: str) -> None:
        """Put this in the line."""
        self._write(f"{WIPE}{self._label}{text}")

    def wipe(self) -> None:
        """Leave nothing."""
        self._write(WIPE)

    def _write(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()

    def partial(self) -> list[Run]:
        """The present run as far as its seconds tell, if it has some: what is there of one that was stopped."""
        slices = self._slices
        if self._plan is None or not slices:
            return []
        found = Run(self._plan, slices=slices, seconds=slices[-1].at, answered=sum(each.answered for each in slices))
        for each in slices:
            found.errors += each.errors
            found.response.merge(each.response)
        found.sent = found.scheduled = found.answered + sum(found.errors.values())
        found.offered, found.rate = found.sent / found.seconds, found.answered / found.seconds
        return [found]


def line_of(second: Slice, seconds: float) -> str:
    """One second of a run: its end, its rate, its median and p99, its errors. seconds: how long it lasted."""
    p50, p99 = (milliseconds(second.response.percentile(q)) for q in (50, 99))
    rate = second.answered / seconds if seconds > 0 else 0.0
    errors = sum(second.errors.values())
    return f"{second.at:5.0f} s  {rate:,.0f}/s  p50 {p50} ms  p99 {p99} ms  errors {errors:,}"
