"""Takes requests in or refuses them, and counts those that were taken until each is answered or given up.

Rules: no sockets, and a clock that is given. It knows the batcher; what a body means is the formats' business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ..batch.batcher import Batcher, retry_in
from ..batch.company import Peer
from ..errors import RETRY_SOON, RequestError, too_large
from ..limits import Limits
from ..metrics._metrics import Cells
from ..observer import Observer
from . import v2
from .bodies import Bodies
from .coder import Coder
from .cors import Cors
from .deadlines import Deadlines
from .exchange import Exchange, Keeper
from .failures import reason_of
from .formats import JSON, LATER, Failed, Wants, negotiate
from .seam import IDS, Head, Response, patience_in
from .v2_head import Served
from .v2_read import wants_of
from .v2_write import REFUSING

WARNED = ("full", "predicted", "deadline", "draining")  # reasons that are the operator's business
# Paths that are asked by the clock: they would outweigh an idle service's few
NO_CLIENTS = ("/health/", "/metrics/", "/v2/health/")
MOST_PEERS = 64  # of one connection: they are looked through for one that is free
PEERS_KEPT = 1024  # clients that are remembered, before those that mean nothing any more are dropped


class Admission(Keeper):
    """The door of a service, in one life of its model. cors: pages of which other origins may read its answers.

    most_early: how many complete requests wait for the handler at most. unsettled: how many were taken that are neither
    answered nor given up. served: the model as V2 has it, once it is there.
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
        cells: Cells,
    ) -> None:
        super().__init__(loop, clock, limits, batcher, bodies, cells)
        self.unsettled = 0
        self.cors: Cors | None = None
        self.served: Served | None = None
        self._observer = observer
        self._most_early = most_early
        self._early: list[Exchange] = []  # complete before the handler was there
        self.peers: dict[Any, list[Peer]] = {}  # by address and port
        self._peers_kept = PEERS_KEPT
        self._deadlines = Deadlines(loop, clock, batcher, self._waiting)
        self.coder = Coder(loop, clock, bodies, lambda exchange: self._watch(exchange))
        self._all_settled: asyncio.Future[None] | None = None

    @property
    def is_settling(self) -> bool:
        """Whether what came while a long batch held the loop is still being read."""
        return self.batcher.is_settling

    def open(self, head: Head, now: int) -> Response | Exchange:
        """Take a message at the end of its headers, or refuse it; now: the clock, in nanoseconds."""
        try:
            wants = head.wants
            if wants is None:
                wants = self.wanted(head)
                if not self.is_starting:  # by then, it may be another
                    head.wants = wants
            ring, bodies = self.batcher.ring, self.bodies
            if ring.size >= ring.capacity:
                self.batcher.room_for(1)
            self._check_time(1, now, head.patience if 0 < head.patience < self.patience else self.patience)
            if bodies.held > bodies.budget:
                raise bodies.refusal()
            if self._early:
                self._check_early()
        except RequestError as error:
            return self.refuse(error, head, now)
        self.unsettled += 1
        self.cells.in_flight(self.unsettled)
        self.company.arrives(head.peer)
        exchange: Exchange = Exchange.__new__(Exchange)
        exchange._begin(self, head, wants, now)
        return exchange

    def peer(self, client: Any) -> Peer | None:
        """The connection of a client of which a shell knows no more: its address and port. None where it has none.

        Over HTTP/2 a connection has many requests under way, each of a client in a loop, say: each has a peer, up to
        MOST_PEERS. One that were all of theirs would never be done, so never be expected.
        """
        if not client or not client[1] or not self.company.window:
            return None
        key = (client[0], int(client[1]))  # granian gives the port as a string
        peers: list[Peer] | None = self.peers.get(key)
        if peers is None:
            if len(self.peers) >= self._peers_kept:
                self._forget()
            peers = self.peers[key] = []
        for peer in peers:
            if not peer.open:
                return peer
        if len(peers) < MOST_PEERS:
            peers.append(Peer(peers[0] if peers else None))
        return peers[-1]

    def _forget(self) -> None:
        """Nobody says when such a connection ends: forget those that nobody expects, once they are many."""
        self.company.until(self._clock.now())
        self.peers = {
            key: peers for key, peers in self.peers.items() if any(peer.open or peer.expected_since for peer in peers)
        }
        self._peers_kept = max(PEERS_KEPT, 2 * len(self.peers))

    def enter(self) -> None:
        """Take a request that no connection brought. Raises RequestError while too many wait for the start."""
        if self._early:
            try:
                self._check_early()
            except RequestError as error:
                self.cells.refused(error.status)
                self.turn_away(error)
                raise
        self.unsettled += 1
        self.cells.in_flight(self.unsettled)

    def break_off(self, exchange: Exchange, error: RequestError) -> Response:
        """The body of a request finds no room, or does not come: the answer that says so."""
        exchange.response = response = exchange.refuse(error)
        exchange.cancel(error.reason)
        return self.answer(response, exchange._head, exchange.begun)

    def turn_away(self, error: RequestError, head: Head | None = None) -> bytes:
        """What has no exchange, and may have been no request, is lost; returns the id that its answer is to have."""
        request_id = (b"" if head is None else head.request_id) or IDS.next()
        self.lost("protocol" if error.status == 400 else reason_of(error), error.status, 0, request_id, error.reason)
        return request_id

    def lost(self, reason: str, status: int, items: int, request_id: bytes, why: str) -> None:
        """A request ended otherwise than with rows: count it by its reason; tell the observer, and the log.

        status: 0 where nobody was left to be answered. why: as its client reads it. A 500 has its own line already.
        """
        self.cells.lost(reason)
        name = request_id.decode()
        if self._observer is not None:
            self.batcher.tell(self._observer.request_lost, reason, status, items, name)
        if status != 500:
            level = logging.WARNING if reason in WARNED else logging.INFO
            fields = {"event": "request_lost", "reason": reason, "status": status, "items": items, "request_id": name}
            text = f"request {name}: {status or 'no answer'} ({reason}): {why}"
            self.batcher.bursts.tell(level, reason, text, fields)

    def refuse(self, error: RequestError, head: Head, now: int) -> Response:
        """The answer to a request that began at `now` and is not taken."""
        request_id = head.request_id or IDS.next()
        if not _is_by_the_clock(head):
            self.lost(reason_of(error), error.status, 0, request_id, error.reason)
        if head.wants is not None:
            writes = head.wants.writes
        else:
            writes = REFUSING if v2.is_v2(head.path) else JSON
            if self.cors is not None:
                writes = self.cors.writes(writes, head)
        response = writes.refuse(error)
        response.request_id = request_id
        return self.answer(response, head, now)

    def answer(self, response: Response, head: Head, now: int) -> Response:
        """The same response, which is counted, and told the observer: nothing was computed for it."""
        took = self._clock.now() - now
        if not _is_by_the_clock(head):
            self.cells.request(response.status, -1, took)
        if self._observer is not None:
            self.batcher.tell(self._observer.request_done, response.status, 0, took / 1e9)
        return response

    def wanted(self, head: Head) -> Wants:
        """How its body is read, and its answer written. Raises RequestError."""
        if head.length is not None and head.length > self.most_bytes:
            raise too_large(head.length, self.most_bytes)
        head.patience = patience_in(head.headers)
        wants = self._of_v2(head) if v2.is_v2(head.path) else negotiate(head.headers, self.kinds)
        return wants if self.cors is None else self.cors.wants(wants, head)

    def _of_v2(self, head: Head) -> Wants:
        if self.served is not None:
            return wants_of(self.served, head)
        self.kinds.read_by(b"")  # raises where there will be none
        return Wants(LATER, REFUSING)

    # ---- before the handler is there

    def _check_early(self) -> None:
        if len(self._early) >= self._most_early:
            self._early = [exchange for exchange in self._early if not exchange.resolved]  # those who left, or gave up
            if len(self._early) >= self._most_early:
                raise RequestError(
                    503, f"{len(self._early)} requests wait for the service to start", RETRY_SOON, "full"
                )

    def wait_for_start(self, exchange: Exchange) -> None:
        """Keep a complete request until there is a handler."""
        self._early.append(exchange)
        self._watch(exchange)

    def start(self) -> None:
        """The handler is there, and `inputs` says what it takes: admit those that waited for it."""
        for exchange in self._no_longer_early():
            exchange.start()

    def fail(self, reason: str) -> None:
        """There will be no handler: answer those that waited for it, and those whose body is still arriving."""
        failed = self.kinds = Failed(reason)
        for exchange in self._no_longer_early():
            exchange.resolve([], failed.why())

    def _no_longer_early(self) -> list[Exchange]:
        self.is_starting = False
        early, self._early = self._early, []
        return early

    # ---- from the queue to the answer

    def admit(self, exchange: Exchange) -> None:
        """Queue the items of a request, and see to its deadline. Raises RequestError."""
        now = self._clock.now()
        if now >= exchange.deadline:
            raise exchange.too_late(now)
        self._check_time(len(exchange.items), now, exchange.deadline - now)
        self.batcher.admit(exchange, now)
        if self.inputs is not None:  # they were decoded just now
            now = self._clock.now()
        self.cells.decoded(now - exchange.whole)
        self._watch(exchange)

    def _check_time(self, count: int, now: int, left: int) -> None:
        """Raise RequestError (503) where so many items will not be answered in time, for all one can tell.

        left: ns until their deadline. Nearly always, a look at the queue shows that they will.
        """
        batcher = self.batcher
        if batcher.ring.size + count <= batcher.max_batch_size and left >= batcher.pace.soon:
            return
        wait = batcher.wait(count, now)
        if wait > left:
            raise RequestError(
                503,
                f"the answer would take about {wait / 1e9:.3g} s behind what runs and {batcher.ring.size} items "
                f"that wait, and is wanted within {left / 1e9:.3g} s (limits.answer_seconds, or the "
                "request's own time)",
                retry_in(wait - left),
                "predicted",
            )

    def _watch(self, exchange: Exchange) -> None:
        """See to its deadline."""
        if exchange.has_own_time:
            self._deadlines.add(exchange)
        elif exchange.deadline < self._deadlines.unlisted:
            self._deadlines.watch(exchange)

    def _waiting(self) -> list[Exchange]:
        admitted = [ticket for ticket in self.batcher.unanswered() if isinstance(ticket, Exchange)]
        waiting = (*self._early, *self.coder.inflating, *admitted)
        return [exchange for exchange in waiting if not exchange.resolved]

    def conclude(self, exchange: Exchange, peer: Peer | None, status: int) -> None:
        """A request that was taken has its answer: count it out, and tell the observer."""
        exchange.ended = now = self.settle(exchange, peer)
        self.cells.request(status, exchange.count, (exchange.made or now) - exchange.begun)
        if self._observer is not None:
            seconds = (now - exchange.begun) / 1e9
            self.batcher.tell(self._observer.request_done, status, exchange.count, seconds)

    def settle(self, exchange: Exchange, peer: Peer | None) -> int:
        """A request that was taken is answered or given up; returns the time, which is the same for a whole batch."""
        now = self.batcher.now or self._clock.now()
        self.company.settled(peer, now)
        if exchange.listed:
            self._deadlines.forget(exchange.listed)
        if exchange.lost is not None:
            reason, why = exchange.lost
            status = 0 if exchange.response is None else exchange.response.status
            self.lost(reason, status, exchange.count, exchange.name(), why)
        self.unsettled -= 1
        self.cells.in_flight(self.unsettled)
        if not self.unsettled and self._all_settled is not None and not self._all_settled.done():
            self._all_settled.set_result(None)
        return now

    async def wait_settled(self) -> None:
        """Returns when no request is left, and no thread at a body; then no deadline is watched any more."""
        while self.unsettled:
            self._all_settled = self.loop.create_future()
            await self._all_settled
        await self.coder.end()
        self._deadlines.stop()
        self.batcher.bursts.end()


def _is_by_the_clock(head: Head) -> bool:
    return head.path == "/metrics" or head.path.startswith(NO_CLIENTS)
