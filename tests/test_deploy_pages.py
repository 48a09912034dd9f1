"""The pages about deployment: each command is run by a test that is named there, or the page says why not.

A block of sh stands behind <!-- tested by tests/test_x.py --> or <!-- not run here: why -->. The file that is named
takes the commands from the page, by Page.commands(__file__), or has each of them word by word. Blocks of bash are held
by tests/test_docs.py, there as everywhere.
"""

import re
from pathlib import Path

import pytest
from kit.pages import Page
from kit.servers import ROOT

WAYS = ["deploy", "ray", "containers", "kubernetes", "systemd", "proxies", "grpc", "scale", "gunicorn"]
PAGES = [Page(path) for path in (ROOT / "docs" / f"{way}.md" for way in WAYS) if path.exists()]
FENCES = [(page, *fence) for page in PAGES for fence in page.fences]
TESTED = re.compile(r"tested by (tests/[\w/]+\.py)")
TAKES = re.compile(r"""\.commands\(__file__\)|\.fences\b|language == "sh"|```sh""")  # from the page's blocks
NOT_RUN = re.compile(r"not run here: (\S.{10,})")


def wrong(page, said, commands, root=ROOT):
    """What is wrong with a block of sh; "" for nothing."""
    if NOT_RUN.fullmatch(said):
        return ""
    told = TESTED.fullmatch(said)
    if told is None:
        return f"expected <!-- tested by tests/test_x.py --> or <!-- not run here: why --> ahead of it, got {said!r}"
    if not (root / told[1]).is_file():
        return f"there is no {told[1]}"
    source = (root / told[1]).read_text()
    if re.search(rf"\b{page.path.stem}(?:\.md)?[\"']", source) and TAKES.search(source):
        return ""
    missing = [command for command in commands if command and command not in source]
    return f"{told[1]} takes nothing from {page.name}, and does not name {missing}" if missing else ""


@pytest.mark.parametrize(
    ("page", "said", "commands"), FENCES, ids=[f"{page.path.stem} {said}" for page, said, _ in FENCES]
)
def test_a_command_is_run_by_the_test_that_is_named_or_says_why_not(page, said, commands):
    assert commands and wrong(page, said, commands) == ""


def test_the_index_names_every_way():
    index = Page(ROOT / "docs" / "deploy.md")
    assert {f"{way}.md" for way in WAYS} - {"deploy.md"} <= set(re.findall(r"\]\((\w+\.md)", index.text))


# -- the test itself

GOOD = 'PAGE = Page(ROOT / "docs" / "a.md")\nPAGE.commands(__file__)'


@pytest.mark.parametrize(
    ("said", "source", "expected"),
    [
        ("not run here: there is no cluster", None, ""),
        ("tested by tests/test_a.py", GOOD, ""),
        ("tested by tests/test_a.py", "run('a --b')", ""),
        ("tested by tests/test_a.py", "run('a')", "does not name ['a --b']"),
        ("tested by tests/test_a.py", 'Page("other.md").commands(__file__)', "takes nothing from docs/a.md"),
        ("tested by tests/test_a.py", None, "there is no tests/test_a.py"),
        ("tested by hand", None, "expected <!-- tested by"),
        ("not run here: ", None, "expected <!-- tested by"),
        ("", None, "expected <!-- tested by"),
    ],
)
def test_a_block_that_nobody_runs_is_found(said, source, expected, tmp_path):
    (tmp_path / "tests").mkdir()
    if source is not None:
        (tmp_path / "tests" / "test_a.py").write_text(source)
    page = Page.__new__(Page)
    page.path, page.name = Path("docs/a.md"), "docs/a.md"
    found = wrong(page, said, ["a --b"], tmp_path)
    assert expected in found and bool(expected) == bool(found)


def test_the_commands_of_a_page_are_lines_and_those_that_go_on_are_one(tmp_path, monkeypatch):
    page = Page(ROOT / "docs" / "kubernetes.md")
    page.text = "<!-- tested by tests/test_deploy_pages.py -->\n```sh\na \\\n  --b\nc\n```\n\n```sh\nd\n```\n"
    assert page.fences == [("tested by tests/test_deploy_pages.py", ["a    --b", "c"]), ("", ["d"])]
    assert page.commands(__file__) == ["a    --b", "c"]
