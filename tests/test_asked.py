"""Which methods are told who asked: by both lanes, in every executor, whatever kind of handler it is."""

import asyncio
import functools
import json
import re

import numpy as np
import orjson
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import Echo
from kit.wire import Wire

from virtex import HttpMessage, ItemError, RequestHandler, Tensor, TensorHandler, http_server
from virtex.batch.asked import each, methods_that_ask


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


# Items and x-request-ids are the same numbers: a method that is told of somebody else's request answers another one.


class Listed(RequestHandler):
    def process_request(self, data, requests):
        if -1 in data:
            raise ItemError("no")
        return [[item, int(request.id)] for item, request in zip(data, requests, strict=True)]

    def run_inference(self, batch, requests):
        return [[*row, int(request.id)] for row, request in zip(batch, requests, strict=True)]

    def process_response(self, row, request):
        return [*row, int(request.id)]


class Keywords(Listed):
    def process_request(self, data, *, requests):
        return Listed.process_request(self, data, requests)

    def process_response(self, row, request=None):
        return Listed.process_response(self, row, request)


class Decoded(Listed):
    decode_item = staticmethod(int)
    encode_item = staticmethod(list)


class Arrays(Listed):
    def process_request(self, data: np.ndarray, requests):
        assert data.dtype == np.float64
        return Listed.process_request(self, data.tolist(), requests)


class Declared(TensorHandler):
    inputs = Tensor("float32")

    def run_inference(self, batch, requests):
        assert len(batch) == len(requests)
        return np.stack([batch, [int(request.id) for request in requests]], axis=1)

    def process_response(self, row, request):
        return [*map(int, row), int(request.id), int(request.id)]


def asynced(kind):
    class Awaits(kind):
        async def run_inference(self, batch, requests):
            await asyncio.sleep(0)
            return kind.run_inference(self, batch, requests)

        async def process_response(self, row, request):
            return kind.process_response(self, row, request)

    Awaits.__name__ = f"Async{kind.__name__}"
    return Awaits


KINDS = [Listed, Keywords, Decoded, Arrays, Declared]
EXECUTED = [(kind, name) for kind in KINDS for name in ("inline", "thread", "async")]


def served(kind, executor, **options):
    if executor == "async":
        return http_server("asked", asynced(kind)(), **options)
    return http_server("asked", kind(), executor=executor, **options)


def request_of(ask, app, number, items):
    body = orjson.dumps({"data": items})
    return ask(app, body, headers=[(b"x-request-id", b"%d" % number)])


@pytest.mark.parametrize(("kind", "executor"), EXECUTED, ids=[f"{kind.__name__}-{name}" for kind, name in EXECUTED])
def test_each_method_is_told_of_the_request_of_each_item(ask, kind, executor):
    app = served(kind, executor, max_batch_size=5)  # a request may span batches, and share them
    counts = {3: 1, 4: 7, 5: 2, 6: 1, 7: 11}
    answers = run(app, *(request_of(ask, app, number, [number] * n) for number, n in counts.items()))
    for (number, n), answer in zip(counts.items(), answers, strict=True):
        assert answer.json == {"data": [[number] * 4] * n, "error": None}


@pytest.mark.parametrize("executor", ["inline", "thread", "async"])
def test_requests_follow_their_items_when_a_part_of_the_batch_runs_again(ask, executor):
    app = served(Listed, executor)
    good, bad, also = run(
        app, request_of(ask, app, 3, [3]), request_of(ask, app, 4, [4, -1]), request_of(ask, app, 5, [5, 5])
    )
    assert (good.json["data"], also.json["data"]) == ([[3] * 4], [[5] * 4] * 2)
    assert (bad.status, bad.error) == (422, "item 1: no")


def test_requests_follow_their_items_past_one_that_can_not_be_decoded(ask):
    app = served(Decoded, "inline")
    bad, good = run(app, request_of(ask, app, 3, ["x"]), request_of(ask, app, 4, [4, 4]))
    assert bad.status == 500
    assert good.json["data"] == [[4] * 4] * 2


def test_a_method_that_does_not_ask_is_called_as_ever(ask):
    class Only(Echo):
        def run_inference(self, batch, requests):
            return [request.parameters for request in requests]

    app = http_server("only", Only())
    (answer,) = run(app, ask(app, b'{"data": [1], "parameters": {"k": [2]}}'))
    assert answer.json["data"] == [{"k": [2]}]


def test_a_request_has_one_list_of_requests_for_each_method():
    class Spoils(Listed):
        def process_request(self, data, requests):
            decoded = Listed.process_request(self, data, requests)
            requests.clear()
            return decoded

    app = http_server("own", Spoils())
    (answer,) = run(app, request_of(ask_direct, app, 3, [3, 3]))
    assert answer.json["data"] == [[3] * 4] * 2


# ---- what a Request says


class Says(Echo):
    def process_response(self, row, request):
        return {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "headers": dict(request.headers),
            "id": request.id,
            "parameters": request.parameters,
        }


HEADERS = [(b"x-request-id", b"r-1"), (b"x-tenant", b"a"), (b"x-tenant", b"b\xe9")]
BODY = b'{"parameters": {"k": 1}, "data": [1]}'
SAID = {
    "method": "POST",
    "path": "/a b",
    "query": "q=%20&r",
    "id": "r-1",
    "parameters": {"k": 1},
    "headers": {"x-request-id": "r-1", "x-tenant": "a, b\xe9", "content-length": str(len(BODY))},
}


def test_a_request_says_how_it_came_under_another_server():
    app = http_server("says", Says())
    (answer,) = run(
        app, ask_asgi(app, BODY, path="/below/a b", root_path="/below", query_string=b"q=%20&r", headers=HEADERS)
    )
    assert answer.json["data"] == [SAID]


def test_a_request_says_how_it_came_on_a_connection():
    app = http_server("says", Says())
    lines = b"".join(b"%b: %b\r\n" % field for field in HEADERS)
    raw = b"POST /a%%20b?q=%%20&r HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n%b" % (len(BODY), lines, BODY)

    async def main():
        await app.startup()
        wire = Wire(app, loop=asyncio.get_running_loop())
        wire.receive(raw)
        while not wire.statuses:
            await asyncio.sleep(0)
        await app.shutdown()
        return wire.replies()

    ((status, headers, body),) = asyncio.run(main())
    assert status == 200
    (said,) = json.loads(body)["data"]
    assert said.pop("headers") == {**SAID["headers"], "host": "h"}
    assert said == {name: value for name, value in SAID.items() if name != "headers"}
    assert headers[b"x-request-id"] == b"r-1"


def test_the_id_is_that_of_the_answer_and_of_the_log(ask, caplog):
    class Fails(Echo):
        def run_inference(self, batch, requests):
            self.id = requests[0].id
            raise ZeroDivisionError

    handler = Fails()
    app = http_server("fails", handler)
    (answer,) = run(app, ask(app, b'{"data": [1]}'))
    assert re.fullmatch("[0-9a-f]{10,}", handler.id)
    assert answer.error.endswith(f"request id {handler.id}")
    assert f"request {handler.id}:" in caplog.text


def test_the_id_of_a_request_that_came_without_is_sent_with_its_answer():
    app = http_server("says", Says())
    (answer,) = run(app, ask_asgi(app, b'{"data": [1]}'))
    assert answer.json["data"][0]["id"] == answer.headers[b"x-request-id"].decode()


def test_the_deadline_is_on_the_clock_of_perf_counter(ask):
    import time

    class Left(Echo):
        def process_response(self, row, request):
            return request.deadline - time.perf_counter()

    app = http_server("left", Left())
    (answer,) = run(app, ask(app, b'{"data": [1]}'))
    assert 0 < answer.json["data"][0] <= app.options.limits.answer_seconds


# ---- parameters


@pytest.mark.parametrize("kind", [Says, Declared], ids=["list", "tensor"])
@pytest.mark.parametrize("value", ["null", "[]", "1", '"a"', "true"])
def test_parameters_that_are_no_object_are_refused_where_a_method_asks(ask, kind, value):
    app = http_server("asks", kind())
    (answer,) = run(app, ask(app, b'{"data": [1], "parameters": %b}' % value.encode()))
    assert answer.status == 400
    assert answer.error.startswith('expected an object in "parameters", got ')


@pytest.mark.parametrize("body", [b'{"data": ["a"], "parameters": 5}', b'{"parameters": null, "data": ["a"]}'])
def test_parameters_are_not_looked_at_where_no_method_asks(ask, body):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, body))
    assert answer.json["data"] == ["a"]


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        (b'{"data": ["a"]}', {}),
        (b'{"data": ["a"], "parameters": {}}', {}),
        (b'{"data": ["a"], "p\\u0061rameters": {"k": null}}', {"k": None}),
        (b'{"data": ["a"], "parameters": 1, "parameters": {"k": 2}}', {"k": 2}),
        (b'{"data": ["a"], "error": null}', {}),
    ],
)
def test_parameters_are_the_member_of_the_message(ask, body, parameters):
    app = http_server("says", Says())
    (answer,) = run(app, ask(app, body))
    assert answer.json["data"][0]["parameters"] == parameters


# ---- the rule


def handler_of(**methods):
    return type("Odd", (Echo,), methods)()


def test_no_method_asks_by_default():
    assert methods_that_ask(Echo()) == set()


@pytest.mark.parametrize(
    ("methods", "asking"),
    [
        ({"process_request": lambda self, requests: requests}, set()),  # what it gets, by whatever name
        ({"process_response": lambda self, request: request}, set()),
        ({"process_request": lambda self, data, requests: data}, {"process_request"}),
        ({"process_request": lambda self, data, **kwargs: data}, set()),
        ({"process_request": lambda self, data, **requests: data}, set()),
        ({"process_request": lambda self, data, *requests: data}, set()),
        ({"process_request": lambda self, data, request=None, verbose=True: data}, set()),
        ({"process_response": lambda self, row, requests=(): row}, set()),
        ({"run_inference": staticmethod(lambda data, requests=None: data)}, {"run_inference"}),
        ({"process_response": staticmethod(len)}, set()),
        ({"process_response": staticmethod(int)}, set()),  # a builtin that has no signature
        ({"process_request": functools.partial(lambda k, data, requests: data, 1)}, {"process_request"}),
        ({"process_request": functools.partial(lambda data, k, requests=None: data, k=1)}, {"process_request"}),
    ],
    ids=lambda value: "",
)
def test_a_parameter_counts_by_exactly_its_name_and_behind_the_first(methods, asking):
    assert methods_that_ask(handler_of(**methods)) == asking


def wrapping(function):
    @functools.wraps(function)
    def wrapper(self, data):
        return function(self, data)

    return wrapper


def passing(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_what_wraps_a_method_and_passes_everything_on_is_told_for_it():
    handler = handler_of(process_response=passing(lambda self, row, request: request.path))
    assert handler.validate(HttpMessage(data=[1]), strict=True).data == ["/"]


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("process_request", lambda self, data, request: data, "'requests' behind it at most; got 'request'"),
        ("process_response", lambda self, row, requests: row, "'request' behind it at most; got 'requests'"),
        ("run_inference", lambda self, data, more: data, "(data, more): expected one parameter"),
        ("run_inference", lambda self, data, *, more, requests: data, "got 'more'"),
        ("run_inference", lambda self, data, requests, /: data, "to be passed by its name"),
        ("run_inference", functools.partial(lambda data, requests: data, requests=[]), "the partial has bound it"),
        ("run_inference", wrapping(lambda self, data, requests: data), "'requests' does not reach it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_told_is_an_error_at_the_start(name, method, says, caplog):
    app = http_server("odd", handler_of(**{name: method}))
    with pytest.raises(TypeError, match=re.escape(f"Odd.{name}(")) as caught:
        run(app)
    assert says in str(caught.value)


def test_a_function_of_one_item_is_told_of_none():
    class Asks(Echo):
        decode_item = staticmethod(lambda item, requests: item)

    app = http_server("asks", Asks())
    with pytest.raises(TypeError, match=r"Asks\.decode_item\(item, requests\): expected a function of one item"):
        run(app)


def test_each_item_has_the_one_who_asked_for_it():
    assert each(["a", "b"], [2, 1]) == ["a", "a", "b"]
    assert each(None, [2, 1]) is None
