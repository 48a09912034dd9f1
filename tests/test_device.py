"""Batches on torch's CPU device; tests/test_gpu.py has what needs a GPU."""

import asyncio
import mmap
import threading
from collections import Counter
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import orjson
import pytest
from kit import needs
from kit.asks import ask_direct

from virtex import HttpMessage, Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.device import Cuda, Device
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


# ---- what is asked of torch.cuda, over a model of it that says what torch 2.13 and its sources do


class Cards:
    """Which device is current on which thread, and on which of them that makes a context, as CUDA 12 does."""

    def __init__(self, monkeypatch):
        self.contexts = set()
        self.now = threading.local()
        self.streams = {}
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "current_device", self.current)
        monkeypatch.setattr(cuda, "_exchange_device", self.exchange)
        monkeypatch.setattr(cuda, "_maybe_exchange_device", lambda index: self.exchange(index, makes=False))
        monkeypatch.setattr(cuda, "current_stream", self.stream)
        monkeypatch.setattr(cuda, "set_stream", self.set_stream)

    def current(self):
        return getattr(self.now, "index", 0)

    def exchange(self, index, makes=True):
        before, self.now.index = self.current(), index
        if makes and before != index:
            self.contexts.add(index)
        return before

    def stream(self, device=None):
        index = self.current() if device is None else torch.device(device).index
        key = threading.get_ident(), index
        return self.streams.setdefault(key, SimpleNamespace(device=torch.device("cuda", index)))

    def set_stream(self, stream):
        if stream.device.index != self.current():
            self.exchange(stream.device.index)
        self.streams[threading.get_ident(), stream.device.index] = stream


def a_cuda(index=1):
    device = Cuda.__new__(Cuda)
    device._torch, device._device, device._pool = torch, torch.device("cuda", index), None
    return device


def test_work_for_a_device_makes_no_context_on_the_first_one(monkeypatch):
    cards, device = Cards(monkeypatch), a_cuda()
    stream, seen = SimpleNamespace(device=device._device), []

    def work():
        before = cards.stream("cuda:1")
        with device.on(stream):
            seen.append((cards.current(), device.current() is stream, torch.is_inference_mode_enabled()))
        seen.append((cards.current(), device.current() is before, torch.is_inference_mode_enabled()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert seen == [(1, True, True), (0, True, False)]
    assert cards.contexts == {1}


def test_a_capture_that_fails_leaves_no_pool_that_is_recorded_to(monkeypatch):
    recording, users = set(), Counter()

    class Graph:
        replay = "replay"

    class Capturing:
        """torch's graph: leaving it raises where the capture has failed, and leaves its pool as it is."""

        def __init__(self, graph, pool, stream, capture_error_mode):
            assert capture_error_mode == "thread_local"  # others use CUDA meanwhile
            self.pool = pool

        def __enter__(self):
            assert not recording  # or the cache could not be emptied
            users[self.pool] += 1
            recording.add(self.pool)

        def __exit__(self, kind, error, traceback):
            if isinstance(error, RuntimeError):
                raise RuntimeError("the capture was invalidated") from error
            self.end(1, self.pool)

        @staticmethod
        def end(index, pool):
            assert index == 1
            if pool not in recording:
                raise RuntimeError("not currently recording")
            recording.remove(pool)

    pools = iter(range(1, 10))
    for name, value in {"graph": Capturing, "CUDAGraph": Graph, "graph_pool_handle": lambda: next(pools)}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", Capturing.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: users.subtract([pool]), raising=False)
    device = a_cuda()

    def waits():
        raise RuntimeError("operation not permitted when stream is capturing")

    def raises():
        raise ValueError("the handler's own: the capture ends")

    assert device.capture(lambda: 1) == device.capture(lambda: 1) == ("replay", 1)
    assert users == {1: 2}  # they share one
    for fails in (waits, raises):
        with pytest.raises((RuntimeError, ValueError)):
            device.capture(fails)
        assert not recording
    assert device.capture(lambda: 2) == ("replay", 2)
    assert users == {1: 2, 2: 1, 3: 1}  # of an ended capture the graph gives it back


class Runtime:
    """CUDA's functions that torch passes on: they return an error, which the next launch on the thread has again."""

    def __init__(self, error=0):
        self.error = self.left = error
        self.locked = {}

    def cudaHostRegister(self, address, size, flags):
        assert flags == 1 and address % mmap.PAGESIZE == 0 and size > 0
        if not self.error:
            self.locked[address] = size
        return self.error

    def cudaHostUnregister(self, address):
        del self.locked[address]
        return 0

    def cudaGetErrorString(self, error):
        return {2: "out of memory"}[error]


def test_memory_is_page_locked_as_long_as_anybody_refers_to_it(monkeypatch):
    runtime = Runtime()
    Cards(monkeypatch)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    makes = {100: lambda: a_cuda().locked(100), 60: lambda: a_cuda().allocate(Tensor("float32", (3,)), 5)}
    for size, make in makes.items():
        array = make()
        assert runtime.locked == {array.ctypes.data: size}
        view = array[1:2].view("uint8")
        tensor = torch.from_numpy(view)
        del array, view
        assert runtime.locked
        del tensor
        assert not runtime.locked


def test_memory_that_can_not_be_page_locked_says_why_and_leaves_no_error_behind(monkeypatch):
    runtime = Runtime(2)

    def launch(size, device):
        left, runtime.left = runtime.left, 0
        if left:
            raise RuntimeError("CUDA error: out of memory")

    Cards(monkeypatch)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "ones", launch)
    with pytest.raises(MemoryError, match="100 bytes of host memory can't be page-locked: out of memory"):
        a_cuda().locked(100)
    assert not runtime.left and not runtime.locked
