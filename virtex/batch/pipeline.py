"""The order of copies and of work on a device: three stages, two batches deep, and no wait that another could use.

    copy in    [ k+1 ]                  from page-locked rows into a berth's memory on the device
                   \\ loaded
    compute   [  k  ] [ k+1 ]           run_inference, and a copy of what it gave, on the device: the next run may
                     \\ computed         write to the original
    copy out          [  k  ]           into page-locked memory, in one piece
                             \\ fetched  a thread sleeps until then

Rules: knows neither torch nor threads nor the ring: it is given a device, whose streams do what is asked of them in
order, some time, and whose events are points in that. load() asks for the first stage, run() for the others, wait()
ends them; each may run on a thread of its own, a berth is on one at a time.

What holds a stage back:
    loaded     compute waits for it, so that a model reads no row that is still on its way
    computed   copy out waits for it
    fetched    wait() does: only then are answers read, rows of the ring and the berth used again, and what the model
               gave let go of
    Where memory is new, copy in waits for compute: the allocator may give what a run used just before.
Nothing else does: a berth is free when all three stages of its batch are over, so no stage has to wait for one ahead of
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


class Berth:
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
    host_bytes, device_bytes: memory that it has made for them, without the rows of the ring. gone: what the device says
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
        self._berths = [Berth(device, len(self._inputs)) for _ in range(DEPTH)]
        self._free = deque(self._berths)
        self.gone: Exception | None = None

    def prepare(self) -> None:
        """Make all memory that is known to be needed, behind whatever setup() has asked of the device."""
        for berth in self._berths:
            self._make_rows(berth)
            with self.device.on(self._compute):
                self._make_room(berth, self._size)
        self.device.synchronize()

    @property
    def host_bytes(self) -> int:
        return sum(berth.size for berth in self._berths)

    @property
    def device_bytes(self) -> int:
        return self.host_bytes + DEPTH * self._most * sum(tensor.nbytes for tensor in self._inputs)

    # ---- the stages

    def load(self, batch: Array | Mapping[str, Array]) -> Berth:
        """Ask for the copy of rows to the device. They stay as they are until wait(), or until this or run() raises."""
        berth = self._free.popleft()
        arrays = list(batch.values()) if isinstance(batch, Mapping) else [batch]
        try:
            self._make_rows(berth)
            with self.device.on(self._in):
                berth.batch = self._sent(berth, arrays)
                berth.loaded.record(self._in)
        except BaseException:
            self._break_off(berth)
            raise
        return berth

    def run(self, berth: Berth, infer: Callable[[Any], Any]) -> None:
        """Run the model, which may only ask for work, and ask for the copy of what it gives."""
        device, compute, out = self.device, self._compute, self._out
        try:
            with device.on(compute):
                compute.wait_event(berth.loaded)
                batch, berth.batch = berth.batch, None
                berth.given = given = infer(batch)
                left = device.current()
                if left != compute:  # the model has set another one, and what it gives is that one's work
                    berth.computed.record(left)
                    compute.wait_event(berth.computed)
                with device.on(compute):
                    size = self._keep(berth, given)
                    berth.computed.record(compute)
            with device.on(out):
                out.wait_event(berth.computed)
                if size:
                    device.fetch(berth.away[0], berth.here[0], size)
                berth.fetched.record(out)
        except BaseException:
            self._break_off(berth)
            raise

    def wait(self, berth: Berth) -> Any:
        """Sleep until the answers are here; the berth is free then. Raises what went wrong on the device meanwhile."""
        try:
            berth.fetched.synchronize()
        except BaseException:
            self._break_off(berth)
            raise
        answers = berth.answers
        self._let_go(berth)
        return answers

    def infer(self, batch: Any, infer: Callable[[Any], Any]) -> Any:
        """All three stages, here and now: of a warm-up, and of parts of a batch that failed."""
        berth = self.load(batch)
        self.run(berth, infer)
        return self.wait(berth)

    def free(self) -> None:
        """Have the device keep no memory for later: what runs next needs all of it."""
        self.device.free()

    # ---- what they do

    def _sent(self, berth: Berth, arrays: list[Array]) -> Any:
        tensors = []
        for memory, declared, array in zip(berth.rows, self._inputs, arrays, strict=True):
            tensor = self.device.rows(memory, declared, len(array))
            self.device.send(array, tensor)
            tensors.append(tensor)
        return tensors[0] if self._names is None else dict(zip(self._names, tensors, strict=True))

    def _keep(self, berth: Berth, given: Any) -> int:
        """Ask for the copies of what the model gave, so that it may write there again; says how many bytes follow."""
        tensors = [(value, form) for value in self._leaves(given) if (form := self.device.form(value)) is not None]
        sizes = [dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for _, (dtype, shape) in tensors]
        places = _places(sizes)
        self._make_room(berth, places[-1])
        arrays = []
        for (value, (dtype, shape)), start, size in zip(tensors, places, sizes, strict=False):
            self.device.keep(value, berth.away[0], start)
            arrays.append(berth.here[0][start : start + size].view(dtype).reshape(shape))
        berth.is_foreign = False
        berth.answers = self._owned(berth, given, iter(arrays))
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

    def _owned(self, berth: Berth, given: Any, arrays: Iterator[Array]) -> Any:
        """The same with arrays for tensors, and nothing where the model may write to."""
        if isinstance(given, Mapping):
            return {name: self._owned(berth, value, arrays) for name, value in given.items()}
        if type(given) is list:
            return [self._owned(berth, value, arrays) for value in given]
        if self.device.form(given) is not None:
            return next(arrays)
        if self.device.is_tensor(given):
            berth.computed.record(self._compute)  # it may be in host memory already, and what it says under way
            berth.computed.synchronize()
            return on_host(given).copy()
        if isinstance(given, np.ndarray):
            return given.copy()
        berth.is_foreign |= not isinstance(given, _FIXED)
        return given

    def _make_rows(self, berth: Berth) -> None:
        """Make the berth's rows, at first and where somebody keeps a tensor of them."""
        made = [i for i in range(len(berth.rows)) if berth.rows[i] is None or not is_alone(berth.rows, i)]
        if made:
            with self.device.on(self._compute):
                for i in made:
                    berth.rows[i] = self.device.buffer(self._most * self._inputs[i].nbytes)
                berth.loaded.record(self._compute)
            self._in.wait_event(berth.loaded)

    def _make_room(self, berth: Berth, size: int) -> None:
        """Have memory for that many bytes of answers, to which no answer refers that somebody has kept."""
        if berth.size < size:
            berth.size, berth.away, berth.here = 0, [], []
            berth.away.append(self.device.buffer(size))
            berth.here.append(self.device.locked(size))
            berth.size = size
        elif size and not is_alone(berth.here, 0):
            berth.here = [self.device.locked(berth.size)]

    def _let_go(self, berth: Berth) -> None:
        berth.batch = berth.given = berth.answers = None
        self._free.append(berth)

    def _break_off(self, berth: Berth) -> None:
        """Wait until nothing of the batch is under way on any stream, and see whether the device is gone."""
        with suppress(Exception):
            self.device.synchronize()  # it may say once more what was that batch's
        try:
            self.device.synchronize()
        except Exception as error:
            self.gone = error
        self._let_go(berth)


def _places(sizes: list[int]) -> list[int]:
    """Where each begins behind the one before, on lines of the widest vectors, and where the last one ends."""
    return list(accumulate([-(-size // ALIGNED) * ALIGNED for size in sizes], initial=0))
