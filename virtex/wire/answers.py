"""Turns to buffers: the answers of one connection, in the order of its requests.

Rules: writes to the transport, and does nothing else to it; does not read. An answer is written when all before it are,
and none while the client leaves others unread.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..service.seam import CUT_OFF, IDS, LEFT, BaseExchange, Head, Response, Waiter, refusal
from .connections import Connections
from .reader import Reader
from .replies import CONTINUE, Framing
from .waiting import NEXT, Waiting

log = logging.getLogger("virtex")

JOINED = 64 << 10  # bytes; answers up to this are copied into one write, larger ones are handed over in pieces


class Turn:
    """A request's place in the order of its connection: it is answered when all before it are."""

    def __init__(self, head: Head | None, begun: int) -> None:
        self.head = head  # None: what came was no request
        self.begun = begun
        self.exchange: BaseExchange | None = None
        self.answer: Response | None = None  # given without waiting; else the exchange will have it
        self.cost = 0  # bytes that its head takes; 0 where it is the one before again

    def leaves(self) -> bool:
        """Its client sends no more: whether it has left, for all one can tell."""
        exchange = self.exchange
        return exchange is not None and self.answer is None and exchange.response is None and exchange.leaves()


class Answers(Waiter):
    """The turns of one connection, and what is written of them.

    turns: those that are not answered. current: the one whose request is being read. last: nothing is read after it,
    and the connection closes behind its answer. invites: its client waits for 100 Continue. is_corked: answers are
    collected, and written when everything at hand has been read. is_due: there may be something to write. buffered:
    bytes that the transport keeps.
    """

    def __init__(self, connection: Any, connections: Connections, reader: Reader, waiting: Waiting) -> None:
        self._connection = connection
        self._connections = connections
        self._reader = reader
        self._waiting = waiting
        self._invites_itself = not connections.service.streams
        self._transport: Any = None
        self.turns: list[Turn] = []
        self.current: Turn | None = None
        self.last: Turn | None = None
        self.invites: Turn | None = None
        self.is_corked = self.is_due = False
        self.buffered = 0
        self._held = 0

    def begin(self, transport: Any) -> None:
        """The connection is there."""
        self._transport = transport

    def forget(self) -> None:
        """The connection is gone."""
        self._connection = None  # the two would keep each other
        self.buffered = 0

    def add(self, head: Head | None, now: int) -> Turn:
        """A request comes, behind those that are there."""
        turn = Turn(head, now)
        self.turns.append(turn)
        return turn

    def cancel(self, exchange: BaseExchange, reason: str) -> None:
        """Nobody waits for an answer. A service that raises here must not keep others from being told."""
        try:
            exchange.cancel(reason)
        except Exception:
            log.exception("the service raised while an exchange was given up")

    def give_up_from(self, at: int) -> None:
        """Nobody waits for the answers from this turn on."""
        reason = CUT_OFF if self._connections.cut_off else LEFT
        for turn in self.turns[at:]:
            if turn.exchange is not None and turn.answer is None:
                self.cancel(turn.exchange, reason)
        del self.turns[at:]
        self.current = None

    def account(self) -> None:
        """Charge what the connection holds beside bodies and answers, which are their exchanges'.

        Called wherever that may have become more or less.
        """
        held = self._reader.held() + self.buffered
        for turn in self.turns:
            held += turn.cost
        self._connections.budget.held += held - self._held
        self._held = held

    # --- when to write ------------------------------------------------------------------------------------------

    def on_answer(self, exchange: BaseExchange) -> None:
        """The answer of a request is there. Called while a whole batch is being answered, so it reads no other request.

        Where others wait too, they are written together, when the batch has been answered.
        """
        if self.is_corked:
            self.is_due = True
        elif len(self.turns) == 1 and not (self._reader.rest or self._waiting.stalled):
            self._write_all(exchange.ended)
        elif self.turns:
            exchange.hold()
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self.is_due:
            self.is_due = True
            (self._connections.loop or asyncio.get_running_loop()).call_soon(self.flush)

    def flush_soon(self) -> None:
        """Write later: the transport is in the midst of writing now."""
        if self.turns or self._reader.rest:
            self._flush_soon()

    def flush(self) -> None:
        """Write what can be written; then look at what was held back until now."""
        self.write()
        if self._connection is not None:
            self._connection.go_on()

    def write(self) -> None:
        """Write what can be written."""
        self.is_due = False
        if self.turns:
            self._write_all(0)

    def _write_all(self, at: int) -> None:
        """at: the time, where it is known."""
        try:
            now = at
            if not now:
                now = self._connections.clock()
            if self._write_turns(now):
                self._connection.end()
            elif not self.turns:
                self.rest_from(now)
        except Exception:
            log.exception("an answer could not be written; its connection is lost, and no other")
            self._connection.abort()

    def rest_from(self, now: int) -> None:
        """Everything is answered: from now on the keep-alive time counts, if it is the next request that is awaited."""
        if self._waiting.state == NEXT:
            self._waiting.since = now
            until = now + self._connections.keep_alive
            if until < self._waiting.watched_until:
                self._connections.watch(self._connection, until)

    # --- writing ------------------------------------------------------------------------------------------------

    def _write_turns(self, now: int) -> bool:
        """Write every answer whose turn it is, small ones in one go; returns whether the connection's last is out."""
        turns = self.turns
        final = (self._connections.closing or self._waiting.is_half) and not self._reader.rest
        out: list[bytes] = []
        last = False
        size = 0
        cost = self.buffered
        while turns and not last and not self._waiting.stalled:
            turn = turns[0]
            exchange = turn.exchange
            answer = turn.answer
            if answer is None and exchange is not None:
                answer = exchange.response
            if answer is None:
                if self._invites_itself and turn is self.invites and turn is self.current:
                    self.invites = None
                    out.append(CONTINUE)
                    size += len(CONTINUE)
                break
            if len(turns) == 1:
                turns.clear()  # the list of an idle connection takes no more than an empty one
            else:
                del turns[0]
            if final and not turns:
                self.last = turn
            size += self._render(turn, answer, now, out)
            last = turn is self.last
            cost += turn.cost
            if exchange is not None and exchange.charged:
                exchange.release()
            if answer.size > JOINED:
                self._send(out, size)
                out, size = [], 0
        if out:
            self._send(out, size)
        if cost or self.buffered:
            self.account()
        return last

    def _render(self, turn: Turn, response: Response, now: int, out: list[bytes]) -> int:
        """Append an answer; returns how many bytes. One that can't be sent becomes the connection's last, a 500."""
        heads = self._connections.heads
        exchange, head = turn.exchange, turn.head
        request_id = response.request_id
        if not request_id and exchange is not None:
            request_id = exchange.request_id
        if not request_id and head is not None:
            request_id = head.request_id
        if not request_id and self._connections.access is not None:
            request_id = IDS.next()  # else whoever writes the head makes one
        try:
            size = heads.render(response, head, turn is self.last, now, out, request_id)
        except ValueError:
            log.exception("an answer could not be sent")
            self.last = turn
            response = refusal(500, "the server made an answer that can't be sent")
            size = heads.render(response, head, True, now, out, request_id)
        if self._connections.access is not None:
            self.log(turn, response.status, response.size, now, request_id, exchange)
        return size

    def log(
        self, turn: Turn, status: int, size: int, now: int, request_id: bytes, exchange: BaseExchange | None
    ) -> None:
        """For the access log, if there is one."""
        access = self._connections.access
        if access is not None and turn.head is not None:
            access(self._connection.ends, turn.head, status, size, now - turn.begun, request_id, exchange)

    def stream(self, framing: Framing, piece: bytes, is_first: bool, is_last: bool, now: int) -> None:
        """Write a piece of the first turn's answer, behind the head if it is the first; the last ends the turn."""
        if is_first:
            piece = self._connections.heads.streamed(framing, now) + piece
        if piece:
            self._send([piece], len(piece))
        cost = self.buffered
        if is_last:
            turn = self.turns.pop(0)
            exchange, turn.exchange = turn.exchange, None  # the two would be left to the garbage collector
            cost += turn.cost
            if self._connections.access is not None and exchange is not None:
                self.log(turn, framing.start.status, framing.sent, now, exchange.request_id, None)
            self.rest_from(now)
        if cost:
            self.account()

    def _send(self, out: list[bytes], size: int) -> None:
        self.buffered += size  # the transport keeps all of it until the kernel has taken all of it
        if size <= JOINED or len(out) == 1:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
        if not self._waiting.stalled:
            self.buffered = 0
