"""How a service's metrics leave its process, from its start to its end."""

import asyncio
import http.client
import logging
import os
import subprocess
import sys
import threading
import urllib.error

import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.prom import get, total
from kit.servers import ROOT, free_port
from kit.services import BODY, Echo
from prometheus_client import REGISTRY, Counter

from virtex import http_server
from virtex.handler import Worker
from virtex.metrics import export


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def scraped(**more):
    return http_server("echo", Echo(), prom_mode="scrape", prom_port=free_port(), **more)


def test_metrics_are_on_the_port_of_the_service_too(ask):
    app = scraped()
    text, other = run(
        app,
        ask(app, method="GET", path="/metrics"),
        ask(app, method="GET", path="/metrics", headers=[(b"accept", b"application/openmetrics-text")]),
    )
    assert text.status == 200
    assert text.headers[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
    assert total(text.body.decode(), "virtex_workers", service="echo") == 1
    assert other.headers[b"content-type"].startswith(b"application/openmetrics-text")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/metrics", 200), ("POST", "/metrics", 405), ("GET", "/metrics/", 404), ("GET", "/metrics/x", 404)],
)
def test_what_else_is_asked_of_them(method, path, status, ask):
    app = scraped()
    (answer,) = run(app, ask(app, method=method, path=path))
    assert answer.status == status
    assert answer.headers.get(b"allow") == (b"GET, HEAD" if status == 405 else None)


def test_who_may_read_them_there_is_asked_of_authorize(ask):
    app = scraped(authorize=lambda head: 401)
    (answer,) = run(app, ask(app, method="GET", path="/metrics"))
    assert answer.status == 401


def test_where_they_are_pushed_they_are_read_on_the_port_of_the_service_and_prom_port_is_the_gateways(ask):
    app = http_server("echo", Echo(), prom_mode="push", prom_port=free_port())
    (answer,) = run(app, ask(app, method="GET", path="/metrics"))
    assert answer.status == 200


UNASKED = """
import asyncio, sys, threading
from kit.asks import Echo, ask_direct
from virtex import http_server

async def main():
    app = http_server("echo", Echo())
    await app.startup()
    answer = await ask_direct(app, method="GET", path="/metrics")
    print(answer.status, threading.active_count(), "prometheus_client" in sys.modules)
    await app.shutdown()

asyncio.run(main())
"""


def test_without_them_nothing_is_loaded_and_nothing_listens():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, "-c", UNASKED], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "404 1 False\n", done.stderr


def test_prom_port_answers_from_the_start_to_the_end():
    port = free_port()
    app = http_server("echo", Echo(), prom_mode="scrape", prom_port=port, prom_host="http://127.0.0.1")

    async def main():
        await app.startup()
        await ask_direct(app, BODY)
        text = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
        await app.shutdown()
        return text

    assert total(asyncio.run(main()), "virtex_workers", service="echo") == 1
    with pytest.raises(urllib.error.URLError):
        get(f"http://127.0.0.1:{port}/metrics")


def test_a_port_that_is_taken_is_why_the_service_does_not_start():
    async def main(port):
        app = http_server("echo", Echo(), prom_mode="scrape", prom_port=port)
        with pytest.raises(OSError, match=f"prom_port={port} is taken"):
            await app.startup()
        ready = await ask_direct(app, method="GET", path="/health/ready")
        await app.shutdown()
        return ready

    listener = http.client.socket.socket()
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ready = asyncio.run(main(listener.getsockname()[1]))
    assert (ready.status, ready.error) == (503, "exporting its metrics failed: OSError")


def test_the_port_is_free_again_when_setup_fails():
    class Broken(Echo):
        def setup(self, worker):
            raise ZeroDivisionError

    async def main():
        app = http_server("echo", Broken(), prom_mode="scrape", prom_port=port)
        with pytest.raises(ZeroDivisionError):
            await app.startup()
        await app.shutdown()

    port = free_port()
    asyncio.run(main())
    with http.client.socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


@pytest.mark.parametrize(("count", "has_own", "warns"), [(1, True, False), (2, True, True), (2, False, False)])
def test_own_metrics_of_several_workers_that_nobody_adds_up_are_warned_of(count, has_own, warns, caplog):
    class Counts(Echo):
        def setup(self, worker):
            self.counter = Counter("pictures", "Pictures that were seen.") if has_own else None

    async def main():
        await app.startup(Worker(0, count))
        await app.shutdown()

    handler = Counts()
    app = http_server("echo", handler, prom_mode="scrape", prom_port=free_port())
    try:
        with caplog.at_level(logging.WARNING):
            asyncio.run(main())
    finally:
        if has_own:
            REGISTRY.unregister(handler.counter)
    assert ("metrics (pictures) are those of one worker" in caplog.text) == warns


def test_a_gateway_that_never_ends_its_answer_does_not_hold_the_end(monkeypatch, caplog):
    monkeypatch.setattr(export, "END_SECONDS", 0.2)
    monkeypatch.setattr(export.Export, "end", lambda self: over.wait(20))
    over = threading.Event()
    app = http_server("slow", Echo(), prom_mode="push", prom_port=free_port(), prom_interval=3600)

    async def main():
        await app.startup()
        await asyncio.wait_for(app.shutdown(), 10)

    asyncio.run(main())
    over.set()
    assert "the last metrics of 'slow' are not waited for" in caplog.text
