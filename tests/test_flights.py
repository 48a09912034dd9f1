"""Batches through the three threads of a device: the same answers as without one, whatever becomes of a batch.

The device is torch's CPU with copies that are done late; tests/test_gpu.py has what needs a GPU.
"""

import asyncio
import re
import threading
import time

import numpy as np
import orjson
import pytest
from kit import here, needs
from kit.asks import ask_direct
from kit.here import Doubles, Here, asked, body, items, rows
from kit.servers import eventually

from virtex import ItemError, Limits, Observer, Tensor, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.pipeline import Pipeline
from virtex.service.register import REGISTER
from virtex.service.seam import LEFT, Head

torch = needs.library("torch")


device = here.device


@pytest.mark.parametrize("warmup", [(), True])
@pytest.mark.parametrize("outputs", [None, Tensor("float32", (3,))])
def test_every_reply_has_its_own_rows_over_many_batches(device, outputs, warmup):
    class Declares(Doubles):
        pass

    Declares.outputs = outputs
    sent = [items(1 + seed % 5, seed) for seed in range(200)]
    answers = asked(Declares(), *(body(*one) for one in sent), max_batch_size=8, max_queue_size=2048, warmup=warmup)
    for one, answer in zip(sent, answers, strict=True):
        assert (rows(answer) == np.stack(one) * 2).all()


def test_memory_is_made_on_the_thread_of_the_model_before_it_is_ready(device, caplog):
    class Declares(Doubles):
        outputs = Tensor("float32", (3,))

    caplog.set_level("INFO")
    asked(Declares(), *(body(*items(2, seed)) for seed in range(30)), max_batch_size=4, max_queue_size=256)
    (made,) = device
    assert set(made.locked_on) == {"virtex flights"} and len(made.locked_on) == 64 + 3 + 2
    (ready,) = [record for record in caplog.records if "is ready" in record.getMessage()]
    assert "answer_bytes=128" in ready.getMessage() and "device_bytes=224" in ready.getMessage()


def test_answers_count_against_the_limit_of_memory(device):
    class Large(Doubles):
        outputs = Tensor("float32", (1 << 20,))

    with pytest.raises(MemoryError, match=r"answers take 33554432 bytes; limits.max_bytes leaves \d+"):
        asked(Large(), max_batch_size=4, limits=Limits(max_bytes=24 << 20, body=1 << 20))


def test_what_grows_later_is_counted_too(device):
    app = http_server("flights", Doubles(), executor="thread", max_batch_size=4)

    async def main():
        await app.startup()
        before = app.model.admission.bodies.budget
        await asyncio.gather(*(ask_direct(app, body(*items(4, seed))) for seed in range(4)))
        after = app.model.admission.bodies.budget
        await app.shutdown()
        return before - after

    assert asyncio.run(main()) == 2 * 64


def test_the_threads_end_with_the_service(device):
    asked(Doubles(), body(*items(1)))
    for thread in threading.enumerate():
        if thread.name.startswith("virtex flights"):
            thread.join(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virtex flights")]


@pytest.mark.parametrize(
    "give",
    [
        lambda batch: batch * 2,
        lambda batch: (batch * 2).numpy(),
        lambda batch: list(batch * 2),
        lambda batch: list((batch * 2).numpy()),
        lambda batch: (batch * 2).t().contiguous().t(),
        lambda batch: batch * torch.nn.Parameter(torch.full((3,), 2.0)),
    ],
    ids=["tensor", "array", "tensors", "arrays", "strided", "gradient"],
)
def test_whatever_the_model_gives_comes_back(device, give):
    class Gives(Doubles):
        def run_inference(self, batch):
            return give(batch)

    sent = [items(2, seed) for seed in range(10)]
    for one, answer in zip(sent, asked(Gives(), *(body(*one) for one in sent), max_batch_size=4), strict=True):
        assert (rows(answer) == np.stack(one) * 2).all()


def test_names_of_several_dtypes_and_places_come_back(device):
    class Several(Doubles):
        inputs = {"x": Tensor("float32", (3,)), "n": Tensor("int64", ())}

        def run_inference(self, batch):
            x, n = batch["x"], batch["n"]
            return {"y": x * 2, "n": n.numpy() + 1, "half": x.bfloat16(), "b": n > 1}

    one = np.arange(3, dtype="float32")
    sent = orjson.dumps({"data": [{"x": encode_numpy(one + i), "n": encode_numpy(np.array(i))} for i in range(3)]})
    (answer,) = asked(Several(), sent)
    for i, item in enumerate(answer.json["data"]):
        assert (decode_numpy(item["y"]) == (one + i) * 2).all() and item["n"] == i + 1 and item["b"] is (i > 1)
        assert decode_numpy(item["half"]).dtype.name == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int64", "bool", "complex64", "float8_e4m3fn"])
def test_dtypes_survive_the_way_there_and_back(device, dtype):
    class Same(Doubles):
        inputs = Tensor(dtype, (8,))

        def run_inference(self, batch):
            assert batch.dtype == getattr(torch, dtype)
            return batch

    sent = (np.arange(8) % 2).astype(Same.inputs.dtype)
    (answer,) = asked(Same(), body(sent))
    (came,) = [decode_numpy(item) for item in answer.json["data"]]
    assert came.dtype == sent.dtype and came.tobytes() == sent.tobytes()


def test_a_model_may_give_the_same_memory_again(device):
    class Same(Doubles):
        def setup(self, worker):
            self.given = torch.zeros(4, 3)
            self.array = np.zeros((4, 3), np.float32)

        def run_inference(self, batch):
            torch.mul(batch, 2, out=self.given[: len(batch)])
            self.array[: len(batch)] = batch.numpy() * 3
            return {"y": self.given[: len(batch)], "z": self.array[: len(batch)]}

    sent = [items(2, seed) for seed in range(40)]
    for one, answer in zip(sent, asked(Same(), *(body(*one) for one in sent), max_batch_size=4), strict=True):
        assert answer.status == 200
        for item, row in zip(one, answer.json["data"], strict=True):
            assert (decode_numpy(row["y"]) == item * 2).all() and (decode_numpy(row["z"]) == item * 3).all()


def test_what_the_handler_keeps_is_its_own(device):
    class Keeps(Doubles):
        def setup(self, worker):
            self.kept = []

        def run_inference(self, batch):
            self.kept.append((batch[0], batch[0].tolist()))
            return batch * 2

    handler = Keeps()
    asked(handler, *(body(*items(2, seed)) for seed in range(20)), max_batch_size=4)
    assert len(handler.kept) > 3
    for tensor, was in handler.kept:
        assert tensor.tolist() == was


def test_process_response_runs_on_the_models_thread_and_sees_arrays(device):
    threads = set()

    class Sums(Doubles):
        def process_response(self, row):
            threads.add(threading.current_thread().name)
            assert isinstance(row, np.ndarray)
            return float(row.sum())

    sent = [items(2, seed) for seed in range(20)]
    for one, answer in zip(sent, asked(Sums(), *(body(*one) for one in sent), max_batch_size=4), strict=True):
        assert answer.json["data"] == pytest.approx([float(item.sum()) * 2 for item in one], rel=1e-6)
    assert threads == {"virtex flights"}


def test_rows_that_an_iterator_makes_are_drawn_before_the_next_run(device):
    class Draws(Doubles):
        def run_inference(self, batch):
            self.last = batch.numpy() * 2
            return (self.last[i] for i in range(len(batch)))

        def process_response(self, row):
            return row.tolist()

    sent = [items(2, seed) for seed in range(20)]
    for one, answer in zip(sent, asked(Draws(), *(body(*one) for one in sent), max_batch_size=4), strict=True):
        assert np.allclose(answer.json["data"], np.stack(one) * 2)


def test_one_bad_item_costs_only_its_own_request(device):
    class Picky(Doubles):
        def run_inference(self, batch):
            if (batch < 0).any():
                raise ValueError("no negative ones")
            return batch * 2

    sent = [items(1, seed) for seed in range(12)]
    sent[5] = [np.full(3, -1, np.float32)]
    answers = asked(Picky(), *(body(*one) for one in sent), max_batch_size=4)
    assert [answer.status for answer in answers] == [200] * 5 + [500] + [200] * 6
    for one, answer in zip(sent[6:], answers[6:], strict=True):
        assert (rows(answer) == one[0] * 2).all()


def test_an_item_error_in_place_of_a_row_is_its_requests_answer(device):
    class Refuses(Doubles):
        def run_inference(self, batch):
            return [ItemError("negative") if row.min() < 0 else row * 2 for row in batch]

    sent = [items(1, 1), [np.full(3, -1, np.float32)], items(1, 2)]
    first, second, third = asked(Refuses(), *(body(*one) for one in sent))
    assert (first.status, second.status, third.status) == (200, 422, 200)
    assert (rows(third) == sent[2][0] * 2).all()


@pytest.mark.parametrize("encodes", [False, True])
def test_a_wrong_number_of_rows_is_told_and_not_run_again(device, encodes):
    class Drops(Doubles):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            return batch[1:]

        if encodes:

            def process_response(self, row):
                return row.tolist()

    handler = Drops()
    answers = asked(handler, body(*items(2)), body(*items(1)), max_batch_size=3)
    assert {answer.status for answer in answers} == {500} and handler.calls == 1


@pytest.mark.parametrize("given", [lambda t: (t, t), lambda t: {"a": (t, t)}, lambda t: [(t[0], t[0])] * len(t)])
def test_tuples_of_tensors_are_refused_by_name(device, given, caplog):
    class Pairs(Doubles):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            return given(batch)

    handler = Pairs()
    (answer,) = asked(handler, body(*items(2)))
    assert answer.status == 500 and "a tuple, which may be several results" in answer.error and handler.calls == 1


def test_what_the_device_says_late_fails_its_own_batch(device):
    class Fails(Doubles):
        def run_inference(self, batch):
            if (batch == 7).any():
                device[-1].fails.append(RuntimeError("CUDA error: late"))
            return batch * 2

    sent = [items(1, 1), [np.full(3, 7, np.float32)], items(1, 2)]
    first, second, third = asked(Fails(), *(body(*one) for one in sent), max_batch_size=1)
    assert (first.status, second.status, third.status) == (200, 500, 200)
    assert "run_inference" in second.error


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_nobody_is_harmed(device, caplog):
    overflows = []

    class Large(Doubles):
        def run_inference(self, batch):
            if len(batch) > 3:
                overflows.append(len(batch))
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return batch * 2

    sent = [items(1, seed) for seed in range(40)]
    for one, answer in zip(sent, asked(Large(), *(body(*one) for one in sent), max_batch_size=8), strict=True):
        assert (rows(answer) == one[0] * 2).all()
    assert device[0].freed >= 1
    assert overflows.count(8) <= 2  # those that were out: no other is put there whole
    assert re.search("from now on at most [23] items at once", caplog.text)


def test_a_failed_batch_runs_again_from_its_rows_for_the_model_had_a_copy(device):
    class Spoils(Doubles):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            given = batch * 2
            batch.fill_(-1)
            if self.calls == 1:
                raise ValueError("the first call")
            return given

    app = http_server("flights", Spoils(), executor="thread")
    one = items(3)

    async def main():
        await app.startup()
        assert app.model.admission.most_kept == -1  # no body is kept for that
        answers = await asyncio.gather(*(ask_direct(app, body(item)) for item in one))
        await app.shutdown()
        return answers

    for item, answer in zip(one, asyncio.run(main()), strict=True):
        assert (rows(answer) == item * 2).all()


@pytest.mark.parametrize("late", [False, True])
def test_a_device_that_is_gone_fails_its_batches_at_once_and_makes_the_worker_unhealthy(
    device, late, monkeypatch, caplog
):
    monkeypatch.setattr(REGISTER, "gone", "")
    calls, loads, load = [], [], Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda self, batch: (loads.append(len(batch)), load(self, batch))[1])

    class Asserts(Doubles):
        def run_inference(self, batch):
            calls.append(len(batch))
            if (batch == 7).any():
                device[0].gone = RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
                if not late:
                    raise device[0].gone
            return batch * 2

    app = http_server("flights", Asserts(), executor="thread", max_batch_size=4)

    async def main():
        await app.startup()
        before = await ask_direct(app, body(*items(1)))
        live = await ask_direct(app, method="GET", path="/health/live")
        during = await asyncio.gather(*(ask_direct(app, body(np.full(3, 7, np.float32))) for _ in range(4)))
        dead = await ask_direct(app, method="GET", path="/health/live")
        after = await ask_direct(app, body(*items(1)))
        await app.shutdown()
        return before, live, during, dead, after

    before, live, during, dead, after = asyncio.run(main())
    assert before.status == live.status == 200
    assert [answer.status for answer in during] == [500] * 4 and after.status == 500
    assert sum(calls) <= 6 and sum(loads) <= 6  # nothing was tried again
    assert len([line for line in caplog.messages if "is unhealthy" in line]) == 1
    assert dead.status == 503 and "its device is gone: RuntimeError: CUDA error: device-side assert" in dead.error
    assert "Compile with" not in dead.error and REGISTER.gone.startswith("service 'flights': its device is gone")


def test_a_request_in_two_batches_gets_its_rows_in_order_though_the_second_is_done_first(device):
    app = None

    class Overtakes(Doubles):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            given = (batch * 2).numpy().copy()
            until = time.monotonic() + 30
            while not app.model._thread._jobs.qsize():  # behind this are: the second run; then the end of the first one
                assert time.monotonic() < until
                time.sleep(0.001)
            if self.calls == 1:
                return batch * 2
            return (row for row in given)  # which are drawn at once

        def process_response(self, row):
            return row.tolist()

    app = http_server("flights", Overtakes(), executor="thread", max_batch_size=2)

    async def main():
        await app.startup()
        answer = await ask_direct(app, body(*items(4)))
        await app.shutdown()
        return answer

    assert np.allclose(asyncio.run(main()).json["data"], np.stack(items(4)) * 2)


def test_a_run_that_is_told_who_asks_is_told_so_in_parts_too(device):
    class Asks(Doubles):
        def run_inference(self, batch, requests):
            assert len(requests) == len(batch)
            if len(batch) > 1:
                raise ValueError("one at a time")
            return batch * 2

    sent = [items(1, seed) for seed in range(8)]
    for one, answer in zip(sent, asked(Asks(), *(body(*one) for one in sent), max_batch_size=4), strict=True):
        assert (rows(answer) == one[0] * 2).all()


def test_who_asks_is_told_of_a_whole_batch_and_of_its_rows(device):
    class Asks(Doubles):
        calls = 0

        def run_inference(self, batch, requests):
            self.calls += 1
            assert [request.id for request in requests] == ["a", "a", "b"]
            return batch * 2

        def process_response(self, row, request):
            return [request.id, float(row.sum())]

    handler = Asks()
    app = http_server("flights", handler, executor="thread", max_batch_size=3)

    async def main():
        await app.startup()
        heads = [[(b"x-request-id", name)] for name in (b"a", b"b")]
        sent = [body(*items(2)), body(*items(1))]
        answers = await asyncio.gather(
            *(ask_direct(app, one, headers=head) for one, head in zip(sent, heads, strict=True))
        )
        await app.shutdown()
        return answers

    first, second = asyncio.run(main())
    assert [item[0] for item in first.json["data"]] == ["a", "a"] and second.json["data"][0][0] == "b"
    assert handler.calls == 1


@pytest.mark.parametrize("encodes", [False, True])
def test_how_long_each_batch_took_is_told_whatever_became_of_it(device, encodes):
    seen = []

    class Sees(Observer):
        def batch_done(self, batch):
            seen.append((batch.size, batch.ok, batch.retries, set(batch.seconds)))

    class Bounded(Doubles):
        def run_inference(self, batch):
            if (batch == 7).any():
                raise ValueError("never")
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return batch * 2

        if encodes:

            def process_response(self, row):
                return row.tolist()

    app = http_server("flights", Bounded(), executor="thread", max_batch_size=4, observer=Sees())

    async def main():
        await app.startup()
        for one in (items(2), items(4), items(4), [np.full(3, 7, np.float32)]):
            await ask_direct(app, body(*one))
        await app.shutdown()

    asyncio.run(main())
    steps = {"run_inference", "process_response"} if encodes else {"run_inference"}
    assert [(size, ok) for size, ok, _, _ in seen] == [(2, True), (4, True), (4, True), (1, False)]
    assert [took for *_, took in seen] == [steps] * 3 + [{"run_inference"}]
    assert seen[0][2] == 0 and seen[1][2] > 1  # its parts were repeated


def test_a_batch_goes_its_way_while_the_answers_ahead_are_still_on_theirs(device, monkeypatch):
    took: list[set[str]] = []
    runs, waiting, second, wait = [], threading.Event(), threading.Event(), Pipeline.wait

    def waits(self, berth):
        waiting.set()
        assert second.wait(30)  # the answers come when the next batch runs
        return wait(self, berth)

    class Runs(Doubles):
        def run_inference(self, batch):
            runs.append(len(batch))
            if len(runs) == 2:
                second.set()
            return batch * 2

        def process_response(self, row):
            return row.tolist()

    class Sees(Observer):
        def batch_done(self, batch):
            took.append(set(batch.seconds))

    monkeypatch.setattr(Pipeline, "wait", waits)
    app = http_server("flights", Runs(), executor="thread", max_batch_size=1, observer=Sees())

    async def main():
        await app.startup()
        first = asyncio.create_task(ask_direct(app, body(*items(1))))
        assert await asyncio.to_thread(waiting.wait, 30)
        answers = await asyncio.gather(first, ask_direct(app, body(*items(1))))
        await app.shutdown()
        return [answer.status for answer in answers]

    assert asyncio.run(main()) == [200, 200] and runs == [1, 1]
    assert took == [{"run_inference", "process_response"}] * 2  # each its own


def test_rows_that_can_not_be_copied_there_run_again(device, monkeypatch):
    fails, send = [ValueError("the copy")], Here.send

    def sends(self, array, rows):
        if fails:
            raise fails.pop()
        send(self, array, rows)

    class Counts(Doubles):
        sizes = []

        def run_inference(self, batch):
            self.sizes.append(len(batch))
            return batch * 2

    app = http_server("flights", Counts(), executor="thread")
    one = items(2)

    async def main():
        await app.startup()
        monkeypatch.setattr(Here, "send", sends)
        answers = await asyncio.gather(*(ask_direct(app, body(item)) for item in one))
        await app.shutdown()
        return answers

    for item, answer in zip(one, asyncio.run(main()), strict=True):
        assert (rows(answer) == item * 2).all()
    assert Counts.sizes == [1, 1]  # in parts, as of any failure


@pytest.mark.parametrize("where", ["run_inference", "process_response"])
def test_what_ends_a_thread_elsewhere_fails_a_batch_here_at_once(device, where):
    calls = []

    def exits(value):
        calls.append(float(value.max()))
        if calls[-1] >= 7:
            raise SystemExit(3)
        return value

    class Exits(Doubles):
        pass

    setattr(Exits, where, lambda self, given: exits(given).tolist() if given.ndim == 1 else exits(given))
    first, second = asked(Exits(), body(np.full(3, 7, np.float32)), body(*items(1)), max_batch_size=1)
    assert first.status == 500 and second.status == 200 and len(calls) == 2


@pytest.mark.parametrize("everybody", [False, True])
def test_requests_that_leave_before_the_rows_do_cost_nothing(device, everybody):
    seen = []
    entered, go, load = threading.Event(), threading.Event(), threading.Event()

    class Slow(Doubles):
        def run_inference(self, batch):
            seen.append(len(batch))
            entered.set()
            assert go.wait(30)
            return batch * 2

    app = http_server("flights", Slow(), executor="thread", max_batch_size=2)

    def asked_for(*rows):
        sent = body(*rows)
        exchange = app.open(Head("POST", "/", [], len(sent), None), time.perf_counter_ns())
        exchange.write(sent)
        return exchange.complete()

    async def main():
        await app.startup()
        first = asked_for(*items(2))
        await asyncio.to_thread(entered.wait, 30)
        app.model._gpu.executor._in.put(lambda: load.wait(30))
        stays, leaves = asked_for(*items(1, 1)), asked_for(*items(1, 2))
        await eventually(lambda: len(app.model._gpu.executor._out_there) == 2)
        leaves.cancel(LEFT)
        if everybody:
            stays.cancel(LEFT)
        load.set()
        go.set()
        assert (await first).status == 200
        await eventually(lambda: not app.model._gpu.executor._out_there)
        again = await ask_direct(app, body(*items(1, 3)))
        await app.shutdown()
        assert again.status == 200 and (everybody or (await stays).status == 200)

    asyncio.run(main())
    assert seen == ([2, 1] if everybody else [2, 1, 1])
