"""What Prometheus reads: the totals of services, and the user's own metrics, as text or as OpenMetrics.

Rules: reads a board and changes nothing; of HTTP it knows a header, Accept. Nothing is kept between two scrapes.
"""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

from .. import __version__
from . import legacy
from .board import Board, here, name_of
from .schema import COUNTER, GAUGE, METRICS, Metric, labels_of
from .totals import Histogram, Totals, totals, workers

log = logging.getLogger("virtex")

WORKERS = "virtex_workers"

# A version that prometheus_client can't compare, or would repeat in its Content-Type though it knows no such format
_ODD_VERSION = re.compile(r"(?:^|;)\s*version=(?![0-9]{1,4}(?:\.[0-9]{1,4}){0,3}\s*(?:;|$))")


class Ours:
    """The metrics of services. names: which; those that are True have the names of Virtex 0.1, too."""

    def __init__(self, names: dict[str, bool], board: Board | None = None) -> None:
        self.names = names
        self._board = board

    def collect(self) -> Iterator[Family]:
        """Every family, with each service's samples."""
        board = self._board or here()
        everything = totals(board)
        found = {name: everything[key] for name in self.names if (key := name_of(name).decode()) in everything}
        ready = sum(worker.state == "ready" for worker in workers(board))
        yield InfoMetricFamily(
            "virtex_build", "What runs.", {"version": __version__, "python": platform.python_version()}
        )
        count = GaugeMetricFamily(WORKERS, "Workers that are ready.", labels=["service"])
        for name in self.names:
            count.add_metric([name], ready)
        yield count
        for metric in METRICS:
            yield family(metric, found)
        old = {name: found[name] for name in found if self.names[name]}
        if old:
            yield from legacy.families(old)


def family(metric: Metric, found: dict[str, Totals]) -> Family:
    """One metric of several services."""
    labels = ["service", metric.label] if metric.label else ["service"]
    if metric.bounds:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for name, of in found.items():
            for label in labels_of(metric):
                seen = of.histogram(metric.name, label)
                histogram.add_metric([name, label][: len(labels)], buckets(seen), seen.sum)
        return histogram
    kind = {COUNTER: CounterMetricFamily, GAUGE: GaugeMetricFamily}[metric.kind]
    plain: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.help, labels=labels)
    for name, of in found.items():
        values = of.values(metric.name) if metric.label else {"": of.value(metric.name)}
        for label, value in values.items():
            plain.add_metric([name, label][: len(labels)], value)
    return plain


def buckets(seen: Histogram) -> list[tuple[str, float]]:
    """Of a histogram, as the format counts: each bucket with all below it."""
    bounds = [*map(floatToGoString, seen.bounds), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, accumulate(seen.counts), strict=True)]


class Theirs:
    """The user's own metrics: what stands in prometheus_client's registry but for what it puts there itself.

    With PROMETHEUS_MULTIPROC_DIR they are those of all workers, without it those of this process.
    """

    def __init__(self) -> None:
        built_in = (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR)
        self._built_in = {each.name for collector in built_in for each in collector.collect()}

    def collect(self) -> Iterable[Family]:
        """Every family. One that can't be had is logged and left out: ours are read all the same."""
        try:
            if is_shared():
                return list(MultiProcessCollector(None).collect())  # type: ignore[no-untyped-call]
            return [family for family in REGISTRY.collect() if family.name not in self._built_in]
        except Exception:
            log.exception("the metrics of the handler could not be read")
            return []


def is_shared() -> bool:
    """Whether the user's own metrics are kept where each worker can read those of all."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def registry_of(ours: Ours) -> CollectorRegistry:
    """What is read together."""
    registry = CollectorRegistry()
    registry.register(ours)
    registry.register(Theirs())
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """The content type and the text. accept: the header of that name, "" where there is none."""
    encode, content_type = choose_encoder(readable(accept))
    return content_type, encode(registry)


def readable(accept: str) -> str:
    """An Accept without what asks for a version that is none: choose_encoder() would raise, or repeat it."""
    if "version" not in accept:
        return accept
    return ",".join(each for each in accept.split(",") if not _ODD_VERSION.search(each))
