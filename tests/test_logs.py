import asyncio
import json
import logging
import time
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run

from virtex import Observer, http_server, logs
from virtex.logs import LONGEST, TRACEBACK_SECONDS, Lines, Tracebacks, event, printable, show
from virtex.workers.access_log import AccessLog
from virtex.workers.logs import ErrorLog

EVIL = "bad\n2026-01-01 [INFO] all is well\r\x1b[2J\x9b31m\x00\u2028\u202e\ud800"
SHOWN = r"bad\n2026-01-01 [INFO] all is well\r\x1b[2J\x9b31m\x00\u2028\u202e\ud800"
log = logging.getLogger("virtex")


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def written(caplog):
    """What a log file would get, line by line."""
    return [line for record in caplog.records for line in logging.Formatter("%(message)s").format(record).split("\n")]


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def noted():
    error = ValueError(EVIL)
    error.add_note(EVIL)
    return error


def noted_like_python():
    error = ValueError("bad")
    error.add_note("got:\n  a\n2026-01-01 [INFO] all is well\nTraceback (most recent call last):\n2026 forged")
    return error


def chained():
    try:
        try:
            raise KeyError(EVIL)
        except KeyError as error:
            raise ValueError(EVIL) from error
    except ValueError as error:
        return error


def grouped():
    return ExceptionGroup(EVIL, [ValueError("one"), raised(ValueError("two"))])


def syntax():
    try:
        compile("a = \x1b[31m", "a client's", "exec")
    except SyntaxError as error:
        return error


@pytest.mark.parametrize("make", [lambda: ValueError(EVIL), noted, noted_like_python, chained, grouped, syntax])
def test_no_line_and_no_terminal_control_of_an_exception_reaches_the_log(make, caplog):
    log.error("it failed: %s", EVIL, exc_info=raised(make()))
    lines = written(caplog)
    assert lines[0] == "it failed: " + SHOWN
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026") for line in lines)
    assert any(line.lstrip(" |").startswith('File "') for line in lines), "where it was raised is still there"


def test_what_is_printable_is_logged_as_it_was(caplog):
    log.error("%s failed: %s", "é", "naïve 100 %", exc_info=raised(ValueError("sound")))
    (record,) = caplog.records
    assert record.msg == "%s failed: %s"
    assert written(caplog)[0] == "é failed: naïve 100 %"
    assert written(caplog)[-1] == "ValueError: sound"


def test_a_message_that_can_not_be_made_is_loggings_to_complain_of(caplog, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.error("%d", "no number")  # raises nothing


def test_a_text_that_quotes_a_body_is_cut():
    assert printable("x" * 100_000) == "x" * LONGEST + "... (100000 characters)"


class Fails(Echo):
    def process_response(self, item):
        if item == "other":
            raise KeyError(item)
        raise ValueError(item)


def body(*items):
    return b'{"data": ["%b"]}' % b'","'.join(items)


def test_a_500_whose_exception_quotes_its_client_forges_no_line(ask, caplog):
    app = http_server("fails", Fails())
    run(app, ask(app, rb'{"data": ["a\n2026-01-01 [INFO] all is well\u001b[2J"]}'))
    lines = written(caplog)
    assert r"ValueError: a\n2026-01-01 [INFO] all is well\x1b[2J" in lines
    assert all(line.isprintable() for line in lines)


def test_each_500_has_its_line_and_each_kind_of_error_one_traceback_in_a_while(caplog, ask):
    now = [time.perf_counter_ns()]  # heads have the real one: a machine that is up for a minute has less than 10**12
    app = http_server("fails", Fails())
    app.options = replace(app.options, clock=lambda: now[0])

    async def main():
        answers = []
        await app.startup()
        for _ in range(2):
            for item in [b"same"] * 20 + [b"other"] * 20:
                answers.append(await ask(app, body(item)))
            now[0] += TRACEBACK_SECONDS * 10**9
        await app.shutdown()
        return answers

    answers = asyncio.run(main())
    names = [answer.error.rpartition(" ")[2] for answer in answers]
    assert len(set(names)) == 80
    assert all(caplog.text.count(name) == 1 for name in names)
    assert caplog.text.count("Traceback") == 4
    assert caplog.text.count("(of 19 more the traceback was left out)") == 2
    (shown,) = {record.exc_info is None for record in caplog.records[1:20]}
    assert shown, "the first one has it"


@pytest.mark.parametrize("what", ["authorize", "the observer"])
def test_what_else_of_the_service_raises_with_every_request_has_one_traceback_in_a_while_too(what, caplog, ask):
    def fail(*_):
        raise ValueError("each time")

    observer = Observer()
    observer.request_done = fail
    given = {"authorize": fail} if what == "authorize" else {"observer": observer}
    app = http_server("fails", Echo(), **given)
    run(app, *(ask(app, body(b"a")) for _ in range(5)))
    assert caplog.text.count(f"{what} raised") == 5
    assert caplog.text.count("Traceback") == 1


def test_kinds_are_a_type_and_a_line_and_are_not_remembered_without_end():
    now = [0]
    tracebacks = Tracebacks(lambda: now[0])
    assert tracebacks.left_out(raised(ValueError("a"))) == 0
    assert tracebacks.left_out(raised(ValueError("b"))) is None
    assert tracebacks.left_out(ValueError("not raised")) == 0
    assert tracebacks.left_out(raised(KeyError("a"))) == 0
    for n in range(1000):
        tracebacks.left_out(raised(type(f"Error{n}", (Exception,), {})()))
    assert len(tracebacks._kinds) <= 256


def test_no_terminal_control_of_a_request_reaches_the_access_log():
    taken = []
    access = AccessLog(SimpleNamespace(access=lambda *args: taken.append(args)))
    head = SimpleNamespace(
        target=b"/a\x9b31m?\xff", method="GET", minor=1, headers=[(b"user-agent", b"caf\xe9 \x9b31m")]
    )
    access(SimpleNamespace(client=("127.0.0.1", 1)), head, 200, 0, 0)
    ((_, shown, environ, _),) = taken
    texts = [*environ.values(), *(value for _, value in shown.headers)]
    assert all(text.isprintable() for text in texts)
    assert environ["RAW_URI"] == r"/a\x9b31m?\xff" and environ["HTTP_USER_AGENT"] == r"caf\xe9 \x9b31m"


def line_of(monkeypatch, *args, **kwargs):
    monkeypatch.setenv("VIRTEX_LOG", "json")
    record = log.makeRecord("a.b", kwargs.pop("level", logging.INFO), __file__, 1, *args, **kwargs)
    line = Lines().format(record)
    assert line.isascii() and line.isprintable()
    return json.loads(line)


def test_a_line_of_json_has_what_extra_gave_and_no_line_break(monkeypatch):
    line = line_of(monkeypatch, "%s\nsaid", (EVIL,), None, extra={"user": "é\n", "nested": {"a": [1, None]}})
    assert line["message"] == f"{EVIL}\nsaid" and line["user"] == "é\n" and line["nested"] == {"a": [1, None]}
    assert (line["level"], line["logger"]) == ("INFO", "a.b")
    assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert set(line) == {"time", "level", "logger", "process", "message", "user", "nested"}


def circle():
    made = []
    made.append(made)
    return made


@pytest.mark.parametrize("value", [float("nan"), {1: {(2,): 3}}, circle(), object(), b"a", {"a"}])
def test_what_json_has_no_word_for_is_written_as_its_text(value, monkeypatch):
    line = line_of(monkeypatch, "it", (), None, extra={"value": value, "number": 7})
    assert line["number"] == 7 and line["value"] == str(value)


def test_a_line_of_json_has_the_traceback_and_the_stack(monkeypatch):
    error = raised(ValueError("bad"))
    line = line_of(monkeypatch, "it", (), (ValueError, error, error.__traceback__), sinfo="Stack:\n  here")
    assert line["traceback"].startswith("Traceback") and line["traceback"].endswith("ValueError: bad")
    assert line["stack"] == "Stack:\n  here"


def test_lines_are_text_as_before_unless_json_is_asked_for(monkeypatch):
    monkeypatch.delenv("VIRTEX_LOG", raising=False)
    record = log.makeRecord("a.b", logging.INFO, __file__, 1, "it %d", (7,), None)
    assert Lines(logging.Formatter("OWN %(message)s")).format(record) == "OWN it 7"
    assert Lines().format(record).endswith(f"[{record.process}] [INFO] it 7")


def test_an_event_is_words_then_values_that_can_be_told_apart(caplog):
    caplog.set_level(logging.INFO)
    event(log, "some_event", "it happened", {"who": "me"}, a=1, b=0.123456789, c="two words", d="", e='"', f=None)
    (record,) = caplog.records
    assert record.getMessage() == r'it happened; a=1 b=0.123457 c="two words" d="" e="\"" f=None'
    assert (record.event, record.who, record.a, record.c) == ("some_event", "me", 1, "two words")


@pytest.fixture
def unconfigured(monkeypatch):
    """Call it, and nobody has configured logging; pytest has, for each test anew."""
    root, httpx2 = logging.root, logging.getLogger("httpx2")
    before = root.level, httpx2.level

    def forget():
        monkeypatch.setattr(root, "handlers", [])
        monkeypatch.setattr(logging, "lastResort", logs._PLAIN)
        monkeypatch.setattr(logs, "_led", logging.WARNING)
        monkeypatch.setattr(Lines, "form", None)
        monkeypatch.delenv("LOG_LEVEL", raising=False)
        root.setLevel(logging.WARNING)
        httpx2.setLevel(logging.NOTSET)

    yield forget
    root.setLevel(before[0])
    httpx2.setLevel(before[1])


def test_show_is_the_last_resort_and_gives_no_logger_a_handler(unconfigured):
    unconfigured()
    show("json")
    assert logging.root.level == logging.INFO and logging.root.handlers == [] and Lines.form == "json"
    assert isinstance(logging.lastResort.formatter, Lines)
    mine = logging.lastResort
    show(None)
    assert logging.lastResort is mine and Lines.form == "json", "once is enough, and who asked for JSON has it"


def test_show_leaves_alone_what_was_configured(unconfigured, monkeypatch):
    unconfigured()
    logging.root.setLevel(logging.ERROR)
    show(None)
    assert logging.root.level == logging.ERROR
    monkeypatch.setattr(logging, "lastResort", None)
    show(None)
    assert logging.lastResort is None
    monkeypatch.setattr(logging, "lastResort", logs._PLAIN)
    logging.root.addHandler(logging.NullHandler())
    show(None)
    assert logging.lastResort is logs._PLAIN


def test_a_form_that_is_none_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("VIRTEX_LOG", "xml")
    with pytest.raises(ValueError, match="VIRTEX_LOG='xml': expected"):
        show(None)
    with pytest.raises(ValueError, match=r"log='xml'.*expected .text., .json., or None"):
        http_server("echo", Echo(), log="xml")


def test_gunicorns_error_log_gets_everybodys_records_by_the_levels_of_its_handlers():
    taken = []

    class Handler(logging.Handler):
        def emit(self, record):
            taken.append((self.level, record.getMessage()))

    error_log = logging.Logger("gunicorn.error")
    error_log.handlers = [Handler(logging.ERROR), Handler()]
    handler = ErrorLog(error_log)
    handler.handle(log.makeRecord("a", logging.INFO, "", 1, "info", (), None))
    handler.handle(log.makeRecord("a", logging.ERROR, "", 1, "error", (), None))
    assert taken == [(0, "info"), (logging.ERROR, "error"), (0, "error")]


def test_a_member_that_has_no_text_costs_no_line_of_json():
    class Mute:
        def __str__(self):
            raise RuntimeError("no text")

    record = logging.makeLogRecord({"msg": "said", "mute": Mute(), "huge": 10**5000, "ready": True})
    members = json.loads(logs._as_json(Lines().members(record)))
    assert members["message"] == "said" and members["mute"] == "<Mute>" and members["ready"] is True
