"""Batches on torch's CPU device; tests/test_gpu.py has what needs a GPU."""

import asyncio
import threading

import ml_dtypes
import numpy as np
import orjson
import pytest
from kit import needs
from kit.asks import ask_direct

from virtex import HttpMessage, Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.device import Device
from virtex.handler import Worker

torch = needs.library("torch")


def ask(handler, *arrays, executor="thread"):
    app = http_server("device", handler, executor=executor)

    async def main():
        await app.startup()
        answers = await asyncio.gather(
            *(ask_direct(app, orjson.dumps({"data": [encode_numpy(array)]})) for array in arrays)
        )
        await app.shutdown()
        return answers

    return asyncio.run(main())


NUMBERS = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
NAMED = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("as_dict", [False, True], ids=["one", "by name"])
@pytest.mark.parametrize("dtype", [*NUMBERS, *NAMED])
def test_the_answers_are_the_same_as_without_a_device(dtype, as_dict):
    tensor = Tensor(dtype, (2, 3))

    class Same(TensorHandler):
        inputs = {"x": tensor} if as_dict else tensor
        outputs = {"y": tensor} if as_dict else tensor

        def run_inference(self, batch):
            return {"y": batch["x"]} if as_dict else batch

    class There(Same):
        device = "cpu"

    bits = np.random.default_rng(0).integers(0, 2, (5, 6 * tensor.dtype.itemsize), np.uint8)
    arrays = list(bits.view(tensor.dtype).reshape(5, 2, 3))
    sent = [{"x": encode_numpy(array)} if as_dict else encode_numpy(array) for array in arrays]
    answers = []
    for kind in (Same, There):
        app = http_server("device", kind(), executor="thread")

        async def main(app=app):
            await app.startup()
            answer = await ask_direct(app, orjson.dumps({"data": sent}))
            await app.shutdown()
            return answer.status, answer.body

        answers.append(asyncio.run(main()))
    assert answers[0] == answers[1] and answers[0][0] == 200


@pytest.mark.parametrize("dtype", [">f4", "datetime64[s]", "S4", "U3", "int4"])
def test_a_dtype_that_torch_does_not_have_fails_the_start(dtype):
    class Wrong(TensorHandler):
        inputs = Tensor(dtype, (2,))
        device = "cpu"

        def run_inference(self, batch):
            return batch

    with pytest.raises(TypeError, match=r"an input of .* can't go to a device: torch has no tensors of it"):
        ask(Wrong())


@pytest.mark.parametrize("executor", ["inline", "thread"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_the_model_gets_tensors_and_their_rows_come_back(dtype, executor):
    class Looks(TensorHandler):
        inputs = Tensor(dtype, (3,))
        device = "cpu"

        def run_inference(self, batch):
            assert isinstance(batch, torch.Tensor) and str(batch.dtype) == f"torch.{dtype}"
            return batch

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = [np.array([i, 0, 1]).astype(kind) for i in range(5)]
    answers = ask(Looks(), *arrays, executor=executor)
    for array, answer in zip(arrays, answers, strict=True):
        back = decode_numpy(answer.json["data"][0])
        assert back.dtype == kind and back.tobytes() == array.tobytes()


def test_validate_gives_the_model_tensors_too():
    class Model(TensorHandler):
        inputs = Tensor("float32", (2,))
        device = "cpu"

        def run_inference(self, batch):
            return batch.unsqueeze(0).squeeze(0)  # which no array has

    (answer,) = Model().validate(HttpMessage(data=[[1, 2]]), strict=True).data
    assert answer == [1, 2]


def test_inputs_by_name_gradients_and_views_are_fine():
    class Model(TensorHandler):
        inputs = {"x": Tensor("float32", (2,))}
        device = "cpu"

        def run_inference(self, batch):
            weight = torch.nn.Parameter(torch.ones(2))
            return {"y": batch["x"] * weight, "turned": batch["x"].flip(1)}

    app = http_server("device", Model(), executor="thread")

    async def main():
        await app.startup()
        answer = await ask_direct(app, b'{"data":[{"x":[1, 2]}]}')
        await app.shutdown()
        return answer.json["data"][0]

    item = asyncio.run(main())
    assert item["y"] == [1, 2]
    assert item["turned"] == [2, 1]


def test_a_device_that_is_not_there_fails_the_start():
    class Nowhere(TensorHandler):
        inputs = Tensor("float32", (2,))
        device = "meta:7" if torch.cuda.is_available() else "cuda"

        def run_inference(self, batch):
            return batch

    with pytest.raises(RuntimeError, match=r"device=.*: torch .* can't use it: "):
        ask(Nowhere())


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("cuda", 4, [1]), ("cuda", 2, [1]), ("cuda", 1, [0]), ("cuda", 0, []), ("cuda:3", 4, []), ("cpu", 4, [])],
)
def test_the_workers_take_turns_at_the_gpus_unless_a_number_is_declared(name, count, expected, monkeypatch):
    taken, seen = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: taken.append((number, threading.current_thread())))

    class Looks(TensorHandler):
        inputs = Tensor("float32", (2,))
        device = name

        def setup(self, worker):
            seen.append([number for number, thread in taken if thread is threading.current_thread()])
            self.device = "cpu"  # which holds

        def run_inference(self, batch):
            return batch

    async def main():
        app = http_server("device", Looks(), executor="thread")
        await app.startup(Worker(index=5, count=8))
        answer = await ask_direct(app, b'{"data":[[1, 2]]}')
        await app.shutdown()
        return answer.json["data"]

    assert asyncio.run(main()) == [[1, 2]]
    assert seen == [expected]


def test_a_device_keeps_the_rows_of_its_kind():
    array = Device("cpu").allocate(Tensor("float32", (3,)), 4)
    assert array.shape == (4, 3) and array.ctypes.data % 64 == 0
