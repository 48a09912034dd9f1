"""What a load test found, as text, JSON and CSV; the knee of a sweep."""

import csv
import io
import json
import math

import pytest
from kit.runs import URL, make_empty, make_errors, make_run, make_sweep

import virtex
from virtex.load.modes import failed_share
from virtex.load.payloads import Payload
from virtex.load.plan import Plan
from virtex.load.report import (
    COLUMNS,
    Report,
    Sizes,
    as_csv,
    as_json,
    as_table,
    knee,
    middles,
    milliseconds,
    number,
    verdicts,
)

SIZES = Sizes((1.0, 2.0, 4.0, 8.0), (10, 0, 30, 0, 10), 250.0)

# The schema: a name that is missing, added or of another type is another SCHEMA.
TIMES = {"count": int, "mean": float, "std": float, "min": float, "max": float, "percentiles": dict}
TOP = {
    "schema": str,
    "virtex": str,
    "mode": str,
    "interrupted": bool,
    "machine": dict,
    "slo": dict,
    "knee": type(None),
    "batch_sizes": dict,
    "runs": list,
}
RUN = {
    "plan": dict,
    "scheduled": int,
    "sent": int,
    "answered": int,
    "items": int,
    "seconds": float,
    "offered_per_second": float,
    "answers_per_second": float,
    "items_per_second": float,
    "client_kept_rate": bool,
    "why_not": type(None),
    "response": dict,
    "service": dict,
    "lateness": dict,
    "errors": dict,
    "statuses": dict,
    "said": dict,
    "slices": list,
}
PLAN = {
    "url": str,
    "loop": str,
    "rate": float,
    "connections": int,
    "arrivals": str,
    "requests": type(None),
    "seconds": float,
    "warmup": float,
    "processes": int,
    "timeout": float,
    "seed": int,
    "payloads": int,
    "headers": list,
}
SLICE = {"at": float, "answered": int, "errors": dict, "p50": float, "p99": float, "max": float}


def types(value):
    return {name: type(each) for name, each in value.items()}


def test_the_json_has_the_names_and_types_of_its_schema():
    document = json.loads(as_json(Report("run", [make_run(errors={"5xx": 5})], SIZES, slo=0.05, best=0)))
    (run,) = document["runs"]
    assert types(document) == TOP and types(run) == RUN and types(run["plan"]) == PLAN
    assert types(run["response"]) == types(run["service"]) == types(run["lateness"]) == TIMES
    assert types(run["slices"][0]) == SLICE
    assert list(run["response"]["percentiles"]) == ["50", "75", "90", "95", "99", "99.9", "99.99"]
    assert document["schema"] == "virtex.loadtest/1" and document["virtex"] == virtex.__version__
    assert document["slo"] == {"p99": 0.05, "best": 0, "limited_by": None}
    assert document["batch_sizes"] == {"bounds": [1, 2, 4, 8], "counts": [10, 0, 30, 0, 10], "mean": 5.0}


def test_the_json_has_the_figures_of_the_run():
    made = make_run(errors={"5xx": 5, "timeout": 10})
    (run,) = json.loads(as_json(Report("run", [made])))["runs"]
    assert run["response"]["percentiles"]["99"] == made.response.percentile(99)
    assert run["service"]["mean"] == made.service.mean
    assert run["errors"] == {"5xx": 5, "timeout": 10} and run["statuses"] == {"200": made.answered}
    assert [each["answered"] for each in run["slices"]] == [each.answered for each in made.slices]


@pytest.mark.parametrize("run", [make_empty(), make_errors()], ids=["empty", "errors"])
def test_what_nobody_measured_is_null_and_never_nan(run):
    document = json.loads(as_json(Report("run", [run])), parse_constant=pytest.fail)
    assert document["runs"][0]["response"]["percentiles"]["99"] is None
    assert document["runs"][0]["response"]["count"] == 0


def test_the_values_of_headers_are_in_no_report():
    run = make_run(headers={"authorization": "Bearer swordfish"})
    report = Report("run", [run])
    assert "swordfish" not in as_json(report) + as_csv(report) + as_table(report)
    assert json.loads(as_json(report))["runs"][0]["plan"]["headers"] == ["authorization"]


def test_the_csv_is_read_back_with_a_line_for_each_run():
    runs = [make_run(url=URL + '?a="b,c"'), make_run(rate=None, connections=8), make_errors()]
    lines = list(csv.DictReader(io.StringIO(as_csv(Report("sweep", runs)))))
    assert [list(line) for line in lines] == [list(COLUMNS)] * 3
    assert [line["loop"] for line in lines] == ["open loop", "closed loop", "open loop"]
    assert lines[0]["url"] == URL + '?a="b,c"'
    assert float(lines[0]["response_p99.9"]) == runs[0].response.percentile(99.9)
    assert (lines[1]["rate"], lines[1]["connections"]) == ("", "8")
    assert (lines[2]["response_p99"], lines[2]["errors"], lines[2]["answered"]) == ("", "5000", "0")


def test_the_names_of_the_csv_are_those_that_programs_know():
    assert COLUMNS[:6] == ("url", "loop", "rate", "connections", "arrivals", "processes")
    assert COLUMNS[14:16] == ("client_kept_rate", "errors") and len(COLUMNS) == len(set(COLUMNS)) == 38
    assert {"response_p50", "response_p99.99", "service_std", "answers_per_second"} <= set(COLUMNS)


def test_the_table_of_a_run_says_what_was_asked_and_found():
    text = as_table(Report("run", [make_run()], SIZES, slo=0.05, best=0))
    assert "open loop, 1,000 requests/s, constant arrivals, 5 s" in text
    assert "5,000 right answers to 5,000 requests in 5.0 s: 1,000.0/s" in text
    assert "batches of 5.0 items on average; 1: 20.0%  2: 0.0%  3-4: 60.0%  5-8: 0.0%  > 8: 20.0%" in text
    assert text.endswith("held: p99 of 50.0 ms")


def test_the_table_of_a_sweep_has_a_line_for_each_run_and_names_the_knee():
    text = as_table(Report("sweep", make_sweep()))
    assert "sweep of 7 runs, open loop, 500 to 4,500 requests/s" in text
    assert [line for line in text.splitlines() if line.startswith("3,500  knee")]
    assert text.splitlines()[-1].startswith("knee: 3,500 requests/s, 3,500.0 answers/s at a p99 of ")


def test_a_report_of_nothing_says_so():
    assert as_table(Report("run", [])) == "nothing was measured"
    assert json.loads(as_json(Report("run", [])))["runs"] == []


def test_what_went_wrong_is_said_the_worst_first():
    late = make_run(errors={"timeout": 10, "5xx": 20})
    late.client_kept_rate, late.why_not = False, "it sent 20 % of them late"
    said = verdicts(Report("run", [late], slo=0.001, interrupted=True))
    assert [each.mood for each in said] == ["bad"] * 4
    assert [each.text for each in said] == [
        "INTERRUPTED: these are the figures of what came until then",
        "THE CLIENT WAS TOO SLOW: it sent 20 % of them late",
        "errors: 5xx 20, timeout 10",
        "MISSED: p99 of 1.00 ms",
    ]


def test_a_service_that_refuses_is_worse_than_a_client_that_was_too_slow():
    late = make_run(errors={"refused": 10_000})
    late.client_kept_rate, late.why_not = False, "late"
    texts = [each.text for each in verdicts(Report("run", [late]))]
    assert texts == ["errors: refused 10,000", "THE CLIENT WAS TOO SLOW: late"]


def test_the_first_error_of_a_kind_says_why():
    first, second = make_run(errors={"4xx": 30, "timeout": 3}), make_run(errors={"4xx": 30})
    first.said, second.said = {"4xx": "item 0: no"}, {"4xx": "another"}
    texts = [each.text for each in verdicts(Report("sweep", [first, second]))]
    assert texts[:2] == ["errors: 4xx 60, timeout 3", "the first 4xx said: item 0: no"]
    assert not any("timeout said" in text for text in texts)
    assert json.loads(as_json(Report("run", [first])))["runs"][0]["said"] == {"4xx": "item 0: no"}


def test_a_closed_loop_says_what_its_times_are():
    assert "users who wait for each answer" in as_table(Report("run", [make_run(rate=None, connections=4)]))


@pytest.mark.parametrize(
    ("limited_by", "says"),
    [("service", "3,500 requests/s"), ("client", "the client could not send faster"), ("high", "more was not asked")],
)
def test_a_search_says_what_held_and_what_ended_it(limited_by, says):
    text = as_table(Report("search", make_sweep(), slo=0.05, best=4, limited_by=limited_by))
    assert says in text.splitlines()[-1] and "3,500  best" in text


def test_a_search_that_found_nothing_says_so():
    assert as_table(Report("search", make_sweep(), slo=0.001)).endswith("MISSED: p99 of 1.00 ms held at no rate")


# ---- the knee


def test_the_knee_is_where_the_latency_leaves_the_ground():
    points = [(100, 0.005), (200, 0.005), (300, 0.006), (400, 0.008), (500, 0.5), (600, 5.0)]
    assert knee(points) == 3
    assert knee(points[::-1]) == 2  # whatever their order


def test_the_deeper_overload_does_not_move_the_knee():
    points = [(100, 0.005), (200, 0.005), (300, 0.006), (400, 0.008), (500, 0.5)]
    assert knee([*points, (600, 50.0)]) == knee([*points, (600, 5.0)]) == 3


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(100, 0.005), (200, 0.5)],
        [(100, 0.005), (200, 0.006), (300, 0.0055)],
        [(100, 0.5), (200, 0.1), (300, 0.005)],
        [(100, 0.005)] * 3,
        [(100, math.nan), (200, math.nan), (300, math.nan)],
    ],
    ids=["none", "two", "flat", "falling", "one load", "no answers"],
)
def test_a_sweep_without_a_knee_has_none(points):
    assert knee(points) is None


def test_points_without_answers_are_passed_over():
    assert knee([(50, math.nan), (100, 0.005), (200, 0.005), (300, 0.006), (400, 0.5)]) == 3


# ---- pieces


def test_of_a_load_that_was_measured_again_the_middle_run_counts():
    runs = [make_run(200.0, 9.0), make_run(100.0, 3.0), make_run(100.0, 1.0), make_run(100.0, 2.0), make_empty()]
    assert [id(run) for run in middles(runs)] == [id(runs[3]), id(runs[0])]


def test_the_share_that_failed_is_of_what_was_answered_or_failed():
    run = make_run(100.0, errors={"5xx": 500})
    assert run.answered == 500 and failed_share(run) == 0.5
    assert failed_share(make_empty()) == 0.0 and failed_share(make_errors()) == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(math.nan, "-"), (0.0, "0"), (0.0000012, "0.001"), (0.000214, "0.214"), (0.00321, "3.21"), (1.234, "1,234")],
)
def test_milliseconds_have_three_digits_that_count(seconds, text):
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(("load", "text"), [(1, "1"), (2.5, "2.5"), (99.94, "99.9"), (12345.6, "12,346")])
def test_loads_have_as_many_digits_as_are_of_use(load, text):
    assert number(load) == text


def test_sizes_are_named_by_what_they_hold():
    everything = Sizes((1.0, 2.0, 4.0, 8.0), (1, 1, 1, 1, 1), 20.0)
    assert [name for name, _ in everything.shares()] == ["1", "2", "3-4", "5-8", "> 8"]
    assert Sizes((1.0, 2.0, 4.0, 8.0), (0, 0, 3, 0, 0), 9.0).shares() == [("3-4", 1.0)]


def test_several_processes_and_a_number_of_requests_are_told():
    plan = Plan(URL, [Payload(b"x")], connections=4, count=1000, processes=2)
    run = make_empty()
    run.plan = plan
    assert "closed loop, 4 connections, 2 processes, 1,000 requests" in as_table(Report("run", [run]))
