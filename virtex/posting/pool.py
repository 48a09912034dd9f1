"""The idle lanes of a client: of plain code, and of each event loop; they survive neither a fork nor their loop.

Rules: as of lanes.py. A post takes a lane out and puts it back; which of them are idle is known here alone.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import httpx2

from .lanes import AsyncLane, Lane
from .outcomes import Outcome
from .retries import Post

if TYPE_CHECKING:
    from ssl import SSLContext

EXPIRY = 30.0  # seconds idle; below the 75 of our server and the 60 of most proxies: the client is the first to close


class Pool:
    """At most `most` idle lanes of plain code, and as many of each loop. context, uds: as of lanes.

    context: None for one that trusts whom the system trusts.
    """

    def __init__(self, most: int, context: SSLContext | None, uds: str | None) -> None:
        self._most = most
        self._context = context or _system_trust()
        self._uds = uds
        self.is_closed = False
        self._idle: list[Lane] = []  # newest last
        self._idle_of_loops: dict[asyncio.AbstractEventLoop, list[AsyncGenerator[AsyncLane, None]]] = {}
        weakref.finalize(self, _close_beyond, 0, self._idle)  # unlike __del__, it also runs at exit
        _pools.add(self)

    def exchange(self, post: Post) -> Outcome:
        """Try a post once."""
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = Lane(self._context, EXPIRY, self._uds)
        try:
            return lane.exchange(post)
        finally:
            self._idle.append(lane)
            _close_beyond(0 if self.is_closed else self._most, self._idle)

    async def exchange_async(self, post: Post) -> Outcome:
        """The same, without blocking the running loop."""
        idle = self._of_this_loop()
        held = idle.pop() if idle else _held(AsyncLane(self._context, EXPIRY, self._uds))
        lane = await anext(held)
        try:
            return await lane.exchange(post)
        finally:
            if len(idle) < self._most:
                idle.append(held)

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        self.is_closed = True
        _close_beyond(0, self._idle)
        self._idle_of_loops.clear()

    async def aclose(self) -> None:
        """The same, and wait until the lanes of the running loop are closed."""
        idle = self._idle_of_loops.pop(asyncio.get_running_loop(), [])
        self.close()
        for held in idle:
            await held.aclose()

    def forget(self) -> None:
        """In a forked child: close its copies of the idle connections, which says nothing to the server."""
        _close_beyond(0, self._idle)
        _of_parent.append(self._idle_of_loops)
        self._idle_of_loops = {}

    def _of_this_loop(self) -> list[AsyncGenerator[AsyncLane, None]]:
        loop = asyncio.get_running_loop()
        if loop not in self._idle_of_loops:
            for ended in [other for other in list(self._idle_of_loops) if other.is_closed()]:
                self._idle_of_loops.pop(ended, None)
        return self._idle_of_loops.setdefault(loop, [])


def _close_beyond(count: int, lanes: list[Lane]) -> None:
    with suppress(IndexError):  # other threads take from the list, too
        while len(lanes) > count:
            lanes.pop().close()


async def _held(lane: AsyncLane) -> AsyncGenerator[AsyncLane, None]:
    """A lane of a loop, closed in time: asyncio ends a generator once it is dropped, and all when the loop ends."""
    async with lane:
        while True:
            yield lane


@cache  # reading the certificates takes longer than a hundred posts
def _system_trust() -> SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_of_parent: list[object] = []  # kept for ever: what a child drops of its parent's loops, it would make them close


def _after_fork() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_after_fork)
