"""bench/peers.py: what counts as a right answer, how lines are counted, who is left out, what the tables say."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import needs
from kit.servers import ROOT

from bench import peers, report
from bench.host import Load, family, pss_bytes

GENERATOR = np.random.default_rng(0)
FIGURES = peers.Figures(Load(100, 1.0, 0.5, 1.0, 2.0, 0), Load(3000, 1.0, 0.5, 5.0, 9.0, 0), 0.25, 20_000_000)


def saved(**per_cpu_second: float) -> dict[str, Any]:
    """A run in which the servers differ in one figure."""

    def result(name: str, number: float) -> dict[str, Any]:
        job = {"per_cpu_second": number, "per_second": 1000.0, "p50_ms": 0.5, "p99_ms": 2.0, "pss_mb": 20.0}
        return {"server": name, "versions": {name: "1.0"}, "lines": 7, "idle_percent": 0.1} | {
            "jobs": dict.fromkeys(peers.JOBS, job)
        }

    return {
        "machine": {"cpu": "a processor"},
        "runs": 3,
        "seconds": 2,
        "left_out": {"mosec": "it is not installed"},
        "failures": {"FastAPI": ["echo: it did not answer"]},
        "results": [result(name, number) for name, number in per_cpu_second.items()],
    }


# -- answers


@pytest.mark.parametrize("job", peers.JOBS)
def test_an_answer_is_right_in_an_object_or_alone_and_another_is_not(job: str) -> None:
    asked, other = peers.ask(job, GENERATOR), peers.ask(job, GENERATOR)
    for reply in ({"data": [asked.answer], "error": None}, [asked.answer]):
        assert peers.wrong_with((200, json.dumps(reply).encode()), asked.answer) == ""
    for status, reply in ((200, {"data": [other.answer]}), (200, {}), (200, []), (500, [asked.answer])):
        assert f"got {status}" in peers.wrong_with((status, json.dumps(reply).encode()), asked.answer)
    assert "got 200" in peers.wrong_with((200, b"<html>"), asked.answer)


def test_the_yardstick_may_answer_what_it_likes() -> None:
    assert peers.wrong_with((200, b'{"data":[0.5]}'), "abc", constant=True) == ""


def test_every_job_has_the_size_that_the_page_says() -> None:
    echo, matrix, image = (peers.ask(job, GENERATOR) for job in peers.JOBS)
    assert (len(echo.item), len(matrix.item), len(matrix.answer)) == (100, 32, 4)
    assert len(image.item) == 602112 // 3 * 4
    assert json.loads(peers.body_of(echo)) == {"data": [echo.item]}


# -- lines, versions, places


def test_only_lines_of_code_count() -> None:
    source = '"""A docstring\n\nof three lines."""\n\n# a comment\nX = """two\nlines"""\n\n\n'
    source += 'def f():\n    """Says."""\n    return X  # x\n'
    assert peers.lines_of_code(source) == 4


def test_every_peer_has_its_services_in_a_file_of_its_own() -> None:
    sources = {peer.source for peer in peers.PEERS.values() if peer.source}
    assert {*sources, "on_pytriton.py"} == {path.name for path in (ROOT / "bench" / "rivals").glob("on_*.py")}


def test_versions_are_those_that_are_installed_in_that_python() -> None:
    assert peers.versions(sys.executable, ["numpy", "no-such-package"]) == {"numpy": np.__version__}


def test_who_is_not_installed_or_not_safe_to_run_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = peers.Peer("no-such-package", peers._bare)
    open_to_all = peers.Peer("numpy", peers._bare, everywhere=True)
    monkeypatch.setattr(
        peers, "PEERS", {"missing": missing, "open": open_to_all, "here": peers.Peer("numpy", peers._bare)}
    )
    places, left_out = peers.find(["missing", "open", "here"], tmp_path, apart=False)
    assert list(places) == ["here"]
    assert "no-such-package is not installed" in left_out["missing"]
    assert "all interfaces" in left_out["open"]
    assert list(peers.find(["open"], tmp_path, apart=True)[0]) == ["open"]


def test_a_server_of_that_name_has_to_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.parse(["--servers", "Virtex;nginx"])
    assert "got 'nginx'" in capsys.readouterr().err
    assert peers.parse(["--quick"]).servers == list(peers.QUICK)


# -- figures


def test_a_figure_is_the_median_of_its_rounds() -> None:
    slow = FIGURES._replace(many=FIGURES.many._replace(requests=1000, p99=30.0))
    found = peers._medians([FIGURES, slow, FIGURES])
    assert found == {"per_cpu_second": 6000, "per_second": 3000, "p50_ms": 1.0, "p99_ms": 9.0, "pss_mb": 20.0}


def test_a_row_stands_for_a_measure_and_a_column_for_a_server() -> None:
    rows = report.peers_columns(saved(bare=60000.4, Virtex=50000, FastAPI=2000.5))
    assert rows[0] == ["one worker, one core", "bare", "Virtex", "FastAPI"]
    assert rows[1] == ["echo: requests per CPU-second", "60,000", "50,000", "2,000"]
    assert {len(row) for row in rows} == {4}
    assert len(rows) == 1 + 3 * 4 + 3


def test_the_table_says_where_another_is_ahead_and_who_is_left_out() -> None:
    text = report.peers_table(saved(bare=60000, Virtex=5000, FastAPI=2000, LitServe=9000))
    assert "- FastAPI is ahead of Virtex in: none of these." in text
    assert "- LitServe is ahead of Virtex in: echo: requests per CPU-second; 32 numbers:" in text
    assert "bare is ahead" not in text
    assert "mosec is left out: it is not installed." in text
    assert "Rounds of FastAPI failed: echo: it did not answer." in text


def test_a_round_that_fails_is_told_and_a_server_without_a_figure_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rounds: list[str] = []

    def once(name: str, job: str, *_: object) -> peers.Figures:
        rounds.append(name)
        if name == "FastAPI" or (name == "bare" and rounds.count("bare") == 2):
            raise SystemExit(f"{name}: no answer")
        return FIGURES

    monkeypatch.setattr(peers, "once", once)
    monkeypatch.setattr(peers, "find", lambda names, *_: (dict.fromkeys(names, peers.Place("python", {})), {}))
    monkeypatch.setattr(peers, "wrk_version", lambda: "4.2")
    found = peers.measure(peers.parse(["--servers", "bare;FastAPI", "--runs", "2"]))
    assert [result["server"] for result in found["results"]] == ["bare"]
    assert found["failures"] == {"bare": ["matrix: bare: no answer"]}
    assert found["left_out"] == {"FastAPI": "image: FastAPI: no answer"}
    assert rounds.count("bare") == 6 and rounds.count("FastAPI") == peers.PATIENCE


def test_the_readme_has_five_of_the_rows_and_not_the_yardstick() -> None:
    lines = report.peers_headline().splitlines()
    assert len(lines) == 2 + 5
    assert "bare" not in lines[0] and "Virtex" in lines[0]
    page = (ROOT / "docs" / "figures.md").read_text()
    assert all(line.split(" | ")[0] in page for line in lines[2:])


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    needs.library("matplotlib")
    for name in "ab":
        report.draw_peers(saved(bare=60000, Virtex=50000, FastAPI=2000), tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert "requests per CPU-second" in (tmp_path / "a").read_text()


# -- processes


def test_memory_is_counted_and_a_process_that_ended_has_no_family() -> None:
    assert pss_bytes(os.getpid()) > 1_000_000
    assert family(2**22 + 1) == [2**22 + 1]
    assert pss_bytes(2**22 + 1) == 0


@pytest.mark.parametrize("name", ["Virtex", "ASGI recipe", "FastAPI"])
@pytest.mark.parametrize("job", peers.JOBS)
def test_a_service_answers_its_job(name: str, job: str, tmp_path: Path) -> None:
    from functools import partial

    from bench.host import running

    peer = peers.PEERS[name]
    needs.found(peer.package, *(package for package in peer.brings if package != "orjson"))
    command = partial(peer.command, sys.executable, job)
    with running(
        name, command, partial(peers.check, job, name), os.sched_getaffinity(0), peers.environment(str(tmp_path))
    ):
        pass  # it was asked three times, and ended
