"""One of several processes of a load test: told by its parent what to send, it tells what it found.

Rules: ends when its parent does: the link between them is then at its end, and drive.py watches it.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from .drive import Drive


def main(fd: int) -> None:
    """Work for the parent at the other end of a socket."""
    link = Connection(fd)
    try:
        plan, address, index = link.recv()
        with Drive(plan, address, index, watch=fd) as drive:
            drive.warm_up()
            link.send("warm")
            link.send(drive.run(link.recv(), link.send))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise SystemExit("the process that started the load test is gone") from None
