"""The virtex command: its arguments, its help, its exit codes. What the subcommands do, their own files test."""

import os
import re
import signal
import subprocess
import sys
import tomllib

import pytest
from kit.servers import ROOT, until

import virtex
from virtex import cli
from virtex.cli import build, main

URL = "http://127.0.0.1:8081/"


def virtex_command(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "virtex", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **more,
    )


def parsed(*arguments):
    return build().parse_args(list(arguments))


def refused(capsys, *arguments):
    """What a wrong command is answered: exit code 2, and one line that says why, behind the usage."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = re.findall(r"^virtex[\w ]*: error: (.*)$", said.err, re.MULTILINE)
    assert said.err.startswith("usage: ")
    return line


# ---- what is installed


def test_the_script_and_the_module_are_the_same_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"virtex": "virtex.cli:main"}
    ended = virtex_command("--version")
    assert (ended.returncode, ended.stdout) == (0, f"virtex {virtex.__version__}\n")


def test_help_and_wrong_arguments_load_nothing_that_takes_time():
    heavy = {"numpy", "orjson", "httpx2", "gunicorn", "uvloop", "matplotlib", "virtex.load.run", "virtex.server"}
    script = f"""
import sys
from virtex.cli import main
for arguments in (["--help"], ["loadtest", "--help"], ["loadtest", "--rate", "x"]):
    try:
        main(arguments)
    except SystemExit:
        pass
print(sorted(set(sys.modules) & {heavy}), file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ended.stderr.splitlines()[-1] == "[]"


COMMANDS = [[], ["serve"], ["ray"], ["check"], ["info"], ["loadtest"], ["tune"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: "".join(each) or "virtex")
def test_help_has_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes:\n  0    fine\n  1  " in text and "130  stopped by Ctrl-C" in text
    assert command == ["info"] or "examples:\n  virtex " in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_examples_of_the_help_are_right():
    helps = (cli.SERVE, cli.CHECK, cli.loads.LOADTEST, cli.loads.TUNE, cli.rays.HELP)
    for text in (cli.EXAMPLES, *[examples for _, _, examples in helps]):
        for line in re.findall(r"^  virtex (.*?)(?:  +#.*)?$", text, re.MULTILINE):
            import shlex

            build().parse_known_args(shlex.split(line))


# ---- values


def test_every_flag_of_a_load_test_is_read(tmp_path):
    report = tmp_path / "report.html"
    asked = parsed(
        *("loadtest", URL, "--rate", "500", "--connections", "64", "--slo", "p99=50ms", "--arrivals", "poisson"),
        *("--duration", "2m", "--warmup", "0", "--processes", "2", "--max-errors", "1%"),
        *("--data", '{"data": [1]}', "--data", "float32:3", "--items", "4", "--binary"),
        *("--header", "a: b:c", "--header", "x:", "--timeout", "500ms"),
        *("--output", str(report), "--output", "figures.csv", "--quiet", "--progress"),
    )
    assert (asked.url, asked.rate, asked.connections, asked.slo, asked.arrivals) == (URL, 500.0, 64, 0.05, "poisson")
    assert (asked.duration, asked.warmup, asked.processes, asked.max_errors) == (120.0, 0.0, 2, 0.01)
    assert (asked.data, asked.items, asked.binary) == (['{"data": [1]}', "float32:3"], 4, True)
    assert (asked.header, asked.timeout) == ([("a", "b:c"), ("x", "")], 0.5)
    assert [str(each) for each in asked.output] == [str(report), "figures.csv"]
    assert asked.quiet and asked.progress


def test_what_is_left_out_has_its_default():
    asked = parsed("loadtest", URL)
    assert (asked.rate, asked.connections, asked.sweep, asked.slo, asked.duration, asked.requests) == (None,) * 6
    assert (asked.arrivals, asked.warmup, asked.processes, asked.max_errors) == ("constant", 0.5, 1, 0.001)
    assert (asked.data, asked.items, asked.binary, asked.header, asked.timeout) == (None, 1, False, [], 30.0)
    assert (asked.output, asked.quiet, asked.progress) == ([], False, False)


def test_requests_bound_a_run_in_place_of_a_duration():
    assert parsed("loadtest", URL, "--requests", "1000").requests == 1000


def test_every_flag_of_ray_is_read():
    asked = parsed("ray", "a:b", "--host", "::1", "--port", "81", "--replicas", "3", "--cpus", "0.5", "--gpus", "2")
    assert (asked.app, asked.host, asked.port) == ("a:b", "::1", 81)
    assert (asked.replicas, asked.cpus, asked.gpus) == (3, 0.5, 2.0)
    asked = parsed("ray", "a:b")
    assert (asked.host, asked.port, asked.replicas, asked.cpus, asked.gpus) == ("127.0.0.1", 8000, None, None, None)


def test_every_flag_of_a_tuning_is_read():
    asked = parsed(
        *("tune", "server:app", "--p99", "0.2s", "--up-to", "64", "--executor", "thread", "--budget", "10m"),
        *("--processes", "2", "--data", "x.npy", "--header", "a: b", "--timeout", "1s", "--output", "t.json"),
    )
    assert (asked.app, asked.p99, asked.up_to, asked.executor, asked.budget) == ("server:app", 0.2, 64, "thread", 600.0)
    assert (asked.processes, asked.data, asked.header, asked.timeout) == (2, ["x.npy"], [("a", "b")], 1.0)
    assert parsed("tune", "a:b", "--p99", "1s").budget == 120.0
    assert parsed("tune", "a:b", "--p99", "1s", "--quick").budget == 30.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("10", 10.0), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0), ("100us", 1e-4)]
)
def test_times_have_units(text, seconds):
    assert parsed("tune", "a:b", "--p99", text).p99 == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "sweep"),
    [
        ("100,200", ("rate", [100.0, 200.0])),
        ("rate=0.5, 1", ("rate", [0.5, 1.0])),
        ("connections=1,8", ("connections", [1, 8])),
    ],
)
def test_a_sweep_is_over_rates_or_connections(text, sweep):
    assert parsed("loadtest", URL, "--sweep", text).sweep == sweep


# ---- wrong arguments, each with one clear error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: COMMAND"),
        (["sevre"], "invalid choice: 'sevre' (choose from"),
        (["serve"], "required: MODULE:APP"),
        (["serve", "server.py"], "argument MODULE:APP: expected MODULE:APP first, such as server:app, got 'server.py'"),
        (["serve", "server.py:ap"], "expected MODULE:APP first, such as server:ap, got 'server.py:ap'"),
        (["check", "models/server:app"], "expected MODULE:APP first, such as models.server:app"),
        (["serve", "-w", "4", "server:app"], "expected MODULE:APP first, such as server:app, got '4'"),
        (["serve", "a:b", "--factory"], "--factory is uvicorn's; in gunicorn's settings (docs/gunicorn.md): nothing"),
        (["serve", "a:b", "--uds=x"], "--uds is uvicorn's; in gunicorn's settings (docs/gunicorn.md): bind="),
        (["serve", "a:b", "--port", "70000"], "port=70000: expected a whole number from 0 to 65535"),
        (["serve", "a:b", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["serve", "a:b", "--host", "a b"], "host='a b': expected a name or an address"),
        (["check"], "required: MODULE:APP"),
        (["ray"], "required: MODULE:MAKE"),
        (["ray", "server.py"], "expected MODULE:APP first, such as server:app, got 'server.py'"),
        (["ray", "a:b", "--replicas", "0"], "expected a whole number above 0, got '0'"),
        (["ray", "a:b", "--gpus", "none"], "expected a number above 0, got 'none'"),
        (["check", "server"], "expected MODULE:APP first, such as server:app, got 'server'"),
        (["check", "json:app"], "json:app: json has no app"),
        (["check", "json:dumps", "--duration", "0"], "--duration: expected a time above 0, got '0'"),
        (["loadtest"], "required: URL"),
        (["loadtest", URL, "--rat", "5"], "unrecognized arguments: --rat 5"),
        (["loadtest", URL, "--rate", "0"], "--rate: expected a number above 0, got '0'"),
        (["loadtest", URL, "--rate", "inf"], "--rate: expected a number above 0, got 'inf'"),
        (["loadtest", URL, "--rate", "nan"], "--rate: expected a number above 0, got 'nan'"),
        (["loadtest", URL, "--connections", "1.5"], "--connections: expected a whole number above 0, got '1.5'"),
        (["loadtest", URL, "--requests", "-1"], "--requests: expected a whole number above 0, got '-1'"),
        (["loadtest", URL, "--processes", "0"], "--processes: expected a whole number above 0, got '0'"),
        (["loadtest", URL, "--items", "x"], "--items: expected a whole number above 0, got 'x'"),
        (["loadtest", URL, "--sweep", "1,x"], "--sweep: expected a number above 0, got 'x'"),
        (["loadtest", URL, "--sweep", "users=1"], "--sweep: expected rates, 100,200,400, or connections=1,8,64, got"),
        (["loadtest", URL, "--sweep", "=1"], "--sweep: expected rates"),
        (["loadtest", URL, "--sweep", "connections=1.5"], "--sweep: expected a whole number above 0, got '1.5'"),
        (["loadtest", URL, "--slo", "50ms"], "--slo: expected p99=TIME, such as p99=50ms, got '50ms'"),
        (["loadtest", URL, "--slo", "p50=1s"], "--slo: expected p99=TIME"),
        (["loadtest", URL, "--slo", "p99=0"], "--slo: expected a time above 0, got '0'"),
        (["loadtest", URL, "--arrivals", "x"], "--arrivals: invalid choice: 'x'"),
        (["loadtest", URL, "--duration", "soon"], "--duration: expected a time such as 50ms, 10s or 2m, got 'soon'"),
        (["loadtest", URL, "--duration", "0"], "--duration: expected a time above 0, got '0'"),
        (["loadtest", URL, "--duration", "1", "--requests", "1"], "--requests: not allowed with argument --duration"),
        (["loadtest", URL, "--warmup", "-1"], "--warmup: expected"),
        (["loadtest", URL, "--max-errors", "2"], "--max-errors: expected a share from 0 to 1, or in percent, got '2'"),
        (["loadtest", URL, "--max-errors", "x%"], "--max-errors: expected a share"),
        (["loadtest", URL, "--header", "x"], "--header: expected 'name: value', got 'x'"),
        (["loadtest", URL, "--timeout", "0s"], "--timeout: expected a time above 0"),
        (["loadtest", URL, "--output", "r.txt"], "--output: expected a file that ends with .html, .json, .csv, got"),
        (["loadtest", URL, "--output", "/no/where/r.csv"], "--output: there is no folder '/no/where' for 'r.csv'"),
        (["tune"], "required: MODULE:APP, --p99"),
        (["tune", "a:b"], "required: --p99"),
        (["tune", "a:b", "--p99", "1s", "--executor", "gpu"], "--executor: invalid choice: 'gpu'"),
        (["tune", "a:b", "--p99", "1s", "--quick", "--budget", "1m"], "--budget: not allowed with argument --quick"),
        (["tune", "a:b", "--p99", "1s", "--up-to", "0"], "--up-to: expected a whole number above 0, got '0'"),
        (["info", "all"], "unrecognized arguments: all"),
        # what does not go together, and what can't be read
        (["loadtest", "ftp://x", "--data", "{}"], "expected a URL like http://host:8081/path, got 'ftp://x'"),
        (["loadtest", "http://a:b@x", "--data", "{}"], "credentials in a URL end up in logs"),
        (["loadtest", URL, "--sweep", "1", "--slo", "p99=1s"], "--sweep goes without --slo"),
        (["loadtest", URL, "--sweep", "connections=1", "--rate", "5"], "--sweep goes without --rate"),
        (["loadtest", URL, "--sweep", "connections=1", "--connections", "5"], "--sweep goes without --connections"),
        (["loadtest", URL, "--arrivals", "poisson"], "--arrivals is for a schedule: give --rate, too"),
        (["loadtest", URL, "--processes", "4", "--connections", "2"], "connections: expected 1 or more for each of 4"),
        (["loadtest", URL, "--header", "host: x", "--data", "float32:1"], "headers: 'host' belongs to the connection"),
        (["loadtest", URL, "--data", "{x"], "--data '{x': expected JSON"),
        (["loadtest", URL, "--data", "{}"], "--data '{}': expected a message, {"),
        (["loadtest", URL, "--data", '{"data": 1}'], "message.data: expected a list of items, got int"),
        (["loadtest", URL, "--data", "no-such.npy"], "expected a file, or a shape like float32:3,224,224, got"),
        (["loadtest", URL, "--data", "float99:1"], "expected a dtype like float32, got 'float99'"),
        (["loadtest", "http://127.0.0.1:1/"], "http://127.0.0.1:1/ gives no example: say by --data what to send"),
        (["loadtest", "http://127.0.0.1:1/"], "does the service run?"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_wrong_argument_has_one_clear_error(arguments, says, capsys):
    assert says in refused(capsys, *arguments)


def test_a_folder_is_refused_as_output_before_the_test_and_not_after_it(capsys, tmp_path):
    (tmp_path / "r.csv").mkdir()
    assert "--output: expected a file, got the folder" in refused(
        capsys, "loadtest", URL, "--output", str(tmp_path / "r.csv")
    )


def test_a_service_that_takes_arrays_of_any_shape_gives_no_example(monkeypatch, capsys):
    says = {"inputs": {"dtype": "float64", "shape": None}}
    monkeypatch.setattr("virtex.load.about.ask", lambda *asked: says)
    error = refused(capsys, "loadtest", "http://127.0.0.1:1/")
    assert error.rstrip().endswith("gives no example: say by --data what to send")


# ---- exit codes


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError("the host is not found"), 1, "virtex: the host is not found"),
        (RuntimeError("a process ended"), 1, "virtex: a process ended"),
        (KeyboardInterrupt(), 130, "virtex: stopped"),
        (ImportError("it needs matplotlib", name="matplotlib"), 2, "needs matplotlib (pip install '.[loadtest]' in"),
    ],
    ids=["system", "run", "interrupt", "library"],
)
def test_what_went_wrong_is_one_line_and_an_exit_code(error, code, says, monkeypatch, capsys):
    def fail(asked):
        raise error

    monkeypatch.setattr(cli, "run_info", fail)
    assert main(["info"]) == code
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1


def test_an_import_error_of_our_own_is_no_missing_library(monkeypatch):
    def fail(asked):
        raise ImportError("no", name="virtex.load")

    monkeypatch.setattr(cli, "run_info", fail)
    with pytest.raises(ImportError):
        main(["info"])


def test_a_reader_that_has_gone_is_no_traceback():
    # Of virtex info without what it looks for, which takes seconds where torch is installed
    script = (
        "import sys; from virtex import cli, info; info.gather = dict; info.as_text = str; sys.exit(cli.main(['info']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    process.stdout.close()
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (1, b"")


def test_an_interrupt_in_any_place_is_code_130(tmp_path):
    (tmp_path / "slow.py").write_text("import pathlib, time\npathlib.Path('there').touch()\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "virtex", "tune", "slow:app", "--p99", "1s", "--quiet"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until((tmp_path / "there").exists, "the service to be loaded")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "virtex: stopped\n")
