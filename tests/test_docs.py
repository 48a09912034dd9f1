"""The pages of docs/ are true: their code runs, their tables are those of the code, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from kit.pages import PORT, Page, check_answer, check_code, running
from kit.servers import ROOT, Running, free_port

import virtex
from bench.report import place, render
from virtex import Limits, serial
from virtex.errors import STATUSES

README = Page(ROOT / "README.md")
DOCS = {page.path.stem: page for page in map(Page, sorted((ROOT / "docs").glob("*.md")))}
PAGES = [README, Page(ROOT / "CONTRIBUTING.md"), *DOCS.values()]
GUNICORN = next(line for line in README.shell if line.startswith("gunicorn "))
CODE = [(page.path.stem, name) for page in DOCS.values() for name in page.files]
ASKED = [(page.path.stem, *pair) for page in DOCS.values() for pair in page.asked]
OTHERS = [line for line in DOCS["embedding"].shell if line.split()[0] in ("uvicorn", "granian", "hypercorn")]


def load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files, which those of the pages import."""
    target = tmp_path_factory.mktemp("docs")
    for name, code in README.files.items():
        (target / name).write_text(code)
    return target


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """The README's, which the pages ask."""
    port = free_port()
    with running(GUNICORN.replace(PORT, str(port)), port, folder) as server:
        yield server


# -- the code


def test_every_block_of_code_has_a_name_of_its_own() -> None:
    names = [name for page in (README, *DOCS.values()) for name in page.files]
    assert CODE and len(names) == len(set(names))
    assert [name for name in names if not re.fullmatch(r"\w+\.py", name)] == []


@pytest.mark.parametrize(("page", "name"), CODE, ids=[name for _, name in CODE])
def test_a_block_of_code_prints_what_the_page_says(page: str, name: str, folder: Path, server: Running) -> None:
    check_code(name, DOCS[page].files[name], server.port, folder)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(("page", "line", "answer"), ASKED)
def test_curl_is_answered_as_the_page_says(page: str, line: str, answer: str, server: Running) -> None:
    check_answer(line, answer, server.port)


@pytest.mark.parametrize("line", OTHERS, ids=[line.split()[0] for line in OTHERS])
def test_the_app_runs_under_the_other_servers_that_are_named(line: str, folder: Path) -> None:
    port = free_port()
    where = f" --bind 127.0.0.1:{port}" if line.startswith("hypercorn") else f" --port {port}"
    with running(line + where, port, folder) as server:
        assert server.request("POST", "/", b'{"data": []}') == (200, b'{"data":[],"error":null}')


def test_every_line_of_shell_is_run_or_says_why_not() -> None:
    asked = {line for _, line, _ in ASKED}
    shell = {line for page in DOCS.values() for line in page.shell}
    assert shell == asked | set(OTHERS)


def test_every_make_target_that_is_named_exists() -> None:
    targets = re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([\w-]+)", page.text, re.MULTILINE)}
    assert {"demo", "bench", "report", "api"} <= named <= set(targets)


# -- the tables


def test_the_status_table_is_that_of_the_code() -> None:
    assert [int(status) for status in re.findall(r"^\| (\d{3}) \|", DOCS["wire"].text, re.MULTILINE)] == list(STATUSES)


def test_the_limits_are_those_of_the_code_and_each_has_a_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+|None) \| .* \| (.+) \|$", DOCS["limits"].text, re.MULTILINE)
    assert sorted((name, default) for name, default, _ in rows) == sorted(
        (field.name, str(field.default)) for field in fields(Limits)
    )


def test_the_figures_are_those_that_were_measured() -> None:
    for name, table in render().items():
        assert place(DOCS["figures"].text, name, table) == DOCS["figures"].text


def test_every_room_and_every_public_file_has_its_place_in_the_architecture() -> None:
    rooms = DOCS["architecture"].text.partition("## A request's way")[0]
    named = {name.rstrip("/") for cell in re.findall(r"^\| (`.+?) \|", rooms, re.MULTILINE) for name in cell.split("`")}
    there = {path.name for path in (ROOT / "virtex").iterdir() if path.is_dir() or path.suffix in (".py", ".pyx")}
    assert there - {"__init__.py", "__pycache__"} <= named


def test_the_glossary_has_each_word_once() -> None:
    glossary = DOCS["architecture"].text.partition("## One word, one meaning")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([a-z ]+) \|", glossary, re.MULTILINE)
    assert len(words) > 25
    assert [word for word, count in Counter(words).items() if count > 1] == []


# -- docs/api.md


def test_what_is_made_from_the_docstrings_is_up_to_date() -> None:
    architecture = DOCS["architecture"].text
    assert maker.api() == DOCS["api"].text, "make api"
    assert maker.placed(architecture, maker.files()) == architecture, "make api"


def test_no_public_name_is_missing() -> None:
    headings = set(re.findall(r"^### (\w+)$", DOCS["api"].text, re.MULTILINE))
    assert {*virtex.__all__, *serial.__all__} <= headings


@pytest.mark.parametrize("name", virtex.__all__)
def test_no_public_method_is_missing(name: str) -> None:
    public = getattr(virtex, name)
    if not inspect.isclass(public) or name in maker.OTHERS_CALL:
        return
    methods = [
        member
        for member, value in vars(public).items()
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    ]
    assert [member for member in methods if f"\n#### {name}.{member}\n" not in DOCS["api"].text] == []


@pytest.mark.parametrize("name", maker.documented())
def test_every_parameter_is_explained_by_its_name(name: str) -> None:
    node = maker.documented()[name]
    assert unexplained(node) == [] or name in (*maker.MADE_BY_OTHERS, "Limits")  # limits.md has a table
    if isinstance(node, ast.ClassDef) and name not in maker.OTHERS_CALL:
        methods = {one.name: unexplained(one) for one in maker.methods_of(node) if ast.get_docstring(one)}
        assert {method: missing for method, missing in methods.items() if missing} == {}


def unexplained(node: Any) -> list[str]:
    """The parameters that a docstring has no "name: " of."""
    doc = " ".join((ast.get_docstring(node) or "").split())
    assert doc
    return [one for one in maker.parameters_of(node) if not re.search(rf"(?:^|[.;)] ){one}: ", doc)]


# -- the pages together


def slugs(page: Page) -> set[str]:
    """The fragments by which GitHub links to the headings of a page."""
    without_code = re.sub(r"^```.*?^```$", "", page.text, flags=re.MULTILINE | re.DOTALL)
    return {maker.anchor(heading.replace("`", "")) for heading in re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_within_the_repository_leads_somewhere(page: Page) -> None:
    without_code = re.sub(r"^```.*?^```$", "", page.text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if target.startswith("https://"):
            continue
        path, _, fragment = target.partition("#")
        found = (page.path.parent / path).resolve() if path else page.path
        assert found.exists(), target
        assert not fragment or fragment in slugs(Page(found)), target


def test_every_page_is_linked_from_the_readme_or_from_the_ways_to_deploy() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", README.text))
    ways = {f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)", DOCS["deploy"].text)}
    assert "docs/deploy.md" in linked and {page.name for page in DOCS.values()} <= linked | ways


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_no_command_installs_the_original_which_has_the_name_in_the_index(page: Page) -> None:
    commands = [line for block in page.blocks if block.language in ("sh", "bash") for line in block.code.splitlines()]
    assert [line for line in commands if re.search(r"pip install .*\bvirtex(?![\w/-])", line)] == []


def test_no_page_repeats_another() -> None:
    sentences = [set(re.split(r"(?<=[.:]) ", " ".join(page.text.split()))) for page in PAGES]
    where = Counter(sentence for page in sentences for sentence in page if len(sentence) > 70)
    assert [sentence for sentence, pages in where.items() if pages > 1] == []
