import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run

from virtex import Observer, http_server
from virtex.logs import LONGEST, TRACEBACK_SECONDS, Tracebacks, printable
from virtex.workers.access_log import AccessLog

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
    now = [10**12]
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
