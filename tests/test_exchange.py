import asyncio
import sys
import threading
import time

import numpy as np
import orjson
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from kit.asks import Echo, ask_direct

from virtex import Limits, Server, Tensor, TensorHandler, http_server, serve
from virtex._codec import encode_npy, encode_numpy
from virtex.errors import RequestError
from virtex.service.exchange import ARRAY_BYTES
from virtex.service.seam import Head, Waiter


def on_loop(f, handler=None, **options):
    """Run f(app) with a service that has started."""

    async def main():
        app = http_server("echo", handler or Echo(), **options)
        await app.startup()
        try:
            return await asyncio.wait_for(f(app), 10)
        finally:
            await asyncio.wait_for(app.shutdown(), 10)

    return asyncio.run(main())


def opened(app, length=None):
    return app.open(Head("POST", "/", [], length, None), app._clock())


@given(st.lists(st.integers(0, 9), max_size=6))
def test_a_body_is_put_together_from_its_pieces(sizes):
    body = b'{"data":["abcdefghijklmnopqrstuvwxyz"]}'

    async def put(app):
        exchange = opened(app)
        at = 0
        for size in [*sizes, len(body)]:
            exchange.write(body[at : at + size])
            at += size
        return (await exchange.complete()).buffers

    assert b"abcdefghijklmnopqrstuvwxyz" in b"".join(on_loop(put))


def test_a_single_piece_is_not_copied():
    async def put(app):
        piece = b'{"data":%b}' % b"[]"
        exchange = opened(app)
        before = sys.getrefcount(piece)
        exchange.write(piece)
        held = sys.getrefcount(piece) == before + 1
        exchange.complete()
        return held

    assert on_loop(put)


def test_cancelling_twice_or_after_the_answer_changes_nothing():
    async def put(app):
        early = opened(app)
        early.cancel("left")
        early.cancel("left")
        answered = opened(app)
        answered.write(b'{"data":[1]}')
        response = await answered.complete()
        answered.cancel("left")
        return response.status, app.model.admission.unsettled, app.budget.held

    assert on_loop(put) == (200, 0, 0)


def test_a_request_that_is_refused_after_its_body_is_no_company_any_more():
    async def put(app):
        for body in (b"", b"[]", b'{"data":[]}'):
            await ask_direct(app, body)
        return app.model.admission.unsettled, app.budget.held

    assert on_loop(put) == (0, 0)


def test_a_body_is_charged_until_it_is_answered_refused_or_given_up():
    async def put(app):
        held = []
        for end in ("answer", "refuse", "cancel"):
            exchange = opened(app)
            exchange.write(b'{"data":[1' if end != "answer" else b'{"data":[1]}')
            held.append(app.model.admission.bodies.held)
            if end == "cancel":
                exchange.cancel("left")
            elif end == "answer":
                await exchange.complete()
            else:
                exchange.complete()
            held.append(app.model.admission.bodies.held)
        return held

    assert on_loop(put) == [12, 0, 10, 0, 10, 0]


def test_a_large_body_is_read_where_it_came_and_its_memory_used_again():
    async def put(app):
        text = b'{"data":["%b"]}' % (b"x" * 200_000)
        seen = []
        for _ in range(2):
            exchange = opened(app)
            view = exchange.buffer(len(text))
            seen.append(bytes(view[-1:]))
            view[:] = text
            exchange.charge(len(text))
            assert sum(map(len, (await exchange.complete()).buffers)) > 200_000
        return seen, app.model.admission.bodies.held

    assert on_loop(put) == ([b"\0", b"}"], 0)


def test_a_large_body_with_a_bad_item_is_refused_and_over():
    class Declared(TensorHandler):
        inputs = Tensor("float32", (50_000,))

        def run_inference(self, batch):
            return batch[:, 0]

    async def put(app):
        item = encode_numpy(np.zeros(50_000, "f4")).encode()
        text = b'{"data":["%b"]}' % (item[:-8] + b"!!!!" + item[-4:])
        exchange = opened(app)
        exchange.buffer(len(text))[:] = text
        exchange.charge(len(text))
        return exchange.complete().status, app.model.admission.bodies.held, app.model.admission.unsettled

    assert on_loop(put, Declared()) == (422, 0, 0)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_body_that_is_in_rows_counts_while_it_is_kept_for_a_second_run_and_is_given_back_once(kept):
    class Declared(TensorHandler):
        inputs = Tensor("float32", (3,))

        def run_inference(self, batch):
            return batch[:, 0]

    async def put(app):
        exchange = opened(app)
        exchange.write(b'{"data":[[1,2,3]]}')
        held = [app.model.admission.bodies.held]
        future = exchange.complete()
        held.append(app.model.admission.bodies.held)
        await future
        return [*held, app.model.admission.bodies.held]

    assert on_loop(put, Declared(), isolate_errors=kept) == [18, 18 if kept else 0, 0]


def test_whoever_asks_late_is_told_at_once_and_too_early_is_an_error():
    async def put(app):
        exchange = opened(app)
        with pytest.raises(asyncio.InvalidStateError):
            exchange.result()
        exchange.write(b'{"data":[1]}')
        await exchange.complete()
        told = []

        class Late(Waiter):
            def on_answer(self, exchange):
                told.append(exchange)

        exchange.tell(Late())
        return told == [exchange]

    assert on_loop(put)


def test_all_bodies_together_stay_within_the_budget():
    async def put(app):
        app.model.admission.bodies.budget = 100
        first, second = opened(app), opened(app)
        first.write(b"x" * 90)
        with pytest.raises(RequestError) as error:
            second.write(b"x" * 20)
        second.cancel("refused")
        status = error.value.status, app.model.admission.bodies.held
        first.cancel("left")
        return *status, app.model.admission.bodies.held

    assert on_loop(put) == (503, 90, 0)


def test_memory_of_a_large_body_that_came_over_a_socket_is_used_again():
    text = b'{"data":["%b"]}' % (b"x" * 1_000_000)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(text)

    async def main():
        app = http_server("echo", Echo())
        kept = []
        async with await serve(app, port=0) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            for _ in range(5):
                writer.write(request + text)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readexactly(len(text) + 13)
                kept.append(app.model.admission.bodies.kept)
            writer.close()
        return kept

    first, *others = uvloop.run(main())
    assert first and others == [first] * 4


@pytest.mark.parametrize(
    "text",
    [
        b"[%b[]]" % (b"[]," * 50_000),
        b"[%b[]]" % ((b"[" * 100 + b"]" * 100 + b",") * 400),
        b"[%b0]" % (b'{"":{}},' * 20_000),
    ],
    ids=["side by side", "nested", "objects"],
)
def test_many_values_in_a_large_body_are_charged_as_what_they_take_in_memory(text):
    async def put(app):
        statuses = []
        for budget in (1 << 20, 1 << 30):
            app.model.admission.bodies.budget = budget
            answer = await ask_direct(app, b'{"data":%b}' % text)
            statuses.append(answer.status)
        return statuses, app.model.admission.bodies.held

    assert on_loop(put, max_queue_size=100_000) == ([503, 200], 0)


class Asking(Server):
    def open(self, head, now):
        return super().open(head, now)


@pytest.mark.parametrize("kind", [Server, Asking])
def test_a_head_that_comes_again_is_not_asked_about_again_unless_a_subclass_wants_it(kind, monkeypatch):
    asked = []
    real = Server.open
    monkeypatch.setattr(Server, "open", lambda self, head, now: asked.append(head) or real(self, head, now))

    async def main():
        app = http_server("echo", Echo())
        app.__class__ = kind
        async with await serve(app, port=0) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            for _ in range(3):
                writer.write(b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"data":["a"]}')
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 ")
                await reader.readuntil(b"}")
            writer.close()
        return len(asked)

    assert asyncio.run(main()) == (1 if kind is Server else 3)


class Waiting(Echo):
    """Its model waits, so that what was admitted is held."""

    def __init__(self):
        self.may_run = threading.Event()

    def run_inference(self, model_input):
        assert self.may_run.wait(20)
        return model_input


NESTED = b'{"data":[%b0]}' % ((b"[" * 100 + b"]" * 100 + b",") * 250)
EMOJI = '{"data":["\U0001f600%s"]}' % ("x" * 50_000)
OBJECTS = b'{"data":[%b0]}' % (b'{"a":0},' * 5_000)
NUMBERS = b'{"data":[[%b0.5]]}' % (b"1.25," * 8_000)


@pytest.mark.parametrize(
    "text", [NESTED, EMOJI.encode(), OBJECTS, NUMBERS], ids=["lists", "an emoji", "objects", "numbers"]
)
def test_what_is_held_is_charged_as_what_it_takes_in_memory(text):
    """Compared with what CPython says of each object; the bodies are too small for anybody to suspect them."""
    handler = Waiting()

    async def put(app):
        futures, admission = [], app.model.admission
        for _ in range(10):
            exchange = opened(app)
            exchange.write(text)
            futures.append(exchange.complete())
        held, taken = admission.bodies.held, sum(size_of(future.items) for future in futures)
        admission.bodies.budget = held
        late = opened(app)
        with pytest.raises(RequestError):
            late.write(text)
        late.cancel("refused")
        handler.may_run.set()
        for future in futures:
            await future
        return held, taken, admission.bodies.held

    held, taken, left = on_loop(put, handler, executor="thread", max_queue_size=100_000)
    assert taken <= held <= 12 * taken
    assert left == 0


def size_of(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    keys = sum(map(sys.getsizeof, value)) if isinstance(value, dict) else 0
    shared = value is None or (type(value) is int and -5 <= value <= 256)
    return keys + (0 if shared else sys.getsizeof(value)) + sum(map(size_of, inside))


class Declared(TensorHandler):
    inputs = Tensor("float32", (3,))

    def run_inference(self, batch):
        return batch[:, 0]


@pytest.mark.parametrize("handler", [Echo, Declared])
@pytest.mark.parametrize(
    "text",
    [
        b"[" * 600 + b"]" * 600,
        b"0," * 1000 + b"0",
        b'{"a":{"b":{"c":0}}},' * 60 + b"0",
        b'"a",' * 500 + b'"a"',
        b'"a",' * 70_000 + b'"a"',
    ],
    ids=["nested", "side by side", "objects", "strings", "very many strings"],
)
def test_more_values_than_the_limit_are_a_413_that_names_it_and_are_not_parsed(handler, text, monkeypatch):
    parsed = []
    real = orjson.loads
    monkeypatch.setattr(orjson, "loads", lambda body: parsed.append(body) or real(body))

    async def put(app):
        answer = await ask_direct(app, b'{"data":[%b]}' % text)
        return answer.status, answer.body, app.model.admission.bodies.held

    status, answer, held = on_loop(put, handler(), limits=Limits(values=500), max_queue_size=100_000)
    assert (status, held) == (413, 0)
    assert b"more than 500 values in one body of JSON (limits.values)" in answer
    assert not parsed


def test_what_stands_in_texts_is_no_value():
    async def put(app):
        words = b'"%b"' % (b"One, two: [three] {four}, " * 400)
        text = b'{"data":[%b, {"\xc3\xa9": %b}]}' % (words, words)
        statuses = [(await ask_direct(app, text)).status]
        app.model.admission.bodies.budget = 4 * len(text)
        statuses.append((await ask_direct(app, text)).status)
        return statuses

    assert on_loop(put, limits=Limits(values=20)) == [200, 200]


def test_a_limit_of_values_holds_for_the_smallest_bodies():
    async def put(app):
        return [(await ask_direct(app, b'{"data":[%b]}' % text)).status for text in (b"[1]", b"[[[],[]]]")]

    assert on_loop(put, limits=Limits(values=7)) == [200, 413]


def test_documents_are_charged_before_they_are_decoded_and_may_be_more_than_the_queue_holds():
    doc = encode_npy([np.float32(1)])

    async def put(app):
        many = await ask_direct(app, doc * 50, headers=[(b"content-type", b"application/x-npy")])
        app.model.admission.bodies.budget = 20 * len(doc)
        dear = await ask_direct(app, doc * 19, headers=[(b"content-type", b"application/x-npy")])
        return many.status, dear.status, app.model.admission.bodies.held

    assert on_loop(put, Counts(), max_queue_size=40, max_batch_size=8) == (200, 503, 0)


def test_each_of_many_documents_is_charged_once():
    doc = encode_npy([np.float32(1)])
    headers = [(b"content-type", b"application/x-npy")]

    async def put(app):
        statuses = []
        for count in (2000, 2100):
            app.model.admission.bodies.budget = 2000 * (len(doc) + ARRAY_BYTES)
            statuses.append((await ask_direct(app, doc * count, headers=headers)).status)
        return statuses, app.model.admission.bodies.held

    assert on_loop(put, Counts(), max_queue_size=10_000) == ([200, 503], 0)


class Counts(Echo):
    """Answers with little, so that the arrays alone count."""

    def process_response(self, item):
        return 0


def test_a_body_that_waits_for_the_start_is_charged_when_it_is_parsed():
    async def main():
        app = http_server("echo", Echo(), max_queue_size=100_000)
        early = app.open(Head("POST", "/", [], None, None), time.perf_counter_ns())  # the first request starts it
        early.write(NESTED)
        future = early.complete()
        app.model.admission.bodies.budget = 2 * len(NESTED)
        response = await asyncio.wait_for(future, 10)
        await app.shutdown()
        return response.status, response.buffers[0][:60], app.model.admission.bodies.held

    status, error, held = asyncio.run(main())
    assert (status, held) == (503, 0)
    assert b"no room" in error


class Held(Echo):
    """Runs a batch until it is let go."""

    def __init__(self):
        self.go = threading.Event()

    def run_inference(self, model_input):
        self.go.wait(10)
        return model_input


def test_who_sends_no_more_has_left_while_its_items_wait_behind_a_batch_and_not_else():
    handler = Held()

    async def put(app):
        def ask(body):
            exchange = opened(app)
            exchange.write(body)
            return exchange, exchange.complete()

        first, answer = ask(b'{"data":[1]}')
        idle = first.leaves()
        while not app.model.batcher.running_since:
            await asyncio.sleep(0)
        second, _ = ask(b'{"data":[2]}')
        half = opened(app)
        said = idle, first.leaves(), second.leaves(), half.leaves()
        second.cancel("the client left")
        half.cancel("the client left")
        waiting = app.model.batcher.waiting
        handler.go.set()
        await answer
        return said, second.leaves(), first.leaves(), waiting

    assert on_loop(put, handler, executor="thread") == ((False, False, True, False), False, False, 0)
