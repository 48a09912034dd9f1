"""One trial of `virtex tune`: a service under gunicorn on a loopback port, for as long as it is asked.

    with Trial("module:app", {"max_batch_size": 64}) as trial:
        run(Plan(trial.url, ...))

Rules: starts one process, and ends it by its id. The child has the other end of a pipe as its
standard input, so that it ends too if this process is killed: tried.py waits for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from .about import ask
from .tried import ASKED, Misnamed

READY_SECONDS = 600.0  # a model may take minutes to load
END_SECONDS = 30.0
POLL = 0.02  # seconds between two looks whether it is ready
LINES = 30  # of the log that an error repeats
EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit)\b.*$", re.MULTILINE)  # as a traceback ends


class TrialError(RuntimeError):
    """A service that did not start, or does not answer: why in the first line, and the end of its log."""


class Trial:
    """A running service. options: of http_server(), in place of what its module says. url: where it answers.

    own: what its module says of max_batch_size, max_time_on_queue and executor.

    Raises Misnamed where there is no such service, TrialError where it does not become ready.
    """

    def __init__(self, app: str, options: Mapping[str, Any]) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._start(stack, app, options)
            self._stack = stack.pop_all()

    def _start(self, stack: contextlib.ExitStack, app: str, options: Mapping[str, Any]) -> None:
        folder = stack.enter_context(TemporaryDirectory(prefix="virtex-tune-"))
        self._log, self._told = Path(folder) / "log", Path(folder) / "told.json"
        asked = {"app": app, "options": dict(options), "told": str(self._told)}
        command = ["gunicorn", "-k", "virtex.VirtexWorker", "-w", "1", "--bind", f"127.0.0.1:{self.port}"]
        command += ["--graceful-timeout", "2"]  # nobody waits for an answer when it is ended
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command, "--no-control-socket", "virtex.load.tried:app"],
                env=os.environ | {ASKED: json.dumps(asked)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
        stack.callback(self._end)
        self._wait_ready()
        self.own: dict[str, Any] = json.loads(self._told.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._check_name()
                raise TrialError(f"the service did not start: {self._why()}")
            if ask(self.url, "/health/ready", {}) is not None:
                return
            time.sleep(POLL)
        raise TrialError(f"the service was not ready within {READY_SECONDS:g} s: {self._why()}")

    def _check_name(self) -> None:
        told = json.loads(self._told.read_text()) if self._told.exists() else {}
        if "misnamed" in told:
            raise Misnamed(told["misnamed"])

    def _why(self) -> str:
        """The last exception of its log, in the first line, and the end of the log below."""
        log = self._log.read_text(errors="replace")
        raised = EXCEPTION.findall(log) or [f"gunicorn ended with {self._process.poll()}"]
        return "\n".join([raised[-1], "the end of its log:", *log.splitlines()[-LINES:]])

    def _end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its worker looks for its parent once a second
            self._process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
