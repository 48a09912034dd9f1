"""TensorHandlers on a CUDA device: batches arrive there, scores come back, and no reply has another request's bytes."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from kit import needs
from kit.asks import ask_direct
from kit.gpu import (
    DEVICE,
    SHAPE,
    STANDS_IN,
    TYPE,
    Identity,
    between,
    body,
    images,
    mark,
    rows,
    served,
    spin,
    stand_in,
    torch,
)

from virtex import Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.pipeline import Pipeline

__all__ = ["stand_in"]  # a fixture of every test


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
