"""deploy/systemd/: the units as systemd reads them, and a service as they start it, with systemd's side played."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from kit.booted import Booted
from kit.pages import Page
from kit.servers import ECHO, ROOT, free_port, until
from kit.systemd import PROGRAM, SERVICE, SOCKET, UNITS, Systemd, environment, exec_start, installed, setting, settings

from virtex.workers import systemd
from virtex.workers.scoreboard import DRAINING, READY, Scoreboard

PAGE = Page(ROOT / "docs" / "systemd.md")
COMMANDS = PAGE.commands(__file__)
SECOND = 10**9

LOADS = (
    ECHO
    + """
import os, time

app = http_server(name="loads", handler=lambda: Loads())

class Loads(Echo):
    def setup(self, worker):
        time.sleep(0.7)
        print("loaded", os.environ.keys() & {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"}, flush=True)
"""
)


FORBIDDEN = """
    def try_what_is_forbidden(self):
        import pathlib, socket
        assert os.getuid() > 60000 and pathlib.Path(os.environ["HOME"]).is_dir()
        for what in (
            lambda: open("/opt/virtex/server.py", "a"),
            lambda: os.listdir("/root"),
            lambda: socket.socket(socket.AF_INET),
            lambda: os.chroot("/"),
            lambda: open("/dev/kmsg"),
        ):
            try:
                what()
            except OSError as error:
                continue
            raise AssertionError(f"{what} was let")
        (pathlib.Path(os.environ["HOME"]) / "file").write_text("may")
"""


# -- what is said, and when


@pytest.fixture
def board():
    board = Scoreboard()
    start(board, age=1, generation=1)
    return board


def start(board, age, generation):
    """A worker begins; it lives, for this process does."""
    index = board.take(age, generation)
    board.own(index, age)
    return index


def test_a_start_is_over_when_a_worker_is_ready(board):
    told = systemd.Told()
    start(board, 2, 1)
    assert told.next(board, 0) == ["STATUS=0 of 2 workers are ready"]
    board.set_state(1, READY)
    assert told.next(board, 1) == ["READY=1", "STATUS=1 of 2 workers are ready"]
    assert told.next(board, 2) == []


def reloading(board):
    told = systemd.Told()
    board.set_state(0, READY)
    assert told.next(board, 0)[0] == "READY=1"
    return told, start(board, 2, generation=2)


def test_a_reload_begins_with_its_first_worker_and_is_over_when_one_is_ready(board):
    told, new = reloading(board)
    assert told.next(board, 7000) == [
        "RELOADING=1\nMONOTONIC_USEC=7",
        "STATUS=1 of 2 workers are ready, none of the newest code",
    ]
    board.set_state(new, READY)
    board.set_state(0, DRAINING)
    assert told.next(board, 8000) == ["READY=1", "STATUS=1 of 2 workers are ready"]


def test_a_reload_that_nobody_saw_begin_is_told_all_the_same(board):
    told, new = reloading(board)
    board.set_state(new, READY)
    assert told.next(board, 7000)[:2] == ["RELOADING=1\nMONOTONIC_USEC=7", "READY=1"]


def test_a_reload_is_over_when_the_new_code_fails_for_the_old_goes_on(board):
    told, new = reloading(board)
    assert told.next(board, 1)[0].startswith("RELOADING=1")
    board.count_failure()
    board.release(new)
    assert told.next(board, 2) == ["READY=1", "STATUS=1 of 1 workers are ready, none of the newest code"]
    start(board, 3, generation=3)  # another try: failures of the last one don't end it
    assert told.next(board, 3)[0].startswith("RELOADING=1") and told.next(board, 4) == []


def test_a_stop_is_told_once_and_nothing_behind_it_but_signs_of_life(board):
    told = systemd.Told(watchdog=8 * SECOND)
    board.set_state(0, READY)
    told.next(board, 0)
    board.mark_stop()
    start(board, 2, generation=2)
    assert "STOPPING=1" in told.next(board, 1)
    board.set_state(1, READY)
    assert [line for line in told.next(board, 2 * SECOND) if "READY" in line or "STOP" in line] == []
    assert told.next(board, 4 * SECOND) == ["WATCHDOG=1"]


def test_a_sign_of_life_comes_four_times_in_the_time_that_systemd_waits(board):
    told = systemd.Told(watchdog=8 * SECOND)
    at = [now for now in range(80) if "WATCHDOG=1" in told.next(board, now * SECOND // 4)]
    assert at == list(range(0, 80, 8))


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setattr(systemd, "_taken", {})

    def give(**names):
        for name, value in names.items():
            monkeypatch.setenv(name, str(value).replace("{pid}", str(systemd.os.getpid())))
        systemd.take()

    return give


def configuration(**more):
    return SimpleNamespace(**{"reuse_port": False, "when_ready": None, **more})


def test_sockets_of_systemd_and_reuse_port_are_refused(given):
    given(LISTEN_FDS=1, LISTEN_PID="{pid}")
    with pytest.raises(ValueError, match="^reuse_port: each worker would open a socket of its own"):
        systemd.report(configuration(reuse_port=True), lambda: None)


def test_sockets_for_another_process_are_none_of_ours(given):
    given(LISTEN_FDS=1, LISTEN_PID=1)
    systemd.report(configuration(reuse_port=True), lambda: None)


def test_a_watchdog_that_the_master_can_not_keep_is_refused(given):
    given(WATCHDOG_USEC=2_000_000, WATCHDOG_PID="{pid}")
    with pytest.raises(ValueError, match=r"^WatchdogSec=2: expected 4 s or more, for gunicorn's master turns once a"):
        systemd.report(configuration(), lambda: None)


def test_the_watchdog_of_another_process_is_none_of_ours(given):
    given(WATCHDOG_USEC=1, WATCHDOG_PID=1)
    systemd.report(configuration(), lambda: None)


# -- a service, with systemd's side played


@contextmanager
def clients(path, count=4):
    """Clients in a loop, a connection for each request: what they were answered, by what it was."""
    seen, over = Counter(), threading.Event()

    def loop(first):
        for number in itertools.count(first, count):
            if over.wait(0.005):  # what starts needs the cores
                return
            try:
                seen["right" if ask(path, number) == (200, number) else "wrong"] += 1
            except Exception as error:
                seen[repr(error)] += 1

    threads = [threading.Thread(target=loop, args=(first,)) for first in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def connected(path):
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX) if isinstance(path, str) else socket.socket()
    connection.sock.settimeout(60)
    connection.sock.connect(path)
    return connection


def ask(path, number):
    connection = connected(path)
    try:
        connection.request("POST", "/", json.dumps({"data": [number]}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["data"][0]
    finally:
        connection.close()


def more(seen):
    """Wait until each client has been answered again."""
    now = seen["right"]
    until(lambda: seen["right"] > now + 2 * 4, f"answers, but {seen}")


def test_a_service_under_systemd_loses_nobody(tmp_path):
    with Systemd(tmp_path, LOADS) as manager:
        early = [connected(path) for path in (manager.path, manager.sockets[1].getsockname())]
        for connection in early:
            connection.request("POST", "/", '{"data": [1]}')
        manager.start("--workers", "2", watchdog=4)
        assert "loaded set()" in manager.log  # READY=1 comes behind setup(); the environment is none of the workers'
        for connection in early:
            assert connection.getresponse().read() == b'{"data":[1],"error":null}'
            connection.close()
        with clients(manager.path) as seen:
            more(seen)
            manager.signal(signal.SIGHUP)
            manager.wait("READY=1", 2)
            assert manager.words == ["READY=1", "RELOADING=1", "READY=1"]
            (stamp,) = (line for line in manager.messages if line.startswith("MONOTONIC_USEC="))
            assert 0 <= time.monotonic_ns() // 1000 - int(stamp.partition("=")[2]) < 60_000_000
            manager.wait("WATCHDOG=1", 3)
            more(seen)
            assert manager.stop() == 0
            assert manager.words[3:] == ["STOPPING=1"]
            manager.start()  # meanwhile they wait in the queue
            more(seen)
        assert set(seen) == {"right"}, seen
        assert manager.stop() == 0
        assert manager.sockets[1].getsockname() and (tmp_path / "virtex.sock").is_socket()


def test_code_that_fails_ends_the_reload_and_the_service_goes_on(tmp_path):
    with Systemd(tmp_path, ECHO) as manager:
        manager.start()
        (tmp_path / "server.py").write_text("no Python")
        manager.signal(signal.SIGHUP)
        manager.wait("READY=1", 2)
        assert manager.words == ["READY=1", "RELOADING=1", "READY=1"]
        manager.wait("STATUS=1 of 1 workers are ready, none of the newest code")
        assert ask(manager.path, 5) == (200, 5)


def test_a_model_that_can_not_be_loaded_is_never_ready(tmp_path):
    source = LOADS.replace("time.sleep(0.7)", "raise FileNotFoundError('model.bin')")
    with Systemd(tmp_path, source) as manager:
        manager.start(wait=False)
        assert manager.process.wait(30) == 3 and manager.words == []
        assert "model.bin" in manager.log


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--reuse-port"], "reuse_port: each worker would open a socket of its own"),
        (["--bind", "fd://3"], "bind: fd:// names a socket of systemd, whose sockets are taken anyway; leave it out"),
    ],
)
def test_options_that_go_ill_with_the_sockets_of_systemd_are_refused(options, why, tmp_path):
    with Systemd(tmp_path, ECHO) as manager:
        manager.start(*options, wait=False)
        assert manager.process.wait(30) != 0
        assert why in manager.log


def test_the_tool_of_systemd_itself_starts_it(tmp_path):
    tool, port = installed("systemd-socket-activate"), free_port()
    (tmp_path / "server.py").write_text(ECHO)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [tool, "-l", f"127.0.0.1:{port}", "-E", "PYTHONPATH", "-E", "PATH", *exec_start()],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: b"Listening on" in (tmp_path / "log").read_bytes(), "the socket")
        assert ask(("127.0.0.1", port), 3) == (200, 3), (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0, (tmp_path / "log").read_text()


# -- the units


def test_a_systemd_that_runs_starts_reloads_and_restarts_it_as_the_page_says(tmp_path):
    """With everything that the units forbid."""
    source = LOADS.replace('print("loaded",', 'self.try_what_is_forbidden(); print("loaded",') + FORBIDDEN
    lines = [shlex.split(line) for line in COMMANDS if line.startswith("systemctl ")]
    with Booted(tmp_path, source) as machine:
        for line in lines[:2]:
            machine.run(*line)
        with clients(machine.socket) as seen:
            for line in lines[2:]:
                more(seen)
                said = machine.run(*line)
            until(lambda: state(machine) == ["active", "running"], "the end of the reload")
            more(seen)
        assert set(seen) == {"right"}, seen
        assert said == "StatusText=1 of 1 workers are ready\n"
        assert machine.run("systemctl", "show", "-p", "NRestarts", "virtex.service") == "NRestarts=0\n"


def state(machine):
    return machine.run("systemctl", "show", "--value", "-p", "ActiveState,SubState", "virtex.service").split()


@pytest.fixture
def units(tmp_path):
    """The files, with a program that there is, in folders that systemd-analyze looks in."""
    program = tmp_path / "virtex"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in (SERVICE, SOCKET):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, str(program)))
    return tmp_path


@pytest.mark.parametrize("drop_in", [None, "gpu.conf", "network.conf"])
def test_systemd_takes_the_units_and_rates_them(units, drop_in):
    analyze = installed("systemd-analyze")
    rated = dict(re.findall(r"^\| (.+) \| (\d\.\d) \|$", PAGE.text, re.MULTILINE))
    if drop_in is not None:
        (units / "virtex.service.d").mkdir()
        shutil.copy(UNITS / drop_in, units / "virtex.service.d")
    files = [str(units / name) for name in ("virtex.service", "virtex.socket")]
    done = subprocess.run([analyze, "verify", "--man=no", *files], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (line,) = (line for line in COMMANDS if line.startswith("systemd-analyze security "))
    rate = line.replace("deploy/systemd", str(units)).split()
    done = subprocess.run([*rate, "--no-pager"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    name = "with `{drop_in}`" if drop_in else "`virtex.service`"
    assert rated[name.format(drop_in=drop_in)] == re.search(r"exposure level .*: ([\d.]+)", done.stdout)[1]


def test_the_times_of_the_unit_fit_those_of_gunicorn():
    arguments = exec_start()
    graceful = int(arguments[arguments.index("--graceful-timeout") + 1])
    assert int(setting(SERVICE, "TimeoutStopSec")) >= 2 * graceful + 5  # a stop amid a reload
    assert int(setting(SERVICE, "WatchdogSec")) > graceful and int(setting(SERVICE, "WatchdogSec")) >= 4
    assert (setting(SERVICE, "Type"), setting(SERVICE, "KillMode")) == ("notify", "mixed")
    assert "--bind" not in arguments
    assert settings(SOCKET, "ListenStream") == ["/run/virtex.sock"]
