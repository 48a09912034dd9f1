"""When a post is tried again, how long after, and how often all posts of a client together may be.

Rules: decides, and does nothing: no socket, no loop; the clock and the dice are given. What is safe is tried again: a
connection that was not made, one found closed before a byte of the request was written, and a 503 that names a time in
Retry-After. The rest only where the caller has said that its model may run twice.

Waits are the server's Retry-After and "full jitter" on an exponential back-off: M. Brooker, "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015. The budget is Finagle's RetryBudget with its defaults: 10 retries a second, and
one more for each 5 posts (https://finagle.github.io/blog/2016/02/08/retry-budgets), as a bucket of 100 tokens.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

import httpcore2

from .bundles import Place
from .outcomes import Outcome
from .targets import Target

MODES = ("safe", "always", "never")
TRIES = 4  # in all, where no connection comes or holds
FIRST, MOST = 0.1, 10.0  # seconds: the first wait's bound, which doubles, and where that ends
FULL, PER_SECOND, PER_POST = 100.0, 10.0, 0.2  # tokens; a retry takes one


class Post:
    """One request, through all its tries.

    method, url, headers, body: what is sent. host: of the URL, for the header. name: the URL as errors show it.
    timeout: seconds from now to the deadline of all tries together, or None. written: whether the running try has
    handed a byte to the system. place: in a bundle.
    """

    def __init__(
        self,
        method: str,
        target: Target,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeout: float | None,
        clock: Callable[[], float],
        place: Place | None = None,
    ) -> None:
        self.method = method
        self.url, self.host, self.name = target
        self.body = body
        self.timeout = timeout
        self.place = place
        self.tries = 0
        self.written = False
        self._headers = headers
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout

    def left(self) -> float | None:
        """Seconds to the deadline, 0 or less where it has passed; None without one."""
        return None if self._deadline is None else self._deadline - self._clock()

    def begin(self) -> httpcore2.Request:
        """The request of the next try."""
        self.tries += 1
        self.written = False
        headers = [(b"host", self.host), *self._headers]
        if self.method == "POST":
            headers.append((b"content-length", b"%d" % len(self.body)))
        left = self.left()
        if left is not None:
            headers.append((b"x-request-timeout-ms", b"%d" % max(1, int(left * 1000))))
        return httpcore2.Request(self.method, self.url, headers=headers, content=self.body)


class Budget:
    """The tokens of one client.

    There is no lock: a child that is forked while another thread holds it would wait for ever. Two threads at the same
    moment may take one token together, or lose what the other gave.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.tokens = FULL
        self._clock = clock
        self._filled_at = clock()

    def deposit(self) -> None:
        """A post begins."""
        if self.tokens < FULL:
            self.tokens = min(FULL, self.tokens + PER_POST)

    def spend(self, on_credit: bool) -> float | None:
        """Take a token: seconds until it is there, or None for none. on_credit: take one that is still to come."""
        now = self._clock()
        self.tokens = min(FULL, self.tokens + (now - self._filled_at) * PER_SECOND)
        self._filled_at = now
        if self.tokens < 1 and not on_credit:
            return None
        self.tokens -= 1
        return max(0.0, -self.tokens / PER_SECOND)

    def give_back(self) -> None:
        """The token was not used."""
        self.tokens += 1


class Retries:
    """What a client does about posts that fail.

    mode: one of MODES. clock: seconds, on any origin. dice: a number from 0 to below 1. sleep, sleep_async: wait so
    many seconds. Raises ValueError for another mode.
    """

    def __init__(
        self,
        mode: str,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
        sleep: Callable[[float], object] = time.sleep,
        sleep_async: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"retry: expected one of {MODES}, got {mode!r}")
        self.mode = mode
        self.clock = clock
        self.budget = Budget(clock)
        self.sleep = sleep
        self.sleep_async = sleep_async
        self._dice = dice

    def wait(self, post: Post, outcome: Outcome) -> float | None:
        """Seconds after which a post is to be tried again; None where its outcome stands."""
        least = None if self.mode == "never" else self._least(post, outcome)
        if least is None:
            return None
        if outcome.status == 503 and post.place is not None and not post.place.refuse():
            return None
        wait = least + self._dice() * min(MOST, FIRST * 2.0 ** min(post.tries - 1, 10))
        left = post.left()
        if left is not None and wait >= left:
            if post.place is not None:
                post.place.give_up()
            return None
        credit = self.budget.spend(post.place is not None)
        if credit is None:
            return None
        if left is not None and credit >= left:
            self.budget.give_back()
            return None
        return max(wait, credit)

    def _least(self, post: Post, outcome: Outcome) -> float | None:
        """The seconds that have to pass before another try; None where there must be none."""
        if outcome.status == 503:
            return retry_after(outcome)
        if post.tries >= TRIES or not _may_pass(outcome):
            return None
        return 0.0 if outcome.unsent or self.mode == "always" else None


def _may_pass(outcome: Outcome) -> bool:
    """Whether the same may go well another time: not for a certificate, or a header that can't be sent."""
    if outcome.status:
        return outcome.status == 502  # a gateway's word for a connection that broke
    refused = isinstance(outcome.error, httpcore2.LocalProtocolError)
    return outcome.error is not None and not refused and not isinstance(outcome.error.__cause__, ssl.SSLError)


def retry_after(outcome: Outcome) -> float | None:
    """The seconds of Retry-After (RFC 9110 section 10.2.3); None where there is none that can be understood.

    A date counts from the Date of the same answer: so the clocks of two machines need not agree.
    """
    text = outcome.header("retry-after").strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 20 else float("inf")
    try:
        then, now = parsedate_to_datetime(text), parsedate_to_datetime(outcome.header("date"))
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
