"""Metrics to a Pushgateway: when, by whom, and at what cost."""

import os
import signal

import pytest
from kit.prom import count, get, needs_pushgateway, pushgateway, total
from kit.servers import free_port
from prometheus_client import CollectorRegistry, make_wsgi_app

from virtex.metrics import push
from virtex.metrics.board import Board, WorkerState
from virtex.metrics.push import DOWN_SECONDS, LOOK_SECONDS, SHARE, Push


@pytest.fixture
def board():
    return Board(4)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with pushgateway(tmp_path_factory.mktemp("gateway"), free_port()) as url:
        yield url


def pushes(url):
    return total(get(f"{url}/metrics"), "pushgateway_http_push_size_bytes_count", method="put")


@needs_pushgateway
def test_nothing_is_pushed_when_nothing_changed_whichever_process_looks(gateway, board):
    pusher, sibling = (Push(gateway, 0.01, {"still": False}, board=board) for _ in range(2))
    before = pushes(gateway)
    pusher.tick()
    pusher.tick()
    sibling.tick()
    assert pushes(gateway) == before + 1
    count(board, "still", "virtex_queries_total", 5)
    sibling.tick()
    pusher.tick()
    assert pushes(gateway) == before + 2
    assert total(get(f"{gateway}/metrics"), "virtex_queries_total", job="still") == 5


@needs_pushgateway
def test_stop_pushes_what_was_counted_last(gateway, board):
    pusher = Push(gateway, 3600, {"last": False}, board=board)
    pusher.start()
    count(board, "last", "virtex_queries_total", 5)
    pusher.stop()
    assert total(get(f"{gateway}/metrics"), "virtex_queries_total", job="last") == 5


@needs_pushgateway
def test_the_group_is_kept_for_a_successor(gateway, board):
    state = WorkerState(0, os.getpid(), "restarting", 0, 1)
    board.roster = lambda: [state]
    pusher = Push(gateway, 3600, {"kept": False}, deletes=True, board=board)
    pusher.start()
    pusher.stop()
    assert total(get(f"{gateway}/metrics"), "push_time_seconds", job="kept") > 0
    board.roster = None
    pusher = Push(gateway, 3600, {"kept": False}, deletes=True, board=board)
    pusher.start()
    pusher.stop()
    assert total(get(f"{gateway}/metrics"), "push_time_seconds", job="kept") == 0


@pytest.mark.parametrize("asked", ["http://127.0.0.1:{}", "http://no.such.host.invalid:{}"])
def test_a_gateway_that_is_down_is_asked_less_and_less_often_and_logged_once(asked, board, caplog):
    pusher = Push(asked.format(free_port()), 0.01, {"a": False}, board=board, cost=lambda: 0.0)
    pauses = [pusher.tick() for _ in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 32, DOWN_SECONDS, DOWN_SECONDS]
    assert caplog.text.count("were not pushed") == 1


def test_what_the_gateway_says_is_logged(board, caplog):
    from threading import Thread
    from wsgiref.simple_server import make_server

    with make_server("127.0.0.1", 0, make_wsgi_app(CollectorRegistry())) as server:  # it takes no pushes
        thread = Thread(target=server.handle_request)
        thread.start()
        Push(f"http://127.0.0.1:{server.server_port}", 0.01, {"a": False}, board=board).tick()
        thread.join(10)
    assert "HTTP Error 405: Method Not Allowed: # HTTP 405" in caplog.text


def test_a_push_takes_one_hundredth_of_a_core_at_most(board, monkeypatch):
    monkeypatch.setattr(Push, "_push", lambda self: None)
    times = iter([10.0, 10.5, 20.0, 20.00001])
    pusher = Push("http://127.0.0.1:1", 0.01, {"a": False}, board=board, cost=lambda: next(times))
    assert pusher.tick() == SHARE * 0.5
    assert pusher.tick() == 0.01


def test_no_two_push_at_the_same_time(board, monkeypatch):
    pushed = []
    monkeypatch.setattr(Push, "_push", lambda self: pushed.append(1))
    pusher = Push("http://127.0.0.1:1", 0.01, {"a": False}, board=board)
    said, say = os.pipe()
    pid = os.fork()
    if not pid:
        board.locks.take("push a")
        os.write(say, b"1")
        signal.pause()
    try:
        os.read(said, 1)
        assert pusher.tick() == LOOK_SECONDS
        assert not pushed
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(said)
        os.close(say)
    pusher.tick()
    assert pushed


@pytest.mark.parametrize(
    ("states", "leads"),
    [
        (["ready", "ready"], False),
        (["draining", "ready"], True),
        (["starting", "ready"], True),
        (["starting", "starting"], False),
        (["ready", "draining"], False),
    ],
)
def test_the_lowest_ready_worker_pushes(states, leads, board):
    """This process is the second one."""
    board.roster = lambda: [WorkerState(i, os.getpid() - 1 + i, state, 0, i) for i, state in enumerate(states)]
    assert push.leads(board) == leads
