"""The service of bench/batching.py: a synthetic accelerator that is busy for 5 ms and 0.1 ms per item of a batch.

It sleeps, and so holds neither a core nor the interpreter's lock: what a GPU behind a thread looks like to a server.
"""

from __future__ import annotations

import time
from typing import Any

from virtex import RequestHandler, http_server

MAX_BATCH_SIZE = 64
WINDOW = 0.005  # seconds; max_time_on_queue
QUEUE = 100_000  # more than ever wait here: what is refused has no latency
BASE_NS, ITEM_NS = 5_000_000, 100_000


def busy_ns(size: int) -> int:
    """How long a batch of so many items takes."""
    return BASE_NS + ITEM_NS * size


class Accelerator(RequestHandler):
    """Answers each item with itself and the size of its batch."""

    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        deadline = time.perf_counter_ns() + busy_ns(len(model_input))
        while (left := deadline - time.perf_counter_ns()) > 0:
            time.sleep(left / 1e9)
        return [(item, len(model_input)) for item in model_input]

    def process_response(self, item: Any) -> Any:
        return item


app = http_server(
    name="accelerator",
    handler=Accelerator,
    executor="thread",
    max_batch_size=MAX_BATCH_SIZE,
    max_time_on_queue=WINDOW,
    max_queue_size=QUEUE,
)
