"""Signals as the master and its workers see them."""

import os
import signal

import pytest

from virtex.workers import signals


@pytest.fixture
def handled():
    """What the handlers of the three signals were called with; as they were before, in the end."""
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT
    before = [signal.getsignal(number) for number in numbers]
    seen = []
    for number in numbers:
        signal.signal(number, lambda sig, frame: seen.append(sig))
    yield seen
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_the_stop_is_marked_ahead_of_what_the_handler_does_in_the_master_alone(handled, monkeypatch):
    signals.watch_for_stop(lambda: handled.append("stop"))
    signal.raise_signal(signal.SIGTERM)
    assert handled == ["stop", signal.SIGTERM]
    monkeypatch.setattr(os, "getpid", lambda: 1)  # a worker that has just been forked
    signal.raise_signal(signal.SIGQUIT)
    assert handled == ["stop", signal.SIGTERM, signal.SIGQUIT]


def test_where_threads_stand_is_written_to_the_first_stream_with_a_file(tmp_path, monkeypatch):
    enabled = []

    def enable(stream):
        stream.fileno()
        enabled.append(stream)

    monkeypatch.setattr(signals.faulthandler, "enable", enable)
    with open(tmp_path / "log", "w") as file:
        signals.trace_to([None, object(), file])
        assert enabled == [file]
