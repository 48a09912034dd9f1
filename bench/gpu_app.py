"""The service that bench/gpu.py measures. VIRTEX_BENCH_GPU says, as JSON, which case of bench/networks.py it serves.

Each worker writes what it saw of its batches to the folder that is named there, when it ends.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from virtex import Tensor, TensorHandler, http_server

from .networks import Marks, cases, placed

SAID = json.loads(os.environ["VIRTEX_BENCH_GPU"])
CASE = cases(SAID["device"] == "cpu")[SAID["case"]]


class Network(TensorHandler):
    inputs = Tensor(CASE.dtype, CASE.shape)
    outputs = Tensor("float32", CASE.answer)
    device = SAID["device"]
    graphs = SAID["graphs"]

    def setup(self, worker: Any) -> None:
        self.worker = worker
        self.model = placed(CASE, self.device)
        self.sizes: list[int] = []
        self.marks = Marks(self.device)
        if not self.graphs:  # a mark is no work that can be captured and read
            self.run_inference = self.marked  # type: ignore[method-assign]

    def run_inference(self, batch: Any) -> Any:
        return self.model(batch)

    def marked(self, batch: Any) -> Any:
        self.marks.mark()
        given = self.model(batch)
        self.marks.mark()
        self.sizes.append(len(batch))
        return given

    def teardown(self) -> None:
        between = self.marks.milliseconds()
        seen = {"sizes": self.sizes, "busy_ms": between[0::2], "idle_ms": between[1::2]}
        (Path(SAID["folder"]) / f"{self.worker.index}.json").write_text(json.dumps(seen))


if SAID["device"] == "cpu":
    torch.set_num_threads(1)
app = http_server(
    name="gpu",
    handler=Network,
    executor="thread",
    max_batch_size=CASE.batch,
    max_queue_size=8 * CASE.batch,
    warmup=True,
)
