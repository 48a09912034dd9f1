"""The echo of bench/serve.py on Virtex."""

from __future__ import annotations

from typing import Any

from virtex import RequestHandler, http_server


class Echo(RequestHandler):
    """Gives back what it gets: what is left to measure is the server."""

    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        return model_input

    def process_response(self, item: Any) -> Any:
        return item


app = http_server(name="echo", handler=Echo)
