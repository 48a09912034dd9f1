"""A Cuda on torch's CPU: each copy is done when somebody waits for it, and no earlier; a model runs at once."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager

import numpy as np

from virtex.batch.device import Cuda, Device
from virtex.batch.rows import allocate


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
        self._stream = None

    def record(self, stream):
        self._stream = stream

    def synchronize(self):
        self._stream.do_all()
        if self._device.lost is not None:
            raise self._device.lost
        if self._stream is self._device.out and self._device.fails:
            raise self._device.fails.pop()


class Here(Cuda):
    """fails: what who waits for answers is told, one at a time. lost: what all that wait are told from then on.

    locked_on: the names of threads that made memory. freed: how often it was told to keep none for later.
    """

    def __init__(self, name="cpu"):
        Device.__init__(self, name)
        self.is_cuda = True
        self._present = threading.local()
        self.out = None  # the stream that was made last
        self.streams = []
        self.lost = None
        self.fails = []
        self.locked_on = []
        self.freed = 0

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
        if self.lost is not None:
            raise self.lost

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

    def free(self):
        self.freed += 1
