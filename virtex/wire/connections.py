"""What the connections of one server share: who they are, their clocks, the heads of replies.

One object belongs to one event loop and is touched by its thread only. There is no timer per request or connection: a
connection keeps the time at which its present wait began and says, when asked, until when it may wait; `watch` books
that question into the second in which it is due. A connection that is answered again and again is so asked once per
keep-alive time, not once per request, and ten thousand idle ones cost nothing but those questions.

Rules: knows a connection as a Member, and no transport.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..limits import Limits
from ..service.seam import NEVER, Budget, Head, Service
from .grammar import Header
from .replies import Heads
from .waiting import SECOND, Waiting, nanoseconds

log = logging.getLogger("virtex")

TICK_SECONDS = 1.0  # grain of every clock of a connection
DRAIN_TICK_SECONDS = 0.05


class Ends(NamedTuple):
    """The two ends of a connection. client: None on a unix socket, whose path is then server[0]. tls: it is spoken."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    tls: bool


class Member(Protocol):
    """A connection, as the others' common object knows it."""

    waiting: Waiting

    def check_clock(self, now: int) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


AccessLog = Callable[[Ends, Head, int, int, int, bytes, Any], None]


class Connections:
    """The open connections of one server, for one service on one loop.

    limits: by default those of the service. clock: nanoseconds, monotonic.
    """

    def __init__(
        self,
        service: Service,
        *,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.service = service
        self.limits: Limits = limits or service.limits
        self.clock = clock
        self.keep_alive = nanoseconds(self.limits.keep_alive_seconds)
        self.loop = loop
        self.budget: Budget = service.budget  # of all
        # while serving
        self.members: set[Member] = set()
        self.heads_taken = 0  # for max_requests
        self.draining = False
        self.closing = False  # every reply is its connection's last; so while draining, or without keep-alive
        self.drain_since = NEVER
        self.cut_off = False
        self.access: AccessLog | None = None  # gets status, bytes of the body, ns, id; None: nobody reads it
        self.root_path = ""  # a prefix of paths that is not the application's business
        self.secure: Callable[[Any, list[Header]], bool] | None = None  # whether a proxy that is trusted says https
        self.changed: asyncio.Event | None = None  # set when the last connection leaves
        # clocks
        self._due: dict[int, set[Member]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.heads = Heads()

    def add(self, connection: Member) -> bool:
        """Count a connection in; False when it is one too many."""
        self.members.add(connection)
        if self._timer is None:
            self._start_timer()
        return len(self.members) <= self.limits.connections

    def remove(self, connection: Member) -> None:
        self.members.discard(connection)
        self._forget(connection)  # or a closed connection would be kept until its time has come
        if not self.members and self.changed is not None:
            self.changed.set()

    # --- clocks -----------------------------------------------------------------------------------------------

    def watch(self, connection: Member, deadline: int) -> None:
        """Ask `connection` at `deadline`, and no later than the next tick after it, how long it may still wait."""
        if deadline >= connection.waiting.watched_until:
            return  # it is asked sooner than that anyway, and asked again then
        self._forget(connection)
        connection.waiting.watched_until = deadline
        self._due.setdefault(deadline // SECOND, set()).add(connection)

    def _forget(self, connection: Member) -> None:
        booked = self._due.get(connection.waiting.watched_until // SECOND)
        if booked is not None:
            booked.discard(connection)

    def tick(self) -> None:
        """Ask every connection whose time has come. Costs the number of those, and of the seconds that are booked."""
        now = self.clock()
        for second in [second for second in self._due if second * SECOND <= now]:
            for connection in self._due.pop(second):
                connection.waiting.watched_until = NEVER
                try:
                    connection.check_clock(now)
                except Exception:
                    log.exception("a connection's clock could not be read; it is lost, and no other")
                    connection.abort()

    def _start_timer(self) -> None:
        loop = self.loop or asyncio.get_running_loop()
        delay = DRAIN_TICK_SECONDS if self.draining else TICK_SECONDS
        self._timer = loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tick()
        if self.members:
            self._start_timer()

    # --- draining ---------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """From now on every reply says `Connection: close`; connections at rest are let go. Idempotent."""
        if self.draining:
            return
        self.draining = self.closing = True
        self.drain_since = self.clock()
        for connection in list(self.members):
            connection.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._start_timer()

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no connection is open; False when `seconds` were not enough."""
        if not self.members:
            return True
        self.changed = asyncio.Event()
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """Break every connection off: the time is over in which they were to end."""
        self.cut_off = True
        for connection in list(self.members):
            connection.abort()
