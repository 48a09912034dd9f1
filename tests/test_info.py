"""virtex info: what is installed here, and on what it runs."""

import importlib.util
import json
import os
import re
import resource
import sys
import tomllib

import pytest
from kit.servers import ROOT

import virtex
from virtex import info
from virtex.cli import main
from virtex.limits import allowance
from virtex.resident import memory


def test_it_names_versions_cores_codec_and_limits():
    found = info.gather()
    assert found["virtex"] == virtex.__version__
    assert found["codec"] == virtex.codec_info()
    assert found["dependencies"]["numpy"] and found["cpu"]
    assert found["cores"]["usable"] == len(os.sched_getaffinity(0)) <= found["cores"]["all"]
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found["memory"]["size"] == memory().size and found["memory"]["max_bytes"] == allowance(None).max_bytes
    assert found["open_files"]["soft"] == (None if soft == resource.RLIM_INFINITY else soft)


def test_its_dependencies_are_those_of_the_project():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(info.CORE) == sorted(each.partition(">")[0] for each in needed)


def test_what_it_names_of_the_extras_is_all_that_those_of_users_bring():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    of_users = ("grpc", "loadtest", "mxnet", "otel", "pandas", "pillow", "ray", "tensorflow", "torch")
    brought = {re.match(r"[\w-]+", each)[0] for name in of_users for each in extras[name]}
    assert sorted(info.EXTRAS) == sorted(brought - {"numpy"})


def test_as_json_it_is_what_was_found(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(info.gather()))


def test_as_text_it_has_a_line_for_each(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["virtex", virtex.__version__]
    names = {line.split(maxsplit=1)[0] for line in lines if line.strip()}
    assert {"python", "cpu", "codec", "gpu", "memory", "max_bytes", "uvloop"} <= names


@pytest.fixture
def no_torch(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(info, "find_spec", lambda name: None if name == "torch" else found(name))


def say(folder, monkeypatch, script):
    """Make this what nvidia-smi does."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_without_torch_nvidia_smi_names_the_gpus(no_torch, tmp_path, monkeypatch):
    say(tmp_path, monkeypatch, "echo GPU A; echo GPU B")
    found = info.gather()
    assert found["gpu"] == {"names": ["GPU A", "GPU B"], "told_by": "nvidia-smi"}
    assert "GPU A; GPU B" in info.as_text(found)


@pytest.mark.parametrize("script", ["exit 9", "true"], ids=["it fails", "it says nothing"])
def test_an_nvidia_smi_that_knows_none_is_none(no_torch, tmp_path, monkeypatch, script):
    say(tmp_path, monkeypatch, script)
    assert info.gather()["gpu"] == {"names": [], "told_by": None}


def test_without_torch_and_nvidia_smi_there_is_no_gpu(no_torch, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = info.gather()
    assert found["gpu"] == {"names": [], "told_by": None}
    assert "neither torch nor nvidia-smi is here" in info.as_text(found)


def test_a_codec_that_can_not_be_had_is_told_and_no_traceback(monkeypatch):
    monkeypatch.setitem(sys.modules, "virtex._codec", None)
    found = info.gather()
    assert "virtex._codec" in found["codec"]["error"]
    assert found["codec"]["error"] in info.as_text(found)


def test_a_library_that_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(info, "CORE", (*info.CORE, "no-such-library"))
    found = info.gather()
    assert found["dependencies"]["no-such-library"] is None
    assert ["no-such-library", "not", "installed"] in [line.split() for line in info.as_text(found).splitlines()]
