"""What the examples share: one of their services under gunicorn, on the loopback, for as long as it is asked.

With --serve such a script does what a server.py of your own does with app.run() alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from loadtest import HELP, load_test
from tqdm import tqdm

from virtex import HttpClient, HttpMessage

START_SECONDS = 120.0  # until the service is ready; importing torch or scikit-learn on a busy machine takes long
HOST = "127.0.0.1"
SERVE_PORT = 8000  # of --serve


def run(
    app: str,
    about: str | None,
    show: Callable[[HttpClient], None],
    messages: Callable[[], Sequence[HttpMessage]],
    rate: int,
    *,
    serve: Callable[..., NoReturn] | None = None,
    path: str = "/",
) -> int:
    """Start the service `app`, have `show` ask it, stop it; what such a script exits with.

    about: for --help. messages, rate: what --loadtest sends instead, and how many of them a second. serve: the app's
    run(), for --serve; what is no service of Virtex has none. path: of the service that is asked.
    """
    arguments = parse(about, can_serve=serve is not None)
    if serve is not None and arguments.serve:
        serve(port=arguments.port or SERVE_PORT, workers=arguments.workers)
    stop_on_sigterm()
    port = arguments.port or free_port()
    try:
        with gunicorn(app, port, arguments.workers) as process:
            wait_until_ready(process, port, path)
            url = f"http://{HOST}:{port}{path}"
            if arguments.loadtest:
                load_test(url, messages(), rate)
                return 0
            with HttpClient(url, raise_errors=True) as client:
                show(client)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def parse(about: str | None, can_serve: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = f"a free port; {SERVE_PORT} with --serve" if can_serve else "a free port"
    parser.add_argument("--port", type=int, default=0, help=f"where it listens on {HOST} (default: {where})")
    parser.add_argument("--workers", type=int, default=1, help="gunicorn workers (default: %(default)s)")
    parser.add_argument("--loadtest", action="store_true", help=HELP)
    if can_serve:
        parser.add_argument("--serve", action="store_true", help="serve until Ctrl-C, as app.run() does")
    return parser.parse_args()


def stop_on_sigterm() -> None:
    """End by an exception on SIGTERM, so that the server is stopped then too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextlib.contextmanager
def gunicorn(app: str, port: int, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """The service on a port of the loopback interface, stopped by its pid at the end."""
    command = [sys.executable, "-m", "gunicorn", app, "-k", "virtex.VirtexWorker", "-w", str(workers)]
    command += ["--bind", f"{HOST}:{port}", "--chdir", str(Path(__file__).parent), "--log-level", "warning"]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and see that it did."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SystemExit("the server was still running 40 s after SIGTERM: killed") from None
    # Ctrl-C reached it too, and gunicorn that is ending already may die of the SIGTERM above.
    if process.returncode not in (0, -signal.SIGTERM):
        raise SystemExit(f"the server ended with exit status {process.returncode}; its log is above")


def wait_until_ready(process: subprocess.Popen[bytes], port: int, path: str = "/") -> None:
    """Wait for /health/ready of the service at `path` to be 200; exits where the server ended, or took too long."""
    began = time.monotonic()
    with tqdm(total=None, desc="waiting for the workers to be ready", bar_format="{desc}: {elapsed}") as bar:
        while (status := health(port, path)) != 200:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with exit status {process.returncode} before it was ready")
            if time.monotonic() - began > START_SECONDS:
                raise SystemExit(
                    f"not ready after {START_SECONDS:g} s: {path}health/ready answered {status or 'nothing'}"
                )
            time.sleep(0.05)
            bar.update()


def health(port: int, path: str) -> int:
    """The status of /health/ready of the service at `path`, or 0 where nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", f"{path}health/ready")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
