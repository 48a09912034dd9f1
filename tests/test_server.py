import asyncio
import contextlib
import decimal
import itertools
import os
import sqlite3
import sys
import threading
import time
from http import HTTPMethod

import numpy as np
import orjson
import pytest
from kit.asks import ask_asgi, ask_direct, run

import virtex.service.formats
from virtex import HttpMessage, Limits, Observer, RequestHandler, http_server
from virtex._codec import decode_npy, encode_npy
from virtex.batch.company import Peer
from virtex.errors import HandlerError, ItemError, moved
from virtex.handler import Worker
from virtex.service.seam import Head


class Echo(RequestHandler):
    """Gives back what it gets; the item "no" is refused, "bug" raises."""

    def process_request(self, data):
        if any(isinstance(item, str) and item == "no" for item in data):
            raise ItemError("expected anything but no")
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        if isinstance(model_output_item, str) and model_output_item == "bug":
            raise ZeroDivisionError("secret")
        return model_output_item


class AsyncEcho(Echo):
    async def run_inference(self, model_input):
        await asyncio.sleep(0)
        return model_input


EXECUTORS = {
    "inline": lambda **kw: http_server("echo", Echo(), **kw),
    "thread": lambda **kw: http_server("echo", Echo(), executor="thread", **kw),
    "async": lambda **kw: http_server("echo", AsyncEcho(), **kw),
}


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


@pytest.fixture(params=EXECUTORS)
def echo(request):
    return EXECUTORS[request.param]


def test_a_message_is_answered_in_order(echo, ask):
    app = echo()
    (answer,) = run(app, ask(app, b'{"data": [1, "a", null, {"b": [2.5]}]}', path="/any/path"))
    assert answer.status == 200
    assert answer.body == b'{"data":[1,"a",null,{"b":[2.5]}],"error":null}'


def test_an_empty_message_is_answered_without_the_model(ask):
    class Never(Echo):
        def process_request(self, data):
            raise AssertionError

    app = http_server("never", Never())
    (answer,) = run(app, ask(app, b'{"data": []}'))
    assert (answer.status, answer.body) == (200, b'{"data":[],"error":null}')


def test_a_bad_item_touches_no_other_request_of_its_batch(echo, ask):
    app = echo()
    bodies = [b'{"data": ["a"]}', b'{"data": ["b", "no"]}', b'{"data": ["bug"]}', b'{"data": ["d"]}']
    a, no, bug, d = run(app, *(ask(app, body) for body in bodies))
    assert (a.status, a.json["data"], d.status, d.json["data"]) == (200, ["a"], 200, ["d"])
    assert (no.status, no.error) == (422, "item 1: expected anything but no")
    assert bug.status == 500
    assert bug.error.startswith("item 0: process_response raised ZeroDivisionError; request id ")


def test_a_500_carries_an_id_that_the_log_has_with_the_cause(ask, caplog):
    app = http_server("echo", Echo())
    given, made = run(
        app,
        ask(app, b'{"data": ["bug"]}', headers=[(b"x-request-id", b"abc-1")]),
        ask(app, b'{"data": ["bug"]}', headers=[(b"x-request-id", b'"><script>')]),
    )
    assert given.error.endswith("request id abc-1")
    assert "script" not in made.error
    assert "request abc-1: item 0: process_response raised" in caplog.text
    assert made.error.rpartition(" ")[2] in caplog.text
    assert "secret" in caplog.text and "secret" not in given.error


def test_a_model_that_fails_is_logged_with_its_traceback_once_per_batch(caplog):
    class Broken(Echo):
        def run_inference(self, model_input):
            raise ZeroDivisionError("secret")

    app = http_server("broken", Broken())
    answers = run(app, *(ask_direct(app, b'{"data": [%d]}' % i) for i in range(5)))
    assert {answer.status for answer in answers} == {500}
    assert caplog.text.count("Traceback") == 1
    assert all(answer.error.rpartition(" ")[2] in caplog.text for answer in answers)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (lambda n: [0] * (n + 1), "returned 4 rows for 3 items"),
        (lambda n: [0] * (n - 1), "returned 2 rows for 3 items"),
        (lambda n: dict.fromkeys(range(n)), "returned a dict"),
        (lambda n: (x for x in range(n - 1)), "returned 2 rows"),
        (lambda n: [float("nan")] * n, "nan is no JSON number"),
        (lambda n: [object()] * n, "gave a object that can't be sent"),
    ],
    ids=["too many", "too few", "dict", "generator", "nan", "object"],
)
def test_outputs_that_can_not_be_told_apart_or_sent_are_a_500(outputs, says, ask):
    class Odd(Echo):
        def run_inference(self, model_input):
            return outputs(len(model_input))

    app = http_server("odd", Odd())
    (answer,) = run(app, ask(app, b'{"data": [1, 2, 3]}'))
    assert answer.status == 500
    assert says in answer.error


def test_a_generator_of_the_right_length_is_fine(ask):
    class Generates(Echo):
        def run_inference(self, model_input):
            return (x for x in model_input)

    app = http_server("generates", Generates())
    (answer,) = run(app, ask(app, b'{"data": [1, 2]}'))
    assert answer.json["data"] == [1, 2]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 200, None),
        ("HEAD", "/", 200, None),
        ("GET", "/health/live", 200, None),
        ("HEAD", "/health/ready", 200, None),
        ("GET", "/predict", 405, b"POST"),
        ("OPTIONS", "*", 405, b"POST"),
        ("PUT", "/", 405, b"GET, HEAD, POST"),
        ("POST", "/health/live", 405, b"GET, HEAD"),
        ("POST", "/health/other", 404, None),
        ("GET", "/health/other", 404, None),
        ("GET", "/metrics", 404, None),
        ("POST", "/metrics", 404, None),
        ("GET", "/v2/models/a", 404, None),
        ("POST", "/healthy", 400, None),
    ],
)
def test_routes(method, path, status, allow, ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, b"", method=method, path=path))
    assert answer.status == status
    assert answer.headers.get(b"allow") == allow
    if status >= 400:
        assert method in answer.error or path in answer.error or answer.error.startswith("expected")


def test_the_root_says_what_the_service_takes(ask):
    app = http_server("echo", Echo(), max_batch_size=7, limits=Limits(body=1000))
    (answer,) = run(app, ask(app, method="GET"))
    assert answer.json["name"] == "echo"
    assert answer.json["accepts"] == ["application/json", "application/x-npy"]
    assert (answer.json["max_batch_size"], answer.json["max_queue_size"]) == (7, 1024)
    assert answer.json["limits"]["body"] == 1000


def test_head_sends_the_length_of_get_and_no_body():
    app = http_server("echo", Echo())
    get, head = run(app, ask_asgi(app, method="GET"), ask_asgi(app, method="HEAD"))
    assert head.body == b""
    assert head.headers[b"content-length"] == b"%d" % len(get.body)


def test_root_path_is_stripped():
    app = http_server("echo", Echo())
    mounted, bare, beside = run(
        app,
        ask_asgi(app, method="GET", path="/ml/health/live", root_path="/ml"),
        ask_asgi(app, method="GET", path="/ml", root_path="/ml/"),
        ask_asgi(app, method="GET", path="/mlx", root_path="/ml"),
    )
    assert (mounted.status, bare.status, beside.status) == (200, 200, 405)


BODY = b'{"data":[1]}'


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
        ([(b"content-encoding", b"identity")], 200),
        ([(b"content-encoding", b"gzip")], 415),
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


def test_a_body_in_pieces_is_one_body(ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, [bytes([b]) for b in b'{"data":["abc"]}']))
    assert answer.json["data"] == ["abc"]


def test_a_body_over_the_limit_is_a_413_declared_or_not(ask):
    app = http_server("echo", Echo(), limits=Limits(body=20))
    (declared,) = run(app, ask(app, b'{"data":["' + b"x" * 50 + b'"]}'))
    assert declared.status == 413
    assert declared.error == "a body of 63 bytes; the limit is 20"


def test_a_chunked_body_over_the_limit_is_a_413():
    app = http_server("echo", Echo(), limits=Limits(body=20))
    body = [b'{"data":["', b"x" * 50, b'"]}']
    (answer,) = run(app, ask_asgi(app, body, headers=[(b"content-length", b"?")]))
    assert answer.status == 413
    (after,) = run(app, ask_asgi(app, b'{"data":[1]}'))
    assert after.status == 200


def test_a_queue_without_room_is_a_503_with_retry_after_and_what_can_never_fit_a_413(ask):
    app = http_server("echo", Echo(), max_batch_size=2, max_queue_size=3)
    three, one, four = run(
        app, ask(app, b'{"data":[1,2,3]}'), ask(app, b'{"data":[4]}'), ask(app, b'{"data":[1,2,3,4]}')
    )
    assert three.json["data"] == [1, 2, 3]
    assert (one.status, one.headers.get(b"retry-after")) == (503, b"1")
    assert "no room for 1 items: 3 of 3 wait" in one.error
    assert four.status in (413, 503)
    (four,) = run(app, ask(app, b'{"data":[1,2,3,4]}'))
    assert four.status == 413
    assert "4 items in one request; the queue holds 3" in four.error


def test_batches_of_one_are_an_ordinary_case(echo, ask):
    app = echo(max_batch_size=1)
    answers = run(app, *(ask(app, b'{"data":[%d, %d]}' % (i, -i)) for i in range(2)))
    assert [answer.json["data"] for answer in answers] == [[0, 0], [1, -1]]


def test_authorize_guards_everything_but_health_before_the_body_is_read(ask):
    seen = []

    def authorize(head):
        seen.append((head.method, head.path))
        return None if (b"authorization", b"Bearer good") in head.headers else 401

    app = http_server("guarded", Echo(), authorize=authorize)
    good = [(b"authorization", b"Bearer good")]
    let_in, kept_out, root, health = run(
        app,
        ask(app, BODY, headers=good),
        ask(app, BODY),
        ask(app, method="GET"),
        ask(app, method="GET", path="/health/ready"),
    )
    assert let_in.status == 200
    assert (kept_out.status, root.status) == (401, 401)
    assert kept_out.headers[b"www-authenticate"] == b"Bearer" and kept_out.error == "not authorized"
    assert health.status == 200
    assert ("GET", "/health/ready") not in seen


def test_authorize_is_asked_again_for_a_head_that_is_the_same():
    allowed = [None, 403]
    app = http_server("guarded", Echo(), authorize=lambda head: allowed.pop(0))
    head = Head("POST", "/", [], None, None)

    async def main():
        await app.startup()
        first = app.open(head, 0)
        first.cancel("enough")
        second = app.open(head, 0)
        await app.shutdown()
        return second.status

    assert asyncio.run(main()) == 403


def test_what_authorize_does_to_a_head_does_not_come_back_with_the_next_request():
    seen = []

    def authorize(head):
        seen.append((head.method, head.path, head.headers[:]))
        head.method, head.path = "GET", "/health/live"
        head.headers.append((b"x-user", b"one"))

    app = http_server("guarded", Echo(), authorize=authorize)
    head = Head("POST", "/a", [(b"host", b"b")], None, None)

    async def main():
        await app.startup()
        for _ in range(2):
            app.open(head, 0).cancel("enough")
        await app.shutdown()

    asyncio.run(main())
    assert seen == [("POST", "/a", [(b"host", b"b")])] * 2


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


@pytest.mark.parametrize(
    "authorize",
    [lambda head: 1 / 0, lambda head: 200, lambda head: True, lambda head: sys.exit(3)],
    ids=["raises", "200", "True", "exits"],
)
def test_an_authorize_that_fails_lets_nobody_in(authorize, ask, caplog):
    app = http_server("guarded", Echo(), authorize=authorize)
    (answer,) = run(app, ask(app, BODY))
    assert answer.status == 500
    assert "authorize" in caplog.text


# ---- life ----


class Life(Echo):
    """Records in which thread its methods ran."""

    def __init__(self):
        self.threads = {}
        self.worker = None
        self.go = threading.Event()
        self.go.set()

    def setup(self, worker):
        self.go.wait(10)
        self.worker = worker
        self.threads["setup"] = threading.current_thread()

    def process_request(self, data):
        self.threads["process"] = threading.current_thread()
        return data

    def teardown(self):
        self.threads["teardown"] = threading.current_thread()


def test_it_is_live_but_not_ready_until_setup_is_done_which_runs_off_the_loop(ask):
    handler = Life()
    handler.go.clear()
    app = http_server("life", handler, executor="thread")

    async def main():
        starting = asyncio.ensure_future(app.startup(Worker(1, 2)))
        await asyncio.sleep(0)
        live, ready = (
            await ask(app, method="GET", path="/health/live"),
            await ask(app, method="GET", path="/health/ready"),
        )
        post = await ask(app, BODY)
        handler.go.set()
        await starting
        return live, ready, post, await ask(app, method="GET", path="/health/ready"), await ask(app, BODY)

    live, unready, refused, ready, answered = asyncio.run(main())
    assert (live.status, unready.status, refused.status) == (200, 503, 503)
    assert refused.headers[b"retry-after"] == b"1" and refused.error == "the service is starting"
    assert (ready.status, answered.status) == (200, 200)
    assert handler.threads["setup"] is handler.threads["process"] is not threading.main_thread()
    assert repr(handler.worker) == "Worker(index=1, count=2)"


def test_without_lifespan_the_first_request_starts_it_and_waits(ask):
    handler = Life()
    app = http_server("life", handler)
    a, b = run(app, ask(app, b'{"data":[1]}'), ask(app, b'{"data":[2]}'), serve=False)
    assert (a.json["data"], b.json["data"]) == ([1], [2])


def test_who_waited_for_the_start_with_nothing_for_the_model_is_answered_too(ask):
    app = http_server("life", Life())
    empty, wrong = run(app, ask(app, b'{"data":[]}'), ask(app, b"[]"), serve=False)
    assert (empty.json["data"], wrong.status) == ([], 400)


class AsyncLife(Life):
    async def setup(self, worker):
        await asyncio.sleep(0)
        Life.setup(self, worker)

    async def teardown(self):
        await asyncio.sleep(0)
        Life.teardown(self)


@pytest.mark.parametrize("kind", [Life, AsyncLife])
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_every_method_runs_on_one_thread(kind, executor, ask):
    handler = kind()
    app = http_server("life", handler, executor=executor)
    run(app, ask(app, BODY))
    assert len(handler.threads) == 3 and len(set(handler.threads.values())) == 1
    assert (threading.main_thread() in handler.threads.values()) == (executor == "inline")


class OfOneThread(Echo):
    """Sets and opens what belongs to a thread or a context, and says what it finds of it."""

    def setup(self, worker):
        self.local = threading.local()
        self.local.model = "loaded"
        self.database = sqlite3.connect(":memory:")
        self.database.execute("create table answers (text)")
        decimal.setcontext(decimal.Context(prec=3))
        self.floats = np.seterr(divide="raise")
        self.torch = torch = pytest.importorskip("torch", reason="torch is not installed")
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")

    def found(self):
        self.database.execute("insert into answers values ('a')")
        return {
            "local": self.local.model,
            "prec": decimal.getcontext().prec,
            "errstate": np.geterr()["divide"],
            "grad": self.torch.is_grad_enabled(),
            "device": str(self.torch.zeros(1).device),
        }

    def run_inference(self, model_input):
        return [self.found() for _ in model_input]

    def teardown(self):
        self.last = self.found()
        self.database.close()
        self.torch.set_grad_enabled(True)
        self.torch.set_default_device("cpu")
        np.seterr(**self.floats)


class SetsUpAsync(OfOneThread):
    async def setup(self, worker):
        await asyncio.sleep(0)
        OfOneThread.setup(self, worker)

    async def teardown(self):
        await asyncio.sleep(0)
        OfOneThread.teardown(self)


class AsyncOfOneThread(SetsUpAsync):
    async def run_inference(self, model_input):
        await asyncio.sleep(0)
        return OfOneThread.run_inference(self, model_input)


@pytest.mark.parametrize(
    ("kind", "executor"),
    [
        (OfOneThread, "inline"),
        (OfOneThread, "thread"),
        (SetsUpAsync, "inline"),
        (SetsUpAsync, "thread"),
        (AsyncOfOneThread, "inline"),
    ],
)
def test_what_setup_sets_for_its_thread_holds_in_the_methods_and_in_teardown(kind, executor, ask):
    handler = kind()
    app = http_server("one", handler, executor=executor)
    (answer,) = run(app, ask(app, BODY))
    expected = {"local": "loaded", "prec": 3, "errstate": "raise", "grad": False, "device": "meta"}
    assert answer.json["data"] == [expected]
    assert handler.last == expected
    assert decimal.getcontext().prec == 28, "it is the service's own"


@pytest.mark.parametrize("kind", [OfOneThread, AsyncOfOneThread])
def test_validate_finds_what_setup_set_on_the_calling_thread(kind):
    handler = kind()
    OfOneThread.setup(handler, Worker())
    try:
        found = handler.validate(HttpMessage(data=[1]), strict=True).data[0]
        assert (found["local"], found["grad"], found["prec"]) == ("loaded", False, 3)
    finally:
        OfOneThread.teardown(handler)
        decimal.setcontext(decimal.Context(prec=28))


@pytest.mark.parametrize("method", ["setup", "teardown"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_an_exit_in_setup_or_teardown_is_an_error_and_not_obeyed(method, is_async, executor, caplog):
    def leave(self, *worker):
        raise SystemExit(3)

    async def leave_async(self, *worker):
        raise SystemExit(3)

    handler = type("Leaves", (Echo,), {method: leave_async if is_async else leave})()
    app = http_server("leaves", handler, executor=executor)
    with pytest.raises(RuntimeError, match="SystemExit: 3") if method == "setup" else contextlib.nullcontext():
        run(app)
    assert "SystemExit: 3" in caplog.text


def test_a_class_or_factory_is_called_once_where_setup_runs(ask):
    made = []

    class Made(Echo):
        def __init__(self):
            made.append(threading.current_thread())

    for source, executor in itertools.product((Made, lambda: Made()), ("inline", "thread")):
        app = http_server("made", source, executor=executor)
        assert made == []
        run(app, ask(app, BODY), ask(app, BODY))
        assert len(made) == 1 and (made[0] is threading.main_thread()) == (executor == "inline")
        made.clear()


def test_async_setup_and_teardown_are_awaited(ask):
    class Async(Echo):
        steps = ()

        async def setup(self, worker):
            await asyncio.sleep(0)
            self.steps += ("setup",)

        async def teardown(self):
            await asyncio.sleep(0)
            self.steps += ("teardown",)

    handler = Async()
    app = http_server("async", handler)
    run(app, ask(app, BODY))
    assert handler.steps == ("setup", "teardown")


@pytest.mark.parametrize("serve", [True, False], ids=["lifespan", "first request"])
def test_a_setup_that_fails_is_said_and_requests_get_a_503(serve, ask, caplog):
    class Broken(Echo):
        def setup(self, worker):
            raise OSError("no such model")

    app = http_server("broken", Broken())

    async def main():
        if serve:
            with pytest.raises(OSError, match="no such model"):
                await app.startup()
        first = await ask(app, BODY)
        second = await ask(app, BODY)
        live = await ask(app, method="GET", path="/health/live")
        await app.shutdown()
        return first, second, live

    for answer in asyncio.run(main()):
        assert answer.status == 503
        assert answer.error == "the handler's setup failed: OSError"
    assert "no such model" in caplog.text


def test_a_factory_of_something_else_fails_the_start():
    app = http_server("odd", lambda: 7)
    with pytest.raises(TypeError, match="expected a RequestHandler, the factory made a int"):
        run(app)


def test_async_methods_do_not_run_on_a_thread():
    app = http_server("odd", AsyncEcho(), executor="thread")
    with pytest.raises(TypeError, match="run_inference of AsyncEcho is async"):
        run(app)


def test_draining_is_unready_but_answers_and_shutdown_waits_for_answers(ask):
    handler = Life()
    app = http_server("life", handler, executor="thread")

    async def main():
        await app.startup()
        app.drain()
        ready = await ask(app, method="GET", path="/health/ready")
        answering = asyncio.ensure_future(ask(app, BODY))
        await asyncio.sleep(0)
        await app.shutdown()
        late = await ask(app, BODY)
        return ready, await answering, late

    ready, answered, late = asyncio.run(main())
    assert (ready.status, answered.status) == (503, 200)
    assert (late.status, late.error) == (503, "the service has shut down")
    assert "teardown" in handler.threads


def test_two_shutdowns_at_once_are_one():
    class Counts(Life):
        teardowns = 0

        def teardown(self):
            self.teardowns += 1

        def run_inference(self, model_input):
            self.go.wait(10)
            return model_input

    async def main():
        handler = Counts()
        app = http_server("life", handler, executor="thread")
        await app.startup()
        handler.go.clear()
        asking = asyncio.ensure_future(ask_direct(app, BODY))
        await asyncio.sleep(0.01)
        both = [asyncio.ensure_future(app.shutdown()) for _ in range(2)]
        await asyncio.sleep(0.01)
        early = [shutdown.done() for shutdown in both]
        handler.go.set()
        await asyncio.wait_for(asyncio.gather(*both), 5)
        return early, (await asking).status, handler.teardowns

    assert asyncio.run(main()) == ([False, False], 200, 1)


def test_a_teardown_that_raises_is_logged(caplog):
    class Broken(Echo):
        def teardown(self):
            raise OSError("stuck")

    run(http_server("broken", Broken()))
    assert "teardown of 'broken' raised" in caplog.text and "stuck" in caplog.text


def test_one_app_serves_one_loop_after_another_and_sets_up_in_each(ask):
    app = http_server("made", Life)
    for _ in range(2):
        (answer,) = run(app, ask(app, BODY))
        assert answer.status == 200


def test_one_app_serves_another_loop_though_it_was_never_shut_down(ask):
    app = http_server("made", Life)

    async def main():
        return await asyncio.wait_for(ask(app, BODY), 5)

    assert [asyncio.run(main()).status for _ in range(2)] == [200, 200]


def test_a_forked_process_begins_anew(ask):
    app = http_server("made", Life())
    run(app, ask(app, BODY))
    pid = os.fork()
    if not pid:
        (answer,) = run(app, ask(app, BODY))
        os._exit(0 if answer.status == 200 else 1)
    assert os.waitpid(pid, 0)[1] == 0


async def _tell_the_end_and_ask(app):
    """What is told of an end, though nothing has begun here; then what is asked begins it."""
    app.leave(Peer())
    app.drain()
    await app.shutdown()
    return (await ask_asgi(app, BODY)).status


def test_an_end_that_is_told_before_anything_began_changes_nothing():
    assert asyncio.run(_tell_the_end_and_ask(http_server("early", Echo()))) == 200


def test_an_end_that_is_told_after_the_loop_was_closed_ends_nothing(caplog):
    app = http_server("closed", Echo())
    asyncio.run(app.startup())
    assert asyncio.run(_tell_the_end_and_ask(app)) == 200
    assert "raised" not in caplog.text


# ---- who leaves, who waits ----


class Gate(Echo):
    """A model that waits until it is let through."""

    def __init__(self):
        self.calls = []
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run_inference(self, model_input):
        self.calls.append(list(model_input))
        self.entered.set()
        await self.go.wait()
        return model_input


class Watching(Observer):
    def __init__(self):
        self.requests = []
        self.drops = []
        self.batches = []

    def request_done(self, status, items, seconds):
        self.requests.append((status, items))

    def dropped(self, reason, items):
        self.drops.append((reason, items))

    def batch_done(self, batch):
        self.batches.append(batch.size)


def test_a_client_that_leaves_before_the_cut_costs_no_inference_and_after_it_only_the_answer():
    async def main():
        gate, watching = Gate(), Watching()
        app = http_server("gate", gate, observer=watching)
        await app.startup()
        leave = asyncio.Event()

        async def leaving(body):
            messages = [{"type": "http.request", "body": body}]

            async def receive():
                if messages:
                    return messages.pop()
                await leave.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                raise AssertionError("nobody is there")

            await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)

        running = asyncio.ensure_future(leaving(b'{"data":["running"]}'))
        await gate.entered.wait()
        queued = asyncio.ensure_future(leaving(b'{"data":["queued"]}'))
        stays = asyncio.ensure_future(ask_asgi(app, b'{"data":["stays"]}'))
        await asyncio.sleep(0.1)  # long enough for an unanswered request to be watched
        leave.set()
        await asyncio.wait_for(asyncio.gather(running, queued), 5)
        gate.go.set()
        answer = await asyncio.wait_for(stays, 5)
        await app.shutdown()
        return gate.calls, answer, watching

    calls, answer, watching = asyncio.run(main())
    assert calls == [["running"], ["stays"]]
    assert answer.json["data"] == ["stays"]
    assert watching.drops == [("the client left", 1)] * 2
    assert watching.requests == [(200, 1)]


def test_a_client_that_left_while_a_batch_held_the_loop_costs_no_inference():
    """An ASGI server says who left only to who asks, and nobody has waited long enough to be asked for."""

    class Holds(Echo):
        calls = []

        def run_inference(self, model_input):
            self.calls.append(model_input)
            time.sleep(0.2 * (model_input == ["holds"]))
            return model_input

    async def main():
        app = http_server("holds", Holds())
        await app.startup()
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b'{"data":["left"]}'}]

        async def receive():
            return messages.pop()

        async def send(message):
            raise AssertionError("nobody is there")

        await ask_asgi(app, b'{"data":["holds"]}')
        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        await ask_asgi(app, b'{"data":["stays"]}')
        await app.shutdown()

    asyncio.run(main())
    assert Holds.calls == [["holds"], ["stays"]]


def test_a_client_that_leaves_mid_body_is_forgotten():
    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b'{"da', "more_body": True}]

        async def receive():
            return messages.pop()

        async def send(message):
            raise AssertionError("nobody is there")

        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        await asyncio.wait_for(app.shutdown(), 5)

    asyncio.run(main())


def test_an_answer_that_comes_too_late_is_a_504_and_the_queue_goes_on():
    async def main():
        gate = Gate()
        watching = Watching()
        app = http_server("gate", gate, limits=Limits(answer_seconds=0.05), observer=watching)
        await app.startup()
        late = await asyncio.wait_for(ask_direct(app, b'{"data":[1, 2]}'), 5)
        gate.go.set()
        after = await asyncio.wait_for(ask_direct(app, b'{"data":[3]}'), 5)
        await app.shutdown()
        return late, after, watching

    late, after, watching = asyncio.run(main())
    assert (late.status, late.error) == (504, "no answer within 0.05 s")
    assert after.json["data"] == [3]
    assert watching.drops == [("deadline passed", 2)]
    assert watching.requests == [(504, 2), (200, 1)]


def test_the_time_for_an_answer_counts_from_the_headers_not_from_the_bodys_end():
    async def main():
        gate = Gate()
        app = http_server("gate", gate, limits=Limits(answer_seconds=30))
        await app.startup()
        now = app._clock()
        young = app.open(Head("POST", "/", [], None, None), now)
        old = app.open(Head("POST", "/", [], None, None), now - 29_950_000_000)  # its body took all but 50 ms
        for exchange in (young, old):
            exchange.write(b'{"data":[1]}')
            exchange.complete()
        late = await asyncio.wait_for(old, 5)
        in_time = young.done()
        gate.go.set()
        answered = await asyncio.wait_for(young, 5)
        await app.shutdown()
        return late.status, in_time, answered.status

    assert asyncio.run(main()) == (504, False, 200)


def test_a_request_that_started_the_service_is_told_when_that_takes_too_long():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread", limits=Limits(answer_seconds=0.05))
        late = await asyncio.wait_for(ask_direct(app, BODY), 5)
        handler.go.set()
        await app.shutdown()
        return late

    late = asyncio.run(main())
    assert (late.status, late.error) == (503, "still starting after 0.05 s")


def test_those_who_left_before_the_start_are_no_reason_to_refuse_others():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, max_queue_size=2, max_batch_size=1, executor="thread")
        for _ in range(3):
            exchange = app.open(Head("POST", "/", [], len(BODY), None), app._clock())
            exchange.write(BODY)
            exchange.complete()
            exchange.cancel("the client left")
        waiting = asyncio.gather(*(ask_direct(app, BODY) for _ in range(3)))
        await asyncio.sleep(0)
        handler.go.set()
        statuses = sorted(answer.status for answer in await asyncio.wait_for(waiting, 5))
        await app.shutdown()
        return statuses

    assert asyncio.run(main()) == [200, 200, 503]


def test_a_model_that_hangs_is_not_live_any_more_where_a_watchdog_looks():
    async def main():
        gate = Gate()
        app = http_server("gate", gate, watchdog=0.05)
        await app.startup()
        asked = asyncio.ensure_future(ask_direct(app, BODY))
        await gate.entered.wait()
        well = await ask_direct(app, method="GET", path="/health/live")
        await asyncio.sleep(0.06)
        hung = await ask_direct(app, method="GET", path="/health/live")
        gate.go.set()
        await asked
        again = await ask_direct(app, method="GET", path="/health/live")
        await app.shutdown()
        return well.status, hung.status, again.status

    assert asyncio.run(main()) == (200, 503, 200)


def test_a_model_that_never_comes_back_does_not_keep_the_service_from_ending(caplog):
    class Hangs(Life):
        def run_inference(self, model_input):
            self.go.wait(10)
            return model_input

    async def main():
        handler = Hangs()
        app = http_server("hangs", handler, executor="thread", limits=Limits(answer_seconds=0.05))
        await app.startup()
        handler.go.clear()
        late = await ask_direct(app, BODY)
        await asyncio.wait_for(app.shutdown(), 5)
        handler.go.set()
        return late.status, "teardown" in handler.threads

    assert asyncio.run(main()) == (504, False)
    assert "has not come back" in caplog.text


def test_an_answer_that_can_not_be_written_or_taken_costs_the_rest_of_the_batch_nothing(monkeypatch, caplog):
    real = virtex.service.formats.encode_data

    def encode(rows):
        if rows == ["nasty"]:
            raise RecursionError
        return real(rows)

    monkeypatch.setattr(virtex.service.formats, "encode_data", encode)

    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        opened = [app.open(Head("POST", "/", [], None, None), 0) for _ in range(3)]
        for exchange, item in zip(opened, ("nasty", "raises", "fine"), strict=True):
            exchange.write(b'{"data":["%b"]}' % item.encode())
            exchange.complete()
        opened[1].add_done_callback(lambda _: 1 / 0)
        fine = await asyncio.wait_for(opened[2], 5)
        await app.shutdown()
        return opened[0].result().status, fine.status

    assert asyncio.run(main()) == (500, 200)
    assert "the message could not be handled: RecursionError" in caplog.text
    assert "failed to take its answer" in caplog.text


def test_a_request_that_can_not_be_read_for_lack_of_memory_is_over_too(monkeypatch, ask):
    def read(body):
        raise MemoryError

    monkeypatch.setattr(virtex.service.formats, "strings", read)
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, BODY))
    assert answer.status == 500
    assert "could not be handled: MemoryError" in answer.error


def test_a_watchdog_over_an_inline_model_is_refused():
    with pytest.raises(ValueError, match='needs executor="thread"'):
        run(http_server("echo", Echo(), watchdog=1.0))


def test_an_observer_sees_every_request_and_batch(ask):
    watching = Watching()
    app = http_server("echo", Echo(), observer=watching)
    run(app, ask(app, BODY), ask(app, b"[]"), ask(app, method="GET"), ask(app, b'{"data":[1,2]}'))
    assert sorted(watching.requests) == [(200, 0), (200, 1), (200, 2), (400, 0)]
    assert sum(watching.batches) == 3


def test_lifespan_starts_and_stops_the_service():
    async def main(handler):
        app = http_server("life", handler)
        messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
        sent = []

        async def receive():
            return messages.pop()

        async def send(message):
            sent.append(message)

        await app({"type": "lifespan"}, receive, send)
        return sent

    handler = Life()
    assert [m["type"] for m in asyncio.run(main(handler))] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert set(handler.threads) == {"setup", "teardown"}

    class Broken(Echo):
        def setup(self, worker):
            raise OSError("no such model")

    assert asyncio.run(main(Broken())) == [{"type": "lifespan.startup.failed", "message": "OSError: no such model"}]


def test_a_lifespan_that_is_cut_short_leaves_the_start_running():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread")
        starting = asyncio.ensure_future(app.startup())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        handler.go.set()
        await app.startup()
        answer = await ask_asgi(app, BODY)
        await app.shutdown()
        return answer

    assert asyncio.run(main()).status == 200


def test_other_scopes_are_refused():
    app = http_server("echo", Echo())
    with pytest.raises(RuntimeError, match="scope type 'mqtt'"):
        asyncio.run(app({"type": "mqtt"}, None, None))


@pytest.mark.parametrize("first", ["websocket.connect", "websocket.disconnect"])
def test_a_handshake_of_a_websocket_is_ended(first):
    sent = []

    async def receive():
        return {"type": first}

    async def send(message):
        sent.append(message)

    asyncio.run(http_server("echo", Echo())({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == ([{"type": "websocket.close", "code": 1000}] if first == "websocket.connect" else [])


def test_an_app_on_two_loops_at_once_is_refused():
    app = http_server("echo", Echo())

    async def main():
        await app.startup()
        with pytest.raises(RuntimeError, match="already runs on another event loop"):
            await asyncio.to_thread(asyncio.run, app.startup())
        await app.shutdown()

    asyncio.run(main())


def test_asgi_clients_are_known_by_their_address_and_forgotten():
    app = http_server("echo", Echo())

    async def main():
        await app.startup()
        for port in range(1, 3000):
            await ask_asgi(app, method="GET", path="/health/live", peer=("127.0.0.1", str(port)))
        known = len(app._shell.peers)
        one = app._shell.peer(["127.0.0.1", 5000])
        assert app._shell.peer(("127.0.0.1", "5000")) is one
        assert app._shell.peer(None) is None
        await app.shutdown()
        return known

    assert asyncio.run(main()) <= 1024


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 7},
        {"handler": 7},
        {"max_batch_size": 0},
        {"max_batch_size": 2.5},
        {"max_batch_size": True},
        {"max_time_on_queue": -1},
        {"max_time_on_queue": float("nan")},
        {"max_queue_size": 0},
        {"executor": "process"},
        {"limits": {}},
        {"observer": Watching},
        {"watchdog": 0},
        {"authorize": "token"},
        {"prom_host": ""},
        {"prom_host": "http://"},
        {"prom_port": 0},
        {"prom_port": 70000},
        {"prom_mode": "pull"},
        {"prom_mode": "scrape"},
        {"prom_mode": "push"},
        {"prom_interval": 0},
        {"prom_push_interval": -1},
    ],
    ids=str,
)
def test_arguments_are_checked(wrong):
    ((_, value),) = wrong.items()
    with pytest.raises(ValueError, match=r"expected") as error:
        http_server(**{"name": "a", "handler": Echo(), **wrong})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "http://127.0.0.1", "http://push.example/"])
def test_the_arguments_of_the_first_virtex_are_taken(host):
    app = http_server("a", Echo(), 512, 0.005, host, 9090, "off", 0.01)
    assert app.max_queue_size == 2048
    http_server(name="a", handler=Echo(), prom_push_interval=0.05)


def test_the_reply_is_what_any_json_reader_reads(ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, '{"data":["é\\u0000\\ud83d\\ude00"]}'.encode()))
    assert orjson.loads(answer.body) == {"data": ["é\x00😀"], "error": None}


class Nameless(HandlerError):
    def __init__(self):
        pass


@pytest.mark.parametrize("error", [Nameless(), HandlerError("odd", "second")], ids=["no reason", "no number"])
def test_an_odd_error_of_a_handler_is_answered_too_and_holds_nothing_up(error, ask):
    class Odd(Echo):
        def run_inference(self, model_input):
            raise error

    async def main():
        app = http_server("odd", Odd(), max_batch_size=2)
        await app.startup()
        answers = await asyncio.gather(*[ask(app, b'{"data":[1,2,3]}') for _ in range(2)])
        await asyncio.wait_for(app.shutdown(), 5)
        return [answer.status for answer in answers]

    assert asyncio.run(main()) == [500] * 2


def test_one_error_for_several_requests_names_the_item_of_each():
    error = HandlerError("bad", 1)
    assert [moved(error, by).index for by in (0, 2, 2)] == [1, 3, 3]


def test_a_method_of_a_str_subclass_is_taken():
    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        answer = await ask_asgi(app, b'{"data":[1]}', method=HTTPMethod.POST)
        await app.shutdown()
        return answer.status

    assert asyncio.run(main()) == 200
