"""The gunicorn worker: `gunicorn module:app -k virtex.VirtexWorker`. Knows processes and signals, nothing of models.

What gunicorn asks of a worker, and this file keeps to:
- __init__ runs in the master, before the fork; the event loop and everything that belongs to it is made after it.
- The heartbeat comes from the event loop, so a loop that is stuck is seen. It begins when the application is ready:
  until the first one, gunicorn lets a worker load for as long as it needs.
- SIGTERM: answer what was taken within graceful_timeout, with the heartbeat going on; gunicorn repeats the signal.
  SIGINT, SIGQUIT: leave at once. SIGABRT: the heartbeat was missed; say where Python stands, and die.
- A worker whose master is gone leaves too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import inspect
import logging
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import uvloop
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from . import settings
from .board import DRAINING, LOADING, READY, Board
from .connections import Connections
from .limits import Limits
from .listener import Listener, start
from .server import Server
from .writer import Turn, Writer

HEARTBEAT_SECONDS = 1.0
QUICK_SECONDS = 0.5  # for SIGINT and SIGQUIT
MARGIN_SECONDS = 1.0  # of graceful_timeout, kept for the application's shutdown; at its end gunicorn kills


class VirtexWorker(Worker):  # type: ignore[misc]
    """One process of the service.

    index: which of the service's workers this is: a small number that a respawned worker takes over from the one it
    replaces. During a reload, and after TTIN, there are more workers than `count`: index % count chooses a GPU.
    count: the setting `workers`.
    """

    _board: ClassVar[Board | None] = None  # the master's; its workers inherit the mapping

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if VirtexWorker._board is None:
            VirtexWorker._board = Board()
        self.board = VirtexWorker._board
        self.count: int = self.cfg.workers
        self.index = self.board.take(self.age)
        self._stop: asyncio.Event
        self._quick = False

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by gunicorn in the master, ahead of the first fork."""
        settings.check(cfg)

    # --- from gunicorn, in order ----------------------------------------------------------------------------------

    def init_process(self) -> None:
        _join_logs(self.log)
        _keep_freed_memory()
        self.board.own(self.index, self.age)
        try:
            super().init_process()
        finally:
            self.board.release(self.index)

    def load_wsgi(self) -> None:
        try:
            super().load_wsgi()
            self.wsgi: Any = _resolve(self.wsgi)
        except Exception:
            if not self.board.has_served():
                raise
            self.log.exception("the application could not be imported")
            self._leave_after_failure()

    def run(self) -> None:
        if not self.alive:
            return  # SIGTERM came while the application was imported
        started = False
        loop = uvloop.new_event_loop()
        try:
            asyncio.set_event_loop(loop)
            started = loop.run_until_complete(self._serve())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            faulthandler.cancel_dump_traceback_later()
            asyncio.set_event_loop(None)
            loop.close()
        if not started:
            self._leave_after_failure()

    def _leave_after_failure(self) -> None:
        """End the service if it never worked; else this process only, after a pause, for it is respawned at once."""
        if not self.board.has_served():
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        pause = min(60, 2 ** self.board.count_failure())
        self.log.error("worker %d did not start; another try in %d s", self.index, pause)
        until = time.monotonic() + pause
        while self.alive and time.monotonic() < until and os.getppid() == self.ppid:
            time.sleep(0.1)  # SIGTERM has its handler of gunicorn's again: it clears self.alive
        sys.exit(1)

    def handle_abort(self, sig: int, frame: Any) -> None:
        """Not by sys.exit(): an exception raised here can land in a callback of the loop, which would swallow it."""
        self.alive = False
        stacks = [
            f"thread {ident}:\n" + "".join(traceback.format_stack(frame if ident == threading.get_ident() else other))
            for ident, other in sys._current_frames().items()
        ]
        self.log.critical("no heartbeat for %s s; this is where it stands\n%s", self.cfg.timeout, "\n".join(stacks))
        self.cfg.worker_abort(self)
        os._exit(1)

    # --- the event loop's life --------------------------------------------------------------------------------------

    async def _serve(self) -> bool:
        """Load, listen, drain; False when the application did not start."""
        self._stop = asyncio.Event()
        self._add_signals(asyncio.get_running_loop())
        listener = await self._start()
        if listener is None:
            return self._stop.is_set()
        heart = asyncio.get_running_loop().create_task(self._beat(listener))
        if not self._stop.is_set():
            self._configure(listener.connections)
            await self._listen(listener)
            self._freeze()
            self.board.set_state(self.index, READY)
            self.log.info("worker %d of %d is ready", self.index, self.count)
        await self._stop.wait()
        await self._wait_for_successor()
        await self._drain(listener)
        heart.cancel()
        return True

    async def _start(self) -> Listener | None:
        starting = asyncio.ensure_future(start(self.wsgi, self, limits=self._limits(), lifespan=self.cfg.asgi_lifespan))
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            self.log.info("stopping while the application loads")
            starting.cancel()
            self._arm_watchdog()
            return None
        stopping.cancel()
        try:
            return starting.result()
        except Exception:
            self.log.exception("the application did not start")
            return None

    def _freeze(self) -> None:
        """Spare the garbage collector what lives as long as the worker: model and libraries, 10 to 100 ms each time.

        A heap that was loaded ahead of the fork is not collected first: that would write to every page it shares.
        """
        if not self.cfg.preload_app:
            gc.collect()
        gc.freeze()

    def _limits(self) -> Limits:
        of_app = self.wsgi.limits if isinstance(self.wsgi, Server) else Limits()
        return settings.merge_limits(of_app, self.cfg, self.log)

    def _configure(self, connections: Connections) -> None:
        connections.closing = self.cfg.keepalive == 0
        connections.root_path = self.cfg.root_path.rstrip("/")
        connections.secure = settings.trust(self.cfg)
        if self.log.access_log_enabled or type(self.log).access is not Logger.access:  # statsd's counts requests there
            connections.access = AccessLog(self.log)

    async def _listen(self, listener: Listener) -> None:
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        for sock in self.sockets:  # read here, not in __init__: reuse_port replaces them after the fork
            sock.setblocking(False)
            # The backlog is passed because listen() is called again, and a default would shrink it.
            await listener.listen(sock.sock, self.cfg.backlog, context, self._has_more)

    def _has_more(self, connections: int) -> bool:
        self.board.publish(self.index, connections)
        fewest = self.board.fewest(self.index)
        return fewest is not None and connections > fewest

    async def _beat(self, listener: Listener) -> None:
        """Tell the master that the loop turns; look whether it is time to go."""
        pause = min(HEARTBEAT_SECONDS, self.timeout / 2) if self.timeout else HEARTBEAT_SECONDS
        while True:
            self.notify()
            self.board.publish(self.index, len(listener.connections.open))
            if os.getppid() != self.ppid:
                self._say_once("the master is gone: stopping")
            elif listener.connections.requests >= self.max_requests:
                self._say_once(f"{listener.connections.requests} requests served, max_requests reached: restarting")
            elif not self.alive:  # the reloader says so
                self._stop.set()
            await asyncio.sleep(pause)

    def _say_once(self, why: str) -> None:
        if not self._stop.is_set():
            self.log.info(why)
            self._stop.set()

    async def _wait_for_successor(self) -> None:
        """On SIGHUP gunicorn ends the old workers at once: serve on until one of the new ones has loaded."""
        until = time.monotonic() + self.cfg.graceful_timeout / 2
        while not self._quick and time.monotonic() < until:
            younger = [entry.state for entry in self.board.living() if entry.age > self.age]
            if LOADING not in younger or READY in younger:
                return
            await asyncio.sleep(0.05)

    async def _drain(self, listener: Listener) -> None:
        self.alive = False
        self.board.set_state(self.index, DRAINING)
        self._arm_watchdog()
        grace = QUICK_SECONDS if self._quick else max(QUICK_SECONDS, self.cfg.graceful_timeout - MARGIN_SECONDS)
        draining = asyncio.ensure_future(listener.drain(grace, 0.0 if self._quick else settings.drain_delay()))
        hurry = asyncio.ensure_future(self._wait_quick())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            listener.connections.abort()
            await asyncio.wait({draining}, timeout=QUICK_SECONDS)
        hurry.cancel()
        if draining.done() and draining.exception() is not None:
            self.log.warning("shutting the application down: %r", draining.exception())

    async def _wait_quick(self) -> None:
        while not self._quick:
            await asyncio.sleep(0.05)

    def _arm_watchdog(self) -> None:
        """Leave in time even when a thread never returns: after a HUP gunicorn would wait for this process for ever."""
        with contextlib.suppress(Exception):  # stderr without a file behind it
            faulthandler.dump_traceback_later(self.cfg.graceful_timeout + MARGIN_SECONDS, exit=True)

    # --- signals ----------------------------------------------------------------------------------------------------

    def _add_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """SIGABRT stays with signal.signal(): it is for the case that the loop does not run."""
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        loop.add_signal_handler(signal.SIGINT, self._on_quit)
        loop.add_signal_handler(signal.SIGQUIT, self._on_quit)
        loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)
        loop.add_signal_handler(signal.SIGWINCH, lambda: None)
        if not self.alive:
            self._stop.set()  # SIGTERM came just before

    def _on_term(self) -> None:
        self._stop.set()

    def _on_quit(self) -> None:
        if not self._quick:
            self._quick = True
            self.cfg.worker_int(self)
        self._stop.set()


def _keep_freed_memory() -> None:
    """Have glibc keep what arrays and replies leave behind, instead of giving it back and faulting it in again.

    A RequestHandler that stacks images of 600 KB takes 138 page faults a request without this, and 2.5 times the CPU. A
    worker keeps up to 256 MB so; MALLOC_* of the environment has precedence. Other C libraries have no mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _resolve(app: Any) -> Any:
    """The application itself, or what a function without parameters makes: both were taken by the first Virtex."""
    if isinstance(app, Server) or not callable(app):
        return app
    try:
        inspect.signature(app).bind()
    except (TypeError, ValueError):
        return app  # it takes scope, receive and send
    made = app()
    if not callable(made):
        raise TypeError(f"expected {app!r} to make an application, but it made a {type(made).__name__}")
    return made


class AccessLog:
    """Writes gunicorn's access log; made only if one is wanted, for it costs more than many an answer."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __call__(self, connection: Writer, turn: Turn, status: int, length: int, ns: int) -> None:
        request = turn.request
        if request is None:
            return
        client = connection.ends.client
        # As it came, not decoded, and escaped from 0x80 on: llhttp let no control character of ASCII pass.
        target = _shown(request.target)
        path, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": request.method,
            "RAW_URI": target,
            "SERVER_PROTOCOL": f"HTTP/1.{request.minor}",
            "REMOTE_ADDR": client[0] if client else "-",
            "PATH_INFO": path,
            "QUERY_STRING": query,
        }
        for name, value in request.headers:
            environ["HTTP_" + name.decode().upper().replace("-", "_")] = _shown(value)
        reply = SimpleNamespace(status=str(status), headers=(), sent=length)
        sent = [(name.decode().title(), _shown(value)) for name, value in request.headers]
        self._log.access(reply, SimpleNamespace(headers=sent), environ, timedelta(microseconds=ns // 1000))


def _shown(sent: bytes) -> str:
    return sent.decode("ascii", "backslashreplace")


def _join_logs(log: Any) -> None:
    """Let --log-level, --error-logfile and --log-config rule what Virtex logs."""
    ours = logging.getLogger("virtex")
    ours.handlers = log.error_log.handlers
    ours.setLevel(log.error_log.level)
    ours.propagate = log.error_log.propagate
