"""The port of gRPC: which one, that nobody else has it, its TLS, and a worker's server there.

gunicorn has no setting for it: VIRTEX_GRPC_PORT of the environment says it, which `virtex serve --grpc-port` sets.
Each worker listens there itself, by SO_REUSEPORT, and the kernel gives each connection to one of them. Whoever else
sets that option would get some, too, unnoticed. So the master takes the port for itself alone, lets its workers share
it, and keeps it bound while it lives.

Rules: knows gunicorn's settings, and what serves gRPC; that is imported in a worker, for grpc must not be forked.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from .access_log import access_of
from .program import why_not
from .settings import is_set

VARIABLE = "VIRTEX_GRPC_PORT"
_kept: list[socket.socket] = []  # of the master, bound, not listening


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
    hosts = dict.fromkeys(address[0] for address in cfg.address if isinstance(address, tuple))
    if not hosts:
        raise ValueError(f"{VARIABLE}={number}: expected a host in bind, which has unix sockets alone")
    if any(number == address[1] for address in cfg.address if isinstance(address, tuple)):
        raise ValueError(
            f"{VARIABLE}={number}: HTTP listens on that port; gRPC takes another one (virtex serve --grpc-port)"
        )
    return [(host, number) for host in hosts]


def certificate(cfg: Any) -> tuple[bytes, bytes, bytes | None] | None:
    """What gunicorn's settings ask for: a key, its chain, and the roots of clients' certificates; None without TLS.

    Raises ValueError for what grpc can't do, and for files with which it could not.
    """
    if not cfg.is_ssl:
        return None
    if is_set(cfg, "ssl_context"):
        raise ValueError("ssl_context: gRPC makes no SSLContext, so the hook would not hold for its port")
    if cfg.ciphers:
        raise ValueError("ciphers: gRPC has its own, which GRPC_SSL_CIPHER_SUITES of the environment sets")
    if cfg.cert_reqs not in (ssl.CERT_NONE, ssl.CERT_REQUIRED):
        raise ValueError(
            f"cert_reqs={int(cfg.cert_reqs)}: gRPC asks clients for no certificate (0) or has to have it (2)"
        )
    if not cfg.certfile:
        raise ValueError("keyfile: expected certfile beside it")
    wants = cfg.cert_reqs == ssl.CERT_REQUIRED
    if wants and not cfg.ca_certs:
        raise ValueError("cert_reqs=2: expected ca_certs, by which the certificates of clients are checked")
    chain = _read("certfile", cfg.certfile)
    key = _read("keyfile", cfg.keyfile) if cfg.keyfile else chain
    roots = _read("ca_certs", cfg.ca_certs) if wants else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cfg.certfile, cfg.keyfile, _no_passphrase)
    except ssl.SSLError as error:
        files = f"certfile {cfg.certfile!r}" + (f" and keyfile {cfg.keyfile!r}" if cfg.keyfile else "")
        raise ValueError(f"{files}: expected a certificate and its key in PEM: {error}") from None
    try:
        if wants:
            context.load_verify_locations(cfg.ca_certs)
    except ssl.SSLError as error:
        raise ValueError(f"ca_certs {cfg.ca_certs!r}: expected certificates in PEM: {error}") from None
    return key, chain, roots


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: {error}") from None


def _no_passphrase() -> NoReturn:
    raise ValueError("keyfile: expected a key that is not encrypted, for gRPC takes no passphrase")


def keep(cfg: Any) -> None:
    """In the master, ahead of the first fork: keep the port for the workers to come, or end the process."""
    try:
        wanted = addresses(cfg)
        if wanted:
            certificate(cfg)  # each worker reads it again: a reload brings a new one
    except ValueError as error:
        _end(str(error))
    if not wanted or _kept:
        return
    if not (_is_there("grpc") and _is_there("google.protobuf")):
        how = "(pip install '.[grpc]' in Virtex's folder, or 'FILE.whl[grpc]')"
        _end(f"--grpc-port or {VARIABLE} needs grpcio and protobuf: install the extra [grpc] {how}")
    inherits = "GUNICORN_PID" in os.environ  # after SIGUSR2, beside the workers of the master before
    for host, number in wanted:
        try:
            _kept.append(_bound(host, number, cfg.uid, inherits))
        except OSError as error:
            _end(f"can't listen on {host}:{number} for gRPC: {why_not(error)}")


def _bound(host: str, number: int, owner: int, shares: bool) -> socket.socket:
    """A socket beside which workers may listen, and nobody else. owner: their user, who alone may share it.

    shares: whether others may have the port already. Raises OSError, EADDRINUSE where they may not and do.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if owner != os.geteuid():
            os.fchown(sock.fileno(), owner, -1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before linger
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        sock.bind((host, number))
        if not shares:
            if sys.platform == "linux":  # which lets two that do not listen have SO_REUSEADDR: the first that does wins
                sock.listen(0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # so that whoever comes later sees this one
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if sys.platform == "linux":
                sock.shutdown(socket.SHUT_RDWR)  # listens no more, and stays bound
    except OSError:
        sock.close()
        raise
    return sock


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

    async def start(self, app: Any, limits: Any, cfg: Any, log: Any) -> None:
        """Take calls. Raises what GrpcServer and certificate() do."""
        wanted = [f"[{host}]:{number}" if ":" in host else f"{host}:{number}" for host, number in addresses(cfg)]
        if wanted:
            from ..rpc.serving import GrpcServer, credentials_of

            files = certificate(cfg)
            credentials = credentials_of(*files) if files else None
            self._server = GrpcServer(app, wanted, True, limits, credentials)
            self._server.calls.access = access_of(log)
            await self._server.start()
            log.info("gRPC at %s%s", " and ".join(wanted), " with TLS" if files else "")

    async def stop(self, grace: float, delay: float = 0.0, hands_over: bool = False) -> None:
        """As GrpcServer.stop()."""
        if self._server is not None:
            await self._server.stop(grace, delay, hands_over)
