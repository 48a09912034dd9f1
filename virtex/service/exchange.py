"""One request, from the end of its headers to its answer: Exchange.

Rules: no sockets, and a clock that is given. It knows who took it in as a Keeper, and what its bodies mean by their
formats. An exchange is the ring's ticket of its request. It is completed or cancelled once, and answered once at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from .._codec import count_values, weigh
from ..batch.batcher import Batcher
from ..batch.company import Peer
from ..errors import RETRY_SOON, HandlerError, ItemError, RequestError, VirtexError, too_large
from ..limits import Limits
from ..message import decode_message, encode_data
from ..metrics._metrics import Cells, Clock
from ..tensor import Inputs
from .bodies import Bodies
from .failures import logged, no_answer, reason_of, still_starting
from .formats import LATER, UNDECIDED, Format, Kinds, Wants
from .promise import Promise
from .request import Request, request_of
from .seam import CUT_OFF, LEFT, NEVER, Gate, Head, Response, Waiter

SMALL = 256  # bytes of a body that can't become much, so that nothing is counted
GIVEN_UP = "the server gave the request up"
LARGE = 64 << 10  # bytes of an answer from which it counts as soon as it is made; others, where they have to wait
VALUE_BYTES = 80  # that a small Python object and its place in a list take at most
ARRAY_BYTES = 300  # that an array takes beside its data, about


class Keeper(Gate):
    """Who took requests in and sees to it that each is answered, as their exchanges know it: admission.py.

    is_starting: the handler is not there yet. inputs: what a TensorHandler declares, None for a list handler; has_text:
    some of them are text. dtype: of the array that a list handler takes its items as, None for a list. asks: whether
    the handler is told who asked. bodies: the budget, which the connections share. cells: where it is counted.
    most_bytes, most_values: of limits. kinds: of bodies and answers, once the handler is there. coder: has them
    inflated and compressed. patience: ns that a request may take at most. most_kept: bytes in use, up to which the body
    of a request is kept beside its rows, for a second run.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        limits: Limits,
        batcher: Batcher,
        bodies: Bodies,
        cells: Cells,
    ) -> None:
        super().__init__()
        self.cells = cells
        self.loop = loop
        self.limits = limits
        self.most_bytes = limits.body
        self.most_values = limits.values
        self.patience = round(limits.answer_seconds * 1e9)
        self.batcher = batcher
        self.company = batcher.company
        self.bodies = bodies
        self.inputs: Inputs | None = None
        self.dtype: np.dtype[Any] | None = None
        self.asks = False
        self.kinds: Kinds = UNDECIDED
        self.is_starting = True
        self.has_text = False
        self.coder: Any = None
        self.most_kept = -1
        self._clock = Clock(clock)

    def wanted(self, head: Head) -> Wants:
        """How its body is read, and its answer written. Raises RequestError as formats.negotiate(), and 413."""
        raise NotImplementedError

    def wait_for_start(self, exchange: Exchange) -> None:
        """Keep a complete request until there is a handler."""
        raise NotImplementedError

    def admit(self, exchange: Exchange) -> None:
        """Queue the items of a request. Raises RequestError as the batcher does."""
        raise NotImplementedError

    def conclude(self, exchange: Exchange, peer: Peer | None, status: int) -> None:
        """A request that was taken has its answer."""
        raise NotImplementedError

    def settle(self, exchange: Exchange, peer: Peer | None) -> int:
        """A request that was taken is answered or given up; returns the time."""
        raise NotImplementedError


class Exchange(Promise):
    """One request whose headers were accepted, and the future of its answer. Made by Admission.

    Who waits is told at once, not in the loop's next iteration: answering a batch is one pass over it.

    parameters: what its body says beside the items, where somebody is told; None for nothing. lost: why it has no rows,
    in a word, and as its client reads it. is_left: its client left when a batch had given its answer already.

    In the clock's nanoseconds, begun: when its headers were read; whole: when its body was all there; made: when its
    answer was, 0 where no batch gave it or a thread compressed it; deadline: when it is answered at the latest.
    has_own_time: whether its client said so, for less than the service's time. listed: its number where deadlines.py
    has it in order, else 0.
    """

    def _begin(self, keeper: Keeper, head: Head, wants: Wants, begun: int) -> None:
        """In place of __init__."""
        self.begin(keeper.bodies, keeper)
        self.begun = self.whole = begun
        self.made = 0
        self.is_left = False
        self.keeper = keeper
        self.listed = 0
        self.has_own_time = 0 < head.patience < keeper.patience
        self.deadline = begun + (head.patience if self.has_own_time else keeper.patience)
        self._head = head
        self._wants = wants
        self._arriving = True
        self._in_numbers = False  # any array of it came as numbers: those of the answer go so, too
        self._body: bytes | bytearray | memoryview = b""
        self._awaited = 0  # since when the rest of it is awaited, in ns; 0 where it came with its head
        self._waiter: Waiter | None = None
        self.lost: tuple[str, str] | None = None
        self.parameters: dict[str, Any] | None = None
        self._request: Request | None = None  # made when a batch wants it

    def write(self, data: bytes) -> None:
        """Take a piece of the body that has memory of its own; a single one is not copied.

        Raises RequestError when the body grows beyond limits.body (413), or all of them beyond limits.max_bytes (503);
        cancel() is still to be called.
        """
        self.charged += len(data)
        budget = self.budget
        budget.held += len(data)
        if budget.held > budget.budget:
            raise budget.refusal()
        if self.charged > self.keeper.most_bytes:
            raise too_large(self.charged, self.keeper.most_bytes)
        body = self._body
        if not body:
            self._body = data
        elif isinstance(body, bytearray):
            body += data
        elif type(body) is bytes and self.charged == self._head.length:  # the last of two: copied once
            self._body = body + data
        else:
            self._body = bytearray(body) + data

    def buffer(self, n: int) -> memoryview:
        """Where a body of n bytes goes, in place of write(); charge() them as they come."""
        self._body = view = self.keeper.bodies.take(n)
        return view

    def await_rest(self, now: int) -> None:
        """The body is not all there: for a while, others wait for it."""
        self._awaited = now or 1
        self.keeper.company.awaits(self._head.peer, now)

    def parse(self, body: bytes | bytearray | memoryview) -> list[Any]:
        """The items of a JSON body. Raises RequestError as decode_message() and admit_values()."""
        self.admit_values(body)
        return decode_message(body, self if self.keeper.asks else None)

    def admit_values(self, body: bytes | bytearray | memoryview) -> None:
        """Charge what a JSON body will become, before it is parsed: "[[],[],[]" takes forty times its length.

        Raises RequestError: 413 beyond limits.values, 503 beyond limits.max_bytes.
        """
        size, most, bodies = len(body), self.keeper.most_values, self.keeper.bodies
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

    def admit_items(self, count: int, nbytes: int) -> None:
        """Charge what the items of a body, so many by now, take beside it. Raises RequestError (503)."""
        self.keeper.batcher.room_for(count)
        self.charge(nbytes)

    def admit_documents(self, before: int, count: int) -> None:
        """Charge arrays that are about to be made behind `before` others. Raises RequestError (503)."""
        self.admit_items(before + count, count * ARRAY_BYTES)

    def answer_as(self, writes: Format, patience: int) -> None:
        """Its body says how its answer is to be written, and for how many ns its client waits; 0: it does not."""
        # A long head is charged: what it says is not kept beside the connection's.
        self._wants = (self._wants.inflated() if self.charged > len(self._body) else self._wants).answered_as(writes)
        if 0 < patience < self.deadline - self.begun:
            self.deadline, self.has_own_time = self.begun + patience, True

    def _charge_values(self, values: int, wider: int) -> None:
        most = self.keeper.most_values
        if values > most:
            raise RequestError(413, f"more than {most} values in one body of JSON (limits.values)")
        self.charge(values * VALUE_BYTES + wider)

    def _drop_body(self) -> None:
        body, self._body = self._body, b""
        if type(body) is memoryview:
            # Later: the transport that has just written its end looks at it until its call is over.
            self.keeper.loop.call_soon(self.keeper.bodies.give_back, body)

    def hold(self) -> None:
        """The answer waits to be written: its bytes count, until release()."""
        if not self.charged and self.response is not None:
            self.charged = self.response.size
            self.budget.held += self.charged

    def complete(self, body: bytes = b"", waiter: Waiter | None = None) -> Response | Exchange:
        """The body is all there: answer at once, or admit its items; then the exchange is the future of its answer."""
        keeper = self.keeper
        if body:
            self.write(body)
        self._waiter = waiter
        self._arriving = False
        if self._awaited:
            self.whole = keeper._clock.now()
            keeper.company.arrived(self._head.peer, self.whole - self._awaited)
        if keeper.is_starting:
            keeper.wait_for_start(self)
            return self
        return self._admit() or self

    def start(self) -> None:
        """The handler is there now: admit what waited for it."""
        self.whole = self.keeper._clock.now()
        self.go_on()

    def go_on(self) -> None:
        """What it waited for is there: admit its items."""
        if not self.resolved and self._admit() is not None:
            self._call_back()

    def inflated(self, body: bytearray) -> None:
        """Its body as it was ahead of its coding, which counts already, in place of what came."""
        came = len(self._body)
        self.charged, self.budget.held = self.charged - came, self.budget.held - came
        self._drop_body()
        self._body = body
        self._wants = self._wants.inflated()

    def _admit(self) -> Response | None:
        try:
            if self._wants.reads is LATER:
                self._wants = self.keeper.wanted(self._head)
            if self._wants.coding and not self.keeper.coder.inflate(self, self._wants.coding, self._body):
                return None
            reads, inputs = self._wants.reads, self.keeper.inputs
            if inputs is None:
                dtype = self.keeper.dtype
                if dtype is None:
                    self.items = reads.items(self._body, self)
                else:
                    self.items = reads.array(self._body, dtype, self)
            else:
                self.items = reads.source(self._body, inputs, self)
                self._in_numbers = self.items.has_numbers
            if not len(self.items):
                return self._finish(self._wants.writes.reply([]))
            self.weight = self.charged
            self.keeper.admit(self)
            if inputs is None:
                self._drop_body()
            return None
        except Exception as error:  # whatever it is, the request is over and must be counted so
            refused = self.refuse(error)
        self.items = None  # they and the traceback, which is gone now, read the body
        return self._finish(refused)

    def let_go(self) -> None:
        """All items are in rows, which were counted before. Their body is kept for a second run while there is room."""
        if self.budget.held > self.keeper.most_kept:
            self.items = ()
            self._drop_body()
            if not self.keeper.has_text:  # which no buffer holds: it stays charged until the answer
                self.charged -= self.weight
                self.budget.held -= self.weight

    def foresee(self, rows: Any) -> None:
        """The rows of all its batches count from the first of them on: an answer may be far larger than its request."""
        try:
            first = len(encode_data(rows)) if type(rows) is list else sum([a.nbytes for a in rows.arrays().values()])
        except HandlerError:
            return  # no JSON: whoever writes the answer says so, unless it has a form of its own
        size = first * self.count // len(rows)
        if size > LARGE:
            self.charge(size)

    def leaves(self) -> bool:
        """Its client sends no more: whether it has left, for all one can tell, as its items wait behind a batch."""
        return not self.resolved and self.keeper.batcher.is_behind(self)

    def cancel(self, reason: str) -> None:
        """Nobody waits for the answer any more: the client left, or the body broke off."""
        if self.resolved:
            self._waiter = None
            self.is_left = True
            self.release()
            return
        self.resolved = True
        keeper = self.keeper
        if reason in (LEFT, GIVEN_UP, CUT_OFF):
            self.lost = "draining" if reason == CUT_OFF else "disconnect", reason
        self._waiter = None
        self._drop_body()
        self.release()
        if self._arriving:
            self._arriving = False
            if self._awaited:
                keeper.company.arrived(self._head.peer, NEVER)
            keeper.batcher.wake()
        else:
            keeper.batcher.cancel(self, reason)
            self.items = self.rows = None
        keeper.settle(self, self._head.peer)

    def asker(self) -> Request:
        """Who asked, for the handler's methods."""
        if self._request is None:
            self._request = request_of(self._head, self.name(), self.parameters, self.deadline)
        return self._request

    def expire(self, now: int) -> None:
        """The deadline passed: answer 504, or 503 while the handler is not even there. What no batch took is freed."""
        error = self.too_late(now)
        self.keeper.batcher.cancel(self, "deadline passed")
        self.resolve([], error)

    def too_late(self, now: int) -> RequestError:
        """What says that the deadline passed, and where the time went."""
        if self.keeper.is_starting:
            return still_starting(self.deadline - self.begun)
        queued = self.born or now
        left = self.cut_at if 0 < self.taken == self.count else now  # the queue, with its last item
        return no_answer(self.deadline - self.begun, queued - self.begun, left - queued, now - left)

    def deliver(self, rows: Any, error: Exception | None) -> None:
        keeper = self.keeper
        started = keeper._clock.now()
        try:
            response = self._wants.reply(rows, self._in_numbers) if error is None else self.refuse(error)
            response = self._affordable(response)
            if self._wants.answers:
                response = keeper.coder.compressed(self, response, self._wants.answers)
        except Exception as unsendable:  # whatever it is, the other requests of the batch are still to be answered
            response = self.refuse(unsendable)
        now = keeper._clock.now()
        keeper.cells.encoded(now - started)
        if response is not None:
            self.made = now
            self.answer(response)

    def answer(self, response: Response) -> None:
        """This is what is sent."""
        self._finish(response)
        if response.size > LARGE and not self.is_left:
            self.hold()
        self._call_back()

    def _affordable(self, response: Response) -> Response:
        """The same response; a 503 where a large one has no room."""
        length, bodies = response.size, self.budget
        if length > LARGE and bodies.held - self.charged + length > bodies.budget:
            held = bodies.held - self.charged
            reason = f"no room for an answer of {length} bytes beside {held} of {bodies.budget} (limits.max_bytes)"
            return self.refuse(RequestError(503, reason, RETRY_SOON, "full"))
        return response

    def refuse(self, error: Exception) -> Response:
        """The answer that says what went wrong, as the client reads it; of a 500 the log has the cause."""
        if isinstance(error, (RequestError, ItemError)):
            known: VirtexError = error
        else:
            told = {"request_id": self.name().decode(), "items": self.count, "batch_size": self.batch_size}
            known = logged(error, self.keeper.batcher.tracebacks, told)
        self.lost = reason_of(known), str(known)
        return self._wants.writes.refuse(known)

    def _finish(self, response: Response) -> Response:
        self.response = response
        self.resolved = True
        if self._body:
            self._drop_body()
        self.budget.held, self.charged = self.budget.held - self.charged, 0
        self.keeper.conclude(self, self._head.peer, response.status)
        return response
