"""Bodies that come compressed, and answers that go so: by both lanes, with a thread that works when told."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import wraps
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.asks import Echo, ask_asgi, ask_direct, run
from kit.cases import chunked, post
from kit.servers import eventually
from kit.services import Gate, Hand
from kit.wire import Wire

from virtex import Content, ItemError, Limits, RequestHandler, Tensor, TensorHandler, http_server
from virtex._codec import encode_npy
from virtex.errors import RequestError
from virtex.service import coder, codings
from virtex.service.codings import DEFLATE, GZIP, MEMBER, MOST_MEMBERS, Inflater, asked_for, coding_of
from virtex.service.seam import LEFT, Head
from virtex.wire.connections import Connections

MIB = 1 << 20
BOMB = gzip.compress(bytes(64 * MIB), 1)  # 200 to 1


def on_a_loop(test):
    """A test that is a coroutine function."""

    @wraps(test)
    def run_it(*args, **kw):
        asyncio.run(asyncio.wait_for(test(*args, **kw), 60))

    return run_it


def raw_deflate(data):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()


CODED = {  # what clients send: the name, and what it does to a body
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"X-GZIP", gzip.compress),
    "members": (b"gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(b"") + gzip.compress(data[5:])),
    "deflate": (b"deflate", zlib.compress),
    "raw deflate": (b"Deflate", raw_deflate),
}
BODY = b'{"data":["one",2,[3]]}'


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def coded(name, *more):
    return [(b"content-encoding", name), *more]


def inflated(coding, body, most=MIB, size=MIB):
    inflater = Inflater(coding, body, most)
    while not inflater.inflate(size):
        assert len(inflater.data) <= most + 1
    return bytes(inflater.data)


# --- bodies, by the byte ------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.binary(max_size=3000), st.sampled_from(list(CODED)), st.integers(1, 5000), st.integers(1, 300))
def test_a_body_becomes_what_it_was_in_steps_of_any_size(data, name, size, slice_size):
    _, code = CODED[name]
    kept, codings.SLICE = codings.SLICE, slice_size
    try:
        body = code(data)
        assert inflated(DEFLATE if "deflate" in name else GZIP, body, size=size) == data
    finally:
        codings.SLICE = kept


def test_what_zlib_keeps_when_it_has_all_of_the_body_comes_too():
    for length in range(60):
        assert inflated(DEFLATE, raw_deflate(b"abcde" * length), size=1) == b"abcde" * length


@given(st.binary(max_size=200), st.sampled_from(list(CODED)), st.data())
def test_what_is_broken_is_refused_or_is_what_zlib_says_it_is(data, name, more):
    body = bytearray(CODED[name][1](data))
    for _ in range(more.draw(st.integers(1, 3))):
        body[more.draw(st.integers(0, len(body) - 1))] = more.draw(st.integers(0, 255))
    coding = DEFLATE if "deflate" in name else GZIP
    try:
        found = inflated(coding, body)
    except RequestError as error:
        assert (error.status, coding in error.reason) == (400, True)
    else:
        oracle = gzip.decompress if coding == GZIP else zlib.decompress
        try:
            assert found == oracle(bytes(body))
        except zlib.error:
            assert found == zlib.decompress(bytes(body), -15)


@pytest.mark.parametrize("name", CODED)
def test_a_body_that_breaks_off_anywhere_is_refused(name):
    body = CODED[name][1](b"what it was, and some more of it")
    for length in range(len(body)):
        if name == "members" and length in whole_members(body):
            continue
        with pytest.raises(RequestError, match="breaks off|got none|1 bytes stand behind"):
            inflated(DEFLATE if "deflate" in name else GZIP, body[:length])


def whole_members(body):
    """Where a member ends, so that what is there is whole."""
    return {at for at in range(1, len(body)) if body[at : at + 3] == b"\x1f\x8b\x08"}


WRONG = {
    "a wrong checksum": (GZIP, gzip.compress(b"abc")[:-8] + b"\0\0\0\0" + gzip.compress(b"abc")[-4:], "data check"),
    "a wrong length": (GZIP, gzip.compress(b"abc")[:-4] + b"\4\0\0\0", "incorrect length check"),
    "a wrong checksum of zlib": (DEFLATE, zlib.compress(b"abc")[:-1] + b"\0", "incorrect data check"),
    "something behind it": (GZIP, gzip.compress(b"abc") + b"\0\0\0", "3 bytes stand behind its end"),
    "something behind zlib": (DEFLATE, zlib.compress(b"abc") * 2, "bytes stand behind its end"),
    "gzip behind deflate": (DEFLATE, raw_deflate(b"abc") + gzip.compress(b"abc"), "23 bytes stand behind its end"),
    "nothing": (GZIP, b"", "expected some bytes, got none"),
    "no gzip": (GZIP, b'{"data":[1]}', "incorrect header check"),
    "deflate in its place": (GZIP, zlib.compress(b"abc"), "incorrect header check"),
    "no deflate": (DEFLATE, b'{"data":[1]}', "invalid|breaks off"),
    "a dictionary": (DEFLATE, b"\x78\xbb\0\0\0\1abc", "it needs a dictionary"),
    "too many members": (GZIP, gzip.compress(b"") * (MOST_MEMBERS + 1), f"more than {MOST_MEMBERS} members"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_body_that_is_not_what_it_says_is_refused_by_a_400_that_says_why(case):
    coding, body, why = WRONG[case]
    with pytest.raises(
        RequestError, match=f"^expected a body in {coding}, as its Content-Encoding says: .*{why}"
    ) as error:
        inflated(coding, body)
    assert error.value.status == 400


def test_a_bomb_is_a_413_that_has_inflated_no_more_than_the_limit():
    inflater = Inflater(GZIP, BOMB, 100_000)
    with pytest.raises(RequestError, match="^a body of more than 100000 bytes once it is inflated") as error:
        inflater.inflate(1 << 40)
    assert (error.value.status, len(inflater.data)) == (413, 100_001)
    assert inflated(GZIP, gzip.compress(bytes(100_000)), 100_000) == bytes(100_000), "the limit itself is taken"


def test_members_that_hold_nothing_end_a_step_too():
    inflater = Inflater(GZIP, gzip.compress(b"") * 100, MIB)
    steps = 0
    while not inflater.inflate(10 * MEMBER):
        steps += 1
    assert steps == 9


# --- which coding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "coding"),
    [
        (b"", ""),
        (b"identity", ""),
        (b" GZip ", GZIP),
        (b"x-gzip", GZIP),
        (b"deflate, identity", DEFLATE),
        (b"gzip, gzip", None),
        (b"deflate, gzip", None),
        (b"br", None),
        (b"gzip;q=1", None),
        (b"g\xffip", None),
    ],
)
def test_one_coding_is_taken_and_any_other_is_a_415_that_says_which(sent, coding):
    if coding is None:
        with pytest.raises(RequestError, match="send gzip, deflate, or the body as it is") as error:
            coding_of(sent)
        assert (error.value.status, error.value.headers) == (415, ((b"accept-encoding", b"gzip, deflate"),))
    else:
        assert coding_of(sent) == coding


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"gzip", GZIP),
        (b"deflate", DEFLATE),
        (b"X-GZIP", GZIP),
        (b"gzip;q=0.5", GZIP),
        (b"gzip;q=1.0,deflate;q=0.6,identity;q=0.3", GZIP),
        (b"gzip;q=0.2, deflate;q=0.6, identity;q=0.1", DEFLATE),
        (b"deflate, gzip, identity;q=0", GZIP),
        (b"gzip, *;q=0", GZIP),
        (b"br, *;q=0.5, identity;q=0.1", GZIP),
        (b"br;q=0, gzip", GZIP),
        (b"", ""),
        (b"identity", ""),
        (b"*", ""),
        (b"br", ""),
        (b"*;q=0", ""),
        (b"gzip;q=0", ""),
        (b"gzip, identity", ""),
        (b"gzip;q=0.1, identity;q=0.5", ""),
        # what libraries and browsers send by themselves: requests and httpx, curl, Chromium
        (b"gzip, deflate", ""),
        (b"deflate, gzip, br, zstd", ""),
        (b"gzip, deflate, br, zstd", ""),
        (b"gzip," * 200, ""),
    ],
)
def test_a_coding_is_asked_for_by_naming_it_alone_or_by_liking_it_better_than_none(accept, coding):
    assert asked_for(accept) == coding


def test_headers_of_the_same_name_are_read_as_one(ask):
    app = http_server("echo", Echo())
    twice, cancelled = run(
        app,
        ask(app, gzip.compress(BODY), headers=coded(b"gzip") * 2),
        ask(app, gzip.compress(BODY), headers=[*coded(b"identity"), *coded(b"gzip")]),
    )
    assert (twice.status, cancelled.status) == (415, 200)


# --- every route, both lanes ---------------------------------------------------------------------------------


class Takes(RequestHandler):
    accepts = ("image/*", "text/*", "multipart/form-data")

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        return batch

    def process_response(self, item):
        return repr(item)


class Sums(TensorHandler):
    inputs = Tensor("float32", (3,))

    def run_inference(self, batch):
        return batch.sum(axis=1)


NUMBERS = '{"data":[[1,2,3],[4,5,6]]}'
FORM = b'--b\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nfile\r\n--b--\r\n'
ROUTES = {
    "json": (Echo, b"application/json", BODY),
    "npy": (Sums, b"application/x-npy", encode_npy([np.float32([1, 2, 3])])),
    "numbers": (Sums, b"application/json", NUMBERS.encode()),
    "a file": (Takes, b"image/png", b"\x89PNG"),
    "a text": (Takes, b"text/plain; charset=utf-16", "é".encode("utf-16")),
    "a form": (Takes, b"multipart/form-data; boundary=b", FORM),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_came_compressed_is_answered_as_the_same_one_that_did_not(route, ask):
    handler, kind, body = ROUTES[route]
    app = http_server("routes", handler(), cors=["*"])
    header = (b"content-type", kind)
    plain, *others = run(
        app,
        ask(app, body, headers=[header]),
        *(ask(app, code(body), headers=coded(name, header)) for name, code in CODED.values()),
    )
    assert plain.status == 200
    assert [other.body for other in others] == [plain.body] * len(CODED)
    assert app.budget.held == 0


def test_what_comes_while_the_service_starts_is_inflated_then(ask):
    app = http_server("starts", Echo())
    (answer,) = run(app, ask(app, gzip.compress(BODY), headers=coded(b"gzip")), serve=False)
    assert (answer.status, answer.json["data"]) == (200, ["one", 2, [3]])


@pytest.mark.parametrize(
    "body",
    [b"", BODY, gzip.compress(BODY)[:-1], gzip.compress(BODY) + b"x"],
    ids=["empty", "no gzip", "broken off", "one byte more"],
)
def test_a_broken_body_is_a_400_and_the_next_is_answered(body, ask):
    async def both(app):
        return await ask(app, body, headers=coded(b"gzip")), await ask(app, BODY)

    app = http_server("broken", Echo())
    ((broken, after),) = run(app, both(app))
    assert broken.status == 400 and "gzip" in broken.error
    assert (after.status, app.budget.held) == (200, 0)


def test_compressed_bodies_on_a_connection_are_answered_in_order():
    async def main():
        app = http_server("wire", Echo())
        await app.startup()
        wire = Wire(app, loop=asyncio.get_running_loop(), shared=Connections(app, loop=asyncio.get_running_loop()))
        squeezed = gzip.compress(BODY)
        pieces = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, squeezed[:9], len(squeezed) - 9, squeezed[9:])
        wire.send(
            post(squeezed, b"Content-Encoding: gzip")
            + chunked(pieces, b"Content-Encoding: gzip")
            + post(b"junk", b"Content-Encoding: deflate")
            + post(squeezed, b"Content-Encoding: br")
            + post(BODY)
        )
        await eventually(lambda: len(wire.statuses) == 5)
        wire.protocol.connection_lost(None)
        await app.shutdown()
        return wire, app.budget.held

    wire, held = asyncio.run(main())
    assert wire.statuses == [200, 200, 400, 415, 200] and held == 0
    assert [body for status, _, body in wire.replies() if status == 200] == [BODY[:-1] + b',"error":null}'] * 3


# --- on a thread --------------------------------------------------------------------------------------------


class Hands:
    """A thread that does one thing when told."""

    def __init__(self):
        self.jobs = []

    def submit(self, f, *args):
        self.jobs.append((Future(), f, args))
        return self.jobs[-1][0]

    async def step(self):
        """Do one thing, and let the loop hear of it."""
        future, f, args = self.jobs.pop(0)
        try:
            future.set_result(f(*args))
        except Exception as error:
            future.set_exception(error)
        await settle()

    def shutdown(self, wait):
        assert not self.jobs and not wait


async def settle():
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def by_hand(handler=None, **options):
    """A service and the hands that its coder has; at the end nothing is held."""
    app = http_server("by hand", handler or Echo(), **options)
    clock = Hand(app)
    await app.startup()
    hands = app.model.admission.coder._threads = Hands()
    hands.clock = clock
    yield app, hands
    await asyncio.wait_for(app.shutdown(), 60)
    assert (app.budget.held, app.model.admission.unsettled) == (0, 0)


def begin(app, body, *headers, peer=None):
    """A request whose body is all there; on a thread, or answered."""
    exchange = app.open(Head("POST", "/", list(headers), len(body), peer), app._clock())
    exchange.write(body)
    answer = exchange.complete()
    return exchange if answer is exchange else answer


GZIPPED = (b"content-encoding", b"gzip")
LARGE = b'{"data":["%b"]}' % (b"ab" * 3 * MIB)
SQUEEZED = gzip.compress(LARGE)


@on_a_loop
async def test_a_large_body_grows_by_pieces_that_are_charged_ahead_and_is_answered():
    async with by_hand() as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        held = []
        while hands.jobs:
            held.append(app.budget.held - len(SQUEEZED))
            await hands.step()
        # what was inflated at once, and a piece more each time
        assert held == [coder.QUICK + n * coder.PIECE for n in (1, 2)]
        assert app.budget.held < len(LARGE) + 1000, "what it is, without what came"
        response = await exchange
        assert response.size == len(LARGE) + len(',"error":null')


@on_a_loop
async def test_a_body_that_was_inflated_counts_as_one_that_came_so():
    async with by_hand(Gate()) as (app, _):
        held = []
        for body, headers in ((BODY, ()), (gzip.compress(BODY), (GZIPPED,))):
            exchange = begin(app, body, *headers)
            held.append(app.budget.held)
            exchange.cancel(LEFT)
        assert held == [len(BODY)] * 2


@on_a_loop
async def test_a_body_that_is_large_already_is_left_to_a_thread_whole():
    noise = Random(7).randbytes(MIB).hex().encode()
    async with by_hand() as (app, hands):
        body = gzip.compress(b'{"data":["%b"]}' % noise, 1)
        assert len(body) > coder.QUICK
        exchange = begin(app, body, GZIPPED)
        assert app.budget.held == len(body)
        await settle()
        assert len(hands.jobs) == 1 and app.budget.held == len(body) + coder.PIECE
        await hands.step()
        assert (await exchange).status == 200


@on_a_loop
async def test_a_bomb_on_a_thread_costs_the_limit_at_most():
    async with by_hand(limits=Limits(body=6 * MIB)) as (app, hands):
        exchange = begin(app, BOMB, GZIPPED)
        await settle()
        most = 0
        while hands.jobs:
            most = max(most, app.budget.held)
            await hands.step()
        assert most == len(BOMB) + 6 * MIB + 1
        assert (await exchange).status == 413 and app.budget.held == 0


@on_a_loop
async def test_bodies_that_wait_for_a_thread_count_as_no_more_than_what_came():
    """A few hundred bytes each counted as 4 MB: some thousand of them had everyone refused."""
    async with by_hand() as (app, hands):
        exchanges = [begin(app, SQUEEZED, GZIPPED) for _ in range(5)]
        await settle()
        at_once = coder.QUICK + len(SQUEEZED)
        assert len(hands.jobs) == coder.THREADS
        assert app.budget.held == 5 * at_once + coder.THREADS * coder.PIECE
        while hands.jobs:
            await hands.step()
        assert [(await each).status for each in exchanges] == [200] * 5


@on_a_loop
async def test_where_the_budget_has_no_room_a_body_is_a_503_that_gives_back_what_it_took():
    async with by_hand(limits=Limits(max_bytes=6 * MIB)) as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        await hands.step()
        assert not hands.jobs and (await exchange).status == 503
        assert app.budget.held == 0


@on_a_loop
async def test_a_body_that_turns_out_broken_on_a_thread_is_a_400():
    async with by_hand() as (app, hands):
        exchange = begin(app, SQUEEZED[:-3], GZIPPED)
        await settle()
        while hands.jobs:
            await hands.step()
        assert (await exchange).status == 400


@on_a_loop
async def test_what_fails_on_a_thread_is_a_500_and_nothing_is_lost(caplog):
    async with by_hand() as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        future, _, _ = hands.jobs.pop()
        future.set_exception(MemoryError())
        assert (await exchange).status == 500 and "MemoryError" in caplog.text


@pytest.mark.parametrize("gives_up", ["left", "deadline"])
@on_a_loop
async def test_who_gives_up_while_a_thread_is_at_the_body_frees_it_when_the_thread_lets_go(gives_up):
    async with by_hand(limits=Limits(answer_seconds=0.02 if gives_up == "deadline" else 60)) as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        held = app.budget.held
        if gives_up == "left":
            exchange.cancel(LEFT)
        else:
            hands.clock.add(0.021)
            assert (await exchange).status == 504
        assert app.budget.held == held > coder.PIECE and app.model.admission.unsettled == 0
        ending = asyncio.create_task(app.shutdown())
        await settle()
        assert not ending.done(), "the thread is waited for"
        await hands.step()
        assert app.budget.held == 0 and not hands.jobs
        await ending


@on_a_loop
async def test_what_a_thread_has_not_begun_when_its_client_leaves_costs_nothing():
    async with by_hand() as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        exchange.cancel(LEFT)
        _, _, args = hands.jobs[0]
        inflater = args[1]
        before = len(inflater.data)
        await hands.step()
        assert len(inflater.data) == before


@on_a_loop
async def test_a_service_that_drains_waits_for_a_body_on_a_thread_and_answers_it():
    async with by_hand() as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        ending = asyncio.create_task(app.shutdown())
        await settle()
        while hands.jobs:
            assert not ending.done()
            await hands.step()
        assert (await exchange).status == 200
        await ending


@on_a_loop
async def test_others_are_answered_while_a_body_waits_for_a_thread():
    async with by_hand() as (app, hands):
        exchange = begin(app, SQUEEZED, GZIPPED)
        await settle()
        assert (await ask_direct(app, BODY)).status == 200
        while hands.jobs:
            await hands.step()
        assert (await exchange).status == 200


@on_a_loop
async def test_by_asgi_a_client_that_leaves_frees_its_body():
    async with by_hand() as (app, hands):
        messages = [{"type": "http.request", "body": SQUEEZED}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [GZIPPED], "client": ("a", 1)}
        asked = asyncio.create_task(app(scope, receive, send))
        await settle()
        hands.clock.add(1)  # it is asked whether its client is there
        await asyncio.wait_for(asked, 60)
        while hands.jobs:
            await hands.step()


def test_threads_of_its_own_inflate_what_is_large():
    app = http_server("threads", Echo())
    asks = (ask_direct(app, body, headers=[GZIPPED]) for body in (SQUEEZED, SQUEEZED, BOMB * 2))
    answers = run(app, *asks)
    assert [answer.status for answer in answers] == [200, 200, 413]
    assert len(answers[0].body) > len(LARGE) and app.budget.held == 0


# --- answers ------------------------------------------------------------------------------------------------


class Sized(Echo):
    """Answers each item, a number, with so many characters; a negative one refuses."""

    def process_response(self, item):
        if item < 0:
            raise ItemError("expected more" * 1000)
        return "x" * item


class Typed(Echo):
    """A Content of the type that the item says."""

    def process_response(self, item):
        return Content(b"x" * 10_000, item)


def wants(coding):
    return (b"accept-encoding", coding)


def opened(answer):
    coding = answer.headers[b"content-encoding"]
    assert answer.headers[b"vary"] == b"Accept-Encoding"
    assert (
        answer.headers[b"content-length"] == b"%d" % len(answer.body) if b"content-length" in answer.headers else True
    )
    return {b"gzip": gzip.decompress, b"deflate": zlib.decompress}[coding](answer.body)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
@pytest.mark.parametrize("size", [5000, 100_000])
def test_a_large_answer_comes_in_the_coding_that_was_asked_for(coding, size, ask):
    app = http_server("sized", Sized())
    body = b'{"data":[%d]}' % size
    plain, small, squeezed = run(
        app,
        ask(app, body),
        ask(app, b'{"data":[100]}', headers=[wants(coding)]),
        ask(app, body, headers=[wants(coding)]),
    )
    assert b"content-encoding" not in plain.headers and b"content-encoding" not in small.headers
    assert squeezed.headers[b"content-encoding"] == coding
    assert opened(squeezed) == plain.body and len(squeezed.body) < size // 10
    assert squeezed.headers[b"content-type"] == b"application/json" and app.budget.held == 0


def test_body_and_answer_may_both_be_compressed(ask):
    app = http_server("sized", Sized())
    (answer,) = run(app, ask(app, gzip.compress(b'{"data":[5000]}'), headers=coded(b"gzip", wants(b"deflate"))))
    assert opened(answer) == b'{"data":["%b"],"error":null}' % (b"x" * 5000)


def test_what_libraries_ask_for_by_themselves_leaves_the_answer_as_it_is(ask):
    app = http_server("sized", Sized())
    answer, *_ = run(app, ask(app, b'{"data":[100000]}', headers=[wants(b"gzip, deflate, br")]))
    assert b"content-encoding" not in answer.headers and len(answer.body) > 100_000


def test_a_refusal_is_as_it_is(ask):
    app = http_server("sized", Sized())
    (answer,) = run(app, ask(app, b'{"data":[-1]}', headers=[wants(b"gzip")]))
    assert answer.status == 422 and answer.error.startswith("item 0: expected more")


@pytest.mark.parametrize(
    ("kind", "shrinks"),
    [
        ("text/csv; charset=utf-8", True),
        ("application/geo+json", True),
        ("image/svg+xml", True),
        ("image/png", False),
        ("application/zip", False),
        ("application/jsonp", False),
    ],
)
def test_a_content_that_is_compressed_already_is_as_it_is(kind, shrinks, ask):
    app = http_server("typed", Typed(), cors=["https://page"])
    headers = [wants(b"gzip"), (b"origin", b"https://page")]
    (answer,) = run(app, ask(app, b'{"data":["%b"]}' % kind.encode(), headers=headers))
    assert answer.headers[b"content-type"] == kind.encode() and answer.status == 200
    assert (opened(answer) if shrinks else answer.body) == b"x" * 10_000


def test_an_answer_that_would_be_longer_is_as_it_is(ask):
    noise = Random(1).randbytes(20_000)

    class Noise(Echo):
        def process_response(self, item):
            return Content(noise, "application/octet-stream")

    app = http_server("noise", Noise())
    (answer,) = run(app, ask(app, b'{"data":[1]}', headers=[wants(b"gzip")]))
    assert b"content-encoding" not in answer.headers and answer.body == noise


ASKS_GZIP = wants(b"gzip")
SIZE = 500_000


async def at_the_thread(app, hands, peer=None):
    exchange = begin(app, b'{"data":[%d]}' % SIZE, ASKS_GZIP, peer=peer)
    await eventually(lambda: hands.jobs)
    return exchange


@on_a_loop
async def test_an_answer_on_a_thread_is_held_until_it_is_sent():
    async with by_hand(Sized()) as (app, hands):
        exchange = await at_the_thread(app, hands)
        assert app.budget.held > 2 * SIZE
        await hands.step()
        assert app.budget.held < SIZE // 10
        response = await exchange
        assert gzip.decompress(b"".join(response.buffers)) == b'{"data":["%b"],"error":null}' % (b"x" * SIZE)


@on_a_loop
async def test_who_leaves_while_a_thread_is_at_the_answer_leaves_nothing_behind():
    async with by_hand(Sized()) as (app, hands):
        exchange = await at_the_thread(app, hands)
        exchange.cancel(LEFT)
        _, f, args = hands.jobs[0]
        assert f(*args) is args[1], "nothing is compressed for nobody"
        await hands.step()
        assert app.budget.held == 0


@on_a_loop
async def test_an_answer_whose_deadline_passes_while_it_waits_for_a_thread_goes_as_it_is():
    async with by_hand(Sized(), limits=Limits(answer_seconds=0.02)) as (app, hands):
        exchange = await at_the_thread(app, hands)
        hands.clock.add(0.021)
        await hands.step()
        assert (await exchange).size > SIZE


@on_a_loop
async def test_an_answer_for_which_there_is_no_room_twice_goes_as_it_is():
    async with by_hand(Sized(), limits=Limits(max_bytes=SIZE * 2)) as (app, hands):
        exchange = begin(app, b'{"data":[%d]}' % SIZE, ASKS_GZIP)
        assert (await exchange).size > SIZE and not hands.jobs


@on_a_loop
async def test_an_answer_that_a_thread_fails_to_compress_goes_as_it_is(caplog):
    async with by_hand(Sized()) as (app, hands):
        exchange = await at_the_thread(app, hands)
        hands.jobs.pop()[0].set_exception(MemoryError())
        assert (await exchange).size > SIZE and "MemoryError" in caplog.text


@on_a_loop
async def test_a_service_that_drains_waits_for_an_answer_on_a_thread():
    async with by_hand(Sized()) as (app, hands):
        exchange = await at_the_thread(app, hands)
        ending = asyncio.create_task(app.shutdown())
        await settle()
        assert not ending.done()
        await hands.step()
        assert (await exchange).status == 200
        await ending


@on_a_loop
async def test_on_a_connection_an_answer_from_a_thread_comes_in_its_turn():
    async with by_hand(Sized()) as (app, hands):
        wire = Wire(app, loop=app.loop, shared=Connections(app, clock=app._clock, loop=app.loop))
        wire.send(post(b'{"data":[%d]}' % SIZE, b"Accept-Encoding: gzip") + post(b'{"data":[3]}'))
        await eventually(lambda: hands.jobs)
        await settle()
        assert wire.statuses == []
        await hands.step()
        await eventually(lambda: len(wire.statuses) == 2)
        (_, headers, body), (_, _, after) = wire.replies()
        assert headers[b"content-encoding"] == b"gzip" and len(gzip.decompress(body)) > SIZE
        assert after == b'{"data":["xxx"],"error":null}'
        wire.protocol.connection_lost(None)
