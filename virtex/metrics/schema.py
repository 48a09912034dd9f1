"""The metrics: their names, labels and buckets, and where each has its cells in a block.

Rules: values only. A block is a row of cells, whole numbers of 64 bits: one for a counter or gauge, for a histogram one
for each bucket, the one without a bound included, and one for the sum. Seconds are kept as nanoseconds.
"""

from __future__ import annotations

from typing import NamedTuple

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
CODES = range(200, 600)  # statuses that a service may answer: one cell for each, whether it ever does or not
STAGES = ("decode", "process_request", "run_inference", "process_response", "encode")
CUTS = ("full", "no company", "time", "drain")
# Why a request ends otherwise than with rows: DROPS for the moment's sake, ERRORS for its own or the handler's
DROPS = ("full", "predicted", "deadline", "disconnect", "draining")
ERRORS = ("protocol", "slow", "denied", "path", "type", "size", "message", "item", "handler", "server")

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = tuple(float(1 << power) for power in range(13))


class Metric(NamedTuple):
    """One metric. label: its label beside `service`, or ""; values: what that may be, () for a code.

    bounds: of a histogram, the upper bounds of its buckets, in the metric's unit; () for others.
    """

    name: str
    kind: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric(
        "virtex_requests_total",
        COUNTER,
        "Requests that were answered, by status; those to /health/ and /metrics are left out.",
        "code",
    ),
    Metric("virtex_queries_total", COUNTER, "Items of the requests that were answered with 200."),
    Metric("virtex_request_queries", HISTOGRAM, "Items in a request that was answered with 200.", bounds=SIZES),
    Metric(
        "virtex_request_duration_seconds",
        HISTOGRAM,
        "From the end of a request's headers until its answer is there to be written.",
        bounds=SECONDS,
    ),
    Metric("virtex_queue_wait_seconds", HISTOGRAM, "How long an item waited until its batch was cut.", bounds=SECONDS),
    Metric(
        "virtex_stage_duration_seconds",
        HISTOGRAM,
        "How long a stage took: decode and encode once a request, the handler's methods once a batch.",
        "stage",
        STAGES,
        SECONDS,
    ),
    Metric("virtex_batch_size", HISTOGRAM, "Items in a batch.", bounds=SIZES),
    Metric("virtex_batches_total", COUNTER, "Batches, by why they were cut.", "cut", CUTS),
    Metric("virtex_queue_items", GAUGE, "Items that wait for a batch."),
    Metric("virtex_queue_bytes", GAUGE, "Bytes that those items take."),
    Metric("virtex_requests_in_flight", GAUGE, "Requests that were taken and have no answer yet."),
    Metric("virtex_dropped_requests_total", COUNTER, "Requests that got no answer of the model.", "reason", DROPS),
    Metric(
        "virtex_request_errors_total",
        COUNTER,
        "Requests that were answered with an error of their own or of the handler, by what it was.",
        "reason",
        ERRORS,
    ),
    Metric("virtex_retries_total", COUNTER, "Calls of the handler that were repeated to find whose item failed."),
    Metric("virtex_executor_busy_seconds_total", COUNTER, "Seconds in which a batch was out with the executor."),
    Metric("virtex_open_connections", GAUGE, "Connections that are open."),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def is_in_seconds(metric: Metric) -> bool:
    """Whether its cells hold nanoseconds."""
    return "_seconds" in metric.name


def labels_of(metric: Metric) -> tuple[str, ...]:
    """What its label may be, ("",) where it has none."""
    return tuple(map(str, CODES)) if metric.label == "code" else metric.values or ("",)


def _layout() -> tuple[dict[tuple[str, str], int], int]:
    places, at = {}, 0
    for metric in METRICS:
        for label in labels_of(metric):
            places[metric.name, label] = at
            at += len(metric.bounds) + 2 if metric.bounds else 1
    return places, at


PLACES, CELLS = _layout()  # where a metric's cells begin, by its name and label; how many cells a block has
