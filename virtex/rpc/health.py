"""grpc.health.v1: whether the process, or one model, is ready, as probes of Kubernetes and balancers of gRPC ask it.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Open to everybody, as /health/ready is, and of
the same word. Rules: knows services by their names; no sockets.
"""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc.aio import EOF

from ..errors import RequestError, quoted
from . import messages
from .arriving import Arriving
from .calls import holds
from .codes import code_of

SERVICE = "/grpc.health.v1.Health/"
WHOLE = ("", "inference.GRPCInferenceService")  # names of the process: the others are those of its models
SERVING: bytes
NOT_SERVING: bytes
SERVICE_UNKNOWN: bytes
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (messages.Health(status=n).SerializeToString() for n in (1, 2, 3))


class Health:
    """What the services of one app are said to be. arriving: the messages of the server's calls.

    most: how many may watch, who need no key for it: a watch has no end, and is one of the calls that there may be.
    """

    def __init__(self, servers: dict[str, Any], arriving: Arriving, most: int) -> None:
        self._servers = servers
        self._arriving = arriving
        self._most = most
        self._watching = 0
        self._starts: set[asyncio.Task[None]] = set()  # of the services, each of which tells of a change
        self._change = asyncio.Event()  # another one after each change
        self._is_draining = False
        self._is_over = False

    def drain(self) -> None:
        """Nothing is ready from now on."""
        self._is_draining = True
        self._changed()

    def end(self) -> None:
        """Who watches has been told, and is let go."""
        self._is_over = True
        self._changed()

    async def check(self, _: Any, context: Any) -> bytes:
        """Check: how it is now."""
        name = await self._asked(context)
        status = self._status(name)
        if status is SERVICE_UNKNOWN:
            there = f"expected '', {WHOLE[1]} or a model's name"  # which ones there are is told to who has the key
            await context.abort(StatusCode.NOT_FOUND, f"there is no service {quoted(name)}: {there}")
        return status

    async def watch(self, _: Any, context: Any) -> None:
        """Watch: how it is now, and each time that it is otherwise, until the server stops."""
        name = await self._asked(context)
        if self._watching >= self._most:
            reason = f"{self._watching} calls watch already, half of limits.connections: Check tells it, too"
            await context.abort(StatusCode.RESOURCE_EXHAUSTED, reason)
        self._watching += 1
        try:
            await self._tell(name, context)
        finally:
            self._watching -= 1

    async def _tell(self, name: str, context: Any) -> None:
        """Each status, until the server stops."""
        told = b""
        for server in self._servers.values():
            start = server.begin()
            if start not in self._starts:  # once: a change wakes all who watch
                self._starts.add(start)
                start.add_done_callback(self._changed)
                server.model.watchers.add(self._changed)
        while True:
            change, is_over, status = self._change, self._is_over, self._status(name)
            if status is not told:
                told = status
                await context.write(status)
            if is_over:
                return
            await change.wait()

    def _changed(self, _: Any = None) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _status(self, name: str) -> bytes:
        if name not in WHOLE and name not in self._servers:
            return SERVICE_UNKNOWN
        servers = self._servers.values() if name in WHOLE else (self._servers[name],)
        for server in servers:
            server.begin()
        is_ready = not self._is_draining and all(holds(server, "/health/ready") for server in servers)
        return SERVING if is_ready else NOT_SERVING

    async def _asked(self, context: Any) -> str:
        """The name that a call asks for."""
        try:
            message = await self._arriving.message(context)
            name: str = messages.HealthRequest.FromString(b"" if message is EOF else message).service
            return name
        except RequestError as error:
            await context.abort(code_of(error.status), error.reason)
        except (DecodeError, UnicodeDecodeError) as error:
            await context.abort(StatusCode.INVALID_ARGUMENT, f"expected the name of a service: {quoted(error)}")
        raise AssertionError("abort() raises")
