"""What bodies are taken and how answers are written."""

import time

import numpy as np
import orjson
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import BODY, Echo

from virtex import http_server
from virtex._codec import decode_npy, encode_npy
from virtex.errors import RETRY_SOON, ItemError, RequestError
from virtex.service import formats
from virtex.service.formats import FORMATS, JSON, MESSAGES, NPY, negotiate


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([(b"content-type", b"application/json; charset=utf-8")], 200),
        ([(b"content-type", b"application/problem+json")], 200),
        ([(b"content-type", b"text/plain")], 200),
        ([(b"content-type", b"application/x-www-form-urlencoded")], 200),
        ([(b"content-type", b"Application/Octet-Stream")], 200),
        ([(b"content-type", b"image/png")], 415),
        ([(b"content-type", b"application/x-npyz")], 415),
        ([(b"content-encoding", b"identity")], 200),
        ([(b"content-encoding", b"br")], 415),
        ([(b"content-encoding", b"gzip, gzip")], 415),
        ([(b"accept", b"*/*")], 200),
        ([(b"accept", b"text/html, application/*;q=0.5")], 200),
        ([(b"accept", b"text/html")], 406),
        ([(b"accept", b"application/json;q=0")], 406),
        ([(b"accept", b"text/html"), (b"accept", b"application/json")], 200),
    ],
    ids=str,
)
def test_what_may_be_sent_and_asked_for(headers, status, ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, BODY, headers=headers))
    assert answer.status == status
    if status != 200:
        assert "application/json" in answer.error or "as it is" in answer.error


def test_npy_documents_are_items_and_arrays_come_back_stacked(ask):
    app = http_server("echo", Echo())
    arrays = [np.arange(3, dtype="<f4"), np.arange(3, 6, dtype="<f4")]
    body = b"".join(encode_npy([array]) for array in arrays)
    npy = [(b"content-type", b"application/x-npy"), (b"accept", b"application/x-npy")]
    stacked, as_json, mixed = run(
        app,
        ask(app, body, headers=npy),
        ask(app, body, headers=npy[:1]),
        ask(app, BODY, headers=npy[1:]),
    )
    assert stacked.headers[b"content-type"] == b"application/x-npy"
    (array,) = decode_npy(stacked.body)
    assert array.dtype == np.float32 and array.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert as_json.json["data"] == array.tolist()
    assert mixed.body == b'{"data":[1],"error":null}', "rows that are no arrays are JSON whatever was asked for"


def test_a_bad_npy_document_is_a_422_with_its_index(ask):
    app = http_server("echo", Echo())
    body = encode_npy([np.zeros(2)]) + b"\x93NUMPY\x01\x00garbage"
    (answer,) = run(app, ask(app, body, headers=[(b"content-type", b"application/x-npy")]))
    assert answer.status == 422
    assert "item 1" in answer.error


LONG = "\xe4" * 60_000


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (404, {"method": "GET", "path": f"/metrics/{LONG}"}),
        (405, {"method": "GET", "path": f"/{LONG}"}),
        (405, {"method": LONG}),
        (405, {"method": LONG, "path": "/health/live"}),
        (406, {"headers": [(b"accept", LONG.encode("latin-1"))]}),
        (415, {"headers": [(b"content-type", LONG.encode("latin-1"))]}),
        (415, {"headers": [(b"content-encoding", LONG.encode("latin-1"))]}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_error_repeats_only_the_beginning_of_what_a_client_sent(status, options, ask):
    app = http_server("short", Echo())
    (answer,) = run(app, ask(app, BODY, **options))
    assert answer.status == status and len(answer.body) < 1000
    assert "\xe4" * 50 in answer.error


def test_the_reply_is_what_any_json_reader_reads(ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, '{"data":["é\\u0000\\ud83d\\ude00"]}'.encode()))
    assert orjson.loads(answer.body) == {"data": ["é\x00😀"], "error": None}


@pytest.mark.parametrize(
    ("accept", "npy"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/x-npy", True),
        (b"application/x-npy, application/json", True),
        (b"application/x-npy;q=0.5, application/json", False),
        (b"application/x-npy;q=0.5, application/json;q=0.4", True),
        (b"application/x-npy, */*;q=0.1", True),
        (b"application/x-npy;q=0, */*", False),
        (b"APPLICATION/X-NPY ; q=1.0", True),
        (b"application/json;q=high, */*", False),
    ],
)
def test_npy_is_what_is_asked_for_by_name_and_not_less_than_json(accept, npy):
    assert (negotiate([(b"accept", accept)]).writes is NPY) is npy


@pytest.mark.parametrize(
    "accept", [b"text/html", b"application/json;q=0, text/html", b"application/x-npy;q=0", b"*/*;q=0"]
)
def test_an_answer_that_is_not_acceptable_is_a_406(accept):
    with pytest.raises(RequestError) as error:
        negotiate([(b"accept", accept)])
    assert error.value.status == 406


@pytest.mark.parametrize("piece", [b",", b"a,", b"a;q=1,", b";", b" ", b"*/* ", b"*/*; ", b"application/x-npy;q=0,"])
def test_a_long_accept_costs_little_time_and_no_memory(piece):
    accept = b"*/*," + piece * (60_000 // len(piece))
    before = formats._usual.cache_info().currsize
    started = time.process_time()
    assert negotiate([(b"accept", accept)]).writes is JSON
    assert time.process_time() - started < 0.1
    assert formats._usual.cache_info().currsize == before


def test_each_row_of_the_table_is_chosen_by_its_own_name_for_reading_and_for_writing():
    assert tuple(each.name for each in FORMATS) == MESSAGES
    for each in FORMATS:
        wants = negotiate([(b"content-type", each.name.encode()), (b"accept", each.name.encode())])
        assert (wants.reads, wants.writes) == (each, each)
    assert negotiate([]).reads is negotiate([]).writes is FORMATS[0]


def test_what_usual_headers_say_is_found_out_once():
    usual = [(b"content-type", b"application/json"), (b"accept", b"*/*")]
    assert negotiate(usual) is negotiate([*usual, (b"host", b"a")])


@pytest.mark.parametrize("each", FORMATS)
def test_every_format_writes_an_error_with_its_status_and_headers(each):
    response = each.refuse(RequestError(503, "no room", RETRY_SOON))
    assert (response.status, response.headers[-1]) == (503, RETRY_SOON[0])
    assert orjson.loads(b"".join(response.buffers)) == {"data": [], "error": "no room"}
    assert each.refuse(ItemError("expected another", 3)).status == 422
