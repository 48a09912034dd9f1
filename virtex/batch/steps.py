"""What the methods of a handler mean to a batch of requests.

Rules: this file knows neither the loop nor the ring, no clock but the one it is given, and no class of handlers: any
object with the three methods will do. Nothing that the handler raises leaves run(): each request gets its own outcome,
so that one request's bad item costs no other request its answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from ..errors import HandlerError, ItemError
from ..message import Content, encode_row
from ..metrics._metrics import Clock
from ..tensor import Inputs
from .asked import each, methods_that_ask
from .device import Device
from .isolate import failure, response_failure, run_without_the_guilty
from .outputs import Rows, as_rows, on_host, rows_of

Outcome = list[Any] | Rows | HandlerError | ItemError

# What nobody can change any more once it is there
_SCALARS = frozenset({str, int, float, bool, type(None), *(np.dtype(code).type for code in "?bhilqBHILQefd")})


class Methods(Protocol):
    """The three methods of a handler; any of them may be `async def`, and asked.py says what more they may take."""

    def process_request(self, data: list[Any]) -> Any: ...

    def run_inference(self, model_input: Any) -> Any: ...

    def process_response(self, model_output_item: Any) -> Any: ...


class RowMethods(Methods, Protocol):
    """Those of a handler that runs on rows: `outputs` declares what it gives."""

    @property
    def outputs(self) -> Inputs | None: ...


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

    retries: calls that were repeated, to find whose item failed. systemic: run_inference raised what is no item's
    fault, so that the batch failed whole.
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
    """

    def __init__(self, handler: Methods, clock: Callable[[], int] | None = None) -> None:
        self._handler = handler
        self._clock = None if clock is None else Clock(clock)
        self._awaits = frozenset(async_methods(handler))
        self.is_async = bool(self._awaits)
        self._asking = methods_that_ask(handler)
        self.asks = bool(self._asking)
        self.laps = Laps()

    @property
    def seconds(self) -> dict[str, float]:
        """How long each step took in the last run, by its name."""
        return self.laps.seconds

    def run(self, requests: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """Compute one outcome per request: its rows, as process_response gave them, or its error."""
        self.laps = Laps()
        counts = _counts(requests)
        asked = None if askers is None else each(askers, counts)
        try:
            batch = self._call("process_request", self.joined(requests), asked)
        except Exception as error:
            found: list[Outcome] = drive(run_without_the_guilty(self, requests, error, askers))
            return found
        return self._computed(batch, counts, asked)

    async def run_async(self, requests: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """The same for methods of which some are to be awaited."""
        self.laps = Laps()
        counts = _counts(requests)
        asked = each(askers, counts)
        try:
            batch = await self._decode(self.joined(requests), asked)
        except Exception as error:
            return await run_without_the_guilty(self, requests, error, askers)
        return await self.computed_async(batch, counts, asked)

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

    def _computed(self, batch: Any, counts: list[int], asked: list[Any] | None) -> list[Outcome]:
        try:
            rows = rows_of(self._call("run_inference", batch, asked), sum(counts))
        except Exception as error:
            return _model_failed(self.laps, error, counts)
        return self._encoded(rows, counts, asked)

    async def computed_async(self, batch: Any, counts: list[int], asked: list[Any] | None) -> list[Outcome]:
        """One outcome per request of what process_request gave."""
        try:
            rows = rows_of(await self._step("run_inference", batch, asked), sum(counts))
        except Exception as error:
            return _model_failed(self.laps, error, counts)
        return await self._encoded_async(rows, counts, asked)

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
                    done.append(_owned(await (encode(rows[i]) if asked is None else encode(rows[i], request=asked[i]))))
                outcomes.append(done)
            except Exception as error:
                outcomes.append(response_failure(error, len(done)))
            start += count
        self._lap("process_response", started)
        return outcomes


class TensorSteps(Steps):
    """The steps of a handler whose batch is decoded before, and whose output rows are the answers.

    encodes: whether its process_response makes a JSON value of each row instead. shares: whether the next batch may run
    before the replies of this one are made; then no answer lies where the handler could write to.
    """

    def __init__(
        self,
        handler: RowMethods,
        encodes: bool,
        clock: Callable[[], int] | None = None,
        device: Device | None = None,
        shares: bool = False,
    ) -> None:
        Steps.__init__(self, handler, clock)
        self._encodes = encodes
        self._shares = shares
        self._outputs = handler.outputs
        self._device = device

    def run(self, work: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """Compute one outcome per request from (batch, how many rows of it each has)."""
        self.laps = Laps()
        batch, counts = work
        asked = None if askers is None else each(askers, counts)
        try:
            rows = self._rows(self._inferred(batch, asked), sum(counts))
        except Exception as error:
            return _model_failed(self.laps, error, counts)
        return self._encoded(rows, counts, asked) if self._encodes else _parts(rows, counts)

    async def run_async(self, work: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """The same for methods of which some are to be awaited."""
        self.laps = Laps()
        batch, counts = work
        asked = each(askers, counts)
        try:
            rows = self._rows(await self._inferred_async(batch, asked), sum(counts))
        except Exception as error:
            return _model_failed(self.laps, error, counts)
        return await self._encoded_async(rows, counts, asked) if self._encodes else _parts(rows, counts)

    def _inferred(self, batch: Any, asked: list[Any] | None) -> Any:
        if self._device is None:
            return self._call("run_inference", batch, asked)
        with self._device.running():
            return self._device.fetch(self._call("run_inference", self._device.load(batch), asked))

    async def _inferred_async(self, batch: Any, asked: list[Any] | None) -> Any:
        if self._device is None:
            return await self._step("run_inference", batch, asked)
        with self._device.running():
            return self._device.fetch(await self._step("run_inference", self._device.load(batch), asked))

    def _rows(self, outputs: Any, count: int) -> Any:
        """The rows to be encoded, or to be answered as they are; in memory of their own where that is shared."""
        outputs = on_host(outputs)
        if self._encodes:
            return rows_of(outputs, count)
        rows = as_rows(outputs, count, self._outputs)
        if not self._shares:
            return rows
        del outputs
        return rows.unshared()


def _parts(rows: Rows, counts: list[int]) -> list[Outcome]:
    if len(counts) == 1:
        return [rows]
    parts: list[Outcome] = []
    start = 0
    for count in counts:
        parts.append(rows.part(start, start + count))
        start += count
    return parts


def _encode(
    encode: Callable[..., Any], rows: list[Any], start: int, stop: int, done: list[Any], asked: list[Any] | None
) -> None:
    if asked is None:
        for i in range(start, stop):
            done.append(_owned(encode(rows[i])))
    else:
        for i in range(start, stop):
            done.append(_owned(encode(rows[i], request=asked[i])))


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


def _model_failed(laps: Laps, error: Exception, counts: list[int]) -> list[Outcome]:
    laps.systemic = not isinstance(error, (ItemError, HandlerError))  # the latter: what it gave was no answer
    failed = error if isinstance(error, HandlerError) else failure("run_inference", error)
    return [failed] * len(counts)


def async_methods(handler: Methods) -> Iterator[str]:
    """The names of those of the three methods that are coroutine functions."""
    for name in ("process_request", "run_inference", "process_response"):
        if inspect.iscoroutinefunction(getattr(handler, name)):
            yield name
