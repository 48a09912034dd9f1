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
from typing import Any

from ..batch.arrays import array_dtype
from ..batch.batcher import Batcher
from ..batch.device import Cuda, Device, device_for, take_turn
from ..batch.executors import AsyncExecutor, Executor, InlineExecutor, ThreadExecutor
from ..batch.flights import FlightExecutor
from ..batch.graphs import Graphs
from ..batch.items import steps_for
from ..batch.outputs import Rows
from ..batch.pipeline import Pipeline
from ..batch.ring import Ring
from ..batch.row_steps import TensorSteps
from ..batch.rows import RowRing, allocate, fitting
from ..batch.steps import Steps, async_methods
from ..batch.texts import has_text
from ..errors import RETRY_SOON, RequestError
from ..handler import RequestHandler, TensorHandler, Worker, answers_json
from ..logs import event, show
from ..metrics._metrics import Cells
from ..metrics.export import Export
from ..resident import most_resident
from .about import declared, described, example_shown
from .admission import Admission
from .bodies import Bodies
from .health import Health
from .options import Options
from .plans import check_declared, ring_for
from .seam import REGISTER
from .uploads import kinds_of
from .v2_head import Served
from .warmup import NO_ITEMS, example_of, rows_of, warm_up

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
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.state: str = STARTING
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
        self._flights: FlightExecutor | None = None  # where batches go to a GPU
        self._graphs: Graphs | None = None
        self._buffers: dict[str, int] = {}
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
        """The same for what no connection brought: what is refused here nobody else counts."""
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
            executor, self.steps, ring = self._plan(handler, device)
            more = declared(handler) | (
                await example_shown(options.name, handler, self.call) if options.status_page else {}
            )
            self.info = described(options, self.max_queue_size, self.admission.kinds, more)
            if self._flights is not None:
                doing = "making its page-locked buffers"
                await self.call(self._flights.prepare, ring)
            if self._graphs is not None:
                doing = "capturing its graphs"
                rows = await rows_of(handler, self._graphs.sizes[-1], self.call)
                await self.call(self._graphs.capture, rows)
            doing = "the warm-up"
            await self._warm_up(handler)
            if self._flights is not None:
                self._flights.count()
                self._buffers |= self._flights.bytes
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
        self._tell("ready", f"is ready in process {self._pid}", seconds=seconds, rss=most_resident(), **self._buffers)
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

    def _plan(self, handler: RequestHandler, device: Device | None) -> tuple[Executor, Steps, Ring | None]:
        """How batches of this handler run; raises for what can't be."""
        executor, options = self._choose(handler), self.options
        clock = options.clock
        if not isinstance(handler, TensorHandler):
            self.admission.dtype = dtype = array_dtype(handler)
            self.admission.kinds = kinds_of(handler)
            self.admission.served = Served(options.name, None, None, dtype, True)
            ring = ring_for(handler, options, dtype is not None)
            steps = steps_for(handler, clock)
            steps.isolates = options.isolate_errors
            self.admission.asks = steps.asks
            return executor, steps, ring
        check_declared(handler, options, device)
        rows = self._rows_for(handler, device)
        self.admission.inputs = handler.inputs
        self.admission.has_text = has_text(handler.inputs)
        self.admission.kinds = kinds_of(handler)
        gives_values = answers_json(handler)
        self.admission.served = Served(options.name, handler.inputs, handler.outputs, None, gives_values)
        place: Device | Pipeline | None = device
        if isinstance(device, Cuda) and self._thread is not None:
            place = Pipeline(device, handler.inputs, options.max_batch_size, handler.outputs)
            executor = self._flights = FlightExecutor(self._thread, place, self._answers_take, self._device_is_gone)
            if len(handler.graphs):
                self._graphs = Graphs(handler, place, handler.graphs, handler.graphs_or_eager)
        steps = TensorSteps(self._graphs or handler, gives_values, clock, place, executor.depth > 1)
        steps.isolates = options.isolate_errors
        if steps.isolates and not steps.gives_copies():
            self.admission.most_kept = self.admission.bodies.budget // 2
        self.admission.asks = steps.asks
        return executor, steps, rows

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

    def _choose(self, handler: RequestHandler) -> Executor:
        awaits = ", ".join(async_methods(handler))
        if self._thread is not None:
            if awaits:
                raise TypeError(f'executor="thread" runs plain methods; {awaits} of {type(handler).__name__} is async')
            return self._thread
        if awaits:
            return AsyncExecutor(self.loop, self._context)
        if self.options.watchdog is not None:
            raise ValueError(
                'watchdog needs executor="thread" or async methods: inline, nothing can look after the model'
            )
        return InlineExecutor(self._context)

    def _rows_for(self, handler: TensorHandler, device: Device | None) -> RowRing:
        size, limits, bodies = self.options.max_batch_size, self.options.limits, self.admission.bodies
        room = bodies.budget  # limits.max_bytes, or what the rows of other services leave of it
        if self.options.max_queue_size is None:
            self.max_queue_size = min(self.max_queue_size, fitting(handler.inputs, size, room // 2))
        most = room - limits.body  # for a body must be room too
        new = allocate if device is None else device.allocate
        ring = RowRing(handler.inputs, size, self.max_queue_size, most, new)
        taken = ring.slabs * ring.slab_bytes
        bodies.budget = room - taken
        self._buffers = {"buffers": ring.slabs, "rows": size, "buffer_bytes": ring.slab_bytes, "all_bytes": taken}
        return ring

    def _answers_take(self, more: int) -> None:
        """Answers from a device have taken so many bytes of page-locked memory."""
        bodies, body = self.admission.bodies, self.options.limits.body
        if self.state is STARTING and more > bodies.budget - body:
            raise MemoryError(f"answers take {more} bytes; limits.max_bytes leaves {bodies.budget - body} for them")
        bodies.budget -= more

    def _device_is_gone(self, reason: str) -> None:
        """The device works no more for this process: whoever looks after it had better replace it."""
        self.health.breaks(reason)
        REGISTER.gone = f"service {self.options.name!r}: {reason}"

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
            body=limits.body,
            values=limits.values,
            answer_seconds=limits.answer_seconds,
            index=worker.index,
        )

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
            for threads in (self._thread, self._flights):
                if threads is not None:
                    threads.stop()


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
