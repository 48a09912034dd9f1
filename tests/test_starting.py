"""run() and `virtex serve`: a script becomes gunicorn, whose workers run it afresh; and what is said where it fails."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from kit.asks import Echo
from kit.servers import ECHO, ROOT, free_port, serving, until

from virtex import http_server
from virtex.workers import starting
from virtex.workers.starting import checked

SCRIPT = (
    ECHO.replace("from virtex", "import os\nimport sys\nfrom virtex", 1)
    + """
class Told(Echo):
    def process_response(self, item):
        return [item, __name__, sys.argv[1:], os.environ.get("SAID"), sys.modules["__main__"].Told is Told]
app = http_server(name="told", handler=Told)
"""
)
RUN = "port=int(sys.argv[1]), workers=2, control_socket_disable=True"
GUARDED = f"""
if __name__ == "__main__":
    os.environ["SAID"] = "by the script"
    app.run({RUN})
    print("run() came back")
"""
BARE = f"""
os.environ["SAID"] = "by the script"
app.run({RUN})
print("run() came back")
"""
BODY = b'{"data":["q"]}'


def post(server):
    status, body = server.request("POST", "/", BODY)
    assert status == 200, body
    return json.loads(body)["data"][0]


def script(*lines: str) -> str:
    return "\n".join([SCRIPT, *lines])


# ---- a newcomer's script


@pytest.mark.parametrize("end", [GUARDED, BARE], ids=["guarded", "bare"])
def test_a_script_that_calls_run_is_served_by_workers_that_run_it_afresh(end):
    with serving("script", SCRIPT + end) as server:
        server.wait_log("is ready; workers=2", 2)
        assert post(server) == ["q", "__virtex_main__", [str(server.port)], "by the script", True]
        (server.folder / "service.py").write_text(SCRIPT.replace("[item, ", '["new", item, ') + end)
        server.signal(signal.SIGHUP)
        until(lambda: post(server)[0] == "new", "the new code", server)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "run() came back" not in server.log and "Traceback" not in server.log


def test_the_line_for_curl_that_the_log_gives_works():
    example = "    def example(self):\n        return ['q']\n    def process_response"
    with serving("script", SCRIPT.replace("    def process_response", example) + GUARDED) as server:
        server.wait_log("is ready; workers=2", 2)
        server.wait_log("try it: ")
        assert f"serving 'told' at http://127.0.0.1:{server.port}/" in server.log
        line = re.search(r"try it: (.*)", server.log)[1]
        asked = subprocess.run(line + " -s", shell=True, capture_output=True, timeout=30, check=True)
        assert json.loads(asked.stdout)["data"][0][0] == "q"


def test_a_module_that_calls_run_has_its_package():
    with serving("module", "pass", wait=False) as unused:
        unused.wait_exit()  # there is no package yet
        folder, port = unused.folder, str(unused.port)
        (folder / "package").mkdir()
        (folder / "package" / "__init__.py").write_text("")
        (folder / "package" / "parts.py").write_text("WORD = 'relative'")
        source = SCRIPT.replace("class Told", "from .parts import WORD\nclass Told").replace("[item, ", "[WORD, item, ")
        (folder / "package" / "server.py").write_text(source + GUARDED)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "package.server", port]
            unused.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        unused.wait_log("is ready; workers=2", 2)
        assert post(unused)[:3] == ["relative", "q", "__virtex_main__"]


# ---- scripts that a worker can't serve


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (
            SCRIPT.replace("app =", "if __name__ == '__main__':\n    app =") + GUARDED,
            4,
            """service.py makes no service named 'told' when a worker runs it: what stands below """
            """`if __name__ == "__main__":` is left out then. Make the service above that line, """
            "or call run() there, too",
        ),
        (
            script("other = http_server(name='told', handler=Told)", GUARDED),
            4,
            "service.py makes 2 services named 'told': give each a name of its own",
        ),
        (
            script("if __name__ != '__main__': sys.exit('no')", GUARDED),
            4,
            "service.py ended itself by SystemExit('no') when a worker ran it, ahead of its run()",
        ),
        (script("if __name__ != '__main__': open('model.bin')", GUARDED), 3, "No such file or directory: 'model.bin'"),
        (SCRIPT + GUARDED.replace("workers=2", "treads=2"), 1, "no setting of gunicorn; did you mean threads"),
        (SCRIPT + GUARDED.replace("workers=2", "workers=0"), 1, "run(workers=0): expected 1 or more"),
        (SCRIPT + GUARDED.replace("workers=2", "worker_class='sync'"), 0, ""),
    ],
    ids=["all below the guard", "two of one name", "exits", "raises", "a setting", "a value", "the default class"],
)
def test_a_script_that_a_worker_can_not_serve_says_what_to_do(source, code, says):
    with serving("script", source, wait=False) as server:
        if code == 0:  # sync is what gunicorn calls nothing
            server.wait_log("worker index 0 is ready")
            return
        assert server.wait_exit() == code
        assert says in server.log
        assert code in (1, 3) or "Traceback" not in server.log


def test_a_port_in_use_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with serving("script", SCRIPT + GUARDED.replace("sys.argv[1]", port), wait=False) as server:
            assert server.wait_exit() == 1
            assert f"virtex: can't listen on 127.0.0.1:{port}: another process listens there" in server.log
            assert "Retrying" not in server.log


def test_a_host_that_is_not_this_machine_s_is_told_to_choose_another_host():
    source = SCRIPT + GUARDED.replace("port=int(sys.argv[1])", "host='192.0.2.1', port=int(sys.argv[1])")
    with serving("script", source, wait=False) as server:
        assert server.wait_exit() == 1
        assert "192.0.2.1:" in server.log and "no such address. Choose another host" in server.log


def test_code_that_breaks_under_reload_is_answered_with_its_error_until_it_is_mended():
    end = GUARDED.replace("workers=2", "reload=True, reload_engine='poll'")
    with serving("script", SCRIPT + end) as server:
        server.wait_log("is ready; workers=1")
        (server.folder / "service.py").write_text("def f(:\n" + SCRIPT + end)
        error = b"the application could not be imported: SyntaxError: invalid syntax (service.py, line 1)\n"
        until(lambda: saved(server) == (500, error), "the error", server)
        (server.folder / "service.py").write_text(SCRIPT + end)
        until(lambda: saved(server)[0] == 200, "the service", server)


def saved(server):
    """Its answer, the file saved once more: what changes ahead of the reloader's first look goes unseen."""
    os.utime(server.folder / "service.py")
    try:
        return server.request("POST", "/", BODY)
    except OSError:  # the worker was leaving
        return 0, b""


# ---- where no script runs


def test_run_is_refused_where_it_would_end_what_runs():
    app = http_server("echo", Echo)
    with pytest.raises(RuntimeError, match="would put gunicorn in the place of pytest"):
        app.run()

    async def within():
        app.run()

    with pytest.raises(RuntimeError, match="within an event loop; `await virtex.serve"):
        asyncio.run(within())


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("from service import app; app.run()", "and this process has none. Put the service into a file"),
        ("import sys; sys.ps1 = '>>> '; from service import app; app.run()", "and an interactive session has none"),
        ("import importing", "run() was called while 'importing' was imported, not run"),
    ],
    ids=["-c", "REPL", "import"],
)
def test_run_without_a_script_says_what_to_do(tmp_path, code, says):
    (tmp_path / "service.py").write_text(SCRIPT)
    (tmp_path / "importing.py").write_text("from service import app\napp.run()")
    (tmp_path / "main.py").write_text("import importing")
    command = ["main.py"] if code == "import importing" else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert says in ended.stderr


# ---- what run() is given


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"treads": 2}, TypeError, "run() got 'treads', which is no setting of gunicorn; did you mean threads"),
        ({"zzzz": 2}, TypeError, "no setting of gunicorn (docs/gunicorn.md has them all)"),
        ({"timeout_keep_alive": 5}, TypeError, "which is a setting of uvicorn; in its place: keepalive"),
        ({"wsgi_app": "a:b"}, TypeError, "run() does not take wsgi_app: run() serves the service"),
        ({"preload_app": True}, TypeError, "each worker loads the script itself"),
        ({"post_fork": lambda server, worker: None}, TypeError, "run(post_fork=): a function can't go along"),
        ({"port": 80, "bind": "unix:x"}, TypeError, "bind= says where to listen"),
        ({"timeout": -1}, ValueError, "run(timeout=-1): Value must be positive: -1"),
        ({"workers": "two"}, ValueError, "run(workers='two'): "),
        ({"workers": 0}, ValueError, "run(workers=0): expected 1 or more"),
        ({"port": "8000"}, ValueError, "port='8000': expected a whole number from 0 to 65535"),
        ({"port": 65536}, ValueError, "port=65536"),
        ({"host": ""}, ValueError, "host='': expected a name or an address"),
        ({"threads": 4}, ValueError, 'threads: Virtex has one thread for sockets; http_server(executor="thread")'),
    ],
    ids=lambda each: "".join(each) if isinstance(each, dict) else "",
)
def test_what_run_does_not_take_is_one_clear_error(given, error, says):
    with pytest.raises(error, match=re.escape(says)):
        asked(**given)


def asked(host="127.0.0.1", port=8000, workers=1, **more):
    return checked(host, port, workers, more)


def test_what_run_takes_is_gunicorns():
    assert asked() == {"bind": ["127.0.0.1:8000"], "workers": 1}
    assert asked("::1", 0)["bind"] == ["[::1]:0"]
    assert asked(bind="unix:x", timeout=5)["bind"] == "unix:x"


def test_the_settings_of_uvicorn_name_settings_that_there_are():
    from gunicorn.config import make_settings

    known = make_settings()
    for name in starting.uvicorn.INSTEAD.values():
        if name.isidentifier() and name != "nothing":
            assert name in known


# ---- virtex serve


def test_virtex_serve_takes_gunicorns_options():
    with serving("virtex", ECHO, "-w", "2", "--max-requests", "1000", "--env", "A=b") as server:
        server.wait_log("is ready; workers=2", 2)
        server.wait_log("try it: ")
        assert post(server) == "q"
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-k", "gthread"], "Error: worker_class: expected virtex.VirtexWorker or a subclass, got gthread"),
        (["--nonsense"], "virtex serve: error: unrecognized arguments: --nonsense"),
    ],
    ids=["-k", "an option"],
)
def test_virtex_serve_refuses_what_it_can_not_do(options, says):
    with serving("virtex", ECHO, *options, wait=False) as server:
        assert server.wait_exit() in (1, 2)
        assert says in server.log


def test_virtex_serve_names_what_a_module_has():
    with serving("virtex", ECHO.replace("app =", "service ="), wait=False) as server:
        assert server.wait_exit() == 4
        assert "It has service: name it behind a colon, service:service" in server.log


def test_a_module_that_is_not_there_is_said_in_a_line(tmp_path):
    command = [sys.executable, "-m", "virtex", "serve", "sever:app", "--port", str(free_port())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert ended.returncode == 4 and f"sever:app: there is no module 'sever' in {tmp_path}\n" in ended.stderr
    assert "Traceback" not in ended.stderr
