"""One connection on a transport that is a list: what goes in byte by byte, what comes out, and when."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.cases import CASES, GET, OK, chunked, head, post
from kit.wire import TEXT, SelfAnswering, StubExchange, StubServer, Wire

from virtex import HttpProtocol, Limits
from virtex.service.seam import Response
from virtex.wire.connections import SECOND
from virtex.wire.requests import STEPS

ROOT = Path(__file__).parent.parent


# --- the table of cases -------------------------------------------------------------------------------------


def outcome_of(segments, event_loop):
    server = StubServer(event_loop)
    wire = Wire(server, loop=event_loop)
    wire.send(*segments)
    wire.advance(2).advance(2)  # a connection that ends, but is read on, is ended when nothing comes
    return wire.statuses, wire.ended, server.bodies


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_whatever_the_segments(case, event_loop):
    words = case.outcome.split()
    statuses = [int(word) for word in words if word.isdigit()]
    whole = outcome_of([case.raw], event_loop)
    assert whole[:2] == (statuses, "close" in words), case.section
    if case.seen is not None:
        assert whole[2] == case.seen
    behind = outcome_of([GET + case.raw], event_loop)
    assert behind == ([200, *statuses], whole[1], [b"", *whole[2]])
    raw = case.raw
    if "100" in words:
        return  # whether a client is invited depends on whether it has begun, and so on the segments
    assert outcome_of([raw[i : i + 1] for i in range(len(raw))], event_loop) == whole
    for at in range(1, len(raw)):
        assert outcome_of([raw[:at], raw[at:]], event_loop) == whole, f"split at {at}: {raw[:at]!r}"


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


# --- requests -----------------------------------------------------------------------------------------------


def test_head_has_method_decoded_path_and_lower_case_names(wire, server):
    wire.send(b"POST /a%20b/%C3%A4?x=%20 HTTP/1.1\r\nHost: a\r\nX-Y: Z \r\nContent-Length: 1\r\n\r\nq")
    got = server.opened[0].head
    assert (got.method, got.path, got.length) == ("POST", "/a b/ä", 1)
    assert got.headers == [(b"host", b"a"), (b"x-y", b"Z"), (b"content-length", b"1")]


def test_path_that_is_no_utf_8_is_replaced_not_refused(wire, server):
    wire.send(b"GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.opened[0].head.path == "/\ufffd"


def test_root_path_is_stripped_from_the_path(wire, server):
    wire.connections.root_path = "/api"
    for target in (b"/api/x", b"/x", b"/apix", b"/api"):
        wire.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [exchange.head.path for exchange in server.opened] == ["/x", "/x", "/apix", "/"]


def test_chunked_request_has_no_length(wire, server):
    wire.send(chunked(b"0\r\n\r\n"))
    assert server.opened[0].head.length is None


def test_all_requests_of_a_connection_have_its_peer_which_leaves_once(wire, server):
    wire.send(OK, OK, head(b"A: b"))
    peers = {exchange.head.peer for exchange in server.opened}
    assert len(peers) == 1
    wire.protocol.connection_lost(None)
    assert server.left == list(peers)


def test_the_same_head_again_is_not_parsed_again_but_a_longer_one_is(wire, server):
    wire.send(post(b"ab"), post(b"cd"), post(b"cd") + post(b"efg"), post(b"hi"))
    assert server.bodies == [b"ab", b"cd", b"cd", b"efg", b"hi"]
    assert server.opened[0].head is server.opened[1].head
    assert server.opened[3].head is not server.opened[0].head


def test_trailers_do_not_become_headers(wire, server):
    wire.send(chunked(b"0\r\nAuthorization: x\r\n\r\n"))
    assert b"authorization" not in dict(server.opened[0].head.headers)


def test_body_in_one_segment_is_handed_over_without_a_copy_of_the_parser(wire, server):
    wire.send(post(b"x" * 1000))
    assert server.bodies == [b"x" * 1000]


# --- answers ------------------------------------------------------------------------------------------------


def test_reply_is_one_write_with_date_server_and_length(wire):
    wire.send(OK)
    assert len(wire.transport.writes) == 1
    ((status, headers, body),) = wire.replies()
    assert (status, body) == (200, b"<ok>")
    assert headers[b"content-type"] == b"text/plain"
    assert headers[b"server"] == b"virtex"
    assert re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers[b"date"])
    assert b"connection" not in headers


def test_pipelined_replies_are_one_write(wire):
    wire.send(OK * 5)
    assert len(wire.transport.writes) == 1
    assert wire.statuses == [200] * 5


def test_answers_by_futures_go_out_in_the_order_of_the_requests(wire, server):
    server.later = True
    wire.send(post(b"1") + post(b"2") + post(b"3"))
    server.opened[2].resolve()
    server.opened[1].resolve()
    wire.settle()
    assert wire.output == b""
    server.opened[0].resolve()
    wire.settle()
    assert [body for _, _, body in wire.replies()] == [b"<1>", b"<2>", b"<3>"]
    assert len(wire.transport.writes) == 1


def test_answers_of_one_batch_to_one_connection_are_one_write(wire, server):
    server.kind = SelfAnswering
    wire.send(post(b"1") + post(b"2") + post(b"3"))
    for exchange in server.opened:
        exchange.resolve()
    assert wire.output == b""
    wire.settle()
    assert [body for _, _, body in wire.replies()] == [b"<1>", b"<2>", b"<3>"] and len(wire.transport.writes) == 1
    wire.send(post(b"4"))
    server.opened[3].resolve()
    wire.settle()
    assert wire.replies()[3][2] == b"<4>"


def test_answer_that_is_there_when_it_is_asked_for_goes_out_at_once(wire, server):
    class Quick(SelfAnswering):
        def answer(self, waiter):
            super().answer(waiter)
            self.resolve()
            return self

    server.kind = Quick
    wire.send(OK + OK, OK)
    assert wire.statuses == [200] * 3 and len(wire.transport.writes) == 2


def test_no_request_is_opened_while_others_are_being_answered(server, event_loop):
    """A server answers a whole batch in one go; a request that entered it meanwhile would find it half done."""
    server.kind = SelfAnswering
    wire = Wire(server, Limits(pipelined=1), event_loop)
    wire.send(post(b"1") + post(b"2"))
    server.opened[0].resolve()
    assert len(server.opened) == 1
    wire.settle()
    assert len(server.opened) == 2


def test_an_answer_that_was_sent_with_an_earlier_one_is_not_taken_for_that_of_a_later_request(wire, server):
    wire.send(OK)  # so that the head of the answer is known
    server.later = True
    wire.send(post(b"1") + post(b"2"))
    first, second = server.opened[1:]
    first.future.add_done_callback(lambda _: wire.protocol.data_received(post(b"3")))
    first.resolve()
    second.resolve()
    wire.settle()
    assert [body for _, _, body in wire.replies()] == [b"<ok>", b"<1>", b"<2>"]
    server.opened[3].resolve()
    wire.settle()
    assert [body for _, _, body in wire.replies()][3:] == [b"<3>"]


def test_an_answer_does_not_reset_the_clock_of_the_head_behind_it(wire, server):
    wire.send(OK)
    server.later = True
    wire.send(post(b"1") + b"GET")
    wire.advance(9)
    server.opened[1].resolve()
    wire.settle().advance(2)
    assert wire.statuses == [200, 200, 408]


def test_error_waits_for_the_answers_of_earlier_requests(wire, server):
    server.later = True
    wire.send(post(b"1") + b"BAD\r\n\r\n")
    assert wire.output == b"" and not wire.ended
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200, 400] and wire.transport.ended


def test_head_request_gets_the_length_but_no_body(wire):
    wire.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"content-length: 2\r\n\r\n" in wire.output and wire.output.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
def test_reply_without_body_has_no_length(wire, server, status):
    server.status = status
    wire.send(GET, GET)
    assert wire.statuses == [status] * 2
    assert b"content-length" not in wire.output and wire.output.endswith(b"\r\n\r\n")


def test_http_1_0_client_is_told_that_it_may_go_on(wire):
    wire.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"connection: keep-alive\r\n" in wire.output


def test_last_reply_says_close_and_the_rest_is_read_but_not_looked_at(wire, server):
    wire.send(head(b"Connection: close"))
    assert b"connection: close\r\n" in wire.output
    assert wire.transport.ended and not wire.transport.closed
    wire.send(OK, b"\0\0")
    assert len(server.opened) == 1 and wire.statuses == [200]
    assert wire.protocol.eof_received() is False


def test_error_is_json_of_the_server(wire):
    wire.send(b"GET / HTTP/1.1\r\n\r\n")
    ((status, headers, body),) = wire.replies()
    assert (status, headers[b"content-type"], headers[b"connection"]) == (400, b"application/json", b"close")
    assert body == b'{"data":[],"error":"expected a Host, as every HTTP/1.1 request has"}'


def test_large_reply_is_not_joined(wire, server):
    joined = []
    wire.transport.writelines = lambda pieces: joined.extend(pieces)
    big = b"x" * 100_000
    server.answer = lambda exchange: Response(200, TEXT, [big])
    wire.send(OK)
    assert any(piece is big for piece in joined)


@pytest.mark.parametrize("bad", [(b"x", b"a\r\nb: c"), (b"x y", b"a"), (b"x", b"\0"), (b"", b"a")])
def test_reply_header_with_control_characters_is_never_sent(wire, server, bad):
    server.headers = (bad,)
    wire.send(OK)
    assert b"b: c" not in wire.output
    assert wire.statuses == [500] and wire.ended


def test_date_is_rendered_once_a_second(wire, monkeypatch):
    wire.send(OK)
    monkeypatch.setattr("virtex.wire.replies.formatdate", lambda *_, **__: "later")
    wire.send(OK)
    assert b"later" not in wire.output
    wire.clock.now += SECOND
    wire.send(OK)
    assert wire.output.count(b"date: later\r\n") == 1


# --- Expect -------------------------------------------------------------------------------------------------

EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"


def test_client_that_expects_is_invited_then_answered(wire):
    wire.send(EXPECT)
    assert wire.output == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"ab")
    assert wire.statuses == [100, 200]


def test_client_that_sends_at_once_is_not_invited(wire):
    wire.send(EXPECT + b"a", b"b")
    assert wire.statuses == [200]


def test_client_that_did_not_wait_for_the_invitation_gets_none(wire, server):
    server.later = True
    wire.send(OK + EXPECT, b"ab")
    server.opened[0].resolve()
    wire.settle()
    server.opened[1].resolve()
    wire.settle()
    assert wire.statuses == [200, 200]


def test_invitation_waits_for_earlier_answers(wire, server):
    server.later = True
    wire.send(OK + EXPECT)
    assert wire.output == b""
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200, 100]


def test_body_that_is_refused_is_not_invited(wire, server):
    server.refuses = lambda head: Response(415, TEXT, [b"no"])
    wire.send(EXPECT)
    assert wire.statuses == [415] and wire.transport.ended


# --- refusing at the end of the headers ---------------------------------------------------------------------


def test_short_unwanted_body_is_skipped_and_the_connection_goes_on(wire, server):
    server.refuses = lambda head: Response(404, TEXT, [b"no"]) if head.path == "/p" else None
    wire.send(post(b"abc") + GET, post(b"abc")[:-1], b"c" + GET)
    assert wire.statuses == [404, 200, 404, 200] and not wire.ended


ENDLESS = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n"
LONG = [chunked(b"3\r\nabc\r\n0\r\n\r\n"), post(b"x" * 99_999)]


@pytest.mark.parametrize("raw", LONG, ids=["chunked", "declared"])
def test_long_unwanted_body_is_read_to_its_end_then_the_connection_ends(wire, server, raw):
    server.refuses = lambda head: Response(404, TEXT, [b"no"])
    wire.send(raw[:60], raw[60:-1])
    assert wire.statuses == [404] and b"connection: close" in wire.output
    assert not wire.ended  # a client that ends when we do would find its connection broken while it sends
    wire.send(raw[-1:] + GET)
    assert wire.statuses == [404] and wire.transport.ended and not wire.transport.closed


@pytest.mark.parametrize("raw", LONG, ids=["chunked", "declared"])
def test_tls_is_closed_when_the_unwanted_body_is_read_and_not_before(wire, server, raw):
    wire.transport.extra["sslcontext"] = object()
    server.refuses = lambda head: Response(404, TEXT, [b"no"])
    wire.send(raw[:60], raw[60:-1])
    assert wire.statuses == [404] and not wire.transport.closed
    wire.send(raw[-1:])
    assert wire.transport.closed and not wire.transport.aborted


def test_a_tls_client_whose_request_made_no_sense_is_read_until_nothing_comes(wire):
    wire.transport.extra["sslcontext"] = object()
    wire.send(b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000)
    assert wire.statuses == [400] and not wire.transport.closed
    wire.advance(2).advance(2)
    assert wire.transport.closed


def test_unwanted_body_of_which_little_is_left_keeps_the_connection(wire, server):
    server.refuses = lambda head: Response(404, TEXT, [b"no"]) if head.path == "/p" else None
    wire.send(post(b"x" * 99_999)[:60_000], post(b"x" * 99_999)[60_000:] + GET)
    assert wire.statuses == [404, 200] and not wire.ended


def test_unwanted_body_with_wrong_chunks_ends_the_connection_without_a_second_answer(wire, server):
    server.refuses = lambda head: Response(404, TEXT, [b"no"])
    wire.send(chunked(b"3\r\nabc\r\n"), b"nonsense\r\n", b"x" * 1000)
    assert wire.statuses == [404] and wire.transport.ended


def test_unwanted_body_is_read_on_while_earlier_answers_are_waited_for(wire, server):
    server.later = True
    server.refuses = lambda head: Response(404, TEXT, [b"no"]) if server.opened else None
    wire.send(OK + post(b"x" * 99_999)[:100], post(b"x" * 99_999)[100:])
    assert wire.output == b"" and wire.transport.reading
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200, 404] and wire.transport.ended


def test_unwanted_body_that_stops_is_no_end_to_earlier_answers(wire, server):
    server.later = True
    server.refuses = lambda head: Response(404, TEXT, [b"no"]) if server.opened else None
    wire.send(OK + post(b"x" * 9_999)[:200]).advance(7)
    assert wire.output == b""
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200, 404] and wire.transport.ended


@pytest.mark.parametrize("large", [False, True])
def test_a_body_refused_midway_is_read_to_its_end(server, event_loop, large):
    """A budget may be used up at any byte; the client that sends on must find its refusal all the same."""

    def write(self, data):
        self.charge(len(data))

    server.kind = type("Charged", (StubExchange,), {"write": write})
    wire = Wire(server, loop=event_loop)
    raw = post(b"x" * (600_000 if large else 60_000))
    wire.send(raw[:1000])
    server.opened[0].budget.budget = 2_000
    wire.send(raw[1000:40_000], raw[40_000:-1])
    assert wire.statuses == [503] and server.opened[0].cancelled and not wire.ended
    assert wire.transport.protocol is wire.protocol
    wire.send(raw[-1:])
    assert wire.statuses == [503] and wire.transport.ended


def test_what_comes_after_the_end_is_read_while_it_comes(wire):
    wire.send(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(40):
        wire.send(b"x" * 100_000).advance(1)
    assert not wire.transport.closed
    wire.advance(3)
    assert wire.transport.closed


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n\r\n", ENDLESS], ids=["junk", "body"])
@pytest.mark.parametrize(("rate", "seconds"), [(1_000_000, 60), (500, 5)], ids=["fast", "slow"])
def test_a_client_that_never_stops_sending_is_cut(wire, raw, rate, seconds):
    wire.send(raw)
    for second in range(80):
        if not wire.transport.closed:
            last = second
            wire.send(b"x" * rate).advance(1)
    assert wire.transport.closed and seconds - 2 < last < seconds + 4


# --- limits -------------------------------------------------------------------------------------------------

SMALL = Limits(request_line=60, header_fields=4, header_bytes=100, body=10, framing=40)


@pytest.mark.parametrize(
    ("raw", "statuses"),
    [
        (b"GET /" + b"x" * 46 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [200]),
        (b"GET /" + b"x" * 47 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [414]),
        (b"GET /" + b"x" * 4700, [414]),
        (b"GET", []),
        (head(b"A: 1", b"B: 1", b"C: 1"), [200]),
        (head(b"A: 1", b"B: 1", b"C: 1", b"D: 1"), [431]),
        (head(b"A: " + b"x" * 84), [200]),
        (head(b"A: " + b"x" * 85), [431]),
        (head(b"A: " + b" " * 84 + b"x"), [431]),
        (head(b"A: " + b"x" * 8500)[:-4], [431]),
        (b"GET / HTTP/1.1\r\n" + b"x" * 200, [431]),
        (b"GET / HTTP/1.1\r\n" + b"\0" * 200, [400]),
        (GET + b"GET /" + b"x" * 60 + b" HTTP/1.1\r\nHost: a\r\n\r\n" + GET, [200, 414]),
        (post(b"x" * 10), [200]),
        (chunked(b"a\r\n0123456789\r\n0\r\n\r\n"), [200]),
        (chunked(b"5\r\n01234\r\n6\r\n012345\r\n0\r\n\r\n"), [413]),
        (chunked(b"ffffffffffffffff\r\n"), [413]),
        (chunked(b"1;" + b"x" * 33 + b"\r\na\r\n0\r\n\r\n"), [400]),
        (chunked(b"1;" + b"x" * 30 + b"\r\na\r\n0\r\n\r\n"), [200]),
        (chunked(b"1\r\na\r\n" * 9 + b"0\r\n\r\n"), [200]),
        (chunked(b"0\r\nX: " + b"y" * 35 + b"\r\n\r\n"), [400]),
    ],
)  # fmt: skip
def test_limits_hold_whatever_the_segments(raw, statuses, event_loop):
    def outcome(segments):
        wire = Wire(StubServer(event_loop), SMALL, event_loop)
        wire.send(*segments)
        wire.advance(2).advance(2)
        return wire.statuses, wire.ended

    whole = outcome([raw])
    assert whole == (statuses, bool(statuses) and statuses[-1] != 200)
    assert outcome([raw[i : i + 1] for i in range(len(raw))]) == whole
    for at in range(1, len(raw), 7):
        assert outcome([raw[:at], raw[at:]]) == whole


def test_declared_body_over_the_limit_is_refused_before_it_comes(wire):
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n")
    assert wire.statuses == [413] and b"connection: close" in wire.output
    assert wire.advance(3).transport.ended


def test_connection_over_the_limit_is_answered_503(server, event_loop):
    wire = Wire(server, Limits(connections=1), event_loop)
    transport = wire.transport_of(HttpProtocol(server, connections=wire.connections))
    assert b" 503 " in transport.output and b"retry-after: 1\r\n" in transport.output and transport.ended
    wire.send(OK)
    assert wire.statuses == [200]


def test_requests_over_the_pipeline_limit_wait_unread(server, event_loop):
    server.later = True
    wire = Wire(server, Limits(pipelined=2), event_loop)
    wire.send(post(b"1") + post(b"2") + post(b"3") + post(b"4"))
    assert len(server.opened) == 2
    wire.receive(post(b"5"))
    assert len(server.opened) == 2
    for i in range(5):
        server.opened[i].resolve()
        wire.settle()
    assert [body for _, _, body in wire.replies()] == [b"<1>", b"<2>", b"<3>", b"<4>", b"<5>"]


def test_reading_pauses_while_much_waits_for_its_turn(server, event_loop):
    server.later = True
    wire = Wire(server, Limits(pipelined=1), event_loop)
    wire.send(post(b"1") + post(b"2" * 70000))
    assert not wire.transport.reading
    server.opened[0].resolve()
    wire.settle()
    assert wire.transport.reading
    server.opened[1].resolve()
    wire.settle()
    assert wire.statuses == [200, 200]


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_requests_are_not_taken_while_the_client_leaves_the_answers_unread(server, event_loop, later):
    server.later = later
    wire = Wire(server, Limits(pipelined=2), event_loop)
    wire.send(OK)
    if later:
        server.opened[0].resolve()
        wire.settle()
    wire.protocol.pause_writing()
    assert not wire.transport.reading
    wire.protocol.data_received(post(b"1") + post(b"2") + post(b"3"))  # they came in one segment with the first
    assert len(server.opened) == 1
    wire.protocol.resume_writing()
    wire.settle()
    if later:
        for i in (1, 2, 3):
            server.opened[i].resolve()
            wire.settle()
    assert [body for _, _, body in wire.replies()] == [b"<ok>", b"<1>", b"<2>", b"<3>"]
    assert wire.transport.reading


def test_requests_held_back_are_answered_though_their_client_has_ended_its_side(server, event_loop):
    wire = Wire(server, Limits(pipelined=2), event_loop)
    wire.send(OK)
    wire.protocol.pause_writing()
    wire.protocol.data_received(post(b"1") + post(b"2"))
    assert wire.protocol.eof_received()
    assert not wire.ended
    wire.protocol.resume_writing()
    wire.settle()
    assert [body for _, _, body in wire.replies()] == [b"<ok>", b"<1>", b"<2>"]
    assert wire.ended


PIPELINED = """
import asyncio, sys, threading
sys.path.insert(0, "tests")
from kit.wire import Limits, StubServer, Wire

def send():
    loop = asyncio.new_event_loop()
    server = StubServer(loop)
    wire = Wire(server, Limits(pipelined=1), loop)
    wire.protocol.data_received(b"GET / HTTP/1.1\\r\\nHost:a\\r\\n\\r\\n" * 10_000)
    while len(server.opened) < 10_000:
        wire.settle()
    print(len(server.opened), wire.output.count(b"HTTP/1.1 200"))

threading.stack_size(128 << 10)
thread = threading.Thread(target=send)
thread.start()
thread.join()
"""


def test_empty_lines_are_skipped_at_once_however_many(wire):
    wire.protocol.data_received(b"\r\n" * 1_000_000 + OK)  # one by one they would take minutes
    assert wire.statuses == [200]


def test_a_refused_request_whose_body_does_not_come_gets_no_second_answer(wire, server):
    server.refuses = lambda head: Response(404, TEXT, [b"no"])
    wire.send(post(b"x" * 100)[:-50])
    assert wire.statuses == [404] and not wire.ended
    wire.advance(60)
    assert wire.statuses == [404] and wire.ended


def test_bytes_may_come_in_another_kind_of_bytes(wire):
    wire.protocol.data_received(bytearray(OK))
    assert wire.statuses == [200]


@pytest.mark.parametrize("begun", [b"POST / HT", post(b"x" * 100)[:-50]], ids=["head", "body"])
def test_the_time_in_which_we_do_not_read_is_not_the_clients(wire, begun):
    wire.send(OK, begun)
    wire.transport.unsent = 100_000
    wire.protocol.pause_writing()
    for _ in range(4):
        wire.transport.unsent -= 10
        wire.advance(25)
    wire.protocol.resume_writing()
    wire.advance(3)
    assert wire.statuses == [200]
    wire.advance(40)
    assert wire.statuses == [200, 408]


def test_a_client_that_has_read_its_answer_does_not_hold_up_a_drain(wire):
    wire.send(OK)
    wire.transport.unsent = 100_000
    wire.protocol.pause_writing()
    wire.connections.drain()
    wire.advance(1)
    wire.protocol.resume_writing()
    wire.advance(1)
    assert wire.transport.closed


def test_ten_thousand_pipelined_requests_need_no_deep_stack():
    ended = subprocess.run([sys.executable, "-c", PIPELINED], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (0, "10000 10000\n"), ended.stderr  # -11: the stack was not enough


NUMBERED = [post(b"%d" % i) for i in range(100)]


def test_many_pipelined_requests_are_taken_a_few_at_a_time_in_order_and_others_have_their_turn(wire, server):
    other = HttpProtocol(server, connections=wire.connections)
    wire.transport_of(other)
    wire.protocol.data_received(b"".join(NUMBERED))
    first = len(server.opened)
    assert first == STEPS and len(wire.statuses) == first, "what was taken is answered before others have their turn"
    other.data_received(post(b"other"))
    assert server.bodies[first] == b"other"
    wire.settle().settle()
    server.bodies.remove(b"other")
    assert server.bodies == [b"%d" % i for i in range(100)]
    assert [body for _, _, body in wire.replies()] == [b"<%d>" % i for i in range(100)]


def test_what_comes_while_requests_are_held_back_comes_behind_them_and_takes_no_turn_of_its_own(wire, server):
    wire.protocol.data_received(b"".join(NUMBERED[:90]))
    for raw in NUMBERED[90:]:
        wire.protocol.data_received(raw)
    assert len(server.opened) == STEPS
    wire.settle().settle()
    assert server.bodies == [b"%d" % i for i in range(100)]


def test_requests_that_are_held_back_are_answered_after_the_clients_end(wire, server):
    wire.protocol.data_received(b"".join(NUMBERED) + post(b"half")[:-1])
    assert wire.protocol.eof_received() is True
    wire.settle().settle()
    assert len(wire.statuses) == 100 and wire.transport.closed
    assert server.opened[100].cancelled


def test_requests_that_are_held_back_are_answered_while_draining(wire, server):
    wire.protocol.data_received(b"".join(NUMBERED))
    wire.connections.drain()
    wire.advance(60)
    wire.settle().settle()
    assert len(wire.statuses) == 100 and wire.output.count(b"connection: close") >= 1


def test_a_flood_of_chunks_is_taken_a_few_at_a_time_though_its_client_ended(wire, server):
    body = b"".join(b"1\r\n%c\r\n" % (i % 250) for i in range(1000))
    wire.protocol.data_received(chunked(body + b"0\r\n\r\n") + OK)
    assert server.bodies == []
    assert wire.protocol.eof_received() is True
    wire.settle().settle()
    assert server.bodies == [bytes(i % 250 for i in range(1000)), b"ok"]
    assert wire.statuses == [200, 200] and wire.transport.closed


def test_a_client_that_leaves_while_requests_are_held_back_is_gone(wire, server):
    wire.protocol.data_received(b"".join(NUMBERED))
    wire.protocol.connection_lost(None)
    wire.settle()
    assert len(server.opened) == STEPS


def test_limits_that_never_end_are_kept_to(server, event_loop):
    endless = {f.name: float(1 << 61) for f in dataclasses.fields(Limits) if f.name.endswith("seconds")}
    wire = Wire(server, Limits(**endless), event_loop)
    wire.send(OK, OK[:3]).advance(10**9)
    assert not wire.ended
    wire.send(OK[3:]).advance(10**9)
    assert wire.statuses == [200, 200] and not wire.ended


# --- clocks -------------------------------------------------------------------------------------------------


def test_new_connection_that_sends_nothing_is_closed_silently(wire):
    wire.advance(14)
    assert not wire.ended
    wire.advance(2)
    assert wire.transport.closed and wire.output == b""


def test_idle_connection_is_closed_silently_after_keep_alive(wire):
    wire.send(OK).advance(74)
    assert not wire.ended
    wire.advance(2)
    assert wire.transport.closed and wire.statuses == [200]


def test_keep_alive_counts_from_the_last_answer(wire):
    wire.send(OK).advance(74)
    wire.send(OK).advance(74)
    assert not wire.ended
    wire.advance(2)
    assert wire.transport.closed


def test_waiting_for_a_slow_answer_is_not_idleness(wire, server):
    server.later = True
    wire.send(OK).advance(1000)
    assert not wire.ended
    server.opened[0].resolve()
    wire.settle().advance(74)
    assert wire.statuses == [200] and not wire.ended
    wire.advance(2)
    assert wire.transport.closed


def test_head_deadline_is_absolute(wire):
    for byte in b"GET / HT":
        wire.send(bytes([byte])).advance(1)
    assert not wire.ended
    wire.send(b"T").advance(3)
    assert wire.statuses == [408] and wire.transport.ended


def test_head_deadline_holds_on_a_connection_that_was_answered_before(wire):
    wire.send(OK).advance(20)
    wire.send(b"G").advance(9)
    assert not wire.ended
    wire.advance(2)
    assert wire.statuses == [200, 408]


def test_empty_lines_do_not_start_the_head_clock(wire):
    wire.send(OK).send(b"\r", b"\n").advance(30)
    assert not wire.ended
    wire.send(OK)
    assert wire.statuses == [200, 200]


def test_body_that_stalls_is_cut(wire, server):
    wire.send(post(b"x" * 9000)[:-8000]).advance(4)
    assert not wire.ended
    wire.advance(2)
    assert wire.statuses == [408]
    assert server.opened[0].cancelled


def test_body_at_a_good_rate_may_take_long(wire):
    wire.send(post(b"x" * 40000)[:-40000])
    for _ in range(20):
        wire.send(b"x" * 2000).advance(1)
    assert wire.statuses == [200]


def test_body_below_the_rate_is_cut(wire):
    wire.send(post(b"x" * 40000)[:-40000])
    for _ in range(8):
        if not wire.ended:
            wire.send(b"x" * 500).advance(1)
    assert wire.statuses == [408]


def test_chunked_body_that_stalls_is_cut(wire):
    wire.send(chunked(b"5\r\nab")).advance(7)
    assert wire.statuses == [408]


def test_timeout_is_answered_behind_earlier_answers(wire, server):
    server.later = True
    wire.send(OK + b"GET")
    wire.advance(12)
    assert wire.output == b""
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200, 408]


def test_lingering_connection_is_cut(wire):
    wire.send(b"GET / HTTP/1.1\r\n\r\n").advance(1)
    assert not wire.transport.closed
    wire.advance(2)
    assert wire.transport.aborted


def test_client_that_reads_nothing_is_cut(wire):
    wire.send(OK)
    wire.transport.unsent = 100_000
    wire.protocol.pause_writing()
    assert not wire.transport.reading
    wire.advance(29)
    assert not wire.transport.closed
    wire.advance(2)
    assert wire.transport.reset


@pytest.mark.parametrize("pauses", [False, True])
def test_last_answer_may_take_as_long_as_its_client_reads_it(wire, pauses):
    wire.transport.unsent = 100_000
    write = wire.transport.write
    if pauses:  # as the transport does, from within
        wire.transport.write = lambda data: (write(data), wire.protocol.pause_writing())
    wire.send(head(b"Connection: close"))
    for _ in range(8):
        wire.transport.unsent -= 10
        wire.advance(25)
    assert wire.transport.ended and not wire.transport.closed
    wire.transport.unsent = 0
    wire.protocol.resume_writing() if pauses else wire.advance(30)
    wire.advance(1)
    assert not wire.transport.closed
    wire.advance(2)
    assert wire.transport.closed and not wire.transport.reset


def test_last_answer_that_its_client_does_not_read_is_cut_with_a_reset(wire):
    wire.transport.unsent = 100_000
    wire.send(head(b"Connection: close")).advance(29)
    assert not wire.transport.closed
    wire.advance(2)
    assert wire.transport.reset


def test_a_whole_answer_is_not_reset_when_the_server_ends(wire):
    wire.send(head(b"Connection: close"))
    wire.connections.abort()
    assert wire.transport.aborted and not wire.transport.reset


def test_an_answer_that_is_out_in_part_is_reset_when_the_server_ends(wire):
    wire.send(OK)
    wire.transport.unsent = 10
    wire.connections.abort()
    assert wire.transport.reset


def test_client_that_reads_slowly_is_not_cut(wire):
    wire.send(OK)
    wire.transport.unsent = 100_000
    wire.protocol.pause_writing()
    for _ in range(5):
        wire.transport.unsent -= 10
        wire.advance(25)
    assert not wire.transport.closed
    wire.protocol.resume_writing()
    assert wire.transport.reading


def test_ten_thousand_idle_connections_cost_nothing_per_tick(server, event_loop):
    wire = Wire(server, Limits(connections=20_000), event_loop)
    asked = []
    for _ in range(10_000):
        wire.transport_of(HttpProtocol(server, connections=wire.connections)).protocol.data_received(OK)
    for connection in wire.connections.members:
        asked.append(connection)
    before = len(asked)
    wire.advance(16)  # each is asked once when its first wait would have ended, then once per keep-alive time
    counted = 0

    def count(connection, now, check=HttpProtocol.check_clock):
        nonlocal counted
        counted += 1
        check(connection, now)

    original = HttpProtocol.check_clock
    HttpProtocol.check_clock = count
    try:
        for _ in range(50):
            wire.advance(1)
    finally:
        HttpProtocol.check_clock = original
    assert before == 10_001 and counted <= 1


# --- the client leaves --------------------------------------------------------------------------------------


def test_client_that_leaves_cancels_what_was_not_answered(wire, server):
    server.later = True
    wire.send(post(b"1") + post(b"2") + post(b"333")[:-1])
    wire.protocol.connection_lost(ConnectionResetError())
    assert [exchange.cancelled for exchange in server.opened] == ["the client left"] * 3
    server.opened[0].resolve()
    wire.settle()
    assert wire.output == b""


def test_half_closed_client_gets_its_answer(wire, server):
    server.later = True
    wire.send(OK)
    assert wire.protocol.eof_received() is True
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200] and b"connection: close" in wire.output and wire.transport.closed


def test_half_closed_client_whose_requests_wait_behind_a_batch_has_left(wire, server):
    server.later = server.busy = True
    wire.send(OK + OK)
    assert wire.protocol.eof_received() is False
    assert [exchange.cancelled for exchange in server.opened] == ["the client left"] * 2
    wire.protocol.connection_lost(None)
    assert wire.output == b""


def test_half_closed_client_gets_the_answers_that_are_being_computed(wire, server):
    server.later = True
    wire.send(OK + OK + OK)
    server.opened[1].leaves = lambda: True
    assert wire.protocol.eof_received() is True
    assert [exchange.cancelled for exchange in server.opened] == [None, "the client left", "the client left"]
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200] and b"connection: close" in wire.output and wire.transport.closed


def test_half_closed_client_whose_answers_are_there_gets_them(server, event_loop):
    server.kind = SelfAnswering
    wire = Wire(server, loop=event_loop)
    wire.send(OK + OK)
    server.opened[0].resolve()
    server.opened[1].resolve()
    assert wire.protocol.eof_received() is False
    assert wire.statuses == [200, 200] and wire.transport.closed


def test_half_a_head_behind_a_request_is_not_answered_at_the_end(wire, server):
    server.later = True
    wire.send(OK + OK[:20])
    assert wire.protocol.eof_received() is True
    wire.advance(20)
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200] and wire.transport.closed


def test_half_a_request_is_not_answered_at_the_end(wire, server):
    wire.send(b"GET / HT")
    assert wire.protocol.eof_received() is False
    assert wire.output == b""


def test_half_a_body_is_cancelled_at_the_end_and_earlier_requests_answered(wire, server):
    server.later = True
    wire.send(OK + post(b"abc")[:-1])
    assert wire.protocol.eof_received() is True
    assert server.opened[1].cancelled
    server.opened[0].resolve()
    wire.settle()
    assert wire.statuses == [200] and wire.transport.closed


def test_pipelined_requests_before_a_half_close_are_all_answered(server, event_loop):
    server.later = True
    wire = Wire(server, Limits(pipelined=1), event_loop)
    wire.send(post(b"1") + post(b"2"))
    assert wire.protocol.eof_received() is True
    server.opened[0].resolve()
    wire.settle()
    server.opened[1].resolve()
    wire.settle()
    assert wire.statuses == [200, 200] and wire.transport.closed


# --- errors of ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["open", "write", "complete"])
def test_exception_in_the_server_costs_its_connection_only(server, event_loop, where, caplog):
    wire = Wire(server, loop=event_loop)
    if where == "open":
        server.refuses = lambda head: 1 / 0
    else:
        server.refuses = lambda head: None
        breaking = type("Breaking", (StubExchange,), {where: lambda self, *args: 1 / 0})
        server.open = lambda head, now: breaking(server, head)
        wire = Wire(server, loop=event_loop)
    wire.send(OK)
    assert wire.statuses == [500] and wire.ended
    assert "ZeroDivisionError" in caplog.text
    assert b"division" not in wire.output


@pytest.mark.parametrize("later", [False, True])
def test_answer_that_is_not_bytes_costs_its_connection_only(wire, server, later, caplog):
    wire.send(OK)
    server.later = later
    unsendable = Response(200, TEXT, [])
    unsendable.buffers = [None]
    server.answer = lambda exchange: unsendable
    wire.send(OK)
    if later:
        server.opened[1].resolve()
        wire.settle()
    assert wire.transport.aborted and "could not be written" in caplog.text


def test_exception_while_the_client_leaves_keeps_no_other_request_from_being_told(wire, server, caplog):
    server.later = True
    wire.send(OK + OK)
    server.opened[0].cancel = lambda reason: 1 / 0
    wire.protocol.connection_lost(None)
    assert server.opened[1].cancelled and len(server.left) == 1 and "ZeroDivisionError" in caplog.text


def test_exception_in_a_clock_costs_its_connection_only(wire, server, caplog, event_loop):
    other = wire.transport_of(HttpProtocol(server, connections=wire.connections))
    wire.transport.close = lambda: 1 / 0
    wire.advance(20)
    assert wire.transport.aborted and other.closed and not other.aborted


# --- large bodies -------------------------------------------------------------------------------------------


def test_large_body_is_read_into_its_final_place(wire, server):
    body = bytes(range(256)) * 2048
    wire.send(post(body)[:1000], post(body)[1000:300_000])
    assert wire.transport.protocol is not wire.protocol
    wire.send(post(body)[300_000:] + b"")
    assert server.bodies == [body] and wire.statuses == [200]
    assert wire.transport.protocol is wire.protocol
    wire.send(OK)
    assert wire.statuses == [200, 200]


def test_large_body_never_takes_bytes_of_the_next_request(wire, server):
    body = b"x" * 500_000
    raw = post(body) + post(b"next")
    wire.send(raw[:100_000])
    place = wire.transport.protocol
    left = len(post(body)) - 100_000
    while left > 0:
        view = place.get_buffer(-1)
        assert len(view) <= left
        view[:] = b"x" * len(view)
        place.buffer_updated(len(view))
        left -= len(view)
    wire.send(post(b"next"))
    assert server.bodies == [body, b"next"]


def test_large_body_that_stalls_is_cut(wire, server):
    wire.send(post(b"x" * 500_000)[:100_000])
    for _ in range(6):
        wire.advance(5)
    assert wire.statuses == []
    for _ in range(2):
        wire.advance(5)  # it came fast enough to be waited for 98 s by its rate, but nothing has come for 30
    assert wire.statuses == [408] and server.opened[0].cancelled
    assert wire.transport.protocol is wire.protocol


def test_large_body_that_goes_on_is_not_cut(wire, server):
    text = post(b"x" * 500_000)
    wire.send(text[:100_000])
    for at in range(100_000, len(text), 80_000):
        wire.advance(20)
        wire.send(text[at : at + 80_000])
    assert wire.statuses == [200]


def test_client_that_leaves_in_a_large_body_cancels_it(wire, server):
    wire.send(post(b"x" * 500_000)[:100_000])
    wire.transport.protocol.connection_lost(None)
    assert server.opened[0].cancelled and len(server.left) == 1


# --- draining -----------------------------------------------------------------------------------------------


def test_drain_closes_connections_at_rest_after_a_last_look(wire):
    wire.send(OK)
    wire.connections.drain()
    assert not wire.ended
    wire.advance(1)
    assert wire.transport.closed


def test_drain_answers_what_was_taken_and_says_close_on_the_last(wire, server):
    server.later = True
    wire.send(OK + OK)
    wire.connections.drain()
    for exchange in server.opened:
        exchange.resolve()
    wire.settle()
    assert wire.statuses == [200, 200] and wire.output.count(b"connection: close") == 1
    assert wire.transport.ended


def test_drain_answers_a_request_that_was_on_its_way(wire):
    wire.send(OK)
    wire.connections.drain()
    wire.send(OK)
    assert wire.statuses == [200, 200] and wire.transport.ended


def refuses_all(server):
    server.refuses = lambda head: Response(415, TEXT, [b"no"])


TINY = b"1\r\na\r\n"


def test_rest_of_an_unwanted_body_is_not_read_while_more_than_enough_of_it_is_held(wire, server):
    refuses_all(server)
    wire.send(chunked(TINY * 10)).settle()
    assert wire.statuses == [415]
    wire.send(TINY * 60_000)
    assert not wire.transport.reading
    while not wire.transport.reading:
        wire.settle()
    wire.send(b"0\r\n\r\n").settle()
    assert wire.ended and wire.connections.budget.held < 1000


def test_unwanted_body_that_finds_no_room_brings_no_second_answer(wire, server):
    refuses_all(server)
    server.budget.budget = 1000
    wire.send(chunked(TINY * 5000 + b"0\r\n\r\n"))
    for _ in range(100):
        wire.settle()
    assert wire.statuses == [415]


def test_end_of_a_client_whose_requests_were_given_up_ends_the_connection(wire):
    expecting = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    wire.send(OK * 16 + expecting)
    wire.protocol.eof_received()
    wire.settle()
    assert wire.ended
    assert wire.statuses == [200] * 16
