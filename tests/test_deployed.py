"""deploy/nginx.conf and deploy/haproxy.cfg, run as they are: under load, nobody is lost to a reload or a restart."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kit.pages import Page
from kit.proxies import adapted, deployed, installed
from kit.servers import CERTIFICATE, ECHO, ROOT, free_port, until
from kit.systemd import environment

from virtex import Limits

PAGE = Page(ROOT / "docs" / "proxies.md")
SECONDS = float(os.environ.get("VIRTEX_DEPLOYED", "0"))  # how long the load lasts, at least
CLIENTS, TURNS, PACE = (16, 3, 0) if SECONDS else (4, 1, 0.005)  # PACE: seconds between two requests of a client
DELAY = 2  # of a drain; a check of haproxy comes each second

KEPT_ENDED = "the proxy ended a kept connection"  # RFC 9112 section 9.3.1: who keeps one has to ask again

SOURCE = (
    ECHO
    + """
import os, time

class Picky(Echo):
    def process_request(self, data):
        if data == ["break"]:
            print("it breaks", flush=True)
            os._exit(1)
        return data

app = http_server(name="picky", handler=Picky, max_time_on_queue=0.001, authorize=lambda head: {says})
"""
)


class Backend:
    """A service that is reloaded, and restarted on the same address."""

    def __init__(self, folder: Path, bind: str, delay: float, source: str) -> None:
        self.folder = folder
        self._bind = bind
        self._delay = delay
        folder.mkdir()
        (folder / "server.py").write_text(source)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        command = [sys.executable, "-m", "virtex", "serve", "server:app", "--bind", self._bind, "--no-control-socket"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(self.folder, VIRTEX_DRAIN_DELAY=str(self._delay)),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, count: int) -> None:
        until(lambda: self.log.count("is ready; workers") >= count, f"a worker that is ready; log:\n{self.log}")

    def reload(self) -> None:
        ready = self.log.count("is ready; workers")
        self._process.send_signal(signal.SIGHUP)
        self.wait_ready(ready + 1)

    def stop(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Load:
    """Clients in a loop, half of which keep their connection. seen: what they got, by what it was."""

    def __init__(self, port: int) -> None:
        self.seen: Counter[str] = Counter()
        self.longest = 0.0
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(first,)) for first in range(CLIENTS)]

    def _loop(self, first: int) -> None:
        connection = None
        for number in itertools.count(first, CLIENTS):
            if self._over.wait(PACE):
                break
            begun = time.monotonic()
            fresh = connection is None
            connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                got = ask(connection, number)
                self.seen["right" if got == (200, [number], f"id-{number}") else repr(got)] += 1
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                connection.close()
                connection = None
                self.seen[KEPT_ENDED if not fresh else repr(error)] += 1
            except Exception as error:
                self.seen[repr(error)] += 1
            self.longest = max(self.longest, time.monotonic() - begun)
            if connection is not None and (first % 2 or connection.sock is None):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def more(self) -> None:
        """Wait until each client has been answered again."""
        now = self.seen["right"]
        until(lambda: self.seen["right"] > now + 4 * CLIENTS, f"answers, but {self.seen}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def ask(connection: http.client.HTTPConnection, item: object) -> tuple[int, object, str | None]:
    connection.request("POST", "/", json.dumps({"data": [item]}), {"X-Request-Id": f"id-{item}"})
    answer = connection.getresponse()
    body = answer.read()
    data = json.loads(body)["data"] if answer.status == 200 else body[:200]
    return answer.status, data, answer.getheader("x-request-id")


@pytest.fixture(params=["nginx", "haproxy"])
def program(request):
    return request.param


@pytest.fixture
def place():
    with TemporaryDirectory(prefix="virtex-") as name:  # short: the path of a socket has 107 bytes at most
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def behind(program, place, delay=0.0, refuses="None"):
    """Two services, and the proxy that deploy/ has for them. refuses: what the first one's authorize() says."""
    port, socket = free_port(), place / "virtex.sock"
    with contextlib.ExitStack() as stack:
        backends = []
        for name, bind, says in (("one", f"unix:{socket}", refuses), ("two", f"127.0.0.1:{port}", "None")):
            backends.append(Backend(place / name, bind, delay, SOURCE.replace("{says}", says)))
            stack.callback(backends[-1].stop)
        for backend in backends:
            backend.wait_ready(1)
        socket.chmod(0o666)
        (place / "proxy").mkdir()
        yield *backends, stack.enter_context(deployed(program, place / "proxy", str(socket), port))


def test_reloads_and_restarts_under_load_lose_nobody(program, place):
    with behind(program, place, DELAY) as (one, two, proxy), Load(proxy.ports["plain"]) as load:
        begun, turns = time.monotonic(), 0
        while turns < TURNS or time.monotonic() - begun < SECONDS:
            turns += 1
            for change in (one.reload, proxy.reload):
                load.more()
                change()
        load.more()
        assert two.stop() == 0
        load.more()
        two.start()
        two.wait_ready(2)
        load.more()
    print(f"\n{program}: {turns} turns, {dict(load.seen)}, the longest {load.longest:.2f} s")
    assert set(load.seen) <= {"right", KEPT_ENDED}, (load.seen, proxy.log)


def test_what_one_refuses_unread_the_other_one_answers(program, place):
    with behind(program, place, refuses='head.method == "POST" and 503') as (_, _, proxy):
        asked = [post(proxy, number) for number in range(12)]
        assert asked == [(200, [number], f"id-{number}") for number in range(12)], proxy.log


def test_a_client_does_not_say_that_it_came_by_tls(program, place):
    said = "[head.header('x-forwarded-' + name) for name in ('proto', 'protocol', 'ssl')]"
    with behind(program, place, refuses=f'head.method != "POST" or {said} == ["http", "", ""] or 403') as (*_, proxy):
        lies = {"X-Forwarded-Proto": "https", "X-Forwarded-Protocol": "ssl", "X-Forwarded-Ssl": "on"}
        for _ in range(4):  # half of them come to the first one
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.ports["plain"], timeout=30)) as asked:
                asked.request("POST", "/", '{"data": [1]}', lies)
                assert asked.getresponse().status == 200


def test_what_breaks_a_worker_is_not_sent_to_the_next(program, place):
    with behind(program, place) as (one, two, proxy):
        assert post(proxy, "break")[0] == 502
        assert (one.log + two.log).count("it breaks") == 1


def test_it_is_as_its_page_says(program, place):
    with behind(program, place) as (_, _, proxy):
        assert post(proxy, "a", "tls") == (200, ["a"], "id-a")
        head = curl(proxy, "--http2", "-d", '{"data": [1]}', "-H", "X-Request-Id: mine")
        assert head["version"] == "2" and head["headers"]["x-request-id"] == ["mine"]
        made = curl(proxy, "-d", '{"data": [1]}')["headers"]["x-request-id"][0]
        assert re.fullmatch("[0-9a-f-]{32,36}", made)
        (place / "large").write_bytes(b"x" * (Limits().body + 1))
        assert curl(proxy, "--data-binary", f"@{place / 'large'}", "-H", "Expect:")["status"] == 413


def post(proxy, item, way="plain"):
    port = proxy.ports[way]
    if way == "tls":
        context = ssl.create_default_context(cafile=CERTIFICATE)
        connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        return ask(connection, item)


def curl(proxy, *arguments):
    """What curl was answered by TLS: the version of HTTP, the status, the fields."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    written = '{"version": "%{http_version}", "status": %{http_code}, "headers": %{header_json}}'
    command = ["curl", "-s", "--cacert", CERTIFICATE, "-o", os.devnull, "-w", written, *arguments]
    url = f"https://localhost:{proxy.ports['tls']}/"
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


# -- the files


@pytest.mark.parametrize("line", PAGE.commands(__file__))
def test_the_program_takes_its_file(line, tmp_path):
    program, *arguments = shlex.split(line.replace("$PWD", str(ROOT)))
    file = tmp_path / "config"
    file.write_text(adapted(program, tmp_path, str(tmp_path / "virtex.sock"), 8001, {"plain": 8000, "tls": 8443}))
    (known,) = (word for word in arguments if "deploy/" in word)
    assert program != "nginx" or Path(known).is_absolute(), "nginx looks for others below its own prefix"
    command = [installed(program), *(str(file) if word == known else word for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "warn" not in said.lower(), said


def values(name, pattern):
    """The numbers that a file of deploy/ has behind these words."""
    return [float(value) for value in re.findall(pattern, (ROOT / "deploy" / name).read_text())]


def test_the_limits_of_the_proxies_are_those_of_virtex():
    limits = Limits()
    assert values("nginx.conf", r"client_max_body_size (\d+)m;") == [limits.body >> 20]
    for name, header, answer in (
        ("nginx.conf", r"client_header_timeout (\d+)s", r"proxy_read_timeout (\d+)s"),
        ("haproxy.cfg", r"timeout http-request (\d+)s", r"timeout server (\d+)s"),
    ):
        assert values(name, header) == [limits.header_seconds]
        assert limits.answer_seconds < values(name, answer)[0]
        assert all(
            seconds >= limits.answer_seconds for seconds in values(name, r"(?:shutdown_timeout|stop-after) (\d+)s")
        )
    assert values("nginx.conf", r"client_body_timeout (\d+)s") == [limits.body_idle_seconds]
    assert values("nginx.conf", r"\bsend_timeout (\d+)s")[0] == limits.write_stall_seconds
    assert values("haproxy.cfg", r"timeout client (\d+)s") == [limits.body_idle_seconds]
    kept = values("nginx.conf", r"\n +keepalive_timeout (\d+)s") + values("haproxy.cfg", r"pool-purge-delay (\d+)s")
    assert len(kept) == 4 and max(kept) < limits.keep_alive_seconds
