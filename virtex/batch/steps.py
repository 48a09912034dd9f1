"""What the methods of a handler mean to a batch of requests.

Rules: this file knows neither the loop nor the ring, no clock but the one it is given, and no class of handlers: any
object with the three methods will do. Nothing that the handler raises leaves run(): each request gets its own outcome,
so that one request's bad item costs no other request its answer.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from ..errors import HandlerError, ItemError
from ..message import Content, encode_row
from ..metrics._metrics import Clock
from .asked import each, methods_that_ask
from .isolate import response_failure, run_without_the_guilty
from .outputs import Rows, as_error, rows_of
from .parts import after_failure, in_fitting_parts, is_out_of_memory

log = logging.getLogger("virtex")

Outcome = list[Any] | Rows | HandlerError | ItemError

# What nobody can change any more once it is there
_SCALARS = frozenset({str, int, float, bool, type(None), *(np.dtype(code).type for code in "?bhilqBHILQefd")})


class Methods(Protocol):
    """The three methods of a handler; any of them may be `async def`, and asked.py says what more they may take."""

    def process_request(self, data: list[Any]) -> Any: ...

    def run_inference(self, model_input: Any) -> Any: ...

    def process_response(self, model_output_item: Any) -> Any: ...


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends, without a loop: what is rare shares one code path with async methods."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a handler without async methods has awaited something")


class Laps:
    """What the handler's methods took for one batch, each in ns; -1: it was not run, or nobody measured.

    retries: calls that were repeated, to find whose item failed: of process_request, and of all three for a part of
    the batch. systemic: whether run_inference failed on all of the batch, by something that is no ItemError.
    """

    def __init__(self) -> None:
        self.process_request = self.run_inference = self.process_response = -1
        self.retries = 0
        self.systemic = False

    @property
    def seconds(self) -> dict[str, float]:
        """By the names of the methods that were run."""
        took = {
            "process_request": self.process_request,
            "run_inference": self.run_inference,
            "process_response": self.process_response,
        }
        return {name: ns / 1e9 for name, ns in took.items() if ns >= 0}


class Steps:
    """The three methods of a handler over the items of several requests, with the blame where it belongs.

    is_async: whether one of them is `async def`; then run_async() is to be awaited on a loop, else run() will do. asks:
    whether one of them is told who asked: then both take that too, an object for each request.
    clock: nanoseconds; None: nothing is measured. laps: how long each step took in the last run.

    isolates: whether what a batch failed on is looked for by running it again in parts. came: whether the last call of
    run_inference has returned. fits: items that the memory of a device is known to hold; 0: nothing is known. proven:
    for how many batches it was right.
    """

    def __init__(self, handler: Methods, clock: Callable[[], int] | None = None) -> None:
        self._handler = handler
        self._clock = None if clock is None else Clock(clock)
        self._awaits = frozenset(async_methods(handler))
        self.is_async = bool(self._awaits)
        self._asking = methods_that_ask(handler)
        self.asks = bool(self._asking)
        self.laps = Laps()
        self.isolates = True
        self.came = False
        self.fits = self.proven = 0

    def run(self, requests: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """Compute one outcome per request: its rows, as process_response gave them, or its error."""
        self.laps = Laps()
        counts = _counts(requests)
        asked = None if askers is None else each(askers, counts)
        count = sum(counts)
        if 0 < self.fits < count:
            return drive(in_fitting_parts(self, requests, counts, asked))  # type: ignore[no-any-return]
        self.came = False
        batch = None
        try:
            batch = self._call("process_request", self.joined(requests), asked)
        except Exception as error:
            return drive(self._not_decoded(error, requests, counts, askers))  # type: ignore[no-any-return]
        try:
            rows = self._rows_of(self._call("run_inference", batch, asked), count)
        except Exception as error:
            batch = None  # it may fill the memory of a device
            return drive(after_failure(self, requests, counts, asked, error))  # type: ignore[no-any-return]
        return self._encoded(rows, counts, asked)

    async def run_async(self, requests: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """The same for methods of which some are to be awaited."""
        self.laps = Laps()
        counts = _counts(requests)
        asked = each(askers, counts)
        if 0 < self.fits < sum(counts):
            return await in_fitting_parts(self, requests, counts, asked)
        try:
            batch = await self._decode(self.joined(requests), asked)
        except Exception as error:
            return await self._not_decoded(error, requests, counts, askers)
        return await self.computed_async(batch, requests, counts, asked)

    async def _not_decoded(
        self, error: Exception, requests: Any, counts: list[int], askers: list[Any] | None
    ) -> list[Outcome]:
        if is_out_of_memory(error):
            return await after_failure(self, requests, counts, each(askers, counts), error)
        return await run_without_the_guilty(self, requests, error, askers)

    def joined(self, requests: list[Any]) -> Any:
        """What process_request gets for these: all their items, in a list of its own."""
        return [item for items in requests for item in items]

    def _call(self, name: str, argument: Any, asked: list[Any] | None) -> Any:
        started = self._now()
        try:
            method = getattr(self._handler, name)
            if asked is None or name not in self._asking:
                return method(argument)
            return method(argument, requests=asked[:])
        finally:
            self._lap(name, started)

    async def _step(self, name: str, argument: Any, asked: list[Any] | None) -> Any:
        started = self._now()
        try:
            method = getattr(self._handler, name)
            if asked is None or name not in self._asking:
                result = method(argument)
            else:
                result = method(argument, requests=asked[:])
            return await result if name in self._awaits else result
        finally:
            self._lap(name, started)

    def _now(self) -> int:
        return 0 if self._clock is None else self._clock.now()

    def _lap(self, name: str, started: int) -> None:
        if self._clock is not None:
            laps, took = self.laps, self._clock.now() - started
            if name == "process_request":
                laps.process_request = took + max(laps.process_request, 0)
            elif name == "run_inference":
                laps.run_inference = took + max(laps.run_inference, 0)
            else:
                laps.process_response = took + max(laps.process_response, 0)

    def _decode(self, items: list[Any], asked: list[Any] | None) -> Coroutine[Any, Any, Any]:
        return self._step("process_request", items, asked)

    def again(self, items: list[Any], asked: list[Any] | None) -> Coroutine[Any, Any, Any]:
        """Call process_request once more, to find whose item failed."""
        self.laps.retries += 1
        return self._decode(items, asked)

    def _rows_of(self, outputs: Any, count: int) -> list[Any]:
        self.came = True
        return rows_of(outputs, count)

    async def computed_async(
        self, batch: Any, requests: Any, counts: list[int], asked: list[Any] | None
    ) -> list[Outcome]:
        """One outcome per request of what process_request gave. requests: what it was made of."""
        try:
            return await self.outcomes_of(batch, counts, asked)
        except Exception as error:
            raised = error
        # Within `except`, its traceback would keep what the run held; and the batch may fill the memory of a device.
        batch = None
        return await after_failure(self, requests, counts, asked, raised)

    # ---- what parts.py asks for

    async def outcomes_of(
        self, batch: Any, counts: list[int], asked: list[Any] | None, is_part: bool = False
    ) -> list[Outcome]:
        """One outcome per request of a batch. is_part: others run before it is answered. Raises as run_inference does.

        HandlerError is also raised for what run_inference returned and can't be answered: `came` says so.
        """
        self.came = False
        rows = self._rows_of(await self._step("run_inference", batch, asked), sum(counts))
        return await self._encoded_async(rows, counts, asked)

    def sources(self, work: Any) -> Any:
        """What rebuilt() makes parts of a batch from."""
        return work

    def may_run_again(self, work: Any) -> bool:
        """Whether the batch may run again, and what it was made of is still there."""
        return self.isolates

    def gives_copies(self) -> bool:
        """Whether the model can't write to what a batch is made of."""
        return False

    def make_room(self) -> None:
        """A run was out of memory: let go of what is kept for later, where that is known."""

    def given_up(self, sources: Any) -> Iterable[int]:
        """The requests that nobody waits for any more, as far as that is seen here."""
        return ()

    def rebuilt(
        self, sources: Any, untouched: list[int] | None, places: list[tuple[int, int]], asked: list[Any] | None
    ) -> Coroutine[Any, Any, Any]:
        """What run_inference gets for some items of a batch. places: the request of each, and its index there.

        untouched: their places in the batch, where the model has not seen that yet. Raises as process_request does.
        """
        return self._decode(self.joined([sources[request][i : i + 1] for request, i in places]), asked)

    def remember(self, size: int) -> None:
        """Run no more than so many items at once from now on: so many fitted into memory, and more did not."""
        if not 0 < self.fits <= size:
            self.fits, self.proven = size, 0
            log.warning(
                "run_inference ran out of memory: from now on at most %d items at once; max_batch_size=%d would fit",
                size,
                size,
                extra={"event": "out_of_memory", "items": size},
            )

    def _encoded(self, rows: list[Any], counts: list[int], asked: list[Any] | None) -> list[Outcome]:
        """process_response over the rows, `counts` of them a request; one that raises fails its own request."""
        started = self._now()
        encode = self._handler.process_response
        if asked is not None and "process_response" not in self._asking:
            asked = None
        outcomes: list[Outcome] = []
        start = 0
        for count in counts:
            done: list[Any] = []
            try:
                _encode(encode, rows, start, start + count, done, asked)
                outcomes.append(done)
            except Exception as error:
                outcomes.append(response_failure(error, len(done)))
            start += count
        self._lap("process_response", started)
        return outcomes

    async def _encoded_async(self, rows: list[Any], counts: list[int], asked: list[Any] | None) -> list[Outcome]:
        if "process_response" not in self._awaits:
            return self._encoded(rows, counts, asked)
        started = self._now()
        encode: Callable[..., Any] = self._handler.process_response
        if asked is not None and "process_response" not in self._asking:
            asked = None
        outcomes: list[Outcome] = []
        start = 0
        for count in counts:
            done: list[Any] = []
            try:
                for i in range(start, start + count):
                    row = rows[i]
                    if isinstance(row, BaseException):
                        raise as_error(row)
                    done.append(_owned(await (encode(row) if asked is None else encode(row, request=asked[i]))))
                outcomes.append(done)
            except Exception as error:
                outcomes.append(response_failure(error, len(done)))
            start += count
        self._lap("process_response", started)
        return outcomes


def _encode(
    encode: Callable[..., Any], rows: list[Any], start: int, stop: int, done: list[Any], asked: list[Any] | None
) -> None:
    for i in range(start, stop):
        row = rows[i]
        if isinstance(row, BaseException):
            raise as_error(row)
        done.append(_owned(encode(row) if asked is None else encode(row, request=asked[i])))


def _owned(result: Any) -> Any:
    """What process_response gave, as it is now: any part of it may be filled again for the next row.

    Arrays are copied, for they may be asked for as .npy, and dicts of scalars, for that is cheap; all else is encoded.
    Raises HandlerError for what can't be.
    """
    kind = type(result)
    if kind in _SCALARS:
        return result
    if kind is dict and _is_flat(result):
        return result.copy()
    if isinstance(result, ndarray) and not result.dtype.hasobject:
        return result.copy()
    return result if kind is Content else encode_row(result)


def _is_flat(values: dict[Any, Any]) -> bool:
    for value in values.values():  # noqa: SIM110 (all() would take a generator)
        if type(value) not in _SCALARS:
            return False
    return True


def _counts(requests: list[list[Any]]) -> list[int]:
    return [len(items) for items in requests]


def async_methods(handler: Methods) -> Iterator[str]:
    """The names of those of the three methods that are coroutine functions."""
    for name in ("process_request", "run_inference", "process_response"):
        if inspect.iscoroutinefunction(getattr(handler, name)):
            yield name
