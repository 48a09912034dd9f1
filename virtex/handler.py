"""What a user writes, RequestHandler, and what its three methods mean to a batch of requests, Steps.

Rules: this file knows neither the loop nor the ring. Steps.run() never raises what the handler raised: each request
gets its own outcome, so that one request's bad item costs no other request its answer.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any

from .errors import HandlerError, ItemError
from .message import HttpMessage, encode_data

log = logging.getLogger("virtex")

Outcome = list[Any] | HandlerError | ItemError


class RequestHandler(ABC):
    """The computation behind a service: decode a batch, run the model, encode one answer.

    Every method may be `async def`; then batches run as coroutines on the event loop, one at a time.
    """

    @abstractmethod
    def process_request(self, data: list[Any]) -> Any:
        """Turn the JSON values of 1 to max_batch_size items, from any number of requests, into what the model takes.

        Raise ItemError for an item that the service does not take (422 for its request alone; every decode_* of
        virtex.serial does). When it raises, it is called again with the items of one request at a time, and may be
        called with single items, to find whose fault it was: it should have no side effects.
        """

    @abstractmethod
    def run_inference(self, model_input: Any) -> Iterable[Any]:
        """Run the model once; give back one row per item, in order.

        Whatever iterates along its zeroth dimension will do: array, tensor, list, DataFrame or Series (by row). A
        mapping, str, bytes or set is refused, and so is any other number of rows than there were items.
        """

    @abstractmethod
    def process_response(self, model_output_item: Any) -> Any:
        """Turn one row into a JSON value; numpy scalars and arrays may stay as they are."""

    def setup(self, worker: Worker) -> None:  # noqa: B027 (optional, not abstract)
        """Load the model; called once in each worker process, off the event loop, before the first request."""

    def teardown(self) -> None:  # noqa: B027
        """Let go of what setup() took; called once, after the last answer."""

    def example(self) -> list[Any]:
        """Give sample items, as they stand in a request's `data`, for checks and warm-up; empty: none."""
        return []

    def validate(self, message: HttpMessage, strict: bool = False) -> HttpMessage | None:
        """Run the three methods over the message's items as the server would.

        Returns the reply, or None with a line in the log when a step failed. strict: raise HandlerError naming the
        step, with the cause attached, or ItemError, instead.
        """
        try:
            return self._validated(message)
        except (HandlerError, ItemError) as error:
            if strict:
                raise
            log.error("%s does not take the message: %s", type(self).__name__, error, exc_info=error.__cause__)
            return None

    def _validated(self, message: HttpMessage) -> HttpMessage:
        items = message.data
        if not isinstance(items, list):
            raise HandlerError(f"the message's data is of type {type(items).__name__}; expected a list")
        encode_data(items, "message")
        steps = Steps(self)
        outcome = (asyncio.run(steps.run([items])) if steps.is_async else drive(steps.run([items])))[0]
        if not isinstance(outcome, list):
            raise outcome
        encode_data(outcome)
        return HttpMessage(data=outcome)


class Worker:
    """The process that setup() runs in: index is a stable slot from 0, count how many workers share the service."""

    __slots__ = ("count", "index")

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index = index
        self.count = count

    def __repr__(self) -> str:
        return f"Worker(index={self.index}, count={self.count})"


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

    Raises HandlerError naming both numbers, or the type that does not iterate along a zeroth dimension.
    """
    kind = type(outputs).__name__
    if isinstance(outputs, (Mapping, str, bytes, bytearray, memoryview, Set)) or not hasattr(outputs, "__iter__"):
        raise HandlerError(f"run_inference returned a {kind}; expected {count} rows along the zeroth dimension")
    if getattr(outputs, "shape", None) == ():
        raise HandlerError(f"run_inference returned a {kind} of no dimensions; expected {count} rows")
    found = len(outputs) if hasattr(outputs, "__len__") else None
    if found is None:
        rows = list(islice(outputs, count + 1))
        found = len(rows)
        if found > count:
            raise HandlerError(f"run_inference gave more than {count} rows for {count} items; expected one per item")
    elif found == count:
        rows = [outputs.iloc[i] for i in range(count)] if hasattr(outputs, "iloc") else list(outputs)
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
        outcomes: list[Outcome] = [[] for _ in requests]
        for members, batch in await self._decoded(requests, outcomes):
            await self._computed(batch, members, requests, outcomes)
        return outcomes

    async def _decoded(self, requests: list[list[Any]], outcomes: list[Outcome]) -> list[tuple[list[int], Any]]:
        """Batches to run, each with the positions of its requests: one, unless process_request raised."""
        everyone = list(range(len(requests)))
        try:
            return [(everyone, await self._decode(_joined(requests)))]
        except Exception as error:
            if len(requests) == 1:
                outcomes[0] = await self._blamed(requests[0], error)
                return []
        singly = []
        for i in everyone:
            try:
                singly.append(([i], await self._decode(list(requests[i]))))
            except Exception as error:
                outcomes[i] = await self._blamed(requests[i], error)
        if len(singly) < 2:
            return singly
        together = [i for (i,), _ in singly]
        try:
            return [(together, await self._decode(_joined([requests[i] for i in together])))]
        except Exception as error:
            # Each is fine alone, they don't stack (shapes that differ, say): nobody is to blame, so each runs alone.
            log.info("process_request takes these %d requests singly only: %r", len(singly), error)
            return singly

    async def _blamed(self, items: list[Any], error: Exception) -> HandlerError | ItemError:
        """The error of one request whose process_request raised, with the index of its lowest failing item."""
        if not isinstance(error, ItemError):
            return _failure("process_request", error)
        if error.index is None:
            for i, item in enumerate(items):
                try:
                    await self._decode([item])
                except ItemError as found:
                    return ItemError(found.reason, i, found.offset)
                except Exception as found:
                    return _failure("process_request", found, i)
        return error

    async def _computed(
        self, batch: Any, members: list[int], requests: list[list[Any]], outcomes: list[Outcome]
    ) -> None:
        count = sum(len(requests[i]) for i in members)
        try:
            rows = rows_of(await self._step("run_inference", batch), count)
        except Exception as error:
            failure = error if isinstance(error, HandlerError) else _failure("run_inference", error)
            for i in members:
                outcomes[i] = failure
            return
        started = self._clock()
        await self._encode(rows, members, requests, outcomes)
        self._lap("process_response", started)

    async def _encode(
        self, rows: list[Any], members: list[int], requests: list[list[Any]], outcomes: list[Outcome]
    ) -> None:
        encode = self._handler.process_response
        awaits = "process_response" in self._awaits
        start = 0
        for i in members:
            stop = start + len(requests[i])
            done: list[Any] = []
            outcome: Outcome = done
            try:
                for row in rows[start:stop]:
                    result = encode(row)
                    done.append(await result if awaits else result)
            except ItemError as error:
                outcome = ItemError(error.reason, len(done), error.offset)
            except Exception as error:
                outcome = _failure("process_response", error, len(done))
            outcomes[i] = outcome
            start = stop


def _joined(requests: list[list[Any]]) -> list[Any]:
    return [item for items in requests for item in items]


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
