"""What Prometheus reads: text and OpenMetrics of what a board holds."""

import os
import subprocess
import sys

import pytest
from kit import counts
from kit.prom import check_metrics, needs_promtool, total
from prometheus_client import REGISTRY, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from virtex.metrics.board import Board, WorkerState, cells
from virtex.metrics.exposition import Ours, registry_of, render
from virtex.metrics.schema import METRICS

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
MS = 1_000_000
ODD = 'a "b"\\\n' + "ö" * 100  # longer than a board's names, and what labels have to escape


@pytest.fixture
def board():
    with counts.counted(Board(8)) as board:
        yield board


def text_of(board, *names, accept=""):
    return render(registry_of(Ours(dict.fromkeys(names, False), board)), accept)[1].decode()


def test_every_metric_is_there_with_its_type_and_its_labels(board):
    cells("a").request(200, 3, MS)
    families = {each.name: each for each in plain_families(text_of(board, "a"))}
    for metric in METRICS:
        name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert families[name].type == metric.kind
        assert families[name].documentation == metric.help
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == {"service", metric.label} - {""}
    assert families["virtex_build_info"].samples[0].value == 1
    assert families["virtex_workers"].samples[0].labels == {"service": "a"}


def test_openmetrics_is_what_the_strict_parser_takes(board):
    cells("a").request(200, 3, MS)
    found = {each.name for each in text_string_to_metric_families(text_of(board, "a", accept=OPENMETRICS))}
    assert {metric.name.removesuffix("_total") for metric in METRICS} < found
    assert "virtex_build" in found


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/html", "text/plain; version=0.0.4"),
        (OPENMETRICS + ",text/plain;version=0.0.4;q=0.5", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_accept_chooses_the_format(accept, kind, board):
    content_type, text = render(registry_of(Ours({"a": False}, board)), accept)
    assert content_type.startswith(kind)
    assert text.endswith(b"# EOF\n") == ("openmetrics" in kind)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_there_are_no_series_of_when_something_was_made(accept, board):
    cells("a").request(200, 3, MS)
    assert "_created" not in text_of(board, "a", accept=accept)


def test_buckets_count_all_below_them(board):
    for items in (1, 2, 2, 5, 5000):
        cells("a").request(200, items, MS)
    text = text_of(board, "a")
    counts = {le: total(text, "virtex_request_queries_bucket", le=le) for le in ("1.0", "2.0", "4.0", "8.0", "+Inf")}
    assert list(counts.values()) == [1, 3, 3, 4, 5]
    assert total(text, "virtex_request_queries_count") == 5
    assert total(text, "virtex_request_queries_sum") == 5010


def test_a_service_has_its_own_samples_whatever_its_name_is(board):
    for name in ("a", ODD):
        cells(name).request(503, 1, MS)
    assert total(text_of(board, "a"), "virtex_requests_total") == 1
    text = text_of(board, "a", ODD)
    assert total(text, "virtex_requests_total", service=ODD, code="503") == 1
    assert total(text, "virtex_requests_total") == 2


def test_workers_are_those_that_are_ready(board):
    states = ("ready", "starting", "ready", "draining")
    board.roster = lambda: [WorkerState(i, i + 1, state, 0, i) for i, state in enumerate(states)]
    assert total(text_of(board, "a"), "virtex_workers", service="a") == 2


@needs_promtool
def test_promtool_finds_nothing_to_say_of_the_text(board):
    cells("a").request(200, 3, MS)
    assert check_metrics(text_of(board, "a")) == (0, "")


# -- the user's own


@pytest.fixture
def counted():
    counter = Counter("pictures", "Pictures that were seen.")
    counter.inc(3)
    yield counter
    REGISTRY.unregister(counter)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_users_own_metrics_stand_beside_ours(accept, board, counted):
    text = text_of(board, "a", accept=accept)
    assert "pictures_total 3.0" in text
    assert "process_cpu_seconds" not in text  # of one process, whichever is asked


def test_a_collector_of_the_user_that_raises_hides_nothing_of_ours(board, caplog):
    class Broken:
        def describe(self):
            return []

        def collect(self):
            raise ZeroDivisionError("mine")

    broken = Broken()
    REGISTRY.register(broken)
    try:
        assert "virtex_requests_total" in text_of(board, "a")
    finally:
        REGISTRY.unregister(broken)
    assert "the metrics of the handler could not be read" in caplog.text


SHARED = """
import os
from prometheus_client import Counter
from virtex.metrics.exposition import Ours, registry_of, render
counter = Counter("pictures", "Pictures that were seen.")
pid = os.fork()
counter.inc(2 if pid else 3)
if not pid:
    os._exit(0)
os.waitpid(pid, 0)
print(render(registry_of(Ours({})), "")[1].decode())
"""


def test_the_users_own_metrics_are_added_up_over_workers_in_the_librarys_way(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SHARED], env=environment, capture_output=True, text=True, timeout=60)
    assert "pictures_total 5.0" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "version", ["abc", "1.x", "2.zz", "1." + "1." * 999 + "1", "9" * 5000, "\xb2.0.0", "1.0.0\r\n x: y"]
)
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_a_version_that_is_none_is_neither_an_error_nor_repeated(kind, version, board):
    cells("a")
    content_type, _ = render(registry_of(Ours({"a": False}, board)), f"{kind}; version={version};q=zz")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
