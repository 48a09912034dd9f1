"""Where a server listens: sockets bound to every address of a host, or to a path.

Rules: knows sockets and files. No loop, and nothing listens yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Any

TRIES = 10  # for a port that is free on every address of a host
MODE = 0o666  # whoever may enter the folder may connect, as to a port: a proxy has a user of its own


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host, all on the same port, which is a free one for 0. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for _ in range(TRIES - 1 if port == 0 else 0):
        with contextlib.suppress(OSError):
            return _bind_all(addresses, port)
    return _bind_all(addresses, port)


def _bind_all(addresses: Sequence[tuple[int, Any]], port: int) -> list[socket.socket]:
    """Raises OSError when one is taken, or none is this machine's: "localhost" may be ::1 where there is no IPv6."""
    socks: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, (host, _, *more) in addresses:
            try:
                socks.append(_bind(family, (host, port, *more), len(addresses) > 1))
                port = socks[0].getsockname()[1]
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                absent = error
        if absent is not None and not socks:
            raise absent
    except OSError:
        for sock in socks:
            sock.close()
        raise
    return socks


def _bind(family: int, address: Any, one_of_several: bool) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio asks for it, to set TCP_NODELAY
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if one_of_several and family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # :: would take 0.0.0.0 too
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise _said(error, address) from None
    return sock


class UnixSocket:
    """A socket on a path; the file of one that nobody listens on any more is replaced. Raises OSError.

    A path that begins with a null byte is Linux's abstract one, which has no file.
    """

    def __init__(self, path: str) -> None:
        self._file = None if path.startswith("\0") else os.path.abspath(path)
        self._made: os.stat_result | None = None
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if self._file is not None:
                _remove_stale(self._file)
            self.sock.bind(path)
            if self._file is not None:
                os.chmod(self._file, MODE)
                self._made = os.lstat(self._file)
        except OSError as error:
            self.sock.close()
            raise _said(error, path) from None

    def remove(self) -> None:
        """Remove the file, unless another server has put its own in its place."""
        if self._file is None or self._made is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self._file), self._made):
                os.unlink(self._file)


def _remove_stale(path: str) -> None:
    """Only a refused connection proves that nobody listens; whatever else is there, bind() refuses."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # a full queue would make us wait
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


def _said(error: OSError, address: object) -> OSError:
    return OSError(error.errno, f"can't listen on {address!r}: {error.strerror or error}")
