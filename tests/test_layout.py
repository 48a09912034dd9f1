"""The house as a test: which room may know which, what each file may import, how long files and functions may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "virtex"
MODULES = sorted(PACKAGE.rglob("*.py"))
STATIONS = [path for path in MODULES if path.name != "__init__.py"]
MOST_LINES = 400

# A request's way leads down through the rooms. Each knows those that stand beside it here, itself, and GROUND.
GROUND = {"errors", "extras", "keys", "limits", "logs", "resident", "virtex"}
MAY_KNOW = {
    "worker": {"workers", "wire", "service.register", "service.seam", "metrics"},
    "workers": {"wire", "rpc", "service.register", "service.seam", "metrics"},
    "wire": {"service.register", "service.seam"},
    "rpc": {"service", "service.seam", "message"},
    "http": {"server", "message", "client", "handler", "load"},
    "inference": {"handler"},
    "server": {"workers", "service", "service.register", "service.seam", "batch", "handler", "observer", "metrics"},
    "services": {"workers", "server", "service", "service.register", "service.seam", "metrics"},
    "service.seam": {"batch.ring"},
    "service.register": {"service.seam"},
    "service.request": {"service.seam"},  # what a handler is told
    "service": {
        "service.register",
        "service.seam",
        "service.request",
        "batch",
        "handler",
        "dry_run",
        "tensor",
        "message",
        "observer",
        "_codec",
        "serial",
        "metrics",
    },
    "handler": {"dry_run", "batch", "tensor", "message", "service.request"},
    "dry_run": {"batch", "message", "service.request"},
    "client": {"message", "posting"},
    "posting": {"message", "serial", "_codec"},
    "ray": {"ray.policy", "wire", "service.register", "service.seam", "handler", "metrics"},
    "ray.policy": set(),  # Ray sends it to a process that may have no Virtex
    "ray.arguments": {"values"},  # every --help reads it
    "load": {"info", "message", "posting", "serial", "load.virtual", "load.tried"},
    "load.arguments": {"values"},  # as ray's
    "load.virtual": {"batch"},  # the batcher itself, in virtual time
    "load.tried": {"server", "metrics", "workers"},  # runs in a worker
    "info": {"_codec"},
    "check": {"handler", "load.tried", "message", "server", "service", "service.register"},
    "cli": {"check", "info", "load", "load.arguments", "ray", "ray.arguments", "values", "workers"},
    "values": set(),
    "__main__": {"cli"},
    "batch": {"tensor", "message", "observer", "serial", "_codec", "metrics"},
    "metrics": set(),
    "tensor": {"message", "serial", "_codec"},
    "observer": set(),
    "message": {"serial", "_codec"},
    "serial": {"_codec"},
    "errors": set(),
    "extras": set(),
    "keys": set(),
    "limits": set(),
    "logs": set(),
    "resident": set(),
}
ONLY = {  # who alone may import it
    "google": {"rpc"},
    "grpc": {"rpc"},
    "gunicorn": {"worker", "workers"},
    "prometheus_client": {"metrics"},
    "httptools": {"wire", "load"},
    "uvloop": {"worker"},
    "httpx2": {"client", "posting"},
    "httpcore2": {"client", "posting"},
    "multipart": {"service"},
    "ray": {"ray"},
}
NO_ONE = {"pickle", "marshal"}  # without a person's word for what they read
WITH_A_WORD = {"serial.pickle": {"pickle"}}
READS_A_CLOCK = {
    "batch.batcher",
    "check",
    "load.drive",
    "load.run",
    "load.trial",
    "load.tuning",
    "posting.retries",
    "wire.replies",
    "workers.leaving",
}  # the rest is given the time; replies writes the date, retries waits
LOOPS = {"asyncio", "socket", "threading", "ssl"}
NO_LOOP = {
    "batch.asked",
    "batch.company",
    "batch.costs",
    "batch.device",
    "batch.graphs",
    "batch.isolate",
    "batch.items",
    "batch.outputs",
    "batch.parts",
    "batch.pace",
    "batch.pipeline",
    "batch.ring",
    "batch.row_steps",
    "batch.rows",
    "batch.steps",
    "batch.texts",
    "errors",
    "limits",
    "info",
    "keys",
    "load.fit",
    "load.payloads",
    "load.plan",
    "load.record",
    "load.report",
    "load.schedule",
    "load.virtual",
    "logs",
    "message",
    "metrics.board",
    "metrics.live",
    "metrics.schema",
    "metrics.totals",
    "observer",
    "posting.arrays",
    "posting.outcomes",
    "posting.targets",
    "ray.gauges",
    "ray.policy",
    "rpc.codes",
    "rpc.contents",
    "rpc.cut",
    "rpc.messages",
    "rpc.reading",
    "rpc.writing",
    "service.about",
    "service.authorize",
    "service.bodies",
    "service.codings",
    "service.failures",
    "service.formats",
    "service.forms",
    "service.health",
    "service.on_device",
    "service.options",
    "service.page",
    "service.register",
    "service.request",
    "service.routes",
    "service.seam",
    "service.uploads",
    "service.v2",
    "service.v2_head",
    "service.v2_read",
    "service.v2_write",
    "service.warmup",
    "tensor",
    "wire.chunked",
    "wire.grammar",
    "wire.reader",
    "wire.replies",
    "wire.waiting",
}
TESTED_BY = {  # where a file's tests have another name
    "__main__": "cli",
    "arguments": "cli",
    "about": "command",
    "acceptor": "listener",
    "access_log": "worker",
    "addresses": "listener",
    "answers": "connection",
    "arrays": "predict",
    "batching": "model",
    "calls": "grpc",
    "chunked": "reader",
    "coder": "codings",
    "codes": "grpc",
    "connections": "connection",
    "deploying": "ray",
    "contents": "grpc",
    "cut": "grpc_messages",
    "drive": "load",
    "dry_run": "handler",
    "extras": "serial_torch",
    "failures": "deadlines",
    "gauges": "ray",
    "guests": "mounted",
    "into_place": "connection",
    "isolate": "steps",
    "row_steps": "parts",
    "keys": "authorize",
    "lane": "load_faults",
    "lanes": "client",
    "messages": "grpc_messages",
    "on_device": "flights",
    "outcomes": "client",
    "plan": "load",
    "plots": "document",
    "pool": "client",
    "process": "load",
    "program": "starting",
    "promise": "exchange",
    "readiness": "load",
    "reading": "grpc",
    "record": "histogram",
    "register": "mounted",
    "replica": "ray",
    "requests": "connection",
    "result": "load_test",
    "run": "load",
    "schedule": "load",
    "schema": "totals",
    "script": "starting",
    "seam": "exchange",
    "serving": "grpc",
    "stream": "asgi_host",
    "targets": "client",
    "tried": "trial",
    "tuned": "tuning",
    "uvicorn": "wrong",
    "v2_head": "v2_read",
    "values": "cli",
    "virtual": "fit",
    "writing": "grpc",
}


def name_of(path: Path) -> str:
    """As virtex.batch.ring imports it: "batch.ring"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "virtex"


NAMES = {name_of(path) for path in MODULES} | {"_codec", "metrics._metrics"}


def room_of(name: str) -> str:
    return name if name in MAY_KNOW else name.partition(".")[0]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, with_types: bool) -> list[ast.stmt]:
    """Every import of a file, wherever it stands."""
    found: list[ast.stmt] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif with_types or not is_for_types(node):
            found += statements(node, with_types)
    return found


@cache
def imports_of(path: Path, with_types: bool = True) -> frozenset[str]:
    """What a file imports: the project's as in NAMES, of others the top name with a space before it."""
    package = ["virtex", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text()), with_types):
        if isinstance(node, ast.Import):
            found.update(" " + alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(" " + (node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part][1:]
            for alias in node.names:
                whole, module = ".".join([*base, alias.name]), ".".join(base) or "virtex"
                found.add(whole if whole in NAMES else module)
    return frozenset(found)


def test_every_file_stands_in_a_room() -> None:
    assert {room_of(name) for name in NAMES} - set(MAY_KNOW) <= {"virtex", "_codec"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_knows_only_the_rooms_below_it(path: Path) -> None:
    name = name_of(path)
    if name == "virtex":
        return  # the public names, each loaded when it is used
    room = room_of(name)
    allowed = MAY_KNOW[room] | GROUND | {room}
    assert {other for other in imports_of(path) & NAMES if not {other, room_of(other)} & allowed} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_is_for_one_room_is_imported_there_alone(path: Path) -> None:
    name = name_of(path)
    imports, room = {name.strip() for name in imports_of(path) - NAMES}, room_of(name)
    for library, rooms in ONLY.items():
        assert library not in imports or room in rooms, library
    assert imports & NO_ONE == WITH_A_WORD.get(name, set())
    if name in NO_LOOP:
        assert not imports & LOOPS
    if name not in READS_A_CLOCK:
        assert "time" not in imports or is_default_clock(path)


def is_default_clock(path: Path) -> bool:
    """Whether the clock is only what an argument is by default, or the loop's business."""
    used = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    clocks = {"time.perf_counter_ns", "time.monotonic", "time.thread_time"}
    return {name for name in used if name.startswith("time.")} <= clocks


def test_no_import_makes_a_circle() -> None:
    graph = {name_of(path): imports_of(path, with_types=False) & NAMES for path in STATIONS}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_codec_loads_nothing_of_loops_and_sockets() -> None:
    outside = {"asyncio", "socket", "gunicorn", "uvloop", "httptools"}
    script = f"import sys, virtex._codec; print(sorted(set(sys.modules) & {outside!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = first.end_lineno if documented and first.end_lineno else node.lineno
            assert node.end_lineno is not None and node.end_lineno - start <= 60, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", [path for path in STATIONS if "serial" not in path.parts], ids=name_of)
def test_every_file_has_its_tests(path: Path) -> None:
    if path.parent.name == "http":
        assert (Path(__file__).parent / "test_http.py").exists()
    else:
        assert (Path(__file__).parent / f"test_{TESTED_BY.get(path.stem, path.stem)}.py").exists()


def test_a_test_that_needs_a_library_asks_in_the_one_way_that_can_not_be_skipped_in_make_test_all() -> None:
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    assert [path.name for path in files if "importorskip" in path.read_text()] == []
