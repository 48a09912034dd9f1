"""A service that `virtex tune` tries: started with other settings, asked, and ended whatever happens."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit.asks import Echo
from kit.servers import ECHO, ROOT, until

from virtex import cli, http_server
from virtex.load.about import ask
from virtex.load.trial import Trial, TrialError
from virtex.load.tried import change, load, own
from virtex.server import Server

NUMBERS = itertools.count()
PUSHING = ECHO.replace('name="echo",', 'name="echo", prom_mode="push", max_batch_size=7, executor="thread",')
WRAPPED = f"""{ECHO}
inner = app

async def app(scope, receive, send):
    await inner(scope, receive, send)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module, and have this process and its children find it; gives its name."""

    def write(source):
        name = f"tried_{next(NUMBERS)}"  # a module is imported once
        (tmp_path / f"{name}.py").write_text(source)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    return write


def test_it_has_the_settings_that_were_asked_for_and_tells_its_own(module):
    options = {"max_batch_size": 3, "max_time_on_queue": 0.25, "executor": "inline"}
    with Trial(f"{module(PUSHING)}:app", options) as trial:
        said = ask(trial.url, "/", {})
        assert (said["max_batch_size"], said["max_time_on_queue"]) == (3, 0.25)
        assert trial.own == {"max_batch_size": 7, "max_time_on_queue": 0.005, "executor": "thread"}
        port = trial.port
    assert ask(f"http://127.0.0.1:{port}/", "/", {}) is None


def test_its_counts_are_pushed_nowhere(module):
    _, server = load(f"{module(PUSHING)}:app")
    change(server, {"max_batch_size": 3})
    assert server.options.prom.mode == "off"
    assert (server.max_batch_size, server.options.executor) == (3, "thread")


def test_it_warms_up_with_those_of_its_sizes_that_fit():
    server = http_server("warm", Echo(), max_batch_size=8, warmup=(1, 8))
    change(server, {"max_batch_size": 4})
    assert server.options.sizes == (1,)
    change(server, {"max_batch_size": 2, "warmup": True})
    assert server.options.sizes == (1, 2)


@pytest.mark.parametrize("source", [ECHO, WRAPPED, ECHO + "\ndef make():\n    return app\n"])
def test_the_service_is_found_bare_wrapped_or_made(module, source):
    name = "make" if "def make" in source else "app"
    app, server = load(f"{module(source)}:{name}")
    assert isinstance(server, Server) and callable(app)
    assert own(server) == {"max_batch_size": 512, "max_time_on_queue": 0.005, "executor": "inline"}


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("app", ECHO, "expected module:app"),
        (":app", ECHO, "expected module:app"),
        ("{}:", ECHO, "expected module:app"),
        ("{}:nothing", ECHO, "has no nothing"),
        ("nowhere_at_all:app", ECHO, "nowhere_at_all:app: there is no module 'nowhere_at_all' here"),
        ("{0}.inner:app", ECHO, "there is no module '.*inner' here"),
        ("{}:asgi", "async def asgi(scope, receive, send): ...", "the only one of its module; .* holds 0"),
        ("{}:asgi", WRAPPED + "\nother = http_server(name='b', handler=Echo())\nasgi = app", "holds 2"),
    ],
)
def test_what_is_no_service_is_refused_by_name(module, name, source, says):
    with pytest.raises(ValueError, match=says):
        load(name.format(module(source)))


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("1 / 0", {}, "ZeroDivisionError"),
        ("import os\nos.nothing", {}, "has no attribute 'nothing'"),
        ("import nowhere_to_be_found", {}, "No module named 'nowhere_to_be_found'"),
        (ECHO, {"max_batch_size": 0}, "max_batch_size=0"),
    ],
    ids=[
        "a module that raises",
        "one that misses an attribute",
        "one that misses a module",
        "an option that can't be",
    ],
)
def test_a_service_that_does_not_start_says_why(module, source, options, says):
    with pytest.raises(TrialError, match="^the service did not start: ") as failed:
        Trial(f"{module(source)}:app", options)
    assert says in str(failed.value).splitlines()[0]


def test_a_wrong_name_is_one_line(module, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", f"{module('x = 1')}:app", "--p99", "1s"])
    assert ended.value.code == 2
    assert re.search(r"virtex tune: error: (tried_\d+):app: \1 has no app\n$", capsys.readouterr().err)


def test_a_setup_that_raises_is_told(module):
    source = ECHO.replace(
        "class Echo(RequestHandler):", "class Echo(RequestHandler):\n    def setup(self, worker): 1 / 0\n"
    )
    with pytest.raises(TrialError, match="^the service did not start: ZeroDivisionError: division by zero\n"):
        Trial(f"{module(source)}:app", {})


def test_it_ends_when_the_process_that_started_it_is_killed(module, tmp_path):
    script = f"""
import sys, time
from virtex.load.trial import Trial
with Trial("{module(ECHO)}:app", {{}}) as trial:
    print(trial._process.pid, flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        master = int(parent.stdout.readline())
        assert is_running(master)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    until(lambda: not is_running(master), "gunicorn to end with its parent")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
