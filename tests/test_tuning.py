"""virtex tune: what it measures, proposes and decides, what it prints and writes, and its exit codes."""

import csv
import json
import math
import os
import re

import numpy as np
import orjson
import pytest
from kit.runs import make_run
from kit.servers import ROOT

from virtex import cli
from virtex.load.command import line_for
from virtex.load.fit import Cost, Proposal, Settings
from virtex.load.payloads import Payload, payloads_of
from virtex.load.tuned import COLUMNS, Tried, Tuned, as_csv, as_json, as_table, line_to_paste
from virtex.load.tuning import Tuner, batch_seconds, cost_of, of_size, shortlist

OWN, FAST, SLOW = Settings(64, 0.005, "inline"), Settings(128, 0.0, "thread"), Settings(32, 0.0, "thread")

SLEEPS = """
import time
from virtex import RequestHandler, http_server

class Sleeps(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, batch):
        time.sleep(0.002 + 0.0005 * len(batch))
        return batch

    def process_response(self, row):
        return row

    def example(self):
        return [1]

app = http_server("sleeps", Sleeps, max_batch_size=1)
"""


def tried(settings, rate=0.0, **more):
    run = make_run(rate, 3.0) if rate else None
    return Tried(settings, 1000.0, [run] if run else [], run, **more)


# ---- what it decides


def test_the_highest_rate_is_the_best():
    found = Tuned("a:b", 0.05, OWN, tried=[tried(OWN, 1000.0), tried(FAST, 2000.0), tried(SLOW)])
    assert found.best is found.tried[1]
    assert line_to_paste(found) == 'http_server(..., max_batch_size=128, max_time_on_queue=0, executor="thread")'


def test_the_apps_own_settings_stay_where_others_lead_by_less_than_runs_differ_by():
    found = Tuned("a:b", 0.05, OWN, tried=[tried(OWN, 1000.0), tried(FAST, 1010.0)])
    assert found.best is found.tried[0]
    assert "with the settings that it has" in as_table(found)


def test_where_nothing_holds_there_is_nothing_to_paste():
    found = Tuned("a:b", 0.05, OWN, tried=[tried(OWN)])
    assert found.best is None and line_to_paste(found) == ""
    assert as_table(found).endswith("MISSED: no settings hold a p99 of 50.0 ms")


def test_what_was_found_is_a_table_json_and_csv():
    batches = [(1, 0.005), (64, 0.011)]
    every = [tried(OWN, 1000.0), tried(FAST, 2000.0), tried(SLOW, failed="TypeError: it is async")]
    found = Tuned("a:b", 0.05, OWN, batches, Cost(0.005, 0.0001, 2e-5), every, interrupted=True)
    text = as_table(found)
    assert "a batch of n items takes 5.00 ms + n * 0.100 ms, a request 20 us besides" in text
    assert "the app's own" in text and "does not start" in text and "INTERRUPTED" in text
    document = json.loads(as_json(found), parse_constant=pytest.fail)
    assert list(document) == [
        *("schema", "virtex", "app", "interrupted", "p99", "own", "best", "cost", "batches", "tried"),
    ]
    assert document["schema"] == "virtex.tune/1"
    assert document["best"] == {
        "max_batch_size": 128,
        "max_time_on_queue": 0.0,
        "executor": "thread",
        "held_per_second": 2000.0,
    }
    lines = list(csv.DictReader(as_csv(found).splitlines()))
    assert [list(line) for line in lines] == [list(COLUMNS)] * 3
    assert [(line["is_own"], line["is_best"], line["held_per_second"]) for line in lines] == [
        *(("1", "0", "1000.0"), ("0", "1", "2000.0"), ("0", "0", "")),
    ]
    assert lines[2]["failed"] == "TypeError: it is async"


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (tried(OWN, 1000.0), "holds 1,000 requests/s, p99 "),
        (Tried(OWN, 1.0, [make_run(500.0)]), "does not hold 500 requests/s: p99 "),
        (Tried(OWN, 1.0, failed="x"), "does not start: x"),
        (Tried(OWN, 1.0), "not measured"),
    ],
    ids=["held", "behind", "failed", "none"],
)
def test_each_of_the_settings_is_told_in_a_line(one, says):
    assert str(one).startswith(says)


# ---- pieces


def test_a_request_of_any_size_is_made_of_the_items_that_there_are():
    payloads = [Payload(b'{"data":[1,2]}', 2), Payload(b'{"data":["x"]}', 1)]
    made = of_size(payloads, 5)
    assert (orjson.loads(made.body)["data"], made.items) == ([1, 2, "x", 1, 2], 5)
    (npy,) = payloads_of(np.float32([1, 2]), binary=True)
    assert of_size([npy], 3) == Payload(npy.body * 3, 3, npy.content_type)


def test_the_time_of_a_batch_is_what_the_executor_was_busy():
    def seen(busy, counts):
        return {"virtex_executor_busy_seconds_total": busy, "virtex_batch_size": {"counts": counts}}

    assert batch_seconds(seen(1.0, [1, 2]), seen(3.0, [1, 6])) == 0.5
    assert batch_seconds(seen(1.0, [1, 2]), seen(1.0, [1, 2])) is None


def test_what_patient_clients_wait_for_beside_the_batch_is_the_requests_cost():
    cost = cost_of([(1, 0.0021), (64, 0.0084)], 1 / 0.00020)
    assert (cost.base, cost.per_item) == pytest.approx((0.002, 0.0001))
    assert cost.request == pytest.approx(0.0002 - 0.0084 / 64)
    assert cost_of([(1, 0.0021), (64, 0.0084)], float("inf")).request == 0
    assert cost_of([(1, 0.5)], 2.0).base == 0.5


def test_of_each_size_and_executor_one_is_tried_and_none_that_holds_nothing():
    ranked = [
        Proposal(FAST, 9.0),
        Proposal(Settings(128, 0.01, "thread"), 8.0),
        Proposal(OWN, 7.0),
        Proposal(SLOW, 0.0),
    ]
    assert [each.settings for each in shortlist(ranked, 5)] == [FAST, OWN]
    assert [each.settings for each in shortlist(ranked, 1)] == [FAST]


# ---- the command


@pytest.fixture
def tune(tmp_path, monkeypatch, capsys):
    """Run the command on a module of this source; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))

    def run(source, *arguments):
        (tmp_path / "tuned_service.py").write_text(source)
        code = cli.main(["tune", "tuned_service:app", *arguments])
        return code, *capsys.readouterr()

    return run


def test_what_is_told_is_what_was_measured_and_the_exit_code_whether_anything_held(tune, tmp_path):
    path = tmp_path / "t.json"
    code, text, said = tune(SLEEPS, "--p99", "50ms", "--up-to", "32", "--budget", "6s", "--output", str(path))
    document = json.loads(path.read_text())
    assert document["own"] == {"max_batch_size": 1, "max_time_on_queue": 0.005, "executor": "inline"}
    batches = [(batch["items"], batch["seconds"]) for batch in document["batches"]]
    assert batches[0][0] == 1 and all(seconds >= 0.002 + 0.0005 * items for items, seconds in batches)
    cost, fitted = document["cost"], cost_of(batches, math.inf)
    assert (cost["base"], cost["per_item"]) == pytest.approx((fitted.base, fitted.per_item))
    assert document["tried"][0]["is_own"]
    assert 'max_batch_size=1, max_time_on_queue=0.005, executor="inline": ' in said  # its progress
    if document["best"] is None:  # on a machine that is too busy for any of them
        assert code == 1 and "MISSED" in text
        return
    assert code == 0 and re.search(r"^held: a p99 of 50.0 ms up to [\d,]+ requests/s", text, re.MULTILINE)
    assert re.search(
        r"^http_server\(\.\.\., max_batch_size=\d+, max_time_on_queue=[\d.]+, executor=\"\w+\"\)$", text, re.M
    )


@pytest.fixture
def tuner(tmp_path, monkeypatch):
    """A tuning that has measured a model of 2 ms, and 0.5 ms for each item, which has batches of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    asked = cli.build().parse_args(["tune", "tuned_service:app", "--p99", "50ms", "--up-to", "32", "--quiet"])
    found = Tuned(asked.app, asked.p99, Settings(1, 0.005, "inline"), cost=Cost(0.002, 0.0005))
    return Tuner(asked, found, line_for(asked))


def test_to_a_service_with_batches_of_one_larger_ones_are_proposed(tuner):
    own, proposed = tuner._propose()[:2]
    assert own.settings == tuner.found.own and proposed.settings.max_batch_size > 8
    assert proposed.rate > 2 * own.rate


def test_a_bound_that_nothing_holds_is_exit_code_1(tune):
    code, text, _ = tune(SLEEPS, "--p99", "1ms", "--up-to", "2", "--executor", "inline", "--budget", "1s")
    assert code == 1 and text.endswith("MISSED: no settings hold a p99 of 1.00 ms\n")


def test_an_executor_that_the_handler_can_not_have_does_not_end_the_tuning(tuner, tmp_path):
    (tmp_path / "tuned_service.py").write_text(SLEEPS.replace("def run_inference", "async def run_inference"))
    tuner._try(Proposal(FAST, 1000.0), seconds=0.5, share=1.0)
    (failed,) = tuner.found.tried
    assert re.match(r"does not start: TypeError: .*executor", str(failed))


@pytest.mark.parametrize(
    ("source", "arguments", "says"),
    [
        ("1 / 0", (), "virtex: the service did not start: ZeroDivisionError: division by zero\n"),
        (SLEEPS, ("--data", '{"data": []}'), "virtex: expected an item at least in what --data says"),
        (SLEEPS.replace("return row", "1 / 0"), (), "virtex: tuned_service:app does not answer what is sent (5xx "),
    ],
    ids=["it does not start", "nothing is sent", "it fails"],
)
def test_a_service_that_can_not_be_measured_is_exit_code_1_and_says_why(tune, source, arguments, says):
    code, text, said = tune(source, "--p99", "50ms", "--budget", "1s", *arguments)
    assert (code, text) == (1, "") and says in said


def test_without_an_example_it_has_to_be_told_what_to_send(tune, capsys):
    with pytest.raises(SystemExit) as ended:
        tune(SLEEPS.replace("return [1]", "return []"), "--p99", "50ms")
    assert ended.value.code == 2 and "gives no example: say by --data what to send" in capsys.readouterr().err
