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
import faulthandler
import logging
import os
import signal
import time
from dataclasses import asdict
from typing import Any, ClassVar

import uvloop
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from .limits import allowance
from .logs import event
from .service.register import REGISTER
from .wire.connections import Connections
from .wire.guests import limits_of
from .wire.listener import Listener
from .workers import logs, settings, signals, systemd, uvicorn
from .workers.access_log import access_of
from .workers.grpc_port import GrpcPort, keep
from .workers.leaving import QUICK_SECONDS, Leaving
from .workers.loading import load, stand_in
from .workers.memory import freeze, keep_freed_memory
from .workers.program import Program
from .workers.scoreboard import READY, RESTARTING, Scoreboard
from .workers.share import Share

HEARTBEAT_SECONDS = 1.0


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
        self._is_ready = False
        self._share = Share(self.scoreboard, self.index)
        self._leaving = Leaving(self, self.index, self.scoreboard, self._share)
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
        """Called by gunicorn in the master, ahead of the first fork.

        Raises RuntimeError for settings that can't be honoured: of that, gunicorn prints the message alone.
        """
        try:
            settings.check(cfg)
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        signals.spare_orphans(cfg)
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
        keep_freed_memory(allowance(None, self.count).max_bytes)
        self.scoreboard.own(self.index, self.age)
        self.scoreboard.board.use(self.index)
        try:
            super().init_process()
        except Exception:
            if self.booted or (not self.scoreboard.has_served() and self.scoreboard.may_end_service()):
                raise
            if self.scoreboard.has_served():  # else whoever failed first has said it
                self.log.exception("the worker could not be started")  # a hook raised: of the new settings, say
            self._leaving.after_failure()
        finally:
            if self._leaving.is_told or self.scoreboard.entry(self.index).state != RESTARTING:
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
                self._leaving.after_failure()
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
            self._leaving.after_failure()

    def _cancel_setup(self, sig: int, frame: Any) -> None:
        """A signal to go while a setup() holds the event loop, which could not react: no request was taken yet."""
        self.alive = False
        if sig != signal.SIGTERM:
            self.cfg.worker_int(self)
        raise asyncio.CancelledError(signal.Signals(sig).name)

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
        begun, leaving = time.monotonic(), self._leaving
        limits = settings.merge_limits(limits_of(self.wsgi), self.cfg, self.log)
        self._tell("start", "starts", workers=self.count, timeout=self.cfg.timeout, **asdict(limits))
        listener = Listener(self.wsgi, limits, lifespan=self.cfg.asgi_lifespan)
        self._configure(listener.connections)
        heart = asyncio.get_running_loop().create_task(self._beat(listener))
        try:
            if not await self._start(listener):
                return leaving.begun.is_set()
            if not leaving.begun.is_set():
                self._be_ready(listener.connections)
                await leaving.begun.wait()
                await leaving.wait_for_successor()
            await leaving.drain(listener, self._grpc, self._is_ready)
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
        stopping = asyncio.ensure_future(self._leaving.begun.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self._join_logs()
        if not starting.done():
            self.log.info("stopping while the application loads")
            self._leaving.arm_watchdog()
            starting.cancel()
        try:
            await starting
            await self._grpc.start(self.wsgi, listener.connections.limits, self.cfg, self.log)
            return True
        except asyncio.CancelledError:
            if REGISTER.has_to_tear_down():  # it warms up: once its batch is back
                await self._leaving.drain(listener, self._grpc, was_ready=False)
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
            self._leaving.look(self._taken(listener) if self._is_ready else 0)
            await asyncio.sleep(pause)

    def _taken(self, listener: Listener) -> int:
        """Requests since it was ready, over HTTP and gRPC."""
        return int(listener.connections.heads_taken) + self._grpc.taken

    # --- signals ----------------------------------------------------------------------------------------------------

    def _add_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """SIGABRT stays with signal.signal(): it is for the case that the loop does not run."""
        loop.add_signal_handler(signal.SIGTERM, self._leaving.on_term)
        loop.add_signal_handler(signal.SIGINT, self._leaving.on_quit)
        loop.add_signal_handler(signal.SIGQUIT, self._leaving.on_quit)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        loop.add_signal_handler(signal.SIGWINCH, lambda: None)
        if not self.alive:
            self._leaving.begun.set()  # SIGTERM came just before


async def _cancel_what_is_left() -> None:
    """What asyncio.run() does at its end, but no longer than a moment: a setup() that never ends may be among it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=QUICK_SECONDS)
