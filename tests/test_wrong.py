"""Starts under gunicorn that can't work, or not as meant: each says what to do."""

import pytest
from kit.servers import ECHO, serving

from virtex import VirtexWorker
from virtex.workers.uvicorn import ignored


@pytest.mark.parametrize("options", [("-k", "sync"), ("-k", "gthread", "--preload")], ids=" ".join)
def test_a_worker_class_for_wsgi_is_told_to_be_the_wrong_one(options):
    with serving("gunicorn", ECHO, *options, wait=False) as server:
        assert server.wait_exit() == 4
        kind = options[1]
        expected = f"this is an ASGI app, and gunicorn runs it with the worker class {kind}, which is for WSGI: "
        assert f"{expected}add -k virtex.VirtexWorker, or start it by `virtex serve service:app`" in server.log


def test_a_wsgi_application_beside_a_service_is_left_alone():
    wsgi = """
service = app
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"as ever"]
"""
    with serving("gunicorn", ECHO + wsgi, "-k", "sync") as server:
        assert server.request("GET", "/") == (200, b"as ever")


@pytest.mark.parametrize("fails", ["raise OSError('no model')", "import missing_module"], ids=["setup", "import"])
def test_workers_that_all_fail_at_once_end_gunicorn_with_code_3(fails):
    source = (
        f"{ECHO}\nclass Fails(Echo):\n    def setup(self, worker):\n        {fails}\napp = http_server('f', Fails)\n"
    )
    with serving("gunicorn", fails if "import" in fails else source, "-w", "4", wait=False) as server:
        assert server.wait_exit() == 3
        assert "HaltServer" not in server.log


def test_each_key_that_uvicorns_worker_took_is_told_what_replaces_it():
    class Old(VirtexWorker):
        CONFIG_KWARGS = {"loop": "uvloop", "limit_concurrency": 10, "zap": 1}

    loop, concurrency, zap = ignored(Old)
    assert loop.endswith(
        "has no effect, for VirtexWorker is not uvicorn's; in its place: nothing: the loop is uvloop's"
    )
    assert concurrency.startswith("Old.CONFIG_KWARGS['limit_concurrency'] has no effect")
    assert "worker_connections" in concurrency and zap.endswith("nothing, for uvicorn has no such setting")
    assert ignored(VirtexWorker) == []


def test_the_log_has_a_line_for_each():
    keys = "\nfrom virtex import VirtexWorker\nclass Old(VirtexWorker):\n    CONFIG_KWARGS = {'ws': 'auto'}\n"
    with serving("gunicorn", ECHO + keys, "-k", "service.Old") as server:
        server.wait_log("[WARNING] Old.CONFIG_KWARGS['ws'] has no effect")
