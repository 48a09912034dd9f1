"""Routes a request, admits or refuses it, answers it: the core that both shells share, and the ASGI shell.

    Server.open(head, now) -> Response | Exchange    at the end of the headers: refuse, or take what follows
    Exchange.write(data)                             the body, in pieces,
    Exchange.buffer(n), Exchange.charge(n)           or read into its place
    Exchange.complete() -> Response | Exchange       the body is all there: answer, or admit
    Exchange.cancel(reason)                          nobody waits for the answer any more
    Server.leave(peer)                               the connection is gone

The other shell is connection.py, which uses these calls directly. Server is not compiled on purpose: a coroutine
function of Cython is taken for ASGI 2.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from typing import Any

from . import __version__
from .batch.batcher import Batcher
from .batch.company import Peer
from .batch.device import Device
from .batch.executors import AsyncExecutor, Executor, InlineExecutor, ThreadExecutor
from .batch.rows import RowRing, allocate, fitting
from .batch.steps import Steps, TensorSteps, async_methods
from .errors import RETRY_SOON, Headers, RequestError, quoted
from .handler import RequestHandler, TensorHandler, Worker, answers_json
from .limits import Limits
from .observer import Observer, as_one
from .service.asgi_app import GONE, Shell, body_of, refuse_websocket, retrieve, start_of
from .service.bodies import Bodies
from .service.exchange import Admission, Exchange
from .service.seam import ACCEPTS, JSON, Head, Response, refusal
from .tensor import Tensor, describe, reader

log = logging.getLogger("virtex")

LEAST_QUEUE = 1024  # items that may wait by default, however small the batches: a burst of single items is no overload
MOST_ITEMS = 1 << 32  # items in a batch: what is counted fits 64 bits, with room for sums
RESERVED = ("/health/", "/metrics/", "/v2/")


# The life of a server, in order; it may go from STARTING to FAILED, and a fork or a new loop starts it anew.
NEW, STARTING, READY, DRAINING, CLOSED, FAILED = "new", "starting", "ready", "draining", "closed", "failed"


class Server:
    """A service: one handler behind a bare ASGI 3 callable. Made by http_server(), which documents the arguments."""

    def __init__(
        self,
        name: str,
        handler: RequestHandler | Callable[[], RequestHandler],
        *,
        max_batch_size: int,
        max_time_on_queue: float,
        max_queue_size: int | None,
        executor: str,
        limits: Limits,
        observer: Observer | None,
        watchdog: float | None,
        authorize: Callable[[Head], int | None] | None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        # Process: as configured
        self.name = name
        self.limits = limits
        self.observer = observer
        self.max_batch_size = max_batch_size
        self.max_time_on_queue = max_time_on_queue
        self.max_queue_size = max_queue_size or max(4 * max_batch_size, LEAST_QUEUE)
        self._queue_may_shrink = max_queue_size is None
        self._source = handler
        self._executor_name = executor
        self._clock = clock
        self._watchdog = watchdog
        self._authorize = authorize
        self.budget = Bodies(limits.max_bytes)
        self._info = self._describe()
        # Loop: bound by _bind(), with more, because gunicorn may fork after http_server() was called
        self.loop: asyncio.AbstractEventLoop
        self.batcher: Batcher
        self._state = NEW
        self._pid = 0

    def _bind(self) -> None:
        """Begin a life on the running loop."""
        self.loop = asyncio.get_running_loop()
        self._state = NEW
        self._lazy = False
        self._why_failed = ""
        self._handler: RequestHandler | None = None
        self._thread: ThreadExecutor | None = None
        self._context = copy_context()
        self._startup: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self.batcher = Batcher(
            self.loop,
            self.max_batch_size,
            self.max_time_on_queue,
            self.max_queue_size,
            self._clock,
            self.observer,
        )
        self.admission = Admission(
            self.loop, self._clock, self.limits, self.batcher, self.observer, self.max_queue_size, self.budget
        )
        self._shell = Shell(self.loop, self._clock, self.batcher, self.max_time_on_queue > 0)
        if self._pid:
            self.budget.held = 0  # what was held on a loop that is gone, or by another process, went with it
        self._pid = os.getpid()  # last: what failed is tried again

    # ---- life ----

    async def startup(self, worker: Worker | None = None) -> None:
        """Make the handler and run its setup(); returns when requests can be answered.

        With executor="thread" they run on the thread of the handler; else here, and a plain setup() holds the loop.
        worker: what setup() gets. Raises what the handler's constructor or setup() raised. Calling it again waits for
        the first call.
        """
        self._begin(worker or Worker(), lazy=False)
        assert self._startup is not None
        await asyncio.shield(self._startup)

    def _begin(self, worker: Worker, lazy: bool) -> None:
        if not self._is_bound():
            self._bind()
        if self._state is NEW:
            self._state = STARTING
            self._lazy = lazy
            self._startup = self.loop.create_task(self._start(worker), context=self._context)
            self._startup.add_done_callback(retrieve)

    def _is_bound(self) -> bool:
        """Whether this is the process and the loop that the server's present life began on."""
        if not self._has_life():
            return False
        if self.loop is asyncio.get_running_loop():
            return True
        raise RuntimeError(f"service {self.name!r} already runs on another event loop; make one app per loop")

    def _has_life(self) -> bool:
        """Whether there is a life to be ended; a fork leaves it to the parent, and a loop that is closed ended it."""
        return self._pid == os.getpid() and not self.loop.is_closed()

    async def _start(self, worker: Worker) -> None:
        thread = ThreadExecutor(self.loop, f"virtex {self.name}") if self._executor_name == "thread" else None
        try:
            handler = await _call(thread, self._make)
            await _call(thread, handler.setup, worker)
            run = self._plan(handler, thread)
        except BaseException as error:
            self._fail(error)
            if thread is not None:
                thread.stop()
            raise
        self._handler = handler
        self._thread = thread
        if self._state is STARTING:
            self._state = READY
            self.admission.is_open = self._authorize is None
        log.info("service %r is ready in process %d", self.name, self._pid)
        run()
        self.admission.start()

    def _plan(self, handler: RequestHandler, thread: ThreadExecutor | None) -> Callable[[], None]:
        """How batches of this handler run; raises for what can't be."""
        executor = self._choose(handler, thread)
        clock = None if self.observer is None else self._clock  # whom nobody observes is not measured
        if not isinstance(handler, TensorHandler):
            return partial(self.batcher.run_with, executor, Steps(handler, clock))
        if not isinstance(getattr(handler, "inputs", None), (Tensor, Mapping)):
            raise TypeError(f"{type(handler).__name__}.inputs: expected a Tensor or a dict of them")
        if type(handler).process_request is not TensorHandler.process_request:
            raise TypeError(f"{type(handler).__name__}.process_request would never run: its inputs are declared")
        device = None if handler.device is None else Device(handler.device)
        if device is not None and device.is_cuda and executor is not thread:
            raise ValueError(f'device={handler.device!r} needs executor="thread": waiting for it would block the loop')
        ring = self._rows_for(handler, device)
        self.admission.read = partial(reader, handler.inputs)
        self._info = self._describe(inputs=describe(handler.inputs), outputs=describe(handler.outputs))
        steps = TensorSteps(handler, answers_json(handler), clock, device, executor.depth > 1)
        return partial(self.batcher.run_with, executor, steps, ring)

    def _rows_for(self, handler: TensorHandler, device: Device | None) -> RowRing:
        new = allocate if device is None else device.allocate
        if self._queue_may_shrink:
            fits = fitting(handler.inputs, self.max_batch_size, self.limits.max_bytes // 2)
            self.max_queue_size = min(self.max_queue_size, fits)
        most = self.limits.max_bytes - self.limits.body  # for a body must be room too
        ring = RowRing(handler.inputs, self.max_batch_size, self.max_queue_size, most, new)
        self.admission.bodies.budget = self.limits.max_bytes - ring.slabs * ring.slab_bytes
        log.info(
            "service %r: at most %d buffers of %d rows, %d bytes each, %d in all",
            self.name,
            ring.slabs,
            self.max_batch_size,
            ring.slab_bytes,
            ring.slabs * ring.slab_bytes,
        )
        return ring

    def _make(self) -> RequestHandler:
        source = self._source
        handler = source if isinstance(source, RequestHandler) else source()
        if not isinstance(handler, RequestHandler):
            raise TypeError(f"handler: expected a RequestHandler, the factory made a {type(handler).__name__}")
        return handler

    def _choose(self, handler: RequestHandler, thread: ThreadExecutor | None) -> Executor:
        awaits = ", ".join(async_methods(handler))
        if thread is not None:
            if awaits:
                raise TypeError(f'executor="thread" runs plain methods; {awaits} of {type(handler).__name__} is async')
            return thread
        if awaits:
            return AsyncExecutor(self.loop, self._context)
        if self._watchdog is not None:
            raise ValueError(
                'watchdog needs executor="thread" or async methods: inline, nothing can look after the model'
            )
        return InlineExecutor(self._context)

    def _fail(self, error: BaseException) -> None:
        self._state = FAILED
        self._why_failed = f"the handler's setup failed: {type(error).__name__}"
        if isinstance(error, Exception):
            log.error("service %r did not start", self.name, exc_info=error)
        else:
            log.info("service %r was stopped while it started: %s", self.name, type(error).__name__)
        self.admission.fail(RequestError(503, self._why_failed))

    def drain(self) -> None:
        """Be unready from now on and cut batches without waiting; requests are still answered."""
        if self._state in (STARTING, READY) and self._has_life():
            self._state = DRAINING
            self.admission.is_open = False
            self.batcher.drain()

    async def shutdown(self) -> None:
        """Refuse new requests, answer those that were taken, then run the handler's teardown() where setup() ran.

        Calling it again waits for the first call.
        """
        if not self._has_life():
            return
        if self._ending is not None:
            await asyncio.shield(self._ending)
            return
        self._ending = self.loop.create_future()
        try:
            await self._end()
        finally:
            self._ending.set_result(None)

    async def _end(self) -> None:
        self.drain()
        if self._startup is not None and self._state is not FAILED:
            await asyncio.wait([self._startup])
        if self._state is not FAILED:
            self._state = CLOSED
        await self.admission.wait_settled()
        if self._handler is None:
            return
        if self.batcher.running_since:
            log.warning("service %r: the model has not come back; its teardown is left out", self.name)
        else:
            await self._tear_down(self._handler)

    async def _tear_down(self, handler: RequestHandler) -> None:
        try:
            await self.loop.create_task(_call(self._thread, handler.teardown), context=self._context)
        except Exception:
            log.exception("teardown of %r raised", self.name)
        finally:
            if self._thread is not None:
                self._thread.stop()

    # ---- the seam ----

    def open(self, head: Head, now: int) -> Response | Exchange:
        """Refuse a request at the end of its headers, answer it if it has no body to wait for, or take it.

        now: the clock, in nanoseconds. A connection that sends the same head again asks `admission` at once, while that
        is_open.
        """
        if self._state is not READY or not self.loop.is_running():  # it has ended: begin on this one
            self._begin(Worker(), lazy=True)
        try:
            if self._authorize is not None and not head.path.startswith("/health/"):
                self._check_authorized(self._authorize, head)
            if head.wants is None and (
                head.method != "POST" or head.path.startswith(RESERVED) or head.path == "/metrics"
            ):
                return self.admission.answer(self._get(head), now)
            if self._state is not READY:
                self._refuse_by_state()
        except RequestError as error:
            return self.admission.refuse(error, now)
        return self.admission.open(head, now)

    def _check_authorized(self, authorize: Callable[[Head], int | None], head: Head) -> None:
        """Raise RequestError with the status that the user's function wants, 500 for what it should not do."""
        try:
            # What it does to its copy does not come back with the next request that has the same head.
            status = authorize(Head(head.method, head.path, head.headers[:], head.length, head.peer))
        except (Exception, SystemExit) as error:
            self.batcher.tracebacks.log(error, "authorize raised")
            raise RequestError(500, "authorize raised") from None
        if status is None:
            return
        if not _whole(status, 400, 599):
            log.error("authorize returned %r; expected None, or a status from 400 to 599", status)
            raise RequestError(500, "authorize returned no status")
        # RFC 9110 section 15.5.2: a 401 says by what scheme to do better
        challenge: Headers = ((b"www-authenticate", b"Bearer"),) if status == 401 else ()
        raise RequestError(status, "not authorized", challenge)

    def leave(self, peer: Peer) -> None:
        """A connection is gone, and its exchanges are cancelled: nobody waits for it any more."""
        if self._has_life():
            self.batcher.company.leaves(peer)
            self.batcher.wake()

    def _refuse_by_state(self) -> None:
        """503 unless requests are still taken: while draining, and while starting on a request's behalf."""
        if self._state is FAILED:
            raise RequestError(503, self._why_failed)
        if self._state is CLOSED:
            raise RequestError(503, "the service has shut down", RETRY_SOON)
        if self.admission.is_starting and not self._lazy:
            raise RequestError(503, "the service is starting", RETRY_SOON)

    # ---- answers without a body ----

    def _get(self, head: Head) -> Response:
        path = head.path
        if path == "/health/live":
            answer = self._live()
        elif path == "/health/ready":
            answer = self._health(self._state is READY, "ready")
        elif path == "/":
            answer = Response(200, JSON, [self._info])
        elif path.startswith(RESERVED) or path == "/metrics":
            raise RequestError(404, f"nothing at {quoted(path)}")
        else:
            raise RequestError(405, f"{named(head)}: messages are POSTed", ((b"allow", b"POST"),))
        if head.method not in ("GET", "HEAD"):
            allow = b"GET, HEAD, POST" if path == "/" else b"GET, HEAD"
            raise RequestError(405, f"{named(head)}: expected {allow.decode()}", ((b"allow", allow),))
        return answer

    def _live(self) -> Response:
        since = self.batcher.running_since
        if self._watchdog is not None and since and self._clock() - since > self._watchdog * 1e9:
            return refusal(503, f"not live: the model has not come back for more than {self._watchdog:g} s")
        return self._health(self._state is not FAILED, "live")

    def _health(self, well: bool, what: str) -> Response:
        if well:
            return Response(200, JSON, [b'{"%b":true}' % what.encode()])
        return refusal(503, self._why_failed or f"not {what}: the service is {self._state}", RETRY_SOON)

    def _describe(self, **more: Any) -> bytes:
        return json.dumps(
            {
                "name": self.name,
                "version": __version__,
                "accepts": ACCEPTS.split(", "),
                "answers": ACCEPTS.split(", "),
                "max_batch_size": self.max_batch_size,
                "max_time_on_queue": self.max_time_on_queue,
                "max_queue_size": self.max_queue_size,
                "limits": asdict(self.limits),
                **more,
            }
        ).encode()

    # ---- the ASGI shell ----

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3: http and lifespan; a websocket's handshake is ended, anything else is refused by raising."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await refuse_websocket(receive, send)
            else:
                await self._lifespan(scope["type"], receive, send)
            return
        if self._state is not READY or self.loop is not asyncio.get_running_loop():
            self._begin(Worker(), lazy=True)
        shell = self._shell
        head = shell.head_of(scope)
        now = self._clock()
        answer: Any = self.open(head, now)
        exchange: Exchange | None = None
        if answer.__class__ is Exchange:
            exchange = answer
            exchange.await_rest(now)
            try:
                answer = shell.take(exchange, await receive())
                while answer is None:
                    answer = shell.take(exchange, await receive())
                if answer is exchange:
                    wait = shell.wait(exchange, receive)
                    try:
                        answer = exchange.result() if await wait.over else GONE
                    finally:
                        shell.end(wait)
            except BaseException:
                exchange.cancel("the server gave the request up")
                raise
        if answer is GONE:
            return
        try:
            await send(start_of(answer))
            await send(body_of(answer, head))
        except OSError as error:  # what an ASGI server may say where the client is gone
            log.debug("the client left while it was answered: %s", error)
        finally:
            if exchange is not None:
                exchange.release()

    async def _lifespan(self, kind: str, receive: Any, send: Any) -> None:
        if kind != "lifespan":
            raise RuntimeError(f"scope type {kind!r}: Virtex serves http and lifespan")
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.startup()
                except Exception as error:
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _call(thread: ThreadExecutor | None, method: Callable[..., Any], *args: Any) -> Any:
    """Run setup() or its like where the handler's three methods run: some of what it sets is of one thread only."""
    is_async = inspect.iscoroutinefunction(method)
    if thread is not None:
        return await (thread.call(_run_here, method, *args) if is_async else thread.call(method, *args))
    try:
        return await method(*args) if is_async else method(*args)
    except SystemExit as error:  # 3 or 4 would end all of gunicorn
        raise RuntimeError(f"raised SystemExit: {error}") from error


def _run_here(method: Callable[..., Any], *args: Any) -> Any:
    """Run a coroutine function on this thread; what it sets in its context holds on the thread after it."""
    context = copy_context()
    with asyncio.Runner() as runner:
        result = runner.run(method(*args), context=context)
    for variable, value in context.items():
        variable.set(value)
    return result


def http_server(
    name: str,
    handler: RequestHandler | Callable[[], RequestHandler],
    max_batch_size: int = 512,
    max_time_on_queue: float = 0.005,
    prom_host: str = "127.0.0.1",
    prom_port: int = 9090,
    prom_mode: str = "off",
    prom_interval: float = 0.01,
    *,
    prom_push_interval: float | None = None,
    max_queue_size: int | None = None,
    executor: str = "inline",
    limits: Limits | None = None,
    observer: Observer | Sequence[Observer] | None = None,
    watchdog: float | None = None,
    authorize: Callable[[Head], int | None] | None = None,
) -> Server:
    """Make a service of a handler: a bare ASGI 3 callable.

    name: of the service. handler: a RequestHandler, its class or a factory; the latter two are called in each worker.
    max_batch_size: items that run_inference gets at most. max_time_on_queue: seconds that an item waits for company at
    most; 0: never. max_queue_size: items waiting at most, 503 beyond; default 4 x max_batch_size or
    1024, whichever is more, for declared inputs no more than fits into half of limits.max_bytes.
    executor: "inline" runs the handler on the event loop, "thread" on a thread of its own; async methods run as
    coroutines on the loop. limits: of protocol and queue. observer: is told what happens, or each of
    several. watchdog: seconds after which
    a batch that has not come back makes /health/live answer 503; for "thread" and async methods.
    authorize: gets the head of every request but those for /health/, before its body is read; returns None, or the
    status to refuse it with (401, 403, 429). It must return at once: the loop waits.
    prom_*: checked; prom_mode other than "off" is refused, there are no metrics yet. prom_push_interval: an older name
    of prom_interval.

    Raises ValueError for an argument that is not as said here.
    """
    _check(isinstance(name, str) and name != "", "name", name, "a string that is not empty")
    _check(
        isinstance(handler, RequestHandler) or callable(handler),
        "handler",
        handler,
        "a RequestHandler, its class or a factory",
    )
    _check(_whole(max_batch_size, 1, MOST_ITEMS), "max_batch_size", max_batch_size, "a whole number from 1 to 2**32")
    _check(
        _number(max_time_on_queue) and 0 <= max_time_on_queue <= 3600,
        "max_time_on_queue",
        max_time_on_queue,
        "seconds from 0 to 3600",
    )
    _check(
        max_queue_size is None or _whole(max_queue_size, 1, 4 * MOST_ITEMS),
        "max_queue_size",
        max_queue_size,
        "a whole number from 1 to 2**34, or None",
    )
    _check(executor in ("inline", "thread"), "executor", executor, '"inline" or "thread"')
    _check(limits is None or isinstance(limits, Limits), "limits", limits, "a Limits, or None")
    observers = _observers(observer)
    _check(watchdog is None or (_number(watchdog) and watchdog > 0), "watchdog", watchdog, "seconds above 0, or None")
    _check(authorize is None or callable(authorize), "authorize", authorize, "a function of the head, or None")
    _check_prom(prom_host, prom_port, prom_mode, prom_interval if prom_push_interval is None else prom_push_interval)
    return Server(
        name,
        handler,
        max_batch_size=max_batch_size,
        max_time_on_queue=max_time_on_queue,
        max_queue_size=max_queue_size,
        executor=executor,
        limits=limits or Limits(),
        observer=as_one(observers),
        watchdog=watchdog,
        authorize=authorize,
    )


def _observers(given: Observer | Sequence[Observer] | None) -> Sequence[Observer]:
    if given is None or isinstance(given, Observer):
        return () if given is None else (given,)
    holds = isinstance(given, Sequence) and all(isinstance(one, Observer) for one in given)
    _check(holds, "observer", given, "an Observer, a sequence of them, or None")
    return given


def _check_prom(host: object, port: object, mode: object, interval: object) -> None:
    hostname = host.removeprefix("http://").removeprefix("https://") if isinstance(host, str) else ""
    _check(
        hostname != "" and "/" not in hostname.rstrip("/"), "prom_host", host, "a host name, with or without http://"
    )
    _check(_whole(port, 1, 65535), "prom_port", port, "a port from 1 to 65535")
    _check(_number(interval) and float(str(interval)) > 0, "prom_interval", interval, "seconds above 0")
    _check(mode in ("off", "scrape", "push"), "prom_mode", mode, '"off", "scrape" or "push"')
    if mode != "off":
        raise ValueError(f'prom_mode={mode!r}: this version has no metrics yet; expected "off"')


def named(head: Head) -> str:
    """A request, as an error names it."""
    return f"{quoted(head.method)} {quoted(head.path)}"


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError, which says what was expected and what came."""
    if not holds:
        raise ValueError(f"http_server({name}={value!r}): expected {expected}")
