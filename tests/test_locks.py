"""Locks between processes that share a board."""

import os

import pytest

from virtex.metrics.locks import Locks


@pytest.fixture
def fork():
    """Run a function in a process of its own; gives its answer, true or false, and leaves it to be ended."""
    pids = []

    def run(function):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write, b"1" if function() else b"0")
            os.close(write)
            os.read(stay_read, 1)
            os._exit(0)
        pids.append(pid)
        os.close(write)
        answer = os.read(read, 1) == b"1"
        os.close(read)
        return answer, pid

    stay_read, stay_write = os.pipe()
    yield run
    os.close(stay_read)
    for pid in pids:
        end(pid)
    os.close(stay_write)


def end(pid):
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_lock_is_one_process_alone_and_free_again_when_that_is_killed(fork):
    locks = Locks()
    has, pid = fork(lambda: locks.take("a"))
    assert has
    assert not locks.take("a")
    assert locks.take("b")
    end(pid)
    assert locks.take("a")


def test_a_lock_that_was_left_is_another_ones(fork):
    locks = Locks()
    assert locks.take("a")
    assert fork(lambda: locks.take("a"))[0] is False
    locks.leave("a")
    assert fork(lambda: locks.take("a"))[0] is True


def test_waiting_ends_when_the_lock_is_free_or_the_time_is_over(fork):
    locks = Locks()
    _, pid = fork(lambda: locks.take("a"))
    pauses = []
    assert not locks.wait("a", 0.1, pauses.append)
    assert len(pauses) == 5

    def kill(_):
        end(pid)

    assert locks.wait("a", 0.1, kill)


def test_the_last_one_to_leave_knows_it(fork):
    locks = Locks()
    locks.join("a")
    has, pid = fork(lambda: locks.join("a") is None)
    assert has
    assert not locks.leave_as_last("a")
    locks.join("a")
    end(pid)
    assert locks.leave_as_last("a")


def test_a_note_outlives_who_wrote_it(fork):
    locks = Locks()
    assert locks.note("a") == b""
    _, pid = fork(lambda: locks.write("a", b"0123456789abcdef") is None)
    end(pid)
    assert locks.note("a") == b"0123456789abcdef"
    locks.write("a", b"")
    assert locks.note("a") == b""
    assert locks.note("b") == b""
