"""Metrics to a Pushgateway: by one process for all its siblings, on a thread of its own.

Rules: knows threads, locks, and what a push costs; what is pushed is exposition's. The lowest ready worker
pushes. While it does, no sibling does. Each of them pushes once more when it ends, if the last push did not say it all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any

from prometheus_client.exposition import default_handler, delete_from_gateway, push_to_gateway

from .board import Board, here
from .exposition import Ours, registry_of
from .totals import leads, workers

log = logging.getLogger("virtex")

SHARE = 100  # a push that took so long is followed by a pause of so many times that: 1 % of a core
LOOK_SECONDS = 0.25  # between two looks of a process that does not lead
PUSH_SECONDS = 3.0  # that a gateway may take
DOWN_SECONDS = 60.0  # between two tries while it does not answer, at most


class Push:
    """What one process does that a service's metrics are pushed.

    url: of the gateway. interval: seconds between two pushes, at least. names: as Ours has them. deletes: when the last
    process ends, the group is deleted. cost: the clock that says what a push costs this thread.
    """

    def __init__(
        self,
        url: str,
        interval: float,
        names: dict[str, bool],
        deletes: bool = False,
        board: Board | None = None,
        cost: Callable[[], float] = time.thread_time,
    ) -> None:
        self._board = board or here()
        (self._name,) = names
        self._url = url
        self._interval = interval
        self._deletes = deletes
        self._cost = cost
        self._registry = registry_of(Ours(names, self._board))
        self._lock = f"push {self._name}"
        self._presence = f"present {self._name}"
        self._group = {"instance": f"{socket.gethostname()}:{self._board.master}"}
        self._down = 0.0  # seconds of the latest pause after a failure; 0 while pushes succeed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"virtex push {self._name}", daemon=True)

    def start(self) -> None:
        """Push from now on."""
        self._board.locks.join(self._presence)
        self._thread.start()

    def stop(self) -> None:
        """Push for the last time, or delete what was pushed. Waits for it, as long as the gateway lets it."""
        self._stopping.set()
        self._thread.join()
        locks = self._board.locks
        if not locks.wait(self._lock, PUSH_SECONDS):
            log.warning("the last metrics of %r were not pushed: a sibling's push takes too long", self._name)
            return
        try:
            is_last = locks.leave_as_last(self._presence) and not self._has_successor()
            self._try(self._delete if self._deletes and is_last else self._push)
        finally:
            locks.leave(self._lock)

    def _has_successor(self) -> bool:
        return any(worker.pid == os.getpid() and worker.state == "restarting" for worker in workers(self._board))

    def _run(self) -> None:
        pause = self._interval
        while not self._stopping.wait(pause):
            pause = self.tick() if leads(self._board) else max(self._interval, LOOK_SECONDS)

    def tick(self) -> float:
        """Push, if there is something new; returns for how many seconds to leave it then."""
        if not self._board.locks.take(self._lock):
            return max(self._interval, LOOK_SECONDS)
        begun = self._cost()
        try:
            self._try(self._push)
        finally:
            self._board.locks.leave(self._lock)
        return max(self._interval, SHARE * (self._cost() - begun), self._down)

    def _try(self, what: Callable[[], None]) -> None:
        """A failure is a line in the log, the first of several; it is a reason to wait, longer each time."""
        try:
            what()
        except Exception as error:  # of a URL, a proxy, the gateway's answer
            if not self._down:
                log.warning(
                    "metrics of %r were not pushed to %s: %s; tried again", self._name, self._url, _reason(error)
                )
            self._down = min(DOWN_SECONDS, max(1.0, 2 * self._down))
        else:
            if self._down:
                log.info("metrics of %r are pushed to %s again", self._name, self._url)
            self._down = 0.0

    def _push(self) -> None:
        push_to_gateway(self._url, self._name, self._registry, self._group, PUSH_SECONDS, self._send)

    def _delete(self) -> None:
        delete_from_gateway(self._url, self._name, self._group, PUSH_SECONDS)
        self._board.locks.write(self._lock, b"")

    def _send(self, url: str, method: str, timeout: float | None, headers: Any, data: bytes) -> Callable[[], None]:
        """Called by push_to_gateway() with the text: it need not go where the gateway has it."""
        note = hashlib.blake2b(data, digest_size=8).hexdigest().encode()

        def send() -> None:
            if note != self._board.locks.note(self._lock):
                default_handler(url, method, timeout, headers, data)()
                self._board.locks.write(self._lock, note)

        return send


def _reason(error: Exception) -> str:
    """What went wrong, with what the gateway says of it."""
    said = error.read(300).decode("utf-8", "replace") if isinstance(error, urllib.error.HTTPError) else ""
    return f"{type(error).__name__}: {error}" + (f": {said.strip()}" if said else "")
