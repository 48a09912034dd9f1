"""How long batches take, learnt from those that were served, and so how long what waits will.

Rules: numbers in, numbers out; no clock, no loop, no ring. A batch of n items takes about a + b * n, with a and b not
below 0; both are learnt, and change. What is not known yet is taken for as quick as it can be, for who is refused on
account of it may be refused wrongly.

Means, the spread of the sizes and how sizes and times go together are decayed: the newest batch counts an eighth, so
that after a change of speed eight batches have done most of it.
"""

from __future__ import annotations

SHARE = 1 / 8  # of the newest batch in the means; more, while there were fewer
DOUBT = 1 / 64  # of the mean size, squared: sizes that differ by less than an eighth of it tell nothing of b
CHANCE = 0.4  # (2 * 1.25)² / 15: two standard errors of b, from a mean deviation, over as many batches as count
STALL = 8.0  # times what was expected: what took longer counts as that, so that one stall is soon forgotten
SLACK = 1e6  # ns that any batch may take
SURE = 4.0  # mean deviations of the time of a batch, as of a round trip in TCP (RFC 6298)


class Pace:
    """The time of batches in nanoseconds, from their sizes.

    full: items of a batch that is cut because it is full. soon: ns within which who has no full batch of waiting items
    ahead is served, whatever runs.
    """

    def __init__(self, max_batch_size: int) -> None:
        self.full = float(max_batch_size)
        self._most = max_batch_size
        self.soon = 0.0
        self._batches = 0
        self._items = self._took = 0.0  # means
        self._spread = self._together = 0.0  # variance of the sizes, their covariance with the times
        self._astray = 0.0  # mean distance of the times from what was expected

    def served(self, items: int, ns: int, is_full: bool) -> None:
        """A batch of so many items was served in so many ns."""
        self._batches += 1
        share = max(SHARE, 1.0 / self._batches)
        size, took = float(items), float(ns)
        if self._batches > 1:
            expected = self.batch(size)
            most = max(expected, self._took * size / self._items)
            took = min(took, STALL * most + SLACK)
            self._astray += share * (abs(took - expected) - self._astray)
        larger, longer = size - self._items, took - self._took
        self._items += share * larger
        self._took += share * longer
        self._spread = (1.0 - share) * (self._spread + share * larger * larger)
        self._together = (1.0 - share) * (self._together + share * larger * longer)
        if is_full:
            self.full += share * (size - self.full)
        # Two may run. More than wait() says, which would take a root for each batch.
        self.soon = (3.0 * self._most / self.full + 1.0) * (self.batch(self.full) + SURE * self._astray)

    def batch(self, items: float) -> float:
        """Ns that a batch of so many items takes; 0 while none was served."""
        if not self._batches:
            return 0.0
        larger = items - self._items
        each = self._took / self._items  # b if a is 0: its most
        doubt = DOUBT * self._items * self._items
        if larger < 0.0:  # the most is the quickest
            more = (self._together + doubt * each) / (self._spread + doubt)
        else:
            more = self._together / (self._spread + doubt)
            if more > 0.0:  # the less of it, the more it may be chance
                more -= CHANCE * self._astray * self._astray / (more * (self._spread + doubt))
        return self._took + larger * min(max(more, 0.0), each)

    def wait(self, items: int, ahead: float = 0.0, running: int = 0) -> float:
        """Ns until so many items are served, with what is running ahead of them; most of the time, it is less.

        The last of them are in a batch with those who come later: behind a full one, it has as many as batches have of
        late. ahead: ns that the batches take which run now, so many of them. 0 while none was served.
        """
        batches = items // self.full
        rest = items - batches * self.full
        took: float = batches * self.batch(self.full)
        if rest > 0.0:
            if batches or running > 1:  # those who come until it is cut will join it
                rest = max(rest, min(self._items, self.full))
            took += self.batch(rest)
            batches += 1.0
        took += SURE * self._astray * (batches + running) ** 0.5
        return ahead + took
