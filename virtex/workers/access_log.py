"""gunicorn's access log, one line for each answer, with atoms for its request's id, items, wait and batch.

Rules: knows heads, and gunicorn's logger; nothing of connections.
"""

from __future__ import annotations

from base64 import b64decode
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from ..service.seam import BaseExchange, Head
from ..wire.connections import Ends

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


class AccessLog:
    """Writes gunicorn's access log. Made only if one is wanted: a line of it costs more than a small answer."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __call__(
        self,
        ends: Ends,
        head: Head,
        status: int,
        length: int,
        ns: int,
        request_id: bytes = b"",
        exchange: BaseExchange | None = None,
    ) -> None:
        # As it came, not decoded
        target, client = _shown(head.target), ends.client[0] if ends.client else ""
        self._write(client, f"HTTP/1.{head.minor}", target, head, status, length, ns, request_id, exchange)

    def of_call(
        self, client: str, head: Head, code: int, length: int, ns: int, request_id: bytes, exchange: BaseExchange | None
    ) -> None:
        """Of gRPC. code: how it ended, 0 for OK. length: of its answers."""
        self._write(client, "HTTP/2", head.path, head, code, length, ns, request_id, exchange)

    def _write(
        self,
        client: str,
        protocol: str,
        target: str,
        head: Head,
        status: int,
        length: int,
        ns: int,
        request_id: bytes,
        exchange: BaseExchange | None,
    ) -> None:
        path, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": head.method,
            "RAW_URI": target,
            "SERVER_PROTOCOL": protocol,
            "REMOTE_ADDR": client or "-",
            "PATH_INFO": path,
            "QUERY_STRING": query,
        }
        if exchange is not None and exchange.count:
            environ["virtex.items"] = str(exchange.count)
        if exchange is not None and exchange.cut_at:
            environ["virtex.queue_wait"] = f"{(exchange.cut_at - exchange.born) / 1e9:.6f}"
            environ["virtex.batch_size"] = str(exchange.batch_size)
        for name, value in head.headers:
            environ["HTTP_" + name.decode().upper().replace("-", "_")] = _shown(value)
        if _breaks_line(environ.get("HTTP_AUTHORIZATION", "")):
            del environ["HTTP_AUTHORIZATION"]
        answered = [("X-Request-Id", _shown(request_id))] if request_id else []
        reply = SimpleNamespace(status=str(status), headers=answered, sent=length)
        sent = [(name.decode().title(), _shown(value)) for name, value in head.headers]
        self._log.access(reply, SimpleNamespace(headers=sent), environ, timedelta(microseconds=ns // 1000))


def access_of(log: Any) -> AccessLog | None:
    """What writes the access log; None where nobody wants it. log: gunicorn's, which counts requests for statsd."""
    return AccessLog(log) if log.access_log_enabled or type(log).access is not Logger.access else None


def _shown(sent: bytes) -> str:
    """On one line, whatever it is: HTTP lets a tab pass, grpc all control characters."""
    text = sent.decode("ascii", "backslashreplace")
    return text if text.isprintable() else text.translate(_CONTROLS)


def _breaks_line(credentials: str) -> bool:
    """Whether the user's name that gunicorn would read there could end the line of the log, or the reader's screen."""
    if credentials[:5].lower() == "basic":
        with suppress(ValueError):  # gunicorn reads none there, too
            return not b64decode(credentials.partition(" ")[2].strip()).partition(b":")[0].decode().isprintable()
    return False
