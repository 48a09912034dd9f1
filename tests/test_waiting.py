"""What a connection waits for: every state of the table is reached, and what follows from it holds."""

from __future__ import annotations

import pytest
from kit.cases import OK, chunked, head, post
from kit.wire import TEXT, StubServer, Wire

from virtex import Limits
from virtex.service.seam import Response
from virtex.wire.waiting import (
    IDLE,
    KEEP_ALIVE,
    LINGER,
    NEVER,
    NONE,
    RATE,
    REST_KEPT,
    SECOND,
    TABLE,
    State,
    Waiting,
    nanoseconds,
)

LIMITS = Limits()
NOW = 10**15
LARGE = post(b"x" * 500_000)


def refusing(server):
    server.refuses = lambda head: Response(404, TEXT, [b"no"])


def never_answering(server):
    server.later = True


WAYS = {  # each state: what the server does first, what comes, and what else happens
    State.NEW: (None, [], None),
    State.NEXT: (None, [OK], None),
    State.HEAD: (None, [OK, b"GET / HT"], None),
    State.COUNTED: (None, [post(b"abc")[:-1]], None),
    State.CHUNKED: (None, [chunked(b"3\r\nab")], None),
    State.PLACED: (None, [LARGE[:100_000]], None),
    State.SKIPPED: (refusing, [post(b"abc")[:-1]], None),
    State.LAST: (never_answering, [head(b"Connection: close")], None),
    State.DROPPED: (refusing, [LARGE[:1000]], None),
    State.ENDED: (None, [head(b"Connection: close")], None),
    State.GONE: (None, [OK], lambda wire: wire.protocol.connection_lost(None)),
}


def test_every_state_has_a_row_and_a_way_to_it():
    assert set(TABLE) == set(WAYS) == set(State)


@pytest.fixture(params=State, ids=lambda state: state.name)
def reached(request, event_loop):
    """A connection in each of the states."""
    prepare, segments, then = WAYS[request.param]
    server = StubServer(event_loop)
    if prepare is not None:
        prepare(server)
    wire = Wire(server, loop=event_loop).send(*segments).settle()
    if then is not None:
        then(wire)
    return request.param, wire


def test_the_connection_is_in_the_state(reached):
    state, wire = reached
    assert State(wire.protocol.waiting.state) is state


def test_its_clock_ends_what_lasts_too_long_and_nothing_else_does(reached):
    state, wire = reached
    if state is State.GONE:
        return
    clock = TABLE[state].clock
    before = len(wire.statuses)
    for _ in range(100):
        wire.advance(1)
    assert wire.ended == (clock != NONE)
    # RFC 9112 section 9.5: what was not asked has no answer, nor has what has one already
    assert wire.statuses[before:] == (
        [408] if state in (State.HEAD, State.COUNTED, State.CHUNKED, State.PLACED) else []
    )


def test_it_is_read_though_its_client_reads_nothing_where_the_table_says_so(reached):
    state, wire = reached
    if state is State.GONE:
        return
    wire.protocol.pause_writing()
    assert wire.transport.reading == TABLE[state].reads_on


def waiting_in(state, **limits):
    waiting = Waiting(Limits(**limits))
    waiting.enter(state)
    waiting.since = NOW
    return waiting


@pytest.mark.parametrize("state", [state for state in State if TABLE[state].of_client], ids=lambda state: state.name)
def test_the_time_in_which_it_is_not_read_is_not_the_clients(state):
    waiting = waiting_in(state)
    waiting.begin_body(state, NOW)
    waiting.turn(False, NOW + SECOND)
    assert waiting.until(NOW + 50 * SECOND, True, NEVER) > NOW + 50 * SECOND
    waiting.turn(True, NOW + 100 * SECOND)
    assert waiting.since == NOW + 99 * SECOND


@pytest.mark.parametrize("state", [State.NEW, State.NEXT])
def test_who_is_answered_is_not_idle(state):
    waiting = waiting_in(state)
    seconds = {IDLE: LIMITS.idle_seconds, KEEP_ALIVE: LIMITS.keep_alive_seconds}[waiting.clock]
    assert waiting.until(NOW, False, NEVER) == NOW + nanoseconds(seconds)
    assert waiting.until(NOW, True, NEVER) == NEVER
    waiting.stall(100, NOW)
    assert waiting.until(NOW, False, NEVER) == NEVER


def test_a_drain_is_waited_for_half_a_second_from_the_later_of_the_two():
    waiting = waiting_in(State.NEXT)
    assert waiting.until(NOW, False, NOW - SECOND) == NOW + SECOND // 2
    assert waiting.until(NOW, False, NOW + SECOND) == NOW + SECOND * 3 // 2


def test_a_body_must_come_at_a_rate_and_never_not_at_all():
    waiting = waiting_in(State.COUNTED, body_rate=1000, body_grace_seconds=5, body_idle_seconds=30)
    assert waiting.clock == RATE
    waiting.begin_body(State.COUNTED, NOW)
    assert waiting.until(NOW, True, NEVER) == NOW + 5 * SECOND
    waiting.received = 20_000
    assert waiting.until(NOW + SECOND, True, NEVER) == NOW + 20 * SECOND
    waiting.received = 100_000
    assert waiting.until(NOW + 2 * SECOND, True, NEVER) == NOW + 32 * SECOND
    assert waiting.until(NOW + 9 * SECOND, True, NEVER) == NOW + 32 * SECOND, "nothing came since"


def test_behind_the_last_answer_it_is_read_while_something_comes_for_a_minute_at_most():
    waiting = waiting_in(State.ENDED)
    assert waiting.clock == LINGER
    waiting.begin_end(NOW)
    assert waiting.until(NOW, False, NEVER) == NOW + 2 * SECOND
    waiting.received = 1 << 40
    assert waiting.until(NOW + SECOND, False, NEVER) == NOW + 3 * SECOND
    waiting.received += 1
    assert waiting.until(NOW + 59 * SECOND, False, NEVER) == NOW + 60 * SECOND


def test_a_client_that_reads_a_little_is_given_the_time_again():
    waiting = waiting_in(State.NEXT)
    assert waiting.until_stalled(0, NOW) == NEVER
    waiting.stall(100, NOW)
    allowed = nanoseconds(LIMITS.write_stall_seconds)
    assert waiting.until_stalled(100, NOW + SECOND) == NOW + allowed
    assert waiting.until_stalled(99, NOW + 2 * SECOND) == NOW + 2 * SECOND + allowed


def test_when_all_is_read_the_wait_begins_anew():
    for state in (State.NEXT, State.ENDED):
        waiting = waiting_in(state)
        waiting.stall(100, NOW)
        waiting.resume(NOW + SECOND)
        assert not waiting.stalled and waiting.since == NOW + SECOND
    waiting = waiting_in(State.HEAD)
    waiting.stall(100, NOW)
    waiting.resume(NOW + SECOND)
    assert waiting.since == NOW, "a head is due when it is due"


def test_nothing_more_is_read_while_enough_is_held_or_the_application_wants_no_more():
    waiting = waiting_in(State.COUNTED)
    assert waiting.wants(REST_KEPT) and not waiting.wants(REST_KEPT + 1)
    waiting.full = True
    assert not waiting.wants(0)
    waiting.enter(State.ENDED)
    assert waiting.wants(0) and not waiting.wants(REST_KEPT + 1)


def test_seconds_that_are_too_many_are_never():
    assert nanoseconds(1.5) == 1_500_000_000 and nanoseconds(1e30) == NEVER
