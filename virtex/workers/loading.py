"""The application as gunicorn gives it, and what stands in for one that is broken.

Rules: knows applications; serves nothing.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from functools import partial
from typing import Any

from gunicorn.errors import AppImportError  # type: ignore[import-untyped]

from ..service.seam import Service


def load(app: Any) -> Any:
    """What gunicorn's application loads, resolved. Raises AppImportError, which gunicorn prints as it is."""
    try:
        return resolve(app.wsgi())
    except AppImportError as error:
        raise AppImportError(f"{error}{_hint(app.app_uri)}") from error
    except ModuleNotFoundError as error:
        module = app.app_uri.partition(":")[0]
        if error.name and f"{module}.".startswith(f"{error.name}."):  # not one that the module itself imports
            raise AppImportError(f"{app.app_uri}: there is no module {error.name!r} in {os.getcwd()}") from error
        raise


def _hint(uri: str) -> str:
    """What there is in the module that has not the name asked for: `gunicorn server` asks for `application`."""
    module = uri.partition(":")[0]
    names = [name for name, one in vars(sys.modules.get(module, object)).items() if isinstance(one, Service)]
    if not names:
        return ""
    return f" It has {', '.join(names)}: name it behind a colon, {module}:{names[0]}"


def resolve(app: Any) -> Any:
    """The application itself, or what a function without parameters makes: both were taken by the first Virtex."""
    if isinstance(app, Service) or not callable(app):
        return app
    try:
        inspect.signature(app).bind()
    except (TypeError, ValueError):
        return app  # it takes scope, receive and send
    made = app()
    if hasattr(made, "run_inference"):
        raise TypeError(f"{app!r} is a handler: name what http_server(name=..., handler={type(made).__name__}) gives")
    if not callable(made):
        raise TypeError(f"expected {app!r} to make an application, but it made a {type(made).__name__}")
    return made


def stand_in(error: BaseException, reloader: Any) -> Any:
    """Under --reload: what answers while the code is broken. The files that it came from are watched."""
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    for file in filter(os.path.isfile, files):
        reloader.add_extra_file(file)
    return partial(_answer_500, f"the application could not be imported: {_line(error)}\n".encode())


async def _answer_500(body: bytes, scope: Any, receive: Any, send: Any) -> None:
    while scope["type"] == "lifespan":
        await send({"type": (await receive())["type"] + ".complete"})
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _line(error: BaseException) -> str:
    """An exception in one line: "SyntaxError: invalid syntax (service.py, line 3)"."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
