"""The architecture as a test: who may know what, and how long a function may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "virtex"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = {"ring", "company", "seam", "message", "tensor", "errors", "limits"}
OUTSIDE_CORE = {"asyncio", "socket", "gunicorn", "uvloop", "httptools"}
NO_CLOCK = CORE | {"exchange", "bodies", "device"}
PARTS = {
    "acceptor": "listener",
    "access_log": "worker",
    "addresses": "listener",
    "answers": "connection",
    "asgi_app": "server",
    "chunked": "reader",
    "connections": "connection",
    "into_place": "connection",
    "requests": "connection",
    "scoreboard": "worker",
    "seam": "exchange",
    "settings": "worker",
    "steps": "handler",
    "stream": "asgi_host",
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_what_their_station_may_know(path):
    imports = set(imports_of(path))
    name = path.stem
    if name in CORE:
        assert not imports & OUTSIDE_CORE
    if name not in ("worker", "settings", "access_log"):
        assert "gunicorn" not in imports
    if name in NO_CLOCK:
        assert "time" not in imports
    assert not imports & {"pickle", "marshal"}


def test_the_codec_imports_none_of_it_when_loaded():
    script = f"import sys, virtex._codec; print(sorted(set(sys.modules) & {OUTSIDE_CORE!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = first.end_lineno if documented and first.end_lineno else node.lineno
            assert node.end_lineno - start <= 60, f"{path.name}:{node.lineno} {node.name}"


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.stem != "__init__" and "serial" not in p.parts], ids=lambda p: p.stem
)
def test_every_station_has_its_tests(path):
    assert (Path(__file__).parent / f"test_{PARTS.get(path.stem, path.stem)}.py").exists()
