"""gRPC under gunicorn: each worker takes calls on one port, which is theirs alone, and is drained with all else."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from kit import needs
from kit.pages import Page
from kit.proxies import nginx
from kit.servers import ROOT, Running, free_port, listens, serving, until

needs.library("grpc")

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from kit.grpc import SERVICE, outputs_of, request  # noqa: E402

from virtex.workers import grpc_port  # noqa: E402

SOURCE = """
import os, time
import numpy as np
from virtex import Limits, Tensor, TensorHandler, http_server

class Pids(TensorHandler):
    inputs, outputs = Tensor("f8"), Tensor("i8")
    def run_inference(self, seconds):
        time.sleep(float(seconds.max()))
        return np.full(len(seconds), os.getpid())

app = http_server("pids", Pids, max_time_on_queue=0)
"""

NOBODY = 65534  # a user

NGINX = """
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{calls} http2; {lines} }}
}}
"""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    number = free_port()
    monkeypatch.setenv(grpc_port.VARIABLE, str(number))
    return number


def ask(port: int, seconds: float = 0.0, timeout: float = 20.0) -> int:
    """Which worker answers a client that just came."""
    asked = request("pids", np.float64([seconds])).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = channel.unary_unary(SERVICE + "ModelInfer")(asked, timeout=timeout, wait_for_ready=True)
        return int(outputs_of(answer)["output"][0])


def in_flight(server: Running) -> float:
    return json.loads(server.request("GET", "/metrics/live")[1])["metrics"]["virtex_requests_in_flight"]


def test_each_worker_answers_and_one_that_is_killed_is_replaced(port: int) -> None:
    with serving("gunicorn", SOURCE, "--workers", "2") as server:
        server.wait_log("gRPC at", 2)
        both = set(server.workers())
        seen: set[int] = set()
        until(lambda: bool(seen.add(ask(port))) or seen == both, "an answer of each worker", server)
        one = both.pop()
        server.signal(signal.SIGKILL, one)
        until(lambda: len(set(server.workers()) - {one}) == 2, "another worker", server)
        server.wait_log("gRPC at", 3)
        new = set(server.workers())
        seen = set()
        until(lambda: bool(seen.add(ask(port))) or seen >= new, "an answer of the new worker", server)


def test_a_call_in_flight_is_answered_when_the_service_stops(port: int) -> None:
    with serving(
        "gunicorn", SOURCE.replace("max_time", 'executor="thread", max_time'), "--graceful-timeout", "20"
    ) as server:
        server.wait_log("gRPC at")
        pid, found = server.workers()[0], list[int]()
        asking = threading.Thread(target=lambda: found.append(ask(port, 0.5)))
        asking.start()
        until(lambda: in_flight(server) == 1, "a call in flight", server)
        server.signal(signal.SIGTERM)
        asking.join(20)
        assert found == [pid] and server.wait_exit() == 0
        assert "Traceback" not in server.log


def test_nginx_passes_calls_on_by_the_lines_of_the_page(port: int) -> None:
    (lines,) = (block.code for block in Page(ROOT / "docs" / "grpc.md").blocks if block.language == "nginx")
    with (
        serving("gunicorn", SOURCE) as server,
        nginx(port, NGINX, ("calls",), lines=lines.replace("127.0.0.1:8001", f"127.0.0.1:{port}")) as proxy,
    ):
        server.wait_log("gRPC at")
        assert ask(proxy.ports["calls"]) == server.workers()[0], proxy.log


def test_a_reload_hands_the_port_over(port: int) -> None:
    with serving("gunicorn", SOURCE) as server:
        server.wait_log("gRPC at")
        old = ask(port)
        server.signal(signal.SIGHUP)
        server.wait_log("gRPC at", 2)
        until(lambda: old not in server.workers(), "the old worker to have left", server)
        assert ask(port) == server.workers()[0] != old


def test_an_upgrade_by_usr2_hands_the_port_over_to_the_second_master(port: int) -> None:
    with serving("gunicorn", SOURCE) as server:
        old = ask(port)
        server.signal(signal.SIGUSR2)
        server.wait_log("worker index 0 is ready; workers=1", 2)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert ask(port) != old
        assert f":{port} for gRPC" not in server.log


def test_max_requests_counts_calls(port: int) -> None:
    with serving("gunicorn", SOURCE, "--max-requests", "3") as server:
        server.wait_log("gRPC at")
        for _ in range(3):
            ask(port)
        server.wait_log("max_requests reached: 3")
        server.wait_log("exits; requests=3 ")


@pytest.mark.parametrize(("size", "code"), [("100", "RESOURCE_EXHAUSTED"), ("0", "OK")], ids=["100", "unlimited"])
def test_limits_are_those_that_gunicorn_was_told(port: int, size: str, code: str) -> None:
    told = ("--limit-request-fields", "10", "--limit-request-field_size", size)
    with serving("gunicorn", SOURCE, *told) as server:
        server.wait_log("gRPC at")
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(SERVICE + "ServerReady").future(b"", metadata=[("x", "y" * 2000)], timeout=20)
            assert call.code().name == code, call.details()


def test_virtex_serve_has_an_option_for_it() -> None:
    number = free_port()
    with serving("virtex", SOURCE, "--grpc-port", str(number)) as server:
        server.wait_log(f"gRPC at 127.0.0.1:{number}")
        assert ask(number) in server.workers()


def started(*arguments: str) -> tuple[int, str]:
    """What `virtex serve` gives and says where it ends by itself."""
    command = [sys.executable, "-m", "virtex", "serve", "service:app", "--port", str(free_port()), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    return ended.returncode, ended.stderr + ended.stdout


@pytest.fixture(params=[False, True], ids=["alone", "SO_REUSEPORT"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port on which somebody listens already, whatever options they have."""
    with socket.socket() as sock:
        if request.param:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_port_that_is_taken_is_said_at_once_and_never_shared(taken: int) -> None:
    code, said = started("--grpc-port", str(taken))
    assert code == 1 and f"can't listen on 127.0.0.1:{taken} for gRPC: another process listens there" in said


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """What this process keeps as a master."""
    found: list[socket.socket] = []
    monkeypatch.setattr(grpc_port, "_kept", found)
    yield found
    for sock in found:
        sock.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_a_master_keeps_is_taken_while_its_workers_load(
    host: str, port: int, kept: list[socket.socket]
) -> None:
    grpc_port.keep(Cfg(("127.0.0.1", 80)))
    assert len(kept) == 1 and not listens(port)
    code, said = started("--host", host, "--grpc-port", str(port))
    assert code == 1 and f"can't listen on {host}:{port} for gRPC: another process listens there" in said


def test_of_masters_that_start_at_once_one_has_the_port() -> None:
    """Also where connections of before linger."""
    many, rounds = 4, 50

    def race(port: int) -> int:
        gate, found = threading.Barrier(many), list[socket.socket]()

        def take() -> None:
            gate.wait()
            with contextlib.suppress(OSError):
                found.append(grpc_port._bound("127.0.0.1", port, os.geteuid(), False))

        racing = [threading.Thread(target=take) for _ in range(many)]
        for thread in racing:
            thread.start()
        for thread in racing:
            thread.join()
        for sock in found:
            sock.close()
        return len(found)

    assert [race(lingering()) for _ in range(rounds)] == [1] * rounds


def lingering() -> int:
    """A port on which a connection has just ended, by the server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    return port


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_workers_of_another_user_share_the_port_of_a_master_that_is_root(port: int, kept: list[socket.socket]) -> None:
    script = f"""
import os, socket
os.setuid({NOBODY})
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind(("127.0.0.1", {port}))
"""
    cfg = Cfg(("127.0.0.1", 80), uid=NOBODY)
    grpc_port.keep(cfg)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    with pytest.MonkeyPatch.context() as patch:  # SIGUSR2: beside it
        patch.setenv("GUNICORN_PID", str(os.getpid()))
        patch.setattr(grpc_port, "_kept", again := [])
        grpc_port.keep(cfg)
        assert len(again) == 1
        again[0].close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--reuse-port", "--port", "8001", "--grpc-port", "8001"], 1, "=8001: HTTP listens on that port"),
        (["--grpc-port", "70000"], 2, "--grpc-port 70000: expected a port from 1 to 65535"),
        (["--grpc-port", "0"], 2, "expected a whole number above 0"),
        (["--grpc-port", "x"], 2, "expected a whole number above 0"),
    ],
)
def test_what_is_no_port_is_said(arguments: list[str], code: int, says: str) -> None:
    ended, said = started(*arguments)
    assert ended == code and says in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("number", "says"),
    [("80", "=80: HTTP listens on that port"), ("http", "='http': expected a port from 1 to 65535")],
    ids=["of HTTP", "none"],
)
def test_what_can_not_be_its_port_ends_the_master_with_a_line(
    number: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(grpc_port.VARIABLE, number)
    with pytest.raises(SystemExit) as ended:
        grpc_port.keep(Cfg(("127.0.0.1", 80)))
    assert ended.value.code == 1 and f"virtex: VIRTEX_GRPC_PORT{says}" in capsys.readouterr().err


def test_a_machine_without_such_addresses_is_said(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(family: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(grpc_port.socket, "socket", none)
    with pytest.raises(SystemExit):
        grpc_port.keep(Cfg(("127.0.0.1", 80)))
    assert f"can't listen on 127.0.0.1:{port} for gRPC: [Errno 97] Address family" in capsys.readouterr().err


class Cfg:
    is_ssl = False

    def __init__(self, *address: object, uid: int | None = None) -> None:
        self.address = list(address)
        self.uid = os.geteuid() if uid is None else uid


def test_the_hosts_are_those_of_bind(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Cfg(("127.0.0.1", 80), "unix.sock", ("::1", 80), ("127.0.0.1", 81))
    assert grpc_port.addresses(cfg) == [("127.0.0.1", port), ("::1", port)]
    with pytest.raises(ValueError, match="expected a host in bind, which has unix sockets alone"):
        grpc_port.addresses(Cfg("unix.sock"))
    monkeypatch.setenv(grpc_port.VARIABLE, "http")
    with pytest.raises(ValueError, match="VIRTEX_GRPC_PORT='http': expected a port from 1 to 65535"):
        grpc_port.addresses(cfg)
    monkeypatch.delenv(grpc_port.VARIABLE)
    assert grpc_port.addresses(cfg) == []


def test_without_grpcio_the_extra_is_named(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grpc_port, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        grpc_port.keep(Cfg(("127.0.0.1", 80)))
    said = capsys.readouterr().err
    assert "VIRTEX_GRPC_PORT needs grpcio and protobuf: install the extra [grpc]" in said
    assert "pip install '.[grpc]'" in said
    script = "import sys; sys.modules['grpc'] = None; from virtex import serve_grpc"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "ImportError: gRPC needs grpcio and protobuf: install the extra [grpc]" in ended.stderr


def test_where_there_is_not_even_a_package_google_there_is_no_protobuf(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object:
        if name == "google.protobuf":
            raise ModuleNotFoundError("No module named 'google'", name="google")
        return object()

    monkeypatch.setattr(grpc_port, "find_spec", find)
    with pytest.raises(SystemExit):
        grpc_port.keep(Cfg(("127.0.0.1", 1)))


def test_an_app_that_is_no_service_can_not_be_served_by_grpc(port: int) -> None:
    with serving("gunicorn", "async def app(scope, receive, send): ...", wait=False) as server:
        assert server.wait_exit() != 0
        assert "expected what http_server() or Services() made, got a function (docs/grpc.md)" in server.log


def test_that_the_package_is_imported_costs_neither_numpy_nor_grpc() -> None:
    script = "import sys, virtex.rpc, virtex.workers.grpc_port; "
    script += "print(sorted({'numpy', 'grpc', 'google'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.stdout.strip() == "[]", ended.stderr
