"""Signals as the master and its workers see them. Rules: knows processes, nothing of what they serve."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any


def watch_for_stop(mark_stop: Callable[[], None]) -> None:
    """Make the master's signal handlers call mark_stop() before they do anything else: the whole service stops.

    gunicorn looks at a signal only when a reload is over, which takes up to graceful_timeout.
    """
    master = os.getpid()

    def watched(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
        def handle(sig: int, frame: Any) -> Any:
            if os.getpid() == master:  # and not a worker that has just been forked
                mark_stop()
            return handler(sig, frame)

        return handle

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, watched(handler))


def trace_to(streams: Iterable[Any]) -> None:
    """Let SIGABRT write where every thread stands: to the first of the streams that has a file, or to stderr."""
    for stream in (*streams, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):  # no file behind it
            faulthandler.enable(stream)
            return
