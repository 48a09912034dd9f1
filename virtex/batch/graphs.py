"""CUDA graphs: run_inference recorded once for each of a few sizes, and replayed over the same memory.

Rules: knows a pipeline and its device, no torch. A batch is copied into the memory of the next larger size, on the
device; what is left of that is filled with its last row, and cut from the answer. What the graph gives lies in the same
memory each time, which the pipeline copies on the device before the next run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from traceback import FrameSummary, extract_tb
from typing import Any, NamedTuple

import numpy as np

from ..tensor import Array
from .pipeline import Pipeline
from .rows import tensors_of

log = logging.getLogger("virtex")

WARMING = 3  # runs ahead of a capture, in which libraries choose their kernels and take their memory
CLOSE = {2: 1e-2, 4: 1e-4, 8: 1e-7}  # by a float's bytes: part of the largest value by which answers may differ
_OURS = os.path.dirname(os.path.dirname(__file__))


class NotCaptured(RuntimeError):
    """A size can't be captured, or its graph gives other answers."""


class Captured(NamedTuple):
    """A graph: the memory of its inputs, what runs it, and what it gives, in the same memory each time."""

    inputs: Any
    replay: Callable[[], None]
    outputs: Any


class Graphs:
    """The handler, with a run_inference that replays graphs; of a batch larger than all of them it is the handler's.

    sizes: of the graphs. falls_back: a size that can't be captured is left out, and the log says why.
    """

    def __init__(self, handler: Any, pipeline: Pipeline, sizes: Sequence[int], falls_back: bool) -> None:
        self._handler = handler
        self._pipeline = pipeline
        self._falls_back = falls_back
        self._names, self._tensors = tensors_of(handler.inputs)
        self.sizes = sorted(set(sizes))
        self._memory: list[Any] = []
        self._captured: dict[int, Captured] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def run_inference(self, batch: Any) -> Any:
        """The smallest graph that holds the batch."""
        count = len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)
        size = next((size for size in self.sizes if size >= count), None)
        if size is None:
            return self._handler.run_inference(batch)
        graph = self._captured[size]
        self._fill(graph.inputs, batch)
        graph.replay()
        return graph.outputs if size == count else _cut(graph.outputs, count)

    def capture(self, rows: Any) -> None:
        """Capture all sizes, the largest first, for the others use its memory. rows: of an example, for the largest.

        Raises NotCaptured, which names the size and what is wrong with it.
        """
        for size in reversed(self.sizes[:]):
            try:
                self._capture(size, _cut(rows, size))
            except NotCaptured as error:
                if not self._falls_back or self._pipeline.gone is not None:
                    raise
                self.sizes.remove(size)
                self._captured.pop(size, None)
                log.warning("%s: such batches run without", error, extra={"event": "not_captured", "items": size})

    def _capture(self, size: int, rows: Any) -> None:
        infer = self._pipeline.infer
        for _ in range(WARMING):
            eager = _owned(infer(rows, self._handler.run_inference))
        try:
            infer(rows, partial(self._record, size))
        except Exception as error:
            raise NotCaptured(f"graphs: a batch of {size} can't be captured: {_told(error)}") from error
        differs = _difference(_owned(infer(rows, self.run_inference)), eager)
        if differs:
            raise NotCaptured(f"graphs: a batch of {size} is answered otherwise by its graph: {differs}")

    def _record(self, size: int, batch: Any) -> Any:
        device = self._pipeline.device
        if not self._memory:
            self._memory = [device.buffer(self.sizes[-1] * tensor.nbytes) for tensor in self._tensors]
        tensors = [device.rows(*each, size) for each in zip(self._memory, self._tensors, strict=True)]
        inputs = tensors[0] if self._names is None else dict(zip(self._names, tensors, strict=True))
        self._fill(inputs, batch)
        replay, outputs = device.capture(partial(self._handler.run_inference, inputs))
        for value in _leaves(outputs):
            if device.form(value) is None:
                raise TypeError(
                    f"run_inference gave a {type(value).__name__}; a graph gives tensors on its device only"
                )
        self._captured[size] = Captured(inputs, replay, outputs)
        replay()
        return outputs

    def _fill(self, inputs: Any, batch: Any) -> None:
        if self._names is None:
            self._pipeline.device.fill(inputs, batch)
        else:
            for name in self._names:
                self._pipeline.device.fill(inputs[name], batch[name])


def _leaves(given: Any) -> list[Any]:
    values = list(given.values()) if isinstance(given, Mapping) else given if type(given) is list else None
    return [given] if values is None else [leaf for value in values for leaf in _leaves(value)]


def _cut(given: Any, count: int) -> Any:
    """The first so many rows, of each by name."""
    return {name: value[:count] for name, value in given.items()} if isinstance(given, Mapping) else given[:count]


def _owned(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _owned(value) for name, value in given.items()}
    return np.array(given)


def _difference(came: Any, expected: Any) -> str:
    """What differs more than rounding does; "" for nothing."""
    if isinstance(expected, Mapping):
        if not isinstance(came, Mapping) or came.keys() != expected.keys():
            return "by other names"
        found = {name: _difference(came[name], expected[name]) for name in expected}
        return "; ".join(f"{name!r} {text}" for name, text in found.items() if text)
    if came.shape != expected.shape or came.dtype != expected.dtype:
        return f"{came.dtype} {came.shape} in place of {expected.dtype} {expected.shape}"
    return _distance(came, expected)


def _distance(came: Array, expected: Array) -> str:
    if came.tobytes() == expected.tobytes():
        return ""
    if expected.dtype.kind in "biu":
        return f"differs in {int((came != expected).sum())} of {came.size} values"
    is_complex = expected.dtype.kind == "c"
    kind = np.complex128 if is_complex else np.float64
    came, expected, size = came.astype(kind), expected.astype(kind), expected.dtype.itemsize // (1 + is_complex)
    same = (came == expected) | (np.isnan(came) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        most = float(np.abs(np.where(same, 0, came - expected)).max(initial=0.0))
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    allowed = CLOSE.get(size, 1e-1) * max(largest, 1.0)
    return "" if most <= allowed else f"differs by up to {most:.3g}; expected no more than {allowed:.3g}"


def _told(error: BaseException) -> str:
    """What went wrong first, and the line of whose code it did: leaving a capture that failed raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    frames = [frame for frame in extract_tb(error.__traceback__) if _is_of_handler(frame)]
    if not frames:
        return text
    return f"{text}, at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}: {frames[-1].line}"


def _is_of_handler(frame: FrameSummary) -> bool:
    """Whether it is neither of a package that is installed, nor of this one, nor generated."""
    return bool(frame.line) and "site-packages" not in frame.filename and not frame.filename.startswith(_OURS)
