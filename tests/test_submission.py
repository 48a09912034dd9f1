"""submit(): what a program asks of its own service goes through the queue of everybody's."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from kit.asks import ask_direct
from kit.services import EXECUTORS, Echo, Gate, Hand, Life, Watching
from kit.tensors import AsyncIdentity, Identity, Tokens, vector

from virtex import ItemError, Limits, RequestHandler, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.errors import HandlerError, RequestError


def lived(app, main):
    """What main() gives, in one life of the app."""

    async def life():
        await app.startup()
        try:
            return await asyncio.wait_for(main(), 60)
        finally:
            await app.shutdown()

    return asyncio.run(life())


def submitted(app, items, **arguments):
    return lived(app, lambda: app.submit(items, **arguments))


@pytest.fixture(params=EXECUTORS)
def echo(request):
    return EXECUTORS[request.param]


@pytest.fixture(params=["inline", "thread", "async"])
def identity(request):
    handler = AsyncIdentity() if request.param == "async" else Identity()
    return http_server("identity", handler, executor="thread" if request.param == "thread" else "inline")


# ---- answers


@pytest.mark.parametrize(
    "items", [[], [1, "a", None, {"b": [2.5]}], [[[]]], list(range(700))], ids=["none", "some", "deep", "many"]
)
def test_it_gives_what_process_response_returned(echo, items):
    assert submitted(echo(max_batch_size=256), items) == items


def test_an_answer_is_nobody_elses_object(echo):
    class Fills(Echo):
        def __init__(self):
            self.answer = {"nested": []}

        def process_response(self, row):
            self.answer["nested"][:] = [row]
            return self.answer

    handler = Fills()
    assert submitted(http_server("fills", handler), [1, 2]) == [{"nested": [1]}, {"nested": [2]}]


def test_an_array_of_process_response_stays_one():
    class Arrays(Echo):
        def process_response(self, row):
            return np.full(2, row)

    one, two = submitted(http_server("arrays", Arrays()), [1, 2])
    assert one.tolist() == [1, 1] and two.tolist() == [2, 2]


def test_the_list_of_items_is_the_callers():
    class Empties(Echo):
        def process_request(self, data):
            kept = data[:]
            data.clear()
            return kept

    items = [1, 2]
    assert submitted(http_server("empties", Empties()), items) == items == [1, 2]


def test_a_batch_holds_items_of_programs_and_of_clients(echo):
    watching = Watching()
    app = echo(observer=watching)

    async def main():
        return await asyncio.gather(
            app.submit([1, 2]), ask_direct(app, b'{"data":[3]}'), app.submit(["no"]), return_exceptions=True
        )

    mine, theirs, refused = lived(app, main)
    assert mine == [1, 2]
    assert theirs.json["data"] == [3]
    assert (type(refused), refused.index, refused.reason) == (ItemError, 0, "expected anything but no")
    assert sorted(watching.requests) == [(200, 1), (200, 2), (422, 1)]
    assert watching.batches == [4]


# ---- rows


def test_declared_inputs_take_arrays_and_what_a_message_holds(identity):
    items = [vector(1, 2, 3), encode_numpy(vector(4, 5, 6)), [7, 8, 9], vector(1, 2, 3).astype(">f4")]
    rows = submitted(identity, items)
    assert [row.dtype for row in rows] == [np.dtype("f4")] * 4
    assert [row.tolist() for row in rows] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3]]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (np.ones(3), "item 1: expected float32 (3,), got float64 (3,)"),
        (np.ones(4, "f4"), "item 1: expected float32 (3,), got float32 (4,)"),
        ([1, 2], "item 1: expected"),
        (None, "item 1: expected base64"),
        (np.ma.masked_array(np.ones(3, "f4"), [0, 0, 1]), "item 1: expected an array without a mask"),
    ],
    ids=["dtype", "shape", "list", "none", "masked"],
)
def test_an_array_that_is_not_as_declared_is_refused(identity, item, says):
    with pytest.raises(ItemError) as caught:
        submitted(identity, [vector(), item])
    assert str(caught.value).startswith(says)
    assert caught.value.index == 1


def test_named_inputs_and_outputs_are_dicts():
    item = {"ids": np.array([1, 2]), "mask": [True, False]}
    (answer,) = submitted(http_server("tokens", Tokens()), [item])
    assert answer["sum"] == 1 and answer["ids"].tolist() == [1, 2]


def test_arrays_are_of_their_own_memory(identity):
    async def main():
        first = [(await identity.submit([vector(n, n, n)]))[0] for n in range(20)]
        both = await identity.submit([vector(7, 7, 7), vector(8, 8, 8)])
        return first, both

    first, both = lived(identity, main)
    assert [row.tolist() for row in first] == [[n] * 3 for n in range(20)]
    both[0][:] = 0
    assert both[1].tolist() == [8] * 3


def test_arrays_are_not_those_that_the_handler_fills_again():
    class Fills(Identity):
        kept = np.zeros((8, 3), "f4")

        def run_inference(self, batch):
            self.kept[: len(batch)] = batch
            return self.kept[: len(batch)]

    app = http_server("fills", Fills())

    async def main():
        return [(await app.submit([vector(n, n, n)]))[0] for n in range(3)]

    assert [row.tolist() for row in lived(app, main)] == [[n] * 3 for n in range(3)]


def test_a_handler_of_one_array_takes_arrays_too():
    class Sums(RequestHandler):
        def process_request(self, data: np.ndarray):
            return data

        def run_inference(self, batch):
            return batch.sum(axis=1)

        def process_response(self, row):
            return row

    app = http_server("sums", Sums())
    assert submitted(app, [np.ones(3), [1, 2, 3], np.arange(3)]) == [3.0, 6.0, 3.0]
    with pytest.raises(ItemError, match="item 1: expected"):
        submitted(http_server("sums", Sums()), [[1.0], [1.0, 2.0]])


# ---- who asked


def test_methods_are_told_that_it_was_submitted(echo):
    class Says(Echo):
        def process_response(self, row, request):
            return [
                request.method,
                request.path,
                request.query,
                dict(request.headers),
                request.parameters,
                request.id != "",
            ]

    app = http_server("says", Says())
    assert submitted(app, [1], parameters={"k": 1}) == [["SUBMIT", "", "", {}, {"k": 1}, True]]


def test_the_deadline_is_that_of_its_timeout():
    class Left(Echo):
        def process_response(self, row, request):
            return request.deadline

    app = http_server("left", Left())
    Hand(app)

    async def main():
        return [(await app.submit([1], timeout=timeout))[0] for timeout in (5, None, 10_000)]

    five, usual, most = lived(app, main)
    seconds = app.options.limits.answer_seconds
    assert usual - five == pytest.approx(seconds - 5)
    assert most == usual


# ---- faults


def test_a_handlers_fault_is_raised_with_its_cause(echo):
    with pytest.raises(HandlerError, match="item 1: process_response raised ZeroDivisionError") as caught:
        submitted(echo(), [1, "bug"])
    assert str(caught.value.__cause__) == "secret"


def test_who_shares_a_batch_that_failed_has_an_error_of_its_own():
    class Fails(Echo):
        def run_inference(self, batch):
            raise ValueError("secret")

    app = http_server("fails", Fails())

    async def main():
        return await asyncio.gather(app.submit([1]), app.submit([2]), return_exceptions=True)

    one, two = lived(app, main)
    assert type(one) is type(two) is HandlerError and one is not two
    assert str(one.__cause__) == "secret"


def test_an_answer_that_json_can_not_carry_is_the_handlers_fault():
    class Odd(Echo):
        def process_response(self, row):
            return object()

    with pytest.raises(HandlerError, match="process_response gave a object that can't be sent"):
        submitted(http_server("odd", Odd()), [1])


def test_more_items_than_the_queue_holds_are_taken_when_it_is_not_full(echo):
    assert submitted(echo(max_queue_size=4), list(range(50))) == list(range(50))


def test_a_full_queue_and_a_full_budget_are_503():
    async def main():
        gate = Gate()
        app = http_server(
            "gate", gate, max_batch_size=1, max_queue_size=2, limits=Limits(max_bytes=100_000, body=50_000)
        )
        await app.startup()
        running = asyncio.create_task(app.submit([1]))
        await gate.entered.wait()
        waiting = asyncio.create_task(app.submit([2, 3]))
        await asyncio.sleep(0)
        found = []
        for items in ([4], ["x" * 200_000]):
            try:
                await app.submit(items)
            except RequestError as error:
                found.append(error)
            if len(found) == 1:
                gate.go.set()
                assert (await running, await waiting) == ([1], [2, 3])
        assert app.budget.held == 0
        await app.shutdown()
        return found

    full, large = asyncio.run(main())
    assert (full.status, str(full)) == (503, "no room for 1 items: 2 of 2 wait (max_queue_size)")
    assert (large.status, large.dropped) == (503, "full")
    assert "limits.max_bytes" in str(large)


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(0.02, 60), (None, 0.02), (50, 0.02)], ids=["own", "limit", "shorter"]
)
def test_what_takes_too_long_is_504_and_the_queue_goes_on(timeout, seconds):
    async def main():
        gate = Gate()
        app = http_server("gate", gate, limits=Limits(answer_seconds=seconds))
        clock = Hand(app)
        await app.startup()
        asked = asyncio.ensure_future(app.submit([1], timeout=timeout))
        await gate.entered.wait()
        clock.add(0.021)
        with pytest.raises(RequestError, match=r"no answer within 0\.02 s") as caught:
            await asked
        gate.go.set()
        assert await app.submit([2], timeout=timeout and 20) == [2]
        await app.shutdown()
        return caught.value.status

    assert asyncio.run(main()) == 504


def test_cancelling_frees_the_places_in_the_queue():
    async def main():
        gate, watching = Gate(), Watching()
        app = http_server("gate", gate, max_batch_size=1, max_queue_size=2, observer=watching)
        await app.startup()
        running = asyncio.create_task(app.submit([1]))
        await gate.entered.wait()
        waiting = asyncio.create_task(app.submit([2, 3]))
        await asyncio.sleep(0)
        assert app.model.batcher.waiting == 2
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert app.model.batcher.waiting == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        late = asyncio.create_task(app.submit([4, 5]))
        gate.go.set()
        assert await late == [4, 5]
        assert app.model.admission.unsettled == 0 and app.budget.held == 0
        await app.shutdown()
        return gate.calls, watching.drops

    calls, drops = asyncio.run(main())
    assert calls == [[1], [4], [5]]
    assert drops == [("the client left", 2), ("the client left", 1)]


def test_a_timer_of_its_own_ends_with_it():
    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        assert await app.submit([1], timeout=20) == [1]
        loop = asyncio.get_running_loop()
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]
        await app.shutdown()
        return timers

    assert [timer for timer in asyncio.run(main()) if "expire" in repr(timer)] == []


# ---- when and where


def test_it_is_taken_as_long_as_clients_are():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread")
        with pytest.raises(RuntimeError, match=r"'life' has not started: await startup\(\)"):
            await app.submit([1])
        starting = asyncio.create_task(app.startup())
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="the service is starting") as early:
            await app.submit([1])
        handler.go.set()
        await starting
        app.drain()
        assert await app.submit([1]) == [1]
        await app.shutdown()
        with pytest.raises(RequestError, match="has shut down") as late:
            await app.submit([1])
        return early.value.status, late.value.status

    assert asyncio.run(main()) == (503, 503)


def test_it_waits_for_a_service_that_starts_with_a_request():
    async def main():
        handler = Life()
        handler.go.clear()
        app = http_server("life", handler, executor="thread")
        first = asyncio.create_task(ask_direct(app, b'{"data":[1]}'))
        await asyncio.sleep(0)
        mine = [asyncio.create_task(app.submit(items)) for items in ([2], [])]
        await asyncio.sleep(0)
        handler.go.set()
        answers = [(await first).json["data"], *await asyncio.gather(*mine)]
        await app.shutdown()
        return answers

    assert asyncio.run(main()) == [[1], [2], []]


def test_a_service_that_shuts_down_answers_what_was_submitted():
    async def main():
        gate = Gate()
        app = http_server("gate", gate)
        await app.startup()
        asked = asyncio.create_task(app.submit([1]))
        await gate.entered.wait()
        ending = asyncio.create_task(app.shutdown())
        await asyncio.sleep(0)
        assert not ending.done()
        gate.go.set()
        await ending
        return await asked

    assert asyncio.run(main()) == [1]


def test_another_loop_or_thread_is_told_where_to_ask():
    async def main():
        app = http_server("echo", Echo())
        await app.startup()
        loop, found = asyncio.get_running_loop(), []

        def elsewhere():
            try:
                asyncio.run(app.submit([1]))
            except RuntimeError as error:
                found.append(str(error))
            found.append(asyncio.run_coroutine_threadsafe(app.submit([2]), loop).result(10))

        await asyncio.to_thread(elsewhere)
        await app.shutdown()
        return found

    told, answer = asyncio.run(main())
    assert "'echo' runs on another event loop" in told and "run_coroutine_threadsafe" in told
    assert answer == [2]


def test_a_later_loop_is_another_life():
    app = http_server("echo", Echo())
    assert submitted(app, [1]) == [1]

    async def main():
        await app.submit([1])

    with pytest.raises(RuntimeError, match="has not started"):
        asyncio.run(main())
    assert submitted(app, [2]) == [2]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (((1, 2),), TypeError, "expected a list of items, got a tuple"),
        ((np.ones((2, 3)),), TypeError, "got a ndarray"),
        (("ab",), TypeError, "got a str"),
        (([1], {"parameters": [1]}), TypeError, r"submit\(parameters=\): expected a dict, or None, got a list"),
        (([1], {"timeout": 0}), ValueError, r"submit\(timeout=0\): expected seconds above 0, or None"),
        (([1], {"timeout": "1"}), ValueError, "timeout='1'"),
        (([1], {"timeout": float("nan")}), ValueError, "timeout=nan"),
        (([1], {"timeout": 10**400}), ValueError, "expected seconds above 0"),
        (([1], {"timeout": True}), ValueError, "timeout=True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_is_none_is_refused(arguments, error, says):
    items, named = (*arguments, {})[:2]
    with pytest.raises(error, match=says):
        submitted(http_server("echo", Echo()), items, **named)


def test_nothing_is_held_once_it_is_answered(echo):
    app = echo()

    async def main():
        gc.collect()
        for _ in range(50):
            await asyncio.gather(*(app.submit([n]) for n in range(8)))
        return app.budget.held, app.model.admission.unsettled, app.model.batcher.waiting

    assert lived(app, main) == (0, 0, 0)
    assert threading.active_count() < 20


def test_arrays_that_went_out_can_be_sent_back(identity):
    async def main():
        (row,) = await identity.submit([vector(1, 2, 3)])
        answer = await ask_direct(identity, b'{"data":["%b"]}' % encode_numpy(row).encode())
        return decode_numpy(answer.json["data"][0]).tolist()

    assert lived(identity, main) == [1, 2, 3]
