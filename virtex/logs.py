"""What the log holds: one line for a message, not every traceback, as text or JSON; and where it is seen by itself.

Rules: knows neither requests nor a clock of its own. The filter is the logger's, so it holds for whatever Virtex logs.
What a program has configured is left as it is: no handler is given to a logger, and none taken away.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

log = logging.getLogger("virtex")

TRACEBACK_SECONDS = 10
BURST_SECONDS = 10  # between two lines of a kind that may come by the thousand
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

    def log(self, error: BaseException, text: str, *args: object, **fields: object) -> None:
        """Log that something went wrong, as text % args, with the traceback of what was raised if it is due.

        fields: members of the line, where it is JSON.
        """
        left_out = self.left_out(error)
        more = f" (of {left_out} more the traceback was left out)" if left_out else ""
        log.error(text + "%s", *args, more, exc_info=None if left_out is None else error, extra=fields)

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


class Bursts:
    """Lines for what may come by the thousand: of each kind the first at once, then how many more there were.

    call_later: of the loop. One timer does for all kinds, and none runs while nothing comes.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._call_later = call_later
        self._kinds: dict[str, tuple[int, int, str, dict[str, Any]]] = {}  # how many were left out; of the last one
        self._timer: Any = None

    def tell(self, level: int, kind: str, text: str, fields: dict[str, Any]) -> None:
        """Log a line, unless its kind has had one just now: then it is counted. fields: members of a line of JSON."""
        if kind in self._kinds:
            self._kinds[kind] = self._kinds[kind][0] + 1, level, text, fields
            return
        self._kinds[kind] = 0, level, text, fields
        log.log(level, "%s", text, extra=fields)
        if self._timer is None:
            self._timer = self._call_later(BURST_SECONDS, self._on_timer)

    def end(self) -> None:
        """Say now how many more there were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._count()
        self._kinds.clear()

    def _on_timer(self) -> None:
        self._timer = None
        self._count()
        if self._kinds:
            self._timer = self._call_later(BURST_SECONDS, self._on_timer)

    def _count(self) -> None:
        """A line for each kind of which some were left out; the others are no bursts any more."""
        kinds, self._kinds = self._kinds, {}
        for kind, (more, level, text, fields) in kinds.items():
            if more:
                self._kinds[kind] = 0, level, text, fields
                log.log(level, "%d more of the kind, the last: %s", more, text, extra={**fields, "more": more})


log.addFilter(OneLine())


# --- how lines look ---------------------------------------------------------------------------------------------------

FORMS = ("text", "json")
TEXT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"  # as gunicorn's error log has it
DATE = "[%Y-%m-%d %H:%M:%S %z]"

# What every record has, and what others add for their own lines; the rest is what `extra` gave
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}


def event(to: Any, name: str, text: str, named: dict[str, Any], at: int = logging.INFO, /, **fields: Any) -> None:
    """Log something that happens seldom: `text; key=value key=value`, or, as JSON, with these members.

    to: a logger. name: the member `event`. named: members that the text has already. at: the level.
    """
    values = " ".join(f"{key}={_shown_value(value)}" for key, value in fields.items())
    to.log(at, "%s; %s" if values else "%s%s", text, values, extra={"event": name, **named, **fields})


def _shown_value(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    is_word = text.isprintable() and not set(text) & set(' "=')
    return text if text and is_word else json.dumps(text)


def check_form() -> None:
    """Raise ValueError where VIRTEX_LOG is neither "text" nor "json"."""
    form = os.environ.get("VIRTEX_LOG") or "text"
    if form not in FORMS:
        raise ValueError(f'VIRTEX_LOG={form!r}: expected "text" or "json"')


class Lines(logging.Formatter):
    """Writes a record as a line of JSON where that is wanted, else as another formatter does. text: the other one."""

    form: ClassVar[str | None] = None  # what http_server(log=) says; None: the environment's, which may change

    def __init__(self, text: logging.Formatter | None = None) -> None:
        super().__init__()
        self._text = text or logging.Formatter(TEXT, DATE)

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON, or what the other formatter makes of it."""
        if (Lines.form or os.environ.get("VIRTEX_LOG")) != "json":
            return self._text.format(record)
        return _as_json(self.members(record))

    def members(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a record says: time, level, logger, process, message, what `extra` gave, and the traceback."""
        members = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        given = {name: v for name, v in vars(record).items() if name not in _USUAL and name not in members}
        if record.exc_text or record.exc_info:
            given["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        if record.stack_info:
            given["stack"] = record.stack_info
        return members | given


def _as_json(members: dict[str, Any]) -> str:
    """One line of ASCII. What JSON has no word for is written as its text."""
    try:
        return json.dumps(members, default=str, allow_nan=False)
    except Exception:  # NaN, a circle, keys that are no text, what has no text
        return json.dumps({name: _plain(v) for name, v in members.items()})


def _plain(value: Any) -> str | int:
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 64):
        return value
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


# --- who sees them ----------------------------------------------------------------------------------------------------

_PLAIN = logging.lastResort  # Python's own, for records that no handler takes: WARNING and above, without time or level


def show(form: str | None) -> None:
    """Let whatever is logged be seen on stderr, from INFO on, or LOG_LEVEL, unless somebody configures logging.

    form: "text" or "json"; None: as VIRTEX_LOG says. Raises ValueError where that is neither.
    """
    check_form()
    Lines.form = form or Lines.form
    if logging.root.handlers or logging.lastResort is not _PLAIN:
        return
    levels = logging.getLevelNamesMapping()
    asked = os.environ.get("LOG_LEVEL", "INFO").upper()
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    lead(handler, levels.get(asked, logging.INFO))
    if asked not in levels:
        log.warning("LOG_LEVEL=%r: expected one of %s; it is INFO", asked, ", ".join(levels))


def lead(handler: logging.Handler, level: int) -> None:
    """Give records that no handler takes to this one, from that level on, unless the root's was set by another.

    The last resort, and no handler of the root logger: who configures logging later has it all, and no line twice.
    """
    global _led
    logging.lastResort = handler
    if logging.root.level in (logging.WARNING, _led):
        _led = level
        logging.root.setLevel(level)
    httpx2 = logging.getLogger("httpx2")
    if not httpx2.level:
        httpx2.setLevel(logging.WARNING)  # HttpClient's: it would log each request at INFO


_led = logging.WARNING  # the root's level, as it is by itself or as we set it
