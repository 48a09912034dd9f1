"""virtex loadtest against real servers: what it sends, prints and writes, and its exit codes."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
from kit.peer import Link, always, reply
from kit.peer import echo as echo_link
from kit.servers import ECHO, ROOT, free_port, serving

from virtex import cli
from virtex.load import about
from virtex.load.live import LiveLine, line_of
from virtex.load.record import Histogram, Slice

PICKY = """
import numpy as np
from virtex import ItemError, RequestHandler, Tensor, TensorHandler, http_server

class Sum(TensorHandler):
    inputs = Tensor("float32", (8, 8))

    def example(self):
        return []

    def run_inference(self, batch):
        return batch.sum((1, 2))

def authorize(head):
    return None if (b"x-key", b"swordfish") in head.headers else 401

app = http_server(name="picky", handler=Sum, authorize=authorize)
"""
EXAMPLE = ECHO.replace(
    "class Echo(RequestHandler):", "class Echo(RequestHandler):\n    def example(self): return ['a', 'b']\n"
)
SHORT = ("--duration", "0.3s", "--warmup", "0")


@pytest.fixture(scope="module")
def echo():
    with serving("gunicorn", EXAMPLE) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def picky():
    with serving("gunicorn", PICKY) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture
def loadtest(capsys):
    """Run the command; gives its exit code and what it printed."""

    def run(*arguments):
        code = cli.main(["loadtest", *arguments])
        return code, capsys.readouterr().out

    return run


def test_a_rate_is_sent_and_reported_in_every_form(loadtest, echo, tmp_path):
    json_file, csv_file = tmp_path / "r.json", tmp_path / "r.csv"
    code, text = loadtest(
        *(echo, "--rate", "200", "--requests", "60", "--warmup", "0", "--slo", "p99=20s"),
        *("--data", '{"data": [1, 2]}', "--output", str(json_file), "--output", str(csv_file)),
    )
    assert code == 0
    assert "open loop, 200 requests/s, constant arrivals, 60 requests" in text
    assert "60 right answers to 60 requests" in text and "held: p99 of 20,000 ms" in text
    assert text.endswith(f"written: {json_file}\nwritten: {csv_file}\n")
    (run,) = json.loads(json_file.read_text())["runs"]
    assert (run["answered"], run["items"], run["statuses"]) == (60, 120, {"200": 60})
    (line,) = csv.DictReader(csv_file.read_text().splitlines())
    assert (line["answered"], line["rate"]) == ("60", "200.0")


def test_the_batches_of_the_service_are_those_of_the_test(loadtest, echo, tmp_path):
    path = tmp_path / "r.json"
    loadtest(
        echo,
        "--connections",
        "1",
        "--requests",
        "30",
        "--warmup",
        "0",
        "--data",
        '{"data": [1, 2, 3]}',
        "--output",
        str(path),
    )
    sizes = json.loads(path.read_text())["batch_sizes"]
    assert (sizes["counts"][:4], sum(sizes["counts"]), sizes["mean"]) == ([0, 0, 30, 0], 30, 3.0)


def test_without_data_the_service_is_sent_its_example(loadtest, echo):
    code, text = loadtest(echo, "--connections", "2", *SHORT)
    assert code == 0 and "closed loop, 2 connections, 0.3 s" in text and "errors" not in text


def test_without_an_example_it_is_sent_what_it_declares(loadtest, picky):
    code, text = loadtest(picky, "--connections", "1", *SHORT, "--header", "x-key: swordfish")
    assert code == 0 and "errors" not in text


def test_arrays_go_as_npy_and_several_in_a_request(loadtest, picky, tmp_path):
    path = tmp_path / "r.json"
    code, _ = loadtest(
        *(picky, "--connections", "1", "--requests", "10", "--warmup", "0", "--header", "x-key: swordfish"),
        *("--data", "float32:8,8", "--items", "3", "--binary", "--output", str(path)),
    )
    (run,) = json.loads(path.read_text())["runs"]
    assert (code, run["items"]) == (0, 30)


def test_more_errors_than_are_allowed_are_exit_code_1(loadtest, picky):
    code, text = loadtest(picky, "--connections", "1", *SHORT, "--data", "float32:8,8")
    assert code == 1 and re.search(r"^errors: 4xx [\d,]+$", text, re.MULTILINE)
    mixed = ("--data", "float32:8,8", "--data", "float32:9,9", "--header", "x-key: swordfish")
    assert loadtest(picky, "--connections", "1", *SHORT, *mixed)[0] == 1
    assert loadtest(picky, "--connections", "1", *SHORT, *mixed, "--max-errors", "60%")[0] == 0


def test_a_bound_that_is_missed_is_exit_code_1(loadtest, echo):
    code, text = loadtest(echo, "--connections", "1", *SHORT, "--slo", "p99=1us")
    assert code == 1 and "MISSED: p99 of 0.001 ms" in text


def test_nobody_there_is_counted_and_exit_code_1(loadtest, tmp_path):
    path = tmp_path / "r.json"
    url = f"http://127.0.0.1:{free_port()}/"
    code, text = loadtest(
        url, "--rate", "50", "--requests", "20", "--warmup", "0", "--data", '{"data":[]}', "--output", str(path)
    )
    assert code == 1 and "errors: refused 20" in text
    assert json.loads(path.read_text())["runs"][0]["errors"] == {"refused": 20}


def test_a_host_that_is_not_found_is_one_line(capsys):
    code = cli.main(["loadtest", "http://no-such-host.invalid/", "--data", '{"data":[]}', "--rate", "1"])
    said = capsys.readouterr()
    assert code == 1 and said.err.startswith("virtex: ") and said.err.count("\n") == 1


def test_a_sweep_over_rates_and_over_connections(loadtest, echo, tmp_path):
    path = tmp_path / "r.json"
    code, text = loadtest(echo, "--sweep", "50,100", *SHORT, "--output", str(path))
    assert code == 0 and "sweep of 2 runs, open loop, 50 to 100 requests/s" in text
    assert [run["plan"]["rate"] for run in json.loads(path.read_text())["runs"]] == [50.0, 100.0]
    code, text = loadtest(echo, "--sweep", "connections=1,2", *SHORT, "--output", str(path))
    assert code == 0 and "sweep of 2 runs, closed loop, 1 to 2 connections" in text
    assert [run["plan"]["connections"] for run in json.loads(path.read_text())["runs"]] == [1, 2]


def test_a_search_that_finds_nothing_is_exit_code_1(loadtest, echo, tmp_path):
    path = tmp_path / "r.json"
    code, text = loadtest(echo, "--slo", "p99=1us", "--duration", "0.05s", "--warmup", "0", "--output", str(path))
    document = json.loads(path.read_text())
    assert code == 1 and "held at no rate" in text
    assert (document["mode"], document["slo"]["best"]) == ("search", None)


def test_quiet_prints_nothing_and_still_writes(loadtest, echo, tmp_path):
    path = tmp_path / "r.csv"
    assert loadtest(echo, "--connections", "1", *SHORT, "--quiet", "--output", str(path)) == (0, "")
    assert path.exists()


def test_a_line_is_shown_where_it_is_asked_for_and_wiped(echo, capsys):
    arguments = ["loadtest", echo, "--rate", "20", "--duration", "1.2s", "--warmup", "0"]
    assert cli.main([*arguments, "--progress"]) == 0
    said = capsys.readouterr().err
    assert "errors 0" in said and said.endswith("\r\x1b[K")
    assert cli.main(arguments) == 0
    assert capsys.readouterr().err == ""  # not a terminal


def test_a_report_in_html_needs_its_library_before_the_test(echo, monkeypatch, tmp_path, capsys):
    from virtex.load import command

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command.library.cache_clear()
    code = cli.main(["loadtest", echo, "--rate", "1", "--duration", "1h", "--output", str(tmp_path / "r.html")])
    command.library.cache_clear()
    assert code == 2
    assert (
        "an HTML report needs matplotlib: install the extra [loadtest] (pip install '.[loadtest]'"
        in capsys.readouterr().err
    )


def test_ctrl_c_reports_what_had_come(echo, tmp_path):
    path = tmp_path / "r.json"
    load = ("--rate", "50", "--duration", "60s", "--warmup", "0", "--slo", "p99=20s")
    process = subprocess.Popen(
        [sys.executable, "-m", "virtex", "loadtest", echo, *load, "--progress", "--output", str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen = ""
        while "errors 0" not in seen:
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        text, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and said.endswith("virtex: stopped\n")
    assert "INTERRUPTED: these are the figures of what came until then" in text
    document = json.loads(path.read_text())
    assert document["interrupted"] and document["runs"][0]["answered"] >= 25


# ---- what a service says of itself


@pytest.fixture
def answering():
    """A server that gives one connection an answer; gives its URL."""
    servers = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/x"

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"metrics": 1}',
        b"garbage\r\n\r\n",
        b"",
    ],
    ids=["404", "no JSON", "half", "a list", "no metrics", "garbage", "nothing"],
)
def test_a_service_that_is_none_of_ours_says_nothing(answer, answering):
    assert about.metrics(answering(answer), {}) is None


def metrics(counts, total):
    return {"virtex_batch_size": {"bounds": [1.0, 2.0], "counts": counts, "sum": total}}


def test_sizes_are_what_came_between_two_looks():
    found = about.sizes_between(metrics([1, 2, 0], 5.0), metrics([1, 4, 1], 20.0))
    assert (found.counts, found.mean) == ((0, 2, 1), 5.0)


SOME = metrics([1, 1, 1], 9.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, SOME), (SOME, None), (SOME, SOME), (metrics([9, 1, 1], 9.0), SOME)],
    ids=["no first", "no second", "no batch", "started again"],
)
def test_where_there_is_nothing_to_compare_there_are_no_sizes(before, after):
    assert about.sizes_between(before, after) is None


@pytest.mark.parametrize("outputs", [("/dev/full", "b.json"), ("b.json", "/dev/full")], ids=("first", "last"))
def test_a_full_disk_costs_no_other_output_and_is_the_exit_code(loadtest, echo, tmp_path, capsys, outputs):
    (tmp_path / "full.csv").symlink_to("/dev/full")
    paths = [tmp_path / ("full.csv" if each == "/dev/full" else each) for each in outputs]
    code, text = loadtest(echo, "--requests", "1", "--warmup", "0", *(f"--output={path}" for path in paths))
    assert code == 1
    assert json.loads((tmp_path / "b.json").read_text())["mode"] == "run"
    assert f"written: {tmp_path}/b.json" in text and "written: {tmp_path}/full.csv" not in text


def test_a_unix_socket_is_tested_as_a_port_is(loadtest, tmp_path):
    told = reply({"example": ["a"]})
    parts = [always(told), always(reply({})), echo_link, always(reply({}))]  # a connection each, in this order

    def serve():
        for part in parts:
            sock, _ = listener.accept()
            with sock:
                part(Link(sock, 0))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        asked = ("--connections", "1", "--requests", "3", "--warmup", "0")
        code, text = loadtest(f"unix:{tmp_path}/s", *asked)
        thread.join(10)
    assert code == 0 and "3 right answers to 3 requests" in text


# ---- the line


def test_the_line_says_rate_times_and_errors():
    second = Slice(12.0, 1500, response=Histogram([3_000_000] * 100))
    second.errors["5xx"] = 7
    assert line_of(second, 1.0) == "   12 s  1,500/s  p50 3.00 ms  p99 3.00 ms  errors 7"
    assert "p50 -" in line_of(Slice(1.0), 1.0)


def test_a_run_that_was_stopped_has_the_seconds_that_were_over():
    from kit.runs import make_run

    whole = make_run(seconds=4, errors={"5xx": 8})
    line = LiveLine(None)
    line.begin(whole.plan)
    assert line.partial() == []
    for each in whole.slices[:2]:
        line(each)
    (part,) = line.partial()
    assert (part.answered, part.seconds, part.errors["5xx"]) == (whole.answered // 2, 2.0, 4)
    assert part.response.count == part.answered and part.rate == part.answered / 2
    line.begin(whole.plan)
    assert line.partial() == []
