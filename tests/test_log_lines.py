"""What the log of a real server says: one line for each event, as text or as JSON, whoever configured logging."""

from __future__ import annotations

import json
import re
import signal

import pytest
from kit.servers import ROOT, serving, until

from virtex.limits import allowance

FITS = allowance(None).max_bytes

SERVICE = """
import logging
{configure}
from virtex import RequestHandler, http_server

log = logging.getLogger("mine.of.the.handler")

class Mine(RequestHandler):
    def setup(self, worker):
        log.info("loaded", extra={{"weights": 3}})
        log.debug("in detail")
    def process_request(self, data):
        return data
    def run_inference(self, model_input):
        if "bug" in model_input:
            raise KeyError("no such row")
        return model_input
    def process_response(self, item):
        return item

app = http_server(name="mine", handler=Mine{more})
"""
PLAIN = SERVICE.format(configure="", more="")
FAILING = b'{"data":["bug"]}'
LIFE = [
    *("worker_start", "service_start", "service_ready", "worker_ready"),
    *("request_failure", "worker_drain", "service_drain", "service_end", "worker_exit"),
]
TROUBLE = {  # or where asked for
    *("service_warmup", "out_of_memory", "not_kept", "not_captured", "service_unhealthy", "service_healthy"),
}


def lived(source, *arguments, kind="gunicorn", ready="is ready"):
    """The log of a server that was started, asked for an answer and an error, and stopped."""
    with serving(kind, source, *arguments) as server:
        until(lambda: server.request("GET", "/health/ready")[0] == 200, "the service to be ready", server)
        assert server.request("POST", "/", b'{"data":["a","b"]}', **{"X-Request-Id": "mine-1"})[0] == 200
        assert server.request("POST", "/", FAILING, **{"X-Request-Id": "mine-2"})[0] == 500
        server.signal(signal.SIGTERM)
        server.wait_exit()
        return server.log


def lines_of(log):
    return [json.loads(line) for line in log.splitlines()]


def test_each_event_of_a_worker_is_one_line_of_text():
    log = lived(PLAIN)
    for line in (
        rf"worker index 0 starts; workers=1 timeout=30 .*\bbody=67108864 .*\bmax_bytes={FITS} ",
        rf"service 'mine' starts; executor=inline max_batch_size=512 .*\bmax_bytes={FITS} max_bytes_why=\"limits",
        r"service 'mine' is ready in process \d+; seconds=\S+ rss=\d+",
        r"worker index 0 is ready; workers=1",
        r"worker index 0 drains; connections=\d+ seconds=29 by_signal=True",
        r"service 'mine' drains; requests=0 items=0",
        r"service 'mine' has ended",
        r"worker index 0 exits; requests=\d+ seconds=\S+",
        r"loaded",
    ):
        assert len(re.findall(rf"^\[[^\]]+\] \[\d+\] \[INFO\] {line}", log, re.MULTILINE)) == 1, f"{line}\n{log}"
    assert log.count("request mine-2: run_inference raised KeyError\nTraceback (most recent call last):") == 1
    assert "in detail" not in log


@pytest.mark.parametrize("how", ["the environment", "gunicorn's --env"])
def test_each_line_of_gunicorn_the_service_and_its_handler_is_json(how, monkeypatch):
    if how == "the environment":
        monkeypatch.setenv("VIRTEX_LOG", "json")
    options = [] if how == "the environment" else ["--env", "VIRTEX_LOG=json"]
    lines = lines_of(lived(PLAIN, "--access-logfile", "-", *options))
    assert [line["event"] for line in lines if line.get("event") in LIFE] == LIFE
    assert all({"time", "level", "logger", "process"} <= set(line) for line in lines)
    by_event = {line.get("event", line.get("message")): line for line in lines}
    assert by_event["worker_start"]["max_bytes"] == FITS and by_event["worker_start"]["index"] == 0
    assert by_event["service_ready"]["rss"] > 1 << 20
    assert (by_event["loaded"]["weights"], by_event["loaded"]["logger"]) == (3, "mine.of.the.handler")
    failure = by_event["request_failure"]
    assert (failure["level"], failure["request_id"], failure["items"]) == ("ERROR", "mine-2", 1)
    assert failure["traceback"].endswith("KeyError: 'no such row'") and "in run_inference" in failure["traceback"]
    assert by_event["worker_exit"]["requests"] >= 2
    asked = {line["request_id"]: line for line in lines if line.get("event") == "request"}
    answer = asked["mine-1"]
    assert (answer["method"], answer["path"], answer["status"], answer["bytes"]) == ("POST", "/", 200, 31)
    assert (answer["items"], answer["batch_size"]) == (2, 2) and 0 < answer["queue_wait"] < answer["seconds"] < 60
    assert asked["mine-2"]["status"] == 500
    assert any("Listening at" in line.get("message", "") for line in lines)


def test_an_argument_makes_a_worker_write_json_from_its_load_on():
    log = lived(SERVICE.format(configure="", more=', log="json"'))
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if line.get("event") in LIFE] == LIFE[1:]


def test_a_form_that_is_none_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("VIRTEX_LOG", "xml")
    with serving("gunicorn", PLAIN, wait=False) as server:
        assert server.wait_exit() != 0
        assert 'VIRTEX_LOG=\'xml\': expected "text" or "json"' in server.log


def test_the_access_log_has_id_items_wait_and_batch_as_atoms():
    form = "%(m)s %({x-request-id}o)s %({virtex.items}e)s %({virtex.queue_wait}e)s %({virtex.batch_size}e)s"
    log = lived(PLAIN, "--access-logfile", "-", "--access-logformat", form, "--env", "VIRTEX_LOG=json")
    assert len(re.findall(r"^POST mine-1 2 \d+\.\d{6} 2$", log, re.MULTILINE)) == 1, log
    assert re.search(r"^GET [0-9a-f]{24} - - -$", log, re.MULTILINE), log


BASIC = 'logging.basicConfig(format="OWN %(message)s", level="INFO")'
BY_DICT = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "root": {"handlers": ["h"], "level": "INFO"},
    "formatters": {"f": {"format": "OWN %(message)s"}},
    "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
})
"""


@pytest.mark.parametrize("configure", [BASIC, BY_DICT], ids=["basicConfig", "dictConfig"])
@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn", "serve"])
def test_who_configures_logging_has_it_all_and_no_line_twice(kind, configure):
    log = lived(SERVICE.format(configure=configure, more=""), kind=kind)
    assert re.findall(r"^.*loaded$", log, re.MULTILINE) == ["OWN loaded"]
    assert log.count("service 'mine' is ready") == 1
    assert log.count("request mine-2: run_inference raised KeyError") == 1


@pytest.mark.parametrize("kind", ["uvicorn", "serve"])
@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        (None, ["[INFO] loaded", "[INFO] service 'mine' is ready", "[ERROR] request mine-2"], ["in detail"]),
        ("error", ["[ERROR] request mine-2"], ["loaded", "is ready"]),
        ("DEBUG", ["[DEBUG] in detail", "[INFO] loaded"], []),
        ("loud", ["[WARNING] LOG_LEVEL='LOUD': expected one of", "[INFO] loaded"], ["in detail"]),
    ],
)
def test_where_no_server_configures_logging_log_level_does(kind, level, shown, hidden, monkeypatch):
    if level is not None:
        monkeypatch.setenv("LOG_LEVEL", level)
    log = lived(PLAIN, kind=kind)
    assert {text: log.count(text) for text in shown} == dict.fromkeys(shown, 1)
    assert not [text for text in hidden if text in log]


@pytest.mark.parametrize(("level", "shown"), [("critical", 0), ("warning", 0), ("info", 1), ("debug", 1)])
def test_under_gunicorn_its_log_level_rules_handlers_too(level, shown, monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    log = lived(PLAIN, "--log-level", level)
    assert log.count("[INFO] loaded") == shown and log.count("[DEBUG] in detail") == (level == "debug")
    assert log.count("request mine-2: run_inference raised KeyError") == (level != "critical")


def test_under_uvicorn_json_is_asked_for_by_the_environment(monkeypatch):
    monkeypatch.setenv("VIRTEX_LOG", "json")
    lines = [json.loads(line) for line in lived(PLAIN, kind="uvicorn").splitlines() if line.startswith("{")]
    events = [line.get("event", line["message"]) for line in lines]
    begin, end = ["service_start", "loaded", "service_ready", "lifespan"], ["service_drain", "service_end"]
    assert events == [*begin, "request_failure", *end]


def test_the_page_has_every_event_in_its_order():
    page = (ROOT / "docs" / "logging.md").read_text()
    events = re.findall(r"^\| `(\w+_\w+)` \|", page, re.MULTILINE)
    assert [event for event in events if event in LIFE] == LIFE
    assert {event for event in events if event not in LIFE} == TROUBLE
