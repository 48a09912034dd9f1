"""The id of a request: taken or made, and the same in the answer, its error and the logs, by both lanes."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

import orjson
import pytest
from kit.asks import Echo, ask_asgi, run
from kit.servers import ECHO, serving
from kit.wire import Wire

from virtex import Limits, http_server
from virtex.service.seam import IDS, LAST, Head

MADE = rb"[0-9a-f]{24}"


class Fails(Echo):
    def run_inference(self, model_input):
        if "bug" in model_input:
            raise KeyError("secret")
        return model_input


async def asgi_echo(scope, receive, send):
    given = dict(scope["headers"]).get(b"x-mine")
    headers = [(b"content-type", b"text/plain"), *([(b"x-request-id", given)] if given else [])]
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def request(*fields, method=b"POST", target=b"/", body=b'{"data":["a"]}', version=b"1.1"):
    lines = [b"%b %b HTTP/%b" % (method, target, version), b"Host: a", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def asked(app, *raw, access=None):
    """(status, headers, body) of each answer on one connection; what was sent too, where it is no request."""
    return asyncio.run(_asked(app, raw, access)).replies()


async def _asked(app, raw, access=None):
    if hasattr(app, "startup"):
        await app.startup()
    wire = Wire(app, loop=asyncio.get_running_loop())
    wire.connections.access = access
    for one in raw:
        wire.send(one)
        for _ in range(100):
            await asyncio.sleep(0)
    if hasattr(app, "shutdown"):
        await app.shutdown()
    return wire


def ids(answers):
    return [headers[b"x-request-id"] for _, headers, _ in answers]


def test_every_answer_has_an_id_of_its_own_be_it_a_refusal():
    app = http_server(
        "echo", Fails(), limits=Limits(body=100), authorize=lambda head: 401 if head.path == "/no" else None
    )
    answers = asked(
        app,
        request(),
        request(),
        request(target=b"/health/ready", method=b"GET", body=b""),
        request(target=b"/", method=b"GET", body=b""),
        request(target=b"/metrics/x", method=b"GET", body=b""),
        request(method=b"PUT", body=b""),
        request(target=b"/no"),
        request(body=b'{"data":["bug"]}'),
        request(body=b"no JSON"),
        request(body=b"x" * 200),
        b"garbage\r\n\r\n",
    )
    assert [status for status, _, _ in answers] == [200, 200, 200, 200, 404, 405, 401, 500, 400, 413, 400]
    assert len(set(ids(answers))) == len(answers)
    assert all(re.fullmatch(MADE, one) for one in ids(answers))


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_what_a_client_sends_is_repeated_each_time_it_does(version):
    mine = [b"X-Request-Id: mine-1", b"Connection: keep-alive"]
    answers = asked(
        http_server("echo", Fails()),
        request(*mine, version=version),
        request(*mine, version=version),
        request(b"x-request-id: mine-2", b"Connection: keep-alive", version=version),
        request(b"Connection: keep-alive", version=version),
        request(*mine, target=b"/no", method=b"PUT", version=version),
        request(*mine, target=b"/health/live", method=b"GET", body=b"", version=version),
    )
    first, second, other, made, *refused = ids(answers)
    assert (first, second, other, refused) == (b"mine-1", b"mine-1", b"mine-2", [b"mine-1"] * 2)
    assert re.fullmatch(MADE, made)


@pytest.mark.parametrize("given", [b"a" * 128, b"\x41z_.:/+=@-09"])
def test_an_id_may_be_any_word_of_ascii(given):
    assert ids(asked(http_server("echo", Echo()), request(b"x-request-id: " + given))) == [given]


@pytest.mark.parametrize("given", [b"a" * 129, b"a b", b'"><script>', b"caf\xe9", b"", b"a,b"])
def test_what_can_not_be_repeated_as_it_is_is_replaced(given):
    (made,) = ids(asked(http_server("echo", Echo()), request(b"x-request-id: " + given)))
    assert re.fullmatch(MADE, made)


@pytest.mark.parametrize("fields", [(), (b"x-request-id: mine-1",)])
def test_the_error_of_a_500_and_the_log_name_the_id_of_the_answer(fields, caplog):
    ((status, headers, body),) = asked(http_server("fails", Fails()), request(*fields, body=b'{"data":["bug"]}'))
    name = headers[b"x-request-id"].decode()
    assert status == 500 and orjson.loads(body)["error"] == f"run_inference raised KeyError; request id {name}"
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == f"request {name}: run_inference raised KeyError"
    assert (record.event, record.request_id, record.items, record.batch_size) == ("request_failure", name, 1, 1)


@pytest.mark.parametrize("body", [b'{"data":["a"]}', b'{"data":["bug"]}'])
@pytest.mark.parametrize("given", [(), ((b"X-Request-ID", b"mine-1"),)])
def test_an_answer_by_asgi_has_it_too(body, given):
    app = http_server("fails", Fails())
    answer, refused = run(app, ask_asgi(app, body, headers=given), ask_asgi(app, b"", "PUT", headers=given))
    made = [answer.headers[b"x-request-id"], refused.headers[b"x-request-id"]]
    assert made == [b"mine-1"] * 2 if given else all(re.fullmatch(MADE, one) for one in made) and len(set(made)) == 2
    assert answer.status == 200 or answer.error.endswith(made[0].decode())


def test_the_answer_to_head_has_it_and_100_continue_does_not():
    expects = request(b"Expect: 100-continue", body=b"").replace(b"Length: 0", b"Length: 14")
    invited, answer = asked(http_server("echo", Echo()), expects, b'{"data":["a"]}')
    assert invited[0] == 100 and b"x-request-id" not in invited[1] and re.fullmatch(MADE, answer[1][b"x-request-id"])
    head = request(method=b"HEAD", target=b"/health/live", body=b"")
    wire = asyncio.run(_asked(http_server("echo", Echo()), [head]))
    assert re.search(rb"x-request-id: %b\r\ncontent-length: \d+\r\n\r\n$" % MADE, wire.output)


def test_an_application_of_another_kind_answers_with_its_own_id_or_none():
    answers = asked(asgi_echo, request(b"x-request-id: a"), request(b"x-mine: b"), request(b"x-mine: c"))
    assert [headers.get(b"x-request-id") for _, headers, _ in answers] == [None, b"b", b"c"]
    assert [body for _, _, body in answers] == [b"hello"] * 3


def test_an_id_of_an_application_that_would_end_the_head_is_refused(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"a\r\nb: c")]})

    ((status, headers, _),) = asked(app, request())
    assert status == 500 and b"b" not in headers and "control characters" in caplog.text


def test_a_service_in_another_application_names_its_answers_itself():
    service = http_server("echo", Fails())

    async def app(scope, receive, send):
        await service(scope, receive, send)

    answers = asked(app, request(b"x-request-id: mine-1"), request(), request())
    first, *made = ids(answers)
    assert first == b"mine-1" and len(set(made)) == 2 and all(re.fullmatch(MADE, one) for one in made)


def test_the_access_log_has_the_id_of_the_answer_and_what_the_batch_was():
    told = []
    app = http_server("echo", Fails(), max_time_on_queue=0)
    answers = asked(
        app,
        request(body=b'{"data":["a","b"]}'),
        request(b"x-request-id: mine-1", body=b'{"data":["bug"]}'),
        request(method=b"PUT", body=b""),
        access=lambda ends, head, status, size, ns, request_id, exchange: told.append((status, request_id, exchange)),
    )
    assert [request_id for _, request_id, _ in told] == ids(answers)
    assert [status for status, _, _ in told] == [200, 500, 405]
    two, one, none = [exchange for _, _, exchange in told]
    assert (two.count, two.batch_size, one.count, one.batch_size, none) == (2, 2, 1, 1, None)
    assert two.cut_at >= two.born > 0


def test_the_access_log_has_the_id_that_an_application_gave():
    told = []
    asked(asgi_echo, request(b"x-mine: b"), request(), access=lambda *all: told.append(all[5]))
    assert told == [b"b", b""]


def test_a_process_that_is_forked_makes_ids_of_its_own():
    script = (
        "import os; from virtex.service.seam import IDS; print(IDS.next().decode(), flush=True); pid = os.fork(); "
        "pid and os.waitpid(pid, 0); print(IDS.next().decode(), flush=True)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    first, *both = sorted(ended.stdout.split())
    assert len({name[:16] for name in (first, *both)}) == 2 and len({first, *both}) == 3


def test_ids_go_on_beyond_a_run_of_them():
    made = [IDS.next() for _ in range(3 * (LAST + 1))]
    assert len(set(made)) == len(made) and all(re.fullmatch(MADE, one) for one in made)
    assert made == sorted(made)


def test_of_several_ids_the_first_counts():
    assert Head("GET", "/", [(b"x-request-id", b"a"), (b"x-request-id", b"b")], 0, None).request_id == b"a"
    assert Head("GET", "/", [(b"host", b"a")], 0, None).request_id == b""


def test_under_uvicorn_it_is_there_too():
    with serving("uvicorn", ECHO) as server, server.connect() as sock:
        sock.sendall(request(b"X-Request-Id: mine-1") + request())
        data = b""
        while data.count(b'"error":null}') < 2:
            data += sock.recv(65536)
        assert b"mine-1" in data and len(re.findall(rb"x-request-id: (\S+)", data)) == 2
