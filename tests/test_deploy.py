"""deploy/: what Prometheus and Grafana are given is taken by them, and asks for metrics that there are."""

import json
import re
import subprocess

import pytest
from kit.prom import get, needs_prometheus, needs_promtool, prometheus, samples
from kit.servers import ECHO, ROOT, free_port, serving, until

from virtex.metrics.exposition import WORKERS
from virtex.metrics.legacy import NAMES
from virtex.metrics.schema import METRICS

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
RULES = (DEPLOY / "rules.yml").read_text()
ASKED = {
    (page, expression)
    for page in ("metrics", "migrating")
    for expression in re.findall(r"\| `([^`|]+)` \|$", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE)
    if "virtex_" in expression
}
RECORDS = re.findall(r"record: (\S+)", RULES)
ALERTS = re.findall(r"alert: (\w+)", RULES)


def promtool(*arguments, **more):
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, cwd=DEPLOY, **more)


@needs_promtool
@pytest.mark.parametrize("command", ["check config prometheus.yml", "check rules rules.yml"])
def test_promtool_takes_the_files(command):
    done = promtool(*command.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.fixture(scope="module")
def prom(tmp_path_factory):
    """A Prometheus with our rules, which has scraped a service that has answered and refused requests."""
    port = free_port()
    source = ECHO.replace("handler=Echo()", f"handler=Echo(), prom_mode='scrape', prom_port={port}")
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        serving("gunicorn", source) as server,
        prometheus(folder, f"127.0.0.1:{port}", rules=str(DEPLOY / "rules.yml")) as prom,
    ):
        for status in ("200", "400"):
            for _ in range(5):
                server.request("POST", "/", b'{"data":[1,2]}' if status == "200" else b"no")
            until(lambda s=status: prom.value(f'virtex_requests_total{{code="{s}"}}') == 5, f"5 answers of {status}")
        until(lambda: prom.value("count(count_over_time(virtex_requests_total[1m]) > 1)") == 2, "two scrapes of each")
        names = {name for name, _ in samples(get(f"http://127.0.0.1:{port}/metrics"))}
        yield prom, names


@needs_prometheus
@pytest.mark.parametrize(("title", "expression"), PANELS)
def test_a_panel_shows_something(title, expression, prom):
    prom, names = prom
    expression = expression.replace("$__rate_interval", "1m").replace("$service", ".*")
    assert set(re.findall(r"virtex_\w+", expression)) <= names
    assert prom.query(expression)


@needs_prometheus
@pytest.mark.parametrize(("page", "expression"), sorted(ASKED))
def test_what_a_page_says_to_ask_has_an_answer(page, expression, prom):
    prom, names = prom
    assert set(re.findall(r"virtex_\w+", expression)) <= names
    assert prom.query(expression)


@needs_prometheus
@pytest.mark.parametrize("record", RECORDS)
def test_a_recorded_series_is_there(record, prom):
    prom, _ = prom
    until(lambda: bool(prom.query(record)), record)


@needs_prometheus
def test_the_rules_ask_for_metrics_that_there_are(prom):
    _, names = prom
    asked = {name for name in re.findall(r"(?<![\w:])virtex_\w+", RULES) if name not in RECORDS}
    assert asked and asked <= names


SERIES = {  # a minute apart; what makes each alert fire, and none but it, whichever group of rules promtool runs first
    "VirtexHasNoWorker": [('virtex_workers{service="a"}', "0x20")],
    "VirtexCannotBeScraped": [('up{job="virtex"}', "0x20")],
    "VirtexFails": [
        ('virtex_requests_total{service="a",code="200"}', "0+98x20"),
        ('virtex_requests_total{service="a",code="500"}', "0+2x20"),
    ],
    "VirtexRefusesForWantOfRoom": [('virtex_dropped_requests_total{service="a",reason="full"}', "0+60x20")],
    "VirtexMissesDeadlines": [('virtex_dropped_requests_total{service="a",reason="deadline"}', "0+60x20")],
    "VirtexIsSlow": [
        ('virtex_request_duration_seconds_bucket{service="a",le="1.0"}', "0+90x20"),
        ('virtex_request_duration_seconds_bucket{service="a",le="2.5"}', "0+100x20"),
        ('virtex_request_duration_seconds_bucket{service="a",le="+Inf"}', "0+100x20"),
    ],
    "VirtexIsBusy": [
        ('virtex_executor_busy_seconds_total{service="a"}', "0+114x20"),
        ('virtex_workers{service="a"}', "2x20"),
    ],
    "VirtexRunsBatchesAgain": [('virtex_retries_total{service="a"}', "0+120x20")],
}


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_for_what_it_is_named_after(alert, tmp_path):
    def fires(series, holds):
        tests = {
            "rule_files": [str(DEPLOY / "rules.yml")],
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                            "eval_time": "20m",
                            "exp_samples": [{"labels": "{}", "value": 1}] if name == alert and holds else [],
                        }
                        for name in ALERTS
                    ],
                }
            ],
        }
        (tmp_path / "tests.yml").write_text(json.dumps(tests))
        done = promtool("test", "rules", str(tmp_path / "tests.yml"))
        assert done.returncode == 0, done.stdout + done.stderr

    fires(SERIES[alert], True)
    fires([('virtex_workers{service="a"}', "1x20"), ('virtex_requests_total{service="a",code="200"}', "0+9x20")], False)


def test_the_dashboard_is_one_that_grafana_imports():
    assert DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r"\$\{?([a-z]\w*)", text)) <= variables
    for panel in DASHBOARD["panels"]:
        assert {"title", "description", "type", "gridPos", "targets", "datasource"} <= set(panel)


def test_every_metric_is_in_the_pages():
    there = {metric.name for metric in METRICS} | {WORKERS, "virtex_build_info"}
    table = re.findall(r"^\| `(virtex_\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert {name for name, _ in table} == there
    assert dict(table).items() >= {metric.name: metric.kind for metric in METRICS}.items()
    old = re.findall(r"^\| `(\w+)` \| `virtex_\w+` \|", (ROOT / "docs" / "migrating.md").read_text(), re.MULTILINE)
    assert sorted(old) == sorted(NAMES)
