"""What the methods of a handler mean to a batch of requests.

Rules: this file knows neither the loop nor the ring. run() never raises what the handler raised: each request gets its
own outcome, so that one request's bad item costs no other request its answer.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Set
from itertools import accumulate, islice
from typing import Any

import numpy as np
from numpy import ndarray

from ..errors import HandlerError, ItemError
from ..handler import RequestHandler, TensorHandler
from ..message import encode_row
from ..tensor import Rows, check_no_tuple, on_host
from .device import Device

log = logging.getLogger("virtex")

Outcome = list[Any] | Rows | HandlerError | ItemError

# What nobody can change any more once it is there
_SCALARS = frozenset({str, int, float, bool, type(None), *(np.dtype(code).type for code in "?bhilqBHILQefd")})


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends, without a loop: handlers of plain methods share one code path with async."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a handler without async methods has awaited something")


def rows_of(outputs: Any, count: int) -> list[Any]:
    """The rows of what run_inference gave, exactly `count`; an iterator is read to count + 1 at most.

    Arrays that an iterator gives are copied as they come: it may fill the same one again.
    Raises HandlerError naming both numbers, or the type that does not iterate along a zeroth dimension.
    """
    kind = type(outputs).__name__
    check_no_tuple(outputs, "run_inference returned ")
    if isinstance(outputs, (Mapping, str, bytes, bytearray, memoryview, Set)) or not hasattr(outputs, "__iter__"):
        raise HandlerError(f"run_inference returned a {kind}; expected {count} rows along the zeroth dimension")
    if getattr(outputs, "shape", None) == ():
        raise HandlerError(f"run_inference returned a {kind} of no dimensions; expected {count} rows")
    has_length = hasattr(outputs, "__len__")
    found = len(outputs) if has_length else count
    if found == count:
        if hasattr(outputs, "iloc"):
            rows = [outputs.iloc[i] for i in range(count)]
        else:
            drawn = islice(outputs, count + 1)
            rows = list(drawn if has_length else map(_owned_array, drawn))
        found = len(rows)  # of what has a length too: it may iterate over something else
        if found > count:
            raise HandlerError(f"run_inference gave more than {count} rows for {count} items; expected one per item")
    if found != count:
        raise HandlerError(f"run_inference returned {found} rows for {count} items; expected one per item")
    return rows


class Steps:
    """The three methods of a handler over the items of several requests, with the blame where it belongs.

    is_async: whether one of them is `async def`; run() then has to be awaited on a loop, else drive() will do.
    seconds: how long each step took in the last run(), by its name.
    """

    def __init__(self, handler: RequestHandler, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._handler = handler
        self._clock = clock
        self._awaits = frozenset(async_methods(handler))
        self.is_async = bool(self._awaits)
        self.seconds: dict[str, float] = {}

    async def _step(self, name: str, argument: Any) -> Any:
        started = self._clock()
        try:
            result = getattr(self._handler, name)(argument)
            return await result if name in self._awaits else result
        finally:
            self._lap(name, started)

    def _decode(self, items: list[Any]) -> Coroutine[Any, Any, Any]:
        return self._step("process_request", items)

    def _lap(self, name: str, started: int) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + (self._clock() - started) / 1e9

    async def run(self, requests: list[list[Any]]) -> list[Outcome]:
        """Compute one outcome per request: its rows, as process_response gave them, or its error."""
        self.seconds = {}
        try:
            batch = await self._decode(_joined(requests))
        except Exception as error:
            return await self._run_without_the_guilty(requests, error)
        return await self._computed(batch, [len(items) for items in requests])

    async def _run_without_the_guilty(self, requests: list[list[Any]], error: Exception) -> list[Outcome]:
        """process_request raised: find for whom it does, one request at a time, and compute the others."""
        if len(requests) == 1:
            return [await self._blamed(requests[0], error)]
        outcomes: list[Outcome] = [[] for _ in requests]
        singly = []
        for i, items in enumerate(requests):
            try:
                singly.append(([i], await self._decode(list(items))))
            except Exception as error:
                outcomes[i] = await self._blamed(items, error)
        for members, batch in await self._regrouped(singly, requests):
            counts = [len(requests[i]) for i in members]
            for i, outcome in zip(members, await self._computed(batch, counts), strict=True):
                outcomes[i] = outcome
        return outcomes

    async def _regrouped(
        self, singly: list[tuple[list[int], Any]], requests: list[list[Any]]
    ) -> list[tuple[list[int], Any]]:
        """The requests that are fine alone as one batch; where they don't stack, as they are."""
        if len(singly) < 2:
            return singly
        together = [i for (i,), _ in singly]
        try:
            return [(together, await self._decode(_joined([requests[i] for i in together])))]
        except Exception as error:
            # Shapes that differ, say: nobody is to blame, so each runs alone.
            log.info("process_request takes these %d requests singly only: %r", len(singly), error)
            return singly

    async def _blamed(self, items: list[Any], error: Exception) -> HandlerError | ItemError:
        """The error of one request whose process_request raised, with the index of its lowest failing item."""
        if not isinstance(error, ItemError):
            return _failure("process_request", error)
        if error.index in range(len(items)):
            return ItemError(error.reason, error.index, error.offset)  # the handler's own may be raised again
        for i, item in enumerate(items):
            try:
                await self._decode([item])
            except ItemError as found:
                return ItemError(found.reason, i, found.offset)
            except Exception as found:
                return _failure("process_request", found, i)
        return ItemError(error.reason, None, error.offset)

    async def _computed(self, batch: Any, counts: list[int]) -> list[Outcome]:
        try:
            rows = rows_of(await self._step("run_inference", batch), sum(counts))
        except Exception as error:
            return [_model_failure(error)] * len(counts)
        return await self._encoded(rows, counts)

    async def _encoded(self, rows: list[Any], counts: list[int]) -> list[Outcome]:
        """process_response over the rows, `counts` of them a request; one that raises fails its own request."""
        started = self._clock()
        encode = self._handler.process_response
        awaits = "process_response" in self._awaits
        outcomes: list[Outcome] = []
        start = 0
        for count in counts:
            done: list[Any] = []
            outcome: Outcome = done
            try:
                if awaits:
                    for row in rows[start : start + count]:
                        done.append(_owned(await encode(row)))
                else:
                    _encode(encode, rows, start, start + count, done)
            except ItemError as error:
                outcome = ItemError(error.reason, len(done), error.offset)
            except HandlerError as error:
                outcome = HandlerError(error.reason, len(done))
                outcome.__cause__ = error.__cause__
            except Exception as error:
                outcome = _failure("process_response", error, len(done))
            outcomes.append(outcome)
            start += count
        self._lap("process_response", started)
        return outcomes


class TensorSteps(Steps):
    """The steps of a TensorHandler: the batch is decoded before, and its output rows are the answers.

    shares: whether the next batch may run before the replies of this one are made; then no answer lies where the
    handler could write to.
    """

    def __init__(
        self,
        handler: TensorHandler,
        clock: Callable[[], int] = time.perf_counter_ns,
        device: Device | None = None,
        shares: bool = False,
    ) -> None:
        super().__init__(handler, clock)
        self._shares = shares
        self._outputs = handler.outputs
        self._device = device
        self._encodes = type(handler).process_response is not TensorHandler.process_response

    async def run(self, work: Any) -> list[Outcome]:
        """Compute one outcome per request from (batch, how many rows of it each has)."""
        self.seconds = {}
        batch, counts = work
        try:
            outputs = on_host(await self._inferred(batch))
            if self._encodes:
                rows = rows_of(outputs, sum(counts))
            else:
                answers = Rows.of(outputs, sum(counts), self._outputs)
                del outputs
                if self._shares:
                    answers = answers.unshared()
        except Exception as error:
            return [_model_failure(error)] * len(counts)
        if self._encodes:
            return await self._encoded(rows, counts)
        return [answers.part(stop - n, stop) for n, stop in zip(counts, accumulate(counts), strict=True)]

    async def _inferred(self, batch: Any) -> Any:
        if self._device is None:
            return await self._step("run_inference", batch)
        with self._device.running():
            return self._device.fetch(await self._step("run_inference", self._device.load(batch)))


def _encode(encode: Callable[[Any], Any], rows: list[Any], start: int, stop: int, done: list[Any]) -> None:
    for i in range(start, stop):
        done.append(_owned(encode(rows[i])))


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
    return encode_row(result)


def _is_flat(values: dict[Any, Any]) -> bool:
    for value in values.values():  # noqa: SIM110 (all() would take a generator)
        if type(value) not in _SCALARS:
            return False
    return True


def _owned_array(row: Any) -> Any:
    return row.copy() if isinstance(row, ndarray) else row


def _joined(requests: list[list[Any]]) -> list[Any]:
    return [item for items in requests for item in items]


def _model_failure(error: Exception) -> HandlerError:
    return error if isinstance(error, HandlerError) else _failure("run_inference", error)


def _failure(step: str, error: BaseException, index: int | None = None) -> HandlerError:
    failure = HandlerError(f"{step} raised {type(error).__name__}", index)
    failure.__cause__ = error
    return failure


def failure_of(error: BaseException) -> HandlerError:
    """The outcome of a whole batch that broke off: SystemExit, cancellation, out of memory between the steps."""
    return _failure("the batch", error)


def async_methods(handler: RequestHandler) -> Iterator[str]:
    """The names of those of the three methods that are coroutine functions."""
    for name in ("process_request", "run_inference", "process_response"):
        if inspect.iscoroutinefunction(getattr(handler, name)):
            yield name
