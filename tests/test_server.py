"""A service as a whole, by either shell: messages, faults, who is told."""

import asyncio

import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.services import BODY, EXECUTORS, Echo, Gate, Watching

import virtex.service.formats
from virtex import HttpClient, HttpMessage, http_server, serve
from virtex.errors import ClientError, HandlerError, ItemError, moved
from virtex.service.seam import Head, Waiter


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


def test_a_body_in_pieces_is_one_body(ask):
    app = http_server("echo", Echo())
    (answer,) = run(app, ask(app, [bytes([b]) for b in b'{"data":["abc"]}']))
    assert answer.json["data"] == ["abc"]


def test_batches_of_one_are_an_ordinary_case(echo, ask):
    app = echo(max_batch_size=1)
    answers = run(app, *(ask(app, b'{"data":[%d, %d]}' % (i, -i)) for i in range(2)))
    assert [answer.json["data"] for answer in answers] == [[0, 0], [1, -1]]


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
        opened = [app.open(Head("POST", "/", [], None, None), app._clock()) for _ in range(3)]
        for exchange, item in zip(opened, ("nasty", "raises", "fine"), strict=True):
            exchange.write(b'{"data":["%b"]}' % item.encode())
            exchange.complete()
        opened[1].tell(Waiter())  # the base: it raises
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


def test_an_observer_sees_every_request_and_batch(ask):
    watching = Watching()
    app = http_server("echo", Echo(), observer=watching)
    run(app, ask(app, BODY), ask(app, b"[]"), ask(app, method="GET"), ask(app, b'{"data":[1,2]}'))
    assert sorted(watching.requests) == [(200, 0), (200, 1), (200, 2), (400, 0)]
    assert sum(watching.batches) == 3


@pytest.mark.parametrize(
    ("deed", "index"),
    [("422", 1), ("500", 1), ("odd", None), ("none", None)],
)
def test_an_error_that_names_an_item_has_its_index_as_a_member(deed, index, ask):
    class Deeds(Echo):
        def process_response(self, item):
            if item == 2 and deed != "odd" and deed != "none":
                raise ItemError("no") if deed == "422" else KeyError("no")
            return item

        def run_inference(self, model_input):
            if deed in ("odd", "none"):
                raise HandlerError("odd", "second" if deed == "odd" else None)
            return model_input

    app = http_server("deeds", Deeds())
    for accept in (b"application/json", b"application/x-npy, */*"):
        (answer,) = run(app, ask(app, b'{"data": [1, 2, 2]}', headers=[(b"accept", accept)]))
        assert answer.error and answer.status == (422 if deed == "422" else 500)
        assert answer.json.get("index") == index
        assert "index" in answer.json or index is None


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


# --- statuses of items -----------------------------------------------------------------------------------------------


class Catalogue(Echo):
    def process_request(self, data):
        for index, item in enumerate(data):
            if isinstance(item, int) and 400 <= item < 500:
                raise ItemError("expected another", index, status=item)
        return data


@pytest.mark.parametrize("status", [400, 404, 409, 418, 422, 451, 499])
def test_an_item_error_is_answered_with_its_status_and_nobody_elses_request_is(ask, status):
    app = http_server("a", Catalogue(), max_time_on_queue=0.05)
    refused, taken = run(app, ask(app, b'{"data":[1,%d,404]}' % status), ask(app, b'{"data":[2]}'))
    assert (refused.status, refused.json["index"], refused.error) == (status, 1, "item 1: expected another")
    assert taken.json["data"] == [2]


def test_the_status_line_has_the_phrase_of_its_status_and_validate_keeps_it():
    with pytest.raises(ItemError) as raised:
        Catalogue().validate(HttpMessage(data=[404]), strict=True)
    assert (raised.value.status, raised.value.index) == (404, 0)

    async def main():
        async with await serve(http_server("a", Catalogue()), port=0) as listener:
            lines = []
            for status in (404, 418, 451, 499):
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                body = b'{"data":[%d]}' % status
                writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                lines.append(await reader.readline())
                writer.close()
            client = HttpClient(f"http://127.0.0.1:{listener.port}/", raise_errors=True)
            with pytest.raises(ClientError) as refused:
                await client.post_async(HttpMessage(data=[1, 410]))
            await client.aclose()
            assert (refused.value.status, refused.value.index) == (410, 1)
        return lines

    phrases = [b"404 Not Found", b"418 I'm a Teapot", b"451 Unavailable For Legal Reasons", b"499 "]
    assert asyncio.run(main()) == [b"HTTP/1.1 %b\r\n" % phrase for phrase in phrases]
