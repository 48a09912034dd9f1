"""The gunicorn worker: `gunicorn module:app -k virtex.VirtexWorker`. Knows processes and signals, nothing of models.

What gunicorn asks of a worker, and this file keeps to:
- __init__ runs in the master, before the fork; the event loop and everything that belongs to it is made after it.
- The heartbeat comes from the event loop, so a loop that is stuck is seen. It begins when the application is ready:
  until the first one, gunicorn lets a worker load for as long as it needs.
- A `Server` whose setup() leaves the loop free answers while it loads: probes, and 503 to all else. Its connections are
  those that no sibling could answer, and end with their answer, so that a client's next one finds whoever is ready.
- SIGTERM: answer what was taken within graceful_timeout, with the heartbeat going on; gunicorn repeats the signal.
  SIGINT, SIGQUIT: leave at once. SIGABRT: the heartbeat was missed; say where every thread stands, and die.
- A worker whose master or device is gone leaves too.
- SIGHUP: gunicorn starts new workers and sends SIGTERM to the old ones at once, and again each second. They serve on
  until a worker of the new code is ready, for as long as that takes. Only the master knows a reload from a stop, so its
  signal handlers write that on the scoreboard.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any, ClassVar

import uvloop
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from .logs import event
from .service.register import REGISTER
from .wire.connections import Connections
from .wire.guests import limits_of
from .wire.listener import Listener
from .workers import logs, settings, signals, systemd, uvicorn
from .workers.access_log import access_of
from .workers.grpc_port import GrpcPort, keep
from .workers.loading import load, stand_in
from .workers.memory import freeze, keep_freed_memory
from .workers.program import Program
from .workers.scoreboard import DRAINING, READY, RESTARTING, Scoreboard
from .workers.share import Share

HEARTBEAT_SECONDS = 1.0
SUCCESSOR_SECONDS = 0.1  # between looks for one
QUICK_SECONDS = 0.5  # for SIGINT and SIGQUIT
MARGIN_SECONDS = 1.0  # of graceful_timeout, kept for the application's shutdown; at its end gunicorn kills


class VirtexWorker(Worker):  # type: ignore[misc]
    """One process of the service.

    index: which of the service's workers this is: a small number that a respawned worker takes over from the one it
    replaces. During a reload, and after TTIN, there are more workers than `count`: index % count chooses a GPU.
    count: the setting `workers`.
    """

    # The master's; its workers inherit the mapping.
    _scoreboard: ClassVar[Scoreboard | None] = None
    _latest: ClassVar[Any] = None  # gunicorn's settings: a reload reads them anew
    _generation: ClassVar[int] = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if VirtexWorker._scoreboard is None:
            VirtexWorker._scoreboard = Scoreboard()
            signals.watch_for_stop(VirtexWorker._scoreboard.mark_stop)
        if VirtexWorker._latest is not self.cfg:
            VirtexWorker._latest = self.cfg
            VirtexWorker._generation += 1
        self.scoreboard = VirtexWorker._scoreboard
        self.count: int = self.cfg.workers
        self.index = self.scoreboard.take(self.age, VirtexWorker._generation)
        self._stop: asyncio.Event
        self._told = False  # to go, by a signal
        self._quick = False
        self._said: set[str] = set()
        self._is_ready = False
        self._share = Share(self.scoreboard, self.index)
        self._grpc = GrpcPort()

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn in the master when it reads its settings, ahead of any import of the application."""
        systemd.take()
        error_log = logging.getLogger("gunicorn.error")
        logs.join(error_log)
        logs.lead_to(error_log)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by gunicorn in the master, ahead of the first fork."""
        settings.check(cfg)
        systemd.report(cfg, lambda: VirtexWorker._scoreboard)
        keep(cfg)
        for line in uvicorn.ignored(cls):
            log.warning("%s", line)

    # --- from gunicorn, in order ----------------------------------------------------------------------------------

    def init_process(self) -> None:
        self._join_logs()
        logs.lead_to(self.log.error_log)
        if not settings.is_set(self.cfg, "access_log_format"):
            logs.shape(self.log.access_log, logs.AccessLines)
        keep_freed_memory()
        self.scoreboard.own(self.index, self.age)
        self.scoreboard.board.use(self.index)
        try:
            super().init_process()
        except Exception:
            if self.booted or (not self.scoreboard.has_served() and self.scoreboard.may_end_service()):
                raise
            if self.scoreboard.has_served():  # else whoever failed first has said it
                self.log.exception("the worker could not be started")  # a hook raised: of the new settings, say
            self._leave_after_failure()
        finally:
            if self._told or self.scoreboard.entry(self.index).state != RESTARTING:
                self.scoreboard.release(self.index)  # else its successor is still to come

    def init_signals(self) -> None:
        faulthandler.disable()  # else enable() would not take SIGABRT back from the handler that is set next
        super().init_signals()
        self._trace_to_log()

    def load_wsgi(self) -> None:
        try:
            self.wsgi: Any = load(self.app)
        except (Exception, SystemExit) as error:
            self._join_logs()
            if self.reloader is not None and self.alive:
                self.log.exception("the application could not be imported; another try when a file changes")
                self.wsgi = stand_in(error, self.reloader)
            elif self.scoreboard.has_served() and self.alive:
                self.log.exception("the application could not be imported")
                self._leave_after_failure()
            else:
                raise
        self._join_logs()

    def run(self) -> None:
        if not self.alive:
            return  # SIGTERM came while the application was imported
        started = False
        loop = uvloop.new_event_loop()
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, self._cancel_setup)
            asyncio.set_event_loop(loop)
            started = loop.run_until_complete(self._serve())
            loop.run_until_complete(_cancel_what_is_left())
            loop.run_until_complete(loop.shutdown_asyncgens())
        except asyncio.CancelledError:
            pass  # of _cancel_setup(), in a step of the loop beside setup()
        finally:
            faulthandler.cancel_dump_traceback_later()
            asyncio.set_event_loop(None)
            loop.close()
            signal.signal(signal.SIGTERM, self.handle_exit)
            signal.signal(signal.SIGINT, self.handle_quit)
            signal.signal(signal.SIGQUIT, self.handle_quit)
        if not started and self.alive:
            self._leave_after_failure()

    def _cancel_setup(self, sig: int, frame: Any) -> None:
        """A signal to go while a setup() holds the event loop, which could not react: no request was taken yet."""
        self.alive = False
        if sig != signal.SIGTERM:
            self.cfg.worker_int(self)
        raise asyncio.CancelledError(signal.Signals(sig).name)

    def _leave_after_failure(self) -> None:
        """End the service if it never worked; else this process only, after a pause, for it is respawned at once."""
        if not self.scoreboard.has_served():
            sys.exit(Arbiter.WORKER_BOOT_ERROR if self.scoreboard.may_end_service() else 1)
        pause = min(60, 2 ** self.scoreboard.count_failure())
        if self.scoreboard.is_proven():
            self.log.error("worker %d did not start; another try in %d s", self.index, pause)
        else:
            self.log.error("worker %d did not start; those from before the reload serve on", self.index)
        until = time.monotonic() + pause
        while self.alive and time.monotonic() < until and os.getppid() == self.ppid:
            time.sleep(0.1)  # SIGTERM has its handler of gunicorn's again: it clears self.alive
        sys.exit(1)

    def handle_abort(self, sig: int, frame: Any) -> None:
        """faulthandler has written where the threads stand: one that never returns to Python does not get here.

        Not by sys.exit(): an exception raised here can land in a callback of the loop, which would swallow it.
        """
        self.alive = False
        self.log.critical("no heartbeat for %s s; where each thread stood is written above", self.cfg.timeout)
        self.cfg.worker_abort(self)
        os._exit(1)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        self._reopen_logs()

    def _reopen_logs(self) -> None:
        self.log.reopen_files()
        self._trace_to_log()

    def _trace_to_log(self) -> None:
        """Let SIGABRT, and what else kills a process, write where every thread stands, whatever Python is doing."""
        signals.trace_to(getattr(handler, "stream", None) for handler in self.log.error_log.handlers)

    def _join_logs(self) -> None:
        """Again after the application has loaded: logging.config disables loggers that it does not name."""
        logs.join(self.log.error_log, self.log.access_log)

    # --- the event loop's life --------------------------------------------------------------------------------------

    async def _serve(self) -> bool:
        """Load, listen, drain; False when the application did not start."""
        self._stop = asyncio.Event()
        begun = time.monotonic()
        limits = settings.merge_limits(limits_of(self.wsgi), self.cfg, self.log)
        self._tell("start", "starts", workers=self.count, timeout=self.cfg.timeout, **asdict(limits))
        listener = Listener(self.wsgi, limits, lifespan=self.cfg.asgi_lifespan)
        self._configure(listener.connections)
        heart = asyncio.get_running_loop().create_task(self._beat(listener))
        try:
            if not await self._start(listener):
                return self._stop.is_set()
            if not self._stop.is_set():
                self._be_ready(listener.connections)
                await self._stop.wait()
                await self._wait_for_successor()
            await self._drain(listener)
            return True
        finally:
            heart.cancel()
            self._tell("exit", "exits", requests=self._taken(listener), seconds=time.monotonic() - begun)

    def _tell(self, name: str, what: str, **fields: Any) -> None:
        event(self.log, f"worker_{name}", f"worker index {self.index} {what}", {"index": self.index}, **fields)

    async def _start(self, listener: Listener) -> bool:
        """Load and listen; False when that failed, or SIGTERM came before it was done."""
        loading = listener.begin(self)
        for _ in range(2):  # startup(), and the task that it waits for
            await asyncio.sleep(0)  # a setup() that holds the loop does it here, and SIGTERM ends it there
        self._add_signals(asyncio.get_running_loop())
        starting = asyncio.ensure_future(listener.start(loading, lambda: self._listen(listener)))
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self._join_logs()
        if not starting.done():
            self.log.info("stopping while the application loads")
            self._arm_watchdog()
            starting.cancel()
        try:
            await starting
            await self._grpc.start(self.wsgi, listener.connections.limits, self.cfg, self.log)
            return True
        except asyncio.CancelledError:
            if REGISTER.has_to_tear_down():  # it warms up: once its batch is back
                await self._drain(listener)
            else:
                await listener.drain(QUICK_SECONDS)
        except Exception:
            self.log.exception("the application did not start")
            self._share.is_open = False
            await listener.close()
        return False

    def _be_ready(self, connections: Connections) -> None:
        freeze(self.cfg.preload_app)
        connections.closing = self.cfg.keepalive == 0
        connections.heads_taken = 0  # those that were refused meanwhile don't count towards max_requests
        self._is_ready = True
        self.scoreboard.set_state(self.index, READY)
        self.notify()
        self._tell("ready", "is ready", workers=self.count)
        if self.index == 0 and isinstance(self.app, Program):
            self.app.greet(self, self.wsgi)

    def _configure(self, connections: Connections) -> None:
        connections.closing = True  # until it is ready
        connections.root_path = self.cfg.root_path.rstrip("/")
        connections.secure = settings.trust(self.cfg)
        connections.access = access_of(self.log)

    async def _listen(self, listener: Listener) -> None:
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        for sock in self.sockets:  # read here, not in __init__: reuse_port replaces them after the fork
            sock.setblocking(False)
            # The backlog is passed because listen() is called again, and a default would shrink it.
            # With reuse_port the socket is this worker's alone: nobody else takes from its queue.
            share = None if self.cfg.reuse_port else self._share
            await listener.listen(sock.sock, self.cfg.backlog, context, share)

    async def _beat(self, listener: Listener) -> None:
        """Tell the master that the loop turns; look whether it is time to go."""
        pause = min(HEARTBEAT_SECONDS, self.timeout / 2) if self.timeout else HEARTBEAT_SECONDS
        while True:
            if self._is_ready:
                self.notify()
            self.scoreboard.publish(self.index, len(listener.connections.members))
            over = "the master is gone: stopping" if os.getppid() != self.ppid else REGISTER.gone
            if over:
                self._stop_because(over)
            elif self._is_ready and self._taken(listener) >= self.max_requests:
                self._stop_because(f"max_requests reached: {self.max_requests} requests served")
            elif not self.alive:  # the reloader says so
                self._stop.set()
            await asyncio.sleep(pause)

    def _taken(self, listener: Listener) -> int:
        """Requests since it was ready, over HTTP and gRPC."""
        return int(listener.connections.heads_taken) + self._grpc.taken

    def _stop_because(self, why: str) -> None:
        """Begin to stop; the log says each reason once."""
        if why not in self._said:
            self._said.add(why)
            self.log.info(why if self._is_free() else f"{why}; not acted on until a newer worker is ready")
        self._stop.set()

    async def _wait_for_successor(self) -> None:
        """Serve on while nobody else would for a while, or only code that was never ready."""
        if self._is_free():
            return
        self.log.info("worker %d serves on until a newer worker is ready", self.index)
        while not self._is_free():
            await asyncio.sleep(SUCCESSOR_SECONDS)

    def _is_free(self) -> bool:
        at_once = self._quick or not self.alive or self.scoreboard.is_stopping() or os.getppid() != self.ppid
        return at_once or self.scoreboard.can_do_without(self.index)

    async def _drain(self, listener: Listener) -> None:
        self.alive = False
        self.scoreboard.set_state(self.index, DRAINING if self._told else RESTARTING)
        self._arm_watchdog()
        grace = QUICK_SECONDS if self._quick else max(QUICK_SECONDS, self.cfg.graceful_timeout - MARGIN_SECONDS)
        connections = len(listener.connections.members)
        self._tell("drain", "drains", connections=connections, seconds=grace, by_signal=self._told)
        waits = self._is_ready and not self._quick and not self._share.has_ready_sibling()
        delay = settings.drain_delay() if waits else 0.0  # else a check would find who leaves, not who serves on
        draining: asyncio.Future[Any] = asyncio.gather(listener.drain(grace, delay), self._grpc.stop(grace, delay))
        hurry = asyncio.ensure_future(self._wait_quick())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            listener.connections.abort()
            await self._grpc.stop(0)
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
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        loop.add_signal_handler(signal.SIGWINCH, lambda: None)
        if not self.alive:
            self._stop.set()  # SIGTERM came just before

    def _on_term(self) -> None:
        self._told = True
        self._stop.set()

    def _on_quit(self) -> None:
        if not self._quick:
            self._told = self._quick = True
            self.cfg.worker_int(self)
        self._stop.set()


async def _cancel_what_is_left() -> None:
    """What asyncio.run() does at its end, but no longer than a moment: a setup() that never ends may be among it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=QUICK_SECONDS)
