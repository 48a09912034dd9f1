"""A Cuda on torch's CPU, and services on it: each copy is done when somebody waits for it; a model runs at once."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager

import numpy as np
import orjson
import pytest

from virtex import Tensor, TensorHandler, http_server
from virtex._codec import decode_numpy, encode_numpy
from virtex.batch.device import Cuda, Device
from virtex.batch.rows import allocate
from virtex.service import model as models

from .asks import ask_direct, run


class HereStream:
    def __init__(self):
        self._work = deque()
        self._lock = threading.Lock()

    def ask(self, do):
        self._work.append(do)

    def wait_event(self, event):
        event.synchronize()

    def do_all(self):
        with self._lock:
            while self._work:
                self._work.popleft()()


class HereEvent:
    def __init__(self, device):
        self._device = device
        self._stream = self._fails = None

    def record(self, stream):
        self._stream = stream
        if stream is self._device.out and self._device.fails:
            self._fails = self._device.fails.pop()

    def synchronize(self):
        self._stream.do_all()
        if self._device.gone is not None:
            raise self._device.gone
        if self._fails is not None:
            fails, self._fails = self._fails, None
            raise fails


class Here(Cuda):
    """fails: what those are told who wait for the answers that are asked for next. gone: what all are told who wait.

    locked_on: the names of threads that made memory. freed: how often it was told to keep none for later.
    """

    def __init__(self, name="cpu"):
        Device.__init__(self, name)
        self.is_cuda = True
        self._present = threading.local()
        self.out = None  # the stream that was made last
        self.streams = []
        self.gone = None
        self.fails = []
        self.locked_on = []
        self.freed = self.replays = 0

    def stream(self):
        self.out = HereStream()
        self.streams.append(self.out)
        return self.out

    def event(self):
        return HereEvent(self)

    @contextmanager
    def on(self, stream):
        before, self._present.stream = getattr(self._present, "stream", None), stream
        try:
            with self._torch.inference_mode():
                yield
        finally:
            self._present.stream = before

    def current(self):
        return self._present.stream

    def synchronize(self):
        for stream in self.streams:
            stream.do_all()
        if self.gone is not None:
            raise self.gone

    def buffer(self, size):
        return np.zeros(max(size, 1), np.uint8)

    def allocate(self, tensor, rows):
        self.locked_on.append(threading.current_thread().name)
        return allocate(tensor, rows)

    def locked(self, size):
        self.locked_on.append(threading.current_thread().name)
        return np.zeros(size, np.uint8)

    def rows(self, memory, tensor, count):
        bytes_ = self._torch.from_numpy(memory)[: count * tensor.nbytes]
        return bytes_.view(getattr(self._torch, tensor.dtype.name)).view(count, *tensor.shape)

    def send(self, array, rows):
        self.current().ask(lambda: super(Here, self).send(array, rows))

    def form(self, value):
        return self._form(value) if self.is_tensor(value) else None

    def keep(self, value, memory, start):
        size = value.numel() * value.element_size()
        into = self._torch.from_numpy(memory)[start : start + size].view(value.dtype).view(value.shape)
        into.copy_(value.detach())

    def fetch(self, memory, locked, size):
        self.current().ask(lambda: np.copyto(locked[:size], memory[:size]))

    def capture(self, call):
        """Replays by calling again, over the same memory: of what is given, and of what call() reads."""
        given = call()

        def replay():
            self.replays += 1
            for into, value in zip(leaves(given), leaves(call()), strict=True):
                into.copy_(value)

        return replay, given

    def free(self):
        self.freed += 1


def leaves(given):
    if isinstance(given, (dict, list)):
        values = given.values() if isinstance(given, dict) else given
        return [leaf for value in values for leaf in leaves(value)]
    return [given]


@pytest.fixture
def device(monkeypatch):
    """What stands in for CUDA devices: a list of those that services have made."""
    made = []

    def device_for(name):
        if name is not None:
            made.append(Here())
        return made[-1] if name is not None else None

    monkeypatch.setattr(models, "device_for", device_for)
    return made


class Doubles(TensorHandler):
    inputs = Tensor("float32", (3,))
    device = "cuda"

    def run_inference(self, batch):
        return batch * 2


def asked(handler, *bodies, **kw):
    """The answers to requests that are all put at once."""
    app = http_server("flights", handler, executor="thread", **kw)
    return run(app, *(ask_direct(app, one) for one in bodies))


def body(*items):
    return orjson.dumps({"data": [encode_numpy(item) for item in items]})


def items(count, seed=0):
    return list(np.random.default_rng(seed).random((count, 3), np.float32))


def rows(answer):
    assert answer.status == 200, answer.body
    return np.stack([decode_numpy(item) for item in answer.json["data"]])
