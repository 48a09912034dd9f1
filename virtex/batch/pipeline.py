"""The order of copies and of work on a device: three stages, two batches deep, and no wait that another could use.

    copy in    [ k+1 ]                  from page-locked rows into a slot's memory on the device
                   \\ loaded
    compute   [  k  ] [ k+1 ]           run_inference, and a copy of what it gave, on the device: the next run may
                     \\ computed         write to the original
    copy out          [  k  ]           into page-locked memory, in one piece
                             \\ fetched  a thread sleeps until then

Rules: knows neither torch nor threads nor the ring: it is given a device, whose streams do what is asked of them in
order, some time, and whose events are points in that. load() asks for the first stage, run() for the others, wait()
ends them; each may run on a thread of its own, a slot is on one at a time.

What holds a stage back:
    loaded     compute waits for it, so that a model reads no row that is still on its way
    computed   copy out waits for it
    fetched    wait() does: only then are answers read, rows of the ring and the slot used again, and what the model
               gave let go of
    Where memory is new, copy in waits for compute: the allocator may give what a run used just before.
Nothing else does: a slot is free when all three stages of its batch are over, so no stage has to wait for one ahead of
it. There are two, for the batcher has two batches out: one computes, and one is prefetched or fetched.

When the second one is cut: once it is full, as for any executor with a thread of its own. A partial batch is not cut
early to spare the device a gap, for it is worth more what it grows by meanwhile: whoever keeps a device busy fills
batches, and where they do not fill, the device is idle anyway. Requests that leave are left out until load().

What a handler keeps is its own: memory on the device, or here, to which somebody else refers when it is to be used
again is replaced, as rows are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from ..tensor import Array, Inputs, Tensor
from .outputs import check_no_tuple, is_alone, on_host
from .rows import ALIGNED, tensors_of

DEPTH = 2
_FIXED = (int, float, complex, str, bytes, np.generic, BaseException, type(None))  # which nobody can write to

Form = tuple[np.dtype[Any], tuple[int, ...]]


class Streams(Protocol):
    """The device of a pipeline; device.Cuda says what each of these does."""

    def stream(self) -> Any: ...
    def event(self) -> Any: ...
    def on(self, stream: Any) -> Any: ...
    def current(self) -> Any: ...
    def synchronize(self) -> None: ...
    def buffer(self, size: int) -> Any: ...
    def locked(self, size: int) -> Array: ...
    def rows(self, memory: Any, tensor: Tensor, count: int) -> Any: ...
    def send(self, array: Array, rows: Any) -> None: ...
    def is_tensor(self, value: Any) -> bool: ...
    def form(self, value: Any) -> Form | None: ...
    def keep(self, value: Any, memory: Any, start: int) -> None: ...
    def fetch(self, memory: Any, locked: Array, size: int) -> None: ...
    def capture(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]: ...
    def fill(self, rows: Any, batch: Any) -> None: ...
    def free(self) -> None: ...


class Slot:
    """The place of one batch: its events, and memory that it may refill.

    rows: on the device, of each input. away, here: of what the model gave, on the device and page-locked; each a list,
    so that references to it can be counted. size: bytes of the last two. batch: what the model gets. given: what it
    gave, answers: the same as arrays in `here`, which are there from wait() on. is_foreign: of something in it no
    copy can be made, so wait() must come, and its answers be used, before run_inference is called again.
    """

    def __init__(self, device: Streams, inputs: int) -> None:
        self.loaded, self.computed, self.fetched = device.event(), device.event(), device.event()
        self.rows: list[Any] = [None] * inputs
        self.away: list[Any] = []
        self.here: list[Array] = []
        self.size = 0
        self.batch = self.given = self.answers = None
        self.is_foreign = False


class Pipeline:
    """Batches of up to `most` rows on their way through a device.

    outputs: what the model gives, where that is declared: then memory for it is made ahead.
    host_bytes, device_bytes: memory that it has made for them, without the rows of the ring. lost: what the device says
    since it works no more, as behind an assertion that failed there: that is no batch's alone, and does not pass.
    """

    copies = True  # the model gets no row of the ring

    def __init__(self, device: Streams, inputs: Inputs, most: int, outputs: Inputs | None = None) -> None:
        self.device = device
        self._names, self._inputs = tensors_of(inputs)
        self._most = most
        self._in, self._compute, self._out = device.stream(), device.stream(), device.stream()
        declared = [] if outputs is None else tensors_of(outputs)[1]
        self._size = _places([most * tensor.nbytes for tensor in declared])[-1]
        self._slots = [Slot(device, len(self._inputs)) for _ in range(DEPTH)]
        self._free = deque(self._slots)
        self.lost: Exception | None = None

    def prepare(self) -> None:
        """Make all memory that is known to be needed, behind whatever setup() has asked of the device."""
        for slot in self._slots:
            self._make_rows(slot)
            with self.device.on(self._compute):
                self._make_room(slot, self._size)
        self.device.synchronize()

    @property
    def host_bytes(self) -> int:
        return sum(slot.size for slot in self._slots)

    @property
    def device_bytes(self) -> int:
        return self.host_bytes + DEPTH * self._most * sum(tensor.nbytes for tensor in self._inputs)

    # ---- the stages

    def load(self, batch: Array | Mapping[str, Array]) -> Slot:
        """Ask for the copy of rows to the device. They stay as they are until wait(), or until this or run() raises."""
        slot = self._free.popleft()
        arrays = list(batch.values()) if isinstance(batch, Mapping) else [batch]
        try:
            self._make_rows(slot)
            with self.device.on(self._in):
                slot.batch = self._sent(slot, arrays)
                slot.loaded.record(self._in)
        except BaseException:
            self._break_off(slot)
            raise
        return slot

    def run(self, slot: Slot, infer: Callable[[Any], Any]) -> None:
        """Run the model, which may only ask for work, and ask for the copy of what it gives."""
        device, compute, out = self.device, self._compute, self._out
        try:
            with device.on(compute):
                compute.wait_event(slot.loaded)
                batch, slot.batch = slot.batch, None
                slot.given = given = infer(batch)
                left = device.current()
                if left != compute:  # the model has set another one, and what it gives is that one's work
                    slot.computed.record(left)
                    compute.wait_event(slot.computed)
                with device.on(compute):
                    size = self._keep(slot, given)
                    slot.computed.record(compute)
            with device.on(out):
                out.wait_event(slot.computed)
                if size:
                    device.fetch(slot.away[0], slot.here[0], size)
                slot.fetched.record(out)
        except BaseException:
            self._break_off(slot)
            raise

    def wait(self, slot: Slot) -> Any:
        """Sleep until the answers are here; the slot is free then. Raises what went wrong on the device meanwhile."""
        try:
            slot.fetched.synchronize()
        except BaseException:
            self._break_off(slot)
            raise
        answers = slot.answers
        self._let_go(slot)
        return answers

    def infer(self, batch: Any, infer: Callable[[Any], Any]) -> Any:
        """All three stages, here and now: of a warm-up, and of parts of a batch that failed."""
        slot = self.load(batch)
        self.run(slot, infer)
        return self.wait(slot)

    def free(self) -> None:
        """Have the device keep no memory for later: what runs next needs all of it."""
        self.device.free()

    # ---- what they do

    def _sent(self, slot: Slot, arrays: list[Array]) -> Any:
        tensors = []
        for memory, declared, array in zip(slot.rows, self._inputs, arrays, strict=True):
            tensor = self.device.rows(memory, declared, len(array))
            self.device.send(array, tensor)
            tensors.append(tensor)
        return tensors[0] if self._names is None else dict(zip(self._names, tensors, strict=True))

    def _keep(self, slot: Slot, given: Any) -> int:
        """Ask for the copies of what the model gave, so that it may write there again; says how many bytes follow."""
        tensors = [(value, form) for value in self._leaves(given) if (form := self.device.form(value)) is not None]
        sizes = [dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for _, (dtype, shape) in tensors]
        places = _places(sizes)
        self._make_room(slot, places[-1])
        arrays = []
        for (value, (dtype, shape)), start, size in zip(tensors, places, sizes, strict=False):
            self.device.keep(value, slot.away[0], start)
            arrays.append(slot.here[0][start : start + size].view(dtype).reshape(shape))
        slot.is_foreign = False
        slot.answers = self._owned(slot, given, iter(arrays))
        return places[-1]

    def _leaves(self, given: Any) -> Iterator[Any]:
        """What stands in dicts and lists, in order. Raises HandlerError for a row that is a tuple of tensors."""
        if isinstance(given, Mapping):
            for value in given.values():
                yield from self._leaves(value)
        elif type(given) is list:
            for i, value in enumerate(given):
                if isinstance(value, tuple) and any(map(self.device.is_tensor, value)):
                    check_no_tuple(value, f"run_inference returned a list of which row {i} is ")
                yield from self._leaves(value)
        else:
            yield given

    def _owned(self, slot: Slot, given: Any, arrays: Iterator[Array]) -> Any:
        """The same with arrays for tensors, and nothing where the model may write to."""
        if isinstance(given, Mapping):
            return {name: self._owned(slot, value, arrays) for name, value in given.items()}
        if type(given) is list:
            return [self._owned(slot, value, arrays) for value in given]
        if self.device.form(given) is not None:
            return next(arrays)
        if self.device.is_tensor(given):
            slot.computed.record(self._compute)  # it may be in host memory already, and what it says under way
            slot.computed.synchronize()
            return on_host(given).copy()
        if isinstance(given, np.ndarray):
            return given.copy()
        slot.is_foreign |= not isinstance(given, _FIXED)
        return given

    def _make_rows(self, slot: Slot) -> None:
        """Make the slot's rows, at first and where somebody keeps a tensor of them."""
        made = [i for i in range(len(slot.rows)) if slot.rows[i] is None or not is_alone(slot.rows, i)]
        if made:
            with self.device.on(self._compute):
                for i in made:
                    slot.rows[i] = None
                    slot.rows[i] = self.device.buffer(self._most * self._inputs[i].nbytes)
                slot.loaded.record(self._compute)
            self._in.wait_event(slot.loaded)

    def _make_room(self, slot: Slot, size: int) -> None:
        """Have memory for that many bytes of answers, to which no answer refers that somebody has kept."""
        if slot.size < size:
            slot.size, slot.away, slot.here = 0, [], []
            slot.away.append(self.device.buffer(size))
            slot.here.append(self.device.locked(size))
            slot.size = size
        elif size and not is_alone(slot.here, 0):
            slot.here = [self.device.locked(slot.size)]

    def _let_go(self, slot: Slot) -> None:
        slot.batch = slot.given = slot.answers = None
        self._free.append(slot)

    def _break_off(self, slot: Slot) -> None:
        """Wait until nothing of the batch is under way on any stream, and see whether the device is lost."""
        with suppress(Exception):
            self.device.synchronize()  # it may say once more what was that batch's
        try:
            self.device.synchronize()
        except Exception as error:
            self.lost = error
        self._let_go(slot)


def _places(sizes: list[int]) -> list[int]:
    """Where each begins behind the one before, on lines of the widest vectors, and where the last one ends."""
    return list(accumulate([-(-size // ALIGNED) * ALIGNED for size in sizes], initial=0))
