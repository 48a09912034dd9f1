"""The services of this process that an application may hold, by wrapping or mounting them, and who hosts such ones.

Rules: knows that there are services, whoever hosts them, and what must not end without a teardown; nothing of requests.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from .seam import Service


class Host(Protocol):
    """Who serves an application that may hold services."""

    def meet(self, service: Service) -> bool: ...
    def forget(self, service: Service) -> None: ...


class Life(Protocol):
    """One life of a service; a fork and a loop that is closed end it."""

    @property
    def lives(self) -> bool: ...


class Register:
    """Which those are. Made once, as REGISTER.

    Weak: a service that nobody holds any more is none. gone: why no service of this process can answer any more, and
    another process could; "" as a rule.
    """

    def __init__(self) -> None:
        self._services: WeakKeyDictionary[Service, None] = WeakKeyDictionary()
        self.hosts: WeakSet[Host] = WeakSet()
        self.set_up: WeakSet[Life] = WeakSet()  # those whose setup() has run, and whose teardown() is to come
        self.gone = ""

    def has_to_tear_down(self) -> bool:
        """Whether a handler of this process is set up, and not torn down."""
        return any(life.lives for life in self.set_up)

    def services(self) -> list[Service]:
        """Those that there are, in the order in which they were made."""
        there = [reference() for reference in self._services.keyrefs()]  # at once: another thread may add one
        return [service for service in there if service is not None]

    def add(self, service: Service) -> None:
        """A service was just made, on whatever thread: one host at most takes care of it."""
        self._services[service] = None
        any(host.meet(service) for host in tuple(self.hosts))

    def remove(self, service: Service) -> None:
        """Another one sees to its life from now on."""
        self._services.pop(service, None)
        for host in tuple(self.hosts):
            host.forget(service)


REGISTER = Register()
