"""HttpProtocol: one connection for any event loop's create_server().

Rules: here, and in listener.py, an application becomes a Service; below, nobody asks what it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from ..limits import Limits
from ..service.seam import Service
from .asgi_host import AsgiHost
from .connection import Connection
from .connections import Connections
from .guests import limits_of


class HttpProtocol(Connection, asyncio.Protocol):
    """One connection; `loop.create_server(lambda: HttpProtocol(app), ...)` serves `app` in your own program.

    app: a `Server`, which starts itself on the first request, or any ASGI 3 application, whose lifespan is then your
    business (serve() runs both). limits: by default those of the `Server`. clock: nanoseconds, monotonic. loop: by
    default the one that runs. connections: what all connections of one server share; by default one object per loop
    and app.
    """

    __slots__ = ()

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        loop: asyncio.AbstractEventLoop | None = None,
        connections: Connections | None = None,
    ) -> None:
        super().__init__(connections or shared_by(app, limits, clock, loop))


def hosted(
    app: Any, limits: Limits | None = None, clock: Callable[[], int] = time.perf_counter_ns, lifespan: str = "auto"
) -> Service:
    """The application, where it is a service itself; else what hosts it."""
    return app if isinstance(app, Service) else AsgiHost(app, limits or limits_of(app), clock, lifespan)


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[int, int], tuple[Any, Connections]]] = (
    WeakKeyDictionary()
)


def shared_by(
    app: Any, limits: Limits | None, clock: Callable[[], int], loop: asyncio.AbstractEventLoop | None
) -> Connections:
    """The one object of an app on a loop; the app is kept alive with it, so the id stays the app's."""
    of_loop = _SHARED.setdefault(loop or asyncio.get_running_loop(), {})
    key = id(app), id(limits)
    if key not in of_loop:
        of_loop[key] = app, Connections(hosted(app, limits, clock), limits=limits, clock=clock, loop=loop)
    return of_loop[key][1]
