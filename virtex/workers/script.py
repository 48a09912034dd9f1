"""The script that calls run(): what it is, and how a worker runs it afresh.

    python server.py -> app.run() -> gunicorn, in the same process -> in each worker server.py as __virtex_main__

Rules: knows modules and frames; nothing of gunicorn. A worker runs the script as Python does, but for its __name__:
what stands below `if __name__ == "__main__":` is left out. So nothing is loaded ahead of a fork, and a reload runs what
the file says by then.
"""

from __future__ import annotations

import asyncio
import builtins
import gc
import importlib.util
import io
import os
import sys
from types import CodeType, FrameType, ModuleType
from typing import Any

from ..service.register import REGISTER
from ..service.seam import Service

NAME = "__virtex_main__"

NO_FILE = (
    "run() runs the script again in each worker, and {} has none. Put the service into a file, server.py say, and "
    "start it by `virtex serve server:app`; within an event loop, `await virtex.serve(app)` serves it"
)
IMPORTED = (
    'run() was called while {!r} was imported, not run. Put it below `if __name__ == "__main__":`, or start the '
    "service by `virtex serve module:app`"
)
NONE = (
    "{script} makes no service named {name!r} when a worker runs it: what stands below "
    '`if __name__ == "__main__":` is left out then. Make the service above that line{others}'
)
SEVERAL = "{script} makes {count} services named {name!r}: give each a name of its own, for workers find it by that"

_is_afresh = False  # a worker runs the script


class ScriptError(RuntimeError):
    """A script that a worker can't take its service from: what to do about it."""


class Chosen(BaseException):
    """Ends a script that a worker runs, where it calls run(): in its own process it got no farther either."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.name)
        self.service = service


def take(service: Service) -> None:
    """run() was called: in a worker, this is the service that it is about, and there is no more to do."""
    if _is_afresh:
        raise Chosen(service)


def own() -> dict[str, Any]:
    """What this process runs, as run_afresh() takes it. Raises RuntimeError where that is no script or module."""
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if hasattr(builtins, "get_ipython") or hasattr(sys, "ps1"):
        raise RuntimeError(NO_FILE.format("an interactive session"))
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run() was called within an event loop; `await virtex.serve(app)` serves there")
    if "_pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ:
        raise RuntimeError("run() would put gunicorn in the place of pytest; start `python server.py` as a process")
    if path is None or not os.path.isfile(path):
        raise RuntimeError(NO_FILE.format("this process"))
    _check_not_imported(sys._getframe())
    script = {"module": spec.name} if spec is not None and spec.name != "__main__" else {"path": os.path.abspath(path)}
    return {**script, "arguments": sys.argv}


def _check_not_imported(frame: FrameType | None) -> None:
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "<module>" and name != "__main__":
            raise RuntimeError(IMPORTED.format(name))
        frame = frame.f_back


def run_afresh(asked: dict[str, Any]) -> Service:
    """Run the script in this process, and give the service that called run().

    asked: own(), with the `kind` and `name` of the service. Raises ScriptError where there is none, or more than one,
    and what the script raises.
    """
    global _is_afresh
    module, code = _loaded(asked)
    sys.argv = asked["arguments"]
    sys.modules[NAME] = sys.modules["__main__"] = module  # as __main__, too: pickles name classes by it
    _is_afresh = True
    try:
        exec(code, module.__dict__)
    except Chosen as chosen:
        return chosen.service
    except SystemExit as error:
        why = f"{_shown(asked)} ended itself by SystemExit({error.code!r}) when a worker ran it, ahead of its run()"
        raise ScriptError(why) from error
    finally:
        _is_afresh = False
    return _named(asked)


def _loaded(asked: dict[str, Any]) -> tuple[ModuleType, CodeType]:
    """The module that the script is to fill, as Python would prepare it, and its code."""
    module = ModuleType(NAME)
    if "path" in asked:
        path = module.__file__ = asked["path"]
        module.__package__ = None  # as that of a script is
        if not sys.flags.safe_path:
            _put_first(os.path.dirname(os.path.realpath(path)))
        with io.open_code(path) as file:
            return module, compile(file.read(), path, "exec")
    name = asked["module"]
    spec = importlib.util.find_spec(name)
    code = getattr(spec.loader, "get_code", lambda name: None)(name) if spec is not None else None
    if spec is None or code is None:
        raise ScriptError(f"there is no module {name} with code of Python any more")
    module.__spec__, module.__loader__ = spec, spec.loader
    module.__file__, module.__package__ = spec.origin, spec.parent
    return module, code


def _put_first(folder: str) -> None:
    """Search modules where Python does for a script: first of all in its folder."""
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]


def _named(asked: dict[str, Any]) -> Service:
    gc.collect()  # one that the script made and dropped is none
    made = [one for one in REGISTER.services() if type(one).__name__ == asked["kind"]]
    found = [one for one in made if one.name == asked["name"]]
    if len(found) == 1:
        return found[0]
    if found:
        raise ScriptError(SEVERAL.format(script=_shown(asked), count=len(found), name=asked["name"]))
    names = ", ".join(repr(one.name) for one in made)
    others = f"; it makes {names}" if names else ", or call run() there, too"
    raise ScriptError(NONE.format(script=_shown(asked), name=asked["name"], others=others))


def _shown(asked: dict[str, Any]) -> str:
    return os.path.basename(asked["path"]) if "path" in asked else str(asked["module"])
