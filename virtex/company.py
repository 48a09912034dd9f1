"""Who may still join the next batch: requests that are arriving, and connections that were just answered.

A client in a loop sends its next request as soon as it has its answer, so a connection is expected again for the time
that an item may wait on the queue. Rules: no clock; times are nanoseconds, and never go back. Every call but until()
takes constant time.
"""

from __future__ import annotations


class Peer:
    """One connection, as the batcher sees it.

    open: its requests that are arriving, waiting or running. answered: when the last of them was answered, in ns;
    0 while it is not expected.
    """

    def __init__(self) -> None:
        self.open = 0
        self.answered = 0
        self._before: Peer | None = None  # its neighbours among those who are expected
        self._after: Peer | None = None


class Company:
    """Those who are waited for.

    window: nanoseconds; 0: nobody ever is, and no peer is remembered. arriving: requests whose body is not all there.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self.arriving = 0
        self._first: Peer | None = None  # of those who are expected, in the order in which they were answered
        self._last: Peer | None = None

    def arrives(self, peer: Peer | None) -> None:
        """A request begins: its headers are there, its body is not."""
        self.arriving += 1
        if peer is not None:
            peer.open += 1
            self.leaves(peer)

    def arrived(self) -> None:
        """The body of a request is there, or never will be."""
        self.arriving -= 1

    def answered(self, peer: Peer | None, now: int) -> None:
        """A request that arrived was answered, or given up."""
        if peer is None:
            return
        peer.open -= 1
        if peer.open or not self._window:
            return
        peer.answered = now or 1
        peer._before = last = self._last
        if last is None:
            self._first = peer
        else:
            last._after = peer
        self._last = peer

    def leaves(self, peer: Peer) -> None:
        """The peer is not expected any more: it is here again, or its connection is gone."""
        if not peer.answered:
            return
        peer.answered = 0
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
        if not self._window:
            return 0
        first = self._first
        while first is not None and first.answered <= now - self._window:
            self.leaves(first)
            first = self._first
        if self.arriving:
            return now + self._window
        return 0 if self._last is None else self._last.answered + self._window
