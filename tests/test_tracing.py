"""examples/tracing.py with the real SDK of OpenTelemetry: what a client began goes on in the service."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys

from kit import needs
from kit.servers import ROOT, serving, until

needs.library("opentelemetry.instrumentation.asgi")
sys.path.insert(0, str(ROOT / "examples"))

import tracing  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from virtex import http_server, serve  # noqa: E402


def test_the_span_of_a_request_belongs_to_its_clients_trace_and_has_the_answers_id() -> None:
    spans = InMemorySpanExporter()
    app = tracing.traced(http_server(name="lengths", handler=tracing.Lengths), spans)

    async def main() -> list[str]:
        async with await serve(app, port=0) as listener:
            return [await asyncio.to_thread(tracing.ask, listener.port) for _ in range(2)]

    ids = asyncio.run(main())
    ended = spans.get_finished_spans()
    assert len(ended) == 2 and len(set(ids)) == 2
    for span, request_id in zip(ended, ids, strict=True):
        assert f"{span.context.trace_id:032x}" == tracing.TRACE
        assert span.parent is not None and f"{span.parent.span_id:016x}" == tracing.PARENT and span.parent.is_remote
        assert span.attributes is not None
        assert span.attributes["http.response.header.x_request_id"] == (request_id,)
        assert (span.attributes["http.status_code"], span.attributes["http.method"]) == (200, "POST")
        assert span.resource.attributes["service.name"] == "lengths"


def test_the_example_prints_the_span_of_the_trace_that_it_sent() -> None:
    command = [sys.executable, str(ROOT / "examples" / "tracing.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    printed, _, said = ended.stdout.partition("sent: ")
    span = json.loads(printed)
    assert span["context"]["trace_id"] == f"0x{tracing.TRACE}" and span["parent_id"] == f"0x{tracing.PARENT}"
    assert said.split()[-1] in span["attributes"]["http.response.header.x_request_id"]


def test_under_gunicorn_it_is_traced_too() -> None:
    source = (ROOT / "examples" / "tracing.py").read_text()
    with serving("gunicorn", source) as server:
        until(lambda: server.request("GET", "/health/ready")[0] == 200, "the service to be ready", server)
        request_id = tracing.ask(server.port)
        server.wait_log(f'"{request_id}"')
        assert len(re.findall(rf'"trace_id": "0x{tracing.TRACE}"', server.log)) == 1
