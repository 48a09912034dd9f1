"""HttpLoadTest and what it gives, as the users of 0.1.4 and of 0.1.5-rc.1 wrote against it, and exact figures."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from kit.peer import Link, always, answering, echo, message, reply
from kit.servers import ECHO, free_port, serving

from virtex import HttpLoadTest, HttpMessage, LoadTestMetrics, LoadTestResult
from virtex.load.payloads import payload_of
from virtex.load.plan import Plan
from virtex.load.record import Answer
from virtex.load.result import message_of

OF_RC1 = {
    "num_requests": 3,
    "num_queries": 6,
    "test_duration_seconds": 2.0,
    "client_requests_per_second": 2.5,
    "server_requests_per_second": 1.5,
    "server_queries_per_second": 3.0,
    "server_latency_mean_seconds": 0.25,
    "server_latency_std_seconds": 0.1,
    "server_latency_max_seconds": 0.5,
    "server_latency_p50_seconds": 0.2,
    "server_latency_p90_seconds": 0.3,
    "server_latency_p95_seconds": 0.4,
    "server_latency_p99_seconds": 0.5,
}
OF_0_1_4 = {
    "num_requests": 3,
    "num_data": 6,
    "test_duration_seconds": 2.0,
    "client_requests_per_second": 2.5,
    "server_requests_per_second": 1.5,
    "server_data_per_second": 3.0,
    "server_mean_latency_seconds": 0.25,
}


def numbered(count: int) -> list[HttpMessage]:
    return [message(n, n) for n in range(count)]


def load(url: str, messages: list[HttpMessage], rate: float = 500, **options: Any) -> LoadTestResult:
    """A peer has a thread for each of 40 connections."""
    return HttpLoadTest().run(url, messages, rate, **({"connections": 30} | options))


# As their users wrote


def test_as_written_for_0_1_4() -> None:
    with serving("serve", ECHO) as server:
        responses, metrics = HttpLoadTest().run(f"http://127.0.0.1:{server.port}", numbered(50), 500)
    assert [response.data for response in responses] == [[n, n] for n in range(50)]
    assert (metrics.num_requests, metrics.num_data) == (50, 100)
    assert metrics.server_mean_latency_seconds == metrics.server_latency_mean_seconds
    assert metrics.server_data_per_second == metrics.server_queries_per_second
    assert set(OF_0_1_4) - {"num_data", "server_data_per_second"} <= set(metrics.dict())
    built = LoadTestMetrics.build([(0.0, 0.5), (0.5, 1.0)], 4, 2.5)
    assert built.client_requests_per_second == 2.5
    old = LoadTestMetrics.build_from_dict(OF_0_1_4)
    assert {name: getattr(old, name) for name in OF_0_1_4} == OF_0_1_4
    assert math.isnan(old.server_latency_p99_seconds)


def test_as_written_for_0_1_5() -> None:
    with serving("serve", ECHO) as server:
        url = f"http://127.0.0.1:{server.port}"
        result = HttpLoadTest().run(url=url, messages=numbered(50), requests_per_second=500)
    assert isinstance(result, LoadTestResult)
    assert isinstance(result.metrics, LoadTestMetrics)
    assert result.num_errors == 0
    assert [response.data for response in result.responses] == [[n, n] for n in range(50)]
    assert (result.metrics.num_requests, result.metrics.num_queries) == (50, 100)
    assert set(OF_RC1) <= set(result.metrics.dict())
    again = LoadTestResult.build_from_dict(result.dict())
    assert again == result
    assert again.responses == result.responses
    old = LoadTestMetrics.build_from_dict(OF_RC1)
    assert {name: getattr(old, name) for name in OF_RC1} == OF_RC1
    rebuilt = LoadTestResult.build_from_dict({"metrics": OF_RC1, "num_errors": 1, "responses": [message(1)]})
    assert (rebuilt.metrics, rebuilt.num_errors) == (old, 1)
    built = LoadTestResult.build(metrics=old, responses=[message(1), HttpMessage(error="broken")])
    assert (built.metrics, built.num_errors) == (old, 1)


def test_a_figure_that_no_version_had_is_refused() -> None:
    with pytest.raises(TypeError, match="server_latency_p42"):
        LoadTestMetrics.build_from_dict({**OF_RC1, "server_latency_p42_seconds": 1.0})


def test_results_are_pickled_copied_and_written_as_json() -> None:
    with answering(echo) as peer:
        result = load(peer.url(), numbered(5), 500, warmup=0)
    for same in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert same == result
        assert same.run.response.counts() == result.run.response.counts()
    written = LoadTestResult.build_from_dict(orjson.loads(orjson.dumps(result.dict())))
    assert written.metrics == result.metrics


# Figures


def test_figures_are_those_of_the_times() -> None:
    starts = np.array([10.0, 10.5, 11.0, 11.5])
    latencies = np.array([0.1, 2.0, 0.3, 0.4])
    metrics = LoadTestMetrics.build(list(zip(starts, starts + latencies, strict=True)), 8)
    assert metrics.num_requests == 4
    assert metrics.num_queries == 8
    assert metrics.test_duration_seconds == 2.5  # to the last answer, which is not that of the last request
    assert metrics.client_requests_per_second == 2.0
    assert metrics.server_requests_per_second == 1.6
    assert metrics.server_queries_per_second == 3.2
    assert metrics.server_latency_mean_seconds == pytest.approx(0.7)
    assert metrics.server_latency_std_seconds == pytest.approx(latencies.std())
    assert metrics.server_latency_max_seconds == pytest.approx(2.0)
    for q in (50, 90, 95, 99):
        assert getattr(metrics, f"server_latency_p{q}_seconds") == pytest.approx(np.percentile(latencies, q))


def test_one_request_has_figures_too_and_none_has_not() -> None:
    metrics = LoadTestMetrics.build([(1.0, 1.25)], 1)
    assert metrics.server_latency_p99_seconds == metrics.test_duration_seconds == 0.25
    with pytest.raises(ValueError, match="at least one"):
        LoadTestMetrics.build([], 0)


def test_a_service_s_slowness_is_in_both_times_and_a_wait_in_line_in_one() -> None:
    def slow(link: Link) -> None:
        while (request := link.read()) is not None:
            wait.wait(0.05)
            link.send(reply(request[1]))

    wait = threading.Event()
    with answering(slow) as peer:
        result = load(peer.url(), numbered(10), 1000, connections=1, warmup=0)
    metrics, one = result.metrics, result.run
    assert one is not None
    assert 0.05 <= metrics.service_time_p50_seconds <= metrics.service_time_p99_seconds
    assert 10 * one.service.mean <= one.seconds  # one after the other
    assert metrics.server_latency_max_seconds > 0.45
    assert not metrics.client_kept_rate
    assert "connections busy" in metrics.client_fault


def test_every_message_is_sent_once_and_answered_in_its_place() -> None:
    seen: list[int] = []

    def keep(link: Link) -> None:
        while (request := link.read()) is not None:
            content = orjson.loads(request[1])
            seen.append(content["data"][0])
            odd = content["data"][0] % 2
            link.send(reply({"data": content["data"]}) if odd else reply({"error": "even"}, "422 Unprocessable"))

    with answering(keep) as peer:
        result = load(peer.url(), numbered(101), 2000, warmup=0)
        assert sorted(seen) == [*range(101)]
        seen.clear()
        load(peer.url(), numbered(101), 2000, warmup=0.02)
    assert 101 < len(seen) <= 101 + 41
    assert [response.data for response in result.responses] == [[n, n] if n % 2 else [] for n in range(101)]
    assert [response.error for response in result.responses] == [None if n % 2 else "even" for n in range(101)]
    assert result.num_errors == 51
    assert result.metrics.num_requests == 101
    assert result.metrics.num_queries == 202
    assert result.run is not None
    assert result.run.statuses == {200: 50, 422: 51}


@pytest.mark.parametrize("options", [{"arrivals": "poisson"}, {"processes": 2}], ids=("poisson", "processes"))
def test_answers_are_in_place_in_every_mode(options: dict[str, Any]) -> None:
    with answering(echo) as peer:
        result = load(peer.url(), numbered(101), 1000, warmup=0.01, **options)
    assert [response.data for response in result.responses] == [[n, n] for n in range(101)]


# Errors


def test_what_befell_a_request_is_the_error_of_its_response() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    result = HttpLoadTest().run(url, numbered(3), 500)
    assert [response.error for response in result.responses] == [f"{url}: the connection was refused"] * 3
    assert [response.data for response in result.responses] == [[]] * 3
    assert result.num_errors == 3
    assert all(isinstance(response, HttpMessage) for response in result.responses)


def test_the_item_that_an_error_names_stands_in_its_response() -> None:
    refusal = reply({"data": [], "error": "item 1: no", "index": 1}, "422 x")
    with answering(always(refusal)) as peer:
        (response,) = load(peer.url(), numbered(1), warmup=0).responses
    assert response == {"data": [], "error": "item 1: no", "index": 1}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply({"data": [], "error": "broken"}), "broken"),
        (reply({"error": {"code": 3}}, "500 x"), '{"code":3}'),
        (reply({"error": ""}, "500 x"), "an error without words, status 500"),
        (reply(b"<html>", "502 x"), "expected a message, got status 502 with 6 bytes: '<html>'"),
        (reply(b"[1]"), r"expected a message, got status 200 with 3 bytes: '\[1\]'"),
    ],
    ids=("a message's", "an object", "no words", "HTML", "a list"),
)
def test_an_answer_that_is_no_message_is_one_that_says_what_came(answer: bytes, words: str) -> None:
    with answering(always(answer)) as peer:
        result = load(peer.url(), numbered(1), warmup=0)
    (response,) = result.responses
    assert pytest.approx(response.data) == []
    assert response.error is not None
    assert response.error.endswith(words.replace("\\", ""))
    assert result.num_errors == 1


def test_a_silent_service_is_a_timeout() -> None:
    with answering(lambda link: [None for _ in iter(link.read, None)] and None) as peer:
        result = load(peer.url(), numbered(2), warmup=0, timeout=0.2)
    assert [response.error for response in result.responses] == [
        f"{peer.url()}: no whole answer in time within 0.2 s"
    ] * 2


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], ValueError, "messages: expected at least one"),
        ([{"data": [1]}], TypeError, "expected an HttpMessage, got dict"),
        ([HttpMessage(data=[object()])], TypeError, "object"),
        (message(1), TypeError, "expected a sequence of HttpMessages"),
    ],
    ids=("none", "a dict", "an object", "a message"),
)
def test_what_can_not_be_sent_is_refused_before_anything_is(messages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        HttpLoadTest().run("http://127.0.0.1:1", messages)


def test_it_runs_within_a_coroutine() -> None:
    async def within() -> LoadTestResult:
        return load(peer.url(), numbered(5), warmup=0)

    with answering(echo) as peer:
        assert asyncio.run(within()).num_errors == 0


def test_a_response_keeps_the_index_of_the_item_that_its_error_names():
    answer = Answer(0, 0, 0, 0, 422, "4xx", b'{"data":[],"error":"item 1: no","index":1}')
    plan = Plan("http://127.0.0.1:1/", [payload_of(HttpMessage(data=[1]))], count=1)
    assert message_of(answer, plan) == {"data": [], "error": "item 1: no", "index": 1}
