"""A device without a GPU: streams whose work is done late, in any order that they and their events allow.

Everything asked of it is checked when it is asked, by vector clocks: two pieces of work that touch the same memory, one
of which writes, must be in order, whatever the device does first. And it is done, late, on real bytes.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from contextlib import contextmanager
from weakref import finalize

import numpy as np

HOST = "host"


class Race(AssertionError):
    """Memory is touched by work that nothing puts behind other work that touches it."""


class Memory:
    """Bytes, and who has read and written them last: a clock for each."""

    def __init__(self, size, name):
        self.bytes = np.zeros(size, np.uint8)
        self.name = name
        self.written = None
        self.read = []


class SimTensor:
    """An array on the device. Where the last one of its memory goes, the stream's allocator has that back."""

    def __init__(self, owner, array):
        self.owner = owner
        self.array = array


class Stream:
    def __init__(self, device, name):
        self.device = device
        self.name = name
        self.work = deque()
        self.clock = Counter()
        self.pool = []  # memory that is free for whoever allocates while this stream is the present one

    def wait_event(self, event):
        if (self.name, "waits") in self.device.deaf:
            return
        self.clock |= event.clock
        ticket = event.asked
        self.work.append(lambda: event.reached >= ticket)

    def ask(self, reads, writes, do):
        """Work that touches memory. do() is called when its turn has come."""
        self.clock |= self.device.clock  # what the host knows to be over is over
        self.clock[self.name] += 1
        touch(self.clock, reads, writes)
        self.work.append(lambda: (do(), True)[1])


class Event:
    def __init__(self, device):
        self.device = device
        self.clock = Counter()
        self.asked = self.reached = 0

    def record(self, stream):
        self.asked += 1
        ticket = self.asked
        self.clock = stream.clock.copy()

        def reach():
            self.reached = max(self.reached, ticket)
            return True

        stream.work.append(reach)

    def synchronize(self):
        if HOST in self.device.deaf:
            return
        ticket = self.asked
        while self.reached < ticket:
            assert self.device.step(), "nothing can go on"
        self.device.clock |= self.clock
        if self.device.fails:
            raise self.device.fails.pop()


def touch(clock, reads, writes):
    def is_behind(other):
        return other is None or all(clock[name] >= count for name, count in other.items())

    for memory in (*reads, *writes):
        if not is_behind(memory.written):
            raise Race(f"{memory.name} is touched while it is written")
    for memory in writes:
        if not all(map(is_behind, memory.read)):
            raise Race(f"{memory.name} is written while it is read")
        memory.written, memory.read = clock.copy(), []
    for memory in reads:
        memory.read.append(clock.copy())


class SimDevice:
    """deaf: which waits it ignores: ("in", "waits"), ("compute", "waits"), ("out", "waits"), HOST. fails: what the next
    host that waits is told. choose: which of so many streams goes on."""

    def __init__(self, deaf=(), choose=None):
        self.deaf = set(deaf)
        self.choose = choose or random.Random(0).randrange
        self.clock = Counter()  # what the host knows to be over
        self.streams = []
        self.present = self.default = self.stream("default")
        self.names = iter(["in", "compute", "out", "side"])
        self.fails = []
        self.memories = {}  # by the array that is the bytes of it
        self.freed = 0

    # ---- as of virtex.batch.device.Cuda

    def stream(self, name=None):
        self.streams.append(Stream(self, name or next(self.names)))
        return self.streams[-1]

    def event(self):
        return Event(self)

    @contextmanager
    def on(self, stream):
        before, self.present = self.present, stream
        try:
            yield
        finally:
            self.present = before

    def current(self):
        return self.present

    def synchronize(self):
        if HOST in self.deaf:
            return
        while self.step():
            pass
        for stream in self.streams:
            self.clock |= stream.clock

    def buffer(self, size):
        return self.allocate(size, "memory on the device")

    def locked(self, size):
        array = np.zeros(size, np.uint8)
        self.host_rows(array, "answers")
        return array

    def rows(self, memory, tensor, count):
        array = memory.bytes[: count * tensor.nbytes].view(tensor.dtype).reshape(count, *tensor.shape)
        return SimTensor(memory, array)

    def send(self, array, rows):
        here = self.memory_of(array)
        self.present.ask([here], [rows.owner], lambda: np.copyto(rows.array, array))

    def is_tensor(self, value):
        return isinstance(value, SimTensor)

    def form(self, value):
        return (value.array.dtype, value.array.shape) if isinstance(value, SimTensor) else None

    def keep(self, value, memory, start):
        array, size = value.array, value.array.nbytes

        def do():
            memory.bytes[start : start + size] = np.ascontiguousarray(array).view(np.uint8).ravel()

        self.present.ask([value.owner], [memory], do)

    def fetch(self, memory, locked, size):
        self.present.ask([memory], [self.memory_of(locked)], lambda: np.copyto(locked[:size], memory.bytes[:size]))

    def free(self):
        self.freed += 1

    # ---- what tests do with it

    def allocate(self, size, name="an output"):
        """Memory of the present stream, as torch's allocator gives it: what is free may still be in use there."""
        pool = self.present.pool
        fitting = [i for i, memory in enumerate(pool) if len(memory.bytes) >= size]
        return pool.pop(fitting[self.choose(len(fitting))]) if fitting else Memory(max(size, 1), name)

    def output(self, size):
        """A tensor of float32 whose memory goes back to the present stream's when nobody refers to it."""
        memory = self.allocate(4 * size)
        tensor = SimTensor(memory, memory.bytes[: 4 * size].view(np.float32))
        finalize(tensor, self.present.pool.append, memory)
        return tensor

    def host_rows(self, array, name="rows"):
        """Have an array of the host watched, without a reference to it."""
        memory = self.memories[id(array)] = Memory(0, name)
        finalize(array, self.memories.pop, id(array))
        return memory

    def memory_of(self, array):
        while id(array) not in self.memories:
            array = array.base
        return self.memories[id(array)]

    def host(self, reads=(), writes=()):
        """The host touches memory."""
        self.clock[HOST] += 1
        touch(self.clock, reads, writes)

    def step(self):
        """Do one piece of work that may be done now; whether there was any."""
        ready = [stream for stream in self.streams if stream.work]
        while ready:
            stream = ready.pop(self.choose(len(ready)))
            if stream.work[0]():
                stream.work.popleft()
                return True
        return False
