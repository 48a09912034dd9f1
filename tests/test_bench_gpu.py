"""bench/gpu.py, small and on the CPU: a GPU's session must not end on a slip of the program."""

from __future__ import annotations

import json

import pytest
from kit import needs

from bench import gpu, gpu_parts

needs.library("torch")


def test_a_network_is_measured_offline_and_served(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--seconds", "0.2", "--clients", "1", "--json", str(file)]
    assert gpu.main([*words, "--parts", "identity"]) == 0
    found = json.loads(file.read_text())["parts"]["identity"]
    assert found["served"] > 0 and found["copied"] > 0 and found["batches"] > 0
    assert "of copied" in capsys.readouterr().out


def test_a_part_that_takes_too_long_or_fails_stops_no_other(tmp_path, capsys, monkeypatch):
    commands = {
        "hangs": (["-c", "import time; time.sleep(60)"], 0.2),
        "fails": (["-c", "raise SystemExit('no such thing')"], 20.0),
        "works": (["-c", 'print(\'noise\'); print(\'{"h2d": 1, "h2d_bare": 2, "h2d_of_bare": 0.5}\')'], 20.0),
    }
    monkeypatch.setattr(gpu, "parts", lambda arguments: commands)
    file = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--json", str(file)]) == 1
    said = capsys.readouterr().out
    assert "FAILED hangs: took more than 0 s" in said and "FAILED fails: no such thing" in said
    assert json.loads(file.read_text())["parts"]["works"]["h2d"] == 1


def test_no_time_is_spent_behind_the_last_moment(tmp_path):
    assert gpu.run(["-c", "1/0"], -1.0) == {"failed": "no time was left"}


def test_the_gap_is_that_between_neighbouring_full_batches():
    seen = {"sizes": [8, 8, 3, 8], "busy_ms": [2.0, 2.5, 1.0, 2.0], "idle_ms": [0.05, 9.0, 9.0]}
    assert gpu_parts.gaps([seen], 8) == {"batches": 4, "full": 1, "busy_ms": 2.0, "gap_us": 50.0}


def test_without_such_a_device_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "why_not", lambda device: "torch finds none")
    assert gpu.main(["--device", "cuda"]) == 2
    assert "torch finds none" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--parts", "nothing"]])
def test_parts_that_are_not_there_are_refused(words):
    with pytest.raises(SystemExit, match="expected some of"):
        gpu.main(["--device", "cpu", *words])
