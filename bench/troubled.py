"""The service of bench/fates.py, whose clients leave, send poison, or are too many: gunicorn ... bench.troubled:app.

An item is [number, kind]. The model is busy for 20 ms and 1 ms per item and sleeps meanwhile, as a GPU behind a thread
looks to a server. An item of a negative number is answered by what has been spent so far.
"""

from __future__ import annotations

import time
from typing import Any

FINE, CLOSES, RESETS, RAISES, REFUSED, ROW = range(6)  # kinds: of who leaves, and where poison comes to light
LEAVERS = (CLOSES, RESETS)
MAX_BATCH_SIZE = 16
BASE_NS, ITEM_NS = 20_000_000, 1_000_000


def busy_ns(size: int) -> int:
    """How long the model takes for so many items."""
    return BASE_NS + ITEM_NS * size


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make()


def make() -> Any:
    from virtex import ItemError, RequestHandler, http_server

    class Troubled(RequestHandler):
        def setup(self, worker: Any) -> None:
            self.runs = self.busy = 0
            self.rows = [0] * 6  # by kind

        def process_request(self, data: list[Any]) -> list[Any]:
            for i, (_, kind) in enumerate(data):
                if kind == REFUSED:
                    raise ItemError("poison", i)
            return data

        def run_inference(self, model_input: list[Any]) -> list[Any]:
            self.spend(model_input)
            if any(kind == RAISES for _, kind in model_input):
                raise ValueError("poison")
            return [self.row(item, len(model_input)) for item in model_input]

        def spend(self, items: list[Any]) -> None:
            until = time.perf_counter_ns() + busy_ns(len(items))
            self.runs += 1
            self.busy += busy_ns(len(items))
            for number, kind in items:
                self.rows[kind] += number >= 0
            while (left := until - time.perf_counter_ns()) > 0:
                time.sleep(left / 1e9)

        def row(self, item: Any, size: int) -> Any:
            if item[0] < 0:
                return {"runs": self.runs, "busy": self.busy / 1e9, "rows": self.rows}
            return ItemError("poison") if item[1] == ROW else (item, size)

        def process_response(self, item: Any) -> Any:
            return item

    return http_server(name="troubled", handler=Troubled, executor="thread", max_batch_size=MAX_BATCH_SIZE)
