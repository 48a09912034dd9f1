"""A service whose requests are spans of OpenTelemetry: what a client began with `traceparent` goes on in the service.

    make tracing                                   sends itself one request of a trace, and shows the span
    python examples/tracing.py --loadtest          sends itself many, and counts their spans
    gunicorn -k virtex.VirtexWorker tracing:app    serves, and prints a span for each request

The span has the request's id, by which the log and the access log name it. Where spans go is the exporter's business:
OTLPSpanExporter() in place of ConsoleSpanExporter() sends them to a collector.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any
from urllib.request import Request, urlopen

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from virtex import HttpMessage, RequestHandler, http_server, serve

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # the example of W3C Trace Context


class Lengths(RequestHandler):
    """How long each text is; stands for a model."""

    def process_request(self, data: list[str]) -> list[str]:
        return data

    def run_inference(self, model_input: list[str]) -> list[int]:
        return [len(text) for text in model_input]

    def process_response(self, model_output_item: int) -> int:
        return model_output_item


def traced(service: Any, exporter: SpanExporter) -> OpenTelemetryMiddleware:
    """The service, each of whose requests is a span, but for probes. One more for each message of ASGI costs more."""
    provider = TracerProvider(resource=Resource.create({"service.name": service.name}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))  # for many requests: BatchSpanProcessor
    return OpenTelemetryMiddleware(
        service,
        tracer_provider=provider,
        excluded_urls="/health/",
        exclude_spans=["receive", "send"],
        http_capture_headers_server_response=["x-request-id"],
    )


app = traced(http_server(name="lengths", handler=Lengths), ConsoleSpanExporter())


def ask(port: int) -> str:
    """Send one request as a part of a trace; gives the id that the answer has."""
    headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    request = Request(f"http://127.0.0.1:{port}/", json.dumps({"data": ["some text"]}).encode(), headers)
    with urlopen(request, timeout=10) as answer:
        return str(answer.headers["x-request-id"])


async def main() -> None:
    """Serve, ask, and say what to look for in the span that was printed."""
    async with await serve(app, port=0) as listener:
        request_id = await asyncio.to_thread(ask, listener.port)
    print(f"sent: trace {TRACE}, parent {PARENT}; answered: request {request_id}")


async def load(rate: int = 200) -> None:
    """Serve, send requests at a steady rate, and say how many spans there are."""
    from loadtest import load_test

    spans = InMemorySpanExporter()
    messages = [HttpMessage(data=["some text"])] * rate
    async with await serve(traced(http_server(name="lengths", handler=Lengths), spans), port=0) as listener:
        await asyncio.to_thread(load_test, f"http://127.0.0.1:{listener.port}/", messages, rate)
    print(f"spans: {len(spans.get_finished_spans())}, those of the warm-up among them")


if __name__ == "__main__":
    from loadtest import HELP

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loadtest", action="store_true", help=HELP)
    asyncio.run(load() if parser.parse_args().loadtest else main())
