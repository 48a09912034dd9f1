"""The server of prom_host:prom_port: whose it is, and what is read there."""

import asyncio
import os
import signal
import socket
import threading
import urllib.request

import pytest
from kit.asks import Echo
from kit.prom import get, total
from kit.servers import free_port, until

from virtex import http_server
from virtex.metrics import scrape
from virtex.metrics.board import Board


def url(port):
    return f"http://127.0.0.1:{port}/metrics"


def test_services_of_one_process_share_a_port():
    port = free_port()
    scrape.join("127.0.0.1", port, "a", False)
    try:
        scrape.join("127.0.0.1", port, "b", True)
        both = get(url(port))
        assert total(both, "virtex_workers", service="a") == total(both, "virtex_workers", service="b") == 1
        scrape.leave("127.0.0.1", port, "b", True)
        assert total(get(url(port)), "virtex_workers") == 1
    finally:
        scrape.leave("127.0.0.1", port, "a", False)
    with pytest.raises(OSError):
        get(url(port))


def test_two_services_of_a_program_are_on_one_port():
    port = free_port()
    apps = [http_server(name, Echo(), prom_mode="scrape", prom_port=port) for name in ("first", "second")]

    async def main():
        for app in apps:
            await app.startup()
        await apps[0].shutdown()
        text = await asyncio.to_thread(get, url(port))
        await apps[1].shutdown()
        return text

    text = asyncio.run(main())
    assert total(text, "virtex_workers", service="second") == 1
    assert total(text, "virtex_workers", service="first") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_host_is_an_address_or_a_name(host):
    port = free_port()
    scrape.join(host, port, "a", False)
    try:
        assert "virtex_workers" in get(f"http://{'[::1]' if ':' in host else host}:{port}/metrics")
    finally:
        scrape.leave(host, port, "a", False)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_one_is_named(host):
    with pytest.raises(OSError, match=f"metrics can't be read at {host}:9090"):
        scrape.join(host, 9090, "a", False)


def test_what_asks_a_port_that_says_nothing_gives_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert scrape.whose("127.0.0.1", silent.getsockname()[1]) == set()


def test_a_client_that_breaks_off_is_no_line_on_stderr(capfd):
    port = free_port()
    scrape.join("127.0.0.1", port, "a", False)
    try:
        for sent in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                client.sendall(sent)
        get(url(port))
    finally:
        scrape.leave("127.0.0.1", port, "a", False)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_that_a_worker_forks_does_not_keep_the_port():
    port = free_port()
    scrape.join("127.0.0.1", port, "a", False)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:  # such as a DataLoader's; it lives until nobody can tell it anything
        os.close(tell)
        os.read(told, 1)
        os._exit(0)
    try:
        scrape.leave("127.0.0.1", port, "a", False)
        with socket.socket() as successor:
            successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            successor.bind(("127.0.0.1", port))
            successor.listen()
    finally:
        os.close(tell)
        os.close(told)
        os.waitpid(child, 0)


def test_an_accept_that_cannot_be_read_is_answered():
    port = free_port()
    scrape.join("127.0.0.1", port, "a", False)
    try:
        request = urllib.request.Request(url(port), headers={"accept": "text/plain; version=x"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200
    finally:
        scrape.leave("127.0.0.1", port, "a", False)


def test_clients_that_send_nothing_keep_nobody_out():
    port = free_port()
    scrape.join("127.0.0.1", port, "a", False)
    silent = []
    try:
        before = threading.active_count()
        silent += [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * scrape.MOST_CLIENTS)]
        assert "virtex_workers" in get(url(port))
        until(lambda: threading.active_count() <= before + scrape.MOST_CLIENTS, "the oldest to be ended")
    finally:
        for client in silent:
            client.close()
        scrape.leave("127.0.0.1", port, "a", False)


def test_a_sibling_takes_the_port_over_from_one_that_is_killed():
    board, port = Board(4), free_port()
    pid = os.fork()
    if not pid:
        owner = scrape.Scrape("127.0.0.1", port, board)
        owner.start("a")
        signal.pause()
    try:
        until(lambda: is_read(port), "the owner")
        sibling = scrape.Scrape("127.0.0.1", port, board)
        sibling.start("a")  # and not: taken by another program
        assert not sibling.owns
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    until(lambda: sibling.owns, "the sibling to have the port")
    sibling.serve([("a", False)])
    assert total(get(url(port)), "virtex_workers", service="a") == 1
    sibling.stop()
    assert not is_read(port)


def is_read(port):
    try:
        return "virtex_build_info" in get(url(port))
    except OSError:
        return False
