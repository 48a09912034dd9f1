"""Services: several in one app, each below its name.

    /{name}, /{name}/...            what the service answers at /, /...
    GET /                           which there are
    GET /health/live, /health/ready whether all are well
    GET /metrics                    those of all
    /v2, /v2/health/..., /v2/models/{name}/...    the same, as the Open Inference Protocol has it

Rules: knows servers by what they are called with, and paths. On the wire's lane it chooses once for each head that is
new on a connection: the same head again goes straight to its service. Not compiled, as server.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn
from urllib.parse import quote

import orjson

from . import __version__
from .errors import RequestError, quoted
from .limits import Limits, widest
from .metrics.export import render_all
from .server import OWN, Server
from .service import asgi_app, routes, v2
from .service.bodies import Bodies
from .service.model import retrieve
from .service.register import REGISTER
from .service.seam import JSON, BaseExchange, Head, Response, Service

NOT_NAMES = {".", ".."}  # clients take them out of a path (RFC 3986 section 5.2.4)


class _Peers:
    """A connection as those services know it that it has asked. connection: its public side."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.of: dict[Server, Any] = {}

    def peer(self, server: Server) -> Any:
        """What the heads that are for this service are to have as their peer."""
        if server not in self.of:
            self.of[server] = server.join(self.connection)
        return self.of[server]


class Services(Service):
    """Several services in one app, each below /{name}: with its own handler, queue, executor and health.

    servers: what http_server() made; their names, percent-encoded, are the first parts of the paths. limits: of
    connections, heads and max_bytes, which all of them share; by default the widest of theirs. The limits of body,
    values, answer_seconds and the queue are each service's own.

    It is an ASGI 3 application, and is served as a Server is. Raises ValueError for no servers, a name twice, a name
    that can't be a part of a path, and a server that is another one's or has begun.
    """

    budget: Bodies

    def __init__(self, *servers: Server, limits: Limits | None = None) -> None:
        _check(servers, limits)
        wide = widest([server.limits for server in servers])
        limits = replace(limits or wide, **{name: getattr(wide, name) for name in OWN})
        super().__init__(limits, Bodies(limits.max_bytes))
        self.servers = servers
        self.name = ", ".join(server.name for server in servers)
        self._by_name = {server.name: server for server in servers}
        for server in servers:
            server.share(limits, self.budget)
        REGISTER.add(self)

    # ---- life

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Where any of them lives; None where none does, in this process."""
        return next((server.loop for server in self.servers if server.loop is not None), None)

    @property
    def is_hosted(self) -> bool:
        """Whether somebody sees to their lives."""
        return all(server.is_hosted for server in self.servers)

    def meet(self, worker: Any) -> None:
        """Called by who serves an application that holds them, and sees to their lives. worker: what setup() gets."""
        for server in self.servers:
            server.meet(worker)

    def begin(self) -> asyncio.Future[Any]:
        """Begin those that nobody has begun; until they are ready, requests wait. Gives the future of their start."""
        return _all([server.begin() for server in self.servers])

    async def startup(self, worker: Any = None) -> None:
        """Start all of them; returns when requests can be answered. Raises what the first that failed raised.

        worker: what each setup() gets. Calling it again waits for the first call.
        """
        await asyncio.shield(_all([server.start(worker) for server in self.servers]))

    def drain(self) -> None:
        """Be unready from now on; requests are still answered."""
        for server in self.servers:
            server.drain()

    async def shutdown(self) -> None:
        """Refuse new requests, answer those that were taken, and tear down all handlers."""
        await asyncio.gather(*(server.shutdown() for server in self.servers))

    def run(self, host: str = "127.0.0.1", port: int = 8000, workers: int = 1, **settings: Any) -> NoReturn:
        """Serve them: `python server.py` becomes gunicorn. It does not return.

        host: a name or an address to listen on. port: there. workers: how many processes, each with all of them.
        settings: gunicorn's. What is said of Server.run() is true here, too. Raises TypeError, ValueError and
        RuntimeError as it does.
        """
        from .workers import starting

        starting.run(self, host, port, workers, settings)

    # ---- the seam

    def join(self, connection: Any) -> _Peers:
        """A new connection. connection: its public side."""
        return _Peers(connection)

    def leave(self, peer: _Peers) -> None:
        """A connection is gone: those services that it asked learn of it. peer: join() made it."""
        for server, of_server in peer.of.items():
            server.leave(of_server)

    def open(self, head: Head, now: int) -> Response | BaseExchange:
        """Have the service of its path open a request, as Server.open() does; answer what is about all of them.

        head: the request so far. now: the clock, in nanoseconds.
        """
        service = head.service or self._chosen(head)
        return self._answer(head) if service is None else service.open(head, now)

    def refuse(self, error: RequestError, head: Head | None = None) -> Response:
        """The answer to what was no request, or broke off.

        error: what was wrong with it. head: of the request, where one was read.
        """
        if head is not None and head.service is not None:
            return head.service.refuse(error, head)
        return self._refusal(error, head)

    def _refusal(self, error: RequestError, head: Head | None) -> Response:
        return v2.refusal(error) if head is not None and v2.is_v2(head.path) else super().refuse(error)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be an ASGI 3 application, as Server is.

        scope: what the server knows of the request. receive: gives its messages. send: takes ours.
        """
        if scope["type"] != "http":
            await asgi_app.other_scope(self, scope["type"], receive, send)
            return
        server, path = self._find(asgi_app.path_of(scope))
        if server is not None:
            await server({**scope, "path": path, "root_path": ""}, receive, send)
        else:
            await asgi_app.answer(self._answer, scope, send)

    def _find(self, path: str) -> tuple[Server | None, str]:
        """The service of a path, which is percent-decoded, and the path as that service knows it."""
        if path.startswith(v2.MODELS):
            return next((one for one in self.servers if v2.of_model(path, one.name) is not None), None), path
        name, slash, rest = path[1:].partition("/")
        return self._by_name.get(name), f"{slash}{rest}" or "/"

    def _chosen(self, head: Head) -> Server | None:
        """The service of a head that is new; from now on the head is that one's."""
        server, path = self._find(head.path)
        if server is not None:
            head.service, head.path = server, path
            head.peer = None if head.peer is None else head.peer.peer(server)
        return server

    # ---- about all of them

    def _answer(self, head: Head) -> Response:
        """The answer to a request that is for none of them."""
        try:
            for server in self.servers:
                server.begin()  # to have a state
            if head.path.startswith(v2.MODELS):
                raise v2.unknown(head.path, [server.name for server in self._open_to(head)])
            tell = _ROUTES.get(head.path)
            if tell is None:
                raise RequestError(404, f"nothing at {quoted(head.path)}; the services are at {self._paths(head)}")
            if head.method not in ("GET", "HEAD"):
                reason = f"{quoted(head.method)} {quoted(head.path)}: messages are POSTed to {self._paths(head)}"
                raise RequestError(405, reason, ((b"allow", b"GET, HEAD"),))
            return tell(self, head)
        except RequestError as error:
            return self._refusal(error, head)

    def _open_to(self, head: Head) -> list[Server]:
        """The services that let a request in. Raises RequestError, the first one's, where none does."""
        refused: RequestError | None = None
        found = []
        for server in self.servers:
            try:
                server.check_admits(head)
                found.append(server)
            except RequestError as error:
                refused = refused or error
        if not found and refused is not None:
            raise refused
        return found

    def _paths(self, head: Head) -> str:
        return ", ".join(map(_path_of, self._open_to(head)))

    def _list(self, head: Head) -> Response:
        servers = self._open_to(head)
        said = [{"name": one.name, "path": _path_of(one), "state": one.model.state} for one in servers]
        return Response(200, JSON, [orjson.dumps({"version": __version__, "services": said})])

    def _health(self, head: Head) -> Response:
        for server in self.servers:
            try:
                well = routes.answer(head, server.model)
            except RequestError as error:
                reason = f"service {server.name!r}: {error.reason}"
                raise RequestError(error.status, reason, error.headers) from None
        return well

    def _server(self, head: Head) -> Response:
        """What all of them are for clients of V2. Raises RequestError where none lets the request in."""
        self._open_to(head)
        return Response(200, JSON, [v2.server_metadata()])

    def _metrics(self, head: Head) -> Response:
        """Those of the services that let the request in."""
        exports = [server.model.export for server in self._open_to(head) if server.model.export is not None]
        if not exports:
            raise RequestError(404, f"nothing at '/metrics': {self._paths(head)} have prom_mode='off'")
        return routes.metrics(head, lambda accept: render_all(exports, accept))


_ROUTES: dict[str, Callable[[Services, Head], Response]] = {
    "/": Services._list,
    "/health/live": Services._health,
    "/health/ready": Services._health,
    "/metrics": Services._metrics,
    v2.ROOT: Services._server,
    f"{v2.HEALTH}live": Services._health,
    f"{v2.HEALTH}ready": Services._health,
}


def _check(servers: tuple[Any, ...], limits: Any) -> None:
    """Raise ValueError for what Services() does not take."""
    if not servers:
        raise ValueError("Services(): expected one server at least")
    if limits is not None and not isinstance(limits, Limits):
        raise ValueError(f"Services(limits={limits!r}): expected a Limits, or None")
    names: set[str] = set()
    for server in servers:
        if not isinstance(server, Server):
            raise ValueError(f"Services(): expected what http_server() makes, got a {type(server).__name__}")
        _check_name(server.name)
        if server.name in names:
            raise ValueError(f"Services(): the name {server.name!r} is there twice; expected a name for each")
        if server.is_shared:
            raise ValueError(f"Services(): {server.name!r} is one of other Services already")
        if server.loop is not None:
            raise ValueError(f"Services(): {server.name!r} has begun already; put it in ahead of that")
        names.add(server.name)


def _check_name(name: str) -> None:
    reserved = {path.strip("/") for path in routes.RESERVED}
    if name in reserved:
        raise ValueError(f"Services(): the name {name!r} is reserved, as are {', '.join(sorted(reserved - {name}))}")
    if "/" in name or name in NOT_NAMES:
        raise ValueError(f"Services(): the name {name!r} can't be a part of a path, as '/', '.' and '..' can't")


def _path_of(server: Server) -> str:
    return "/" + quote(server.name, safe="")


def _all(starting: list[asyncio.Task[None]]) -> asyncio.Future[Any]:
    """Done when all are ready; raises what the first that failed raised."""
    together = asyncio.gather(*starting)
    together.add_done_callback(retrieve)
    return together
