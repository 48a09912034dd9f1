"""The README is true: its code runs, its server lines serve, its tables are those of the code, its figures measured."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
from kit.servers import ROOT, Running, free_port, until

import virtex
from bench.report import place, render
from virtex import Limits
from virtex.errors import STATUSES

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILES = {code.split("\n")[0].removeprefix("# "): code for language, code in BLOCKS if language == "python"}
SHELL = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
GUNICORN = next(line for line in SHELL if line.startswith("gunicorn "))
OTHERS = [line for line in SHELL if line.split()[0] in ("uvicorn", "granian", "hypercorn")]
PORT = "8081"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def running(line: str, port: int, folder: Path, python: str = sys.executable) -> Iterator[Running]:
    """A server line of the README, on a port of ours."""
    command = [python, "-m", *shlex.split(line)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    server = Running(process, port, folder)
    try:
        until(lambda: is_ready(server), f"{line} to be ready", server)
        yield server
    finally:
        server.stop()


def is_ready(server: Running) -> bool:
    assert server.process.poll() is None, server.log
    try:
        return server.request("GET", "/health/ready")[0] == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files, saved where it says."""
    target = tmp_path_factory.mktemp("readme")
    for name, code in FILES.items():
        (target / name).write_text(code)
    return target


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    port = free_port()
    assert PORT in GUNICORN
    with running(GUNICORN.replace(PORT, str(port)), port, folder) as server:
        yield server


def test_every_python_block_is_a_file_with_a_name() -> None:
    assert list(FILES) == ["server.py", "client.py", "tensors.py", "test_server.py", "embedded.py", "beside.py"]


@pytest.mark.parametrize("name", [name for name in FILES if name != "server.py"])
def test_a_block_of_code_prints_what_the_readme_says(name: str, folder: Path, server: Running) -> None:
    code = FILES[name].replace(PORT, str(server.port))
    (folder / name).write_text(code)
    pytest_of_it = ["-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    command = [sys.executable, "-W", "error", *(pytest_of_it if name.startswith("test_") else [name])]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if name.startswith("test_"):
        assert "1 passed" in ended.stdout
    else:
        assert ended.stdout.splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert ended.stdout


@pytest.mark.parametrize("line", OTHERS, ids=[line.split()[0] for line in OTHERS])
def test_the_app_runs_under_the_other_servers_that_are_named(line: str, folder: Path) -> None:
    port = free_port()
    where = f" --bind 127.0.0.1:{port}" if line.startswith("hypercorn") else f" --port {port}"
    with running(line + where, port, folder) as server:
        assert server.request("POST", "/", b'{"data": []}') == (200, b'{"data":[],"error":null}')


def lowest() -> tuple[tuple[int, ...], list[str]]:
    """The oldest Python that pyproject.toml allows, and the oldest version of everything that an install brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"]]
    assert all(pins), project["dependencies"]
    python = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    return python, [f"{name}=={version}" for name, version in (pin.groups() for pin in pins if pin)]


def install(requirements: list[str], where: Path) -> str:
    """Make an environment with these and nothing else; gives its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(where)], check=True)
    python = str(where / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--retries", "1", "--timeout", "20"]
    ended = subprocess.run(
        [*pip, "--no-compile", "--only-binary", ":all:", *requirements], capture_output=True, text=True
    )
    if "connection broken" in ended.stderr and not os.environ.get("CI"):
        pytest.skip("no package index can be reached")
    assert ended.returncode == 0, ended.stderr
    return python


def test_the_server_and_its_client_run_with_the_lowest_versions_that_an_install_may_bring(
    folder: Path, tmp_path: Path
) -> None:
    oldest, requirements = lowest()
    if sys.version_info[:2] != oldest:
        pytest.skip("the lowest versions are those for the lowest Python")
    python, port = install(requirements, tmp_path / "venv"), free_port()
    with running(GUNICORN.replace(PORT, str(port)), port, folder, python):
        (tmp_path / "client.py").write_text(FILES["client.py"].replace(PORT, str(port)))
        client = [python, "-W", "error", "client.py"]
        ended = subprocess.run(client, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", FILES["client.py"], re.MULTILINE)


def test_the_status_table_is_that_of_the_code() -> None:
    assert [int(status) for status in re.findall(r"^\| (\d{3}) \|", README, re.MULTILINE)] == list(STATUSES)


def test_the_limits_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.+) \|$", README, re.MULTILINE)
    assert [(name, default) for name, default, _ in rows] == [
        (field.name, str(field.default)) for field in fields(Limits)
    ]


def test_the_file_table_names_every_file_of_the_package() -> None:
    named = re.findall(r"`(\w+\.pyx?)`", "".join(re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)))
    there = {path.name for path in (ROOT / "virtex").iterdir() if path.suffix in (".py", ".pyx")} - {"__init__.py"}
    assert sorted(named) == sorted(there)


def test_every_make_target_that_is_named_exists() -> None:
    targets = re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for document in ("README.md", "CONTRIBUTING.md"):
        named = re.findall(r"(?:^|`)make (\w+)", (ROOT / document).read_text(), re.MULTILINE)
        assert named
        assert set(named) <= set(targets)


def test_the_figures_are_those_that_were_measured() -> None:
    for name, table in render().items():
        assert place(README, name, table) == README


def test_every_public_name_is_shown_and_the_load_tester_is_not_promised() -> None:
    assert [name for name in virtex.__all__ if not re.search(rf"\b{name}\b", README)] == []
    assert "HttpLoadTest" not in README
