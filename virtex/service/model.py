"""A handler and its life: made, set up, its batches cut and run, drained, torn down.

    starting -> ready -> draining -> closed
        \\-> failed

teardown() runs once where setup() came to its end, whatever else fails or ends the start; never where setup() raised.

Rules: knows loops, threads and processes, but neither sockets nor ASGI, nor how a request is written. A model lives
once, on one loop of one process; a fork or a new loop needs another one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from ..batch.arrays import array_dtype
from ..batch.batcher import Batcher
from ..batch.device import Cuda, Device, device_for, take_turn
from ..batch.executors import Executor, ThreadExecutor
from ..batch.items import steps_for
from ..batch.outputs import Rows
from ..batch.ring import Ring
from ..batch.row_steps import Elsewhere, RowMethods, TensorSteps
from ..batch.steps import Steps
from ..batch.texts import has_text
from ..errors import RETRY_SOON, RequestError
from ..handler import RequestHandler, TensorHandler, Worker, answers_json
from ..limits import fitting
from ..logs import event, show
from ..metrics._metrics import Cells
from ..metrics.export import Export
from ..resident import most_resident
from .about import declared, described, example_shown
from .admission import Admission
from .batching import BODY_IS_CUT, buffers_of, check_declared, executor_for, ring_for, row_ring_for
from .bodies import Bodies
from .health import Health
from .on_device import Gpu, check_device
from .options import Options
from .register import REGISTER
from .uploads import kinds_of
from .v2_head import Served
from .warmup import NO_ITEMS, example_of, warm_up

log = logging.getLogger("virtex")

STARTING, READY, DRAINING, CLOSED, FAILED = "starting", "ready", "draining", "closed", "failed"


class Model:
    """One life, which begins at once on the running loop: `starting` ends when requests can be answered.

    cells: where it counts. worker: what setup() gets. is_lazy: it begins on behalf of a request, so requests wait until
    it is ready. asked: the server wants to see every request. info: what it is, as JSON. why_failed: "" unless its
    start failed. starting raises what the handler's constructor, its setup() or the warm-up raised.
    """

    def __init__(
        self, options: Options, bodies: Bodies, cells: Cells, worker: Worker, is_lazy: bool, asked: bool
    ) -> None:
        self._asked_body = options.limits.body
        self.options = options = replace(options, limits=fitting(options.limits, bodies.most))
        self.loop = asyncio.get_running_loop()
        self.state: str = STARTING
        self.watchers: set[Callable[[], None]] = set()  # told once it drains
        self.why_failed = ""
        self.export: Export | None = None  # of its metrics, where somebody asked for them
        self.max_queue_size = options.queue
        self.steps: Steps  # of its batches, from the end of setup() on
        self.info = described(options, self.max_queue_size)
        self.batcher = Batcher(
            self.loop,
            options.max_batch_size,
            options.max_time_on_queue,
            self.max_queue_size,
            options.clock,
            options.told,
            cells,
        )
        self.admission = Admission(
            *(self.loop, options.clock, options.limits, self.batcher, options.told, self.max_queue_size, bodies, cells)
        )
        self._pid = os.getpid()
        self._is_lazy = is_lazy
        self._asked = asked
        self.health = Health(options.name, worker, options.unhealthy_after)
        if options.unhealthy_after is not None:
            self.batcher.judge = self.health.judge
        self._handler: RequestHandler | None = None  # from the end of setup() to teardown()
        self._thread: ThreadExecutor | None = None
        self._gpu: Gpu | None = None
        self._context = copy_context()
        self._ending: asyncio.Future[None] | None = None
        self.starting = self.loop.create_task(self._start(self.health.worker), context=self._context)
        self.starting.add_done_callback(retrieve)

    @property
    def lives(self) -> bool:
        """Whether there is a life to be ended; a fork leaves it to the parent, and a loop that is closed ended it."""
        return self._pid == os.getpid() and not self.loop.is_closed()

    @property
    def why_not_live(self) -> str:
        """Why its process had better be replaced; "" where it is well."""
        since, watchdog = self.batcher.running_since, self.options.watchdog
        if watchdog is not None and since > 0 and self.options.clock() - since > watchdog * 1e9:
            return f"the model has not come back for more than {watchdog:g} s"
        return self.health.reason

    def check_takes(self) -> None:
        """Raise RequestError (503) unless requests are taken: while draining, and while starting for them, they are."""
        if self.state is FAILED:
            raise RequestError(503, self.why_failed, (), "draining")
        if self.state is CLOSED:
            raise RequestError(503, "the service has shut down", RETRY_SOON, "draining")
        if self.admission.is_starting and not self._is_lazy:
            raise RequestError(503, "the service is starting", RETRY_SOON, "draining")

    def check_submits(self) -> None:
        """The same for what no connection brought: what is refused here nobody else counts.

        Raises RuntimeError on another loop.
        """
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"service {self.options.name!r} runs on another event loop: submit() there, from a thread by "
                "asyncio.run_coroutine_threadsafe(app.submit(items), loop)"
            )
        if self.state is READY:
            return
        try:
            self.check_takes()
        except RequestError as error:
            self.admission.cells.refused(error.status)
            self.admission.turn_away(error)
            raise

    # ---- the start

    async def _start(self, worker: Worker) -> None:
        options = self.options
        begun = options.clock()
        doing = "exporting its metrics"
        try:
            show(options.log)
            self._tell_start(worker)
            if options.prom.mode != "off":
                self.export = Export(options.name, options.prom)
            doing = "the handler's setup"
            if options.executor == "thread":
                self._thread = ThreadExecutor(self.loop, f"virtex {options.name}")
            handler = await self.call(self._make)
            if isinstance(handler, TensorHandler):
                await self.call(take_turn, handler.device, worker.index)
            await self.call(handler.setup, worker)
            self._handler = handler
            REGISTER.set_up.add(self)
            device = await self.call(device_for, handler.device if isinstance(handler, TensorHandler) else None)
            executor, self.steps, ring = self._batching_of(handler, device)
            self.max_queue_size = ring.capacity
            self._introduce(handler)
            more = declared(handler) | (
                await example_shown(options.name, handler, self.call) if options.status_page else {}
            )
            self.info = described(options, self.max_queue_size, self.admission.kinds, more)
            buffers = buffers_of(ring)
            if self._gpu is not None:
                doing = "making its page-locked buffers"
                await self.call(self._gpu.executor.prepare, ring)
                doing = "capturing its graphs"
                await self._gpu.capture(self.call)
            doing = "the warm-up"
            await self._warm_up(handler)
            if self._gpu is not None:
                buffers |= self._gpu.charge()
        except BaseException as error:
            self._fail(doing, error)
            if self.export is not None:
                self.export.end()
            if not isinstance(error, GeneratorExit):  # the loop was closed: nothing runs on it any more
                await self._let_go()
            raise
        if self.state is STARTING:
            self.state = READY
            self.admission.is_open = not self._asked
        seconds = (options.clock() - begun) / 1e9
        self._tell("ready", f"is ready in process {self._pid}", seconds=seconds, rss=most_resident(), **buffers)
        self.batcher.run_with(executor, self.steps, ring)
        self.admission.start()
        if self.export is not None:
            self.export.begin(worker.count)

    async def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Run a method of the handler, or what calls some, where its batches run: what setup() sets may be of there."""
        is_async = inspect.iscoroutinefunction(method)
        if self._thread is not None:
            return await (self._thread.call(_run_here, method, *args) if is_async else self._thread.call(method, *args))
        try:
            return await method(*args) if is_async else method(*args)
        except SystemExit as error:  # 3 or 4 would end all of gunicorn
            raise RuntimeError(f"raised SystemExit: {error}") from error

    def _make(self) -> RequestHandler:
        source = self.options.handler
        handler = source if isinstance(source, RequestHandler) else source()
        if not isinstance(handler, RequestHandler):
            raise TypeError(f"handler: expected a RequestHandler, the factory made a {type(handler).__name__}")
        return handler

    def _batching_of(self, handler: RequestHandler, device: Device | None) -> tuple[Executor, Steps, Ring]:
        """Who runs batches of this handler, by which steps, and where its items wait; raises for what can't be."""
        options, bodies, thread = self.options, self.admission.bodies, self._thread
        executor = executor_for(handler, options, thread, self.loop, self._context)
        ring: Ring
        if not isinstance(handler, TensorHandler):
            steps, ring = steps_for(handler, options.clock), ring_for(handler, options)
        else:
            check_declared(handler, options)
            check_device(handler, options, device)
            ring = row_ring_for(handler, options, device, bodies)
            methods: RowMethods = handler
            place: Elsewhere | None = device
            if isinstance(device, Cuda) and thread is not None:
                gpu = self._gpu = Gpu(handler, device, thread, options, bodies, self.health)
                executor, methods, place = gpu.executor, gpu.methods, gpu.pipeline
            steps = TensorSteps(methods, answers_json(handler), options.clock, place, executor.depth > 1)
        steps.isolates = options.isolate_errors
        return executor, steps, ring

    def _introduce(self, handler: RequestHandler) -> None:
        """Say to who admits requests what this handler takes and gives."""
        admission, name = self.admission, self.options.name
        admission.kinds = kinds_of(handler)
        admission.asks = self.steps.asks
        if isinstance(handler, TensorHandler):
            admission.inputs = handler.inputs
            admission.has_text = has_text(handler.inputs)
            admission.served = Served(name, handler.inputs, handler.outputs, None, answers_json(handler))
            if self.steps.isolates and not self.steps.gives_copies():
                admission.most_kept = admission.bodies.budget // 2
        else:
            admission.dtype = dtype = array_dtype(handler)
            admission.served = Served(name, None, None, dtype, True)

    async def _warm_up(self, handler: RequestHandler) -> None:
        """Run batches of the sizes that were asked for, until it is told to end."""
        sizes, clock, served = self.options.sizes, self.options.clock, self.admission.served
        items = await example_of(handler, self.call) if sizes else []
        if sizes and not items:
            raise TypeError(f"{type(handler).__name__}.example() {NO_ITEMS}")
        for size in sizes:
            if self.state is STARTING:
                begun = clock()
                ran, rows = await warm_up(handler, self.steps, items, size, self.options.max_batch_cost, self.call)
                if isinstance(rows, Rows) and served is not None and served.outputs is None:
                    served.learn(rows.arrays())
                self._tell("warmup", f"has run a batch of {ran}", items=ran, seconds=(clock() - begun) / 1e9)

    def _tell(self, name: str, what: str, **fields: Any) -> None:
        service = self.options.name
        event(log, f"service_{name}", f"service {service!r} {what}", {"service": service}, **fields)

    def _tell_start(self, worker: Worker) -> None:
        options, limits = self.options, self.options.limits
        self._tell(
            *("start", "starts"),
            executor=options.executor,
            max_batch_size=options.max_batch_size,
            max_batch_cost=options.max_batch_cost,
            max_time_on_queue=options.max_time_on_queue,
            max_queue_size=options.queue,
            max_bytes=limits.max_bytes,
            max_bytes_why=self.admission.bodies.why,
            body=limits.body,
            values=limits.values,
            answer_seconds=limits.answer_seconds,
            index=worker.index,
        )
        if limits.body < self._asked_body:
            log.warning(BODY_IS_CUT, options.name, limits.body, self._asked_body, self.admission.bodies.why)

    def _fail(self, doing: str, error: BaseException) -> None:
        self.state = FAILED
        self.why_failed = f"{doing} failed: {type(error).__name__}"
        if isinstance(error, Exception):
            log.error("service %r did not start", self.options.name, exc_info=error)
        else:
            log.info("service %r was stopped while it started: %s", self.options.name, type(error).__name__)
        self.admission.fail(self.why_failed)

    # ---- the end

    def drain(self) -> None:
        """Be unready from now on and cut batches without waiting; requests are still answered."""
        if self.state in (STARTING, READY):
            self.state = DRAINING
            self._tell("drain", "drains", requests=self.admission.unsettled, items=self.batcher.waiting)
            self.admission.is_open = False
            self.batcher.drain()
            for tell in self.watchers:
                tell()

    async def shutdown(self) -> None:
        """Refuse new requests, answer those that were taken, then run the handler's teardown() where setup() ran.

        Calling it again waits for the first call.
        """
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
        if not self.starting.done():
            await asyncio.wait([self.starting])
        if self.state is not FAILED:
            self.state = CLOSED
        await self.admission.wait_settled()
        if self._handler is None:
            return
        if self.export is not None:
            await self.export.wait_ended()
        if self.batcher.running_since:
            log.warning("service %r: the model has not come back; its teardown is left out", self.options.name)
        else:
            await self._let_go()
        self._tell("end", "has ended")

    async def _let_go(self) -> None:
        """Run teardown() where setup() has run, once, and end the thread."""
        handler, self._handler = self._handler, None
        REGISTER.set_up.discard(self)
        try:
            if handler is not None:
                await self.loop.create_task(self.call(handler.teardown), context=self._context)
        except Exception:
            log.exception("teardown of %r raised", self.options.name)
        finally:
            if self._thread is not None:
                self._thread.stop()
            if self._gpu is not None:
                self._gpu.executor.stop()


def _run_here(method: Callable[..., Any], *args: Any) -> Any:
    """Run a coroutine function on this thread; what it sets in its context holds on the thread after it."""
    context = copy_context()
    with asyncio.Runner() as runner:
        result = runner.run(method(*args), context=context)
    for variable, value in context.items():
        variable.set(value)
    return result


def retrieve(task: asyncio.Future[Any]) -> None:
    """Look at a task's exception, which was logged or does not matter, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()
