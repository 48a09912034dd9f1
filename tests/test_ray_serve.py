"""A Ray of its own, with the services of Virtex on it: killed, scaled, composed, broken, and started by the command.

It needs an environment with Ray: `make test-all` makes it, and names it in VIRTEX_RAY. Ray listens on every address for
its own purposes, so it runs in a network of its own, where one can be made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import needs
from kit.pages import Page
from kit.servers import ROOT

WHERE = os.environ.get("VIRTEX_RAY", "")
PYTHON = Path(WHERE, "bin", "python").absolute()
if not WHERE:
    if needs.every:
        raise RuntimeError("VIRTEX_RAY: expected an environment with ray[serve], got nothing")
    pytest.skip("VIRTEX_RAY names no environment with ray[serve]", allow_module_level=True)

PAGE = Page(ROOT / "docs" / "ray.md")
SECONDS = 400.0  # for what takes 70 on an idle machine
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def alone(script: str) -> list[str]:
    """A command that runs a script of bash in a network of its own, with a loopback interface, where that may be."""
    apart = ["unshare", "--map-root-user", "--net"]
    may = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True).returncode == 0
    return [*apart, "bash", "-c", f"ip link set lo up; {script}"] if may else ["bash", "-c", script]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, for Ray has sockets in it, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="vx", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def facts(folder: Path) -> Any:
    """What tests/clients/ray_serve.py found."""
    script = f"exec {PYTHON} {ROOT}/tests/clients/ray_serve.py {folder}"
    with ended(subprocess.Popen(alone(script), env=ENVIRONMENT, stdout=-1, stderr=-1, start_new_session=True)) as run:
        out, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said.decode()[-6000:]
    return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is over at the end, with those that it began."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


# ---- arguments


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("captured", "can't be sent to the replicas: it holds model (lock): "),
        ("no_function", "expected a function that makes the application in each replica, got a Server"),
        ("misnamed", "there is no 'max_replica'; did you mean 'max_replicas'?"),
        ("both", "expected num_replicas=, or autoscaling="),
        ("wait", "expected seconds above 0"),
        ("two_policies", "it goes without target_ongoing_requests"),
        ("resources", "'gpus' in ray_actor_options is not allowed"),
        ("option", "unexpected keyword argument 'replicas'"),
    ],
)
def test_a_deployment_that_can_not_be_meant_is_refused_before_there_is_one(facts: Any, name: str, said: str) -> None:
    assert said in facts[name]


# ---- a replica that is killed under 64 clients


def test_no_answer_is_wrong_and_a_killed_replica_costs_only_what_it_had(facts: Any) -> None:
    assert facts["answered"] > 4 * 64 and facts["wrong"] == 0
    assert facts["failed"] <= 64
    assert facts["failed_begun_later"] == []


def test_while_a_successor_starts_nobody_waits_for_ten_seconds(facts: Any) -> None:
    assert facts["slowest_after"] < 10
    assert facts["back"] < 60


def test_replicas_have_ranks_and_a_successor_takes_over_its_predecessors(facts: Any) -> None:
    assert facts["ranks"] == [0, 1]
    assert facts["index_taken_over"]


def test_a_replica_that_says_it_is_not_live_is_replaced_and_nobody_notices(facts: Any) -> None:
    assert facts["sick"] < 60 and facts["sick_failed"] == 0


# ---- replicas by load


def test_load_scales_from_one_to_three_and_back_and_to_none_and_loses_nothing(facts: Any) -> None:
    counts = facts["counts"]
    assert counts[0] in (0, 1) and max(counts) == 3 and counts[-1] == 0
    assert counts[counts.index(3) :] == sorted(counts[counts.index(3) :], reverse=True)
    assert facts["lost"] == 0


def test_a_request_that_finds_no_replica_is_held_until_there_is_one(facts: Any) -> None:
    assert facts["from_none"] == [200, 7]


def test_every_replica_that_was_not_killed_is_torn_down_once(facts: Any) -> None:
    lives = [line.split()[:3] for line in facts["log"]]
    began = Counter((name, pid) for name, pid, what in lives if what == "setup")
    over = Counter((name, pid) for name, pid, what in lives if what == "teardown")
    assert set(began.values()) == set(over.values()) == {1}
    assert [name for name, _ in began - over] == ["pair"] and not over - began


# ---- two models, and one that is broken


def test_a_model_asks_another_and_refuses_what_that_would(facts: Any) -> None:
    assert facts["composed"] == ["hello", "guten tag", "bonjour"]
    status, answer = facts["refused"]
    assert status == 422 and answer["error"] == "item 0: expected a text"


def test_a_setup_that_raises_is_shown_with_its_traceback(facts: Any) -> None:
    assert facts["broken_said"] == "the replicas did not start: OSError: no weights at /models/x"
    assert facts["broken"].startswith("deployment 'broken': Traceback (most recent call last):\n")
    assert "in setup\n" in facts["broken"] and "/ray/serve/_private/" not in facts["broken"]


def test_a_function_that_replicas_can_not_import_is_shown_as_that(facts: Any) -> None:
    assert facts["absent_said"].startswith("the replicas did not start: ")
    assert "ModuleNotFoundError: No module named 'only_here'" in facts["absent"]


# ---- the page, and the command


SCRIPT = """
cd {folder}
export RAY_TMPDIR={folder}
virtex() {{ {python} -m virtex "$@"; }}
until_said() {{ until grep -q "$1" $2 || ! kill -0 $!; do sleep 0.1; done; }}

{python} -u -m http.server 8000 --bind 127.0.0.1 >other 2>&1 & until_said Serving other
virtex ray ray_server:make >taken 2>&1; echo $? >>taken
kill %1
{python} -m {served} >served 2>&1 & server=$!; until_said "Ctrl-C ends it" served
{asked} -sS >answered 2>&1 & asking=$!
until [ -e began ] || ! kill -0 $asking; do sleep 0.1; done
kill -INT $server; wait $asking; wait $server; echo $? >>served
"""


def test_the_command_of_the_page_serves_until_ctrl_c_and_answers_what_it_has(folder: Path) -> None:
    commands = [line for block in PAGE.blocks if block.language == "sh" for line in block.code.splitlines()]
    served = next(line for line in commands if line.startswith("virtex ray "))
    asked = next(line for line in commands if line.startswith("curl "))
    (folder / "ray_server.py").write_text(PAGE.files["ray_server.py"] + SLOW.format(folder=folder))
    script = SCRIPT.format(folder=folder, python=PYTHON, served=served, asked=asked)
    with ended(subprocess.Popen(alone(script), env=ENVIRONMENT, start_new_session=True)) as process:
        process.wait(SECONDS)
    taken, said, answer = ((folder / name).read_text() for name in ("taken", "served", "answered"))
    assert taken.endswith("can't listen on ('127.0.0.1', 8000): Address already in use\n1\n")
    # It was asked 3 seconds ahead of its answer, and Ctrl-C came meanwhile
    assert answer == next(block.code for block in PAGE.blocks if block.language == "json").strip()
    assert "serving ray_server:make at http://127.0.0.1:8000/; Ctrl-C ends it\n" in said and said.endswith("\n0\n")


def test_the_deployment_of_the_page_builds_what_ray_deploys(tmp_path: Path) -> None:
    written = {block.code.partition("\n")[0]: block.code for block in PAGE.blocks if block.language == "python"}
    for name in ("ray_server.py", "on_ray.py"):
        (tmp_path / name).write_text(written[f"# {name}"])
    commands = [line for block in PAGE.blocks if block.language == "sh" for line in block.code.splitlines()]
    words = shlex.split(next(line for line in commands if line.startswith("serve build ")))
    build = [PYTHON, "-c", "from ray.serve.scripts import cli; cli()", *words[1:]]
    run = subprocess.run(build, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stderr
    built = (tmp_path / "serve.yaml").read_text()
    for line in ("import_path: on_ray:app", "policy_function: virtex.ray.policy.QueueWait", "target_queue_wait: 0.05"):
        assert line in built
    assert "max_ongoing_requests: 1024" in built and "graceful_shutdown_timeout_s: 75.0" in built


SLOW = """
import time
from pathlib import Path

quickly = Linear.run_inference

def slowly(self, batch):
    Path("{folder}/began").touch()
    time.sleep(3)
    return quickly(self, batch)

Linear.run_inference = slowly
"""
