"""bench/gpu.py, small and on the CPU: a GPU's session must not end on a slip of the program."""

from __future__ import annotations

import json

import pytest
from kit import needs
from kit.here import Here

from bench import gpu, gpu_first, gpu_parts
from virtex.batch import device as devices

needs.library("torch")


def test_a_network_is_measured_offline_and_served(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--seconds", "0.2", "--clients", "1", "--json", str(file)]
    assert gpu.main([*words, "--parts", "identity"]) == 0
    found = json.loads(file.read_text())["parts"]["identity"]
    assert found["served"] > 0 and found["copied"] > 0 and found["batches"] > 0
    assert "of copied" in capsys.readouterr().out


HANGS = """
print('here', flush=True)
def far(below):
    far(below - 1) if below else __import__('time').sleep(60)
far(60)
"""
WELL = ["-c", "print('{}')"]


def measured(monkeypatch, folder, commands, **of_device):
    """The exit status, and what was saved, of parts with these commands."""
    parts = {"device": (of_device.get("device", WELL), 20.0), **commands}
    monkeypatch.setattr(gpu, "parts", lambda arguments: parts)
    status = gpu.main(["--device", "cpu", "--json", str(folder / "gpu.json")])
    return status, json.loads((folder / "gpu.json").read_text())["parts"]


def test_a_part_that_takes_too_long_or_fails_stops_no_other(tmp_path, capsys, monkeypatch):
    commands = {
        "hangs": (["-c", HANGS], 2.0),
        "fails": (["-c", "raise SystemExit('no such thing')"], 20.0),
        "works": (["-c", 'print(\'noise\'); print(\'{"h2d": 1, "h2d_bare": 2, "h2d_of_bare": 0.5}\')'], 20.0),
    }
    status, parts = measured(monkeypatch, tmp_path, commands)
    said = capsys.readouterr().out
    assert status == 1 and parts["works"]["h2d"] == 1
    assert "FAILED hangs: took more than 2 s\nhere\nFatal Python error" in said and "in far" in said  # where it stood
    assert "FAILED fails: no such thing" in said
    assert "noise" in (tmp_path / "gpu.log").read_text()


def test_what_was_found_is_saved_though_the_run_is_ended(tmp_path, monkeypatch):
    run = gpu.run

    def ended(command, seconds, log):
        if command == ["ends"]:
            raise KeyboardInterrupt
        return run(command, seconds, log)

    monkeypatch.setattr(gpu, "run", ended)
    with pytest.raises(KeyboardInterrupt):
        measured(monkeypatch, tmp_path, {"works": (["-c", "print('{\"rate\": 3}')"], 20.0), "ends": (["ends"], 20.0)})
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["works"] == {"rate": 3}


def test_without_such_a_device_nothing_else_runs_and_what_was_asked_last_is_told(tmp_path, capsys, monkeypatch):
    asks = ["-c", "print('a context ...', flush=True); raise SystemExit('CUDA error: unknown error')"]
    status, parts = measured(monkeypatch, tmp_path, {"works": (WELL, 20.0)}, device=asks)
    assert status == 2 and list(parts) == ["device"]
    assert "measures nothing: a context ...\nCUDA error: unknown error" in capsys.readouterr().out


def test_a_process_that_a_part_leaves_behind_is_not_waited_for():
    leaves = "import subprocess; subprocess.Popen(['sleep', '15'], start_new_session=True); print('{\"rate\": 3}')"
    assert gpu.run(["-c", leaves], 10.0) == {"rate": 3}


def test_no_time_is_spent_behind_the_last_moment(tmp_path):
    assert gpu.run(["-c", "1/0"], -1.0) == {"failed": "no time was left"}


def test_each_part_may_take_longer_where_all_of_them_may():
    usual, longer = ([gpu.parts(gpu.parse(words))["copies"][1]] for words in ([], ["--most", "480"]))
    assert longer == [2 * usual[0]]


def test_the_steps_of_a_first_run_are_right_over_a_device_that_stands_in(monkeypatch):
    def waits(made):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(devices, "Cuda", Here)
    gpu_first.stages("cpu")
    monkeypatch.setattr(gpu_first, "waits", waits)
    gpu_first.graphs("cpu")
    monkeypatch.setattr(gpu_first, "waits", lambda made: made * 3)
    with pytest.raises(SystemExit, match="a wait of the host was captured"):
        gpu_first.graphs("cpu")


def test_a_first_run_says_of_each_step_that_it_begins(capsys):
    with pytest.raises((SystemExit, RuntimeError)):
        gpu_first.main("cuda:77")
    assert capsys.readouterr().out.endswith("a context, and a kernel ... ")


def test_the_gap_is_that_between_neighbouring_full_batches():
    seen = {"sizes": [8, 8, 3, 8], "busy_ms": [2.0, 2.5, 1.0, 2.0], "idle_ms": [0.05, 9.0, 9.0]}
    assert gpu_parts.gaps([seen], 8) == {"batches": 4, "full": 1, "busy_ms": 2.0, "gap_us": 50.0}


@pytest.mark.parametrize("words", [["--parts", "nothing"]])
def test_parts_that_are_not_there_are_refused(words):
    with pytest.raises(SystemExit, match="expected some of"):
        gpu.main(["--device", "cpu", *words])
