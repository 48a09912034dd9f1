"""What a Virtex service says of itself: GET / and GET /metrics/live. Any other service says nothing, which is no error.

Rules: a few requests before and after a test, none during it.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from .plan import split
from .report import Sizes

SECONDS = 5.0  # for an answer


def ask(url: str, path: str, headers: Mapping[str, str]) -> Any:
    """The JSON that a GET of a path is answered, on the host of the URL; None where there is no such answer."""
    at, (target, _, _) = split(url)
    kind = http.client.HTTPSConnection if target.scheme == b"https" else http.client.HTTPConnection
    connection = kind(target.host.decode(), target.port, timeout=SECONDS)
    try:
        if at:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(SECONDS)
            connection.sock.connect(at)
        connection.request("GET", path, headers={"accept": "application/json", **headers})
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def metrics(url: str, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """The totals of a service over all its workers, by the names of docs/metrics.md; None where it has none."""
    answer = ask(url, "/metrics/live", headers)
    found = answer.get("metrics") if isinstance(answer, dict) else None
    return found if isinstance(found, dict) and "virtex_batch_size" in found else None


def sizes_between(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Sizes | None:
    """The batches that were run between two looks at the metrics; None where one is missing, or there was none."""
    if before is None or after is None:
        return None
    was, now = before["virtex_batch_size"], after["virtex_batch_size"]
    counts = tuple(int(b - a) for a, b in zip(was["counts"], now["counts"], strict=True))
    if min(counts) < 0 or not any(counts):  # negative: the service was started again
        return None
    return Sizes(tuple(now["bounds"]), counts, now["sum"] - was["sum"])
