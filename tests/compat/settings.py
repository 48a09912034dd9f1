"""What the pairs read from their environment, by the names that virtex-benchmarks gave it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from pprint import pprint
from typing import Any

DATA = Path(__file__).parent / "data"


def number(name: str, otherwise: float) -> float:
    return float(os.getenv(name, otherwise))


def of_service(batch: int) -> dict[str, Any]:
    """The arguments of http_server(). batch: the largest one, where the environment names none."""
    return {
        "max_batch_size": int(number("MAX_BATCH_SIZE", batch)),
        "max_time_on_queue": number("MAX_TIME_ON_QUEUE", 0.01),
        "prom_host": os.getenv("PROMETHEUS_HOST", "http://127.0.0.1"),
        "prom_port": int(number("PROMETHEUS_PORT", 9090)),
        "prom_mode": os.getenv("PROMETHEUS_MODE", "off"),
        "prom_push_interval": number("PROMETHEUS_INTERVAL", 0.05),
    }


def load_test(items: list[Any], encode: Callable[[Any], Any] | None = None) -> None:
    """Send NUM_QUERIES items, taken from the given ones in turn, REQUEST_BATCH_SIZE a message; print the metrics."""
    from virtex import HttpLoadTest, HttpMessage

    count, size = int(number("NUM_QUERIES", 9000)), int(number("REQUEST_BATCH_SIZE", 6))
    queries = [items[n % len(items)] for n in range(count)]
    messages = [HttpMessage(data=queries[first : first + size]) for first in range(0, count, size)]
    for message in messages:
        if encode:
            message.encode(encode)
        assert message.validate()
    url = f"{os.getenv('VIRTEX_SVC_NAME', 'http://127.0.0.1')}:{os.getenv('VIRTEX_SVC_PORT', '8081')}"
    rate = int(number("CLIENT_REQUESTS_PER_SECOND", 3500))
    result = HttpLoadTest().run(url, messages, requests_per_second=rate)
    pprint(result.metrics.dict(), indent=3)
