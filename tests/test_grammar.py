"""What HTTP/1.1 asks of a head, as functions of its bytes; the table of cases has them on a connection."""

from __future__ import annotations

import pytest
from kit.cases import chunked, head, post

from virtex import Limits
from virtex.errors import RequestError
from virtex.wire.grammar import decoded, find_fault, has_method, parse_request, skip_empty_lines

LIMITS = Limits()


def test_a_head_is_taken_apart():
    raw = b"POST /a%20b/%C3%A4?x=%20 HTTP/1.1\r\nHost: a\r\nX-Y: Z \r\nContent-Length: 01\r\n\r\n"
    got = parse_request(raw, LIMITS)
    assert (got.method, got.path, got.raw_path, got.query) == ("POST", "/a b/ä", b"/a%20b/%C3%A4", b"x=%20")
    assert (got.target, got.length, got.minor, got.peer) == (b"/a%20b/%C3%A4?x=%20", 1, 1, None)
    assert got.headers == [(b"host", b"a"), (b"x-y", b"Z"), (b"content-length", b"01")]
    assert got.keep_alive and not got.expects


def test_a_path_that_is_no_utf_8_is_replaced():
    assert decoded("/%ff%41") == "/\ufffdA" and decoded("/plain") == "/plain"


@pytest.mark.parametrize(
    ("line", "host"),
    [(b"http://b:1/x?y", b"b:1"), (b"HTTPS://b", b"b"), (b"/x", b"a")],
    ids=["absolute", "bare", "local"],
)
def test_the_host_is_that_of_the_target_where_it_has_one(line, host):
    got = parse_request(b"GET " + line + b" HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
    assert dict(got.headers)[b"host"] == host and got.raw_path.startswith(b"/")


@pytest.mark.parametrize(
    ("raw", "keeps"),
    [
        (head(), True),
        (head(b"Connection: close"), False),
        (head(b"Connection: a, Close"), False),
        (head(b"Connection: keep-alive"), True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_whether_another_request_may_follow(raw, keeps):
    assert parse_request(raw, LIMITS).keep_alive == keeps


def test_how_a_body_is_delimited():
    assert parse_request(head(), LIMITS).length == 0
    assert parse_request(post(b"abc")[:-3], LIMITS).length == 3
    assert parse_request(chunked(b""), LIMITS).length is None


@pytest.mark.parametrize(("extra", "expects"), [(b"Content-Length: 2", True), (b"Content-Length: 0", False)])
def test_only_a_body_that_is_to_come_is_invited(extra, expects):
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n" + extra + b"\r\n\r\n"
    assert parse_request(raw, LIMITS).expects == expects


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (head(b"Host: b"), 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (head(b"Transfer-Encoding: gzip, chunked"), 501),
        (head(b"Expect: 200-ok"), 417),
    ],
)
def test_a_rule_that_is_broken_says_by_which_status(raw, status):
    with pytest.raises(RequestError) as error:
        parse_request(raw, LIMITS)
    assert error.value.status == status


def test_more_fields_than_the_limit_are_a_431():
    with pytest.raises(RequestError, match="at most 2 header fields, got 3"):
        parse_request(head(b"A: 1", b"B: 2"), Limits(header_fields=2))


def test_empty_lines_are_skipped_and_half_ones_are_none():
    assert skip_empty_lines(b"\r\n\r\nGET", 0) == 4
    assert skip_empty_lines(b"x\r\n\r", 1) == 3
    for raw in (b"\n", b"\r\r"):
        with pytest.raises(RequestError):
            skip_empty_lines(raw, 0)


def test_a_method_is_a_token_and_a_space():
    assert has_method(b"GET /") and not has_method(b"GE")
    for raw in (b" GET", b"G\0", b"G\tE"):
        with pytest.raises(RequestError):
            has_method(raw)


def test_a_fault_is_found_where_the_limit_ends():
    limits = Limits(request_line=20, header_bytes=10)
    assert find_fault(b"x" * 21, limits) is None
    at, error = find_fault(b"x" * 22, limits)
    assert (at, error.status) == (22, 414)
    at, error = find_fault(b"GET / HTTP/1.1\r\n" + b"y" * 11, limits)
    assert (at, error.status) == (27, 431)
    at, error = find_fault(b"GET /\n", limits)
    assert (at, error.status) == (6, 400)
