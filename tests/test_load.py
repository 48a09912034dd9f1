"""A load test's run: when it sends, over what, what it counts from when; and its processes."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kit.peer import Link, answering, echo, message, reply
from kit.servers import ROOT, free_port, listens, until

from virtex.load import drive
from virtex.load.lane import Lane, addresses_of, requests_of
from virtex.load.payloads import Payload, payload_of
from virtex.load.plan import Plan
from virtex.load.readiness import Selector
from virtex.load.run import run
from virtex.load.schedule import arrivals

ONE = [payload_of(message(1))]


def plan(url: str = "http://127.0.0.1:1", payloads: list[Payload] = ONE, **options: Any) -> Plan:
    few = {"connections": 30, "timeout": 10.0}  # a peer has a thread for each of 40
    return Plan(url, payloads, **({"rate": 1000.0, "count": 100, "warmup": 0} | few | options))


# The plan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "127.0.0.1:80"}, "expected a URL like"),
        ({"url": "ftp://x"}, "expected a URL like"),
        ({"url": "http://a:b@c"}, "credentials"),
        ({"url": "http://a:65536/"}, "http://a:65536/: expected a port from 1 to 65535"),
        ({"url": "http://a:0/"}, "http://a:0/: expected a port from 1"),
        ({"url": "http://[::1"}, "expected a URL like"),
        ({"url": "http://a/b\nc"}, "expected a URL like"),
        ({"url": None}, "expected a URL like"),
        ({"url": "unix:"}, "expected unix:/path of a socket"),
        ({"url": "unix:/a:b"}, "expected unix:/path of a socket"),
        ({"payloads": []}, "at least one"),
        ({"rate": 0}, "rate: expected a number above 0"),
        ({"rate": float("nan")}, "rate: expected"),
        ({"count": 0}, "count: expected"),
        ({"seconds": 1.0}, "expected count or seconds"),
        ({"count": None}, "expected count or seconds"),
        ({"arrivals": "random"}, "'constant' or 'poisson'"),
        ({"warmup": -1}, "warmup: expected"),
        ({"timeout": float("inf")}, "timeout: expected"),
        ({"processes": 0}, "processes: expected"),
        ({"connections": 1, "processes": 2}, "1 or more for each of 2 processes, got 1"),
        ({"headers": {"Host": "x"}}, "'Host' belongs to the connection"),
        ({"headers": {"a b": "x"}}, "expected a name"),
        ({"headers": {"a": "x\r\ny"}}, "expected printable"),
        ({"headers": {"a": "5 \u20ac"}}, "expected printable characters of Latin-1"),
    ],
)
def test_a_plan_that_can_not_be_meant_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(**options)


# The schedule


def every(asked: Plan, index: int = 0) -> list[int]:
    return [at for some in arrivals(asked, index, asked.count, asked.seconds) for at in some]


def test_constant_arrivals_are_one_rate_apart() -> None:
    assert every(plan(rate=3.0, count=4)) == [0, 333333333, 666666667, 1000000000]
    assert every(plan(rate=2.0, count=None, seconds=1.6)) == [0, 500000000, 1000000000, 1500000000]
    assert len(every(plan(rate=10.0, count=10_000))) == 10_000


@pytest.mark.parametrize("limits", [{"count": 10_007}, {"count": None, "seconds": 2.0}], ids=("count", "seconds"))
def test_the_processes_together_send_what_one_would(limits: dict[str, Any]) -> None:
    alone = every(plan(**limits))
    shares = [every(plan(**limits, processes=3), index) for index in range(3)]
    assert sorted(at for share in shares for at in share) == alone


def test_poisson_arrivals_are_independent_at_the_rate_and_the_same_again() -> None:
    asked = plan(rate=1000.0, count=50_000, arrivals="poisson", seed=3, processes=2)
    both = [np.array(every(asked, index)) for index in range(2)]
    assert [len(times) for times in both] == [25_000, 25_000]
    for times in both:
        gaps = np.diff(times) / 1e9
        assert gaps.mean() == pytest.approx(2 / 1000, rel=0.03)
        assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert every(asked) == both[0].tolist() != both[1].tolist()


# What is sent


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://127.0.0.1:81", b"POST / HTTP/1.1", b"host: 127.0.0.1:81"),
        ("http://h/a b\u00fc?x=\u00fc#there", b"POST /a%20b%C3%BC?x=%C3%BC HTTP/1.1", b"host: h"),
        ("https://\u00fc.test/", b"POST / HTTP/1.1", b"host: xn--tda.test"),
        ("unix:/a/b", b"POST / HTTP/1.1", b"host: localhost"),
        ("unix:/a/b:/c?d=e", b"POST /c?d=e HTTP/1.1", b"host: localhost"),
    ],
    ids=("plain", "a path that is not ASCII", "a host that is not ASCII", "a socket", "a path of a socket"),
)
def test_a_url_is_sent_as_http_writes_it(url: str, line: bytes, host: bytes) -> None:
    (request,) = requests_of(plan(url))
    assert request.split(b"\r\n")[:2] == [line, host]


@contextmanager
def counting() -> Iterator[tuple[str, list[Any]]]:
    """A server that echoes, and what it was sent."""
    seen = []

    def answer(link: Link) -> None:
        while (request := link.read()) is not None:
            seen.append(orjson.loads(request[1])["data"][0])
            link.send(reply(request[1]))

    with answering(answer) as peer:
        yield peer.url(), seen


MODES: dict[str, dict[str, Any]] = {
    "constant": {"rate": 500.0},
    "poisson": {"rate": 500.0, "arrivals": "poisson"},
    "closed": {"rate": None, "connections": 3},
    "two processes": {"rate": 500.0, "processes": 2},
    "closed, two processes": {"rate": None, "connections": 3, "processes": 2},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_payload_is_sent_in_turn_and_counted(mode: str) -> None:
    payloads = [payload_of(message(n, n)) for n in range(60)]
    with counting() as (url, seen):
        found = run(plan(url, payloads, count=120, **MODES[mode]))
    assert sorted(seen) == sorted([*range(60)] * 2)
    assert (found.scheduled, found.sent, found.answered, found.items) == (120, 120, 120, 240)
    assert found.statuses == {200: 120}
    assert not found.errors


@pytest.mark.parametrize("mode", MODES)
def test_what_warms_up_is_sent_beside_and_not_counted(mode: str) -> None:
    with counting() as (url, seen):
        found = run(plan(url, count=20, warmup=0.2, **MODES[mode]))
    assert found.answered == found.response.count == 20
    assert 20 < len(seen) <= 40


def test_a_closed_loop_lasts_as_long_as_it_is_told_over_as_many_connections() -> None:
    with answering(echo) as peer:
        begun = time.perf_counter_ns()
        found = run(plan(peer.url(), rate=None, connections=5, count=None, seconds=0.5, keep=True))
        assert time.perf_counter_ns() - begun >= 5e8
        assert len(peer.links) == 5
    assert found.client_kept_rate
    assert 0 < found.answers[-1].sent - found.answers[0].sent < 5e8
    assert found.answered == found.sent == len(found.answers)
    assert found.rate <= found.offered


def test_an_open_loop_makes_connections_as_it_needs_them_and_no_more_than_it_may() -> None:
    gate = threading.Event()

    def hold(link: Link) -> None:
        while link.read() is not None:
            gate.wait(10)
            link.send(reply({"data": [1]}))

    def open_gate(_: object) -> None:
        gate.set()

    with answering(hold) as peer:
        found = run(plan(peer.url(), rate=50.0, count=60, connections=35), progress=open_gate)
        assert len(peer.links) == 35
    assert found.answered == 60


def test_where_descriptors_run_out_requests_wait_for_the_connections_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = []

    def make(*arguments: Any) -> Lane:
        if len(made) == 5:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(Lane(*arguments))
        return made[-1]

    monkeypatch.setattr(drive, "Lane", make)
    with answering(echo) as peer:
        found = run(plan(peer.url(), rate=2000.0, count=200, connections=30))
        assert len(peer.links) == 5
    assert found.answered == 200
    assert "5 connections at most" in caplog.text


def test_the_request_says_what_it_holds_and_what_it_is_told_to_say() -> None:
    heads = []

    def keep(link: Link) -> None:
        while (request := link.read()) is not None:
            heads.append(request[0].decode())
            link.send(reply({"data": [1]}))

    with answering(keep) as peer:
        npy = Payload(b"\x93NUMPY", 1, "application/x-npy")
        headers = {"X-Key": "s3cret", "Accept": "application/x-npy"}
        run(plan(peer.url("/a/b?c=d"), [npy], count=1, headers=headers))
    lines = heads[0].split("\r\n")
    assert lines[0] == "POST /a/b?c=d HTTP/1.1"
    assert {"x-key: s3cret", "accept: application/x-npy", "content-type: application/x-npy", "content-length: 6"} <= {
        *lines
    }


# What is counted


def test_time_counts_from_when_a_request_was_to_be_sent_against_the_server_s_own_trace(tmp_path: Path) -> None:
    count, rate = 600, 150.0
    with traced(tmp_path, count, "stall") as (url, trace):
        found = run(
            plan(
                url, [payload_of(message(n)) for n in range(count)], rate=rate, count=count, connections=500, keep=True
            )
        )
        read = trace()[:, 0]
    assert found.answered == count
    assert all(each.done > at for each, at in zip(found.answers, read, strict=True))
    # The schedule is the test's own: the server says when it read what was to be sent every 1/150 s.
    start = found.answers[0].scheduled
    truth = np.percentile((read - start) / 1e9 - np.arange(count) / rate, 90, method="lower")
    assert truth > 0.1
    assert found.response.percentile(90) >= truth * 0.999
    took = [(each.done - each.scheduled) / 1e9 for each in found.answers]
    least, most = (np.percentile(took, 90, method=method) for method in ("lower", "higher"))
    assert least * 0.999 <= found.response.percentile(90) <= most * 1.001


def test_a_million_kept_answers_are_no_work_for_the_garbage_collector() -> None:
    with answering(echo) as peer:
        asked = plan(peer.url(), count=30, keep=True)
        with drive.Drive(asked, addresses_of(asked.url)[0]) as one:
            tally = one.run(time.perf_counter_ns(), lambda _: None)
    gc.collect()
    assert len(tally.answers) == 30
    assert not any(gc.is_tracked(answer) for answer in tally.answers)


@contextmanager
def traced(folder: Path, count: int, kind: str) -> Iterator[tuple[str, Any]]:
    """bench/traced.py: its URL, and how to end it and have its trace."""
    port, path = free_port(), folder / "trace.npy"
    command = [sys.executable, "-m", "bench.traced", str(port), str(path), str(count), kind]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def trace() -> np.ndarray:
        process.terminate()
        assert process.wait(60) == 0
        return np.load(path)

    try:
        until(lambda: listens(port) or process.poll() is not None, "bench.traced")
        yield f"http://127.0.0.1:{port}", trace
    finally:
        process.kill()
        process.wait(60)


def test_a_client_that_does_not_keep_the_rate_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with answering(echo) as peer:
        asked = plan(peer.url(), rate=200.0, count=None, seconds=1.5)
        found = run(asked, progress=lambda _: time.sleep(0.3))
    assert not found.client_kept_rate
    assert "did not keep the rate of 200 requests/s" in found.why_not
    assert "more than 2 ms late" in found.why_not
    assert found.why_not in caplog.text
    assert found.response.percentile(90) > 0.1  # its time says so too
    assert found.lateness.max > 0.25


@pytest.mark.parametrize("processes", [1, 2])
def test_what_came_in_each_second_is_told_once_and_kept(processes: int) -> None:
    told: list[tuple[int, Any]] = []
    with answering(echo) as peer:
        asked = plan(peer.url(), rate=100.0, count=None, seconds=2.2, processes=processes, keep=True)
        found = run(asked, lambda part: told.append((time.perf_counter_ns(), part)))
    parts = [part for _, part in told]
    assert parts == found.slices
    assert [part.at for part in parts[:-1]] == [*range(1, len(parts))]
    assert parts[-1].at > 2.1
    assert sum(part.answered for part in parts) == sum(part.response.count for part in parts) == 220
    done, begun, so_far = [each.done for each in found.answers], found.answers[0].scheduled, 0
    for at, part in told[:-1]:
        so_far += part.answered
        assert sum(each < begun + part.at * 1e9 for each in done) <= so_far <= sum(each < at for each in done)


# Where it runs


def test_it_runs_in_coroutines_and_in_threads() -> None:
    async def within() -> int:
        return run(plan(peer.url())).answered

    found: list[int] = []
    with answering(echo) as peer:
        found.append(asyncio.run(within()))
        threads = [
            threading.Thread(target=lambda: found.append(run(plan(peer.url(), connections=15)).answered))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert found == [100, 100, 100]


def test_it_runs_where_there_is_no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "Readiness", Selector)
    with answering(echo) as peer:
        assert run(plan(peer.url())).answered == 100


def test_a_host_that_is_not_found_is_an_error_at_once() -> None:
    with pytest.raises(OSError):
        run(plan("http://nowhere.invalid"))


# Its processes


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_a_process_that_dies_is_an_error_that_says_so_and_none_is_left() -> None:
    def kill_one(_: object) -> None:
        os.kill(children()[1], signal.SIGKILL)

    with answering(echo) as peer, pytest.raises(RuntimeError, match="process 1 of the load test ended with -9"):
        run(plan(peer.url(), rate=100.0, count=None, seconds=5.0, processes=2), kill_one)
    assert children() == []


def test_its_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = """
import os, signal
from virtex.load.lane import Lane
from virtex.load.payloads import Payload
from virtex.load.plan import Plan
from virtex.load.run import run

def die(_):
    print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

run(Plan(URL, [Payload(b"{}")], rate=50.0, seconds=60.0, processes=2), die)
"""
    with answering(echo_any) as peer:
        source = script.replace("URL", repr(peer.url()))
        ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, timeout=60)
    pids = ended.stdout.split()
    assert len(pids) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of its processes")


def echo_any(link: Link) -> None:
    while link.read() is not None:
        link.send(reply({}))
