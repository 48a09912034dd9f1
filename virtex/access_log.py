"""gunicorn's access log, one line for each answer."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from .writer import Turn, Writer


class AccessLog:
    """Writes gunicorn's access log; made only if one is wanted, for it costs more than many an answer."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __call__(self, connection: Writer, turn: Turn, status: int, length: int, ns: int) -> None:
        request = turn.request
        if request is None:
            return
        client = connection.ends.client
        # The target as it came, not decoded: llhttp let no control character pass, so no line can be forged.
        path, _, query = request.target.decode("latin-1").partition("?")
        environ = {
            "REQUEST_METHOD": request.method,
            "RAW_URI": request.target.decode("latin-1"),
            "SERVER_PROTOCOL": f"HTTP/1.{request.minor}",
            "REMOTE_ADDR": client[0] if client else "-",
            "PATH_INFO": path,
            "QUERY_STRING": query,
        }
        for name, value in request.headers:
            environ["HTTP_" + name.decode().upper().replace("-", "_")] = value.decode("latin-1")
        reply = SimpleNamespace(status=str(status), headers=(), sent=length)
        sent = [(name.decode().title(), value.decode("latin-1")) for name, value in request.headers]
        self._log.access(reply, SimpleNamespace(headers=sent), environ, timedelta(microseconds=ns // 1000))
