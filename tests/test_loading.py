"""What the worker makes of the application that gunicorn gives it."""

import asyncio

import pytest
from kit.asks import Echo

from virtex import http_server
from virtex.workers.loading import resolve, stand_in


async def asgi(scope, receive, send):
    pass


def test_an_application_is_itself_and_a_function_without_parameters_what_it_makes():
    app = http_server("echo", Echo())
    assert resolve(app) is app
    assert resolve(asgi) is asgi
    assert resolve(lambda: app) is app
    assert resolve(lambda: asgi) is asgi
    assert resolve("no application") == "no application", "gunicorn says so"


def test_a_function_that_makes_no_application_is_said():
    with pytest.raises(TypeError, match="it made a int"):
        resolve(lambda: 7)
    with pytest.raises(TypeError, match=r"is a handler: name what http_server\(name=..., handler=Echo\) gives"):
        resolve(Echo)


class Reloader:
    def __init__(self):
        self.files = []

    def add_extra_file(self, file):
        self.files.append(file)


def raised(source, file):
    try:
        exec(compile(source, file, "exec"), {})
    except Exception as error:
        return error


@pytest.mark.parametrize("source", ["1 / 0", "a b"], ids=["raises", "is no Python"])
def test_what_stands_in_for_broken_code_says_why_and_has_its_files_watched(source, tmp_path):
    file = tmp_path / "service.py"
    file.write_text(source)
    reloader = Reloader()
    error = raised(source, str(file))
    app = stand_in(error, reloader)
    assert str(file) in reloader.files
    sent = []
    told = [{"type": "lifespan.startup"}]

    async def receive():
        return told.pop()

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http"}, receive, send))
    assert sent[0]["status"] == 500
    assert type(error).__name__.encode() in sent[1]["body"]
    with pytest.raises(IndexError):
        asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent[2]["type"] == "lifespan.startup.complete"
