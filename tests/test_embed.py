"""examples/embed.py does what it says."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys

import orjson
import pytest
from kit import needs
from kit.servers import ROOT, free_port, listens, until

COMMAND = [sys.executable, str(ROOT / "examples" / "embed.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "LOG_LEVEL": "WARNING"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_example_serves_http_beside_another_protocol_and_ends_cleanly_with_clients_connected(number):
    http_port, line_port = free_port(), free_port()
    command = [*COMMAND, str(http_port), str(line_port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or (listens(http_port) and listens(line_port)), "both ports")
        connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=10)
        connection.request("POST", "/", b'{"data":["some text",""]}')
        assert connection.getresponse().read() == b'{"data":[2,0],"error":null}'
        with socket.create_connection(("127.0.0.1", line_port), 10) as sock:
            sock.sendall(b"three more words\n")
            assert sock.recv(10) == b"3\n"
            process.send_signal(number)
            assert process.wait(10) == 0
            assert process.stderr.read() == b"" and sock.recv(10) == b""
        connection.close()
    finally:
        process.kill()
        process.communicate()


def is_ready(connection):
    connection.request("GET", "/health/ready")
    response = connection.getresponse()
    response.read()
    return response.status == 200


def test_example_encodes_token_ids_on_a_device_for_both_protocols():
    needs.found("torch")
    http_port, line_port = free_port(), free_port()
    command = [*COMMAND, str(http_port), str(line_port), "--device", "cpu", "--layers", "1"]
    process = subprocess.Popen(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or (listens(http_port) and listens(line_port)), "both ports")
        connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=60)
        until(lambda: process.poll() is not None or is_ready(connection), "it to be ready")
        connection.request("POST", "/", b'{"data":[[101,7592,2088,102,0,0,0,0,0,0],[1,2,3]]}')
        response = connection.getresponse()
        assert response.status == 422 and b"item 1" in response.read()
        connection.request("POST", "/", b'{"data":[[101,7592,2088,102,0,0,0,0,0,0]]}')
        (vector,) = orjson.loads(connection.getresponse().read())["data"]
        assert len(vector) == 768
        with socket.create_connection(("127.0.0.1", line_port), 60) as sock, sock.makefile("rb") as lines:
            sock.sendall(b"101 7592 2088 102 0 0 0 0 0 0\n1 2 three\n")
            came = [float(word) for word in lines.readline().split()]
            assert came == pytest.approx(vector, rel=1e-3, abs=1e-4)
            assert lines.readline().startswith(b"error: ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        connection.close()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arguments", [(), ("8080",), ("8080", "http")])
def test_example_says_how_it_is_called(arguments):
    ended = subprocess.run([*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("usage: embed.py") and "Traceback" not in ended.stderr
