"""The same application under other servers, unchanged: it obeys ASGI, whatever they leave out."""

from __future__ import annotations

import json
import signal

import pytest
from kit.servers import ECHO, serving

SERVERS = {
    "uvicorn": [],
    "uvicorn-h11": [],
    "uvicorn-without-lifespan": ["--lifespan", "off"],
    "granian": [],
    "hypercorn": [],
    "gunicorn-asgi": [],
}


@pytest.mark.parametrize("name", SERVERS)
def test_application_answers_under(name):
    with serving(name.removesuffix("-without-lifespan"), ECHO, *SERVERS[name]) as server:
        assert server.request("POST", "/", b'{"data":["a"]}') == (200, b'{"data":["a"],"error":null}')
        text = "x" * 2_000_000
        status, body = server.request("POST", "/", json.dumps({"data": [text]}).encode())
        assert status == 200 and json.loads(body)["data"] == [text]
        assert server.request("GET", "/health/ready")[0] == 200
        assert server.request("PUT", "/", b"{}")[0] == 405
        assert server.request("POST", "/", b"no json")[0] == 400
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert "Traceback" not in server.log, server.log
