"""How a worker leaves: told to or by itself, once somebody else serves, within graceful_timeout.

Rules: knows the scoreboard, gunicorn's settings and what listens. Signals come from the worker, which has the handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import time
from typing import Any

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]

from ..logs import event
from ..service.register import REGISTER
from ..wire.listener import Listener
from . import settings
from .grpc_port import GrpcPort
from .scoreboard import DRAINING, RESTARTING, Scoreboard
from .share import Share

SUCCESSOR_SECONDS = 0.1  # between looks for one
QUICK_SECONDS = 0.5  # for SIGINT and SIGQUIT
MARGIN_SECONDS = 1.0  # of graceful_timeout, kept for the application's shutdown; at its end gunicorn kills


class Leaving:
    """How one worker leaves.

    worker: gunicorn's, for its `alive`, which others clear too, its master, settings and log. begun: it is to leave.
    is_told: by a signal. is_quick: by one that waits for no answer.
    """

    def __init__(self, worker: Any, index: int, scoreboard: Scoreboard, share: Share) -> None:
        self._worker = worker
        self._index = index
        self._scoreboard = scoreboard
        self._share = share
        self.begun = asyncio.Event()
        self.is_told = self.is_quick = False
        self._hurried = asyncio.Event()
        self._said: set[str] = set()

    # --- why and when -----------------------------------------------------------------------------------------------

    def on_term(self) -> None:
        """SIGTERM, which gunicorn repeats."""
        self.is_told = True
        self.begun.set()

    def on_quit(self) -> None:
        """SIGINT or SIGQUIT."""
        if not self.is_quick:
            self.is_told = self.is_quick = True
            self._hurried.set()
            self._worker.cfg.worker_int(self._worker)
        self.begun.set()

    def look(self, taken: int) -> None:
        """Whether it is time to go. taken: requests since it was ready."""
        worker = self._worker
        if self._is_orphan():
            self._because("the master is gone: stopping")
        elif REGISTER.gone:
            self._because(REGISTER.gone)
        elif taken >= worker.max_requests:
            self._because(f"max_requests reached: {worker.max_requests} requests served")
        elif not worker.alive:  # the reloader says so
            self.begun.set()

    def _because(self, why: str) -> None:
        """Begin; the log says each reason once."""
        if why not in self._said:
            self._said.add(why)
            self._worker.log.info(why if self._is_free() else f"{why}; not acted on until a newer worker is ready")
        self.begun.set()

    async def wait_for_successor(self) -> None:
        """Serve on while nobody else would for a while, or only code that was never ready."""
        if self._is_free():
            return
        self._worker.log.info("worker %d serves on until a newer worker is ready", self._index)
        while not self._is_free():
            await asyncio.sleep(SUCCESSOR_SECONDS)

    def _is_free(self) -> bool:
        at_once = self.is_quick or not self._worker.alive or self._scoreboard.is_stopping() or self._is_orphan()
        return at_once or self._scoreboard.can_do_without(self._index)

    def _is_orphan(self) -> bool:
        return bool(os.getppid() != self._worker.ppid)

    # --- how --------------------------------------------------------------------------------------------------------

    async def drain(self, listener: Listener, grpc: GrpcPort, was_ready: bool = True) -> None:
        """Answer what was taken, for graceful_timeout at most, and shut the application down."""
        cfg, log = self._worker.cfg, self._worker.log
        self._worker.alive = False
        self._scoreboard.set_state(self._index, DRAINING if self.is_told else RESTARTING)
        self.arm_watchdog()
        grace = QUICK_SECONDS if self.is_quick else max(QUICK_SECONDS, cfg.graceful_timeout - MARGIN_SECONDS)
        connections = len(listener.connections.members)
        told = {"connections": connections, "seconds": grace, "by_signal": self.is_told}
        event(log, "worker_drain", f"worker index {self._index} drains", {"index": self._index}, **told)
        hands_over = was_ready and not self.is_quick and self._share.has_ready_sibling()
        delay = settings.drain_delay() if was_ready and not self.is_quick and not hands_over else 0.0
        draining = asyncio.ensure_future(_drain(listener, grpc, grace, delay, hands_over))
        hurrying = asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not draining.done():
            closing = [draining, *map(asyncio.ensure_future, (listener.close(), grpc.stop(0)))]
            await asyncio.wait(closing, timeout=QUICK_SECONDS)
        if draining.done() and draining.exception() is not None:
            log.warning("shutting the application down: %r", draining.exception())

    def arm_watchdog(self) -> None:
        """Leave in time even when a thread never returns: after a HUP gunicorn would wait for this process for ever."""
        with contextlib.suppress(Exception):  # stderr without a file behind it
            faulthandler.dump_traceback_later(self._worker.cfg.graceful_timeout + MARGIN_SECONDS, exit=True)

    def after_failure(self) -> None:
        """End the service if it never worked; else this process only, after a pause, for it is respawned at once."""
        worker, scoreboard = self._worker, self._scoreboard
        if not scoreboard.has_served():
            sys.exit(Arbiter.WORKER_BOOT_ERROR if scoreboard.may_end_service() else 1)
        pause = min(60, 2 ** scoreboard.count_failure())
        if scoreboard.is_proven():
            worker.log.error("worker %d did not start; another try in %d s", self._index, pause)
        else:
            worker.log.error("worker %d did not start; those from before the reload serve on", self._index)
        until = time.monotonic() + pause
        while worker.alive and time.monotonic() < until and not self._is_orphan():
            time.sleep(0.1)  # SIGTERM has its handler of gunicorn's again: it clears worker.alive
        sys.exit(1)


async def _drain(listener: Listener, grpc: GrpcPort, grace: float, delay: float, hands_over: bool) -> None:
    """The application is shut down once nobody has anything to ask of it, by HTTP or gRPC."""
    try:
        await asyncio.gather(listener.stop(grace, delay, hands_over), grpc.stop(grace, delay, hands_over))
    finally:
        await listener.drain()
