"""Handlers that declare how one item is decoded, and how one row is encoded: decode_item and encode_item.

Rules: as of steps.py, and no class of handlers either. Items are decoded where the handler runs, so with a thread off
the loop. One that can't be is the end of its own request, before the batch is put together.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import HandlerError, ItemError
from ..message import Content, encode_row
from .arrays import ArraySteps, array_dtype
from .asked import each, methods_that_ask
from .isolate import failure
from .parts import in_fitting_parts
from .steps import Laps, Methods, Outcome, Steps, drive

Function = Callable[[Any], Any]


def steps_for(handler: Methods, clock: Callable[[], int] | None = None) -> Steps:
    """The steps of a handler that takes lists, with what it declares for single items.

    Raises TypeError for a declared thing that is no plain function of one item, and as array_dtype().
    """
    decode, encode = declared(handler, "decode_item"), declared(handler, "encode_item")
    methods = handler if encode is None else Encoding(handler, encode)
    if array_dtype(handler) is not None:
        if decode is not None:
            raise TypeError(
                f"{type(handler).__name__} declares decode_item, and that process_request takes an array: expected one "
                "of them, for what decodes single items gives a list"
            )
        if getattr(handler, "accepts", ()):
            raise TypeError(
                f"{type(handler).__name__} declares accepts, and that process_request takes an array: expected one of "
                "them, for such items are bytes"
            )
        return ArraySteps(methods, clock)
    return Steps(methods, clock) if decode is None else ItemSteps(methods, decode, clock)


def declared(handler: object, name: str) -> Function | None:
    """What a handler declares by that name, not bound to it, so that `self` is not passed; None for nothing.

    Raises TypeError for what can't be called with one item, or would have to be awaited.
    """
    found = inspect.getattr_static(handler, name, None)
    if found is None:
        return None
    function = found.__func__ if isinstance(found, staticmethod) else found
    where = f"{type(handler).__name__}.{name}"
    if not callable(function):
        raise TypeError(f"{where}: expected a function of one item, got a {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{where}: expected a plain function, got an async one")
    _check_takes_one(function, where)
    return function


def _check_takes_one(function: Function, where: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin that has none
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"{where}{signature}: expected a function of one item. It is no method: `self` is not passed"
        ) from None


def refuse_declared(handler: object) -> None:
    """Raise TypeError for what would never be used on a handler whose inputs are declared."""
    remedies = {"decode_item": "its inputs are declared", "encode_item": "override process_response in its place"}
    for name, why in remedies.items():
        if inspect.getattr_static(handler, name, None) is not None:
            raise TypeError(f"{type(handler).__name__}.{name} would never run on a TensorHandler: {why}")
    if getattr(handler, "accepts", ()):
        raise TypeError(
            f"{type(handler).__name__}.accepts means nothing on a TensorHandler: its inputs say what is taken"
        )


class Encoding:
    """The methods of a handler; what its process_response gives is encoded."""

    def __init__(self, handler: Methods, encode: Function) -> None:
        self.process_request = handler.process_request
        self.run_inference = handler.run_inference
        asks = "process_response" in methods_that_ask(handler)
        self.process_response = _with(encode, handler.process_response, asks)


def _with(encode: Function, respond: Callable[..., Any], asks: bool) -> Callable[..., Any]:
    """process_response and encode_item in one, to be awaited if the former is; told who asked if that is."""

    def encoded(value: Any) -> Any:
        try:
            text = encode(value)
        except ItemError:
            raise
        except Exception as error:
            raise failure("encode_item", error) from error
        if type(text) is Content:
            return text
        # Base64 is ready to be sent; of anything else, it is found out now whether JSON can carry it, and named.
        return text if type(text) is str and text.isascii() else encode_row(text, "encode_item")

    async def respond_async(row: Any, **request: Any) -> Any:
        return encoded(await respond(row, **request))

    if inspect.iscoroutinefunction(respond):
        both: Callable[..., Any] = respond_async
    elif asks:
        both = lambda row, **request: encoded(respond(row, **request))  # noqa: E731
    else:
        return lambda row: encoded(respond(row))
    return functools.wraps(respond)(both)  # and has its parameters, by which the steps see that it asks


class ItemSteps(Steps):
    """The steps of a handler that gets its items decoded. Its seconds count decoding to process_request."""

    def __init__(self, handler: Methods, decode: Function, clock: Callable[[], int] | None = None) -> None:
        Steps.__init__(self, handler, clock)
        self._decode_item = decode

    def run(self, requests: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """Compute one outcome per request, as Steps does; one of which an item can't be decoded takes no part."""
        return drive(self.run_async(requests, askers))  # type: ignore[no-any-return]

    async def run_async(self, requests: Any, askers: list[Any] | None = None) -> list[Outcome]:
        """The same for methods of which some are to be awaited."""
        self.laps = Laps()
        started = self._now()
        tried = [self._decoded(items) for items in requests]
        self._lap("process_request", started)
        decoded = [items for items in tried if type(items) is list]
        sent = Sent(items for items, done in zip(requests, tried, strict=True) if type(done) is list)
        failed = [None if type(items) is list else items for items in tried]
        del tried
        if askers is not None:
            askers = [asker for asker, error in zip(askers, failed, strict=True) if error is None]
        computed = iter(await self._computed_of(decoded, sent, askers) if decoded else ())
        return [next(computed) if error is None else error for error in failed]

    def _decoded(self, items: list[Any]) -> list[Any] | ItemError | HandlerError:
        """The items of one request, or the error of the first that can't be decoded; the others are left alone then."""
        decode = self._decode_item
        done: list[Any] = []
        try:
            for item in items:
                done.append(decode(item))
        except ItemError as error:
            return error.at(len(done))
        except Exception as error:
            return failure("decode_item", error, len(done))
        return done

    async def _computed_of(self, requests: list[list[Any]], sent: Sent, askers: list[Any] | None) -> list[Outcome]:
        counts = [len(items) for items in requests]
        asked = each(askers, counts)
        if 0 < self.fits < sum(counts):
            return await in_fitting_parts(self, requests, counts, asked)
        try:
            batch = await self._decode(self.joined(requests), asked)
        except Exception as error:
            return await self._not_decoded(error, requests, counts, askers)
        for items in requests:
            items.clear()  # images, say, take memory, which the model may need
        return await self.computed_async(batch, sent, counts, asked)

    def rebuilt(
        self, sources: Any, untouched: list[int] | None, places: list[tuple[int, int]], asked: list[Any] | None
    ) -> Coroutine[Any, Any, Any]:
        """What run_inference gets for some items of a batch; they are decoded again where what they gave is gone."""
        if type(sources) is not Sent:
            return Steps.rebuilt(self, sources, untouched, places, asked)
        decoded = self._decoded([sources[request][i] for request, i in places])
        if isinstance(decoded, (ItemError, HandlerError)):
            raise decoded
        return self._decode(decoded, asked)


class Sent(list[list[Any]]):
    """The items of requests as the clients sent them."""
