"""Who may still join the next batch: connections that were just answered, and requests whose body is about to be there.

A client in a loop sends its next request as soon as it has its answer, so a connection is expected again for the time
that an item may wait on the queue, and a request whose body is not all there for that time after its head. Who lets
that time pass is not waited for again until a body of theirs has come in time; those who were never answered vouch for
each other, for one client can be any number of them. Rules: no clock; times are nanoseconds, and never go back. Every
call but until() takes constant time.
"""

from __future__ import annotations

WARY = 16  # strangers whose body must come in time before strangers are waited for again


class Peer:
    """One connection, as the batcher sees it.

    open: its requests that are arriving, waiting or running. expected_since: in ns; 0 while it is not. is_known: it
    was answered before. is_late: the rest of its latest body did not come in time. first: of the peers that one
    connection over HTTP/2 has, its first one, which says whose they are; None for that one.
    """

    def __init__(self, first: Peer | None = None) -> None:
        self.first = first
        self.open = 0
        self.expected_since = 0
        self.is_known = False
        self.is_late = False
        self._before: Peer | None = None  # its neighbours among those who are expected
        self._after: Peer | None = None


class Company:
    """Those who are waited for. window: nanoseconds; 0: nobody ever is, and no peer is remembered."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._wary = 0  # how many strangers must come in time before others are waited for
        self._first: Peer | None = None  # of those who are expected, in the order of their times
        self._last: Peer | None = None

    def arrives(self, peer: Peer | None) -> None:
        """A request begins: its headers are there."""
        if peer is not None:
            peer.open += 1
            self.leaves(peer)

    def awaits(self, peer: Peer | None, now: int) -> None:
        """Its body did not come with its head, so the peer is expected, unless it let us down before."""
        if peer is None or not self.window or (peer.is_late if peer.is_known else self._wary):
            return
        self.leaves(peer)
        self._expect(peer, now)

    def arrived(self, peer: Peer | None, took: int) -> None:
        """The body that was awaited is there, `took` ns after it was; more than the window where it never will be."""
        if peer is None:
            return
        self.leaves(peer)
        late = took > self.window
        if peer.is_known:
            peer.is_late = late
        elif late:
            self._wary = WARY
        elif self._wary:
            self._wary -= 1

    def settled(self, peer: Peer | None, now: int) -> None:
        """A request that arrived was answered, or given up."""
        if peer is None:
            return
        peer.open -= 1
        peer.is_known = True
        if not peer.open and self.window:
            self._expect(peer, now)

    def _expect(self, peer: Peer, now: int) -> None:
        peer.expected_since = now or 1
        peer._before = last = self._last
        if last is None:
            self._first = peer
        else:
            last._after = peer
        self._last = peer

    def leaves(self, peer: Peer) -> None:
        """The peer is not expected any more: it is here again, or its connection is gone."""
        if not peer.expected_since:
            return
        peer.expected_since = 0
        before, after = peer._before, peer._after
        peer._before = peer._after = None
        if before is None:
            self._first = after
        else:
            before._after = after
        if after is None:
            self._last = before
        else:
            after._before = before

    def until(self, now: int) -> int:
        """When the last of those expected now stops being expected, in ns; 0 when nobody is."""
        first = self._first
        while first is not None and first.expected_since <= now - self.window:
            if not first.is_known:
                self._wary = WARY
            self.leaves(first)
            first = self._first
        return 0 if self._last is None else self._last.expected_since + self.window
