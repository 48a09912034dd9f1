"""What a connection waits for: one state, and one table of what follows from it.

Rules: neither a transport nor a clock of its own; times are given, in nanoseconds.

    state     it waits for                                     the next byte is for    its clock
    NEW       the first request                                a head                  limits.idle_seconds
    NEXT      another request, or what it is to answer         a head                  limits.keep_alive_seconds
    HEAD      the rest of a head                               a head                  limits.header_seconds
    COUNTED   the rest of a body that says its length          the exchange            limits.body_rate, ...
    CHUNKED   the rest of a body in chunks                     the exchange, as chunks limits.body_rate, ...
    PLACED    the rest of a large body                         its place: the kernel   limits.body_rate, ...
    SKIPPED   the rest of a body whose request has its answer  nobody                  limits.body_rate, ...
    LAST      its last answer                                  nobody                  none: it is we who are waited for
    DROPPED   the rest of a body, behind the last answer       nobody                  as long as something comes
    ENDED     the end of the client's side, behind ours        nobody                  as long as something comes
    GONE      nothing: the connection is gone                  nobody                  none
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ..limits import Limits
from ..service.seam import NEVER

SECOND = 1_000_000_000  # ns

REST_KEPT = 64 << 10  # bytes of pipelined requests held for later; beyond, the connection is not read
LINGER_SECONDS = 2  # a connection that we ended is read until nothing comes for so long
DROP_SECONDS = 60  # and, as is the rest of an unwanted body, for so long at most: by then the answer was read
DRAIN_SECONDS = 0.5  # how long a connection at rest is still read while draining: its request may be on the way


class State(IntEnum):
    """The first column of the table."""

    NEW = 0
    NEXT = 1
    HEAD = 2
    COUNTED = 3
    CHUNKED = 4
    PLACED = 5
    SKIPPED = 6
    LAST = 7
    DROPPED = 8
    ENDED = 9
    GONE = 10


NEW, NEXT, HEAD, COUNTED, CHUNKED, PLACED, SKIPPED, LAST, DROPPED, ENDED, GONE = State

A_HEAD, A_BODY, CHUNKS, SKIPS, NOBODY = range(5)  # what the next byte is for
IDLE, KEEP_ALIVE, HEADER, RATE, LINGER, NONE = range(6)  # which clock runs


class Row(NamedTuple):
    """What follows from a state.

    takes: what the next byte is for. clock: which one runs. of_client: the time in which we do not read is not the
    client's, and is not counted. reads_on: it is read though the client leaves answers unread.
    """

    takes: int
    clock: int
    of_client: bool
    reads_on: bool


TABLE = {
    NEW: Row(A_HEAD, IDLE, False, False),
    NEXT: Row(A_HEAD, KEEP_ALIVE, False, False),
    HEAD: Row(A_HEAD, HEADER, True, False),
    COUNTED: Row(A_BODY, RATE, True, False),
    CHUNKED: Row(CHUNKS, RATE, True, False),
    PLACED: Row(NOBODY, RATE, True, False),  # the transport has another protocol meanwhile
    SKIPPED: Row(SKIPS, RATE, True, False),
    LAST: Row(NOBODY, NONE, False, False),
    DROPPED: Row(SKIPS, LINGER, False, True),
    ENDED: Row(NOBODY, LINGER, False, True),
    GONE: Row(NOBODY, NONE, False, False),
}
_ROWS = tuple(TABLE[state] for state in State)


def nanoseconds(seconds: float) -> int:
    """The clock's unit; what is too long for 64 bits is as good as never."""
    return int(min(seconds * SECOND, NEVER))


class Waiting:
    """The state of one connection, and since when.

    takes, clock, reads_on: of the state's row. since: when the present wait began. received: bytes of the present body.
    stalled: since when the client has read nothing of what we wrote; 0: it reads. reading: whether the transport reads.
    full: the application has as much of the body as it wants to keep. is_half: the client sends no more; it may read.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.since = 0
        self.watched_until = NEVER  # when its clock is looked at
        self.received = 0
        self._seen = self._seen_at = 0  # bytes that were there when the clock was looked at, and since when
        self.stalled = 0
        self._unsent = 0
        self.reading = True
        self.full = self.is_half = False
        self._paused = 0  # since when, while it is not read
        self.enter(NEW)

    def enter(self, state: int) -> None:
        """Wait for something else; the clock goes on as it was."""
        self.state = state
        row = _ROWS[state]
        self.takes = row.takes
        self.clock = row.clock
        self.of_client = row.of_client
        self.reads_on = row.reads_on

    def begin_body(self, state: int, now: int) -> None:
        """Wait for a body, from now on."""
        self.enter(state)
        self.since = now
        self.received, self._seen = 0, -1

    def begin_end(self, now: int) -> None:
        """The last answer is out: from now on we wait for the end of the client's side."""
        self.since = self._seen_at = now
        self.received = self._seen = 0

    # --- reading ------------------------------------------------------------------------------------------------

    def wants(self, rest: int) -> bool:
        """Read, unless the client does not read, or we hold as much of what it sent as we want to. rest: bytes held."""
        return rest <= REST_KEPT and (self.reads_on or not (self.stalled or self.full))

    def turn(self, reading: bool, now: int) -> None:
        """The transport is read from now on, or not."""
        self.reading = reading
        if not reading:
            self._paused = now
        elif self.of_client:
            self.since += now - self._paused
            self._seen_at += now - self._paused

    # --- writing ------------------------------------------------------------------------------------------------

    def stall(self, unsent: int, now: int) -> None:
        """The client leaves so many bytes unread."""
        self.stalled, self._unsent = now, unsent

    def resume(self, now: int) -> None:
        """It has read them: while it did, it was not idle."""
        self.stalled = 0
        if self.state == NEXT:
            self.since = now
        elif self.clock == LINGER:
            self.since = self._seen_at = now

    # --- clocks -------------------------------------------------------------------------------------------------

    def until_stalled(self, unsent: int, now: int) -> int:
        """Until when the client may leave what we wrote unread. unsent: bytes of it, asked while it is stalled."""
        if not self.stalled:
            return NEVER
        if unsent < self._unsent:
            self.stall(unsent, now)
        if not unsent and self.clock == LINGER:  # nobody else says so where there was too little to pause for
            self.resume(now)
            return NEVER
        return self.stalled + nanoseconds(self._limits.write_stall_seconds)

    def until(self, now: int, busy: bool, drain_since: int) -> int:
        """Until when it may wait. busy: there is something to answer. drain_since: NEVER while it does not drain."""
        limits = self._limits
        if self.of_client and not self.reading:
            return now + SECOND  # it is we who make it wait
        if self.clock == RATE:
            return self._until_rate(now, NEVER, nanoseconds(limits.body_idle_seconds))
        if self.clock == LINGER:
            return NEVER if self.stalled else self._until_rate(now, DROP_SECONDS * SECOND, LINGER_SECONDS * SECOND)
        if self.clock == HEADER:
            return self.since + nanoseconds(limits.header_seconds)
        if self.clock == NONE or busy or self.stalled:
            return NEVER
        if drain_since < NEVER:
            return max(self.since, drain_since) + nanoseconds(DRAIN_SECONDS)
        return self.since + nanoseconds(limits.idle_seconds if self.clock == IDLE else limits.keep_alive_seconds)

    def _until_rate(self, now: int, most: int, idle: int) -> int:
        """What comes must come at a rate, for `most` ns in all, and never not at all for `idle` ns."""
        if self.received != self._seen:
            self._seen, self._seen_at = self.received, now
        limits = self._limits
        slow = nanoseconds(max(limits.body_grace_seconds, self.received / limits.body_rate))
        return min(self.since + min(slow, most), self._seen_at + idle)
