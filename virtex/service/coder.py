"""Has bodies inflated and answers compressed: at once where that is quick, else on a thread, so that nobody else waits.

Rules: codings.py does it; here it is decided where. The loop's thread alone charges and answers. A thread looks at the
bytes that it was given, for one piece at a time.

What a thread looks at is held until it lets go, whoever has given the request up by then. A body is charged ahead of
each piece that it grows by, when it is its turn: of those that wait, nothing counts but what they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from . import codings
from .codings import Body, Inflater
from .exchange import Exchange
from .seam import Budget, Response

log = logging.getLogger("virtex")

QUICK = 256 << 10  # bytes of a body, coded or not, that are inflated at once: 2 ms
QUICK_ANSWER = 32 << 10  # bytes of an answer that are compressed at once: 1 ms
PIECE = 4 << 20  # bytes that a body grows by at a time on a thread: 20 ms
THREADS = 2  # at once; the others wait for their turn

Done = TypeVar("Done")


class Coder:
    """In one life of a service. inflating: the requests whose bodies a thread is at.

    clock: nanoseconds. watch: sees to the deadline of a request.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        budget: Budget,
        watch: Callable[[Exchange], None],
    ) -> None:
        self.inflating: set[Exchange] = set()
        self._loop = loop
        self._clock = clock
        self._budget = budget
        self._watch = watch
        self._threads: ThreadPoolExecutor | None = None
        self._turns = asyncio.Semaphore(THREADS)  # of pieces: they go round
        self._tasks: set[asyncio.Task[None]] = set()

    async def end(self) -> None:
        """Nothing comes any more: returns when no thread is at anything."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    # ---- bodies

    def inflate(self, exchange: Exchange, coding: str, body: Body) -> bool:
        """Have exchange.inflated() called; returns whether it was. Else it will be, and then exchange.go_on().

        Raises RequestError as Inflater.inflate(), and 503 where there is no room.
        """
        inflater = Inflater(coding, body, exchange.keeper.most_bytes)
        if len(body) <= QUICK:
            is_all = inflater.inflate(QUICK)
            exchange.charge(len(inflater.data))
            if is_all:
                inflater.close()
                exchange.inflated(inflater.data)
                return True
        self.inflating.add(exchange)
        self._watch(exchange)
        self._begin(self._inflate(exchange, inflater))
        return False

    async def _inflate(self, exchange: Exchange, inflater: Inflater) -> None:
        held, exchange.charged = exchange.charged, 0
        failed: Exception | None = None
        try:
            is_all = False
            while not is_all:
                size, room = len(inflater.data), min(PIECE, inflater.room)
                async with self._turns:
                    held += room
                    self._budget.charge(room)
                    is_all = await self._on_thread(_piece, exchange, inflater, room)
                spare = size + room - len(inflater.data)
                held -= spare
                self._budget.held -= spare
        except Exception as error:  # whatever it is, the request is over
            failed = error
        finally:
            self.inflating.discard(exchange)
            inflater.close()
            if exchange.resolved:
                self._budget.held -= held
            else:
                exchange.charged = held
        if failed is not None:
            exchange.resolve([], failed)
        elif not exchange.resolved:
            exchange.inflated(inflater.data)
            exchange.go_on()

    # ---- answers

    def compressed(self, exchange: Exchange, response: Response, coding: str) -> Response | None:
        """The answer as it is to be sent; None: it will be, by exchange.answer()."""
        if not codings.is_worth(response):
            return response
        if response.size <= QUICK_ANSWER:
            return codings.compressed(response, coding)
        twice = 2 * response.size
        if self._budget.held + twice > self._budget.budget:
            return response  # as it is, it needs less
        self._budget.held += twice
        self._begin(self._compress(exchange, response, coding, twice))
        return None

    async def _compress(self, exchange: Exchange, response: Response, coding: str, held: int) -> None:
        try:
            response = await self._on_thread(self._in_time, exchange, response, coding)
        except Exception:
            log.exception("an answer could not be compressed, and goes as it is")
        finally:
            self._budget.held -= held
            exchange.answer(response)

    def _in_time(self, exchange: Exchange, response: Response, coding: str) -> Response:
        """On a thread. It goes as it is where nobody waits for it, or its deadline passed while it waited for this."""
        if exchange.is_left or self._clock() >= exchange.deadline:
            return response
        return codings.compressed(response, coding)

    # ---- threads

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_thread(self, f: Callable[..., Done], *args: object) -> Done:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "virtex coder")
        return await self._loop.run_in_executor(self._threads, f, *args)


def _piece(exchange: Exchange, inflater: Inflater, size: int) -> bool:
    """On a thread; where the request is given up, that was all."""
    return exchange.resolved or inflater.inflate(size)
