"""Which sockets are ready, waited for in steps finer than a millisecond.

Rules: knows file descriptors only.

epoll waits in whole milliseconds, which is ten requests at 10,000/s. select() on epoll's own descriptor waits in
microseconds. Elsewhere, kqueue does so by itself.
"""

from __future__ import annotations

import select
import selectors
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

READ, WRITE = 1, 4  # as epoll's EPOLLIN and EPOLLOUT; its errors and ends count as both
MOST_OF_SELECT = 1024  # select() takes descriptors below
AT_ONCE = 64  # events that are looked at before the next requests are sent


class Epoll:
    """Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fds = [self._epoll.fileno()]
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close

    def ready(self) -> list[tuple[int, int]]:
        """Descriptors and what they are ready for, without waiting."""
        return self._epoll.poll(0, AT_ONCE)

    def wait(self, seconds: float) -> None:
        """Wait until there is something to do."""
        if self._fds[0] < MOST_OF_SELECT:
            select.select(self._fds, (), (), seconds)
        else:
            self._epoll.poll(seconds)


class Selector:
    """Elsewhere."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.unregister = self._selector.unregister
        self.close = self._selector.close

    def register(self, fd: int, what: int) -> None:
        self._selector.register(fd, _events(what))

    def modify(self, fd: int, what: int) -> None:
        self._selector.modify(fd, _events(what))

    def ready(self) -> list[tuple[int, int]]:
        return [
            (key.fd, bool(mask & selectors.EVENT_READ) * READ | bool(mask & selectors.EVENT_WRITE) * WRITE)
            for key, mask in self._selector.select(0)
        ]

    def wait(self, seconds: float) -> None:
        self._selector.select(seconds)


def _events(what: int) -> int:
    return bool(what & READ) * selectors.EVENT_READ | bool(what & WRITE) * selectors.EVENT_WRITE


Readiness = Epoll if hasattr(select, "epoll") else Selector


@contextmanager
def fine_timers() -> Iterator[None]:
    """This thread wakes within microseconds of its time: Linux may else be 50 late, to save power."""
    path = Path(f"/proc/{threading.get_native_id()}/timerslack_ns")
    before = ""
    with suppress(OSError):
        before = path.read_text()
        path.write_text("1000")
    try:
        yield
    finally:
        with suppress(OSError):
            if before:
                path.write_text(before)
