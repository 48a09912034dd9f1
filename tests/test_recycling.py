"""What gunicorn's workers counted: exact over recycling and reloads, and no answer short after a kill."""

from __future__ import annotations

import http.client
import inspect
import json
import os
import signal
import threading

import pytest
from kit.asks import Echo
from kit.servers import serving, until

TELLS = f"""
import os
from virtex import RequestHandler, http_server
from virtex.metrics.totals import totals, workers

{inspect.getsource(Echo)}
class Tells(Echo):
    def run_inference(self, model_input):
        return [self.tell() if item == "tell" else item for item in model_input]
    def tell(self):
        found = totals()["tells"]
        names = ("queue_items", "queue_bytes", "requests_in_flight", "open_connections", "queries_total")
        return {{
            "requests": found.values("virtex_requests_total"),
            "workers": [[each.index, each.pid, each.state] for each in workers()],
            **{{name: found.value("virtex_" + name) for name in names}},
        }}

app = http_server(name="tells", handler=Tells)
"""
LINES = 4  # clients that send at a time


def ask(server):
    """What the workers have counted, this question not included."""
    status, body = server.request("POST", "/", b'{"data":["tell"]}')
    assert status == 200
    return json.loads(body)["data"][0]


class Load:
    """Clients that send one request after the other, until they are told to stop; got: answers with 200."""

    def __init__(self, server):
        self.server = server
        self.got = self.failed = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(LINES)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self):
        while not self._stop.is_set():
            try:
                status, _ = self.server.request("POST", "/", b'{"data":["a","b"]}')
                assert status == 200
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.failed += 1
            else:
                with self._lock:
                    self.got += 1

    def wait(self, more):
        aim = self.got + more
        until(lambda: self.got >= aim, f"{more} more answers", self.server)


def test_totals_are_exact_while_workers_are_recycled_and_reloaded():
    with serving("gunicorn", TELLS, "--workers", "2", "--max-requests", "50") as server:
        server.wait_log("is ready; workers=2", 2)
        before = set(server.workers())
        with Load(server) as load:
            load.wait(150)
            until(lambda: not before & set(server.workers()), "both workers to be replaced", server)
            os.kill(server.process.pid, signal.SIGHUP)
            load.wait(100)
        assert load.failed == 0
        told = ask(server)
        assert told["requests"] == {"200": load.got}
        assert told["queries_total"] == 2 * load.got
        assert (told["queue_items"], told["queue_bytes"]) == (0, 0)


def test_after_a_kill_no_answer_that_a_client_got_is_missing_and_no_gauge_is_left():
    with serving("gunicorn", TELLS, "--workers", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        with Load(server) as load:
            load.wait(100)
            for _ in range(2):
                killed = server.workers()[0]
                os.kill(killed, signal.SIGKILL)
                until(lambda killed=killed: killed not in server.workers(), "the worker to be gone", server)
                load.wait(50)
        until(lambda: server.log.count("is ready; workers=2") == 4, "their successors", server)
        told = ask(server)
        assert load.got <= told["requests"]["200"] <= load.got + load.failed
        assert set(told["requests"]) == {"200"} and load.failed <= 2 * LINES
        assert told["requests_in_flight"] == 1  # the question itself
        assert sorted(index for index, _, _ in told["workers"]) == [0, 1]
        assert {pid for _, pid, _ in told["workers"]} == set(server.workers())
        assert {state for _, _, state in told["workers"]} == {"ready"}


@pytest.mark.parametrize("kind", ["uvicorn", "serve"])
def test_under_any_other_server_a_process_counts_for_itself(kind):
    with serving(kind, TELLS) as server:
        assert server.request("POST", "/", b'{"data":["a"]}')[0] == 200
        assert server.request("POST", "/", b"{")[0] == 400
        told = ask(server)
        assert told["requests"] == {"200": 1, "400": 1}
        assert [[index, state] for index, _, state in told["workers"]] == [[0, "ready"]]
