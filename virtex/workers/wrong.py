"""A start that can't work, told ahead of the first request: gunicorn with a worker class for WSGI.

Rules: asked when a service is made where gunicorn is, and VirtexWorker is not. It finds gunicorn's worker on the stack,
for gunicorn does not say who loads an application, and looks at the application once that has loaded.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import AppImportError  # type: ignore[import-untyped]
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from ..service.seam import Service

WSGI = {f"gunicorn.workers.{name}" for name in ("sync", "gthread", "base_async", "gtornado")}

SAYS = (
    "this is an ASGI app, and gunicorn runs it with the worker class {kind}, which is for WSGI: "
    "add -k virtex.VirtexWorker, or start it by `virtex serve {app}`"
)


def check() -> None:
    """Have gunicorn's worker end with a sentence, where its class is for WSGI and what it has loaded is not."""
    loader = _loader(sys._getframe())
    if loader is None or getattr(loader.cfg, "virtex_checks", False):
        return
    kind = getattr(loader, "worker_class", None) if isinstance(loader, Arbiter) else type(loader)
    if kind is None or not WSGI & {base.__module__ for base in kind.__mro__}:
        return
    loader.cfg.virtex_checks = True
    told = loader.cfg.post_worker_init

    def refuse(worker: Any) -> None:
        told(worker)
        if _is_asgi(worker.wsgi):
            raise AppImportError(SAYS.format(kind=worker.cfg.worker_class_str, app=worker.app.app_uri))

    loader.cfg.set("post_worker_init", refuse)


def _loader(frame: FrameType | None) -> Any:
    """Who imports the application: a worker, or with preload_app the master; None where nobody does."""
    while frame is not None:
        one = frame.f_locals.get("self")
        if isinstance(one, (Worker, Arbiter)):
            return one
        frame = frame.f_back
    return None


def _is_asgi(app: Any) -> bool:
    return isinstance(app, Service) or any(map(inspect.iscoroutinefunction, (app, type(app).__call__)))
