"""TLS over gRPC: certfile, keyfile, ca_certs and cert_reqs hold for its port, or are refused by name."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from kit import needs
from kit.pages import Page
from kit.servers import CERTIFICATE, ROOT, free_port, serving, until

needs.library("grpc")

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from kit.grpc import SERVICE, outputs_of, request  # noqa: E402

from virtex import Tensor, TensorHandler, http_server, serve_grpc  # noqa: E402
from virtex.workers import grpc_port  # noqa: E402

STRANGER = str(ROOT / "tests" / "data" / "stranger.pem")  # another certificate for localhost, with its key
ENCRYPTED = str(ROOT / "tests" / "data" / "encrypted.pem")  # that of CERTIFICATE, its key behind a passphrase
MUTUAL = ("--ca-certs", CERTIFICATE, "--cert-reqs", "2")

SOURCE = """
from virtex import Tensor, TensorHandler, http_server

class Same(TensorHandler):
    inputs, outputs = Tensor("f8"), Tensor("f8")
    def run_inference(self, model_input):
        return model_input

app = http_server("same", Same, max_time_on_queue=0)
"""


class Same(TensorHandler):
    inputs = outputs = Tensor("f8")

    def run_inference(self, model_input: Any) -> Any:
        return model_input


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    number = free_port()
    monkeypatch.setenv(grpc_port.VARIABLE, str(number))
    return number


def trusting(root: str = CERTIFICATE, own: str | None = None) -> grpc.ChannelCredentials:
    """A client that trusts one certificate. own: the one that it shows itself."""
    mine = Path(own).read_bytes() if own else None
    return grpc.ssl_channel_credentials(Path(root).read_bytes(), mine, mine)


def asking(port: int, credentials: grpc.ChannelCredentials | None) -> Any:
    """What a client that just came gets: the answer, or the error of its call."""
    where, options = f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
    asked = request("same", np.float64([7])).SerializeToString()
    with (
        grpc.insecure_channel(where, options)
        if credentials is None
        else grpc.secure_channel(where, credentials, options)
    ) as channel:
        try:
            return outputs_of(channel.unary_unary(SERVICE + "ModelInfer")(asked, timeout=20))["output"].tolist()
        except grpc.RpcError as error:
            return error


def is_refused(error: Any) -> bool:
    return isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.UNAVAILABLE


def handshake(port: int, version: ssl.TLSVersion) -> str | None:
    """The version that a client gets which speaks this one alone."""
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL itself would not offer what is old
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wrapped,
    ):
        return wrapped.version()


@pytest.mark.filterwarnings("ignore:.*TLSv1_1:DeprecationWarning")
def test_the_certificate_of_https_is_that_of_grpc(port: int) -> None:
    with serving("gunicorn", SOURCE, "--certfile", CERTIFICATE, "--keyfile", CERTIFICATE) as server:
        server.wait_log(f"gRPC at 127.0.0.1:{port} with TLS")
        assert asking(port, trusting()) == [7]
        assert is_refused(asking(port, None)) and is_refused(asking(port, trusting(STRANGER)))
        assert handshake(port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(ssl.SSLError, match="EOF|ALERT"):  # by the server, not by the client itself
            handshake(port, ssl.TLSVersion.TLSv1_1)
        assert asking(port, trusting()) == [7] and "Traceback" not in server.log


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_certificate_of_the_page_is_one_for_the_address_of_the_page(port: int, tmp_path: Path) -> None:
    (makes,) = Page(ROOT / "docs" / "grpc.md").commands(__file__)
    subprocess.run(["bash", "-c", makes], cwd=tmp_path, capture_output=True, check=True)
    cert, key = (str(tmp_path / name) for name in ("cert.pem", "key.pem"))
    with serving("gunicorn", SOURCE, "--certfile", cert, "--keyfile", key) as server:
        server.wait_log("with TLS")
        assert asking(port, trusting(cert)) == [7]


def test_clients_have_to_show_a_certificate_where_gunicorn_asks_for_it(port: int) -> None:
    with serving("gunicorn", SOURCE, "--certfile", CERTIFICATE, *MUTUAL) as server:
        server.wait_log("with TLS")
        assert asking(port, trusting(own=CERTIFICATE)) == [7]
        assert is_refused(asking(port, trusting())) and is_refused(asking(port, trusting(own=STRANGER)))


def test_a_reload_brings_a_new_certificate_and_one_that_can_not_be_used_leaves_the_old(
    port: int, tmp_path: Path
) -> None:
    file = tmp_path / "pem"
    file.write_bytes(Path(CERTIFICATE).read_bytes())
    with serving("gunicorn", SOURCE, "--certfile", str(file)) as server:
        server.wait_log("with TLS")
        assert asking(port, trusting()) == [7]
        file.write_bytes(Path(STRANGER).read_bytes())
        (old,) = server.workers()
        server.signal(signal.SIGHUP)
        until(lambda: old not in server.workers(), "the old worker to have left", server)
        assert asking(port, trusting(STRANGER)) == [7] and is_refused(asking(port, trusting()))
        file.write_text("no certificate")
        server.signal(signal.SIGHUP)
        server.wait_log("those from before the reload serve on")
        assert asking(port, trusting(STRANGER)) == [7]


def cfg(**settings: Any) -> Any:
    made = Config()
    for name, value in {"bind": "127.0.0.1:80", **settings}.items():
        made.set(name, value)
    return made


NONE = str(ROOT / "no.pem")
REFUSED = [
    ({"keyfile": CERTIFICATE}, "keyfile: expected certfile beside it"),
    ({"certfile": NONE}, "certfile: [Errno 2] No such file or directory"),
    ({"certfile": CERTIFICATE, "keyfile": NONE}, "keyfile: [Errno 2] No such file"),
    ({"certfile": CERTIFICATE, "keyfile": STRANGER}, "stranger.pem': expected a certificate and its key in PEM: "),
    ({"certfile": CERTIFICATE, "keyfile": STRANGER}, "key values mismatch"),
    ({"certfile": str(ROOT / "README.md")}, "README.md': expected a certificate and its key in PEM"),
    ({"certfile": ENCRYPTED}, "keyfile: expected a key that is not encrypted"),
    ({"certfile": CERTIFICATE, "ciphers": "HIGH"}, "ciphers: gRPC has its own, which GRPC_SSL_CIPHER_SUITES"),
    ({"certfile": CERTIFICATE, "cert_reqs": 1}, "cert_reqs=1: gRPC asks clients for no certificate (0) or has to"),
    ({"certfile": CERTIFICATE, "cert_reqs": 2}, "cert_reqs=2: expected ca_certs"),
    ({"certfile": CERTIFICATE, "cert_reqs": 2, "ca_certs": NONE}, "ca_certs: [Errno 2] No such file"),
    ({"certfile": CERTIFICATE, "cert_reqs": 2, "ca_certs": str(ROOT / "README.md")}, "expected certificates in PEM"),
    ({"certfile": CERTIFICATE, "ssl_context": lambda conf, factory: factory()}, "ssl_context: gRPC makes no SSLCon"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_grpc_can_not_do_and_files_that_do_not_fit_end_the_master_with_a_line(
    port: int, settings: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        grpc_port.keep(cfg(**settings))
    said = capsys.readouterr().err
    assert said.startswith("virtex: ") and says in said and said.count("\n") == 1


def test_what_the_settings_say_is_what_grpc_gets(port: int) -> None:
    pem = Path(CERTIFICATE).read_bytes()
    assert grpc_port.certificate(cfg()) is None
    assert grpc_port.certificate(cfg(certfile=CERTIFICATE)) == (pem, pem, None)
    assert grpc_port.certificate(cfg(certfile=CERTIFICATE, ca_certs=STRANGER)) == (pem, pem, None)  # as HTTPS has it
    stranger = Path(STRANGER).read_bytes()
    both = cfg(certfile=CERTIFICATE, keyfile=CERTIFICATE, ca_certs=STRANGER, cert_reqs=2)
    assert grpc_port.certificate(both) == (pem, pem, stranger)


def test_without_a_port_of_grpc_no_certificate_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(grpc_port.VARIABLE, raising=False)
    grpc_port.keep(cfg(certfile=ENCRYPTED))


def test_a_start_with_a_key_that_grpc_can_not_use_ends_with_a_line_and_asks_for_no_passphrase() -> None:
    where = ("--port", str(free_port()), "--grpc-port", str(free_port()), "--certfile", ENCRYPTED)
    ended = subprocess.run(
        [sys.executable, "-m", "virtex", "serve", "service:app", *where],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    said = ended.stderr + ended.stdout
    assert ended.returncode == 1 and "virtex: keyfile: expected a key that is not encrypted" in said
    assert "Traceback" not in said


def test_a_program_of_ones_own_gives_credentials() -> None:
    pem = Path(CERTIFICATE).read_bytes()

    async def main() -> None:
        app = http_server("same", Same)
        given = grpc.ssl_server_credentials([(pem, pem)])
        async with await serve_grpc(app, port=0, credentials=given) as server:
            assert await asyncio.to_thread(asking, server.port, trusting()) == [7]
            assert is_refused(await asyncio.to_thread(asking, server.port, None))
        await app.shutdown()
        with pytest.raises(OSError, match="or not with these credentials"):
            await serve_grpc(http_server("same", Same), port=0, credentials=grpc.ssl_server_credentials([(b"x", pem)]))

    asyncio.run(main())


@pytest.mark.skipif(not os.environ.get("VIRTEX_V2"), reason="VIRTEX_V2 names no environment with tritonclient")
def test_tritonclient_asks_by_tls(port: int) -> None:
    script = f"""
import numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient("127.0.0.1:{port}", ssl=True, root_certificates={CERTIFICATE!r},
    private_key={CERTIFICATE!r}, certificate_chain={CERTIFICATE!r})
given = triton.InferInput("input", [1], "FP64")
given.set_data_from_numpy(np.float64([7]))
assert client.is_server_ready()
print(client.infer("same", [given]).as_numpy("output"))
"""
    with serving("gunicorn", SOURCE, "--certfile", CERTIFICATE, *MUTUAL) as server:
        server.wait_log("with TLS")
        python = Path(os.environ["VIRTEX_V2"]) / "bin" / "python"
        told = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        assert told.returncode == 0 and told.stdout == "[7.]\n", told.stderr[-2000:]
