"""The port of gRPC: which one, that nobody else has it, and a worker's server there.

gunicorn has no setting for it: VIRTEX_GRPC_PORT of the environment says it, which `virtex serve --grpc-port` sets.
Each worker listens there itself, by SO_REUSEPORT, and the kernel gives each connection to one of them. Whoever else
sets that option would get some, too, unnoticed. So the master looks first, and keeps the port bound while it lives.

Rules: knows gunicorn's settings, and what serves gRPC; that is imported in a worker, for grpc must not be forked.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib.util import find_spec
from typing import Any, NoReturn

from .program import why_not

VARIABLE = "VIRTEX_GRPC_PORT"
_kept: list[socket.socket] = []  # of the master, bound, never listening


def port() -> int | None:
    """The port, None for none. Raises ValueError for what is no port."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"{VARIABLE}={text!r}: expected a port from 1 to 65535 (virtex serve --grpc-port)")
    return int(text)


def addresses(cfg: Any) -> list[tuple[str, int]]:
    """Where to listen: the hosts of gunicorn's bind, with the port. Raises ValueError where there is none for it."""
    number = port()
    if number is None:
        return []
    if cfg.is_ssl:
        raise ValueError(f"{VARIABLE}={number}: there is no TLS over gRPC, and certfile or keyfile asks for it")
    hosts = dict.fromkeys(address[0] for address in cfg.address if isinstance(address, tuple))
    if not hosts:
        raise ValueError(f"{VARIABLE}={number}: expected a host in bind, which has unix sockets alone")
    if any(number == address[1] for address in cfg.address if isinstance(address, tuple)):
        raise ValueError(
            f"{VARIABLE}={number}: HTTP listens on that port; gRPC takes another one (virtex serve --grpc-port)"
        )
    return [(host, number) for host in hosts]


def keep(cfg: Any) -> None:
    """In the master, ahead of the first fork: keep the port for the workers to come, or end the process."""
    try:
        wanted = addresses(cfg)
    except ValueError as error:
        _end(str(error))
    if not wanted or _kept:
        return
    if not (_is_there("grpc") and _is_there("google.protobuf")):
        how = "(pip install '.[grpc]' in Virtex's folder, or 'FILE.whl[grpc]')"
        _end(f"--grpc-port or {VARIABLE} needs grpcio and protobuf: install the extra [grpc] {how}")
    inherits = "GUNICORN_FD" in os.environ  # after SIGUSR2, beside the workers of the master before
    for host, number in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for shares in (True,) if inherits else (False, True):
            try:
                sock = socket.socket(family)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shares:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((host, number))
            except OSError as error:
                _end(f"can't listen on {host}:{number} for gRPC: {why_not(error)}. Choose another port")
            if shares:
                _kept.append(sock)
            else:
                sock.close()


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _end(why: str) -> NoReturn:
    print(f"virtex: {why}", file=sys.stderr)
    sys.exit(1)


class GrpcPort:
    """A worker's server there, where there is to be one."""

    def __init__(self) -> None:
        self._server: Any = None

    @property
    def taken(self) -> int:
        """How many infer requests it had."""
        return 0 if self._server is None else int(self._server.calls.taken)

    async def start(self, app: Any, cfg: Any, log: Any) -> None:
        """Take calls. Raises what GrpcServer does."""
        wanted = [f"[{host}]:{number}" if ":" in host else f"{host}:{number}" for host, number in addresses(cfg)]
        if wanted:
            from ..rpc.serving import GrpcServer

            self._server = GrpcServer(app, wanted, shares=True)
            await self._server.start()
            log.info("gRPC at %s", " and ".join(wanted))

    async def stop(self, grace: float, delay: float = 0.0) -> None:
        """As GrpcServer.stop()."""
        if self._server is not None:
            await self._server.stop(grace, delay)
