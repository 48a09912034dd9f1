"""The steps of a handler whose batch is decoded before: its rows go to run_inference, and what that gives is answered.

Rules: as of steps.py. It knows rows and devices, and of tickets that their `items` are what rows were decoded from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from ..errors import ItemError
from ..tensor import Inputs
from .asked import each
from .outputs import Rows, answers_of, as_rows, has_errors, on_host
from .parts import after_failure, in_fitting_parts
from .rows import allocate, tensors_of
from .steps import Laps, Methods, Outcome, Steps, drive

log = logging.getLogger("virtex")

NOT_KEPT = (
    "run_inference raised, and the batch failed whole: more than half of limits.max_bytes was in use when it came, and "
    "then bodies are not kept to find whose item it was (this is said once)"
)


class RowMethods(Methods, Protocol):
    """Those of a handler that runs on rows: `inputs` and `outputs` declare what it takes and gives."""

    @property
    def inputs(self) -> Inputs: ...

    @property
    def outputs(self) -> Inputs | None: ...


class Elsewhere(Protocol):
    """A device. infer() calls a function with a batch that is copied there, and gives what it returned, copied back.

    copies: whether that is other memory than the rows'. free() has it keep none for later.
    """

    copies: bool

    def infer(self, batch: Any, infer: Callable[[Any], Any]) -> Any: ...

    def free(self) -> None: ...


class TensorSteps(Steps):
    """The steps of a handler whose batch is decoded before, and whose output rows are the answers.

    encodes: whether its process_response makes a JSON value of each row instead. shares: whether the next batch may run
    before the replies of this one are made; then no answer lies where the handler could write to. device: where the
    model finds its batches, if not in host memory.
    """

    def __init__(
        self,
        handler: RowMethods,
        encodes: bool,
        clock: Callable[[], int] | None = None,
        device: Elsewhere | None = None,
        shares: bool = False,
    ) -> None:
        Steps.__init__(self, handler, clock)
        self.encodes = encodes
        self._shares = shares
        self._inputs = handler.inputs
        self._outputs = handler.outputs
        self.device = device
        self._has_told = False

    def run(self, work: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """Compute one outcome per request from (batch, how many rows of it each has, whose they are).

        The last may be left out: then the batch is not run again. Of each of those spans, the ticket's `items` are what
        the rows were decoded from: nothing where that was not kept, None where nobody waits any more.
        """
        self.laps = Laps()
        counts = work[1]
        asked = None if askers is None else each(askers, counts)
        if 0 < self.fits < sum(counts):
            return drive(in_fitting_parts(self, work, counts, asked))  # type: ignore[no-any-return]
        self.came = False
        try:
            if not self.encodes:
                return self._answers(self._inferred(work[0], asked), counts)
            rows = self._rows_of(on_host(self._inferred(work[0], asked)), sum(counts))
        except Exception as error:
            return drive(after_failure(self, work, counts, asked, error))  # type: ignore[no-any-return]
        return self._encoded(rows, counts, asked)

    async def run_async(self, work: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """The same for methods of which some are to be awaited."""
        self.laps = Laps()
        counts = work[1]
        asked = each(askers, counts)
        if 0 < self.fits < sum(counts):
            return await in_fitting_parts(self, work, counts, asked)
        return await self.computed_async(work[0], work, counts, asked)

    async def outcomes_of(
        self, batch: Any, counts: list[int], asked: list[Any] | None, is_part: bool = False
    ) -> list[Outcome]:
        """One outcome per request of a batch, as Steps has it."""
        self.came = False
        if not self.encodes:
            return self._answers(await self._inferred_async(batch, asked), counts, is_part)
        rows = self._rows_of(on_host(await self._inferred_async(batch, asked)), sum(counts))
        return await self._encoded_async(rows, counts, asked)

    def sources(self, work: Any) -> Any:
        """The rows; what each request's were decoded from, and where its items begin there."""
        spans = work[2] if len(work) > 2 else ()
        return work[0], [(ticket.items, start) for ticket, start, _ in spans]

    def may_run_again(self, work: Any) -> bool:
        """Whether the batch may run again, and its bodies were kept for that; where not, the log says so once."""
        if not self.isolates or len(work) < 3:
            return False
        if self.gives_copies():
            return True
        if any(ticket.is_pending for ticket, _, _ in work[2]):
            return False  # the loop may decode more of it just now, and a source is not to be read by two
        if all(items is None or len(items) for items in [ticket.items for ticket, _, _ in work[2]]):
            return True
        if not self._has_told:
            self._has_told = True
            log.warning(NOT_KEPT, extra={"event": "not_kept"})
        return False

    def gives_copies(self) -> bool:
        """Whether the model gets a copy of the rows, on a device."""
        return self.device is not None and self.device.copies

    def make_room(self) -> None:
        """Leave the device as much memory as there is."""
        if self.device is not None:
            self.device.free()

    def given_up(self, sources: Any) -> Iterable[int]:
        """The requests that nobody waits for any more."""
        return [i for i, (items, _) in enumerate(sources[1]) if items is None]

    async def rebuilt(
        self, sources: Any, untouched: list[int] | None, places: list[tuple[int, int]], asked: list[Any] | None
    ) -> Any:
        """Rows as the clients sent them, in memory of their own: the model may have written to those it had."""
        names, tensors = tensors_of(self._inputs)
        arrays = [allocate(tensor, len(places)) for tensor in tensors]
        batch = arrays[0] if names is None else dict(zip(names, arrays, strict=True))
        if untouched is not None:
            for array, rows in zip(arrays, [sources[0]] if names is None else sources[0].values(), strict=True):
                array[:] = rows[untouched]
            return batch
        for row, (request, i) in enumerate(places):
            items, start = sources[1][request]
            into = [array[row : row + 1] for array in arrays]
            try:
                items.into(into[0] if names is None else into, start + i, start + i + 1)
            except ItemError as error:  # a program has changed what it submitted
                raise error.at(row) from None
        return batch

    def _inferred(self, batch: Any, asked: list[Any] | None) -> Any:
        if self.device is None:
            outputs = self._call("run_inference", batch, asked)
        else:
            outputs = self.device.infer(batch, partial(self.called, asked=asked))
        self.came = True
        return outputs

    async def _inferred_async(self, batch: Any, asked: list[Any] | None) -> Any:
        if "run_inference" not in self._awaits:
            return self._inferred(batch, asked)
        device: Any = self.device  # one that runs a batch at a time, where a method is async
        if device is None:
            outputs = await self._step("run_inference", batch, asked)
        else:
            with device.running():
                outputs = await self._step("run_inference", device.load(batch), asked)
        self.came = True
        return outputs

    def _answers(self, outputs: Any, counts: list[int], is_part: bool = False) -> list[Outcome]:
        """The rows of each request as they are; in memory of their own where others may write to it."""
        if type(outputs) is list and has_errors(outputs):
            return answers_of(outputs, counts, self._outputs)
        rows = as_rows(outputs, sum(counts), self._outputs)
        if is_part:
            rows = rows.copy()
        elif self._shares:
            del outputs
            rows = rows.unshared()
        return _parts(rows, counts)

    # ---- what flights.py asks for: the same in pieces, for batches of which one runs while another comes and goes

    def called(self, batch: Any, asked: list[Any] | None) -> Any:
        """Call run_inference with a batch on the device."""
        outputs = self._call("run_inference", batch, asked)
        self.came = True  # what is wrong with what it gave is found before the device has answered, too
        return outputs

    def answered(self, outputs: Any, counts: list[int]) -> list[Outcome]:
        """The answers without process_response, on any thread. outputs: in memory that no handler writes to."""
        if type(outputs) is list and has_errors(outputs):
            return answers_of(outputs, counts, self._outputs)
        return _parts(as_rows(outputs, sum(counts), self._outputs), counts)

    def encoded(self, outputs: Any, counts: list[int], asked: list[Any] | None) -> list[Outcome]:
        """The answers with it, on the thread of the handler."""
        return self._encoded(self._rows_of(on_host(outputs), sum(counts)), counts, asked)


def _parts(rows: Rows, counts: list[int]) -> list[Outcome]:
    if len(counts) == 1:
        return [rows]
    parts: list[Outcome] = []
    start = 0
    for count in counts:
        parts.append(rows.part(start, start + count))
        start += count
    return parts
