"""TensorHandlers on a CUDA device: batches arrive there, scores come back, and no reply has another request's bytes.

Where there is none, VIRTEX_GPU_TESTS=cpu runs all but a few over kit.here, which stands in for one: that tries the
code of this file.
"""

from __future__ import annotations

import asyncio
import os
import time
from http.client import HTTPException
from itertools import pairwise

import numpy as np
import orjson
import pytest
from kit import here, needs
from kit.asks import ask_direct
from kit.servers import serving, until

from virtex import Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.graphs import NotCaptured
from virtex.batch.pipeline import Pipeline
from virtex.handler import Worker
from virtex.service import model as models

torch = needs.library("torch")
STANDS_IN = os.environ.get("VIRTEX_GPU_TESTS") == "cpu"
if not STANDS_IN and not torch.cuda.is_available():
    pytest.skip(f"torch {torch.__version__} finds no CUDA device", allow_module_level=True)

DEVICE = "cuda"
TYPE = "cpu" if STANDS_IN else "cuda"  # where tensors really are
SHAPE = (3, 32, 32)
COUNT = torch.cuda.device_count()

real_only = pytest.mark.skipif(STANDS_IN, reason="needs a CUDA device: nothing stands in for what it does")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    if STANDS_IN:
        monkeypatch.setattr(models, "device_for", lambda name: None if name is None else here.Here())


def spin(milliseconds):
    """Work of the present stream, that long or a few times so."""
    if STANDS_IN:
        time.sleep(milliseconds / 1e3)
    else:
        torch.cuda._sleep(int(milliseconds * 1e6))


def mark():
    """A point in the work of the present stream, by its clock."""
    if STANDS_IN:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(one, other):
    """Milliseconds from one mark to the other; negative where that was ahead. Both are over."""
    return 1e3 * (other - one) if STANDS_IN else one.elapsed_time(other)


class Identity(TensorHandler):
    inputs = Tensor("float32", SHAPE)
    device = DEVICE

    def run_inference(self, batch):
        return batch


def body(*items):
    return orjson.dumps({"data": list(items)})


def served(handler, *bodies, **kw):
    """The answers to requests that are all put at once."""
    app = http_server("gpu", handler, executor="thread", **kw)

    async def main():
        await app.startup()
        try:
            return await asyncio.wait_for(asyncio.gather(*(ask_direct(app, one) for one in bodies)), 60)
        finally:
            await app.shutdown()

    return asyncio.run(main())


def rows(answer):
    assert answer.status == 200, answer.body
    return [decode_numpy(item) for item in answer.json["data"]]


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def test_the_batch_is_a_contiguous_tensor_on_the_device_and_the_rows_are_page_locked():
    seen = []

    class Looks(Identity):
        def run_inference(self, batch):
            seen.append((batch.device.type, batch.dtype, tuple(batch.shape), batch.is_contiguous()))
            return batch.sum((1, 2, 3))

    one, two = images(2)
    (answer,) = served(Looks(), body(encode_numpy(one), encode_numpy(two)))
    assert seen == [(TYPE, torch.float32, (2, *SHAPE), True)]
    assert answer.json["data"] == pytest.approx([one.sum(), two.sum()], rel=1e-4)


def test_every_reply_has_its_own_rows_over_many_batches():
    sent = [images(1 + seed % 5, seed) for seed in range(400)]
    answers = served(
        Identity(), *(body(*map(encode_numpy, one)) for one in sent), max_batch_size=16, max_queue_size=4096
    )
    for one, answer in zip(sent, answers, strict=True):
        assert (np.stack(rows(answer)) == one).all()


def test_a_batch_that_is_written_to_after_its_answer_changes_no_reply():
    class Lags(Identity):
        """Leaves work behind on its stream that overwrites what it gave, once that was copied."""

        def run_inference(self, batch):
            given = batch.clone()
            spin(5)
            batch.fill_(-1)
            return given

    sent = [images(2, seed) for seed in range(64)]
    answers = served(Lags(), *(body(*map(encode_numpy, one)) for one in sent), max_batch_size=8, max_queue_size=256)
    for one, answer in zip(sent, answers, strict=True):
        assert (np.stack(rows(answer)) == one).all()


def test_work_that_is_still_running_when_the_handler_returns_is_waited_for():
    class Slow(Identity):
        def run_inference(self, batch):
            spin(50)
            return batch * 2

    sent = [images(1, seed) for seed in range(8)]
    answers = served(Slow(), *(body(encode_numpy(one[0])) for one in sent), max_batch_size=2)
    for one, answer in zip(sent, answers, strict=True):
        assert (rows(answer)[0] == one[0] * 2).all()


def test_the_event_loop_goes_on_while_the_device_works():
    class Slow(Identity):
        def run_inference(self, batch):
            spin(500)
            return batch

    app = http_server("gpu", Slow(), executor="thread")
    ticks = []

    async def tick():
        while True:
            ticks.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.005)

    async def main():
        await app.startup()
        ticking = asyncio.create_task(tick())
        await ask_direct(app, body(encode_numpy(images(1)[0])))
        ticking.cancel()
        await app.shutdown()

    asyncio.run(main())
    assert len(ticks) > 10
    assert max(later - one for one, later in pairwise(ticks)) < 0.1


def test_named_inputs_and_outputs():
    class Adds(TensorHandler):
        inputs = {"a": Tensor("float32", (4,)), "b": Tensor("int64", (4,))}
        device = DEVICE

        def run_inference(self, batch):
            return {"sum": batch["a"] + batch["b"], "first": batch["b"][:, 0]}

    a, b = np.arange(4, dtype="float32"), np.arange(4)
    (answer,) = served(Adds(), body({"a": encode_numpy(a), "b": encode_numpy(b)}))
    (item,) = answer.json["data"]
    assert (decode_numpy(item["sum"]) == a + b).all() and item["first"] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int64", "bool"])
def test_dtypes_survive_the_way_there_and_back(dtype):
    if dtype == "bfloat16":
        needs.library("ml_dtypes")

    class Same(TensorHandler):
        inputs = Tensor(dtype, (8,))
        device = DEVICE

        def run_inference(self, batch):
            assert batch.dtype == getattr(torch, dtype)
            return batch

    sent = (np.arange(8) % 2).astype(Same.inputs.dtype)
    (answer,) = served(Same(), body(encode_numpy(sent)))
    (came,) = rows(answer)
    assert came.dtype == sent.dtype and (came == sent).all()


def test_what_the_device_refuses_is_a_500_and_the_next_batch_runs():
    class Fails(Identity):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            if self.calls == 1:
                return torch.zeros(3, device=TYPE) @ torch.zeros(4, device=TYPE)
            return batch

    one = images(1)[0]
    first, second = served(Fails(), body(encode_numpy(one)), body(encode_numpy(one)), max_batch_size=1)
    assert first.status == 500 and "run_inference" in first.error
    assert (rows(second)[0] == one).all()


def test_a_device_needs_a_thread():
    app = http_server("gpu", Identity())
    with pytest.raises(ValueError, match='needs executor="thread"'):
        asyncio.run(app.startup())


# ---- the pipeline


def test_what_is_kept_stays_its_own_under_load():
    class Keeps(Identity):
        def setup(self, worker):
            self.kept = []
            self.calls = 0

        def run_inference(self, batch):
            self.calls += 1
            if self.calls % 7 == 0:
                self.kept.append((batch, batch.clone()))
            return batch + 1

    handler = Keeps()
    sent = [images(1 + seed % 3, seed) for seed in range(300)]
    answers = served(handler, *(body(*map(encode_numpy, one)) for one in sent), max_batch_size=4, max_queue_size=2048)
    for one, answer in zip(sent, answers, strict=True):
        assert (np.stack(rows(answer)) == one + 1).all()
    assert len(handler.kept) > 10
    assert all(torch.equal(batch, was) for batch, was in handler.kept)


def test_rows_of_requests_that_leave_change_no_other_answer():
    class Slow(Identity):
        inputs = Tensor("float32", (4,))

        def run_inference(self, batch):
            spin(5)
            return batch * 2

    async def main():
        app = http_server("gpu", Slow(), executor="thread", max_batch_size=8, max_queue_size=512)
        await app.startup()
        sent = np.random.default_rng(0).random((200, 4), np.float32)
        tasks = [asyncio.create_task(app.submit([one])) for one in sent]
        await asyncio.sleep(0)
        for task in tasks[1::3]:
            task.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        await app.shutdown()
        return sent, answers

    sent, answers = asyncio.run(main())
    assert sum(isinstance(answer, asyncio.CancelledError) for answer in answers) > 30
    for one, answer in zip(sent, answers, strict=True):
        assert isinstance(answer, asyncio.CancelledError) or (answer[0] == one * 2).all()


def test_a_batch_is_copied_there_while_the_one_before_computes(monkeypatch):
    copied, ended = [], []
    send = Pipeline._sent

    def sending(self, slot, arrays):
        given = send(self, slot, arrays)
        copied.append(mark())
        return given

    monkeypatch.setattr(Pipeline, "_sent", sending)

    class Slow(Identity):
        def run_inference(self, batch):
            spin(40)
            ended.append(mark())
            return batch

    sent = [images(1, seed) for seed in range(24)]
    served(Slow(), *(body(encode_numpy(one[0])) for one in sent), max_batch_size=4, max_queue_size=64)
    ahead = [between(copy, end) > 0 for copy, end in zip(copied[1:], ended, strict=False)]
    assert len(ended) >= 6 and sum(ahead) >= len(ahead) - 2


def test_the_log_says_how_much_memory_was_made(caplog):
    class Declares(Identity):
        outputs = Tensor("float32", SHAPE)

    caplog.set_level("INFO")
    served(Declares(), max_batch_size=8)
    assert f"answer_bytes={2 * 8 * 4 * 3 * 32 * 32}" in caplog.text
    assert f"device_bytes={4 * 8 * 4 * 3 * 32 * 32}" in caplog.text


def test_a_batch_that_does_not_fit_into_memory_is_halved(caplog):
    class Large(Identity):
        def run_inference(self, batch):
            if len(batch) > 3:
                if STANDS_IN:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)
            return batch * 2

    sent = [images(1, seed) for seed in range(40)]
    answers = served(Large(), *(body(encode_numpy(one[0])) for one in sent), max_batch_size=8, max_queue_size=128)
    for one, answer in zip(sent, answers, strict=True):
        assert (rows(answer)[0] == one[0] * 2).all()
    assert "at most 2 items at once" in caplog.text


# ---- what a model gives


def other_stream(batch):
    if STANDS_IN:
        return batch * 2
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        spin(5)
        given = batch * 2
    torch.cuda.current_stream().wait_stream(stream)
    return given


def left_on_another_stream(batch):
    if not STANDS_IN:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.set_stream(stream)
        spin(5)
    return batch * 2


GIVE = {
    "on another stream": other_stream,
    "leaves another stream": left_on_another_stream,
    "in host memory": lambda batch: (batch * 2).cpu(),
    "an array": lambda batch: (batch * 2).cpu().numpy(),
    "a list of rows": lambda batch: list(batch * 2),
    "turned": lambda batch: (batch * 2).transpose(1, 3).contiguous().transpose(1, 3),
}


@pytest.mark.parametrize("give", GIVE)
def test_whatever_a_model_gives_comes_back(give):
    class Gives(Identity):
        def run_inference(self, batch):
            return GIVE[give](batch)

    sent = [images(2, seed) for seed in range(24)]
    answers = served(Gives(), *(body(*map(encode_numpy, one)) for one in sent), max_batch_size=4, max_queue_size=128)
    for one, answer in zip(sent, answers, strict=True):
        assert (np.stack(rows(answer)) == one * 2).all()


@pytest.mark.skipif(COUNT < 2, reason="needs two CUDA devices")
def test_what_a_model_gives_on_another_device_comes_back():
    class Moves(Identity):
        def run_inference(self, batch):
            return (batch * 2).to("cuda:1")

    sent = [images(2, seed) for seed in range(24)]
    answers = served(Moves(), *(body(*map(encode_numpy, one)) for one in sent), max_batch_size=4, max_queue_size=128)
    for one, answer in zip(sent, answers, strict=True):
        assert (np.stack(rows(answer)) == one * 2).all()


def test_outputs_by_name_have_their_own_dtypes():
    ml_dtypes = needs.library("ml_dtypes")

    class Named(Identity):
        inputs = Tensor("float32", (4,))

        def run_inference(self, batch):
            host = batch.long().cpu()
            return {"half": batch.to(torch.bfloat16), "sum": batch.sum(1), "host": host, "pid": [7] * len(batch)}

    one = np.arange(4, dtype=np.float32)
    (answer,) = served(Named(), body(encode_numpy(one)))
    (item,) = answer.json["data"]
    half = decode_numpy(item["half"])
    assert half.dtype == ml_dtypes.bfloat16 and (half.astype(np.float32) == one).all()
    assert item["sum"] == 6 and item["pid"] == 7 and (decode_numpy(item["host"]) == one).all()


def test_tuples_of_tensors_are_refused_by_name():
    class Gives(Identity):
        def run_inference(self, batch):
            return [(row, row) for row in batch]

    (answer,) = served(Gives(), body(encode_numpy(images(1)[0])))
    assert answer.status == 500 and "run_inference" in answer.error


# ---- graphs


class Scaled(Identity):
    inputs = Tensor("float32", (64,))
    graphs = (1, 4, 8)

    def setup(self, worker):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).to(TYPE)

    def run_inference(self, batch):
        return self.model(batch)


def vectors(count, seed):
    return np.random.default_rng(seed).random((count, 64), np.float32)


def test_graphs_answer_as_the_model_does_without():
    class Eager(Scaled):
        graphs = ()

    sent = [vectors(1 + seed % 5, seed) for seed in range(100)]
    bodies = [body(*map(encode_numpy, one)) for one in sent]
    both = [served(one(), *bodies, max_batch_size=8, max_queue_size=1024) for one in (Scaled, Eager)]
    for graphed, eager in zip(*both, strict=True):
        assert np.allclose(np.stack(rows(graphed)), np.stack(rows(eager)), rtol=1e-3, atol=1e-4)


def test_a_model_that_gives_its_input_keeps_its_answers_apart_by_graphs():
    class Same(Scaled):
        def run_inference(self, batch):
            return batch

    sent = [vectors(1 + seed % 5, seed) for seed in range(200)]
    answers = served(Same(), *(body(*map(encode_numpy, one)) for one in sent), max_batch_size=8, max_queue_size=2048)
    for one, answer in zip(sent, answers, strict=True):
        assert (np.stack(rows(answer)) == one).all()


class Waits(Scaled):
    def run_inference(self, batch):
        if batch.sum().item() > 1e9:  # a wait of the host
            return batch
        return batch * 2


@real_only
def test_what_can_not_be_captured_fails_the_start_and_names_the_line():
    with pytest.raises(NotCaptured, match=r"a batch of 8 can't be captured: .*test_gpu.py:\d+: if batch.sum\(\).item"):
        served(Waits(), max_batch_size=8)


@real_only
def test_it_runs_without_graphs_where_that_is_asked_for(caplog):
    class Falls(Waits):
        graphs_or_eager = True

    one = vectors(3, 0)
    (answer,) = served(Falls(), body(*map(encode_numpy, one)), max_batch_size=8)
    assert (np.stack(rows(answer)) == one * 2).all()
    assert "such batches run without" in caplog.text


# ---- which GPU, and workers


@pytest.mark.parametrize("index", [0, 1, 2, 7])
def test_the_workers_take_turns_at_the_gpus(index):
    class Looks(Identity):
        def setup(self, worker):
            self.weight = torch.full((1,), 2.0, device=TYPE)

        def run_inference(self, batch):
            self.seen = batch.device.index
            return batch * self.weight

    handler = Looks()
    app = http_server("gpu", handler, executor="thread")

    async def main():
        await app.startup(Worker(index=index, count=8))
        answer = await ask_direct(app, body(encode_numpy(images(1)[0])))
        await app.shutdown()
        return answer

    answer = asyncio.run(main())
    assert (rows(answer)[0] == images(1)[0] * 2).all()
    assert handler.seen == (None if STANDS_IN else index % COUNT)


def test_setup_may_say_which():
    class Chooses(Identity):
        device = None

        def setup(self, worker):
            self.device = TYPE if STANDS_IN else f"cuda:{COUNT - 1}"

        def run_inference(self, batch):
            self.seen = batch.device
            return batch

    handler = Chooses()
    (answer,) = served(handler, body(encode_numpy(images(1)[0])))
    assert (rows(answer)[0] == images(1)[0]).all()
    assert str(handler.seen) == handler.device


SERVICE = f"""
import os, torch
from virtex import Tensor, TensorHandler, http_server

class Says(TensorHandler):
    inputs = Tensor("float32", (4,))
    device = "{TYPE}"

    def run_inference(self, batch):
        if batch.min() < 0:
            self.fails(batch)
        return {{"twice": batch * 2, "pid": [os.getpid()] * len(batch)}}

    def fails(self, batch):
        torch.zeros(4, device=batch.device)[batch.long() + (1 << 30)].sum()  # an assertion on the device

app = http_server("says", Says, executor="thread", isolate_errors=False)
"""


def ask(server, *values):
    status, said = server.request("POST", "/", orjson.dumps({"data": [list(values)]}))
    return status, orjson.loads(said)["data"]


def answers(server):
    """Whether it does; the worker that leaves may break a connection."""
    try:
        return ask(server, 1, 2, 3, 4)[0] == 200
    except (OSError, HTTPException):
        return False


def test_several_workers_share_one_gpu():
    with serving("gunicorn", SERVICE, "-w", "3") as server:
        server.wait_log("is ready; workers=3", 3, 120)
        came = [ask(server, i, 1, 2, 3) for i in range(60)]
        assert all(status == 200 and data[0]["twice"] == [2 * i, 2, 4, 6] for i, (status, data) in enumerate(came))
        assert len({data[0]["pid"] for _, data in came}) >= 2


def test_a_device_that_an_assertion_failed_on_costs_its_batch_and_the_worker_is_replaced():
    source = SERVICE
    if STANDS_IN:  # the worker's part of it
        fails = 'from virtex.service.seam import REGISTER; REGISTER.lost = "its device is lost"; raise ValueError'
        source = SERVICE.replace("torch.zeros(4, device=batch.device)[batch.long() + (1 << 30)].sum()", fails)
    with serving("gunicorn", source) as server:
        server.wait_log("is ready; workers=1", 1, 120)
        status, data = ask(server, 1, 2, 3, 4)
        assert status == 200 and data[0]["twice"] == [2, 4, 6, 8]
        assert ask(server, -1, 2, 3, 4)[0] == 500
        server.wait_log("its device is lost", 1, 60)
        server.wait_log("is ready; workers=1", 2, 120)
        until(lambda: answers(server), "an answer of the next worker", server)
