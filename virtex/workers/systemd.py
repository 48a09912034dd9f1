"""What systemd is told of a service (sd_notify(3)): ready, reloading, stopping; and that gunicorn's master turns.

Rules: runs in gunicorn's master; knows its loop and the scoreboard, nothing of what is served. Without systemd, nothing
is done.

gunicorn says READY=1 when it listens, while the models may take minutes yet. So what systemd has put into the
environment is taken from there before gunicorn looks; workers, and what they start, don't see it either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from gunicorn import systemd  # type: ignore[import-untyped]

from .scoreboard import Scoreboard

LEAST_WATCHDOG_SECONDS = 4.0  # the master's loop turns once a second, and forks meanwhile


class Told:
    """What systemd has to be told next, by what the scoreboard says. watchdog: ns between two signs of life; 0: none.

    A start is over when one worker is ready, for the service answers then. So is a reload; or when one of the new
    workers has failed, for those from before go on. A sign of life says that the master's loop turns: it is what
    replaces workers that died or hang. It asks nothing of the workers: they may load for as long as they need.
    """

    def __init__(self, watchdog: int = 0) -> None:
        self._watchdog = watchdog
        self._ping_at = 0
        self._generation = self._failures = 0
        self._is_ready = self._is_stopping = False
        self._status = ""

    def next(self, board: Scoreboard, now: int) -> list[str]:
        """The messages that are due, in their order. now: ns, monotonic."""
        due = self._changes(board, now)
        status = _status(board)
        if status != self._status:
            self._status = status
            due.append(f"STATUS={status}")
        if self._watchdog and now >= self._ping_at:
            self._ping_at = now + self._watchdog // 4
            due.append("WATCHDOG=1")
        return due

    def _changes(self, board: Scoreboard, now: int) -> list[str]:
        if self._is_stopping:
            return []
        if board.is_stopping():
            self._is_stopping = True
            return ["STOPPING=1"]
        due = []
        if self._is_ready and board.newest > self._generation:
            self._is_ready, self._failures = False, board.failures
            due.append(f"RELOADING=1\nMONOTONIC_USEC={now // 1000}")
        self._generation = board.newest
        has_failed = board.has_served() and board.failures > self._failures
        if not self._is_ready and (board.is_proven() or has_failed):
            self._is_ready = True
            due.append("READY=1")
        return due


def _status(board: Scoreboard) -> str:
    """One line for `systemctl status`."""
    states = [worker.state for worker in board.roster()]
    text = f"{states.count('ready')} of {len(states)} workers are ready"
    return text if board.is_proven() or not board.has_served() else f"{text}, none of the newest code"


_taken: dict[str, str] = {}  # from the environment


def take() -> None:
    """Take out of the environment what systemd has put there for this process."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        if name in os.environ:
            _taken[name] = os.environ.pop(name)
    if systemd.listen_fds(unset_environment=False):
        _taken["LISTEN_FDS"] = os.environ["LISTEN_FDS"]


def gave_sockets() -> bool:
    """Whether systemd gave this process sockets to listen on."""
    return "LISTEN_FDS" in _taken


def report(cfg: Any, scoreboard: Callable[[], Scoreboard | None], clock: Callable[[], float] = time.monotonic) -> None:
    """Have the master, which is about to fork, tell systemd how the service does.

    scoreboard: called at each turn. clock: seconds of CLOCK_MONOTONIC, which systemd compares with its own.

    Raises ValueError for a setting, or a watchdog, that can't be honoured.
    """
    if cfg.reuse_port and gave_sockets():
        raise ValueError("reuse_port: each worker would open a socket of its own, beside those that systemd gave")
    watchdog = _watchdog()
    if "NOTIFY_SOCKET" not in _taken:
        return
    told, when_ready = Told(watchdog), cfg.when_ready

    def begin(arbiter: Any) -> None:
        when_ready(arbiter)

        def turn() -> None:
            board = scoreboard()
            for message in told.next(board, round(clock() * 1e9)) if board is not None else ():
                os.environ["NOTIFY_SOCKET"] = _taken["NOTIFY_SOCKET"]
                systemd.sd_notify(message, arbiter.log, unset_environment=True)

        # The first is called at each turn of the loop, the second in the midst of a reload, and of a stop.
        arbiter.murder_workers = _then(arbiter.murder_workers, turn)
        arbiter.reap_workers = _then(arbiter.reap_workers, turn)

    cfg.set("when_ready", begin)


def _watchdog() -> int:
    """How many ns systemd waits for a sign of life of this process; 0: it does not."""
    microseconds = int(_taken.get("WATCHDOG_USEC", "0"))
    if _taken.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    if 0 < microseconds < LEAST_WATCHDOG_SECONDS * 1e6:
        least, got = LEAST_WATCHDOG_SECONDS, microseconds / 1e6
        raise ValueError(
            f"WatchdogSec={got:g}: expected {least:g} s or more, for gunicorn's master turns once a second"
        )
    return microseconds * 1000


def _then(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both
