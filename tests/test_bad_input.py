"""What bad clients send and bad handlers do, over real sockets, through both shells: each gets its status, nobody
else notices, and the worker keeps serving."""

import asyncio
import base64
import contextlib
import socket
import threading

import numpy as np
import orjson
import pytest
import uvicorn
import uvloop

import virtex
from virtex import Limits, RequestHandler, http_server
from virtex.serial import decode_numpy, encode_numpy

DEADLINE = 20  # seconds; reached only when something hangs
LIMIT = 1 << 20


class Mean(RequestHandler):
    """The mean of each array; an item {"do": ...} has a step misbehave for its request or its batch."""

    def process_request(self, data):
        deeds = [item["do"] if isinstance(item, dict) else None for item in data]
        if "decode raises" in deeds:
            raise ZeroDivisionError("secret")
        return [deed or decode_numpy(item) for deed, item in zip(deeds, data, strict=True)]

    def run_inference(self, model_input):
        deeds = {deed for deed in model_input if isinstance(deed, str)}
        if "infer raises" in deeds:
            raise ZeroDivisionError("secret")
        rows = [x if isinstance(x, str) else x.mean() for x in model_input]
        odd = {"too few": rows[1:], "too many": [*rows, 0], "dict": dict.fromkeys(rows), "none": None, "str": "abc"}
        return next((odd[deed] for deed in deeds if deed in odd), (row for row in rows))

    def process_response(self, model_output_item):
        odd = {"encode raises": "raise", "nan": float("nan"), "object": object(), "inf": [np.array([np.inf])]}
        if model_output_item == "encode raises":
            raise ZeroDivisionError("secret")
        return (
            odd.get(model_output_item, model_output_item) if isinstance(model_output_item, str) else model_output_item
        )


class Running:
    """A service on a loop in a thread of its own, on a free port of the loopback."""

    def __init__(self, shell, app):
        self._started = threading.Event()
        self._thread = threading.Thread(target=uvloop.run, args=(getattr(self, shell)(app),))
        self._thread.start()
        assert self._started.wait(DEADLINE)

    async def direct(self, app):
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with await virtex.serve(app, port=0) as server:
            self.port = server.port
            self._started.set()
            await self._stop.wait()

    async def uvicorn(self, app):
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="on"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0)
            self._started.set()
            await self._stop.wait()
            server.should_exit = True
            await serving

    def stop(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE)

    def post(self, body, method="POST", path="/", headers=()):
        with self.connect() as client:
            send(client, body, method, path, headers)
            return answer(client)


def send(client, body, method="POST", path="/", headers=(), length=None):
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: a",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    with contextlib.suppress(ConnectionError):  # an early refusal may close before all is sent
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def answer(client):
    """Status and body of the next answer; fails when the connection ends or the deadline passes before."""
    with client.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, orjson.loads(stream.read(length) or b"null")


@pytest.fixture(scope="module", params=["direct", "uvicorn"])
def service(request):
    running = Running(request.param, http_server("mean", Mean(), limits=Limits(body=LIMIT), max_batch_size=64))
    yield running
    running.stop()


GOOD = orjson.dumps({"data": [encode_numpy(np.arange(4.0))]})


@pytest.fixture(autouse=True)
def it_serves_on(service):
    yield
    assert service.post(GOOD) == (200, {"data": [1.5], "error": None})


def npy(header, payload=b"", version=b"\x01\x00"):
    text = header.encode()
    return base64.b64encode(b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + payload).decode()


def header(descr="'<f8'", fortran="False", shape="(4,)"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


ITEM = encode_numpy(np.arange(4.0))
BIG_FIELDS = "[" + ",".join(f"('f{i}','|V536870911')" for i in range(8)) + ",('z','|V24')]"
BAD_ITEMS = {
    "truncated base64": ITEM[:-4],
    "no padding": ITEM.rstrip("="),
    "a character that is not base64": ITEM[:300] + "!" + ITEM[301:],
    "a line break": ITEM[:76] + "\n" + ITEM[76:],
    "url-safe alphabet": ITEM[:300] + "-_" + ITEM[302:],
    "not a string": 5,
    "null": None,
    "empty": "",
    "not npy": base64.b64encode(b"hello there, this is no array").decode(),
    "a shape that is larger than the data": npy(header(shape="(5,)"), bytes(32)),
    "a shape that is smaller than the data": npy(header(shape="(3,)"), bytes(32)),
    "a shape that no memory holds": npy(header(shape="(1000000000000, 1000000000000)")),
    "a negative shape": npy(header(shape="(-4,)"), bytes(32)),
    "an object array": npy(header(descr="'|O'"), b"\x80\x04N."),
    "fields whose sizes overflow": npy(header(descr=BIG_FIELDS, shape="()"), b"A" * 16),
    "datetimes of two seconds": npy(header(descr="'<M8[2s]'", shape="(1,)"), bytes(8)),
    "text of all bits": npy(header(descr="'<U2'", shape="(1,)"), b"\xff" * 8),
    "a million rows of nothing": npy(header(shape="(1048576, 0)")),
    "a structured object array": npy(header(descr="[('a', '|O')]"), bytes(32)),
    "items without size": npy(header(descr="'|S0'", shape="(1000000000000,)")),
    "an unknown dtype": npy(header(descr="'<q9'"), bytes(32)),
    "a header that is code": npy("__import__('os').system('true')\n", bytes(32)),
    "a header of brackets": npy("(" * 5000 + "\n"),
    "an unknown version": npy(header(), bytes(32), version=b"\x09\x00"),
    "a zip archive": base64.b64encode(b"PK\x03\x04" + bytes(60)).decode(),
}


@pytest.mark.parametrize("item", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_bad_item_is_a_422_that_names_it(service, item):
    status, message = service.post(orjson.dumps({"data": [ITEM, item, ITEM]}))
    assert status == 422
    assert message["data"] == []
    assert message["error"].startswith("item 1: ")
    assert message["index"] == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "expected JSON"),
        (b"hello", "expected JSON"),
        (b'{"data":[NaN]}', "expected JSON"),
        (b'{"data":[-Infinity]}', "expected JSON"),
        (b'{"data":[1e999]}', "expected JSON"),
        (b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "expected JSON"),
        (b'{"data":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}", "expected JSON"),
        (b'{"data":[123456789012345678901]}', "does not fit 64 bits"),
        (b'{"data":1}', "expected a list"),
        (b"[]", "expected an object"),
        (b'{"dat":[]}', 'without "data"'),
        ('{"data":["a"]}'.encode("utf-16"), "expected JSON"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_no_message_is_a_400(service, body, says):
    status, message = service.post(body)
    assert status == 400
    assert says in message["error"]
    assert "index" not in message


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        ("decode raises", "item 0: process_request raised ZeroDivisionError"),
        ("infer raises", "run_inference raised ZeroDivisionError"),
        ("encode raises", "item 0: process_response raised ZeroDivisionError"),
        ("too few", "run_inference returned 0 rows for 1 items"),
        ("too many", "run_inference returned 2 rows for 1 items"),
        ("dict", "run_inference returned a dict"),
        ("none", "run_inference returned a NoneType"),
        ("str", "run_inference returned a str"),
        ("nan", "nan is no JSON number"),
        ("inf", "inf is no JSON number"),
        ("object", "gave a object that can't be sent"),
    ],
)
def test_a_handler_that_fails_is_a_500_that_names_the_step(service, deed, says):
    status, message = service.post(orjson.dumps({"data": [{"do": deed}]}))
    assert status == 500
    assert says.removeprefix("item 0: ") in message["error"]
    assert message.get("index") == (0 if message["error"].startswith("item 0: ") else None)
    assert "request id" in message["error"] and "secret" not in message["error"]


@pytest.mark.parametrize("bad", [{"do": "decode raises"}, {"do": "encode raises"}, {"do": "nan"}, "corrupt"], ids=str)
def test_a_bad_request_touches_no_other_of_its_batch(service, bad):
    """Many connections at once, one of them bad: whatever batches form, the others get their own mean."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(12)]
        for i, client in enumerate(clients):
            item = bad if i == 5 else encode_numpy(np.full(3, float(i)))
            send(client, orjson.dumps({"data": [item]}))
        answers = [answer(client) for client in clients]
    assert answers[5][0] in (422, 500)
    assert [body["data"] for i, (_, body) in enumerate(answers) if i != 5] == [[float(i)] for i in range(12) if i != 5]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/predict", (), 405),
        ("DELETE", "/", (), 405),
        ("POST", "/health/live", (), 405),
        ("POST", "/v2/models/a/infer", (), 404),
        ("GET", "/v2/models/a", (), 404),
        ("POST", "/", ("Content-Encoding: gzip",), 400),
        ("POST", "/", ("Content-Encoding: br, identity",), 415),
        ("POST", "/", ("Content-Type: multipart/form-data; boundary=a",), 415),
        ("POST", "/", ("Accept: text/html",), 406),
    ],
)
def test_what_is_refused_by_its_head(service, method, path, headers, status):
    got, message = service.post(GOOD if method == "POST" else b"", method, path, headers)
    assert got == status
    assert message["error"]


def test_a_100_mb_body_is_refused_by_its_length_before_it_is_sent(service):
    with service.connect() as client:
        send(client, b"", length=100 << 20)
        status, message = answer(client)
    assert (status, message["error"]) == (413, f"a body of {100 << 20} bytes; the limit is {LIMIT}")


def test_a_chunked_body_is_cut_off_at_the_limit(service):
    with service.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        status, _ = answer(client)
    assert status == 413


def test_clients_that_leave_mid_body_or_before_their_answer_cost_nobody_anything(service):
    for cut in (1, len(GOOD) // 2, len(GOOD)):
        for _ in range(10):
            with service.connect() as client:
                send(client, GOOD[:cut], length=len(GOOD))
