"""A Request by hand, as tests of a handler make one."""

import copy
import math

import pytest
from kit.asks import Echo

import virtex
from virtex import HttpMessage, Request
from virtex.errors import HandlerError


class Asks(Echo):
    def process_request(self, data, requests):
        return [[item, request.parameters, dict(request.headers)] for item, request in zip(data, requests, strict=True)]


class AsksLate(Asks):
    async def process_response(self, row, request):
        return [*row, request.method, request.path, request.id]


def test_a_request_made_of_nothing():
    request = Request()
    assert (request.method, request.path, request.query, request.id) == ("POST", "/", "", "")
    assert (dict(request.headers), request.parameters, request.deadline) == ({}, {}, math.inf)
    assert repr(Request(path="/a", id="7")) == "Request(POST /a, id='7')"
    assert virtex.Request is Request


@pytest.mark.parametrize(
    "fields",
    [{"X-Key": "a, b", "accept": "c"}, [(b"x-key", b"a"), (b"accept", b"c"), (b"X-Key", b"b")]],
    ids=["map", "wire"],
)
def test_headers_are_found_in_any_case_and_joined(fields):
    headers = Request(headers=fields).headers
    assert headers["x-KEY"] == headers["x-key"] == headers.get("X-Key") == "a, b"
    assert "ACCEPT" in headers and "host" not in headers and 5 not in headers and headers.get("host") is None
    assert dict(headers) == {"x-key": "a, b", "accept": "c"} and len(headers) == 2
    assert repr(headers) == "{'x-key': 'a, b', 'accept': 'c'}"
    with pytest.raises(KeyError):
        headers["host"]
    with pytest.raises(TypeError):
        headers["host"] = "a"


def test_headers_are_read_when_they_are_asked_for_and_once():
    fields = [(b"a", b"1")]
    request = Request(headers=fields)
    fields.append((b"b", b"2"))
    assert request.headers is request.headers
    assert dict(request.headers) == {"a": "1", "b": "2"}


def test_validate_has_somebody_ask():
    message = HttpMessage(data=[1, 2])
    assert Asks().validate(message, strict=True).data == [[1, {}, {}], [2, {}, {}]]
    assert AsksLate().validate(message, strict=True).data == [
        [1, {}, {}, "POST", "/", ""],
        [2, {}, {}, "POST", "/", ""],
    ]


def test_validate_has_the_given_one_ask_with_the_parameters_of_the_message():
    request = Request("PUT", "/b", headers={"X-A": "1"}, id="7", parameters={"k": 1})
    assert AsksLate().validate(HttpMessage(data=[1]), strict=True, request=request).data == [
        [1, {"k": 1}, {"x-a": "1"}, "PUT", "/b", "7"]
    ]
    answer = AsksLate().validate(HttpMessage(data=[1], parameters={"n": (2,)}), strict=True, request=request)
    assert answer.data[0][1] == {"n": [2]}
    assert request.parameters == {"k": 1}
    assert copy.copy(request).headers == request.headers


def test_validate_refuses_parameters_that_are_no_object():
    with pytest.raises(HandlerError, match="the message's parameters are of type list; expected a dict"):
        Asks().validate(HttpMessage(data=[1], parameters=[1]), strict=True)
    assert Echo().validate(HttpMessage(data=[1], parameters=[1]), strict=True).data == [1]
