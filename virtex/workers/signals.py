"""Signals as the master and its workers see them. Rules: knows processes, nothing of what they serve."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn import version_info  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]

from ..metrics.board import is_alive


def watch_for_stop(mark_stop: Callable[[bool], None]) -> None:
    """Make the master's signal handlers call mark_stop() before they do anything else: all of its workers stop.

    What it gets is whether the master has another one as its successor, after SIGUSR2.

    gunicorn looks at a signal only when a reload is over, which takes up to graceful_timeout.
    """
    master = os.getpid()

    def watched(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
        def handle(sig: int, frame: Any) -> Any:
            if os.getpid() == master:  # and not a worker that has just been forked
                arbiter = getattr(handler, "__self__", None)
                mark_stop(bool(getattr(arbiter, "reexec_pid", 0)))
            return handler(sig, frame)

        return handle

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, watched(handler))


def spare_orphans(cfg: Any) -> None:
    """Have the master, which is about to fork, live on when a child that is no worker exits with code 3 or 4.

    The first process of a container gets whatever a library has left behind, and gunicorn before 27 takes these codes
    of any child for those of a worker that can't start.
    """
    if version_info >= (27,):
        return
    when_ready = cfg.when_ready

    def begin(arbiter: Any) -> None:
        when_ready(arbiter)
        reap = arbiter.reap_workers

        def reap_workers() -> None:
            while True:
                try:
                    reap()
                    return
                except HaltServer:
                    if not all(map(is_alive, arbiter.WORKERS)):  # it is one of them that was reaped
                        raise

        arbiter.reap_workers = reap_workers

    cfg.set("when_ready", begin)


def trace_to(streams: Iterable[Any]) -> None:
    """Let SIGABRT write where every thread stands: to the first of the streams that has a file, or to stderr."""
    for stream in (*streams, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):  # no file behind it
            faulthandler.enable(stream)
            return
