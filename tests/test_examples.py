"""The digits: the handler alone, and the service as make serve starts it, which the demo asks in place of its own."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from kit import needs
from kit.servers import ROOT, free_port, listens

from virtex import HttpMessage, ItemError
from virtex.handler import Worker
from virtex.serial import encode_numpy

sys.path.insert(0, str(ROOT / "examples"))
needs.found("sklearn", "tqdm")

DEMO = [sys.executable, "-W", "error::ResourceWarning", str(ROOT / "examples" / "demo.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def demo() -> Any:
    return importlib.import_module("demo")


@pytest.fixture(scope="module")
def digits() -> Any:
    return importlib.import_module("digits")  # and scikit-learn, which takes seconds


@pytest.fixture(scope="module")
def handler(digits: Any) -> Any:
    handler = digits.Digits()
    handler.setup(Worker())
    return handler


def images_message(images: np.ndarray) -> HttpMessage:
    return HttpMessage(data=[encode_numpy(image) for image in images])


@pytest.mark.parametrize("size", [1, 64])
def test_a_batch_is_read_as_the_model_reads_it_and_says_its_size(digits: Any, handler: Any, size: int) -> None:
    images = digits.split()[1][:size]
    answer = handler.validate(images_message(images), strict=True)
    expected = digits.train().predict(images.reshape(-1, 64))
    assert answer.data == [{"digit": digit, "batch": size} for digit in expected.tolist()]


def test_an_image_of_another_shape_is_refused_by_its_index(handler: Any) -> None:
    message = images_message([np.zeros((8, 8)), np.zeros((28, 28))])
    with pytest.raises(ItemError, match=r"item 1: expected an image of shape \(8, 8\), got \(28, 28\)"):
        handler.validate(message, strict=True)


def test_the_split_is_always_the_same_and_leaves_360_images_out(digits: Any) -> None:
    for one, again in zip(digits.split(), digits.split(), strict=True):
        assert (one == again).all()
    assert [len(part) for part in digits.split()] == [1437, 360, 1437, 360]


def test_the_demo_fails_when_one_answer_is_not_the_models(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.arange(10)
    served = np.stack([np.tile(truth, 2), np.full(20, 4)], axis=1)
    assert demo.report(served, np.ones(20), 1.0, truth, truth)
    served[13, 0] += 1
    assert not demo.report(served, np.ones(20), 1.0, truth, truth)
    assert "1 of 20 answers are not the ones that the model gives" in capsys.readouterr().err


def test_two_wrongs_that_keep_the_accuracy_still_fail_the_demo(demo: Any) -> None:
    truth = np.array([1, 2, 3, 4])
    offline = np.array([1, 9, 3, 4])
    served = np.stack([np.array([1, 2, 9, 4]), np.full(4, 4)], axis=1)
    assert not demo.report(served, np.ones(4), 1.0, truth, offline)


def test_the_batches_that_formed_are_counted_from_what_their_images_say(demo: Any) -> None:
    assert demo.batches(np.array([4, 4, 2, 4, 2, 4, 1])) == "3, of 2.3 images on average: 1 of 1, 1 of 2, 1 of 4"


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_status(demo: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        process.wait()
        with pytest.raises(SystemExit, match="exit status 3 before it was ready"):
            demo.wait_until_ready(process, free_port())


def _heed_ctrl_c() -> None:
    """Where the tests run in the background of a shell, SIGINT is ignored, and so it would be in what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def served(workers: int) -> Iterator[tuple[int, str, subprocess.Popen[str]]]:
    """make serve on a free port: the port, what it printed, the process."""
    port = free_port()
    command = [*DEMO, "--serve", "--port", str(port), "--workers", str(workers)]
    with subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    ) as process:
        try:
            said = ""
            while ".post(message)" not in said:
                line = process.stdout.readline()
                assert line, said + process.stderr.read()
                said += line
            yield port, said, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with served(workers=2) as (port, _, process):
        yield port, process


def run(demo: Any, service: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The demo, which finds a service where it would start its own: its exit status."""
    port, process = service

    @contextlib.contextmanager
    def started(*how: Any) -> Iterator[Any]:
        assert how == ("digits:app", port, 2)
        yield process

    monkeypatch.setattr(sys, "argv", ["demo.py", "--port", str(port), *arguments])
    monkeypatch.setattr(demo, "gunicorn", started)
    monkeypatch.setattr(demo, "stop_on_sigterm", lambda: None)
    return int(demo.main())


def test_the_demo_serves_every_image_as_the_model_reads_it(
    demo: Any, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo, service, monkeypatch, "--connections", "32", "--rounds", "2") == 0
    out, err = capsys.readouterr()
    accuracy = re.search(r"^accuracy +(\S+) served, (\S+) offline", out, re.MULTILINE)
    assert accuracy
    assert accuracy[1] == accuracy[2]
    assert float(accuracy[1]) > 0.98
    assert re.search(r"^throughput +[1-9]\d* requests/s$", out, re.MULTILINE)
    assert re.search(r"^latency +p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms$", out, re.MULTILINE)
    assert re.search(r"^batches +\d+, of [\d.]+ images on average: ", out, re.MULTILINE)
    assert "720/720" in err  # the progress bar came to its end


def test_its_load_test_sends_every_image_and_prints_how_the_service_did(
    demo: Any, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo, service, monkeypatch, "--loadtest") == 0
    metrics = ast.literal_eval(capsys.readouterr().out)
    assert metrics["num_requests"] == 360
    assert 0 < metrics["server_latency_p50_seconds"] <= metrics["server_latency_max_seconds"]


def test_what_make_serve_prints_works_and_ctrl_c_stops_it() -> None:
    with served(workers=1) as (port, said, process):
        curl = next(line for line in said.splitlines() if line.startswith("curl "))
        digit = re.search(r"A handwritten (\d), from the shell", said)
        assert digit
        assert orjson.loads(ask(curl, port)) == {"data": [{"digit": int(digit[1]), "batch": 1}], "error": None}
        snippet = said[said.index("from sklearn") :]
        ended = subprocess.run(
            [sys.executable, "-c", snippet], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        assert re.findall(r"'digit': (\d)", ended.stdout) == ["0", "1", "2"], ended.stderr
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to gunicorn too
        assert process.wait(60) == 0
        assert not listens(port)


def ask(curl: str, port: int) -> bytes:
    """Run the line, or, where there is no curl, do what it says."""
    if shutil.which("curl"):
        return subprocess.run(shlex.split(curl), capture_output=True, timeout=30, check=True).stdout
    import http.client

    _, url, flag, body = shlex.split(curl)
    assert (url, flag) == (f"http://127.0.0.1:{port}/", "-d")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/", body, {"content-type": "application/x-www-form-urlencoded"})
        return connection.getresponse().read()


def test_a_terminated_demo_leaves_no_server_behind(service: Any) -> None:
    port, process = service  # which nobody asks after this
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not listens(port)
