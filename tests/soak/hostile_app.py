"""The service of tests/soak/hostile.py: answers a number with so many characters, within a small budget."""

from __future__ import annotations

from typing import Any

from virtex import Limits, RequestHandler, http_server

BUDGET = 128 << 20


class Sized(RequestHandler):
    """Costs nothing to ask, and what is asked for to answer."""

    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        return model_input

    def process_response(self, item: Any) -> Any:
        return "x" * item if isinstance(item, int) else 0


# What the handler makes of one batch is its own to bound: 16 answers of 2 MB, not 512.
app = http_server(
    name="hostile", handler=Sized, max_batch_size=16, max_queue_size=1024, limits=Limits(max_bytes=BUDGET)
)
