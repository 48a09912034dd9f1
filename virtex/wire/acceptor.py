"""Takes connections from a listening socket, which other processes may listen on too.

Rules: knows sockets, and connections until they are counted in. Whose turn it is to take one, a Share decides.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl as tls
from typing import Any, Protocol

from .connections import Connections
from .protocol import HttpProtocol

log = logging.getLogger("virtex")

YIELD_SECONDS = 0.005
RETRY_SECONDS = 0.5
AT_ONCE = 64  # connections that are taken in one turn of the loop


class Share(Protocol):
    """What a process knows of others that listen on the same socket."""

    def may_accept(self) -> bool:
        """Whether it takes any connection now."""

    def has_more(self, connections: int) -> bool:
        """Whether this process, which has so many, is to let another one be quicker."""

    def waited_in_vain(self) -> None:
        """No other was quicker."""

    def has_ready_sibling(self) -> bool:
        """Whether another one takes what this one leaves."""


class Acceptor:
    """Takes connections from a socket.

    share: given where other processes listen on it too. The loop's own server takes every connection that waits, so the
    first process to wake would have them all; this one gives a process that has fewer YIELD_SECONDS to be quicker.
    """

    def __init__(
        self,
        sock: socket.socket,
        backlog: int,
        connections: Connections,
        ssl: tls.SSLContext | None = None,
        share: Share | None = None,
    ) -> None:
        self.sock = sock
        self.joining: set[asyncio.Task[Any]] = set()  # accepted, but not among the connections yet
        self._backlog = backlog
        self._connections = connections
        self._ssl = ssl
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(backlog)
        self._loop.add_reader(sock, self._on_waiting)

    def close(self) -> None:
        """Stop, and take what waits already: in the queue of a closed socket it would be reset.

        It is left to the other processes that listen, if one of them is ready.
        """
        if self._share is None or (self._share.may_accept() and not self._share.has_ready_sibling()):
            for _ in range(self._backlog + 1):  # no more than that waits; what comes meanwhile must not hold us up
                if not self._accept():
                    break
        if self._pause is None:
            self._loop.remove_reader(self.sock)
        else:
            self._pause.cancel()
        self.sock.close()

    def _on_waiting(self) -> None:
        if self._yields():
            self._stop_for(YIELD_SECONDS)
            return
        for _ in range(AT_ONCE):
            if not self._accept() or self._yields():
                return

    def _yields(self) -> bool:
        share = self._share
        if share is None:
            return False
        return not share.may_accept() or share.has_more(len(self._connections.members) + len(self.joining))

    def _stop_for(self, seconds: float) -> None:
        """The socket stays readable meanwhile, so without the pause the loop would spin."""
        if self._pause is None:
            self._loop.remove_reader(self.sock)
            self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        """Whoever else listens was not quicker, so this process takes one all the same."""
        self._pause = None
        self._loop.add_reader(self.sock, self._on_waiting)
        share = self._share
        if (share is None or share.may_accept()) and self._accept() and share is not None:
            share.waited_in_vain()

    def _accept(self) -> bool:
        """Returns whether there was a connection."""
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError:  # no file descriptors or memory left
            log.exception("no connection can be accepted for %g s", RETRY_SECONDS)
            self._stop_for(RETRY_SECONDS)
            return False
        sock.setblocking(False)
        task = self._loop.create_task(self._join(sock))
        self.joining.add(task)
        task.add_done_callback(self.joining.discard)
        return True

    async def _join(self, sock: socket.socket) -> None:
        connections = self._connections
        patience = None if self._ssl is None else connections.limits.idle_seconds
        try:
            _, protocol = await self._loop.connect_accepted_socket(
                lambda: HttpProtocol(connections.service, connections=connections),
                sock,
                ssl=self._ssl,
                ssl_handshake_timeout=patience,
            )
        except (OSError, tls.SSLError) as error:
            log.debug("a connection did not begin: %r", error)
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            if connections.draining:
                protocol.drain()
