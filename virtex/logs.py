"""What the log may hold: a message is one line whoever wrote its text, and not every request brings its traceback.

Rules: knows neither requests nor a clock of its own. The filter is the logger's, so it holds for whatever Virtex logs.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator

log = logging.getLogger("virtex")

TRACEBACK_SECONDS = 10
MOST_KINDS = 256  # of errors that are remembered
LONGEST = 8192  # characters of one text: an exception may quote a whole body

# What Python itself writes between the tracebacks of exceptions; of several lines, as no line of a note is.
_CHAINS = (
    "\nThe above exception was the direct cause of the following exception:\n\n",
    "\nDuring handling of the above exception, another exception occurred:\n\n",
)


class OneLine(logging.Filter):
    """Escapes what is not printable in a message and in the text of an exception: a client may have sent it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything pass, changed where it has to be."""
        try:
            message = record.getMessage()
        except Exception:
            return True  # logging says what is wrong with it when it is written
        if not message.isprintable() or len(message) > LONGEST:
            record.msg, record.args = printable(message), None
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not record.exc_text:
            pieces = traceback.format_exception(error)
            lines = list(_lines(pieces))
            if lines != pieces:  # else it is left to the formatter
                record.exc_text = "".join(lines).rstrip("\n")
        return True


def printable(text: str) -> str:
    """The text with escapes for line breaks, terminal controls and the like, and cut where it is very long."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text)} characters)"
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _lines(pieces: list[str]) -> Iterator[str]:
    """The pieces of a traceback, so that only what Python wrote begins a line."""
    named = False
    for piece in pieces:
        if piece in _CHAINS or (not named and piece.startswith(("  ", "Traceback ("))):
            named = False
            yield "\n".join(map(printable, piece.split("\n")))
        else:  # the exception's name and text, then its notes
            yield ("  " if named else "") + printable(piece.removesuffix("\n")) + "\n"
            named = True


class Tracebacks:
    """Which tracebacks are worth their time, 350 us, and their lines: of each kind of error one in so many seconds.

    A kind is a type and the line that raised. clock: nanoseconds.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._kinds: dict[tuple[type, str, int], tuple[int, int]] = {}  # when the next one is due, how many were not

    def log(self, error: BaseException, text: str, *args: object) -> None:
        """Log that something went wrong, as text % args, with the traceback of what was raised if it is due."""
        left_out = self.left_out(error)
        more = f" (of {left_out} more the traceback was left out)" if left_out else ""
        log.error(text + "%s", *args, more, exc_info=None if left_out is None else error)

    def left_out(self, error: BaseException) -> int | None:
        """How many of its kind were left out since the last one; None: leave it out, too."""
        kind = _kind(error)
        now = self._clock()
        due, count = self._kinds.get(kind, (now, 0))
        if now < due:
            self._kinds[kind] = due, count + 1
            return None
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now + TRACEBACK_SECONDS * 1_000_000_000, 0
        return count


def _kind(error: BaseException) -> tuple[type, str, int]:
    at = error.__traceback__
    if at is None:
        return type(error), "", 0
    while at.tb_next is not None:
        at = at.tb_next
    return type(error), at.tb_frame.f_code.co_filename, at.tb_lineno


log.addFilter(OneLine())
