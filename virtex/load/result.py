"""HttpLoadTest and what it gives, by the names of the first Virtex.

Rules: figures here are computed from every request's own times, not from a histogram's buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import nan
from typing import Any, Literal, Self

import numpy as np

from ..message import HttpMessage
from ..posting.outcomes import failed, reply_of
from .lane import KINDS
from .payloads import Payload, payload_of
from .plan import Plan
from .record import Answer, Slice
from .run import Run, run

PERCENTILES = (50, 90, 95, 99)
OLD_NAMES = {"num_data": "num_queries", "server_data_per_second": "server_queries_per_second"}  # of 0.1.4


@dataclass
class LoadTestMetrics:
    """The figures of a load test, times in seconds; nan is what was not measured.

    num_requests: messages that were sent. num_queries: items in them. test_duration_seconds: from when the first was to
    be sent to the last answer. client_requests_per_second: how fast they were sent. server_requests_per_second: how
    fast they were answered, errors too. server_queries_per_second: the same in items. server_latency_mean_seconds: of
    the response time: from when a request was to be sent until its answer was there, or its error.
    server_latency_std_seconds: its deviation. server_latency_max_seconds: the longest. server_latency_p50_seconds: what
    half did not exceed. server_latency_p90_seconds: what 90 % did not. server_latency_p95_seconds: what 95 % did not.
    server_latency_p99_seconds: what 99 % did not. server_mean_latency_seconds: 0.1.4's name of the mean.
    service_time_mean_seconds: of the service time: from when a request was in fact sent. service_time_std_seconds: its
    deviation. service_time_max_seconds: the longest. service_time_p50_seconds: what half did not exceed.
    service_time_p90_seconds: what 90 % did not. service_time_p95_seconds: what 95 % did not. service_time_p99_seconds:
    what 99 % did not. client_kept_rate: whether the client sent in time. client_fault: if not, how far it was off.
    """

    num_requests: int
    num_queries: int
    test_duration_seconds: float
    client_requests_per_second: float
    server_requests_per_second: float
    server_queries_per_second: float
    server_latency_mean_seconds: float = nan
    server_latency_std_seconds: float = nan
    server_latency_max_seconds: float = nan
    server_latency_p50_seconds: float = nan
    server_latency_p90_seconds: float = nan
    server_latency_p95_seconds: float = nan
    server_latency_p99_seconds: float = nan
    server_mean_latency_seconds: float = nan
    service_time_mean_seconds: float = nan
    service_time_std_seconds: float = nan
    service_time_max_seconds: float = nan
    service_time_p50_seconds: float = nan
    service_time_p90_seconds: float = nan
    service_time_p95_seconds: float = nan
    service_time_p99_seconds: float = nan
    client_kept_rate: bool = True
    client_fault: str = ""

    @property
    def num_data(self) -> int:
        """0.1.4's name of num_queries."""
        return self.num_queries

    @property
    def server_data_per_second(self) -> float:
        """0.1.4's name of server_queries_per_second."""
        return self.server_queries_per_second

    def dict(self) -> dict[str, Any]:
        """Every figure by its name."""
        return asdict(self)

    @classmethod
    def build(
        cls, timestamps: Sequence[tuple[float, float]], num_queries: int, client_load: float | None = None
    ) -> Self:
        """The figures of requests.

        timestamps: of each request its start and its end, in seconds. num_queries: items of all. client_load: requests
        per second that were sent, where the starts don't tell. Raises ValueError for no timestamps.
        """
        if not len(timestamps):
            raise ValueError("timestamps: expected at least one (start, end)")
        starts, ends = np.asarray(timestamps, np.float64).T
        count, duration = len(starts), float(ends.max() - starts.min())
        if client_load is None:
            client_load = _rate_of(starts)
        metrics = cls(
            num_requests=count,
            num_queries=num_queries,
            test_duration_seconds=duration,
            client_requests_per_second=client_load,
            server_requests_per_second=count / duration if duration else nan,
            server_queries_per_second=num_queries / duration if duration else nan,
        )
        metrics._set("server_latency", ends - starts)
        metrics.server_mean_latency_seconds = metrics.server_latency_mean_seconds
        return metrics

    @classmethod
    def build_from_dict(cls, metrics_dict: Mapping[str, Any]) -> Self:
        """What dict() gave, here, in 0.1.5-rc.1 or in 0.1.4.

        metrics_dict: figures by their names; those that it lacks are nan. Raises TypeError for a name that is none.
        """
        return cls(**{OLD_NAMES.get(name, name): value for name, value in metrics_dict.items()})

    def _set(self, what: str, seconds: np.ndarray) -> None:
        found = {"mean": seconds.mean(), "std": seconds.std(), "max": seconds.max()}
        found |= {f"p{q}": np.percentile(seconds, q) for q in PERCENTILES}
        for name, value in found.items():
            setattr(self, f"{what}_{name}_seconds", float(value))


def _rate_of(starts: np.ndarray) -> float:
    span = float(starts.max() - starts.min())
    return (len(starts) - 1) / span if span else nan


@dataclass
class LoadTestResult:
    """What HttpLoadTest.run() gives: `result.metrics` and `result.responses`, or `responses, metrics = result`.

    metrics: the figures. responses: an HttpMessage for each message, in their order; where none came, its `.error` says
    why. num_errors: how many of them are errors. run: all that was found, with histograms, kinds of errors and seconds;
    None where the result was built from a dict.
    """

    metrics: LoadTestMetrics
    responses: Sequence[HttpMessage]
    num_errors: int
    run: Run | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Any]:
        """0.1.4 gave a tuple, of responses and metrics."""
        return iter((self.responses, self.metrics))

    @classmethod
    def build(cls, metrics: LoadTestMetrics, responses: Sequence[HttpMessage]) -> Self:
        """A result from its parts.

        metrics: the figures. responses: HttpMessages, of which those with an `.error` are counted.
        """
        return cls(metrics, responses, sum(bool(response.error) for response in responses))

    def dict(self) -> dict[str, Any]:
        """metrics, num_errors and responses, for build_from_dict()."""
        return {"metrics": self.metrics.dict(), "num_errors": self.num_errors, "responses": self.responses}

    @classmethod
    def build_from_dict(cls, result_dict: Mapping[str, Any]) -> Self:
        """What dict() gave. result_dict: metrics, num_errors, responses."""
        metrics = LoadTestMetrics.build_from_dict(result_dict["metrics"])
        return cls(metrics, result_dict["responses"], result_dict["num_errors"])


class HttpLoadTest:
    """Sends messages at a given rate, whether earlier ones were answered or not, and says how long answers took.

    Works in plain code, in a thread, in a notebook and within a coroutine, which it blocks: it needs no event loop. May
    be shared.
    """

    def run(
        self,
        url: str,
        messages: Sequence[HttpMessage],
        requests_per_second: float = 3500,
        *,
        arrivals: Literal["constant", "poisson"] = "constant",
        warmup: float = 0.5,
        connections: int = 1000,
        processes: int = 1,
        timeout: float = 30.0,
        seed: int = 0,
        headers: Mapping[str, str] | None = None,
        progress: Callable[[Slice], object] | None = None,
    ) -> LoadTestResult:
        """Send each message once, and wait for every answer.

        url: where to POST, http:// or https://. messages: what to send, each once, in this order.
        requests_per_second: the rate at which they are to be sent. arrivals: "constant", or "poisson", as independent
        users send. warmup: seconds beforehand in which messages are sent that don't count, each once at most; 0 for
        none. connections: how many at most; a message that finds none free waits, and its time counts. processes: how
        many send. timeout: seconds from when a message was to be sent until it is given up. seed: of poisson's
        arrivals. headers: sent with every request. progress: called about once a second with what came in that second.

        Raises TypeError for what is no message, ValueError for no messages, a URL or a number that can't be meant,
        OSError where the URL's host is not found. Whatever befalls a request is the `.error` of its response.
        """
        plan = Plan(
            url,
            _payloads(messages),
            rate=requests_per_second,
            connections=connections,
            arrivals=arrivals,
            count=len(messages),
            warmup=warmup,
            processes=processes,
            timeout=timeout,
            seed=seed,
            headers=headers or {},
            keep=True,
        )
        return _result(run(plan, progress))


def _payloads(messages: Sequence[HttpMessage]) -> list[Payload]:
    if isinstance(messages, (HttpMessage, str, bytes)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: expected a sequence of HttpMessages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages: expected at least one")
    return [payload_of(message) for message in messages]


def _result(found: Run) -> LoadTestResult:
    answers = found.answers
    queries = sum(payload.items for payload in found.plan.payloads)
    metrics = LoadTestMetrics.build([(answer.scheduled / 1e9, answer.done / 1e9) for answer in answers], queries)
    sent = np.array([answer.sent for answer in answers if answer.sent])
    done = np.array([answer.done for answer in answers if answer.sent])
    if len(sent):
        metrics.client_requests_per_second = _rate_of(sent / 1e9)
        metrics._set("service_time", (done - sent) / 1e9)
    metrics.client_kept_rate, metrics.client_fault = found.client_kept_rate, found.why_not
    result = LoadTestResult.build(metrics, [message_of(answer, found.plan) for answer in answers])
    result.run = found
    answers.clear()  # the responses have them
    return result


def message_of(answer: Answer, plan: Plan) -> HttpMessage:
    """The message of an answer, or one whose error says what came instead."""
    if answer.status:
        return reply_of(plan.url, answer.status, answer.body)
    within = f" within {plan.timeout:g} s" if answer.error in ("timeout", "unsent") else ""
    return failed(f"{plan.url}: {KINDS[answer.error]}{within}")
