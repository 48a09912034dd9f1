import subprocess
import sys
from importlib import import_module

import pytest

import virtex
import virtex.http


def test_the_names_of_the_first_virtex_are_where_its_users_import_them_from():
    assert virtex.http.http_server is virtex.http_server
    assert virtex.http.Server is virtex.Server
    assert {"Server", "http_server"} <= set(dir(virtex.http))
    with pytest.raises(AttributeError, match="no attribute 'HttpServer'"):
        virtex.http.HttpServer  # noqa: B018


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("virtex.http.message", ["HttpMessage"]),
        ("virtex.http.client", ["HttpClient"]),
        ("virtex.http.server", ["Server", "http_server"]),
        ("virtex.http.load_test", ["HttpLoadTest", "LoadTestMetrics", "LoadTestResult"]),
    ],
)
def test_the_modules_of_the_first_virtex_are_there(module, names):
    found = import_module(module)
    assert found.__all__ == names
    assert all(getattr(found, name) is getattr(virtex, name) for name in names)


def test_importing_it_loads_no_more_than_importing_virtex():
    script = "import virtex, sys; before = set(sys.modules); import virtex.http; print(set(sys.modules) - before)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "{'virtex.http'}"
