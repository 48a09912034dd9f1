"""The service that `virtex tune` tries, with other settings than its module gives it: gunicorn virtex.load.tried:app.

Rules: runs in the worker, and reads what it is to do from one variable of the environment, once. Its counts go nowhere:
a Pushgateway is not to hear of trials. It ends with the process that started the trial, whatever became of that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..metrics.export import OFF
from ..server import Server
from ..workers.loading import resolve

ASKED = "VIRTEX_TRIAL"  # {"app": "module:app", "options": {"max_batch_size": 64, ...}, "told": "where own() goes"}


class Misnamed(ValueError):
    """The name of an application means nothing that can be tried."""


def application(name: str) -> Any:
    """An application by its name, module:app. Raises Misnamed where there is none."""
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise Misnamed(f"{name!r}: expected module:app")
    try:
        app: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports what is not
        raise Misnamed(f"{name}: there is no module {error.name!r} here") from None
    for part in path.split("."):
        if not hasattr(app, part):
            raise Misnamed(f"{name}: {module_name} has no {path}")
        app = getattr(app, part)
    return resolve(app)


def load(name: str) -> tuple[Any, Server]:
    """An application by its name, module:app, and its service: itself, or the one that its module holds.

    Raises Misnamed where there is no such module or name, or it has no service, or more than one.
    """
    app = application(name)
    module_name = name.partition(":")[0]
    module = sys.modules[module_name]
    held = [app] if isinstance(app, Server) else [one for one in vars(module).values() if isinstance(one, Server)]
    if len(held) != 1:
        expected = "expected a Server, as http_server() makes it, or an app that wraps the only one of its module"
        raise Misnamed(f"{name}: {expected}; {module_name} holds {len(held)}")
    return app, held[0]


def change(server: Server, options: dict[str, Any]) -> None:
    """Give a service that has not begun other options. Raises ValueError for one that can't be."""
    most, warmup = options.get("max_batch_size", server.max_batch_size), server.options.warmup
    fits = warmup if isinstance(warmup, bool) else [size for size in warmup if size <= most]
    server.options = replace(server.options, **{"prom": OFF, "warmup": fits, **options})
    server.max_batch_size = server.options.max_batch_size
    server.max_time_on_queue = server.options.max_time_on_queue


def own(server: Server) -> dict[str, Any]:
    """What a service's module says of batches."""
    options = server.options
    return {name: getattr(options, name) for name in ("max_batch_size", "max_time_on_queue", "executor")}


def _end_with_parent() -> None:
    """Wait until nobody holds the other end of the standard input, which gunicorn hands on, and end gunicorn."""
    while sys.stdin.read(1):
        pass
    os.kill(os.getppid(), signal.SIGTERM)


def _app() -> Any:
    asked = json.loads(os.environ[ASKED])
    told = Path(asked["told"])
    try:
        app, server = load(asked["app"])
    except Misnamed as error:
        told.write_text(json.dumps({"misnamed": str(error)}))
        raise
    told.write_text(json.dumps(own(server)))
    change(server, asked["options"])
    threading.Thread(target=_end_with_parent, name="virtex trial", daemon=True).start()
    return app


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        app = globals()["app"] = _app()
    except AttributeError as error:  # gunicorn would say that this module has no app
        raise RuntimeError(f"AttributeError: {error}") from error
    return app
