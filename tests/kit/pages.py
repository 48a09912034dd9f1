"""The blocks of code of README.md and docs/: which there are, and how they are run.

A block of Python is a file whose name its first line has. A line of it that prints has what it prints as its comment.
Blocks are run, unless they stand behind a comment <!-- not run: why -->. What curl is answered stands in the block of
JSON that follows.

A block of sh, in a page about deployment, says who runs it: <!-- tested by tests/test_x.py -->, which takes its lines
by Page.commands(), or <!-- not run here: why -->. tests/test_deploy_pages.py holds the pages to it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.servers import ROOT, Running, until

PORT = "8081"  # in the pages; a free one stands in for it
LANGUAGES = {"python", "bash", "json", "text", "bibtex", "sh", "yaml", "ini", "nginx", "toml", "dockerfile"}
_SH = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    why_not: str
    language: str
    code: str


class Page:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text()
        self.blocks = [Block(*found) for found in _BLOCK.findall(self.text)]
        assert self.text.count("```") == 2 * len(self.blocks), f"{self.name}: a block without a language"
        assert {block.language for block in self.blocks} <= LANGUAGES, self.name

    @property
    def files(self) -> dict[str, str]:
        """The blocks of Python by their names."""
        code = [block.code for block in self.blocks if block.language == "python" and not block.why_not]
        files = {text.partition("\n")[0].removeprefix("# "): text for text in code}
        assert len(files) == len(code), f"{self.name}: two blocks of one name"
        return files

    @property
    def shell(self) -> list[str]:
        """The lines of shell that can be run."""
        run = [block.code for block in self.blocks if block.language == "bash" and not block.why_not]
        return [line for code in run for line in code.splitlines()]

    @property
    def fences(self) -> list[tuple[str, list[str]]]:
        """What stands ahead of each block of sh, and its commands: a line that ends with a backslash goes on."""
        return [(said, code.replace("\\\n", " ").splitlines()) for said, code in _SH.findall(self.text)]

    def commands(self, test: str) -> list[str]:
        """The commands that this file of tests is said to run. test: its __file__."""
        told = f"tested by {Path(test).relative_to(ROOT)}"
        return [line for said, lines in self.fences if said == told for line in lines if line]

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Each line that asks a service, and what the page says that it answers."""
        pairs = []
        for block, following in zip(self.blocks, self.blocks[1:], strict=False):
            lines = block.code.splitlines()
            if block.language == "bash" and lines[0].startswith("curl "):
                assert following.language == "json", f"{self.name}: no answer behind {lines[0]}"
                pairs += zip(lines, following.code.splitlines(), strict=True)
        return pairs


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def running(line: str, port: int, folder: Path, python: str = sys.executable) -> Iterator[Running]:
    """A server line of a page, on a port of ours."""
    words = shlex.split(line)
    command = [python, *words[1:]] if words[0] == "python" else [python, "-m", *words]
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


def check_code(name: str, code: str, port: int, folder: Path, python: str = sys.executable) -> None:
    """Run a block as a file; it prints what it says, or its tests pass."""
    (folder / name).write_text(code.replace(PORT, str(port)))
    is_test = name.startswith("test_")
    command = [python, "-W", "error", *(["-m", "pytest", "-q", "-p", "no:cacheprovider"] if is_test else []), name]
    env = environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # loading them takes longer than the test
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if is_test:
        assert "1 passed" in ended.stdout
    else:
        assert ended.stdout.splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)


def check_answer(line: str, answer: str, port: int) -> None:
    """Ask as the page says, and compare."""
    command = shlex.split(line.replace(PORT, str(port)))
    ended = subprocess.run([*command, "--silent", "--show-error"], capture_output=True, text=True, timeout=30)
    assert ended.stdout == answer, ended.stderr


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
