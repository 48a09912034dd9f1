"""Who runs batches on a device: three threads, one for each stage of the pipeline, so that no stage waits for another.

    in      loads each batch as soon as it is cut, also while the model's thread is within run_inference
    model   runs all of the handler's methods, and as a rule only asks the device for work
    out     sleeps until answers are here, and makes outcomes of them

Rules: knows loops, threads and steps, and no device but by its pipeline. What the handler's methods do, and whatever
runs again, is for the thread of the model. As of any executor, `done` is called once for each batch, on the loop's, and
in the order in which they were cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from .asked import each
from .executors import Done, ThreadExecutor, fail
from .isolate import failure
from .parts import after_failure
from .pipeline import DEPTH, Berth, Pipeline
from .ring import Batch
from .row_steps import TensorSteps
from .rows import RowRing
from .steps import Laps, drive


class Flight:
    """One batch on its way. error: what a stage raised; then it runs again in parts. is_over: it has its outcomes.

    is_back: the loop may have it.
    """

    def __init__(self, pipeline: Pipeline, batch: Batch, steps: TensorSteps, done: Done) -> None:
        self._pipeline = pipeline
        self._steps = steps
        self.batch = batch
        self.done = done
        self.error: Exception | None = None
        self.is_over = self.is_back = False
        self._laps = Laps()
        self._came = False  # as of steps, for this one
        self._asked: list[Any] | None = None
        self._berth: Berth | None = None
        self._outputs: Any = None

    def stage(self, f: Callable[[], None]) -> None:
        """Run one of the below, unless something has gone wrong before."""
        if self.error is not None or self.is_over:
            return
        try:
            f()
        except Exception as error:
            self.error = error
        except BaseException as error:  # SystemExit too: the thread is not the handler's to end
            self.fail(error)

    def load(self) -> None:
        """Thread "in": its rows set out, without those that nobody waits for any more."""
        batch, steps = self.batch, self._steps
        batch.thin()
        self._asked = None if batch.askers is None else each(batch.askers, batch.work[1])
        self.is_over = not batch.size
        if batch.size and not 0 < steps.fits < batch.size:  # of what does not fit, only parts are loaded
            self._berth = self._pipeline.load(batch.work[0])

    def run(self) -> None:
        """Thread "model": run_inference."""
        batch, steps = self.batch, self._steps
        if self._berth is None:
            batch.outcomes = steps.run(batch.work, batch.askers)
            self._laps, self.is_over = steps.laps, True
            return
        steps.laps = self._laps
        steps.came = False
        try:
            self._pipeline.run(self._berth, partial(steps.called, asked=self._asked))
        finally:
            self._came = steps.came
        if self._berth.is_foreign:
            self.land()
            self.finish()

    def land(self) -> None:
        """Thread "out": the answers come. They are the outcomes, where process_response has no word in it."""
        assert self._berth is not None
        outputs = self._pipeline.wait(self._berth)
        if self._steps.encodes:
            self._outputs = outputs
        else:
            self.batch.outcomes = self._steps.answered(outputs, self.batch.work[1])
            self.is_over = True

    def finish(self) -> None:
        """Thread "model": process_response, and all over again whatever has failed."""
        if self.is_over:
            return
        batch, steps = self.batch, self._steps
        steps.laps, steps.came = self._laps, self._came
        outputs, self._outputs = self._outputs, None
        raised, self.error = self.error, None
        if raised is None:
            try:
                batch.outcomes = steps.encoded(outputs, batch.work[1], self._asked)
            except Exception as error:
                raised = error
        if raised is not None and self._pipeline.gone is not None:
            batch.outcomes = [failure("run_inference", raised)] * len(batch.spans)
        elif raised is not None:
            outputs = None
            batch.outcomes = drive(after_failure(steps, batch.work, batch.work[1], self._asked, raised))
        self.is_over = True

    def fail(self, error: BaseException) -> None:
        """Give every request of it the same failure."""
        fail(self.batch, error)
        self.is_over = True

    def close(self) -> None:
        """It goes back to the loop."""
        if self.batch.size:
            self.batch.laps = self._laps


class FlightExecutor:
    """Runs batches on a device. thread: of the model, where all else of the handler's runs.

    On the loop's thread, grown is told of bytes of page-locked memory that answers have taken beyond those before, and
    gone, once, why the device works no more.
    """

    depth = DEPTH

    def __init__(
        self,
        thread: ThreadExecutor,
        pipeline: Pipeline,
        grown: Callable[[int], None],
        gone: Callable[[str], None],
    ) -> None:
        self._pipeline = pipeline
        self._grown = grown
        self._gone: Callable[[str], None] | None = gone
        self._told = 0
        self._out_there: deque[Flight] = deque()  # as they were cut, and as they go back: a request may be in several
        self._in, self._model, self._out = thread.beside("in"), thread, thread.beside("out")

    def prepare(self, ring: RowRing) -> None:
        """Thread "model": make the memory of the ring and of the pipeline, ahead of the first request."""
        ring.fill()
        self._pipeline.prepare()

    def start(self, batch: Batch, steps: Any, done: Done) -> None:
        flight = Flight(self._pipeline, batch, steps, done)
        self._out_there.append(flight)
        self._in.put(partial(self._load, flight))

    def stop(self) -> None:
        """End its own threads; the batches are answered."""
        self._in.stop()
        self._out.stop()

    def _load(self, flight: Flight) -> None:
        flight.stage(flight.load)
        self._model.put(partial(self._run, flight))

    def _run(self, flight: Flight) -> None:
        flight.stage(flight.run)
        if flight.error is None and not flight.is_over:
            self._out.put(partial(self._land, flight))
        else:
            self._finish(flight)

    def _land(self, flight: Flight) -> None:
        flight.stage(flight.land)
        if flight.is_over:
            self._back(flight)
        else:
            self._model.put(partial(self._finish, flight))

    def _finish(self, flight: Flight) -> None:
        try:
            flight.finish()
        except BaseException as error:
            flight.fail(error)
        self._back(flight)

    def _back(self, flight: Flight) -> None:
        if self._pipeline.gone is not None and self._gone is not None:
            tell, self._gone = self._gone, None
            self._model.tell(tell, f"its device is gone: {_words(self._pipeline.gone)}")
        flight.close()
        self._model.tell(self._hand_back, flight)
        if self._pipeline.host_bytes != self._told:
            self._model.tell(self.count)

    def _hand_back(self, flight: Flight | None = None) -> None:
        """On the loop's thread: this one is back; those whose turn it is are done."""
        if flight is not None:
            flight.is_back = True
        if self._out_there and self._out_there[0].is_back:
            first = self._out_there.popleft()
            try:
                first.done(first.batch)
            finally:
                self._hand_back()

    @property
    def bytes(self) -> dict[str, int]:
        """What the pipeline has made, by name."""
        return {"answer_bytes": self._pipeline.host_bytes, "device_bytes": self._pipeline.device_bytes}

    def count(self) -> None:
        """Tell how many bytes the pipeline has made in host memory since it was asked last."""
        size = self._pipeline.host_bytes
        more, self._told = size - self._told, size
        self._grown(more)


def _words(error: Exception) -> str:
    """What it is, and the first line of what it says: torch's go on about how to find out more."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
