"""The real Prometheus and Pushgateway against gunicorn's workers: what they know is what the clients counted."""

import contextlib
import http.client
import signal
import threading

import pytest
from kit.prom import get, needs_prometheus, needs_pushgateway, prometheus, pushgateway, total
from kit.servers import free_port, serving, until

CONNECTIONS = 4

SOURCE = """
from virtex import RequestHandler, http_server

class Echo(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        return model_output_item

app = http_server(name="echo", handler=Echo(), {options})
"""
OPTIONS = "prom_mode={mode!r}, prom_port={port}, prom_legacy_names=True"


class Load:
    """Clients that post two items each time, and count the answers of 200 that they read."""

    def __init__(self, port):
        self.counts = [0] * CONNECTIONS
        self.stopping = threading.Event()
        self.port = port
        self.threads = [threading.Thread(target=self.post, args=(i,)) for i in range(CONNECTIONS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    @property
    def count(self):
        return sum(self.counts)

    def post(self, i):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stopping.is_set():
            try:
                connection.request("POST", "/", b'{"data":[1,2]}')
                response = connection.getresponse()
                response.read()
                self.counts[i] += response.status == 200
            except (OSError, http.client.HTTPException):
                connection.close()
        connection.close()

    def goes_on(self, server, more=50):
        reached = self.count + more
        until(lambda: self.count >= reached, f"{reached} answers", server)


def owner_of(server):
    """Which worker has the port of the metrics, by the log."""
    return int(server.log.split("of process ")[-1].split()[0])


def read(url, server):
    """The metrics, in a moment in which a worker has the port."""
    texts = []

    def is_read():
        with contextlib.suppress(OSError):
            texts.append(get(url))
        return bool(texts)

    until(is_read, url, server)
    return texts[0]


@needs_prometheus
def test_prometheus_knows_what_the_clients_counted_over_a_kill_a_reload_and_recycled_workers(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
    more = ["--workers", "2", "--max-requests", "1000", "--max-requests-jitter", "300"]
    with serving("gunicorn", source, *more) as server, prometheus(tmp_path, f"127.0.0.1:{port}") as prom:
        server.wait_log("is ready; workers=2", 2)
        with Load(server.port) as load:
            load.goes_on(server)
            server.signal(signal.SIGHUP)
            server.wait_log("is ready; workers=2", 4)
            load.goes_on(server)
        until(lambda: server.log.count("metrics are at") >= 2, "a new owner of the port", server)
        exact = total(read(url, server), "virtex_requests_total", code="200")
        assert exact == load.count  # nobody was killed
        until(lambda: prom.value('sum(virtex_requests_total{code="200"})') == exact, "Prometheus", server)
        assert prom.value("sum(virtex_queries_total)") == 2 * exact

        owner = owner_of(server)
        with Load(server.port) as load:
            load.goes_on(server)
            server.signal(signal.SIGKILL, owner)
            load.goes_on(server)
            until(lambda: owner_of(server) != owner, "another owner of the port", server)
        counted = exact + load.count
        until(lambda: prom.value('sum(virtex_requests_total{code="200"})') is not None, "Prometheus", server)
        known = total(read(url, server), "virtex_requests_total", code="200")
        assert counted <= known <= counted + CONNECTIONS
        until(lambda: prom.value('sum(virtex_requests_total{code="200"})') == known, "Prometheus", server)
        assert prom.value("sum(requests_total)") >= known
        assert total(get(f"http://127.0.0.1:{server.port}/metrics"), "virtex_requests_total", code="200") == known
        assert prom.value("sum(resets(virtex_requests_total[1h]))") == 0
        assert "Traceback" not in server.log


@needs_pushgateway
def test_the_gateway_has_all_that_was_answered_when_the_service_has_stopped(tmp_path):
    port = free_port()
    with pushgateway(tmp_path, port) as url:
        source = SOURCE.format(options=OPTIONS.format(mode="push", port=port))
        with serving("gunicorn", source, "--workers", "2") as server:
            server.wait_log("is ready; workers=2", 2)
            with Load(server.port) as load:
                load.goes_on(server)
                until(lambda: total(get(f"{url}/metrics"), "virtex_requests_total", code="200") > 0, "a push", server)
                master = server.process.pid
                server.signal(signal.SIGKILL, min(server.workers()))
                load.goes_on(server)
            server.signal(signal.SIGTERM)
            server.wait_exit()
        text = get(f"{url}/metrics")
        groups = {line.partition("{")[2] for line in text.splitlines() if line.startswith("virtex_build_info")}
        assert len(groups) == 1 and f':{master}"' in groups.pop()
        assert load.count <= total(text, "virtex_requests_total", code="200", job="echo") <= load.count + CONNECTIONS
        assert total(text, "queries_total", job="echo") >= 2 * load.count


@needs_pushgateway
def test_the_group_is_deleted_by_the_last_worker_if_asked_for(tmp_path):
    port = free_port()
    options = OPTIONS.format(mode="push", port=port) + ", prom_delete_group=True"
    with pushgateway(tmp_path, port) as url, serving("gunicorn", SOURCE.format(options=options), "-w", "2") as server:
        until(lambda: "virtex_workers{" in get(f"{url}/metrics"), "a push", server)
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert "virtex_" not in get(f"{url}/metrics")


@needs_pushgateway
def test_a_gateway_that_is_down_costs_a_line_of_the_log_and_no_request(tmp_path):
    port = free_port()
    source = SOURCE.format(options=OPTIONS.format(mode="push", port=port))
    with serving("gunicorn", source) as server:
        server.wait_log("were not pushed")
        with Load(server.port) as load:
            load.goes_on(server, 200)
        with pushgateway(tmp_path, port) as url:
            server.wait_log("are pushed to")
            until(lambda: total(get(f"{url}/metrics"), "virtex_requests_total") == load.count, "a push", server)
        assert server.log.count("were not pushed") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_of_another_program_is_why_gunicorn_does_not_start(workers):
    with http.client.socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
        with serving("gunicorn", source, "--workers", workers, wait=False) as server:
            assert server.wait_exit() in (
                1,
                3,
            )  # gunicorn's is 1 where a second worker fails while it ends for the first
            assert f"prom_port={port} is taken on 127.0.0.1 by another program" in server.log


@needs_prometheus
def test_where_a_prometheus_has_the_port_the_services_own_is_suggested(tmp_path):
    with prometheus(tmp_path) as prom:
        port = int(prom.url.rpartition(":")[2])
        source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
        with serving("gunicorn", source, wait=False) as server:
            assert server.wait_exit() == 3
            assert f"prom_port={port} is taken on 127.0.0.1 by a Prometheus" in server.log
            assert "have /metrics scraped on the port of the service itself" in server.log


def test_another_service_has_the_port(tmp_path):
    port = free_port()
    source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
    with serving("gunicorn", source), serving("gunicorn", source.replace('"echo"', '"b"'), wait=False) as server:
        assert server.wait_exit() == 3
        assert f"prom_port={port} is taken on 127.0.0.1 by service echo" in server.log


def test_a_new_master_takes_the_port_over_from_the_old_one():
    """SIGUSR2: the two are strangers to each other, and serve the same for a while."""
    port = free_port()
    source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
    with serving("gunicorn", source) as server:
        server.wait_log("is ready; workers=1")
        old = server.process.pid
        server.signal(signal.SIGUSR2)
        server.wait_log("is ready; workers=1", 2)
        assert "those of another process" in server.log
        owner = owner_of(server)
        server.signal(signal.SIGTERM, old)
        until(lambda: owner_of(server) != owner, "the new worker to have the port")
        assert total(get(f"http://127.0.0.1:{port}/metrics"), "virtex_workers", service="echo") == 1


SEVERAL = """
from virtex import RequestHandler, http_server
from virtex.service.seam import JSON

class Slow(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        import os, time
        while not os.path.exists("go"):
            time.sleep(0.01)
        return model_input

    def process_response(self, model_output_item):
        return model_output_item

app = http_server(name="slow", handler=Slow(), prom_mode="scrape", prom_port={port})
"""


def test_metrics_are_read_while_a_model_holds_the_event_loop():
    port = free_port()
    with serving("gunicorn", SEVERAL.format(port=port)) as server:
        server.wait_log("is ready; workers=1")
        with server.connect() as sock:
            sock.sendall(b'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n{"data":[1]}')
            url = f"http://127.0.0.1:{port}/metrics"
            until(lambda: total(get(url), "virtex_requests_in_flight") == 1, "the request", server)
            assert total(get(url), "virtex_requests_total") == 0
            (server.folder / "go").touch()
            assert sock.recv(12) == b"HTTP/1.1 200"


def test_under_another_asgi_server_a_process_answers_for_itself():
    port = free_port()
    source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
    with serving("uvicorn", source) as server:
        assert server.request("POST", "/", b'{"data":[1,2]}')[0] == 200
        for url in (f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{server.port}/metrics"):
            text = get(url)
            assert total(text, "virtex_requests_total", code="200", service="echo") == 1
            assert total(text, "virtex_workers", service="echo") == 1
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert "Traceback" not in server.log


def test_several_processes_of_another_asgi_server_share_the_port_one_after_the_other():
    port = free_port()
    source = SOURCE.format(options=OPTIONS.format(mode="scrape", port=port))
    with serving("uvicorn", source + "import logging; logging.basicConfig(level=20)", "--workers", "2") as server:
        server.wait_log("are at 127.0.0.1:")
        owner = owner_of(server)
        server.signal(signal.SIGTERM, owner)
        until(lambda: owner_of(server) != owner, "another process to have the port", server)
        assert total(read(f"http://127.0.0.1:{port}/metrics", server), "virtex_workers", service="echo") == 1


@needs_pushgateway
def test_what_another_asgi_server_answered_last_is_pushed(tmp_path):
    port = free_port()
    source = SOURCE.format(options=OPTIONS.format(mode="push", port=port))
    with pushgateway(tmp_path, port) as url:
        with serving("uvicorn", source) as server:
            assert server.request("POST", "/", b'{"data":[1,2]}')[0] == 200
            server.signal(signal.SIGTERM)
            server.wait_exit()
        assert total(get(f"{url}/metrics"), "virtex_queries_total", job="echo") == 2


def test_a_gateway_that_hangs_does_not_hold_a_service_that_is_to_leave_at_once():
    with http.client.socket.socket() as gateway:
        gateway.bind(("127.0.0.1", 0))
        gateway.listen()
        source = SOURCE.format(options=OPTIONS.format(mode="push", port=gateway.getsockname()[1]))
        with serving("gunicorn", source) as server:
            server.wait_log("is ready; workers=1")
            server.signal(signal.SIGINT)
            server.wait_exit(5)


OWN = "from prometheus_client import Counter\n" + SOURCE.replace(
    "class Echo", 'SEEN = Counter("seen", "Batches that came.")\n\nclass Echo'
).replace("        return data", "        SEEN.inc(len(data))\n        return data")


def test_the_users_own_counts_of_all_workers_are_added_up_in_the_librarys_way(tmp_path, monkeypatch):
    port = free_port()
    source = OWN.format(options=OPTIONS.format(mode="scrape", port=port))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with serving("gunicorn", source, "--workers", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        with Load(server.port) as load:
            load.goes_on(server)
        text = read(f"http://127.0.0.1:{port}/metrics", server)
        assert total(text, "seen_total") == total(text, "virtex_queries_total") == 2 * load.count
        assert "are those of one worker" not in server.log


def test_the_users_own_counts_of_one_worker_of_several_are_warned_of():
    port = free_port()
    source = OWN.format(options=OPTIONS.format(mode="scrape", port=port))
    with serving("gunicorn", source, "--workers", "2") as server:
        server.wait_log("the handler's own metrics (seen) are those of one worker")
        assert "seen_total" in read(f"http://127.0.0.1:{port}/metrics", server)
