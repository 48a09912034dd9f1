"""The README is true: its code runs, its server lines serve, its figures were measured, and it is short."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import needs
from kit.pages import PORT, Page, check_answer, check_code, install, running
from kit.servers import ROOT, Running, free_port

from bench.report import headline, peers_headline, place

README = Page(ROOT / "README.md")
GUNICORN = next(line for line in README.shell if line.startswith("gunicorn "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files, saved where it says."""
    target = tmp_path_factory.mktemp("readme")
    for name, code in README.files.items():
        (target / name).write_text(code)
    return target


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    port = free_port()
    assert PORT in GUNICORN
    with running(GUNICORN.replace(PORT, str(port)), port, folder) as server:
        yield server


def test_every_python_block_is_a_file_with_a_name() -> None:
    assert list(README.files) == ["server.py", "words.py", "client.py", "test_server.py"]


@pytest.mark.parametrize("name", [name for name in README.files if name != "server.py"])
def test_a_block_of_code_prints_what_the_readme_says(name: str, folder: Path, server: Running) -> None:
    check_code(name, README.files[name], server.port, folder)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(("line", "answer"), README.asked)
def test_curl_is_answered_as_the_readme_says(line: str, answer: str, server: Running) -> None:
    check_answer(line, answer, server.port)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_script_serves_by_itself_what_gunicorn_does(tmp_path: Path) -> None:
    port = free_port()
    line, _, _ = next(line for line in README.shell if line.startswith("python ")).partition("  #")
    (tmp_path / "server.py").write_text(README.files["server.py"].replace(PORT, str(port)))
    with running(line, port, tmp_path) as server:
        for asked, answer in README.asked:
            check_answer(asked, answer, server.port)


def test_every_line_of_shell_is_run_or_says_why_not() -> None:
    assert {line.split()[0] for line in README.shell} == {"python", "gunicorn", "curl"}


def lowest() -> tuple[tuple[int, ...], list[str]]:
    """The oldest Python that pyproject.toml allows, and the oldest version of everything that an install brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"]]
    assert all(pins), project["dependencies"]
    python = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    return python, [f"{name}=={version}" for name, version in (pin.groups() for pin in pins if pin)]


def test_the_server_and_its_client_run_with_the_lowest_versions_that_an_install_may_bring(
    folder: Path, tmp_path: Path
) -> None:
    needs.time()
    oldest, requirements = lowest()
    if sys.version_info[:2] != oldest:
        pytest.skip("the lowest versions are those for the lowest Python")
    python, port = install(requirements, tmp_path / "venv"), free_port()
    with running(GUNICORN.replace(PORT, str(port)), port, folder, python):
        check_code("client.py", README.files["client.py"], port, tmp_path, python)


def test_it_has_180_lines_at_most() -> None:
    assert len(README.text.splitlines()) <= 180


def test_the_five_figures_are_those_that_were_measured() -> None:
    table = headline()
    assert len(table.splitlines()) == 2 + 5
    assert place(README.text, "headline", table) == README.text


def test_the_five_rows_beside_others_are_those_that_were_measured() -> None:
    table = peers_headline()
    assert len(table.splitlines()) == 2 + 5
    assert place(README.text, "peers", table) == README.text


def test_what_tests_services_under_load_is_named_beside_its_page() -> None:
    (line,) = [line for line in README.text.splitlines() if "HttpLoadTest" in line]
    assert "the `virtex` command" in line and "docs/loadtest.md" in line
