"""gunicorn as run() and `virtex serve` start it: its own application, told in one JSON document what to serve.

    {"path": "/at/server.py" or "module": "pkg.server", "arguments": sys.argv, "kind": "Server", "name": "linear", ...}
    {"app": "module:app", "settings": {"bind": ["127.0.0.1:8000"]}}

Rules: knows gunicorn, scripts and names of applications; no service. gunicorn's configuration file, its environment and
its command line hold as ever; "settings" win over them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication  # type: ignore[import-untyped]
from gunicorn.errors import AppImportError, ConfigError  # type: ignore[import-untyped]

from ..service.seam import Service
from . import script, systemd
from .greeting import greet

_WORKER = "virtex.VirtexWorker"
_REASONS = {
    errno.EADDRINUSE: "another process listens there. Choose another port",
    errno.EACCES: "this user may not (below 1024 takes more rights). Choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address. Choose another host: 0.0.0.0 is every address",
}


def main() -> None:
    """Be gunicorn's master, from here on."""
    asked = json.loads(sys.argv[1])
    sys.argv = ["-m", "virtex.workers", *sys.argv[1:]]  # on SIGUSR2 gunicorn starts Python with it
    Program(asked).run()


class Program(WSGIApplication):  # type: ignore[misc]
    """What gunicorn asks for its settings and its application."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._is_script = "app" not in asked
        super().__init__("virtex serve MODULE:APP [OPTIONS]", prog="virtex serve")

    def init(self, parser: Any, opts: Any, args: list[str]) -> None:
        asked = self._asked
        self.app_uri = asked.get("app") or asked.get("path") or asked["module"]
        self.cfg.set("default_proc_name", self.app_uri)

    def load_config(self) -> None:
        super().load_config()
        for name, value in self._asked["settings"].items():
            self.cfg.set(name, value)
        if self.cfg.settings["worker_class"].get() == "sync":  # the default: nobody has said
            self.cfg.set("worker_class", _WORKER)
        if not any(each.__module__ == "virtex.worker" for each in self.cfg.worker_class.__mro__):
            raise ConfigError(f"worker_class: expected {_WORKER} or a subclass, got {self.cfg.worker_class_str}")
        if systemd.gave_sockets() and any(isinstance(address, int) for address in self.cfg.address):
            raise ConfigError("bind: fd:// names a socket of systemd, whose sockets are taken anyway; leave it out")
        if self._is_script and self.cfg.preload_app:
            raise ConfigError("preload_app: each worker loads the script itself, so that a reload loads new code")

    def load(self) -> Any:
        if not self._is_script:
            return super().load()
        try:
            return script.run_afresh(self._asked)
        except script.ScriptError as error:
            raise AppImportError(str(error)) from error

    def run(self) -> None:
        if not {"GUNICORN_FD", "LISTEN_FDS"} & set(os.environ) and not self.cfg.reuse_port:
            for address in self.cfg.address:
                _check_free(address)
        super().run()

    def greet(self, worker: Any, service: Any) -> None:
        """The first worker is ready."""
        if isinstance(service, Service):
            greet(worker.log, service, [sock.sock for sock in worker.sockets], worker.cfg.is_ssl)


def _check_free(address: Any) -> None:
    """End this process where an address can't be listened on: gunicorn would try for five seconds, and say less."""
    if not isinstance(address, tuple):
        return  # a unix socket, or one that somebody else has opened
    host, port = address[:2]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno in _REASONS:
                print(f"virtex: can't listen on {host}:{port}: {why_not(error)}", file=sys.stderr)
                sys.exit(1)


def why_not(error: OSError) -> str:
    """Why an address can't be listened on, and what to do."""
    return _REASONS.get(error.errno or 0) or str(error)
