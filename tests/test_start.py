"""The worker and the service until they are ready: who is answered what meanwhile, and what may go wrong on the way."""

from __future__ import annotations

import signal
import time

import pytest
from servers import ECHO, read_all, serving

LOADING = (
    ECHO
    + """
import os, time

class Loading(Echo):
    def setup(self, worker):
        while not os.path.exists(f"go{worker.index}"):
            time.sleep(0.01)

app = http_server(name="loading", handler=Loading, executor="thread")
"""
)

POST = b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"data":["a"]}'


def status(server, method="POST", path="/"):
    return server.request(method, path, b'{"data":["a"]}' if method == "POST" else None)[0]


def go(server, index):
    (server.folder / f"go{index}").touch()


def test_a_loading_worker_answers_probes_while_no_sibling_is_ready_and_leaves_all_else_to_those_that_are():
    with serving("gunicorn", LOADING, "--workers", "2", "--timeout", "1") as server:
        assert status(server, "GET", "/health/live") == 200
        assert status(server, "GET", "/health/ready") == 503
        with server.connect() as sock:
            sock.sendall(POST)
            refusal = read_all(sock)  # to the end: the next connection may find who is ready
        assert refusal.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in refusal
        assert b"the service is starting" in refusal
        go(server, 1)
        server.wait_log("of 2 is ready")
        assert [status(server) for _ in range(40)] == [200] * 40
        assert [status(server, "GET", "/health/ready") for _ in range(10)] == [200] * 10
        begun = time.monotonic()
        server.signal(signal.SIGTERM)  # the other's setup() never ends
        assert server.wait_exit() == 0 and time.monotonic() - begun < 8
        assert "stopping while the application loads" in server.log
        assert "Traceback" not in server.log and "WORKER TIMEOUT" not in server.log


def test_what_was_refused_while_it_loaded_does_not_count_towards_max_requests():
    with serving("gunicorn", LOADING, "--max-requests", "3") as server:
        assert [status(server) for _ in range(5)] == [503] * 5
        assert server.log.count("Booting worker") == 1
        go(server, 0)
        server.wait_log("of 1 is ready")
        assert [status(server) for _ in range(3)] == [200] * 3
        server.wait_log("3 requests served, max_requests reached")
        server.wait_log("of 1 is ready", 2)
        assert status(server) == 200


def test_a_worker_that_fails_to_load_takes_nobody_with_it():
    source = LOADING.replace("time.sleep(0.01)", "time.sleep(0.01)\n        raise FileNotFoundError('model.bin')")
    with serving("gunicorn", source) as server:
        assert status(server, "GET", "/health/live") == 200
        go(server, 0)
        assert server.wait_exit() == 3
        assert "FileNotFoundError: model.bin" in server.log


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_sigterm_ends_a_setup_that_would_not_end(executor):
    source = LOADING.replace("while not", 'print("loading", flush=True)\n        while not')
    with serving("gunicorn", source.replace('"thread"', f'"{executor}"')) as server:
        server.wait_log("loading")
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0 and time.monotonic() - begun < 8
        assert "is ready" not in server.log and "Traceback" not in server.log
