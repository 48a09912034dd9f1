"""One request, from its headers to its answer: Exchange; and Admission, which takes it in or refuses it.

Rules: no sockets, and a clock that is given. An exchange is the ring's ticket of its request. It is completed or
cancelled once, and answered once at most.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from .._codec import count_values, encode_npy, weigh
from ..batch.batcher import Batcher
from ..batch.company import Peer
from ..batch.outputs import Rows
from ..batch.ring import Ticket
from ..errors import RETRY_SOON, HandlerError, ItemError, RequestError
from ..limits import Limits
from ..message import Account, decode_items, encode_data
from ..observer import Observer
from .bodies import Bodies
from .seam import JSON, NPY, Head, Response, Wants, negotiate, refusal

log = logging.getLogger("virtex")

SMALL = 256  # bytes of a body that can't become much, so that nothing is counted
LARGE = 64 << 10  # bytes of an answer from which it counts as soon as it is made; others, where they have to wait
NEVER = 1 << 62  # ns
VALUE_BYTES = 80  # that a small Python object and its place in a list take at most
ARRAY_BYTES = 300  # that an array takes beside its data, about


class Exchange(Ticket):
    """One request whose headers were accepted, and the future of its answer. Made by Admission.

    It has the calls of a future that the shells need. Its callbacks run at once, not in the loop's next iteration:
    answering a batch is one pass over it.
    """

    def _begin(self, admission: Admission, head: Head, wants: Wants, begun: int) -> None:
        """In place of __init__, whose arguments would take a detour through Python: 1 % of an answer's time."""
        # What Ticket.__init__ sets, which is not called
        self.items = self.rows = None
        self.count = self.taken = self.returned = self.born = self.place = 0
        self.resolved = False
        # The exchange's
        self.begun = begun  # when the headers were read, in the clock's nanoseconds
        self.ended = 0  # when it was answered
        self.admission = admission
        self._head = head
        self._wants = wants
        self._arriving = True
        self._body: bytes | bytearray | memoryview = b""
        self._awaited = 0  # since when the rest of it is awaited, in ns; 0 where it came with its head
        self._charged = 0  # bytes that count against limits.max_bytes: of the body, then of the answer
        self.length = 0  # of the answer's body, in bytes, once it is there
        self._response: Response | None = None
        self._callback: Callable[[Exchange], object] | None = None

    def done(self) -> bool:
        """Whether there is an answer."""
        return self._response is not None

    def result(self) -> Response:
        """The answer. Raises asyncio.InvalidStateError while there is none."""
        if self._response is None:
            raise asyncio.InvalidStateError("not answered yet")
        return self._response

    def add_done_callback(self, callback: Callable[[Exchange], object]) -> None:
        """Call callback(exchange) when the answer is there; there can be one."""
        if self._response is None:
            self._callback = callback
        else:
            callback(self)

    def __await__(self) -> Generator[Any, None, Response]:
        if self._response is None:
            waiter = asyncio.get_running_loop().create_future()

            def wake(_: Exchange) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self._callback = wake
            yield from waiter
        self.release()
        return self.result()

    def write(self, data: bytes) -> None:
        """Take a piece of the body that has memory of its own; a single one is not copied.

        Raises RequestError when the body grows beyond limits.body (413), or all of them beyond limits.max_bytes (503);
        cancel() is still to be called.
        """
        self.charge(len(data))
        body = self._body
        if not body:
            self._body = data
        elif isinstance(body, bytearray):
            body += data
        else:
            self._body = bytearray(body) + data

    def buffer(self, n: int) -> memoryview:
        """Where a body of n bytes goes, in place of write(); charge() them as they come."""
        self._body = view = self.admission.bodies.take(n)
        return view

    def await_rest(self, now: int) -> None:
        """The body is not all there: for a while, others wait for it."""
        self._awaited = now or 1
        self.admission.company.awaits(self._head.peer, now)

    def charge(self, n: int) -> None:
        """So many bytes of the body have arrived. Raises RequestError as write() does."""
        self._charged += n
        self.admission.bodies.charge(n)
        if self._charged > self.admission.most_bytes:
            raise self.admission.too_large(self._charged)

    def admit_values(self, body: bytes | bytearray | memoryview) -> None:
        """Charge what a JSON body will become, before it is parsed: "[[],[],[]" takes forty times its length.

        Raises RequestError: 413 beyond limits.values, 503 beyond limits.max_bytes.
        """
        size, most, bodies = len(body), self.admission.most_values, self.admission.bodies
        if size <= SMALL and size <= most:
            return
        values, width = weigh(body)
        wider = size * (width - 1)
        if values > most or bodies.held + values * VALUE_BYTES + wider > bodies.budget:
            values = count_values(body, most)  # without what stands in texts
        self._charge_values(values, wider)

    def admit_strings(self, count: int) -> None:
        """Charge strings that were made of a body without a parser. Raises RequestError as admit_values()."""
        self._charge_values(count, 0)

    def admit_documents(self, before: int, count: int) -> None:
        """Charge arrays that are about to be made behind `before` others. Raises RequestError: 413 or 503."""
        self.admission.batcher.room_for(before + count)
        self._charge_also(count * ARRAY_BYTES)

    def _charge_values(self, values: int, wider: int) -> None:
        most = self.admission.most_values
        if values > most:
            raise RequestError(413, f"more than {most} values in one body of JSON (limits.values)")
        self._charge_also(values * VALUE_BYTES + wider)

    def _charge_also(self, n: int) -> None:
        self._charged += n
        self.admission.bodies.charge(n)

    def _drop_body(self) -> None:
        body, self._body = self._body, b""
        if type(body) is memoryview:
            # Later: the transport that has just written its end looks at it until its call is over.
            self.admission.loop.call_soon(self.admission.bodies.give_back, body)

    def _uncharge(self) -> None:
        self.admission.bodies.held -= self._charged
        self._charged = 0

    def hold(self) -> None:
        """The answer waits to be written: its bytes count, until release()."""
        if not self._charged:
            self._charged = self.length
            self.admission.bodies.held += self.length

    def release(self) -> None:
        """The answer was written, as far as it concerns the exchange."""
        if self._charged:
            self._uncharge()

    def complete(self) -> Response | Exchange:
        """The body is all there: answer at once, or admit its items; then the exchange is the future of its answer."""
        admission = self.admission
        self._arriving = False
        if self._awaited:
            admission.company.arrived(self._head.peer, admission._clock() - self._awaited)
        if admission.is_starting:
            admission.wait_for_start(self)
            return self
        return self._admit() or self

    def start(self) -> None:
        """The handler is there now: admit what waited for it."""
        if not self.resolved and self._admit() is not None:
            self._call_back()

    def _admit(self) -> Response | None:
        try:
            self.items = self.admission.read(self._body, self._wants.sends_npy, self)
            if not len(self.items):
                return self._finish(self._reply([]))
            self.admission.admit(self)
            self._drop_body()
            if not self.items:  # they are in rows, which were counted before; a list is held until it is answered
                self._uncharge()
            return None
        except Exception as error:  # whatever it is, the request is over and must be counted so
            refused = self._error(error)
        self.items = None  # they and the traceback, which is gone now, read the body
        return self._finish(refused)

    def leaves(self) -> bool:
        """Its client sends no more: whether it has left, for all one can tell, as its items wait behind a batch."""
        return self.taken < self.count and not self.resolved and self.admission.batcher.is_busy

    def cancel(self, reason: str) -> None:
        """Nobody waits for the answer any more: the client left, or the body broke off."""
        if self.resolved:
            self.release()
            return
        self.resolved = True
        admission = self.admission
        self._callback = None
        self._drop_body()
        self._uncharge()
        if self._arriving:
            self._arriving = False
            if self._awaited:
                admission.company.arrived(self._head.peer, NEVER)
            admission.batcher.wake()
        else:
            admission.batcher.cancel(self, reason)
            self.items = self.rows = None
        admission.settled(self._head.peer)

    def expire(self) -> None:
        """The deadline passed: answer 504, or 503 while the handler is not even there."""
        admission = self.admission
        seconds = admission.limits.answer_seconds
        if admission.is_starting:
            error = RequestError(503, f"still starting after {seconds:g} s", RETRY_SOON)
        else:
            error = RequestError(504, f"no answer within {seconds:g} s")
        admission.batcher.cancel(self, "deadline passed")
        self.resolve([], error)

    def deliver(self, rows: list[Any] | Rows, error: Exception | None) -> None:
        try:
            response = self._reply(rows) if error is None else self._error(error)
        except Exception as unsendable:  # whatever it is, the other requests of the batch are still to be answered
            response = self._error(unsendable)
        self._finish(self._measured(response))
        if self.length > LARGE:
            self.hold()
        self._call_back()

    def _measured(self, response: Response) -> Response:
        """The same response, its length known; a 503 where a large one has no room."""
        length = 0
        for buffer in response.buffers:
            length += len(buffer)
        bodies = self.admission.bodies
        if length > LARGE and bodies.held - self._charged + length > bodies.budget:
            held = bodies.held - self._charged
            reason = f"no room for an answer of {length} bytes beside {held} of {bodies.budget} (limits.max_bytes)"
            error = RequestError(503, reason, RETRY_SOON)
            return self._measured(self._error(error))
        self.length = length
        return response

    def _call_back(self) -> None:
        callback, self._callback = self._callback, None  # it may lead back here: a cycle for the garbage collector
        if callback is not None:
            try:
                callback(self)
            except Exception:
                log.exception("a connection failed to take its answer")

    def _reply(self, rows: list[Any] | Rows) -> Response:
        if type(rows) is list and not self._wants.takes_npy:
            return Response(200, JSON, [b'{"data":', encode_data(rows), b',"error":null}'])
        if isinstance(rows, Rows):
            document = rows.npy() if self._wants.takes_npy else None
            if document is not None:
                return Response(200, NPY, [document])
            return Response(200, JSON, [rows.json()])
        if self._wants.takes_npy and rows:
            stacked = _stacked(rows)
            if stacked is not None:
                return Response(200, NPY, [stacked])
        return Response(200, JSON, [b'{"data":', encode_data(rows), b',"error":null}'])

    def _error(self, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return refusal(error.status, error.reason, error.headers)
        if isinstance(error, ItemError):
            return refusal(error.status, str(error))
        if not isinstance(error, HandlerError):
            cause, error = error, HandlerError(f"the message could not be handled: {type(error).__name__}")
            error.__cause__ = cause
        return self._failure(error)

    def _failure(self, error: Exception) -> Response:
        """A 500 names the step and an id; the log has the cause under that id, its traceback now and then."""
        request = next((v for k, v in self._head.headers if k == b"x-request-id"), b"")
        sound = re.fullmatch(rb"[\w.:/+=@-]{1,128}", request)
        name = request.decode() if sound else secrets.token_hex(8)
        cause, error.__cause__ = error.__cause__, None  # once per batch, whose requests may share the error
        if cause is None:
            log.error("request %s: %s", name, error)
        else:
            self.admission.batcher.tracebacks.log(cause, "request %s: %s", name, error)
        return refusal(500, f"{error}; request id {name}")

    def _finish(self, response: Response) -> Response:
        self._response = response
        self.resolved = True
        if self._body:
            self._drop_body()
        self._uncharge()
        self.admission.answered(self, response)
        return response


class Admission:
    """Takes requests in or refuses them, and sees to it that each is answered in time; one in each life of a server.

    most_early: how many complete requests wait for the handler at most. is_open: whether requests are taken without
    asking the server first. unsettled: how many were taken that are neither answered nor given up. bodies: the
    budget, which the connections share.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        limits: Limits,
        batcher: Batcher,
        observer: Observer | None,
        most_early: int,
        bodies: Bodies,
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.most_bytes = limits.body
        self.most_values = limits.values
        self.batcher = batcher
        self.company = batcher.company
        self.bodies = bodies
        self.read: Callable[[bytes | bytearray | memoryview, bool, Account], Any] = decode_items
        self.is_open = False
        self.is_starting = True  # the handler is not there yet
        self.unsettled = 0
        self._clock = clock
        self._observer = observer
        self._most_early = most_early
        self._early: list[Exchange] = []  # complete before the handler was there
        self._all_settled: asyncio.Future[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweeps_for = 0  # when the request began whose deadline the sweeper waits for

    def open(self, head: Head, now: int) -> Response | Exchange:
        """Take a message at the end of its headers, or refuse it; now: the clock, in nanoseconds."""
        try:
            wants = head.wants
            if wants is None:
                wants = head.wants = self._negotiated(head)
            self.batcher.room_for(1)
            if self.bodies.is_full():
                raise self.bodies.refusal()
            if self._early:
                self._check_early()
        except RequestError as error:
            return self.refuse(error, now)
        self.unsettled += 1
        self.company.arrives(head.peer)
        exchange: Exchange = Exchange.__new__(Exchange)
        exchange._begin(self, head, wants, now)
        return exchange

    def refuse(self, error: RequestError, now: int) -> Response:
        """The answer to a request that began at `now` and is not taken."""
        return self.answer(refusal(error.status, error.reason, error.headers), now)

    def answer(self, response: Response, now: int) -> Response:
        """The same response, of which the observer is told: nothing was computed for it."""
        if self._observer is not None:
            self.batcher.tell(self._observer.request_done, response.status, 0, (self._clock() - now) / 1e9)
        return response

    def _negotiated(self, head: Head) -> Wants:
        content_type = content_encoding = accept = b""
        for name, value in head.headers:
            if name == b"content-type":
                content_type = value
            elif name == b"accept":
                accept = accept + b"," + value if accept else value
            elif name == b"content-encoding":
                content_encoding = value
        if head.length is not None and head.length > self.most_bytes:
            raise self.too_large(head.length)
        return negotiate(content_type, content_encoding, accept)

    def _check_early(self) -> None:
        if len(self._early) >= self._most_early:
            self._early = [exchange for exchange in self._early if not exchange.resolved]  # those who left, or gave up
            if len(self._early) >= self._most_early:
                raise RequestError(503, f"{len(self._early)} requests wait for the service to start", RETRY_SOON)

    def too_large(self, length: int) -> RequestError:
        """The refusal of a body of so many bytes or more."""
        return RequestError(413, f"a body of {length} bytes; the limit is {self.most_bytes}")

    def wait_for_start(self, exchange: Exchange) -> None:
        """Keep a complete request until there is a handler."""
        self._early.append(exchange)
        self._watch_deadline(exchange.begun)

    def start(self) -> None:
        """The handler is there, and `read` reads what it takes: admit those that waited for it."""
        self.is_starting = False
        early, self._early = self._early, []
        for exchange in early:
            exchange.start()

    def fail(self, error: RequestError) -> None:
        """There will be no handler: answer those that waited for it."""
        self.is_starting = False
        early, self._early = self._early, []
        for exchange in early:
            exchange.resolve([], error)

    def admit(self, exchange: Exchange) -> None:
        """Queue the items of a request; the sweeper answers for it when its deadline passes."""
        self.batcher.admit(exchange, self._clock())
        if self._sweeper is None or exchange.begun < self._sweeps_for:
            self._watch_deadline(exchange.begun)

    def _watch_deadline(self, begun: int) -> None:
        """Sweep when the request that began then has had its time, if none that began sooner is waited for."""
        if self._sweeper is not None:
            if begun >= self._sweeps_for:
                return
            self._sweeper.cancel()
        self._sweeps_for = begun
        left = (begun - self._clock()) / 1e9 + self.limits.answer_seconds
        self._sweeper = self.loop.call_later(max(left, 0.0) + 0.001, self._sweep)

    def _sweep(self) -> None:
        """Answer for those whose deadline passed. One timer does for all, and none runs while nothing waits."""
        self._sweeper = None
        deadline = self._clock() - round(self.limits.answer_seconds * 1e9)
        admitted = [ticket for ticket in self.batcher.unanswered() if isinstance(ticket, Exchange)]
        waiting = [exchange for exchange in (*self._early, *admitted) if not exchange.resolved]
        for exchange in waiting:
            if exchange.begun <= deadline:
                exchange.expire()
        left = [exchange.begun for exchange in waiting if exchange.begun > deadline and not exchange.resolved]
        if left:
            self._watch_deadline(min(left))

    def answered(self, exchange: Exchange, response: Response) -> None:
        """A request that was taken is answered."""
        exchange.ended = now = self.settled(exchange._head.peer)
        if self._observer is not None:
            seconds = (now - exchange.begun) / 1e9
            self.batcher.tell(self._observer.request_done, response.status, exchange.count, seconds)

    def settled(self, peer: Peer | None) -> int:
        """A request that was taken is answered or given up; returns the time, which is one for a batch."""
        now = self.batcher.now or self._clock()
        self.company.settled(peer, now)
        self.unsettled -= 1
        if not self.unsettled and self._all_settled is not None and not self._all_settled.done():
            self._all_settled.set_result(None)
        return now

    async def wait_settled(self) -> None:
        """Returns when no request is left; then no deadline is watched any more."""
        while self.unsettled:
            self._all_settled = self.loop.create_future()
            await self._all_settled
        if self._sweeper is not None:
            self._sweeper.cancel()


def _stacked(rows: list[Any]) -> bytes | None:
    """The rows as one .npy document; None when they are not arrays of one dtype and shape."""
    if not all(isinstance(row, np.ndarray) for row in rows):
        return None
    try:
        return encode_npy(rows)
    except (TypeError, ValueError):
        return None
