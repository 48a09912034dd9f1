"""The batches of one handler on a device of torch: what can't be there; on a GPU its pipeline, graphs and memory.

Rules: knows handlers, options and the budget; how a device works is for batch. No loop, and no state of the model.
"""

from __future__ import annotations

from ..batch.asked import methods_that_ask
from ..batch.device import Cuda, Device
from ..batch.executors import ThreadExecutor
from ..batch.flights import FlightExecutor
from ..batch.graphs import Graphs
from ..batch.pipeline import Pipeline
from ..batch.rows import tensors_of
from ..batch.texts import has_text
from ..handler import TensorHandler
from .batching import telling
from .bodies import Bodies
from .health import Health
from .options import Options, is_whole
from .register import REGISTER
from .warmup import Call, rows_of


def check_device(handler: TensorHandler, options: Options, device: Device | None) -> None:
    """Raise TypeError or ValueError for what can't be on the handler's device, or needs another one."""
    if device is not None:
        if device.is_cuda and options.executor != "thread":
            raise ValueError(f'device={handler.device!r} needs executor="thread": waiting for it would block the loop')
        if has_text(handler.inputs):
            raise TypeError(f"device={handler.device!r}: text can't be copied to a device; its inputs declare some")
        for tensor in tensors_of(handler.inputs)[1]:
            device.check(tensor)
    if len(handler.graphs):
        _check_graphs(handler, options, device)


def _check_graphs(handler: TensorHandler, options: Options, device: Device | None) -> None:
    said = f"{type(handler).__name__}.graphs={handler.graphs!r}"
    if not all(is_whole(size, 1, options.max_batch_size) for size in handler.graphs):
        raise ValueError(f"{said}: expected whole numbers from 1 to max_batch_size={options.max_batch_size}")
    if device is None or not device.is_cuda:
        raise ValueError(f"{said} needs a CUDA device; device={handler.device!r} is none")
    if "run_inference" in methods_that_ask(handler):
        raise TypeError(f"{said}: a graph knows nobody who asks, and run_inference names `requests`")


class Gpu:
    """A GPU, as one model uses it. thread: of the handler. bodies: whose budget its page-locked memory is charged to.

    pipeline: where steps find their batches. executor: runs them. methods: the handler's, by its graphs if it has some.
    """

    def __init__(
        self,
        handler: TensorHandler,
        device: Cuda,
        thread: ThreadExecutor,
        options: Options,
        bodies: Bodies,
        health: Health,
    ) -> None:
        self._handler = handler
        self._options = options
        self._bodies = bodies
        self._health = health
        self.pipeline = Pipeline(device, handler.inputs, options.max_batch_size, handler.outputs)
        self.executor = FlightExecutor(thread, self.pipeline, self._answers_take, self._is_gone)
        self._graphs: Graphs | None = None
        if len(handler.graphs):
            self._graphs = Graphs(handler, self.pipeline, handler.graphs, handler.graphs_or_eager)
        self.methods: TensorHandler | Graphs = self._graphs or handler

    async def capture(self, call: Call) -> None:
        """Capture the graphs over rows of example(). Raises NotCaptured, and as rows_of()."""
        if self._graphs is not None:
            rows = await rows_of(self._handler, self._graphs.sizes[-1], call)
            await call(self._graphs.capture, rows)

    def charge(self) -> dict[str, int]:
        """Charge what answers have taken of page-locked memory; gives the bytes of all that was made, by name.

        Once, at the end of the start. Raises MemoryError where limits.max_bytes leaves no room for it beside a body.
        """
        made, room = self.executor.bytes, self._bodies.budget - self._options.limits.body
        if made["answer_bytes"] > room:
            with telling(self._bodies):
                raise MemoryError(f"answers take {made['answer_bytes']} bytes; limits.max_bytes leaves {room} for them")
        self.executor.count()
        return made

    def _answers_take(self, more: int) -> None:
        """Answers have taken so many bytes of page-locked memory beyond those before."""
        self._bodies.budget -= more

    def _is_gone(self, reason: str) -> None:
        """The device works no more for this process: whoever looks after it had better replace it."""
        self._health.breaks(reason)
        REGISTER.gone = f"service {self._options.name!r}: {reason}"
