"""Signals as the master and its workers see them."""

import os
import re
import signal
from pathlib import Path

import pytest
from kit import needs
from kit.pages import install
from kit.servers import ECHO, ROOT, serving, until

from virtex.workers import signals


@pytest.fixture
def handled():
    """What the handlers of the three signals were called with; as they were before, in the end."""
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT
    before = [signal.getsignal(number) for number in numbers]
    seen = []
    for number in numbers:
        signal.signal(number, lambda sig, frame: seen.append(sig))
    yield seen
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_the_stop_is_marked_ahead_of_what_the_handler_does_in_the_master_alone(handled, monkeypatch):
    signals.watch_for_stop(lambda is_handed_over: handled.append("stop"))
    signal.raise_signal(signal.SIGTERM)
    assert handled == ["stop", signal.SIGTERM]
    monkeypatch.setattr(os, "getpid", lambda: 1)  # a worker that has just been forked
    signal.raise_signal(signal.SIGQUIT)
    assert handled == ["stop", signal.SIGTERM, signal.SIGQUIT]


def test_a_stop_says_whether_another_master_is_its_successor():
    class Master:
        reexec_pid = 0

        def signal(self, sig, frame):
            pass

    master, said = Master(), []
    before = signal.signal(signal.SIGTERM, master.signal)
    try:
        signals.watch_for_stop(said.append)
        signal.raise_signal(signal.SIGTERM)
        master.reexec_pid = 7
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == [False, True]


def test_where_threads_stand_is_written_to_the_first_stream_with_a_file(tmp_path, monkeypatch):
    enabled = []

    def enable(stream):
        stream.fileno()
        enabled.append(stream)

    monkeypatch.setattr(signals.faulthandler, "enable", enable)
    with open(tmp_path / "log", "w") as file:
        signals.trace_to([None, object(), file])
        assert enabled == [file]


ADOPTS = """
def on_starting(server):  # what is left behind becomes its child, as that of the first process of a container
    import ctypes
    PR_SET_CHILD_SUBREAPER = 36
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
"""
LEAVES = """
import os, subprocess

class Leaves(Echo):
    def process_response(self, code):
        return int(subprocess.check_output(["sh", "-c", f"(read line <gate; exit {code}) >&- & echo $!"]))

os.mkfifo("gate")
app = http_server(name="leaves", handler=Leaves)
"""
FAILS = ECHO + "raise ValueError('no model')\n"


@pytest.fixture
def oldest_gunicorn(tmp_path, monkeypatch):
    needs.time()
    (version,) = re.findall(r'"gunicorn>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    install([f"gunicorn=={version}"], tmp_path / "venv")
    (path,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    monkeypatch.setenv("PYTHONPATH", str(path))
    (tmp_path / "adopts.py").write_text(ADOPTS)
    return version, "--config", str(tmp_path / "adopts.py")


def test_an_orphan_whose_code_is_that_of_a_start_that_failed_ends_nothing_with_the_oldest_gunicorn(oldest_gunicorn):
    version, *options = oldest_gunicorn
    with serving("gunicorn", ECHO + LEAVES, *options) as server:
        server.wait_log(f"Starting gunicorn {version}")
        server.wait_log("is ready; workers=1")
        for code in (3, 4):
            pid = int(re.findall(rb"\d+", server.request("POST", "/", b'{"data":[%d]}' % code)[1])[0])
            until(lambda pid=pid: pid in server.workers(), "the master to adopt it", server)
            (server.folder / "gate").write_text("go\n")
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the master to reap it", server)
            assert server.request("GET", "/health/ready")[0] == 200
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0


def test_a_worker_that_can_not_start_ends_the_service_with_the_oldest_gunicorn_too(oldest_gunicorn):
    with serving("gunicorn", FAILS, *oldest_gunicorn[1:], wait=False) as server:
        assert server.wait_exit() == 3
        assert "no model" in server.log
