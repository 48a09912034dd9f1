"""Starts real servers on loopback for tests, waits for them with a deadline, and leaves none behind.

    with serving("gunicorn", SOURCE, "--workers", "2") as server:
        server.get("/")

SOURCE is a module with an `app`. Every server is a process group of its own, ended by its own pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import inspect
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kit.asks import Echo

ROOT = Path(__file__).resolve().parents[2]
CERTIFICATE = str(ROOT / "tests" / "data" / "localhost.pem")  # with its key
PATIENCE = 120.0  # seconds that anything may take on a machine that is slow and busy; nothing here takes so long
AGES = str(round(10 * PATIENCE))  # for a setting: who waits for as long has waited in vain

ECHO = f"""
from virtex import RequestHandler, http_server

{inspect.getsource(Echo)}
app = http_server(name="echo", handler=Echo())
"""

# In front of a source: the delay of a drain lasts until Running.end_delay(), however long the test takes to look.
DRAIN_DELAY = 17.25  # seconds, which nothing else waits
HELD_DRAIN = f"""
import asyncio, os

wait = asyncio.wait

async def wait_or_be_told(those, *, timeout=None, **more):
    if timeout != {DRAIN_DELAY}:
        return await wait(those, timeout=timeout, **more)
    while not os.path.exists("delay is over"):
        await asyncio.sleep(0.01)
    return set(), set(those)

asyncio.wait = wait_or_be_told
"""

_EMBEDDED = """
import asyncio, signal, sys
import uvloop
from service import app

async def main():
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    {start}
    await stop.wait()
    {stop}

uvloop.run(main())
"""
_SERVE = _EMBEDDED.format(
    start="from virtex import serve\n    listener = await serve(app, port={port})", stop="await listener.drain(10)"
)
_PROTOCOL = _EMBEDDED.format(
    start="""from virtex import HttpProtocol
    server = await loop.create_server(lambda: HttpProtocol(app), '127.0.0.1', {port})""",
    stop="server.close()",
)


def _commands(kind: str, port: int, arguments: tuple[str, ...]) -> list[str]:
    python = [sys.executable]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    commands = {
        "gunicorn": [
            # The script: on SIGUSR2 `python -m gunicorn` comes back with gunicorn's folder ahead of stdlib's http.
            *(
                str(Path(sys.executable).with_name("gunicorn")),
                "service:app",
                "-k",
                "virtex.VirtexWorker",
                "--no-control-socket",
            ),
            *(() if "--bind" in arguments else ("--bind", f"127.0.0.1:{port}")),
        ],
        "gunicorn-asgi": [
            *("-m", "gunicorn", "service:app", "-k", "asgi", "--no-control-socket", "--bind", f"127.0.0.1:{port}")
        ],
        "uvicorn": ["-m", "uvicorn", "service:app", *where],
        "uvicorn-h11": ["-m", "uvicorn", "service:app", "--http", "h11", *where],
        "granian": ["-m", "granian", "--interface", "asgi", "service:app", *where],
        "hypercorn": ["-m", "hypercorn", "service:app", "--bind", f"127.0.0.1:{port}"],
        "serve": ["embedded.py"],
        "protocol": ["embedded.py"],
        "script": ["service.py", str(port)],
        "module": ["-m", "package.server", str(port)],
        "virtex": ["-m", "virtex", "serve", "service:app", *where, "--no-control-socket"],
    }
    return [*python, *commands[kind], *arguments]


class Running:
    """A server process: where it listens, what it logged, and how it is stopped."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.folder = folder

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def wait_log(self, text: str, count: int = 1, seconds: float = PATIENCE) -> None:
        until(lambda: self.log.count(text) >= count, f"{text!r} {count} times in the log", self, seconds)

    def wait_exit(self, seconds: float = PATIENCE) -> int:
        return self.process.wait(seconds)

    def signal(self, number: int, pid: int | None = None) -> None:
        os.kill(pid or self.process.pid, number)

    def end_delay(self) -> None:
        """Of its drain, where HELD_DRAIN stands in front of its source."""
        (self.folder / "delay is over").touch()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group is this server's alone: workers it left, if any
        self.process.wait(10)


@contextlib.contextmanager
def serving(kind: str, source: str, *arguments: str, wait: bool = True, **popen: Any) -> Iterator[Running]:
    """A server of this kind running `source`; it is waited for, and stopped at the end however that comes."""
    with TemporaryDirectory(prefix="virtex-") as name:
        folder = Path(name)
        port = free_port()
        (folder / "service.py").write_text(source)
        embedded = {"serve": _SERVE, "protocol": _PROTOCOL}.get(kind, "")
        (folder / "embedded.py").write_text(embedded.replace("{port}", str(port)))
        paths = os.pathsep.join([str(ROOT), name, os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                _commands(kind, port, arguments),
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **popen,
            )
        server = Running(process, port, folder)
        try:
            if wait:
                until(lambda: listens(port) or process.poll() is not None, f"a listener on port {port}", server)
                assert process.poll() is None, f"{kind} ended with {process.returncode}:\n{server.log}"
            yield server
        finally:
            server.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def until(holds: Callable[[], bool], what: str, server: Running | None = None, seconds: float = PATIENCE) -> None:
    """Wait until `holds()`, at most `seconds`; then fail, saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not holds():
        ended = server is not None and server.process.poll() is not None
        if time.monotonic() > deadline or (ended and not holds()):
            why = "the server ended" if ended else f"{seconds} s were not enough"
            raise AssertionError(f"waited for {what}: {why}" + (f"; log:\n{server.log}" if server else ""))
        time.sleep(0.01)


async def eventually(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """until() beside what it waits for, on the same loop."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head in lower case, and body of one answer from a connection that stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), head, await reader.readexactly(length)


def read_response(sock: socket.socket, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    """One response from a socket that stays open, read to exactly its end."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1)
        if not piece:
            raise AssertionError(f"the connection ended within a head: {data!r}")
        data += piece
    lines = data[:-4].split(b"\r\n")
    headers = {
        name.decode().lower(): value.strip().decode() for name, _, value in (x.partition(b":") for x in lines[1:])
    }
    length = 0 if head_only else int(headers.get("content-length", 0))
    body = b""
    while len(body) < length:
        piece = sock.recv(length - len(body))
        if not piece:
            raise AssertionError(f"the connection ended after {len(body)} of {length} bytes of a body")
        body += piece
    return int(lines[0].split()[1]), headers, body


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server ends the connection."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
