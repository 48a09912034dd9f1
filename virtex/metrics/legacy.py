"""The twelve metrics of Virtex 0.1 under their old names, derived from what is counted now: prom_legacy_names=True.

Rules: totals in, families out. What was a summary is one, without quantiles, as nothing was kept of single requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric as Family

from .totals import Histogram, Totals

_COUNTERS: dict[str, Callable[[Totals], float]] = {
    "requests_total": lambda of: sum(of.values("virtex_requests_total").values()),
    "queries_total": lambda of: of.value("virtex_queries_total"),
}
_GAUGES: dict[str, Callable[[Totals], float]] = {
    "request_queue_size": lambda of: of.value("virtex_queue_items"),
    "response_queue_size": lambda of: of.value("virtex_requests_in_flight"),
}
_SUMMARIES: dict[str, Callable[[Totals], tuple[float, float]]] = {  # count and sum
    "queries_per_request": lambda of: _summary(of.histogram("virtex_request_queries")),
    "server_latency_milliseconds": lambda of: _summary(of.histogram("virtex_request_duration_seconds"), 1000),
    "server_throughput_qps": lambda of: _throughput(of, _mean(of.histogram("virtex_request_queries"))),
    "server_throughput_rps": lambda of: _throughput(of, 1),
    "process_request_latency_milliseconds": lambda of: _stage(of, "process_request"),
    "run_inference_latency_milliseconds": lambda of: _stage(of, "run_inference"),
    "process_response_latency_milliseconds": lambda of: _stage(of, "process_response"),
    "inference_batch_size": lambda of: _summary(of.histogram("virtex_batch_size")),
}
NAMES = (*_COUNTERS, *_GAUGES, *_SUMMARIES)


def families(found: dict[str, Totals]) -> Iterator[Family]:
    """Every one of them, with the samples of these services."""
    for name, value in _COUNTERS.items():
        counter = CounterMetricFamily(name, _help(name), labels=["service"])
        for service, of in found.items():
            counter.add_metric([service], value(of))
        yield counter
    for name, value in _GAUGES.items():
        gauge = GaugeMetricFamily(name, _help(name), labels=["service"])
        for service, of in found.items():
            gauge.add_metric([service], value(of))
        yield gauge
    for name, pair in _SUMMARIES.items():
        summary = SummaryMetricFamily(name, _help(name), labels=["service"])
        for service, of in found.items():
            count, total = pair(of)
            summary.add_metric([service], count, total)  # type: ignore[arg-type]  # the library says int
        yield summary


def _help(name: str) -> str:
    return f"{name} of Virtex 0.1; docs/migrating.md says what to use instead."


def _summary(seen: Histogram, scale: float = 1) -> tuple[float, float]:
    return float(sum(seen.counts)), scale * seen.sum


def _stage(of: Totals, stage: str) -> tuple[float, float]:
    return _summary(of.histogram("virtex_stage_duration_seconds", stage), 1000)


def _mean(seen: Histogram) -> float:
    return seen.sum / (sum(seen.counts) or 1)


def _throughput(of: Totals, scale: float) -> tuple[float, float]:
    """One over each request's duration, as 0.1 saw throughput: a request counts as the middle of its bucket."""
    seen = of.histogram("virtex_request_duration_seconds")
    highs = (*seen.bounds, seen.bounds[-1])
    lows = (highs[0] / 2, *highs)
    total = sum(count / sqrt(low * high) for count, low, high in zip(seen.counts, lows, highs, strict=False))
    return float(sum(seen.counts)), scale * total
