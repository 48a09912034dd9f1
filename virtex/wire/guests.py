"""The services inside a foreign application, which wraps or mounts them: guests of whoever hosts that application.

Rules: knows services by the seam. It does not know which of them the application really uses: each that exists once
the application has loaded, and each that is made later, is one. What somebody else has begun is left to him.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from ..limits import Limits, widest
from ..logs import event
from ..service.register import REGISTER
from ..service.seam import Service

log = logging.getLogger("virtex")


def limits_of(app: Any) -> Limits:
    """Those of a service; of another application, what each service inside can do with, and a usual body."""
    if isinstance(app, Service):
        return app.limits
    inside = [service.limits for service in REGISTER.services()]
    if not inside:
        return Limits()
    wide = widest(inside)
    return replace(wide, body=max(wide.body, Limits().body))


class Guests:
    """The guests of one host. most_body: bytes of the largest body that one of them takes, or the application."""

    def __init__(self, most_body: int) -> None:
        self.most_body = most_body
        self._all: list[Service] = []
        self._named: list[Service] = []  # in the log
        self._worker: Any = None
        self._loop: asyncio.AbstractEventLoop
        self._is_draining = False

    def take(self, worker: Any) -> None:
        """See to those that nobody has begun, and to each that is made from now on. worker: what setup() gets."""
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        for service in REGISTER.services():
            if service.loop is None:
                self._add(service)
        REGISTER.hosts.add(self)

    def _add(self, service: Service) -> None:
        service.meet(self._worker)
        self._all.append(service)
        for each in self._all:  # counts for those that have not begun
            each.budget.parts = len(self._all)
        self.most_body = max(self.most_body, service.limits.body)

    def meet(self, service: Service) -> bool:
        """A service was just made, on whatever thread: whether it is one of these.

        Made on the loop, it begins at once. Another thread may be about to serve it on a loop of its own, so one that
        is made there begins when it is asked, or when the application is about to be ready.
        """
        if not self._loop.is_running() or (here := asyncio._get_running_loop()) not in (None, self._loop):
            return False
        self._add(service)
        if here is not None:
            here.call_soon(self._begin, service)
        return True

    def forget(self, service: Service) -> None:
        """Another one, which is or will be a guest too, sees to its life."""
        if service in self._all:
            self._all.remove(service)

    def _begin(self, service: Service) -> None:
        if service in self._all:
            service.begin()
            if self._is_draining:
                service.drain()

    async def started(self) -> None:
        """Returns when all that there are can answer requests. Raises what the start of one raised."""
        starting = [service.begin() for service in self._all if service.loop in (None, self._loop)]
        if starting:
            ended, _ = await asyncio.wait(starting, return_when=asyncio.FIRST_EXCEPTION)
            for task in ended:
                task.result()
        names = [service.name for service in self._all if service not in self._named]
        self._named = self._all.copy()
        if names:  # now, for how the log is shown is known when the first of them has begun
            named = ", ".join(map(repr, names))
            event(log, "services", f"started the services inside the application: {named}", {"services": names})

    def drain(self) -> None:
        """Be unready from now on."""
        self._is_draining = True
        for service in self._here():
            service.drain()

    async def shutdown(self) -> None:
        """Answer what was taken, and end; those that are made from now on are somebody else's."""
        REGISTER.hosts.discard(self)
        ending = [service.shutdown() for service in self._here()]
        self._all.clear()
        await asyncio.gather(*ending)

    def _here(self) -> list[Service]:
        return [service for service in self._all if service.loop is self._loop]
