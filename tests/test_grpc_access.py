"""The access log's lines of gRPC: one for each call that was answered, none made where nobody wants them."""

import re
from base64 import b64encode

import pytest
from gunicorn.glogging import Logger
from kit import needs
from kit.servers import free_port, serving

needs.library("grpc")

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from kit.grpc import SERVICE, odd_call, request  # noqa: E402

from virtex.rpc.codes import client_of  # noqa: E402
from virtex.workers.access_log import AccessLog, access_of  # noqa: E402

SOURCE = """
from virtex import Tensor, TensorHandler, http_server

class Identity(TensorHandler):
    inputs = outputs = Tensor("f4", (3,))
    def run_inference(self, model_input):
        return model_input

app = http_server("identity", Identity)
"""
FORMAT = '%(h)s "%(r)s" %(s)s %(B)s %(D)s %({x-request-id}o)s %({virtex.items}e)s %({x-mine}i)s END'
ROWS = np.float32([[1, 2, 3], [4, 5, 6]])


def test_each_call_has_a_line_as_a_request_has(monkeypatch):
    number = free_port()
    monkeypatch.setenv("VIRTEX_GRPC_PORT", str(number))
    asked = request("identity", ROWS).SerializeToString()
    head = (("x-request-id", "one"), ("x-mine", "7"))
    with serving("gunicorn", SOURCE, "--access-logfile", "-", "--access-logformat", FORMAT) as server:
        server.wait_log("gRPC at")
        with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:

            def ask(method, message=b"", metadata=()):
                return channel.unary_unary(SERVICE + method)(message, metadata=metadata, timeout=20)

            size = len(ask("ModelInfer", asked, head))
            with pytest.raises(grpc.RpcError):
                ask("ModelInfer", asked.replace(b"identity", b"indemnit"), (("x-request-id", "two"),))
            with pytest.raises(grpc.RpcError, match="there is no"):
                ask("ModelConfig", metadata=(("x-request-id", "three"),))
            size_of_live = len(ask("ServerLive"))
            for method in ("ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"):
                ask(method, b"\x0a\x08identity")
            streamed = list(channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([asked, asked]), timeout=20))
        lines = []
        server.wait_log(f"{SERVICE}ModelStreamInfer ")
        for line in server.log.splitlines():
            found = re.fullmatch(rf'(\S+) "POST {SERVICE}(\w+) HTTP/2" (\d+) (\d+) (\d+) (\S+) (\S+) (\S+) END', line)
            if found:
                assert found[1] == "127.0.0.1" and 0 < int(found[5]) < 20e6 and found[6] != "-"
                lines.append((found[2], int(found[3]), int(found[4]), found[6], found[7], found[8]))
    assert lines[0] == ("ModelInfer", 0, size, "one", "2", "7")
    assert lines[1] == ("ModelInfer", grpc.StatusCode.NOT_FOUND.value[0], 0, "two", "-", "-")
    assert lines[2] == ("ModelConfig", grpc.StatusCode.UNIMPLEMENTED.value[0], 0, "three", "-", "-")
    assert lines[3][:3] == ("ServerLive", 0, size_of_live)
    told = [line[:2] for line in lines[4:]]
    assert told == [
        (m, 0) for m in ("ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelStreamInfer")
    ]
    assert lines[-1][2] == sum(map(len, streamed)) > 2 * size


def test_lines_that_nobody_wants_are_not_made():
    class Quiet(Logger):
        access_log_enabled = False

        def __init__(self):
            pass

    class Statsd(Quiet):
        def access(self, *answered):
            """Counts it."""

    assert access_of(Quiet()) is None
    assert isinstance(access_of(Statsd()), AccessLog)


def test_a_client_writes_no_lines_of_its_own(monkeypatch):
    """grpc lets control characters pass; a user's name may have them over HTTP, too."""
    number = free_port()
    monkeypatch.setenv("VIRTEX_GRPC_PORT", str(number))
    form = '"%(u)s" "%(a)s" "%(f)s" "%({x-mine-bin}i)s" END'
    user = b64encode(b"me\nINJECTED:word")
    with serving("gunicorn", SOURCE, "--access-logfile", "-", "--access-logformat", form) as server:
        server.wait_log("gRPC at")
        odd = [
            (b"user-agent", b"one\r\nINJECTED \x1b[2J"),
            (b"referer", b"\0\x7f\t"),
            (b"authorization", b"Basic " + user),
        ]
        odd_call(number, f"{SERVICE}ServerLive".encode(), *odd, (b"x-mine-bin", b64encode(b"two\nINJECTED")))
        server.wait_log("END")
        server.request("GET", "/health/live", authorization="Basic " + user.decode(), referer="a\tb")
        server.request("GET", "/health/live", authorization="Basic " + b64encode(b"me:word").decode())
        server.wait_log("END", 3)
        lines = [line for line in server.log.splitlines() if "END" in line or "INJECTED" in line]
    assert lines == [
        '"-" "one\\x0d\\x0aINJECTED \\x1b[2J" "\\x00\\x7f\\x09" "two\\x0aINJECTED" END',
        '"-" "-" "a\\x09b" "-" END',
        '"me" "-" "-" "-" END',
    ]


@pytest.mark.parametrize(
    "peer, client",
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[fe80::1]:5000", "fe80::1"),
        ("unix:/run/x:1", ""),
        ("", ""),
    ],
)
def test_the_client_is_the_address_of_its_peer(peer, client):
    assert client_of(peer) == client
