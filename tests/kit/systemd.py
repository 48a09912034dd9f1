"""systemd's side of a service: sockets, environment and notifications as sd_listen_fds(3) and sd_notify(3) have them.

    with Systemd(folder, SOURCE) as manager:
        manager.start()
        manager.wait("READY=1")

What is started is the line of the unit file; of it, only the path of the program is another.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kit.servers import ROOT, until

UNITS = ROOT / "deploy" / "systemd"
SERVICE = UNITS / "virtex.service"
SOCKET = UNITS / "virtex.socket"
PROGRAM = "/opt/virtex/bin/virtex"

_BEGIN = """
import fcntl, os, sys
given = [int(fd) for fd in sys.argv[1].split(",")]
apart = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given]
for fd in given:
    os.close(fd)
for place, fd in enumerate(apart, 3):
    os.dup2(fd, place)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def settings(unit: Path, name: str) -> list[str]:
    """What a unit file sets by this name."""
    lines = (line.partition("=") for line in unit.read_text().splitlines() if not line.startswith("#"))
    return [value for key, _, value in lines if key == name]


def setting(unit: Path, name: str) -> str:
    """What it sets once."""
    (value,) = settings(unit, name)
    return value


def installed(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def exec_start() -> list[str]:
    program, *arguments = shlex.split(setting(SERVICE, "ExecStart"))
    assert program == PROGRAM
    return [sys.executable, "-m", "virtex", *arguments]


def environment(folder: Path, **more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **more}


class Systemd:
    """messages: what the service has sent, a line each. sockets: one by a path, one by a port."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        (folder / "server.py").write_text(source)
        self.path = str(folder / "virtex.sock")
        self.sockets = [socket.socket(socket.AF_UNIX), socket.socket()]
        for sock, address in zip(self.sockets, (self.path, ("127.0.0.1", 0)), strict=True):
            sock.bind(address)
            sock.listen(int(setting(SOCKET, "Backlog")))
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.setblocking(False)
        self._messages: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def messages(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._messages += self._notified.recv(4096).decode().splitlines()
        return self._messages

    @property
    def words(self) -> list[str]:
        """What was told of the service's state, without what comes again and again."""
        return [line for line in self.messages if line in ("READY=1", "RELOADING=1", "STOPPING=1")]

    def start(self, *arguments: str, watchdog: float = 60, wait: bool = True) -> None:
        """Start the service. watchdog: seconds. Of the messages, those of earlier ones are forgotten."""
        self.messages.clear()
        fds = [sock.fileno() for sock in self.sockets]
        given = environment(
            self.folder,
            LISTEN_FDS=str(len(fds)),
            NOTIFY_SOCKET=str(self.folder / "notify"),
            WATCHDOG_USEC=str(int(watchdog * 1e6)),
        )
        begin = [sys.executable, "-c", _BEGIN, ",".join(map(str, fds))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*begin, *exec_start(), *arguments],
                cwd=self.folder,
                env=given,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                start_new_session=True,
            )
        if wait:
            self.wait("READY=1")

    def wait(self, message: str, count: int = 1) -> None:
        def came() -> bool:
            assert self.process is not None
            return self.messages.count(message) >= count or self.process.poll() is not None

        until(came, f"{message} {count} times in {self.messages}; log:\n{self.log}")
        assert self.messages.count(message) >= count, f"{message} did not come: {self.messages}; log:\n{self.log}"

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self) -> int:
        """As KillMode=mixed does it."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(int(setting(SERVICE, "TimeoutStopSec")))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> Systemd:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for sock in (*self.sockets, self._notified):
            sock.close()
