"""serve_grpc(): services over gRPC, on the running loop. Rules: knows grpc's server, its options, and when it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

from ..errors import RequestError, quoted
from ..extras import needs
from ..limits import Limits, allowance, fitting
from ..service.seam import Service

with needs("gRPC", "grpcio and protobuf", "grpc"):
    import google.protobuf  # noqa: F401
    import grpc

from . import health
from .calls import SERVICE, Calls

log = logging.getLogger("virtex")

MOST = (1 << 31) - 1  # of an option: grpc has 32 bits for it
LOOK_SECONDS = 1.0  # between looks whether grpc's server has broken down, which it tells to nobody


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Which method is whose. Each reads its own message, once its head was let in."""

    def __init__(self, calls: Calls, health_: health.Health) -> None:
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        self._calls = calls
        self._methods = {
            SERVICE + "ModelInfer": unary(calls.infer),
            SERVICE + "ModelMetadata": unary(calls.model),
            SERVICE + "ModelReady": unary(calls.model_ready),
            SERVICE + "ModelStreamInfer": stream(calls.stream),
            SERVICE + "ServerLive": unary(calls.live),
            SERVICE + "ServerMetadata": unary(calls.server),
            SERVICE + "ServerReady": unary(calls.ready),
            health.SERVICE + "Check": unary(health_.check),
            health.SERVICE + "Watch": stream(health_.watch),
        }

    def service(self, handler_call_details: Any) -> Any:
        """The method that a call is for."""
        method: str = handler_call_details.method
        return self._methods.get(method) or grpc.stream_stream_rpc_method_handler(self._unknown(method))

    def _unknown(self, method: str) -> Any:
        there = ", ".join(name.removeprefix(SERVICE) for name in self._methods if name.startswith(SERVICE))
        shown = quoted(method).encode("unicode_escape").decode()  # it stands in a line of the log
        error = RequestError(501, f"there is no '{shown}': expected one of {SERVICE[1:]}{there}")

        async def refuse(_: Any, context: Any) -> None:
            await self._calls.refuse(shown, error, context)

        return refuse


class GrpcServer:
    """An app over gRPC; `async with` stops it at the end. Made by serve_grpc().

    shares: whether other processes listen there too. limits: by default the app's. credentials: None for no TLS.
    """

    def __init__(
        self, app: Any, addresses: list[str], shares: bool, limits: Limits | None = None, credentials: Any = None
    ) -> None:
        if not isinstance(app, Service) or app.streams:
            kind = type(app).__name__
            raise TypeError(f"gRPC: expected what http_server() or Services() made, got a {kind} (docs/grpc.md)")
        limits = limits or app.limits
        bodies: Any = app.budget  # which knows what fits once the app has begun
        fitted = fitting(app.limits, min(bodies.most, allowance(limits.max_bytes).max_bytes))
        self._options = [
            ("grpc.so_reuseport", int(shares)),
            ("grpc.max_receive_message_length", min(fitted.body, MOST)),  # of what a compressed one becomes, too
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", min(limits.header_bytes, MOST)),
            ("grpc.absolute_max_metadata_size", min(limits.header_bytes, MOST)),
            ("grpc.server_handshake_timeout_ms", _ms(limits.idle_seconds)),
            ("grpc.max_connection_idle_ms", _ms(limits.keep_alive_seconds)),
        ]
        self._limits, self._credentials = limits, credentials
        self.calls = Calls(app, fitted)
        self._health = health.Health(self.calls.servers, self.calls.arriving, max(1, limits.connections // 2))
        self._server, self.ports = self._made(addresses)
        hosts = [address.rpartition(":")[0] for address in addresses]
        self._addresses = [f"{host}:{port}" for host, port in zip(hosts, self.ports, strict=True)]
        self._keeping: asyncio.Task[None] | None = None
        self._broken: dict[asyncio.Task[None], Any] = {}  # servers that broke down, by what ends them

    def _made(self, addresses: list[str]) -> tuple[Any, list[int]]:
        """A server of grpc, which is to be started, and its ports."""
        server = grpc.aio.server(options=self._options, maximum_concurrent_rpcs=self._limits.connections)
        server.add_generic_rpc_handlers((_Methods(self.calls, self._health),))
        return server, [_listen(server, address, self._credentials) for address in addresses]

    async def _keep_up(self) -> None:
        """Put another server where grpc's broke down: one call whose path is no UTF-8 is enough for that."""
        while True:
            try:
                while await self._server.wait_for_termination(LOOK_SECONDS):
                    pass
                return
            except Exception as error:
                log.error("a call broke grpc's server, and another one takes its place: %r", error)
            broken = self._server
            end = broken.stop(self._limits.answer_seconds)  # it answers what it took
            ending = asyncio.get_running_loop().create_task(end)
            self._broken[ending] = broken
            ending.add_done_callback(self._broken.pop)
            while self._server is broken:
                try:
                    self._server, _ = self._made(self._addresses)
                except OSError as error:
                    log.error("%s; another try in %g s", error, LOOK_SECONDS)
                    await asyncio.sleep(LOOK_SECONDS)
            await self._server.start()

    @property
    def port(self) -> int:
        """The port of the first address: the one chosen, where 0 was asked for."""
        return self.ports[0]

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()
        self._keeping = asyncio.get_running_loop().create_task(self._keep_up())

    async def stop(self, grace: float = 30.0, delay: float = 0.0, hands_over: bool = False) -> None:
        """Take no more calls, and answer those that were taken.

        grace: seconds after which what is not answered is cut. delay: so many of these seconds calls are still taken.
        hands_over: others serve on there. A check that was taken is to find them served; a watch just ends.
        """
        if not hands_over:
            self._health.drain()
        if delay:
            await asyncio.sleep(min(delay, grace))
        self._health.end()
        self.calls.drain()
        if self._keeping is not None:
            self._keeping.cancel()
        left = max(0.0, grace - delay)
        await asyncio.gather(*(server.stop(left) for server in {self._server, *self._broken.values()}))

    async def __aenter__(self) -> GrpcServer:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()


def _listen(server: Any, address: str, credentials: Any) -> int:
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        what = "gRPC" if credentials is None else "gRPC, or not with these credentials"  # grpc tells only its log
        raise OSError(errno.EADDRINUSE, f"can't listen on {address} for {what}: {error}") from None


def credentials_of(key: bytes, chain: bytes, roots: bytes | None) -> Any:
    """TLS from 1.2 on, in PEM. roots: of the certificates that clients have to have; None: they need none."""
    return grpc.ssl_server_credentials([(key, chain)], roots, roots is not None)


def _ms(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), MOST)


async def serve_grpc(
    app: Any, host: str = "127.0.0.1", port: int = 8001, *, credentials: grpc.ServerCredentials | None = None
) -> GrpcServer:
    """Start `app`, where nobody has, and serve it over gRPC on the running loop; returns when it takes calls.

    It goes with serve() of the same app, which shuts that down; without it, `await app.shutdown()` does once this has
    stopped.

    app: what http_server() or Services() made. host: a name or an address to listen on. port: 0 is any free one.
    credentials: for TLS, of `grpc.ssl_server_credentials([(key, chain)])`, both in PEM; without them there is no TLS.

    Raises what the app's startup raised, OSError when the address can't be had or grpc can't use the credentials,
    TypeError for another app, ImportError without grpcio.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server = GrpcServer(app, [address], shares=False, credentials=credentials)
    try:
        await app.startup()
    except BaseException:
        await server.start()  # grpc keeps a port that it has bound until a server that was started stops
        await server.stop(0)
        raise
    await server.start()
    return server
