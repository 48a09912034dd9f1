"""What models give on a CUDA device, CUDA graphs, which GPU it is, and several workers on one."""

from __future__ import annotations

import asyncio
import os
import signal
from http.client import HTTPException

import numpy as np
import orjson
import pytest
from kit import needs
from kit.asks import ask_direct
from kit.gpu import COUNT, STANDS_IN, TYPE, Identity, body, images, real_only, rows, served, spin, stand_in, torch
from kit.servers import serving, until

from virtex import Tensor, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.graphs import NotCaptured
from virtex.handler import Worker

__all__ = ["stand_in"]  # a fixture of every test


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
    with pytest.raises(
        NotCaptured, match=r"a batch of 8 can't be captured: .*test_gpu_models.py:\d+: if batch.sum\(\).item"
    ):
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
        pid = came[-1][1][0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            status, data = ask(server, 5, 1, 2, 3)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert status == 200 and data[0]["twice"] == [10, 2, 4, 6] and data[0]["pid"] != pid


def test_a_device_that_an_assertion_failed_on_costs_its_batch_and_the_worker_is_replaced():
    source = SERVICE
    if STANDS_IN:  # the worker's part of it
        fails = 'from virtex.service.register import REGISTER; REGISTER.gone = "its device is gone"; raise ValueError'
        source = SERVICE.replace("torch.zeros(4, device=batch.device)[batch.long() + (1 << 30)].sum()", fails)
    with serving("gunicorn", source) as server:
        server.wait_log("is ready; workers=1", 1, 120)
        status, data = ask(server, 1, 2, 3, 4)
        assert status == 200 and data[0]["twice"] == [2, 4, 6, 8]
        assert ask(server, -1, 2, 3, 4)[0] == 500
        server.wait_log("its device is gone", 1, 60)
        server.wait_log("is ready; workers=1", 2, 120)
        until(lambda: answers(server), "an answer of the next worker", server)
