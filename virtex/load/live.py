"""The line that a long run shows while it lasts: how fast, how slow, how wrong, in the last second.

Rules: writes to a terminal, by carriage returns, and wipes what it wrote.
"""

from __future__ import annotations

from typing import TextIO

from .record import Slice
from .report import milliseconds

WIPE = "\r\x1b[K"  # to the start of the line, and clear to its end: ECMA-48 8.3.41, EL


class Line:
    """One line of a terminal. label: what stands ahead of the figures. slices: the seconds of the present run so far.

    Call it with each second of a run. out: None shows nothing.
    """

    def __init__(self, out: TextIO | None) -> None:
        self.label = ""
        self.slices: list[Slice] = []
        self._out = out

    def __call__(self, second: Slice) -> None:
        before = self.slices[-1].at if self.slices else 0.0
        if second.at <= before:  # of another run
            self.slices, before = [], 0.0
        self.slices.append(second)
        self.show(line_of(second, second.at - before))

    def show(self, text: str) -> None:
        """Put this in the line."""
        if self._out is not None:
            self._out.write(f"{WIPE}{self.label}{text}")
            self._out.flush()

    def wipe(self) -> None:
        """Leave nothing."""
        if self._out is not None:
            self._out.write(WIPE)
            self._out.flush()


def line_of(second: Slice, seconds: float) -> str:
    """One second of a run: its end, its rate, its median and p99, its errors. seconds: how long it lasted."""
    p50, p99 = (milliseconds(second.response.percentile(q)) for q in (50, 99))
    rate = second.answered / seconds if seconds else 0.0
    errors = sum(second.errors.values())
    return f"{second.at:5.0f} s  {rate:,.0f}/s  p50 {p50} ms  p99 {p99} ms  errors {errors:,}"
