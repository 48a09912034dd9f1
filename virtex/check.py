"""What `virtex check module:app` does: each service is set up and given batches of every size, again and again.

Rules: no sockets, and no gunicorn; a handler runs where the server would run it. What can't be meant is
argparse.ArgumentError.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from .errors import HandlerError, ItemError
from .handler import RequestHandler
from .load import tried
from .message import encode_data
from .resident import resident
from .server import Server
from .service.model import Model
from .service.register import REGISTER
from .service.warmup import NO_ITEMS, as_cut, example_of, run_batch

FEWEST = 8  # rounds that say something about memory
LEAK = 1 << 20  # bytes of growth() that are no accident


def check(asked: argparse.Namespace) -> bool:
    """Check each service of an application, and say how it went; gives whether all is well."""
    log = logging.getLogger("virtex")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        servers = _services(asked.app)
        well = [asyncio.run(_Check(server, asked.duration).run()) for server in servers]
    finally:
        log.setLevel(level)
    print("all is well" if all(well) else "FAILED: see above")
    return all(well)


def _services(name: str) -> list[Server]:
    """Those of an application: itself, those that it holds, or those that its module makes."""
    sys.path.insert(0, os.getcwd())  # as gunicorn does
    try:
        app = tried.application(name)
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    except Exception as error:
        traceback.print_exc()
        raise RuntimeError(f"{name.partition(':')[0]} could not be imported from {os.getcwd()}") from error
    gc.collect()
    there = [app] if isinstance(app, Server) else getattr(app, "servers", None) or REGISTER.services()
    servers = [one for one in there if isinstance(one, Server)]
    if not servers:
        raise argparse.ArgumentError(None, f"{name}: expected a Server, or an app that holds some; it makes none")
    for server in servers:
        tried.change(server, {"warmup": ()})  # its counts go nowhere, and the sizes are tried here
    return servers


class _Check:
    """One service. seconds: for which it is tried after each size went well once."""

    def __init__(self, server: Server, seconds: float) -> None:
        self._server = server
        self._seconds = seconds

    async def run(self) -> bool:
        server = self._server
        print(f"service {server.name!r}: max_batch_size {server.max_batch_size}, executor {server.options.executor}")
        begun = time.perf_counter()
        try:
            await server.startup()
        except Exception as error:
            return _failed("setup", error)
        _line("setup", time.perf_counter() - begun)
        try:
            return await self._try(server.model)
        finally:
            await server.shutdown()

    async def _try(self, model: Model) -> bool:
        handler = model._handler
        assert handler is not None
        try:
            items = await example_of(handler, model.call)
        except Exception as error:
            return _failed("example()", error)
        if not items:
            print(f"  {'example()':32} {NO_ITEMS}")
            return False
        batches = []
        for what, batch in self._sizes(items):
            begun = time.perf_counter()
            try:
                batch = await model.call(as_cut, handler, batch, self._server.options.max_batch_cost)
                await run_batch(handler, model.steps, batch, model.call)
            except Exception as error:
                return _failed(f"{len(batch)}{what}", error)
            _line(f"{len(batch)}{what}", time.perf_counter() - begun)
            batches.append(batch)
        return await self._loop(model, handler, batches)

    def _sizes(self, items: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        most = self._server.max_batch_size
        yield " item", items[:1]
        yield " items", list(islice(cycle(items), most))
        if len(items) > 1:
            lengths = [len(item) if isinstance(item, bytes) else len(encode_data([item])) - 2 for item in items]
            longest = items[lengths.index(max(lengths))]
            yield f", the longest ({max(lengths)} bytes)", [longest]
            yield " of the longest", [longest] * most

    async def _loop(self, model: Model, handler: RequestHandler, batches: list[list[Any]]) -> bool:
        begun = time.perf_counter()
        memory: list[int] = []
        while time.perf_counter() - begun < self._seconds:
            for batch in batches:
                try:
                    await run_batch(handler, model.steps, batch, model.call)
                except Exception as error:
                    return _failed(f"round {len(memory) + 1}", error)
            memory.append(resident())
        grown = growth(memory)
        _line(f"{len(memory)} rounds of these", time.perf_counter() - begun)
        if grown is None:
            print(f"  memory: not judged, for it takes {FEWEST} rounds; give it more time by --duration")
            return True
        if grown < LEAK:
            print("  memory: steady")
            return True
        each = (memory[-1] - memory[0]) / len(memory)
        print(f"  memory: GROWS, by about {_mb(each)} in each round; what does the handler keep?")
        return False


def growth(memory: list[int]) -> int | None:
    """Bytes by which it has grown for certain, from the second quarter of the rounds to the last; None for too few."""
    quarter = len(memory) // 4
    return min(memory[-quarter:]) - max(memory[quarter : 2 * quarter]) if len(memory) >= FEWEST else None


def _line(what: str, seconds: float) -> None:
    print(f"  {what:32} {seconds:9.4f} s   memory {_mb(resident()):>9}", flush=True)


def _failed(what: str, error: Exception) -> bool:
    """Say what raised, and where in the user's code; the server's own frames say nothing to him."""
    print(f"  {what:32} FAILED: {error if isinstance(error, (HandlerError, ItemError)) else repr(error)}", flush=True)
    cause = error.__cause__ if isinstance(error, HandlerError) else error
    if cause is not None and not isinstance(cause, ItemError):
        print("".join(traceback.format_exception(cause)), end="", file=sys.stderr)
    return False


def _mb(n: float) -> str:
    return f"{n / 1e6:.2f} MB"
