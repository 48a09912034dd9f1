"""nginx and haproxy in front of a server of ours, on loopback, as their users set them up.

with nginx(server.port) as proxy:
    proxy.post("buffered", "/", body)

with deployed("nginx", folder, one="/a/virtex.sock", two=8001) as proxy:  # by the file in deploy/
    proxy.reload()
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kit.servers import CERTIFICATE, ROOT, free_port, listens, until

NGINX = """
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 512; }}
http {{
    access_log off; client_max_body_size 0; client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream kept {{ server 127.0.0.1:{port}; keepalive 16; }}
    proxy_next_upstream off;
    server {{ listen 127.0.0.1:{default}; location / {{ proxy_pass http://127.0.0.1:{port}; }} }}
    server {{
        listen 127.0.0.1:{keep_alive};
        location / {{ proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
    server {{
        listen 127.0.0.1:{unbuffered};
        location / {{
            proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;
        }}
    }}
}}
"""
TWO = """
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 512; }}
http {{
    access_log off; client_max_body_size 0; client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream both {{ server 127.0.0.1:{port}; server 127.0.0.1:{other}; }}
    server {{ listen 127.0.0.1:{two}; location / {{ proxy_pass http://both; }} }}
}}
"""
NGINX_WAYS = ("default", "keep_alive", "unbuffered")

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend all
    bind 127.0.0.1:{haproxy}
    default_backend ours
backend ours
    server one 127.0.0.1:{port}
"""


class Proxy:
    """A proxy that runs. ports: where it listens, by the way in which it was set up."""

    def __init__(self, ports: dict[str, int], folder: Path) -> None:
        self.ports = ports
        self.folder = folder

    @property
    def log(self) -> str:
        """The end of it."""
        return (self.folder / "log").read_text(errors="replace")[-1000:]

    def post(self, way: str, path: str, body: bytes, *fields: bytes) -> tuple[int, bytes]:
        """The status and body of the answer to one POST."""
        with socket.create_connection(("127.0.0.1", self.ports[way])) as sock:
            return post(sock, path, body, *fields)


def post(sock: socket.socket, path: str, body: bytes, *fields: bytes) -> tuple[int, bytes]:
    """Send a request and read its answer at the same time, as a careful client does. Stops to send when it came."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % (path.encode(), len(body))
    left = memoryview(head + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body)
    answer = b""
    sock.setblocking(False)
    deadline = time.monotonic() + 20
    while (at := _end(answer)) is None:
        assert time.monotonic() < deadline, f"no whole answer within 20 s: {answer[:200]!r}"
        readable, writable, _ = select.select([sock], [sock] if left else [], [], 1)
        if writable:
            try:
                left = left[sock.send(left) :]
            except (BrokenPipeError, ConnectionResetError):
                left = left[:0]
        if readable:
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError(f"the connection ended within the answer: {answer[-200:]!r}")
            answer += piece
    return int(answer.split(b" ", 2)[1]), answer[at:]


def _end(answer: bytes) -> int | None:
    """Where the body of an answer that is whole begins; None while it is not."""
    head, found, rest = answer.partition(b"\r\n\r\n")
    if not found:
        return None
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if fields.get(b"transfer-encoding") == b"chunked":
        return len(head) + 4 if rest.endswith(b"0\r\n\r\n") else None
    return len(head) + 4 if len(rest) >= int(fields.get(b"content-length", b"0")) else None


@contextlib.contextmanager
def nginx(port: int, config: str = NGINX, ways: tuple[str, ...] = NGINX_WAYS, **more: object) -> Iterator[Proxy]:
    with _running(
        "nginx", ["-p", "{folder}", "-e", "{folder}/log", "-c", "{folder}/config"], config, ways, port, more
    ) as proxy:
        yield proxy


@contextlib.contextmanager
def haproxy(port: int) -> Iterator[Proxy]:
    with _running("haproxy", ["-db", "-f", "{folder}/config"], HAPROXY, ("haproxy",), port, {}) as proxy:
        yield proxy


class Deployed(Proxy):
    """A proxy that runs by its file in deploy/. ports: "plain" and "tls"."""

    def __init__(self, process: subprocess.Popen[bytes], number: int, ports: dict[str, int], folder: Path) -> None:
        super().__init__(ports, folder)
        self._process = process
        self._number = number

    def workers(self) -> set[int]:
        """The processes that serve, and those that still do."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def reload(self) -> None:
        """Returns once a new process serves."""
        before = self.workers()
        self._process.send_signal(self._number)
        until(lambda: bool(self.workers() - before), f"another process; log:\n{self.log}")


_DEPLOYED = {  # the file, the arguments, what reloads it
    "nginx": ("nginx.conf", ["-e", "{folder}/log", "-g", "daemon off;", "-c", "{folder}/config"], signal.SIGHUP),
    "haproxy": ("haproxy.cfg", ["-f", "{folder}/config"], signal.SIGUSR2),
}


def adapted(program: str, folder: Path, one: str, two: int, ports: dict[str, int]) -> str:
    """The file of deploy/ with paths and ports of ours."""
    name = _DEPLOYED[program][0]
    config = (ROOT / "deploy" / name).read_text()
    others = {
        "nginx": {
            "listen 80;": f"listen 127.0.0.1:{ports['plain']};",
            "listen 443 ": f"listen 127.0.0.1:{ports['tls']} ",
            "/run/virtex\\.sock": one.replace(".", "\\."),
            "/run/nginx.pid": f"{folder}/pid",
            "/var/log/nginx/error.log": f"{folder}/log",
            "/var/log/nginx/access.log": f"{folder}/access",
        },
        "haproxy": {
            "bind :80": f"bind 127.0.0.1:{ports['plain']}",
            "bind :443 ": f"bind 127.0.0.1:{ports['tls']} ",
            "/run/haproxy.sock": f"{folder}/admin",
        },
    }[program] | {"/run/virtex.sock": one, "127.0.0.1:8001": f"127.0.0.1:{two}", "/etc/ssl/virtex.pem": CERTIFICATE}
    for known, other in others.items():
        assert known in config, f"{name}: {known}"
        config = config.replace(known, other)
    return config


@contextlib.contextmanager
def deployed(program: str, folder: Path, one: str, two: int) -> Iterator[Deployed]:
    """The proxy as deploy/ has it, but for paths and ports. one: the path of a service. two: the port of another."""
    if os.geteuid() != 0:
        pytest.skip(f"{program} changes to a user of its own: root may")
    _, arguments, number = _DEPLOYED[program]
    ports = {"plain": free_port(), "tls": free_port()}
    config = adapted(program, folder, one, two, ports)
    (folder / "config").write_text(config)
    folder.chmod(0o755)
    path = installed(program)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([path, *(each.format(folder=folder) for each in arguments)], stdout=log, stderr=log)
    proxy = Deployed(process, number, ports, folder)
    try:
        until(lambda: process.poll() is not None or all(map(listens, ports.values())), f"{program} to listen")
        assert process.poll() is None, f"{program} ended with {process.returncode}:\n{proxy.log}"
        yield proxy
    finally:
        process.terminate()
        process.wait(10)


def installed(program: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@contextlib.contextmanager
def _running(
    program: str, arguments: list[str], config: str, ways: tuple[str, ...], port: int, more: dict[str, object]
) -> Iterator[Proxy]:
    path = installed(program)
    ports = {way: free_port() for way in ways}
    with TemporaryDirectory(prefix="virtex-") as name:
        folder = Path(name)
        (folder / "config").write_text(config.format(folder=name, port=port, **ports, **more))
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [path, *(argument.format(folder=name) for argument in arguments)], stdout=log, stderr=log
            )
        try:
            proxy = Proxy(ports, folder)
            ready = all(ports.values())
            until(lambda: process.poll() is not None or all(map(listens, ports.values())), f"{program} to listen")
            assert ready and process.poll() is None, f"{program} ended with {process.returncode}:\n{proxy.log}"
            yield proxy
        finally:
            process.terminate()
            process.wait(10)
