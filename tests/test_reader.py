"""Bytes to heads and bodies: a reader alone, without a connection."""

from __future__ import annotations

import pytest
from kit.cases import GET, chunked, head, post

from virtex import Limits
from virtex.errors import RequestError
from virtex.wire.reader import FIELD_BYTES, HEAD_KEPT, Reader

LONG = head(b"A: " + b"x" * HEAD_KEPT)


class Taker:
    """What an exchange is to a reader."""

    def __init__(self):
        self.body = b""

    def write(self, data):
        self.body += data


@pytest.fixture
def reader():
    return Reader(Limits())


def test_a_head_ends_where_its_body_begins(reader):
    raw = post(b"abc")
    at = reader.read_head(b"xx" + raw, 2)
    assert (b"xx" + raw)[at:] == b"abc"
    assert (reader.head.method, reader.head.length) == ("POST", 3)


def test_a_head_is_whole_when_its_last_byte_has_come(reader):
    assert not reader.has_begun()
    for i in range(len(GET) - 1):
        assert reader.read_head(GET[i : i + 1], 0) == -1
        assert reader.held() == i + 1 and reader.has_begun()
    assert reader.read_head(GET[-1:] + b"next", 0) == 1
    assert reader.head.path == "/" and not reader.has_begun()


def test_an_empty_line_ahead_is_no_beginning(reader):
    assert reader.read_head(b"\r", 0) == -1
    assert not reader.has_begun()
    assert reader.read_head(b"\n" + GET, 0) == 1 + len(GET)


def test_the_same_head_again_is_the_same_object_and_not_new(reader):
    at = reader.read_head(GET + GET, 0)
    first = reader.head
    assert reader.is_new
    assert reader.read_head(GET + GET, at) == 2 * len(GET)
    assert reader.head is first and not reader.is_new
    reader.read_head(head(b"A: b"), 0)
    assert reader.head is not first and reader.is_new


def test_a_head_costs_its_bytes_and_fields_for_as_long_as_it_is_kept(reader):
    reader.read_head(GET, 0)
    assert reader.cost == reader.held() == len(GET) + FIELD_BYTES
    reader.forget_long()
    assert reader.head is not None
    reader.read_head(LONG, 0)
    assert reader.cost == len(LONG) + 2 * FIELD_BYTES and reader.held() == 0
    reader.forget_long()
    assert reader.head is None
    reader.read_head(LONG, 0)
    assert reader.is_new


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET / HTTP/3.2\r\nHost: a\r\n\r\n", 505),
        (b"GET /" + b"x" * 9000, 414),
        (head(b"A: " + b"x" * 70_000)[:-4], 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : 1", 400),
    ],
)
def test_what_is_no_head_is_refused_as_soon_as_that_is_seen(raw, status):
    for segments in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        reader = Reader(Limits())
        with pytest.raises(RequestError) as error:
            for segment in segments:
                reader.read_head(segment, 0)
        assert error.value.status == status


def test_a_counted_body_takes_its_own_bytes_and_none_behind_them(reader):
    reader.begin_body(5, Taker())
    assert reader.read_counted(b"xabc", 1) == b"abc" and not reader.is_over()
    assert reader.read_counted(b"defg", 0) == b"de" and reader.is_over()


def test_a_chunked_body_goes_to_who_takes_it_and_ends_where_it_ends(reader):
    raw = chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    taker = Taker()
    data = raw + b"next"
    at = reader.read_head(data, 0)
    reader.begin_body(reader.head.length, taker)
    while not reader.is_over():
        at = reader.read_chunks(data, at)
    assert (taker.body, data[at:]) == (b"abcde", b"next")


@pytest.mark.parametrize("body", [b"abcde", b"5\r\nabcde\r\n0\r\n\r\n"], ids=["counted", "chunked"])
def test_a_body_that_nobody_wants_is_stepped_over(reader, body):
    reader.begin_body(5 if body == b"abcde" else None, None)
    data = body + b"next"
    at = 0
    while not reader.is_over():
        at = reader.skip(data, at)
    assert data[at:] == b"next"
    reader.end_body()
    assert reader.is_over() and reader.body is None


def test_a_length_beyond_what_can_be_counted_is_skipped_for_ever(reader):
    reader.begin_body(2**64 - 1, None)
    assert reader.skip(b"x" * 1000, 0) == 1000 and not reader.is_over()


def test_llhttp_goes_on_behind_a_body_whether_it_was_here_or_not(reader):
    data = post(b"abc") + GET
    at = reader.read_head(data, 0)
    assert reader.read_head(data, at + 3) == len(data)
    at = reader.read_head(post(b"abc", b"A: b")[:-3], 0)
    assert reader.read_head(GET, 0) == len(GET)


def test_what_is_held_back_counts_until_it_is_dropped(reader):
    reader.rest, reader.rest_at = b"x" * 1000, 10
    assert reader.held() == 1000
    reader.drop_rest()
    assert (reader.rest, reader.rest_at, reader.held()) == (b"", 0, 0)


def test_a_reader_that_stops_keeps_the_head_it_knows_and_one_that_forgets_keeps_nothing(reader):
    reader.read_head(GET, 0)
    reader.read_head(b"GET", 0)
    reader.rest = b"xyz"
    reader.stop()
    assert reader.held() == reader.cost
    reader.forget()
    assert reader.held() == 0 and reader.head is None
