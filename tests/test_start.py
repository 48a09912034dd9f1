"""The worker and the service until they are ready: who is answered what meanwhile, and what may go wrong on the way."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from kit.servers import AGES, ECHO, read_all, serving, until

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
    with serving("gunicorn", LOADING, "--workers", "2", "--graceful-timeout", AGES, "--timeout", "1") as server:
        assert status(server, "GET", "/health/live") == 200
        assert status(server, "GET", "/health/ready") == 503
        with server.connect() as sock:
            sock.sendall(POST)
            refusal = read_all(sock)  # to the end: the next connection may find who is ready
        assert refusal.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in refusal
        assert b"the service is starting" in refusal
        go(server, 1)
        server.wait_log("is ready; workers=2")
        assert [status(server) for _ in range(40)] == [200] * 40
        assert [status(server, "GET", "/health/ready") for _ in range(10)] == [200] * 10
        server.signal(signal.SIGTERM)  # the other's setup() never ends
        assert server.wait_exit() == 0
        assert "stopping while the application loads" in server.log
        assert "Traceback" not in server.log and "WORKER TIMEOUT" not in server.log


def test_what_was_refused_while_it_loaded_does_not_count_towards_max_requests():
    with serving("gunicorn", LOADING, "--max-requests", "3", "--timeout", "0") as server:
        assert [status(server) for _ in range(5)] == [503] * 5
        assert server.log.count("Booting worker") == 1
        go(server, 0)
        server.wait_log("is ready; workers=1")
        assert [status(server) for _ in range(3)] == [200] * 3
        server.wait_log("max_requests reached: 3 requests served")
        server.wait_log("is ready; workers=1", 2)
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
    with serving("gunicorn", source.replace('"thread"', f'"{executor}"'), "--graceful-timeout", AGES) as server:
        server.wait_log("loading")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "is ready" not in server.log and "Traceback" not in server.log


WARMING = (
    LOADING.replace("def setup(self, worker):", "def run_inference(self, batch):")
    .replace("go{worker.index}", "go0")
    .replace("        while", '        print("warms up", flush=True)\n        while')
    .replace(
        "app =",
        '        return batch\n    example = lambda self: [1]\n    teardown = lambda self: print("torn down")\napp =',
    )
    .replace('"thread")', '"thread", warmup=(1, 2))')
)


def test_sigterm_in_a_warmup_lets_its_batch_come_back_and_tears_down_once():
    with serving("gunicorn", WARMING) as server:
        server.wait_log("warms up")
        assert (status(server, "GET", "/health/live"), status(server, "GET", "/health/ready")) == (200, 503)
        server.signal(signal.SIGTERM)
        server.wait_log("drains; connections=")
        go(server, 0)
        assert server.wait_exit() == 0
        assert server.log.count("torn down") == server.log.count("warms up") == 1
        assert "Traceback" not in server.log and "did not shut down" not in server.log


# --- what the log says -----------------------------------------------------------------------------------------

FAILING = ECHO.replace("return model_input", "raise KeyError('no such row')")
SILENCING = (
    """
import logging, logging.config
logging.getLogger("virtex").info("before the load")
logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})
"""
    + FAILING
)


def request_id(server):
    status, body = server.request("POST", "/", b'{"data":["a"]}')
    assert status == 500
    return re.search(rb"request id (\w+)", body)[1].decode()


@pytest.mark.parametrize("where", ["module", "setup", "preloaded module"])
def test_logging_that_the_application_configures_does_not_silence_virtex(where):
    source, options = SILENCING, ["--preload"] if where == "preloaded module" else []
    if where == "setup":
        line = next(line for line in SILENCING.splitlines() if "dictConfig" in line)
        source = source.replace(line, "").replace(
            "class Echo(RequestHandler):", f"class Echo(RequestHandler):\n    def setup(self, worker):\n        {line}"
        )
    with serving("gunicorn", source, "--access-logfile", "-", *options) as server:
        server.wait_log("is ready; workers=1")
        server.wait_log(f"request {request_id(server)}: run_inference raised KeyError")
        server.wait_log("KeyError: 'no such row'")
        server.wait_log('"POST / HTTP/1.1" 500')
        assert "before the load" in server.log


def test_an_import_that_fails_after_it_silenced_the_logs_is_told_all_the_same():
    with serving("gunicorn", SILENCING + "\nraise OSError('no such model')", wait=False) as server:
        assert server.wait_exit() == 3
        assert "OSError: no such model" in server.log and "Traceback" in server.log


@pytest.mark.parametrize("kind", ["dict", "json"])
def test_a_log_of_its_own_that_gunicorn_is_told_to_give_virtex_is_kept(kind, tmp_path):
    path = tmp_path / "own.log"
    handler = {"class": "logging.FileHandler", "filename": str(path), "formatter": "own"}
    config = {
        "formatters": {"own": {"format": "OWN %(message)s"}},
        "handlers": {"own": handler},
        "loggers": {"virtex": {"handlers": ["own"], "level": "INFO", "propagate": False}},
    }
    config = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}, **config}
    (tmp_path / "log.json").write_text(json.dumps(config))
    (tmp_path / "conf.py").write_text(f"logconfig_dict = {config!r}" if kind == "dict" else "")
    options = ["--log-config-json", str(tmp_path / "log.json")] if kind == "json" else []
    with serving("gunicorn", FAILING, "-c", str(tmp_path / "conf.py"), *options) as server:
        server.wait_log("is ready; workers=1")
        name = request_id(server)
        until(lambda: f"OWN request {name}" in path.read_text(), "the request in the log", server)
        assert f"request {name}" not in server.log


def test_code_that_can_not_be_imported_is_answered_with_its_error_until_it_is_mended():
    broken = "def f(:\n" + ECHO
    with serving("gunicorn", broken, "--reload", "--reload-engine", "poll") as server:
        status, body = server.request("POST", "/", b'{"data":["a"]}')
        expected = b"the application could not be imported: SyntaxError: invalid syntax (service.py, line 1)\n"
        assert (status, body) == (500, expected)
        assert "def f(:" in server.log and "Traceback" in server.log
        (server.folder / "service.py").write_text("import missing_module\n" + ECHO)
        until(lambda: b"ModuleNotFoundError: No module named 'missing_module'" in answer(server), "its error", server)
        (server.folder / "service.py").write_text(ECHO)
        until(lambda: b'"data":["a"]' in answer(server), "the service", server)


def answer(server):
    """What the service says, its file saved once more: what changes ahead of the reloader's first look goes unseen."""
    os.utime(server.folder / "service.py")
    try:
        return server.request("POST", "/", b'{"data":["a"]}')[1]
    except OSError:  # the worker was leaving
        return b""


def test_a_worker_that_hangs_in_native_code_is_killed_with_a_traceback_in_the_log():
    native = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # Python sees no signal meanwhile
    with serving("gunicorn", ECHO.replace("return model_input", native), "--timeout", "1") as server:
        server.wait_log("is ready; workers=1")
        with server.connect() as sock:
            sock.sendall(POST)
            assert read_all(sock) == b""
        assert "WORKER TIMEOUT" in server.log and "in run_inference" in server.log
