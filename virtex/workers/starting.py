"""run() and `virtex serve`: this process becomes gunicorn's master. Rules: checks what was asked, then os.execv().

No code of the application is loaded in the master: it begins anew as `python -m virtex.workers`, which is told in one
JSON document what to serve.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from typing import Any, NoReturn

from gunicorn.config import Config, make_settings  # type: ignore[import-untyped]

from ..service.seam import Service
from . import grpc_port as grpc
from . import script, settings, uvicorn

_OWN = {
    "wsgi_app": "run() serves the service that it is called on",
    "paste": "run() serves the service that it is called on",
    "preload_app": "each worker loads the script itself, so that a reload loads new code",
    "config": "gunicorn.conf.py in the working directory is read, and GUNICORN_CMD_ARGS='--config FILE'",
}
_DEFAULT = ("127.0.0.1", 8000)


def run(service: Service, host: str, port: int, workers: int, more: dict[str, Any]) -> NoReturn:
    """Serve a service from the script that made it. more: gunicorn's settings by their names. As Server.run()."""
    script.take(service)
    chosen = checked(host, port, workers, more)
    asked = {**script.own(), "kind": type(service).__name__, "name": service.name, "settings": chosen}
    become(asked)


def serve(app: str, host: str | None, port: int | None, options: list[str], grpc_port: int | None = None) -> NoReturn:
    """Serve an application by its name, module:app. options: of gunicorn's command line. grpc_port: where V2 is
    answered over gRPC, too.

    Raises ValueError for a host and port that are none.
    """
    if grpc_port is not None:
        if grpc_port > 65535:
            raise ValueError(f"--grpc-port {grpc_port}: expected a port from 1 to 65535")
        os.environ[grpc.VARIABLE] = str(grpc_port)
    flags = {flag for setting in make_settings().values() for flag in setting.cli or ()}
    for option in options:
        flag = option.partition("=")[0]
        instead = uvicorn.INSTEAD.get(flag.removeprefix("--").replace("-", "_"))
        if flag.startswith("--") and flag not in flags and instead:
            raise ValueError(f"{flag} is uvicorn's; in gunicorn's settings (docs/gunicorn.md): {instead}")
    bind = [address(_DEFAULT[0] if host is None else host, _DEFAULT[1] if port is None else port)]
    become({"app": app, "settings": {} if host is None and port is None else {"bind": bind}}, *options)


def become(asked: dict[str, Any], *options: str) -> NoReturn:
    """Put gunicorn in the place of this process. asked: what program.py reads. options: of gunicorn's command line."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # what multiprocessing does, too
    if not sys.executable:
        raise RuntimeError("this process does not know which Python it is (sys.executable)")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *flags, "-m", "virtex.workers", json.dumps(asked), *options])


def checked(host: str, port: int, workers: int, more: dict[str, Any]) -> dict[str, Any]:
    """The settings of gunicorn that run() stands for.

    Raises TypeError for a name that is none, and for what can't go along to another process; ValueError for a value.
    """
    known = make_settings()
    for name, value in more.items():
        _check_name(name, known)
        _check_travels(name, value)
    if "bind" in more and (host, port) != _DEFAULT:
        raise TypeError("run(): bind= says where to listen, so it goes without host= and port=")
    chosen = {"bind": [address(host, port)], "workers": workers, **more}
    cfg = Config()
    for name, value in chosen.items():
        try:
            cfg.set(name, value)
        except Exception as error:  # of gunicorn's validators, each its own
            raise ValueError(f"run({name}={value!r}): {error}") from None
    if cfg.workers < 1:
        raise ValueError(f"run(workers={workers!r}): expected 1 or more")
    settings.check(cfg)
    return chosen


def address(host: str, port: int) -> str:
    """Both as gunicorn's `bind` has them. Raises ValueError for what is no host, and no port."""
    if not isinstance(host, str) or not host or set(host) & set(" /"):
        raise ValueError(f"host={host!r}: expected a name or an address, such as '127.0.0.1' or '0.0.0.0'")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise ValueError(f"port={port!r}: expected a whole number from 0 to 65535")
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"


def _check_name(name: str, known: dict[str, Any]) -> None:
    if name in _OWN:
        raise TypeError(f"run() does not take {name}: {_OWN[name]}")
    if name in known:
        return
    instead = uvicorn.INSTEAD.get(name)
    if instead is not None:
        raise TypeError(f"run() got {name!r}, which is a setting of uvicorn; in its place: {instead}")
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else " (docs/gunicorn.md has them all)"
    raise TypeError(f"run() got {name!r}, which is no setting of gunicorn{hint}")


def _check_travels(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"run({name}=): a {type(value).__name__} can't go along to gunicorn's process; "
            f"gunicorn.conf.py, beside the script where you start it, may have {name} = ..."
        ) from None
