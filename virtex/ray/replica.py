"""What lives in a replica of Ray Serve: the application, and what Ray asks of it.

Rules: it is a host as the worker is, by the same calls: services are started early, told which worker they are in,
drained, and torn down once. Sockets and processes are Ray's. Everything runs on the event loop that Ray has for the
code of users. A subclass of Replica is sent to the replicas by value, this module by its name: it must be installed
there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from ..handler import Worker
from ..service.register import REGISTER
from ..service.seam import Head, Service
from ..wire.protocol import hosted
from .gauges import Gauges


class Replica:
    """One process of a deployment. app_factory: makes the application; of the class that deployment() makes."""

    app_factory: ClassVar[Callable[..., Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._given = args, kwargs  # to .bind()
        self._service: Service
        self._gauges: Gauges

    async def __serve_build_asgi_app__(self) -> Application:
        """Called by Ray behind __init__: what it raises, setup()'s own exception say, is what Ray shows."""
        from ray import serve

        context = serve.get_replica_context()
        return await self.begin(Worker(context.rank.rank, context.world_size or 1))

    async def begin(self, worker: Worker) -> Application:
        """Make the application, and start it. worker: what setup() gets. Raises what that raised."""
        args, kwargs = self._given
        app = _checked(self.app_factory(*args, **kwargs), self.app_factory)
        self._service = hosted(app)
        try:
            await self._service.startup(worker)
        except BaseException:
            await self._service.shutdown()
            raise
        self._gauges = Gauges()
        gc.collect()
        gc.freeze()  # a pass of the collector over model and libraries stops the loop for 10 to 100 ms
        return Application(app, self._service, self.end)

    async def end(self) -> None:
        """Be unready, answer what was taken, tear down: once, however often it is called."""
        self._service.drain()
        await self._service.shutdown()

    async def check_health(self) -> None:
        """Called by Ray every health_check_period_s. Raises RuntimeError where /health/live would not answer 200."""
        for service in self._services():
            answer: Any = service.open(Head("GET", "/health/live", [], 0, None), time.perf_counter_ns())
            if answer.status != 200:
                raise RuntimeError(f"/health/live of {service.name!r}: {b''.join(answer.buffers).decode()}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray while it counts replicas by their load."""
        return self._gauges.take()

    async def submit(
        self,
        items: list[Any],
        service: str | None = None,
        *,
        parameters: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Have items computed in the batches of everyone's, for who has the handle of this deployment.

        service: its name, where there are several. The rest is as Server.submit() has it, and what that raises comes
        back to the caller. Raises ValueError for a service that there is not.
        """
        rows: list[Any] = await self._server(service).submit(items, parameters=parameters, timeout=timeout)
        return rows

    def _services(self) -> list[Service]:
        """The application itself, or what it holds."""
        if not self._service.streams:
            return [self._service]
        return [service for service in REGISTER.services() if service.loop is not None]

    def _server(self, name: str | None) -> Any:
        found = [server for service in self._services() for server in getattr(service, "servers", (service,))]
        by_name = {server.name: server for server in found}
        if name is None and len(by_name) == 1:
            return found[0]
        if name not in by_name:
            raise ValueError(f"submit(service={name!r}): expected one of {', '.join(map(repr, by_name))}")
        return by_name[name]


class Behind(Replica):
    """One that HTTP does not lead to: other deployments ask it by its handle."""

    _lives = False

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # as Ray lets it be
        super().__init__(*args, **kwargs)
        await self.__serve_build_asgi_app__()
        self._lives = True

    def __del__(self) -> Any:
        """Called by Ray, which awaits what it gives, and later by Python, which does not: then there is nothing."""
        lives, self._lives = self._lives, False
        return self.end() if lives else None


class Application:
    """The application as Ray gets it: requests are its own, its life is what its service's is.

    Ray asks for a lifespan: its startup comes when everything has started, its shutdown when Ray has taken the replica
    from its routers and the requests in flight are answered, or graceful_shutdown_timeout_s is nearly over.
    """

    def __init__(self, app: Any, service: Service, end: Callable[[], Awaitable[None]]) -> None:
        self._app = app
        self._end = end
        self._state = getattr(service, "state", None)  # of a foreign application's own lifespan

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return

        async def pass_on(message: Any) -> None:
            if message["type"] == "http.response.start":  # Ray adds the id to every answer: it would be there twice
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        if self._state is not None:
            scope = {**scope, "state": self._state.copy()}
        await self._app(scope, receive, pass_on)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._end()
        await send({"type": "lifespan.shutdown.complete"})


def _checked(app: Any, factory: Any) -> Any:
    """What a factory made. Raises TypeError where that is no application."""
    if hasattr(app, "run_inference") or not callable(app):
        what, kind = getattr(factory, "__qualname__", repr(factory)), type(app).__name__
        raise TypeError(f"expected {what} to make an application, as http_server() does; it made a {kind}")
    return app
