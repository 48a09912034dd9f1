"""What clients behind nginx and haproxy see: each answer as it was given, and no half of one as a whole."""

from __future__ import annotations

import socket

import pytest
from proxies import NGINX_WAYS, haproxy, nginx, post
from servers import serving

SERVICE = """
from virtex import Limits, RequestHandler, http_server

class Echo(RequestHandler):
    def process_request(self, data):
        return data
    def run_inference(self, model_input):
        return model_input
    def process_response(self, item):
        return item

app = http_server(
    name="echo",
    handler=Echo(),
    limits=Limits(body=90_000, connections=40),
    authorize=lambda head: int(head.path[1:]) if len(head.path) == 4 else None,
)
"""

EARLY = """
async def app(scope, receive, send):
    if scope["path"] == "/halves":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("midway")
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})
"""

SIZES = [100_000, 2_000_000, 40_000_000]
REFUSALS = [("/401", 401), ("/403", 403), ("/415", 415), ("/503", 503), ("/", 413)]


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def proxies(request):
    """The service and the ASGI application, and one proxy in front of each."""
    start = nginx if request.param == "nginx" else haproxy
    with serving("serve", SERVICE) as service, serving("serve", EARLY) as early:
        with start(service.port) as of_service, start(early.port) as of_early:
            yield of_service, of_early


@pytest.mark.parametrize("size", SIZES)
def test_refusals_of_a_body_arrive(proxies, size):
    of_service, of_early = proxies
    body = bytes(size)
    for way in of_service.ports:
        for path, status in REFUSALS:
            got = [of_service.post(way, path, body)[0] for _ in range(2)]
            assert got == [status] * 2, f"{way}, {path}: {of_service.log}"
        assert [of_early.post(way, "/", body)[0] for _ in range(2)] == [403] * 2, f"{way}: {of_early.log}"
