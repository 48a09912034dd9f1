"""The worker under a real gunicorn: signals, sockets, logs, life and death."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.servers import (
    AGES,
    CERTIFICATE,
    DRAIN_DELAY,
    ECHO,
    HELD_DRAIN,
    PATIENCE,
    free_port,
    listens,
    read_all,
    read_answer,
    read_response,
    serving,
    until,
)

from virtex import Limits, limits
from virtex.resident import Memory
from virtex.workers.settings import merge_limits, trust

SLOW_LOAD = (
    ECHO
    + """
import time

class Loading(Echo):
    def setup(self, worker):
        print("loading", flush=True)
        time.sleep({seconds})

app = http_server(name="loading", handler=Loading)
"""
)

REQUEST = b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"data":["a"]}'
ANSWER = b'{"data":["a"],"error":null}'

SLOW = (
    ECHO
    + """
import time

class Slow(Echo):
    def setup(self, worker):
        print("setup", worker.index, worker.count, flush=True)
    def teardown(self):
        print("teardown", flush=True)
    def run_inference(self, model_input):
        time.sleep(max(model_input))
        return model_input

app = http_server(name="slow", handler=Slow, executor="thread", max_batch_size=1, max_queue_size=64)
"""
)


def request_of(number):
    body = b'{"data":[%d]}' % number
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def post(server, body=b'{"data":["a"]}'):
    return server.request("POST", "/", body)


@pytest.fixture(scope="module")
def echo():
    with serving("gunicorn", ECHO, "--workers", "2", "--log-level", "info") as server:
        server.wait_log("is ready; workers=2", 2)
        yield server


def test_worker_answers_and_keeps_the_connection(echo):
    with echo.connect() as sock:
        for _ in range(3):
            sock.sendall(REQUEST)
            status, headers, body = read_response(sock)
            assert (status, body) == (200, ANSWER)
            assert "connection" not in headers and headers["server"] == "virtex"


def test_worker_answers_pipelined_requests_in_order(echo):
    with echo.connect() as sock:
        bodies = [b'{"data":[%d]}' % i for i in range(20)]
        sock.sendall(
            b"".join(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(b), b) for b in bodies)
        )
        answers = [json.loads(read_response(sock)[2])["data"] for _ in range(20)]
        assert answers == [[i] for i in range(20)]


def test_worker_takes_chunks_and_invites(echo):
    with echo.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'7\r\n{"data"\r\n7\r\n:["a"]}\r\n0\r\n\r\n')
        assert read_response(sock)[2] == ANSWER


def test_worker_takes_large_bodies_and_sends_large_answers(echo):
    text = "x" * 3_000_000
    status, body = post(echo, json.dumps({"data": [text]}).encode())
    assert status == 200 and json.loads(body)["data"] == [text]


def test_worker_answers_errors_behind_earlier_answers_and_closes(echo):
    with echo.connect() as sock:
        sock.sendall(REQUEST + b"GARBAGE\r\n\r\n" + REQUEST)
        assert read_response(sock)[0] == 200
        assert b" 400 " in read_all(sock)


def test_half_closed_client_gets_its_answer(echo):
    with echo.connect() as sock:
        sock.sendall(REQUEST)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).endswith(ANSWER)


def test_index_and_count_are_given_to_setup_and_a_respawned_worker_has_its_predecessors(tmp_path):
    with serving("gunicorn", SLOW, "--workers", "3") as server:
        server.wait_log("is ready; workers=3", 3)
        assert sorted(re.findall(r"setup (\d) (\d)", server.log)) == [("0", "3"), ("1", "3"), ("2", "3")]
        pid = int(re.search(r"\[(\d+)\] \[INFO\] worker index 1 is ready; workers=3", server.log)[1])
        server.signal(signal.SIGKILL, pid)
        server.wait_log("worker index 1 is ready; workers=3", 2)


def test_sigterm_answers_what_was_taken_and_tears_down():
    with serving("gunicorn", SLOW, "--graceful-timeout", "20") as server:
        server.wait_log("is ready; workers=1")
        socks = [server.connect() for _ in range(4)]
        for sock in socks:
            sock.sendall(b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"data":[0.3]}')
        idle = server.connect()
        until(lambda: server.request("GET", "/health/ready")[0] == 200, "the worker to be at work")
        server.signal(signal.SIGTERM)
        for sock in socks:
            status, headers, body = read_response(sock)
            assert (status, headers["connection"]) == (200, "close")
            assert json.loads(body)["data"] == [0.3]
            sock.close()
        assert read_all(idle) == b""
        idle.close()
        assert server.wait_exit() == 0
        assert "teardown" in server.log
        assert "Traceback" not in server.log and "was sent SIG" not in server.log


def test_drain_delay_takes_connections_while_unready(monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", str(DRAIN_DELAY))
    with serving("gunicorn", HELD_DRAIN + ECHO, "--graceful-timeout", "2000") as server:
        server.wait_log("is ready; workers=1")
        server.signal(signal.SIGTERM, server.workers()[0])
        until(lambda: server.request("GET", "/health/ready")[0] == 503, "unreadiness", server)
        assert server.request("GET", "/health/live")[0] == 200
        server.end_delay()
        server.wait_log("worker index 0 is ready; workers=1", 2)  # gunicorn replaces the worker that left


def test_drain_delay_is_not_for_a_reload_whose_checks_are_to_find_who_serves_on(monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", "20")
    with serving("gunicorn", ECHO, "--graceful-timeout", "30") as server:
        server.wait_log("is ready; workers=1")
        server.signal(signal.SIGHUP)
        server.wait_log("is ready; workers=1", 2)
        begun = time.monotonic()
        seen = Counter()
        while len(server.workers()) > 1:
            seen[server.request("GET", "/health/ready")[0]] += 1
        assert time.monotonic() - begun < 15
        assert seen.keys() <= {200}


def test_a_check_whose_connection_a_reload_catches_is_answered_as_by_who_serves_on():
    with serving("gunicorn", ECHO, "--graceful-timeout", "30") as server:
        server.wait_log("is ready; workers=1")
        request = b"GET /health/ready HTTP/1.1\r\nHost: a\r\n\r\n"
        with server.connect() as sock:
            sock.sendall(request + request[:20])
            assert read_response(sock)[0] == 200
            server.signal(signal.SIGHUP)
            server.wait_log("worker index 0 drains")
            sock.sendall(request[20:])
            status, headers, _ = read_response(sock)
            assert (status, headers["connection"]) == (200, "close")
        until(lambda: len(server.workers()) == 1, "the old worker to leave", server)


def test_tls():
    with serving("gunicorn", ECHO, "--keyfile", CERTIFICATE, "--certfile", CERTIFICATE) as server:
        server.wait_log("is ready; workers=1")
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with server.connect() as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
            for body in (b'{"data":["a"]}', json.dumps({"data": ["x" * 400_000]}).encode()):
                sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                status, _, answer = read_response(sock)
                assert status == 200 and json.loads(answer)["data"] == json.loads(body)["data"]
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b" 400 " in read_all(sock)


def test_sigint_does_not_wait_for_answers():
    with serving("gunicorn", SLOW, "--graceful-timeout", AGES) as server:
        server.wait_log("is ready; workers=1")
        with server.connect() as sock:
            sock.sendall(request_of(int(AGES)))
            until(lambda: server.request("GET", "/health/ready")[0] == 200, "the worker to be at work", server)
            server.signal(signal.SIGINT)
            assert server.wait_exit() == 0


def test_graceful_timeout_cuts_what_takes_longer():
    with serving("gunicorn", SLOW, "--graceful-timeout", "1") as server:
        server.wait_log("is ready; workers=1")
        with server.connect() as sock:
            sock.sendall(request_of(int(AGES)))
            until(lambda: server.request("GET", "/health/ready")[0] == 200, "the worker to be at work")
            server.signal(signal.SIGTERM)
            server.wait_exit()


def test_sigterm_during_a_long_load_ends_the_worker():
    source = SLOW_LOAD.replace("{seconds}", AGES)
    with serving("gunicorn", source) as server:
        server.wait_log("loading")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "is ready; workers=1" not in server.log


IMPORTED_UNTIL_TOLD = """
import signal, time
told, handler = [], signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *asked: told.append(handler(*asked)))
print("importing", flush=True)
while not told:
    time.sleep(0.01)
signal.signal(signal.SIGTERM, handler)
"""


def test_sigterm_during_the_import_ends_the_worker():
    source = IMPORTED_UNTIL_TOLD + ECHO
    with serving("gunicorn", source) as server:
        server.wait_log("importing")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "is ready" not in server.log


def test_blocked_loop_is_killed_with_a_traceback_in_the_log():
    source = ECHO.replace("return model_input", f"import time; time.sleep({AGES})")
    with serving("gunicorn", source, "--timeout", "1") as server:
        server.wait_log("is ready; workers=1")
        with server.connect() as sock:
            sock.sendall(REQUEST)
            assert read_all(sock) == b""
        server.wait_log("no heartbeat for 1 s")
        assert "in run_inference" in server.log
        server.wait_log("worker index 0 is ready; workers=1", 2)
        assert server.request("GET", "/health/ready")[0] == 200


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_load_may_take_longer_than_the_timeout(kind):
    source = SLOW_LOAD.replace("{seconds}", "3")
    if kind == "async":  # and listens before it holds the loop for so long
        source = source.replace("def setup", "async def setup").replace("time.sleep", "await sleep(0.6); time.sleep")
        source = "from asyncio import sleep\n" + source
    with serving("gunicorn", source, "--timeout", "1") as server:
        server.wait_log("worker index 0 is ready; workers=1")
        assert "WORKER TIMEOUT" not in server.log


def test_workers_leave_when_the_master_is_gone(tmp_path):
    with serving("gunicorn", ECHO, "--workers", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        workers = server.workers()
        server.signal(signal.SIGKILL)
        server.wait_exit()
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), "the workers to leave")
        assert not listens(server.port)


def test_failing_setup_ends_the_service_with_code_3_and_says_why():
    source = ECHO.replace(
        "return model_input",
        "return model_input\n    def setup(self, worker):\n        raise FileNotFoundError('model.bin')",
    )
    with serving("gunicorn", source, wait=False) as server:
        assert server.wait_exit() == 3
        assert "FileNotFoundError: model.bin" in server.log


def test_later_failure_costs_its_worker_only(tmp_path):
    mark = tmp_path / "mark"
    source = (
        ECHO
        + f"""
import os
class Once(Echo):
    def setup(self, worker):
        if worker.index == 1:
            if os.path.exists({str(mark)!r}):
                raise MemoryError("no room for the model")
            open({str(mark)!r}, "w").close()
app = http_server(name="o", handler=Once)
"""
    )
    with serving("gunicorn", source, "--workers", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        pid = int(re.search(r"\[(\d+)\] \[INFO\] worker index 1 is ready; workers=2", server.log)[1])
        server.signal(signal.SIGKILL, pid)
        server.wait_log("worker 1 did not start; another try in 2 s")
        assert post(server)[0] == 200
        mark.unlink()
        server.wait_log("worker index 1 is ready; workers=2", 2)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_the_collector_is_spared_what_was_loaded(preload):
    source = (
        ECHO
        + """
import gc
class Counting(Echo):
    def process_response(self, item):
        return gc.get_freeze_count()
app = http_server(name="counting", handler=Counting)
"""
    )
    with serving("gunicorn", source, *preload) as server:
        server.wait_log("is ready; workers=1")
        frozen = json.loads(post(server)[1])["data"][0]
        assert frozen > 10_000


def test_max_requests_restarts_the_worker():
    with serving("gunicorn", ECHO, "--max-requests", "5") as server:
        server.wait_log("is ready; workers=1")
        for _ in range(5):
            assert post(server)[0] == 200
        server.wait_log("max_requests reached")
        server.wait_log("worker index 0 is ready; workers=1", 2)
        assert post(server)[0] == 200


def test_a_worker_whose_device_is_gone_leaves_and_another_one_serves():
    source = ECHO + (
        "from virtex.service.register import REGISTER\n"
        "class Loses(Echo):\n"
        "    def run_inference(self, model_input):\n"
        "        if 'lose' in model_input:\n"
        "            REGISTER.gone = \"service 'x': its device is gone\"\n"
        "        return model_input\n"
        "app = http_server('x', Loses())\n"
    )
    with serving("gunicorn", source) as server:
        server.wait_log("is ready; workers=1")
        assert post(server, b'{"data":["lose"]}')[0] == 200
        server.wait_log("service 'x': its device is gone")
        server.wait_log("worker index 0 is ready; workers=1", 2)
        assert post(server)[0] == 200


def test_hup_serves_on_while_the_new_workers_load():
    source = SLOW_LOAD.replace("time.sleep({seconds})", "while not os.path.exists('go'): time.sleep(0.01)")
    with serving("gunicorn", "import os\n" + source) as server:
        (server.folder / "go").touch()
        server.wait_log("is ready; workers=1")
        (server.folder / "go").unlink()
        server.signal(signal.SIGHUP)
        server.wait_log("loading", 2)
        assert [post(server) for _ in range(20)] == [(200, ANSWER)] * 20  # a loading worker would not answer
        (server.folder / "go").touch()
        server.wait_log("is ready; workers=1", 2)
        server.wait_log("Worker exiting")
        assert post(server)[0] == 200


def replace_app(server, source):
    """A deployment: the next reload imports this."""
    path = server.folder / "service.py"
    path.write_text(source)
    os.utime(path, (0, next(REPLACED)))  # or bytecode of the same second and size would be taken for it


REPLACED = itertools.count(1)
BROKEN = "raise RuntimeError('a mistake in the new code')\n"
NEW = ECHO.replace('name="echo"', 'name="new"')


def test_code_that_can_not_be_loaded_leaves_the_old_workers_until_a_good_reload():
    with serving("gunicorn", ECHO, "--workers", "2", "--max-requests", "5", "--graceful-timeout", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        old = set(server.workers())
        replace_app(server, BROKEN)
        server.signal(signal.SIGHUP)
        server.wait_log("did not start; those from before the reload serve on", 2)
        assert "a mistake in the new code" in server.log
        reached = "max_requests reached: 5 requests served; not acted on until a newer worker is ready"
        with contextlib.ExitStack() as kept:

            def has_reached_it_in_both():
                """A connection that stays open leaves the next one to the other worker, sooner or later."""
                sock = kept.enter_context(server.connect())
                for _ in range(6):
                    sock.sendall(REQUEST)
                    assert read_response(sock)[2] == ANSWER
                return server.log.count(reached) == 2

            until(has_reached_it_in_both, "both workers to serve their number", server)
        for pid in old:
            server.signal(signal.SIGTERM, pid)
        until(lambda: set(server.workers()) == old, "the new workers to leave", server)
        assert post(server) == (200, ANSWER)
        replace_app(server, NEW)
        server.signal(signal.SIGHUP)
        until(lambda: not old & set(server.workers()), "the old workers to leave", server)
        assert b'"new"' in server.request("GET", "/")[1]


def test_settings_whose_hook_raises_leave_the_old_workers(tmp_path):
    settings = tmp_path / "settings.py"
    settings.write_text("")
    with serving("gunicorn", ECHO, "--config", str(settings)) as server:
        server.wait_log("is ready; workers=1")
        settings.write_text("def post_worker_init(worker):\n    raise KeyError('a mistake in the settings')\n")
        server.signal(signal.SIGHUP)
        server.wait_log("did not start; those from before the reload serve on")
        assert "a mistake in the settings" in server.log
        assert post(server) == (200, ANSWER)


HANGING = (
    ECHO
    + """
import asyncio

class Hanging(Echo):
    async def setup(self, worker):
        print("hanging", flush=True)
        await asyncio.sleep(3600)

app = http_server(name="hanging", handler=Hanging)
"""
)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_service_ends_at_once_though_a_reload_hangs(end):
    with serving("gunicorn", SLOW, "--graceful-timeout", AGES) as server:
        server.wait_log("is ready; workers=1")
        replace_app(server, HANGING)
        server.signal(signal.SIGHUP)
        server.wait_log("hanging")
        server.wait_log("serves on until a newer worker is ready")
        (old, _) = workers = server.workers()
        server.signal(signal.SIGTERM, old)
        with server.connect() as sock:
            sock.sendall(request_of(1))
            until(lambda: server.request("GET", "/health/ready")[0] == 200, "the old worker to be at work", server)
            server.signal(end)
            if end == signal.SIGTERM:
                assert json.loads(read_response(sock)[2])["data"] == [1]
            server.wait_exit()
            until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), "the workers to leave")


def test_ttin_and_ttou_change_the_number_of_workers():
    with serving("gunicorn", ECHO) as server:
        server.wait_log("is ready; workers=1")
        server.signal(signal.SIGTTIN)
        server.wait_log("worker index 1 is ready; workers=1")
        server.signal(signal.SIGTTOU)
        server.wait_log("Worker exiting")
        assert post(server)[0] == 200


def test_usr2_starts_a_second_master_beside_the_first():
    with serving("gunicorn", ECHO) as server:
        server.wait_log("is ready; workers=1")
        server.signal(signal.SIGUSR2)
        server.wait_log("worker index 0 is ready; workers=1", 2)
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert post(server) == (200, ANSWER)


def test_an_upgrade_by_usr2_refuses_nobody_while_it_loads_and_finds_no_check_unready(monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", "20")
    source = SLOW_LOAD.replace("time.sleep({seconds})", "while not os.path.exists('go'): time.sleep(0.01)")
    source = source.replace("handler=Loading)", "handler=Loading, executor='thread')")
    with serving("gunicorn", "import os\n" + source, wait=False) as server:
        (server.folder / "go").touch()
        server.wait_log("is ready; workers=1")
        request = b"GET /health/ready HTTP/1.1\r\nHost: a\r\n\r\n"
        with server.connect() as sock:
            sock.sendall(request + request[:20])
            assert read_response(sock)[0] == 200
            (server.folder / "go").unlink()
            server.signal(signal.SIGUSR2)
            server.wait_log("loading", 2)
            load = [json.loads(server.request("GET", "/metrics/live")[1])["workers"] for _ in range(100)]
            assert {worker["state"] for workers in load for worker in workers} == {"ready"}
            (server.folder / "go").touch()
            server.wait_log("is ready; workers=1", 2)
            server.signal(signal.SIGTERM)
            server.wait_log("worker index 0 drains")
            sock.sendall(request[20:])
            assert read_response(sock)[0] == 200
        assert server.wait_exit(15) == 0  # without the delay
        assert post(server) == (200, ANSWER)


def test_usr1_reopens_the_logs_of_every_worker(tmp_path):
    log, moved = tmp_path / "error.log", tmp_path / "moved.log"
    with serving("gunicorn", ECHO, "--error-logfile", str(log)) as server:
        until(lambda: "is ready" in log.read_text(), "the worker to be ready", server)
        log.rename(moved)
        server.signal(signal.SIGUSR1)
        until(log.exists, "the log to be opened anew", server)
        (pid,) = server.workers()
        until(lambda: str(log) in _open_files(pid), "the worker to open it too", server)


def _open_files(pid):
    return [os.path.realpath(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]


def test_unix_socket(tmp_path):
    path = tmp_path / "socket"
    with serving("gunicorn", ECHO, "--bind", f"unix:{path}", wait=False) as server:
        server.wait_log("is ready; workers=1")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(REQUEST)
            assert read_response(sock)[2] == ANSWER


def test_several_binds():
    first, second = free_port(), free_port()
    with serving(
        "gunicorn", ECHO, "--bind", f"127.0.0.1:{first}", "--bind", f"127.0.0.1:{second}", wait=False
    ) as server:
        server.wait_log("is ready; workers=1")
        for port in first, second:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("POST", "/", b'{"data":["a"]}')
            assert connection.getresponse().read() == ANSWER
            connection.close()


@pytest.mark.parametrize("option", ["--preload", "--reuse-port"])
def test_option_is_honoured(option):
    with serving("gunicorn", ECHO, option, "--workers", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        assert post(server) == (200, ANSWER)


def test_reload_restarts_on_a_changed_file():
    with serving("gunicorn", ECHO, "--reload", "--reload-engine", "poll") as server:
        server.wait_log("is ready; workers=1")
        path = server.folder / "service.py"
        path.write_text(ECHO.replace('"echo"', '"other"'))

        def is_new():
            os.utime(path)  # once more: what changes ahead of the reloader's first look goes unseen
            try:
                return b'"other"' in server.request("GET", "/")[1]
            except OSError:  # the worker was leaving
                return False

        until(is_new, "the new service", server)


def test_backlog_is_passed_on():
    with serving("gunicorn", ECHO, "--backlog", "321") as server:
        server.wait_log("is ready; workers=1")
        assert _backlog(server.port) == 321


def _backlog(port):
    """Send-Q of a listening socket, as the kernel tells it to ss."""
    out = subprocess.run(["ss", "-ltnH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(out.split()[2])


def test_log_level_rules_our_loggers():
    with serving("gunicorn", ECHO, "--log-level", "warning", wait=True) as server:
        until(lambda: server.request("GET", "/health/ready")[0] == 200, "readiness", server)
        assert server.log == ""
    with serving("gunicorn", ECHO, "--log-level", "info") as server:
        server.wait_log("[INFO] service 'echo' is ready in process")


def test_more_worker_connections_than_files_start_with_a_warning():
    with serving("gunicorn", ECHO, "--worker-connections", "100000000") as server:
        server.wait_log("is ready; workers=1")
        assert "RLIMIT_NOFILE" in server.log and post(server)[0] == 200


def test_settings_that_can_not_be_honoured_are_refused_by_name():
    options = ["--proxy-protocol", "auto", "--threads", "4", "--permit-obsolete-folding", "--http-protocols", "h1,h2"]
    with serving("gunicorn", ECHO, *options, wait=False) as server:
        assert server.wait_exit() != 0
        assert "VirtexWorker does not take these settings" in server.log
        for name in ("proxy_protocol", "threads", "permit_obsolete_folding", "http_protocols"):
            assert name in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("delay", "says"),
    [("soon", "VIRTEX_DRAIN_DELAY='soon': expected seconds from 0 to 3600"), ("100", "less than graceful_timeout")],
)
def test_a_drain_delay_that_can_not_be_is_said_without_a_traceback(delay, says, monkeypatch):
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", delay)
    with serving("gunicorn", ECHO, wait=False) as server:
        assert server.wait_exit() == 1
        assert says in server.log and "Traceback" not in server.log


EXITS = (
    ECHO
    + """
import sys

class Exits(Echo):
    {method} def process_response(self, item):
        return sys.exit(item) if item in (3, 4) else item

app = http_server(name="exits", handler=Exits())
"""
)


@pytest.mark.parametrize("method", ["", "async"], ids=["inline", "async"])
def test_an_exit_in_a_handler_ends_neither_the_service_nor_the_worker(method):
    source = EXITS.replace("{method} def", f"{method} def".strip())
    with serving("gunicorn", source) as server:
        assert post(server)[0] == 200
        workers = server.workers()
        for code in (3, 4):  # to gunicorn's master they mean that no worker can start
            assert post(server, b'{"data":[%d]}' % code)[0] == 500
            assert post(server) == (200, b'{"data":["a"],"error":null}')
        assert server.workers() == workers
        assert server.log.count("SystemExit") >= 2


def test_access_log_is_written_when_asked_for():
    with serving("gunicorn", ECHO, "--access-logfile", "-") as server:
        server.wait_log("is ready; workers=1")
        post(server)
        server.request("GET", "/%0a%22x")
        server.wait_log('"POST / HTTP/1.1" 200 27')
        server.wait_log('"GET /%0a%22x HTTP/1.1" 405')


def test_statsd_counts_requests_without_an_access_log():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(PATIENCE)
        with serving("gunicorn", ECHO, "--statsd-host", f"127.0.0.1:{sink.getsockname()[1]}") as server:
            server.wait_log("is ready; workers=1")
            post(server)
            while not sink.recv(4096).startswith(b"gunicorn.request.status.200:1|c"):
                pass


def test_app_may_be_a_function_that_makes_it():
    source = ECHO.replace("app = http_server(", "def app():\n    return http_server(")
    with serving("gunicorn", source) as server:
        assert post(server) == (200, ANSWER)


ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        print("started", flush=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("stopped", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})
"""


def test_any_asgi_application_is_served_with_its_lifespan():
    with serving("gunicorn", ASGI) as server:
        assert server.request("POST", "/", b"hello") == (200, b"hello")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "started" in server.log and "stopped" in server.log


@pytest.mark.parametrize("kind", ["serve", "protocol"])
def test_embedded_in_a_program(kind):
    with serving(kind, ECHO) as server:
        assert post(server) == (200, ANSWER)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0, server.log


def test_connections_opened_at_once_spread_over_the_workers():
    source = ECHO.replace("return item", "import os; return os.getpid()")
    core = min(os.sched_getaffinity(0))  # on one alone, who wakes first would have them all

    def most_of_one_worker():
        socks = [server.connect() for _ in range(64)]
        shares = Counter()
        for sock in socks:
            with sock:
                sock.sendall(REQUEST)
                shares[json.loads(read_response(sock)[2])["data"][0]] += 1
        return max(shares.values())

    with serving("gunicorn", source, "--workers", "2", preexec_fn=lambda: os.sched_setaffinity(0, {core})) as server:
        server.wait_log("is ready; workers=2", 2)
        # Who gets no time for 50 ms, as on a busy machine, is not waited for: so several tries.
        assert any(most_of_one_worker() <= 44 for _ in range(11))


# --- what needs no process -----------------------------------------------------------------------------------


def settings_of(**changed):
    from gunicorn.config import Config

    cfg = Config()
    for name, value in changed.items():
        cfg.set(name, value)
    return cfg


LOG = SimpleNamespace(warning=lambda *_: None)


def test_settings_at_gunicorns_default_leave_the_limits_of_the_application():
    limits = Limits(connections=100)
    assert replace(merge_limits(limits, settings_of(), LOG), max_bytes=None) == limits


def test_workers_divide_the_memory_that_there_is(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: Memory(1 << 30, "a cgroup"))
    assert merge_limits(Limits(), settings_of(workers=4), LOG).max_bytes == 1 << 26
    assert merge_limits(Limits(max_bytes=5), settings_of(workers=4), LOG).max_bytes == 5


def test_connections_with_tls_are_no_more_than_memory_is_there_for(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: Memory(200_000_000, "a cgroup"))
    tls = {"certfile": str(CERTIFICATE), "keyfile": str(CERTIFICATE)}
    assert merge_limits(Limits(), settings_of(**tls), LOG).connections == 1000
    assert merge_limits(Limits(connections=7), settings_of(**tls), LOG).connections == 7
    assert merge_limits(Limits(), settings_of(**tls, worker_connections=2000), LOG).connections == 2000
    assert merge_limits(Limits(max_bytes=50_000_000), settings_of(**tls), LOG).connections > 1000
    assert merge_limits(Limits(), settings_of(), LOG).connections > 1000


def test_settings_become_limits():
    cfg = settings_of(keepalive=7, limit_request_line=500, limit_request_fields=10, limit_request_field_size=100)
    limits = merge_limits(Limits(connections=100), cfg, LOG)
    assert (limits.keep_alive_seconds, limits.request_line, limits.header_fields) == (7, 500, 10)
    assert limits.header_bytes == 1000


@pytest.mark.parametrize(
    ("peer", "headers", "https"),
    [
        (("127.0.0.1", 1), [(b"x-forwarded-proto", b"https")], True),
        (("127.0.0.1", 1), [(b"x-forwarded-proto", b"http")], False),
        (("127.0.0.1", 1), [], False),
        (("10.1.2.3", 1), [(b"x-forwarded-proto", b"HTTPS")], True),
        (("10.2.2.3", 1), [(b"x-forwarded-proto", b"https")], False),
        (("127.0.0.1", 1), [(b"x-forwarded-proto", b"https"), (b"x-forwarded-ssl", b"off")], False),
        ("", [(b"x-forwarded-ssl", b"on")], True),
    ],
)
def test_scheme_is_believed_from_trusted_proxies_only(peer, headers, https):
    says_https = trust(settings_of(forwarded_allow_ips="127.0.0.1,10.1.0.0/16"))
    assert says_https(peer, headers) is https


def test_any_proxy_may_be_trusted():
    assert trust(settings_of(forwarded_allow_ips="*"))(("8.8.8.8", 1), [(b"x-forwarded-proto", b"https")])


def test_no_limit_in_gunicorn_is_none_here():
    cfg = settings_of(limit_request_line=0, limit_request_field_size=0)
    limits = merge_limits(Limits(connections=100), cfg, LOG)
    assert limits.request_line > 1 << 30 and limits.header_bytes > 1 << 30


# --- nothing is lost -------------------------------------------------------------------------------------------

BATCHING = (
    ECHO
    + """
import time

class Slow(Echo):
    def run_inference(self, model_input):
        time.sleep(0.02)
        return model_input

app = http_server(name="slow", handler=Slow, executor="thread", max_batch_size=64, max_queue_size=4096)
"""
)


def test_sigterm_with_a_thousand_requests_in_flight_loses_none():
    with serving("gunicorn", BATCHING, "--workers", "2", "--graceful-timeout", "30") as server:
        server.wait_log("is ready; workers=2", 2)
        socks = [server.connect() for _ in range(200)]
        for i, sock in enumerate(socks):
            sock.sendall(b"".join(request_of(5 * i + k) for k in range(5)))
        # The kernel has the bytes; an answer on the last connection says that the workers have read them.
        first = read_response(socks[-1])
        server.signal(signal.SIGTERM)
        answers = [json.loads(first[2])["data"][0]]
        for sock in socks:
            with sock:
                text = read_all(sock)
            assert text.count(b"HTTP/1.1 200 OK") == text.count(b"HTTP/1.1")
            answers += [int(n) for n in re.findall(rb'\{"data":\[(\d+)\]', text)]
        assert sorted(answers) == list(range(1000))
        assert server.wait_exit() == 0


class Load:
    """Clients in a loop, each on a connection until that says close, then on a new one, until told to stop.

    Every request has a number of its own, so an answer that is lost, cut, another's or there twice is seen.
    """

    def __init__(self, server):
        self.server = server
        self.stopping = False
        self.numbers = itertools.count(10)
        self.answered = 0
        self.failures = []

    async def run(self, clients):
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._run())

    async def _run(self):
        while not self.stopping:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._visit()
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(repr(error))

    async def _visit(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        closes = False
        while not (closes or self.stopping):
            number = next(self.numbers)
            writer.write(request_of(number))
            status, head, body = await read_answer(reader)
            if status != 200 or body != b'{"data":[%d],"error":null}' % number:
                self.failures.append((number, head, body))
            self.answered += 1
            closes = b"connection: close" in head
        if closes and (more := await reader.read()):
            self.failures.append(more)
        writer.close()


async def wait_for_answers(load, count):
    async with asyncio.timeout(PATIENCE):
        while load.answered < count:
            await asyncio.sleep(0.01)


def test_hup_under_the_load_of_two_hundred_connections_loses_nothing():
    async def main(server):
        load = Load(server)
        clients = asyncio.create_task(load.run(200))
        await wait_for_answers(load, 1000)
        server.signal(signal.SIGHUP)
        await asyncio.to_thread(server.wait_log, "Worker exiting", 2)
        await wait_for_answers(load, load.answered + 1000)  # the new workers'
        load.stopping = True
        await clients
        assert load.failures == []

    with serving("gunicorn", BATCHING, "--workers", "2", "--graceful-timeout", "20") as server:
        server.wait_log("is ready; workers=2", 2)
        asyncio.run(main(server))
        server.wait_log("is ready; workers=2", 4)
        assert server.log.count("is ready; workers=2") == 4


def test_reload_that_takes_longer_than_the_graceful_timeout_loses_nothing():
    async def main(server):
        load = Load(server)
        clients = asyncio.create_task(load.run(20))
        await wait_for_answers(load, 100)
        replace_app(server, BATCHING + LOADS_FOR_4_S)
        server.signal(signal.SIGHUP)
        await asyncio.to_thread(server.wait_log, "Worker exiting")
        await wait_for_answers(load, load.answered + 100)
        load.stopping = True
        await clients
        assert load.failures == []

    with serving("gunicorn", BATCHING, "--graceful-timeout", "3") as server:
        server.wait_log("is ready; workers=1")
        asyncio.run(main(server))
        assert "loaded" in server.log[: server.log.index("Worker exiting")]


LOADS_FOR_4_S = """
class Loading(Slow):
    def setup(self, worker):
        time.sleep(4)
        print("loaded", flush=True)

app = http_server(name="loading", handler=Loading, executor="thread")
"""
