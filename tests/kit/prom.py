"""Starts the real Prometheus and Pushgateway on loopback, and reads what they know. Debian has both.

with prometheus(folder, "127.0.0.1:8000") as prom:
    prom.value('virtex_requests_total{code="200"}')
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.servers import free_port, listens, until
from virtex.metrics.board import Board
from virtex.metrics.schema import BY_NAME, PLACES, is_in_seconds

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
needs_pushgateway = pytest.mark.skipif(not shutil.which("prometheus-pushgateway"), reason="no pushgateway is installed")
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")

CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: {rules}
scrape_configs: [{{job_name: virtex, honor_labels: true, static_configs: [{{targets: {targets}, labels: {labels}}}]}}]
"""


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the samples that have this name and these labels."""
    return sum(value for (found, has), value in samples(text).items() if found == name and labels.items() <= has)


def count(board: Board, service: str, name: str, *values: float, label: str = "", slot: int = 0) -> None:
    """Have a service count these: each one is an observation of a histogram, or is added to what is none."""
    cells, metric, at = board.block(slot, service), BY_NAME[name], PLACES[name, label]
    unit = 1e9 if is_in_seconds(metric) else 1
    for value in values:
        if metric.bounds:
            cells[at + sum(value > bound for bound in metric.bounds)] += 1
            cells[at + len(metric.bounds) + 1] += round(value * unit)
        else:
            cells[at] += round(value * unit)


def get(url: str, accept: str = "") -> str:
    request = urllib.request.Request(url, headers={"accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[dict[str, object]]:
        """The samples of an instant query. Raises AssertionError where it is refused."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        ) as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        return list(said["data"]["result"])

    def value(self, expression: str) -> float | None:
        """Of a query that gives one sample; None while it gives none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None  # type: ignore[index]


@contextlib.contextmanager
def prometheus(folder: Path, *targets: str, rules: str = "", **labels: str) -> Iterator[Prometheus]:
    """One that scrapes these targets five times a second, and keeps its data in the folder. rules: a file of them.

    labels: of each sample, as a cluster gives it those of its pod.
    """
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        CONFIG.format(
            targets=json.dumps(targets), labels=json.dumps(labels), rules=json.dumps([rules] if rules else [])
        )
    )
    where = [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with program(folder, port, "prometheus", f"--config.file={config}", *where):
        prom = Prometheus(port)
        until(lambda: is_ready(f"{prom.url}/-/ready"), "Prometheus")
        yield prom


@contextlib.contextmanager
def pushgateway(folder: Path, port: int) -> Iterator[str]:
    """One that keeps nothing; gives its URL."""
    where = [f"--web.listen-address=127.0.0.1:{port}", "--persistence.file="]
    with program(folder, port, "prometheus-pushgateway", *where):
        url = f"http://127.0.0.1:{port}"
        until(lambda: is_ready(f"{url}/-/ready"), "the Pushgateway")
        yield url


@contextlib.contextmanager
def program(folder: Path, port: int, *command: str) -> Iterator[None]:
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--log.level=warn"], stdout=log, stderr=log)
    try:
        until(lambda: listens(port) or process.poll() is not None, command[0])
        assert process.poll() is None, (folder / f"{command[0]}.log").read_text()
        yield
    finally:
        process.kill()
        process.wait(10)


def is_ready(url: str) -> bool:
    try:
        get(url)
    except OSError:
        return False
    return True


def check_metrics(text: str) -> tuple[int, str]:
    """What promtool finds in a text: its exit status, 0 for nothing, and its words."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr
