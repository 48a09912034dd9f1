"""The bytes of a reply ahead of its body, and how the end of a body in pieces is told."""

from __future__ import annotations

import re

import pytest

from virtex.service.seam import LAST, Head, Response
from virtex.wire import replies
from virtex.wire.replies import CLOSE, KEEP, KEEP_1_0, Heads, end_of_head, framed, has_body, says_of, start_of
from virtex.wire.waiting import SECOND

TEXT = ((b"content-type", b"text/plain"),)
NOW = 10**15


def head_of(method="GET", minor=1):
    head = Head(method, "/", [], 0, None)
    head.minor = minor
    return head


@pytest.fixture
def heads():
    return Heads()


def rendered(heads, response, closes=False, minor=1, now=NOW, method="GET"):
    out = []
    heads.render(response, head_of(method, minor), closes, now, out, b"the-id")
    return b"".join(out)


def test_a_head_says_status_date_server_id_and_length(heads):
    raw = rendered(heads, Response(200, TEXT, [b"abc", b"de"]))
    first, date, *rest = raw.split(b"\r\n")
    assert first == b"HTTP/1.1 200 OK" and date.startswith(b"date: ")
    assert rest.pop(2) == b"x-request-id: the-id"
    assert rest == [b"server: virtex", b"content-type: text/plain", b"content-length: 5", b"", b"abcde"]


@pytest.mark.parametrize("status", [200, 204])
def test_each_answer_has_an_id_of_its_own_whatever_the_length_of_a_run(heads, status):
    ids = set()
    for _ in range(3 * (LAST + 1)):
        out = []
        size = heads.render(Response(status, TEXT, [b"abc"]), head_of(), False, NOW, out)
        head, _, body = b"".join(out).partition(b"\r\n\r\n")
        assert size == len(b"".join(out)) and body == (b"abc" if status == 200 else b"")
        fields = dict(field.split(b": ") for field in head.split(b"\r\n")[1:])
        assert fields.get(b"content-length") == (b"3" if status == 200 else None)
        ids.add(fields[b"x-request-id"])
    assert len(ids) == 3 * (LAST + 1) and all(re.fullmatch(b"[0-9a-f]{24}", one) for one in ids)
    assert len({one[:16] for one in ids}) == 1, "the process's"


@pytest.mark.parametrize(
    ("closes", "minor", "says", "line"),
    [
        (False, 1, KEEP, None),
        (True, 1, CLOSE, b"close"),
        (True, 0, CLOSE, b"close"),
        (False, 0, KEEP_1_0, b"keep-alive"),
    ],
)
def test_what_a_reply_says_of_its_connection(heads, closes, minor, says, line):
    assert says_of(closes, minor) == says
    raw = rendered(heads, Response(200, TEXT, []), closes, minor)
    fields = dict(field.split(b": ") for field in raw.split(b"\r\n")[1:-2])
    assert fields.get(b"connection") == line


@pytest.mark.parametrize(("status", "has"), [(200, True), (204, False), (304, False), (404, True), (100, False)])
def test_a_status_without_body_has_no_length(heads, status, has):
    raw = rendered(heads, Response(status, TEXT, [b"abc"]))
    assert has_body(status) == has and (b"content-length: 3" in raw) == has and raw.endswith(b"abc") == has


def test_a_head_request_gets_the_length_alone(heads):
    assert rendered(heads, Response(200, TEXT, [b"abc"]), method="HEAD").endswith(b"content-length: 3\r\n\r\n")


def test_the_latest_head_is_not_taken_for_another(heads):
    others = [
        (200, TEXT, False, 1),
        (404, TEXT, False, 1),
        (404, (), False, 1),
        (404, (), True, 1),
        (404, (), False, 0),
    ]
    whole = [rendered(heads, Response(status, fields, []), *rest) for status, fields, *rest in others]
    assert len(set(whole)) == len(others)
    assert whole == [rendered(Heads(), Response(status, fields, []), *rest) for status, fields, *rest in others]


def test_a_head_is_rendered_once_a_second(heads, monkeypatch):
    dates = []
    monkeypatch.setattr(replies, "formatdate", lambda *_, **__: dates.append(1) or f"date {len(dates)}")
    monkeypatch.setattr(replies.time, "time", lambda: 7.0)
    raw = [
        rendered(heads, Response(200, TEXT, []), now=NOW + later) for later in (0, 1, SECOND - 1, SECOND, SECOND + 1)
    ]
    assert len(dates) == 2 and [b"date 1" in one for one in raw] == [True, True, True, False, False]


@pytest.mark.parametrize("bad", [(b"x", b"a\r\nb: c"), (b"x y", b"a"), (b"x", b"\0"), (b"", b"a")])
def test_a_field_that_is_none_is_never_rendered(heads, bad):
    with pytest.raises(ValueError, match="without control characters"):
        rendered(heads, Response(200, (bad,), []))
    with pytest.raises(ValueError, match="without control characters"):
        start_of(200, (bad,))


def test_lengths_beyond_those_that_are_kept_are_rendered():
    assert [end_of_head(n) for n in (0, 1023, 1024, 10**9)] == [b"%d\r\n\r\n" % n for n in (0, 1023, 1024, 10**9)]


def test_a_start_leaves_to_us_what_tells_the_end():
    fields = ((b"X", b"1"), (b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked"), (b"Connection", b"Close"))
    start = start_of(200, fields)
    assert (start.length, start.closes, start.names) == (3, True, {b"x"})
    assert start.lines == b"HTTP/1.1 200 OK\r\nx: 1\r\n"


def test_one_piece_is_counted():
    framing = framed(start_of(200, TEXT), head_of(), b"abc", True)
    assert (framing.begins, framing.told, framing.left, framing.closes) == (b"abc", b"3\r\n\r\n", 0, False)


def test_several_pieces_without_a_length_are_chunks():
    framing = framed(start_of(200, TEXT), head_of(), b"ab", False)
    assert framing.told == b"transfer-encoding: chunked\r\n\r\n" and framing.begins == b"2\r\nab\r\n"
    assert (framing.piece(b"", False), framing.piece(b"cde", False)) == (b"", b"3\r\ncde\r\n")
    assert framing.piece(b"f", True) == b"1\r\nf\r\n0\r\n\r\n" and framing.sent == 6


def test_for_http_1_0_the_connections_end_is_the_bodys():
    framing = framed(start_of(200, TEXT), head_of(minor=0), b"ab", False)
    assert framing.closes and (framing.told, framing.begins, framing.piece(b"c", True)) == (b"\r\n", b"ab", b"c")


def test_more_than_the_length_is_cut_and_ends_the_connection(caplog):
    framing = framed(start_of(200, ((b"content-length", b"3"),)), head_of(), b"ab", False)
    assert (framing.begins, framing.left, framing.closes) == (b"ab", 1, False)
    assert framing.piece(b"cdef", True) == b"c" and framing.closes and "more than its content-length" in caplog.text


@pytest.mark.parametrize("length", [None, b"3"])
def test_head_gets_a_length_and_no_body(length):
    framing = framed(start_of(200, ((b"content-length", length),) if length else ()), head_of("HEAD"), b"abc", True)
    assert (framing.begins, framing.told, framing.left) == (b"", b"3\r\n\r\n", 0)


def test_the_id_of_an_application_stands_in_its_head_and_is_not_kept_with_it(heads):
    start = start_of(200, TEXT)
    told = []
    for one in (b"a", b"b", b""):
        told.append(heads.streamed(framed(start, head_of(), b"xyz", True, one), NOW).partition(b"plain")[2])
    assert [b"x-request-id: a\r\n" in told[0], b"x-request-id: b\r\n" in told[1], b"-id" in told[2]] == [1, 1, 0]
    assert all(b"content-length: 3\r\n" in one and one.endswith(b"\r\n\r\n") for one in told)
    chunked = heads.streamed(framed(start, head_of(), b"xyz", False, b"c"), NOW)
    assert chunked.endswith(b"transfer-encoding: chunked\r\nx-request-id: c\r\n\r\n")
    bodiless = heads.streamed(framed(start_of(204, TEXT), head_of(), b"", True, b"d"), NOW)
    assert bodiless.endswith(b"server: virtex\r\nx-request-id: d\r\n\r\n")


def test_the_date_and_server_of_an_application_replace_ours(heads):
    start = start_of(200, ((b"Date", b"then"), (b"Server", b"mine")))
    raw = heads.streamed(framed(start, head_of(), b"", True), NOW)
    assert raw == b"HTTP/1.1 200 OK\r\ndate: then\r\nserver: mine\r\ncontent-length: 0\r\n\r\n"


def test_a_head_that_ends_the_connection_is_not_kept_for_one_that_does_not(heads):
    start = start_of(200, TEXT)
    last = framed(start, head_of(), b"a", True)
    last.closes = True
    assert b"connection: close" in heads.streamed(last, NOW)
    for _ in range(2):
        assert b"connection" not in heads.streamed(framed(start, head_of(), b"a", True), NOW)
