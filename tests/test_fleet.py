"""bench/fleet.py: its replicas are Virtex's batchers, and what theory knows of queues holds for them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.servers import ROOT

from bench import fleet, fleet_figures, traffic
from bench.balancers import BALANCERS, Least, TwoChoices
from bench.exact import Clients, Exact
from bench.replicas import Engine, Fleet
from bench.report import RESULTS, place

ENGINE = Engine(5_000_000, 100_000, 64, 5_000_000, 1024)
SINGLE = Engine(1_000_000, 0, 1, 0, 1 << 40)  # no batches: a queue before a server


def random(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def run(one: Any, times: Any, start: int = 0) -> Any:
    one.run(times.tolist(), start, int(times[-1]))
    return one


def within(found: float, expected: float, part: float) -> bool:
    return abs(found / expected - 1) <= part


# -- the fast model is the batcher


@pytest.mark.parametrize("kind", [traffic.poisson, traffic.groups], ids=["poisson", "groups"])
@pytest.mark.parametrize("load", [0.3, 0.9, 1.2])
@pytest.mark.parametrize("name", ["random", "round-robin", "two choices", "by connection"])
def test_each_request_takes_as_long_as_behind_the_batcher(name: str, load: float, kind: Any) -> None:
    times = kind(random(), load * 3 * ENGINE.capacity, 12_000)
    fast, true = (run(make(ENGINE, 3, BALANCERS[name], random(2)), times) for make in (Fleet, Exact))
    assert sorted(fast.latencies) == sorted(true.latencies) and sorted(fast.waits) == sorted(true.waits)
    assert sorted(fast.sizes) == sorted(true.sizes) and (fast.busy, fast.refused) == (true.busy, true.refused)


@pytest.mark.parametrize("window", [0, 1_500_000, 30_000_000])
def test_that_holds_for_other_waits_and_for_a_queue_that_refuses(window: int) -> None:
    engine = ENGINE._replace(window=window, room=40, most=16)
    times = traffic.groups(random(), 0.9 * 3 * engine.capacity, 12_000)
    fast, true = (run(make(engine, 3, BALANCERS["random"], random(2)), times) for make in (Fleet, Exact))
    assert sorted(fast.latencies) == sorted(true.latencies)
    assert fast.refused == true.refused > 0


@pytest.mark.parametrize("name", ["least", "stale least"])
def test_where_equals_are_drawn_in_another_order_the_figures_agree(name: str) -> None:
    """Their groups hold the same replicas in an order of their own, so single requests go elsewhere."""
    times = traffic.poisson(random(), 0.8 * 4 * ENGINE.capacity, 40_000)
    fast, true = (run(make(ENGINE, 4, BALANCERS[name], random(2)), times) for make in (Fleet, Exact))
    for q in (50, 99):
        assert within(float(np.percentile(fast.latencies, q)), float(np.percentile(true.latencies, q)), 0.03)
    assert within(float(np.mean(fast.sizes)), float(np.mean(true.sizes)), 0.03)
    assert within(fast.answered, true.answered, 0.03)


# -- what theory knows


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: a mean wait of load * service / (2 * (1 - load)); Kleinrock, Queueing Systems I, 1975, section 5.6."""
    times = traffic.poisson(random(), load * SINGLE.capacity, 80_000)
    found = run(Fleet(SINGLE, 1, BALANCERS["random"], random()), times)
    assert within(float(np.mean(found.latencies)) - SINGLE.base, load * SINGLE.base / (2 * (1 - load)), 0.06)


class Exponential(Engine):
    """Takes times that are exponential, with a mean of `base`."""

    drawn = random(7)

    def busy(self, size: int) -> int:
        return max(round(self.drawn.exponential(self.base)), 1)


def test_exponential_times_wait_as_in_m_m_1() -> None:
    """M/M/1: a mean time of service / (1 - load); Kleinrock, section 3.2."""
    engine = Exponential(*SINGLE)
    times = traffic.poisson(random(), 0.6e9 / engine.base, 100_000)
    found = run(Fleet(engine, 1, BALANCERS["random"], random()), times)
    assert within(float(np.mean(found.latencies)), engine.base / 0.4, 0.06)


class Looking(TwoChoices):
    """Counts how many replicas hold so many requests or more, from time to time."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.looks: list[list[float]] = []
        self.picks = 0

    def pick(self, now: int) -> int:
        self.picks += 1
        if self.picks > 40_000 and not self.picks % 1000:
            loads = np.array(self.loads)
            self.looks.append([float(np.mean(loads >= most)) for most in range(1, 6)])
        return super().pick(now)


def test_behind_two_choices_the_tail_is_doubly_exponential() -> None:
    """load ** (2 ** i - 1) of them hold i or more; Mitzenmacher, IEEE TPDS 12(10), 2001, for ever more replicas."""
    engine, replicas, load = Exponential(*SINGLE), 1000, 0.9
    times = traffic.poisson(random(), load * replicas * 1e9 / engine.base, 100_000)
    found = run(Fleet(engine, replicas, Looking, random()), times)
    tail = np.mean(found.balancer.looks, axis=0)
    assert tail == pytest.approx([load ** (2**i - 1) for i in range(1, 6)], abs=0.035)


@pytest.mark.parametrize("name", BALANCERS)
def test_no_fleet_does_more_than_full_batches_back_to_back(name: str) -> None:
    times = traffic.poisson(random(), 1.3 * 4 * ENGINE.capacity, 60_000)
    found = run(Fleet(ENGINE, 4, BALANCERS[name], random()), times, int(times[-1]) // 5)
    rate = found.answered / (int(times[-1]) * 0.8 / 1e9)
    assert 0.6 * 4 * ENGINE.capacity < rate <= 4 * ENGINE.capacity * 1.01
    if name in ("round-robin", "least", "two choices"):
        assert within(rate, 4 * 64 / (0.005 + 0.0001 * 64), 0.01) and set(found.sizes) == {64}


def test_every_run_holds_to_littles_law() -> None:
    times = traffic.poisson(random(), 0.7 * 4 * ENGINE.capacity, 20_000)
    found = Fleet(ENGINE, 4, BALANCERS["least"], random())
    run(found, times)
    assert found.area == found.total == sum(found.latencies)
    found = Fleet(ENGINE, 4, BALANCERS["least"], random())
    found.total = 1
    with pytest.raises(RuntimeError, match="against"):
        run(found, times)


@pytest.mark.parametrize("name", ["round-robin", "two choices", "least"])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.7])
def test_the_rule_by_which_docs_scale_sizes_a_fleet_holds(load: float, name: str) -> None:
    """Batches that are not full take a / (1 - b * rate); who comes waits for one and has another, so twice that."""
    times = traffic.poisson(random(), load * 20 * ENGINE.capacity, 60_000)
    found = run(Fleet(ENGINE, 20, BALANCERS[name], random()), times, int(times[-1]) // 4)
    batch = ENGINE.base / (1 - ENGINE.item / 1e9 * load * ENGINE.capacity)
    assert within(float(np.percentile(found.latencies, 99)), 2 * batch, 0.06)
    assert within(float(np.mean(found.sizes)), batch / 1e9 * load * ENGINE.capacity, 0.06)


# -- the parts


def test_the_least_loaded_is_always_among_the_least_loaded() -> None:
    loads = [0] * 50
    balancer, numbers = Least(loads, random()), random(3)
    for _ in range(3000):
        replica = balancer.pick(0)
        assert loads[replica] == min(loads)
        for one, after in ((replica, loads[replica] + 1), (other := int(numbers.integers(50)), loads[other] // 2)):
            before, loads[one] = loads[one], after
            balancer.moved(one, before, after)


def test_of_two_replicas_two_choices_are_both() -> None:
    balancer = TwoChoices([5, 0], random())
    assert {balancer.pick(now) for now in range(100)} == {1}


@pytest.mark.parametrize("name", BALANCERS)
def test_everything_goes_to_the_only_replica(name: str) -> None:
    balancer = BALANCERS[name]([0], random())
    assert {balancer.pick(now) for now in range(1, 100)} == {0}


def test_waves_have_the_rate_that_was_asked_and_are_refused_beyond_their_peak() -> None:
    times = traffic.waves(random(), 1000.0, 400.0, 3.0)
    assert within(len(times), 400_000, 0.1) and (np.diff(times) >= 0).all()
    per_second = np.bincount(times // 1_000_000_000)
    assert per_second.max() > 2700 and per_second.min() < 600
    with pytest.raises(ValueError, match="expected 5 at most"):
        traffic.waves(random(), 1000.0, 10.0, 6.0)


def test_groups_come_at_one_instant() -> None:
    times = traffic.groups(random(), 1000.0, 50_000)
    assert within(len(times) / (times[-1] / 1e9), 1000, 0.05)
    assert within(len(times) / len(np.unique(times)), 16, 0.05)


def test_connections_to_workers_are_shared_out_evenly_and_used_in_turn() -> None:
    clients = Clients(2, 4)
    taken = [clients.take(0) for _ in range(6)]
    assert [one.worker for one in taken] == [0, 1, 0, 1, 0, 1]
    for one in taken[::-1]:
        clients.give(one)
    assert clients.take(0) is taken[5]


def test_the_same_seed_gives_the_same_figures() -> None:
    case = fleet.Case("sizes", 5, "two choices", requests=5000)
    first, again, other = (fleet.simulate(case, ENGINE, 1.0, seed) | {"took_s": 0} for seed in (1, 1, 2))
    assert first == again != other
    assert within(first["cost_per_million"], 5 / 3600 / first["per_second"] * 1e6, 0.01)


def test_a_larger_replica_does_as_much_as_so_many_small_ones() -> None:
    case = fleet.Case("large", 4, times=4, most_times=4)
    assert within(fleet.engine_of(case, ENGINE).capacity, 4 * ENGINE.capacity, 0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--most", "0"], "--most: expected 1 or more, got 0"),
        (["--base-ms", "-1"], "--base-ms: expected a number from 0 on, got -1.0"),
        (["--base-ms", "0", "--item-ms", "0"], "expected a batch to take some time"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_arguments_that_can_not_be_meant_are_named(arguments: list[str], says: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        fleet.parse(arguments)
    assert says in capsys.readouterr().err


def test_no_bound_is_made_up_where_none_can_be_held() -> None:
    case = fleet.Case("bound", 2, "random", requests=2000)
    found = fleet.bound(case, ENGINE, 1.0, 1, p99_ms=2.0)
    assert not found["held"] and found["load"] == 1 / 2**fleet.HALVINGS


def test_a_part_that_is_measured_again_leaves_the_others_but_not_those_of_another_engine(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    saved = {"engine": {"base": 1}, "price": 1.0, "seed": 1, "quick": False, "bound_ms": 25.0, "real_engine": {}}
    assert fleet.kept(file, saved) == {}
    file.write_text(json.dumps(saved | {"rows": {"sizes": [1]}}))
    assert fleet.kept(file, saved) == {"sizes": [1]}
    assert fleet.kept(file, saved | {"engine": {"base": 2}}) == {}


# -- docs/scale.md

SCALE = (ROOT / "docs" / "scale.md").read_text()
SAVED = json.loads((RESULTS / "fleet.json").read_text())


def test_the_figures_of_the_page_are_those_that_were_simulated() -> None:
    tables = fleet_figures.tables(SAVED)
    assert set(re.findall(r"<!-- figures: (.+) -->", SCALE)) == set(tables)
    for name, table in tables.items():
        assert place(SCALE, name, table) == SCALE, "make report"


def test_the_plot_of_the_page_is_that_of_the_figures(tmp_path: Path) -> None:
    fleet_figures.draw(SAVED, tmp_path / "scale.svg")
    drawn, there = ((at / "scale.svg").read_text() for at in (tmp_path, ROOT / "docs"))
    assert re.findall(r"<text.*?</text>", drawn) == re.findall(r"<text.*?</text>", there)


def test_the_command_of_the_page_says_what_a_fleet_of_ones_own_does(tmp_path: Path) -> None:
    (block,) = re.findall(r"<!-- tested by tests/test_fleet.py -->\n```sh\n(.*?)\n```", SCALE, re.DOTALL)
    python, *words = shlex.split(block)
    assert python == "python"
    file = tmp_path / "fleet.json"
    command = [sys.executable, *words, "--json", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    saved = json.loads(file.read_text())
    assert list(saved["rows"]) == ["spread", "bound"] and saved["engine"]["base"] == 12_000_000
    assert saved["price"] == 1.2 and "a million costs" in fleet_figures.bound(saved)
    assert "per million" in ended.stdout and "[" in ended.stderr
