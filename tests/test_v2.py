"""The Open Inference Protocol: paths, health, metadata and errors, for one service and for several, by both lanes."""

import asyncio
import tracemalloc

import numpy as np
import orjson
import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run
from kit.services import Gate, Watching
from kit.v2 import error_of, infer, outputs_of, sent, tensor
from kit.wire import LiveWire

from virtex import ItemError, Limits, RequestHandler, Services, Tensor, TensorHandler, http_server
from virtex.service.seam import Head

both_lanes = pytest.mark.parametrize("ask", [ask_asgi, ask_direct])


class Double(TensorHandler):
    inputs = Tensor("f4", (3,))
    outputs = Tensor("f4", (3,))

    def run_inference(self, model_input):
        return model_input * 2


class Sums(TensorHandler):
    """Two inputs, two outputs, which are not declared."""

    inputs = {"a": Tensor("f4", (2, 2)), "b": Tensor("i8")}

    def run_inference(self, model_input):
        return {"s": model_input["a"].sum((1, 2)), "t": model_input["b"]}


def get(app, ask, path, **more):
    return ask(app, method=more.pop("method", "GET"), path=path, **more)


@both_lanes
def test_a_server_and_a_model_say_what_they_are(ask):
    app = http_server("doubles", Double())
    paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/doubles", "/v2/models/doubles/versions/1"]
    paths += ["/v2/models/doubles/ready", "/v2/models/doubles/versions/1/ready"]
    answers = run(app, *(get(app, ask, path) for path in paths))
    assert [answer.status for answer in answers] == [200] * len(paths)
    said = [answer.json for answer in answers]
    assert said[0]["name"] == "virtex" and "binary_tensor_data" in said[0]["extensions"]
    assert said[1:3] == [{"live": True}, {"ready": True}] and said[5:] == [{"name": "doubles", "ready": True}] * 2
    assert (
        said[3]
        == said[4]
        == {
            "name": "doubles",
            "versions": ["1"],
            "platform": "virtex",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
        }
    )


def test_outputs_that_are_not_declared_are_known_from_the_first_answer_on():
    app = http_server("sums", Sums())

    async def main():
        before = await get(app, ask_direct, "/v2/models/sums")
        a = tensor("a", np.ones((2, 2, 2), "f4"))
        sums = outputs_of(await infer(app, tensor("b", np.arange(2)), a))
        return before.json, sums, (await get(app, ask_direct, "/v2/models/sums")).json

    before, sums, after = run(app, main())[0]
    assert before["inputs"][1] == {"name": "b", "datatype": "INT64", "shape": [-1]} and before["outputs"] == []
    assert (sums["s"].tolist(), sums["t"].tolist()) == ([4, 4], [0, 1])
    assert after["outputs"] == [
        {"name": "s", "datatype": "FP32", "shape": [-1]},
        {"name": "t", "datatype": "INT64", "shape": [-1]},
    ]


def test_outputs_that_are_not_declared_are_known_from_the_warm_up_on():
    app = http_server("sums", Sums(), warmup=(2,))
    (answer,) = run(app, get(app, ask_direct, "/v2/models/sums"))
    assert answer.json["outputs"] == [
        {"name": "s", "datatype": "FP32", "shape": [-1]},
        {"name": "t", "datatype": "INT64", "shape": [-1]},
    ]


def test_a_list_handler_has_one_tensor_of_any_name():
    (answer,) = run(app := http_server("echo", Echo()), get(app, ask_direct, "/v2/models/echo"))
    one = [{"name": "data", "datatype": "BYTES", "shape": [-1]}]
    assert (answer.json["inputs"], answer.json["outputs"]) == (one, one)


@both_lanes
@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v2/models/other", 404, None),
        ("GET", "/v2/models/doublesx", 404, None),
        ("GET", "/v2/models/doubles/versions/2", 404, None),
        ("GET", "/v2/models/doubles/versions/2/ready", 404, None),
        ("GET", "/v2/models/doubles/config", 404, None),
        ("GET", "/v2/models/doubles/stats", 404, None),
        ("GET", "/v2/models/stats", 404, None),
        ("GET", "/v2/models", 404, None),
        ("GET", "/v2/nothing", 404, None),
        ("POST", "/v2/repository/index", 404, None),
        ("POST", "/v2/models/other/infer", 404, None),
        ("POST", "/v2/models/doubles/versions/2/infer", 404, None),
        ("POST", "/v2/models/doubles/x/infer", 404, None),
        ("GET", "/v2/models/doubles/infer", 405, b"POST"),
        ("POST", "/v2/models/doubles", 405, b"GET, HEAD"),
        ("POST", "/v2/health/live", 405, b"GET, HEAD"),
        ("POST", "/v2", 405, b"GET, HEAD"),
    ],
)
def test_what_there_is_not_is_said_in_the_form_of_the_protocol(ask, method, path, status, allow):
    app = http_server("doubles", Double())
    (answer,) = run(app, get(app, ask, path, method=method))
    assert (answer.status, answer.headers.get(b"allow")) == (status, allow)
    error_of(answer)


@both_lanes
@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "doubles/config", "model 'doubles' has no /config: expected /infer or /ready"),
        ("POST", "doubles/versions/1/stats", "model 'doubles' has no /stats: expected /infer or /ready"),
        ("POST", "double/infer", "/v2/models/double/infer is of no model: expected doubles, version 1"),
    ],
    ids=["no such path", "of its version", "no such model"],
)
def test_a_path_that_is_of_a_model_is_not_said_to_be_of_none(ask, method, path, says):
    app = http_server("doubles", Double())
    (answer,) = run(app, get(app, ask, f"/v2/models/{path}", method=method))
    assert answer.status == 404 and error_of(answer) == says


@both_lanes
def test_with_a_key_only_health_is_open(ask):
    app = http_server("doubles", Double(), api_key="sword", cors=["*"])
    asked = [tensor("input", np.ones((1, 3), "f4"))]
    bearer = [(b"authorization", b"Bearer sword")]
    closed = run(
        app,
        *(get(app, ask, path) for path in ["/v2", "/v2/models/doubles", "/v2/models/doubles/ready", "/v2/x"]),
        infer(app, *asked, ask=ask),
    )
    assert [answer.status for answer in closed] == [401] * 5
    assert [error_of(answer) for answer in closed] == ["not authorized"] * 5
    app = http_server("doubles", Double(), api_key="sword", cors=["*"])
    opened = run(
        app,
        get(app, ask, "/v2/health/live"),
        get(app, ask, "/v2/health/ready"),
        get(app, ask, "/v2", headers=bearer),
        infer(app, *asked, ask=ask, headers=[*bearer, (b"origin", b"https://a")]),
    )
    assert [answer.status for answer in opened] == [200] * 4
    assert opened[3].headers[b"access-control-allow-origin"] == b"*", (
        "the body's wishes do not undo what the head asked"
    )


@both_lanes
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([(b"content-type", b"application/octet-stream")], 200),
        ([(b"content-type", b"image/png")], 200),
        ([(b"accept", b"text/html")], 200),
        ([(b"content-encoding", b"identity")], 200),
        ([(b"content-encoding", b"br")], 415),
        ([(b"inference-header-content-length", b"x")], 400),
        ([(b"inference-header-content-length", b"9" * 30)], 400),
        ([(b"inference-header-content-length", b"100000")], 400),
        ([(b"inference-header-content-length", b"0")], 400),
        ([(b"x-request-timeout-ms", b"no")], 400),
    ],
    ids=str,
)
def test_what_clients_say_of_a_body_does_not_matter_but_for_its_coding(ask, headers, status):
    app = http_server("doubles", Double())
    (answer,) = run(app, infer(app, tensor("input", np.ones((1, 3), "f4")), ask=ask, headers=headers))
    assert answer.status == status, answer.body
    if status != 200:
        error_of(answer)


@both_lanes
def test_what_is_too_large_is_refused_ahead_of_its_body(ask):
    app = http_server("doubles", Double(), limits=Limits(body=100))
    (answer,) = run(app, sent(app, b"x" * 101, ask=ask))
    assert answer.status == 413 and "limit is 100" in error_of(answer)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 30 + b"\r\n", 431),
        (b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 900, 431),
        (b"GET /v2/" + b"a" * 300, 414),
        (b"GET /v2/a HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2/a HTTP/3.1\r\n\r\n", 505),
    ],
)
def test_on_the_wire_what_is_no_request_is_refused_in_the_form_as_well(raw, status, event_loop):
    limits = Limits(request_line=200, header_fields=20, header_bytes=500)
    for app in (http_server("a", Double(), limits=limits), Services(http_server("a", Double(), limits=limits))):
        event_loop.run_until_complete(app.startup())
        for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
            (reply,) = LiveWire(app, limits, event_loop).send(*pieces).settle().replies()
            assert reply[0] == status and reply[1][b"content-type"] == b"application/json", reply
            assert list(orjson.loads(reply[2])) == ["error"]
        event_loop.run_until_complete(app.shutdown())


class Picky(RequestHandler):
    def process_request(self, data):
        if "no" in data:
            raise ItemError("expected anything but no", data.index("no"))
        if "gone" in data:
            raise ItemError("there is none", data.index("gone"), status=404)
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        if model_output_item == "bug":
            raise ZeroDivisionError("secret")
        return model_output_item


def test_an_item_that_is_refused_is_a_400_and_what_a_handler_breaks_a_500():
    app = http_server("picky", Picky())
    no, gone, bug = run(app, *(infer(app, tensor("x", [b"a", text])) for text in (b"no", b"gone", b"bug")))
    assert (no.status, error_of(no)) == (400, "item 1: expected anything but no")
    assert (gone.status, error_of(gone)) == (404, "item 1: there is none")
    assert bug.status == 500 and "secret" not in error_of(bug)


def test_a_service_that_drains_is_not_ready_and_one_that_failed_says_so():
    class Fails(Double):
        def setup(self, worker):
            raise RuntimeError("no model")

    async def drained():
        app = http_server("doubles", Double())
        await app.startup()
        app.drain()
        paths = ["/v2/health/live", "/v2/health/ready", "/v2/models/doubles/ready", "/v2/models/doubles"]
        answers = [await get(app, ask_direct, path) for path in paths]
        await app.shutdown()
        return answers, await infer(app, tensor("input", np.ones((1, 3), "f4")))

    async def failed():
        app = http_server("doubles", Fails())
        with pytest.raises(RuntimeError):
            await app.startup()
        paths = ["/v2/health/live", "/v2/models/doubles/ready", "/v2/models/doubles"]
        answers = [await get(app, ask_direct, path) for path in paths]
        return [*answers, await infer(app, tensor("input", np.ones((1, 3), "f4")))]

    answers, closed = asyncio.run(drained())
    assert [answer.status for answer in answers] == [200, 503, 503, 200]
    assert closed.status == 503 and "shut down" in error_of(closed)
    answers = asyncio.run(failed())
    assert [answer.status for answer in answers] == [503] * 4
    assert all("setup failed" in error_of(answer) for answer in answers[1:])


def test_a_request_that_comes_while_the_service_starts_waits_for_it():
    app = http_server("doubles", Double())
    (answer,) = run(app, infer(app, tensor("input", np.ones((1, 3), "f4"))), serve=False)
    assert outputs_of(answer)["output"].tolist() == [[2, 2, 2]]


def test_the_timeout_of_a_request_is_its_deadline_and_its_parameters_reach_the_handler():
    class Tells(RequestHandler):
        def process_request(self, data, requests):
            self.seen = [(request.parameters, request.deadline) for request in requests]
            return data

        def run_inference(self, model_input):
            return model_input

        def process_response(self, model_output_item):
            return model_output_item

    app = http_server("tells", handler := Tells())
    now = 10**15

    async def main():
        app._clock = lambda: now
        short = await infer(app, tensor("x", [b"a"]), parameters={"timeout": 1500000, "k": "v"})
        seen = handler.seen
        late = await infer(app, tensor("x", [b"a"]), parameters={"timeout": 1})
        return short, seen, late

    short, ((parameters, deadline),), late = run(app, main())[0]
    assert short.status == 200 and parameters == {"timeout": 1500000, "k": "v"}
    assert deadline == pytest.approx(now / 1e9 + 1.5)
    assert late.status in (200, 504)


def test_a_timeout_in_the_body_counts_for_a_request_that_waited_for_the_start_with_a_longer_one():
    class Starts(Gate):
        def __init__(self):
            super().__init__()
            self.starts = asyncio.Event()

        async def setup(self, worker):
            await self.starts.wait()

    async def main():
        handler = Starts()
        app = http_server("starts", handler)
        longer = [(b"x-request-timeout-ms", b"50000")]
        asked = infer(app, tensor("x", [b"a"]), parameters={"timeout": 300_000}, headers=longer)
        waits = asyncio.create_task(asked)
        starts = asyncio.create_task(app.startup())
        await asyncio.sleep(0)
        handler.starts.set()
        late = await asyncio.wait_for(waits, 20)
        handler.go.set()
        await starts
        await app.shutdown()
        return late, handler.calls

    late, calls = asyncio.run(main())
    assert late.status == 504 and "0.3 s" in error_of(late) and calls == [["a"]]


@both_lanes
def test_messages_and_requests_of_v2_that_come_at_once_share_batches(ask):
    app = http_server("doubles", Double(), max_batch_size=4, observer=(watching := Watching()))
    rows = np.arange(18, dtype="f4").reshape(6, 3)

    def message(some):
        return ask(app, orjson.dumps({"data": some.tolist()}))

    asked = [message(rows[:1]), infer(app, tensor("input", rows[1:2]), ask=ask), message(rows[2:3])]
    asked += [infer(app, tensor("input", rows[3:5], True), ask=ask), message(rows[5:])]
    answers = run(app, *asked)
    got = [outputs_of(answer)["output"] if i in (1, 3) else answer.json["data"] for i, answer in enumerate(answers)]
    assert np.concatenate(got).tolist() == (rows * 2).tolist()
    assert watching.batches == [4, 2], "one request of V2 is in both"


# --- several services


@both_lanes
def test_each_of_several_services_is_a_model(ask):
    services = Services(http_server("doubles", Double()), http_server("ä 1/2".replace("/", " "), Echo()))
    paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/doubles", "/v2/models/ä 1 2/ready"]
    paths += ["/doubles/v2/models/doubles"]
    good = run(services, *(get(services, ask, path) for path in paths))
    assert [answer.status for answer in good] == [200] * 6
    assert good[3].json == good[5].json and good[4].json == {"name": "ä 1 2", "ready": True}


@both_lanes
def test_several_services_answer_infer_by_name_and_refuse_in_the_form_of_the_protocol(ask):
    services = Services(http_server("doubles", Double(), api_key="sword"), http_server("echo", Echo()))
    bearer = [(b"authorization", b"Bearer sword")]
    x = tensor("input", np.ones((1, 3), "f4"))
    doubled, kept_out, echoed, other, nothing = run(
        services,
        infer(services, x, ask=ask, path="/v2/models/doubles/versions/1/infer", headers=bearer),
        infer(services, x, ask=ask, path="/v2/models/doubles/infer"),
        infer(services, tensor("any", [b"a", b"b"]), ask=ask, path="/v2/models/echo/infer"),
        infer(services, x, ask=ask, path="/v2/models/other/infer"),
        get(services, ask, "/v2/x"),
    )
    assert outputs_of(doubled)["output"].tolist() == [[2, 2, 2]]
    assert outputs_of(echoed)["data"] == [b"a", b"b"]
    assert (kept_out.status, error_of(kept_out)) == (401, "not authorized")
    assert other.status == nothing.status == 404
    assert "doubles" not in error_of(other) and "echo" in error_of(other) and error_of(nothing)


@both_lanes
def test_where_no_service_lets_a_request_in_nothing_is_said_of_them(ask):
    services = Services(http_server("doubles", Double(), api_key="sword"))
    closed, live = run(services, get(services, ask, "/v2"), get(services, ask, "/v2/health/live"))
    assert (closed.status, error_of(closed), live.status) == (401, "not authorized", 200)


def test_below_a_root_path_the_paths_are_the_same():
    app = http_server("doubles", Double())
    (answer,) = run(app, ask_asgi(app, method="GET", path="/api/v2/models/doubles", root_path="/api"))
    assert answer.json["name"] == "doubles"


def test_what_a_long_head_says_is_not_kept_beside_its_connection():
    app = http_server("double", Double)
    inputs = [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]

    async def main():
        await app.startup()
        heads = []
        for size in (1 << 20, 5):
            body = orjson.dumps({"id": "x" * size, "inputs": inputs})
            heads.append(Head("POST", "/v2/models/double/infer", [], len(body), None))
            exchange = app.open(heads[-1], app.options.clock())
            answer = exchange.complete(body)
            response = await answer if answer is exchange else answer
            assert response.status == 200
            del body, exchange, answer, response
        kept = [trace for trace in tracemalloc.take_snapshot().traces if trace.domain == 0 and trace.size >= 1 << 20]
        assert len(heads) == 2 and not kept
        await app.shutdown()

    tracemalloc.start()
    try:
        asyncio.run(main())
    finally:
        tracemalloc.stop()
