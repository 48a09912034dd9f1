"""What bench/gpu.py serves: networks with random weights, how their batches look, and marks by the device's own clock.

Rules: imports torch when called; knows nothing of a server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WORDS = 30522  # of BERT's vocabulary


class Case(NamedTuple):
    """A network, and its batches. sent: items of a request. make: the network, on the CPU."""

    dtype: str
    shape: tuple[int, ...]
    answer: tuple[int, ...]
    batch: int
    sent: int
    make: Callable[[], Any]

    def items(self, count: int) -> Array:
        chance = np.random.default_rng(0)
        if np.dtype(self.dtype).kind == "f":
            return chance.random((count, *self.shape), np.float32)
        return chance.integers(0, 256 if self.dtype == "uint8" else WORDS, (count, *self.shape)).astype(self.dtype)


def cases(small: bool) -> dict[str, Case]:
    """By name. small: for a CPU that tries the program."""
    if small:
        return {
            "conv": Case("uint8", (3, 32, 32), (10,), 8, 2, lambda: conv([8, 16], 0)),
            "encoder 10": Case("int32", (10,), (32,), 8, 4, lambda: encoder(10, 1, 32, 2)),
            "encoder 128": Case("int32", (128,), (32,), 8, 4, lambda: encoder(128, 1, 32, 2)),
            "identity": Case("float32", (64,), (64,), 8, 4, identity),
        }
    return {
        "conv": Case("uint8", (3, 224, 224), (10,), 64, 8, lambda: conv([64, 128, 256, 512], 3)),
        "encoder 10": Case("int32", (10,), (768,), 144, 48, lambda: encoder(10)),
        "encoder 128": Case("int32", (128,), (768,), 144, 48, lambda: encoder(128)),
        "identity": Case("float32", (1024,), (1024,), 256, 64, identity),
    }


def identity() -> Any:
    import torch

    return torch.nn.Identity()


def conv(widths: list[int], more: int) -> Any:
    """Each width halves the image; all but the first are followed by `more` layers. ResNet-50's 4 GMAC at full size."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    before = 3
    for width in widths:
        layers += [torch.nn.Conv2d(before, width, 3, 2, 1), torch.nn.ReLU()]
        for _ in range(more if before > 3 else 0):
            layers += [torch.nn.Conv2d(width, width, 3, 1, 1), torch.nn.ReLU()]
        before = width

    class Conv(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            pooled = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
            self.layers = torch.nn.Sequential(*layers, *pooled, torch.nn.Linear(before, 10))

        def forward(self, images: Any) -> Any:
            return self.layers(images.float() / 255)

    return Conv()


def encoder(length: int, layers: int = 12, width: int = 768, heads: int = 12) -> Any:
    """BERT-base's shape: token ids in, one vector of a text out."""
    import torch

    torch.manual_seed(0)

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, width)
            self.places = torch.nn.Parameter(torch.randn(length, width) * 0.02)
            self.norm = torch.nn.LayerNorm(width)
            layer = torch.nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True)
            self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            self.pooled = torch.nn.Linear(width, width)

        def forward(self, ids: Any) -> Any:
            hidden = self.layers(self.norm(self.words(ids) + self.places))
            return torch.tanh(self.pooled(hidden[:, 0])).float()

    return Encoder()


def placed(case: Case, device: str) -> Any:
    """The network on a device, ready to run; an encoder in half precision where that is a GPU."""
    import torch

    network = case.make().to(device).eval()
    is_text = case.dtype == "int32" and torch.device(device).type == "cuda"
    return network.half() if is_text else network


class Marks:
    """Points in the work of the present stream by the device's own clock; by the host's where it is a CPU."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch = torch
        self.cuda = torch.device(device).type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = self.torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each mark and the next."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.cuda:
            self.torch.cuda.synchronize()
            return [one.elapsed_time(other) for one, other in pairs]
        return [1e3 * (other - one) for one, other in pairs]
