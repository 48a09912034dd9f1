"""The service of bench/gpu.py: a small convolutional network on a torch device, and how long the device was idle.

VIRTEX_BENCH_DEVICE and VIRTEX_BENCH_BATCH say where it runs and how large its batches are; what it saw of each batch
goes to the file VIRTEX_BENCH_REPORT when the service ends.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from virtex import Tensor, TensorHandler, http_server

DEVICE = os.environ.get("VIRTEX_BENCH_DEVICE", "cuda")
BATCH = int(os.environ.get("VIRTEX_BENCH_BATCH", "64"))
IMAGE = (3, 224, 224)
WIDTHS = (32, 64, 128, 256)  # channels after each convolution, each of which halves the image


def network() -> Any:
    """The same weights in every process."""
    torch.manual_seed(0)
    layers: list[Any] = []
    channels = IMAGE[0]
    for width in WIDTHS:
        layers += [torch.nn.Conv2d(channels, width, 3, 2, 1), torch.nn.ReLU()]
        channels = width
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 10)
    )


class Marks:
    """When each batch began and ended, by the device's own clock; by the host's where it is a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each mark and the next."""
        if self.cuda:
            torch.cuda.synchronize()
            return [one.elapsed_time(other) for one, other in zip(self.marks, self.marks[1:], strict=False)]
        return [1e3 * (other - one) for one, other in zip(self.marks, self.marks[1:], strict=False)]


class Classifier(TensorHandler):
    """Batches come on the device, and their scores are fetched from it."""

    inputs = Tensor("float32", IMAGE)
    outputs = Tensor("float32", (10,))
    device = DEVICE

    def setup(self, worker: Any) -> None:
        self.model = network().to(DEVICE).eval()
        self.model(torch.zeros((BATCH, *IMAGE), device=DEVICE))  # kernels are chosen and loaded now
        self.marks = Marks(DEVICE)
        self.sizes: list[int] = []

    def run_inference(self, batch: Any) -> Any:
        self.marks.mark()
        scores = self.model(batch)
        self.marks.mark()
        self.sizes.append(len(batch))
        return scores

    def teardown(self) -> None:
        name = os.environ.get("VIRTEX_BENCH_REPORT")
        if name:
            between = self.marks.milliseconds()
            seen = {"sizes": self.sizes, "busy_ms": between[0::2], "idle_ms": between[1::2]}
            Path(name).write_text(json.dumps(seen))


app = http_server(
    name="conv",
    handler=Classifier,
    executor="thread",
    max_batch_size=BATCH,
    max_queue_size=4 * BATCH,
)
