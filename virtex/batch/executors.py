"""Who runs a batch: the loop itself, a task on it, or a thread of its own.

Rules: knows loops, threads and contexts, neither the ring nor a clock. Whatever the handler raises becomes the outcome
of its batch; `done` is called once for each, on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, Protocol

from .isolate import failure_of
from .ring import Batch
from .steps import Steps

log = logging.getLogger("virtex")

Done = Callable[[Batch], None]


class Executor(Protocol):
    """Who runs batches. depth: how many it takes at a time; start() runs one and calls done, on the loop's thread."""

    depth: int

    def start(self, batch: Batch, steps: Steps, done: Done) -> None: ...


def compute(batch: Batch, steps: Steps) -> None:
    """Run the steps of a handler without async methods here and now. Raises KeyboardInterrupt only."""
    try:
        batch.outcomes = steps.run(batch.work, batch.askers)
        batch.laps = steps.laps
    except KeyboardInterrupt as error:
        fail(batch, error)
        raise
    except BaseException as error:  # SystemExit too: the event loop is not the handler's to end
        fail(batch, error)


async def compute_async(batch: Batch, steps: Steps) -> None:
    """Run the steps as a coroutine."""
    try:
        batch.outcomes = await steps.run_async(batch.work, batch.askers)
        batch.laps = steps.laps
    except SystemExit as error:
        fail(batch, error)


def fail(batch: Batch, error: BaseException) -> None:
    """Give every request of the batch the same failure."""
    batch.outcomes = [failure_of(error)] * len(batch.spans)


class InlineExecutor:
    """Runs a batch on the loop, now: nothing else happens meanwhile, and nothing is handed between threads.

    context: what setup() ran in: decimal's precision and numpy's errstate are set there.
    """

    depth = 1

    def __init__(self, context: Context | None = None) -> None:
        self._run = (context or copy_context()).run

    def start(self, batch: Batch, steps: Steps, done: Done) -> None:
        try:
            self._run(compute, batch, steps)
        finally:
            done(batch)


class AsyncExecutor:
    """Runs a batch of an async handler as a task on the loop, one at a time. context: as of InlineExecutor."""

    depth = 1

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context | None = None) -> None:
        self._loop = loop
        self._context = context
        self._task: asyncio.Task[None] | None = None

    def start(self, batch: Batch, steps: Steps, done: Done) -> None:
        def finished(task: asyncio.Task[None]) -> None:
            self._task = None
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                fail(batch, error)
            done(batch)

        # A loop holds its tasks weakly: keep it.
        self._task = self._loop.create_task(compute_async(batch, steps), context=self._context)
        self._task.add_done_callback(finished)


class ThreadExecutor:
    """Runs batches, and whatever else is called, on one thread of its own, in order.

    The thread is a daemon: a model that hangs must not keep the process from ending.
    """

    depth = 2

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, batch: Batch, steps: Steps, done: Done) -> None:
        def job() -> None:
            try:
                batch.thin()  # it waited behind another one
                if batch.size:
                    compute(batch, steps)
            except BaseException:
                log.exception("a batch broke off")
            self.tell(done, batch)

        self.put(job)

    def call(self, f: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run f(*args) on the thread; the future has its result or what it raised."""
        future = self._loop.create_future()

        def job() -> None:
            try:
                result = f(*args)
            except BaseException as error:
                self.tell(_settle, future, None, error)
            else:
                self.tell(_settle, future, result, None)

        self.put(job)
        return future

    def beside(self, part: str) -> ThreadExecutor:
        """Another thread of the same loop, with its part's name behind this one's."""
        return ThreadExecutor(self._loop, f"{self._name} {part}")

    def put(self, job: Callable[[], None]) -> None:
        """Have the thread do that, after what it was asked before. A job raises nothing."""
        self._jobs.put(job)

    def stop(self) -> None:
        """End the thread once its jobs are done; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def tell(self, f: Callable[..., None], *args: Any) -> None:
        """Have the loop call f(*args) on its own thread."""
        try:
            self._loop.call_soon_threadsafe(f, *args)
        except RuntimeError:
            log.warning("the event loop was closed while the handler ran")


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:
        future.set_exception(RuntimeError(f"raised {type(error).__name__}: {error}"))
