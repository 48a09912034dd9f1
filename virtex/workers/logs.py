"""gunicorn's log and Virtex's as one. Rules: knows loggers only."""

from __future__ import annotations

import logging


def join(error_log: logging.Logger, *others: logging.Logger) -> None:
    """Let --log-level, --error-logfile and --log-config rule what Virtex logs, as if "virtex" were below gunicorn's.

    Who gives "virtex" a level, handlers or propagate=False of its own has them: logconfig_dict, or the application.
    """
    ours = logging.getLogger("virtex")
    ours.parent = logging.root if ours.handlers else error_log
    ours.setLevel(ours.level)  # forget which levels were enabled under another parent
    for logger in (ours, error_log, *others):
        logger.disabled = False
