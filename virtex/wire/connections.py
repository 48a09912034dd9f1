"""What the connections of one server share: who they are, their clocks, the date, the heads of replies.

One object belongs to one event loop and is touched by its thread only. There is no timer per request or connection: a
connection keeps the time at which its present wait began and says, when asked, until when it may wait; `watch` books
that question into the second in which it is due. A connection that is answered again and again is so asked once per
keep-alive time, not once per request, and ten thousand idle ones cost nothing but those questions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..limits import Limits
from ..logs import Tracebacks
from ..service.seam import Budget, Service
from .grammar import Header, has_body, render_head

if TYPE_CHECKING:
    from .answers import Turn, Writer
    from .asgi_host import Start

log = logging.getLogger("virtex")

SECOND = 1_000_000_000  # ns
NEVER = 1 << 62
TICK_SECONDS = 1.0  # grain of every clock of a connection
DRAIN_TICK_SECONDS = 0.05
HEADS_KEPT = 256  # of distinct statuses and header tuples within a second; more are rendered each time

# Here, for where a .pxd makes them numbers of C, Python does not see them.
FIRST_BYTE, NEXT_HEAD, REST_OF_HEAD, BODY, END = range(5)  # what a connection waits for
HEAD, COUNTED, CHUNKED, UNWANTED, TRAILING, NOTHING = range(6)  # what it takes the bytes that come for
KEEP, CLOSE, KEEP_1_0 = range(3)  # what a reply says of its connection
CONNECTION = (b"", b"connection: close\r\n", b"connection: keep-alive\r\n")  # HTTP/1.0 is told that it may go on


def nanoseconds(seconds: float) -> int:
    """The clock's unit; what is too long for 64 bits is as good as never."""
    return int(min(seconds * SECOND, NEVER))


AccessLog = Callable[["Writer", "Turn", int, int, int], None]


class Connections:
    """The open connections of one server, for one application on one loop.

    limits: by default those of a `Server`. clock: nanoseconds, monotonic.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.app = app
        self.direct = isinstance(app, Service)
        self.limits: Limits = limits or (app.limits if self.direct else Limits())
        self.clock = clock
        self.loop = loop
        self.tracebacks = Tracebacks(clock)
        self.budget: Budget = app.budget if self.direct else Budget(self.limits.max_bytes)
        # while serving
        self.open: set[Writer] = set()
        self.requests = 0  # heads taken, for max_requests
        self.draining = False
        self.closing = False  # every reply is its connection's last; so while draining, or without keep-alive
        self.drain_since = NEVER
        self.access: AccessLog | None = None  # status, body bytes, ns; None: nobody reads it
        self.state: dict[str, Any] = {}  # ASGI lifespan's
        self.root_path = ""  # a prefix of paths that is not the application's business
        self.secure: Callable[[Any, list[Header]], bool] | None = None  # whether a proxy that is trusted says https
        self.changed: asyncio.Event | None = None  # set when the last connection leaves
        # clocks
        self._due: dict[int, set[Writer]] = {}
        self._timer: asyncio.TimerHandle | None = None
        # the date and the heads that carry it
        self._heads: dict[tuple[int, tuple[Header, ...], int] | Start, bytes] = {}
        self._heads_until = 0

    def add(self, connection: Writer) -> bool:
        """Count a connection in; False when it is one too many."""
        self.open.add(connection)
        if self._timer is None:
            self._start_timer()
        return len(self.open) <= self.limits.connections

    def remove(self, connection: Writer) -> None:
        self.open.discard(connection)
        self._forget(connection)  # or a closed connection would be kept until its time has come
        if not self.open and self.changed is not None:
            self.changed.set()

    # --- clocks -----------------------------------------------------------------------------------------------

    def watch(self, connection: Writer, deadline: int) -> None:
        """Ask `connection` at `deadline`, and no later than the next tick after it, how long it may still wait."""
        if deadline >= connection.watched_until:
            return  # it is asked sooner than that anyway, and asked again then
        self._forget(connection)
        connection.watched_until = deadline
        self._due.setdefault(deadline // SECOND, set()).add(connection)

    def _forget(self, connection: Writer) -> None:
        booked = self._due.get(connection.watched_until // SECOND)
        if booked is not None:
            booked.discard(connection)

    def tick(self) -> None:
        """Ask every connection whose time has come. Costs the number of those, and of the seconds that are booked."""
        now = self.clock()
        for second in [second for second in self._due if second * SECOND <= now]:
            for connection in self._due.pop(second):
                connection.watched_until = NEVER
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
        if self.open:
            self._start_timer()

    # --- draining ---------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """From now on every reply says `Connection: close`; connections at rest are let go. Idempotent."""
        if self.draining:
            return
        self.draining = self.closing = True
        self.drain_since = self.clock()
        self._heads.clear()
        for connection in list(self.open):
            connection.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._start_timer()

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no connection is open; False when `seconds` were not enough."""
        if not self.open:
            return True
        self.changed = asyncio.Event()
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        for connection in list(self.open):
            connection.abort()

    # --- heads of replies ---------------------------------------------------------------------------------------

    def head(self, status: int, headers: tuple[Header, ...], connection: int, now: int) -> bytes:
        """A reply's head, up to the value of its content-length (or whole, where the status has no body).

        Rendered once per second and kind of reply, so that a request costs one look into a dict.
        """
        if now >= self._heads_until:
            self._turn_second(now)
        key = (status, headers, connection)
        head = self._heads.get(key)
        if head is None:
            lines = b"date: %b\r\nserver: virtex\r\n%b" % (self._date, CONNECTION[connection])
            head = render_head(status, headers, lines)
            head += b"content-length: " if has_body(status) else b"\r\n"
            if len(self._heads) < HEADS_KEPT:
                self._heads[key] = head
        return head

    def asgi_head(self, start: Start, last: bool, minor: int, counted: bool, now: int) -> bytes:
        """The head of an ASGI application's answer, with what it leaves to us, up to where its body's end is told."""
        if now >= self._heads_until:
            self._turn_second(now)
        if not last and minor and counted:
            head = self._heads.get(start)
            if head is not None:
                return head
        date = b"" if b"date" in start.names else b"date: %b\r\n" % self._date
        server = b"" if b"server" in start.names else b"server: virtex\r\n"
        head = start.lines + date + server + CONNECTION[CLOSE if last else KEEP if minor else KEEP_1_0]
        if counted:
            head += b"content-length: "
            if not last and minor and len(self._heads) < HEADS_KEPT:
                self._heads[start] = head
        return head

    def _turn_second(self, now: int) -> None:
        wall = time.time()
        self._date = formatdate(wall, usegmt=True).encode()  # RFC 9110 section 5.6.7, IMF-fixdate
        self._heads.clear()
        self._heads_until = now + int((1 - wall % 1) * SECOND)


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[int, int], Connections]] = WeakKeyDictionary()


def shared_by(
    app: Any, limits: Limits | None, clock: Callable[[], int], loop: asyncio.AbstractEventLoop | None
) -> Connections:
    """The one object of an app on a loop; it keeps the app alive, so the id stays the app's."""
    of_loop = _SHARED.setdefault(loop or asyncio.get_running_loop(), {})
    key = id(app), id(limits)
    if key not in of_loop:
        of_loop[key] = Connections(app, limits=limits, clock=clock, loop=loop)
    return of_loop[key]
