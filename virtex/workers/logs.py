"""gunicorn's log, Virtex's and everybody's as one. Rules: knows loggers only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..logs import Lines, lead


def _unescaped(text: str) -> str:
    return text.replace('\\"', '"')  # SafeAtoms escapes them for a line in quotes


_MEMBERS: dict[str, tuple[str, Callable[[str], Any]]] = {  # of a line of JSON: the atom of gunicorn's, and its type
    "client": ("h", str),
    "method": ("m", str),
    "path": ("U", _unescaped),
    "query": ("q", _unescaped),
    "protocol": ("H", str),
    "status": ("s", int),
    "bytes": ("B", int),
    "seconds": ("L", float),
    "referer": ("f", _unescaped),
    "agent": ("a", _unescaped),
    "request_id": ("{x-request-id}o", str),
    "items": ("{virtex.items}e", int),
    "queue_wait": ("{virtex.queue_wait}e", float),
    "batch_size": ("{virtex.batch_size}e", int),
}


class ErrorLog(logging.Handler):
    """Passes records on to whoever handles gunicorn's error log at that time: a reload may change that."""

    def __init__(self, error_log: logging.Logger) -> None:
        super().__init__()
        self._log = error_log

    def handle(self, record: logging.LogRecord) -> bool:
        """Let each handler have it that takes its level."""
        for handler in self._log.handlers:
            if record.levelno >= handler.level:
                handler.handle(record)
        return True


def lead_to(error_log: logging.Logger) -> None:
    """Let --log-level and --error-logfile rule what anybody logs where nobody configured logging; JSON, if wanted.

    Called once in each process, ahead of the application: what that sets stays.
    """
    shape(error_log, Lines)
    if not logging.root.handlers and error_log.level:
        lead(ErrorLog(error_log), error_log.level)


def shape(log: logging.Logger, lines: type[Lines]) -> None:
    """Let gunicorn's own handlers of a log write these lines: JSON where it is wanted, else as they did."""
    for handler in log.handlers:
        is_own = getattr(handler, "_gunicorn", False) and isinstance(handler, logging.StreamHandler)  # no syslog
        if is_own and not isinstance(handler.formatter, Lines):
            handler.setFormatter(lines(handler.formatter))


class AccessLines(Lines):
    """Those of the access log."""

    def members(self, record: logging.LogRecord) -> dict[str, Any]:
        """What gunicorn's atoms say; those that say nothing are left out."""
        atoms = record.args if isinstance(record.args, Mapping) else {}
        members = super().members(record)
        del members["message"]
        members["event"] = "request"
        for name, (atom, kind) in _MEMBERS.items():
            said = str(atoms.get(atom, "-"))
            if said not in ("-", "", "None"):
                members[name] = kind(said)
        return members


def join(error_log: logging.Logger, *others: logging.Logger) -> None:
    """Let --log-level, --error-logfile and --log-config rule what Virtex logs, as if "virtex" were below gunicorn's.

    Who gives "virtex" a level, handlers or propagate=False of its own has them: logconfig_dict, or the application.
    """
    ours = logging.getLogger("virtex")
    ours.parent = logging.root if ours.handlers else error_log
    ours.setLevel(ours.level)  # forget which levels were enabled under another parent
    for logger in (ours, error_log, *others):
        logger.disabled = False
