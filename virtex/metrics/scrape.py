"""http://prom_host:prom_port/metrics: answered by one process for all its siblings, on a thread of its own.

Rules: knows sockets, threads and locks; what the answer says is exposition's. The first to start binds the
port. When that process is gone, the lowest ready worker binds it. The port is bound without SO_REUSEPORT: nobody else
gets any of its connections.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import socket
import socketserver
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app
from prometheus_client.parser import text_string_to_metric_families

from .board import Board, here
from .exposition import WORKERS, Ours, readable, registry_of
from .totals import leads

log = logging.getLogger("virtex")

PAUSE = 0.2  # seconds between two looks whether the port is free for this process; so long nobody answers after a death
PROBE_SECONDS = 1.0
CLIENT_SECONDS = 10  # that a scraper may be silent
MOST_CLIENTS = 16  # at a time; with one more the oldest is ended, so who sends nothing keeps nobody out


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def get_environ(self) -> dict[str, Any]:
        """With an Accept that can be read."""
        environ = super().get_environ()
        environ["HTTP_ACCEPT"] = readable(environ.get("HTTP_ACCEPT", ""))
        return environ

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("metrics: " + format, *args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False
    timeout = PAUSE

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._clients: list[socket.socket] = []  # each has a thread; the oldest first

    def get_request(self) -> tuple[Any, Any]:
        """As TCPServer's, but where no file can be opened it waits: the caller would ask again at once."""
        try:
            return super().get_request()
        except OSError:
            threading.Event().wait(PAUSE)  # time is not for this file to know
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """As ThreadingMixIn's, for a few at a time."""
        if len(self._clients) >= MOST_CLIENTS:
            with contextlib.suppress(OSError):  # it is gone already
                self._clients.pop(0).shutdown(socket.SHUT_RDWR)
        self._clients.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """As TCPServer's."""
        with contextlib.suppress(ValueError):  # it was the oldest
            self._clients.remove(request)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        """As HTTPServer's, which asks a name server for the host's name first."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("metrics: %s was not answered", client_address, exc_info=True)


class Scrape:
    """The server of one address, as one process sees it. Made by join(). Raises what bind() of a socket raises."""

    def __init__(self, host: str, port: int, board: Board | None = None) -> None:
        self.names: list[tuple[str, bool]] = []
        self._host = host
        self._port = port
        self._board = board or here()
        self._ours = Ours({}, board)
        self._lock = f"scrape {host} {port}"
        self._server: _Server | None = None
        self._is_waiting = False  # for a process that is none of its siblings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"virtex metrics {host}:{port}", daemon=True)

    def start(self, name: str) -> None:
        """Bind the port, unless a sibling has. Raises OSError where it is another's, and says whose."""
        try:
            self._bind()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"metrics can't be read at {self._host}:{self._port}: {error}") from error
            self._check_ours(name)
        self._thread.start()

    def serve(self, names: list[tuple[str, bool]]) -> None:
        """What there is to be read from now on: names of services, each with whether it has old names, too."""
        self.names = names
        self._ours.names = dict(names)

    def stop(self) -> None:
        """Let the next one have the port."""
        self._stopping.set()
        self._thread.join()

    def forget(self) -> None:
        """In a forked child: the port is the parent's, and must be free for the siblings once that is gone."""
        if self._server is not None:
            self._server.socket.close()

    @property
    def owns(self) -> bool:
        """Whether it is this process that has the port."""
        return self._server is not None

    def _bind(self) -> None:
        locks = self._board.locks
        if not locks.take(self._lock):
            return
        family, _, _, _, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
        kind = type("_Server", (_Server,), {"address_family": family})
        try:
            server: _Server = kind(address[:2], _Handler)
        except BaseException:
            locks.leave(self._lock)
            raise
        server.set_app(make_wsgi_app(registry_of(self._ours), disable_compression=True))
        self._server = server
        log.info("metrics are at http://%s:%d/metrics, of process %d", self._host, self._port, os.getpid())

    def _check_ours(self, name: str) -> None:
        """The port is taken, and not by a sibling: by a process that is about to go, such as an older master's?"""
        answers = whose(self._host, self._port)
        if name in answers:
            log.warning(
                "metrics of %r are at %s:%d already, those of another process; as soon as it is gone, this one's are",
                *(name, self._host, self._port),
            )
            self._is_waiting = True
            return
        text = f"prom_port={self._port} is taken on {self._host} by another program"
        if "prometheus" in answers:
            text = f"prom_port={self._port} is taken on {self._host} by a Prometheus"
        elif answers:
            text = f"prom_port={self._port} is taken on {self._host} by service {', '.join(sorted(answers))}"
        raise OSError(
            errno.EADDRINUSE, f"{text}; give another port, or have /metrics scraped on the port of the service itself"
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._server is not None:
                self._server.handle_request()  # for PAUSE seconds at most
            elif not self._stopping.wait(PAUSE) and leads(self._board):
                self._take_over()
        if self._server is not None:
            self._server.server_close()
            self._server = None
            self._board.locks.leave(self._lock)

    def _take_over(self) -> None:
        try:
            self._bind()
            self._is_waiting = False
        except OSError as error:
            if not self._is_waiting:  # once
                log.error("metrics can't be read at %s:%d: %s; tried again", self._host, self._port, error)
            self._is_waiting = True


def whose(host: str, port: int) -> set[str]:
    """Who answers at an address: the names of services of Virtex; "prometheus"; nothing that is known."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/metrics", headers={"accept": "text/plain"})
        text = connection.getresponse().read(1 << 22).decode("utf-8", "replace")
        families = list(text_string_to_metric_families(text))
    except (OSError, http.client.HTTPException, ValueError):
        return set()
    finally:
        connection.close()
    services = {sample.labels["service"] for each in families if each.name == WORKERS for sample in each.samples}
    return services | {"prometheus" for each in families if each.name == "prometheus_build_info"}


_scrapes: dict[tuple[str, int], Scrape] = {}
_joining = threading.Lock()


def join(host: str, port: int, name: str, has_old_names: bool) -> Scrape:
    """Have a service's metrics read at an address, beside those of this process that are read there already.

    Raises OSError where the address can't be had, and says why.
    """
    with _joining:
        scrape = _scrapes.get((host, port))
        if scrape is None:
            scrape = Scrape(host, port)
            scrape.serve([(name, has_old_names)])
            scrape.start(name)
            _scrapes[host, port] = scrape
        else:
            scrape.serve([*scrape.names, (name, has_old_names)])
        return scrape


def leave(host: str, port: int, name: str, has_old_names: bool) -> None:
    """Undo join()."""
    with _joining:
        scrape = _scrapes[host, port]
        names = scrape.names.copy()
        names.remove((name, has_old_names))
        if names:
            scrape.serve(names)
            return
        del _scrapes[host, port]
    scrape.stop()


def _after_fork() -> None:
    for scrape in _scrapes.values():
        scrape.forget()
    _scrapes.clear()


os.register_at_fork(after_in_child=_after_fork)
