"""examples/embed.py does what it says."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys

from servers import ROOT, free_port, listens, until


def test_example_serves_http_beside_another_protocol():
    http_port, line_port = free_port(), free_port()
    command = [sys.executable, str(ROOT / "examples" / "embed.py"), str(http_port), str(line_port)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or (listens(http_port) and listens(line_port)), "both ports")
        connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=10)
        connection.request("POST", "/", b'{"data":["some text",""]}')
        assert connection.getresponse().read() == b'{"data":[2,0],"error":null}'
        with socket.create_connection(("127.0.0.1", line_port), 10) as sock:
            sock.sendall(b"three more words\n")
            assert sock.recv(10) == b"3\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, process.stderr.read()
        connection.close()
    finally:
        process.kill()
        process.communicate()
