"""The arguments of http_server()."""

import pytest
from kit.services import Echo, Watching

from virtex import http_server


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 7},
        {"handler": 7},
        {"max_batch_size": 0},
        {"max_batch_size": 2.5},
        {"max_batch_size": True},
        {"max_batch_cost": 0},
        {"max_batch_cost": float("inf")},
        {"max_batch_cost": 10**400},
        {"max_batch_cost": True},
        {"max_time_on_queue": -1},
        {"max_time_on_queue": float("nan")},
        {"max_time_on_queue": -(10**400)},
        {"max_queue_size": 0},
        {"executor": "process"},
        {"limits": {}},
        {"observer": Watching},
        {"watchdog": 0},
        {"watchdog": 10**400},
        {"authorize": "token"},
        {"status_page": "yes"},
        {"prom_host": ""},
        {"prom_host": "http://"},
        {"prom_port": 0},
        {"prom_port": 70000},
        {"prom_mode": "pull"},
        {"prom_mode": None},
        {"prom_host": "127.0.0.1:9091"},
        {"prom_host": "ftp://127.0.0.1"},
        {"prom_host": "push.example/metrics"},
        {"prom_interval": 0},
        {"prom_interval": float("inf")},
        {"prom_interval": 10**400},
        {"prom_legacy_names": 1},
        {"prom_delete_group": "yes"},
        {"prom_push_interval": -1},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_arguments_are_checked(wrong):
    ((_, value),) = wrong.items()
    with pytest.raises(ValueError, match=r"expected") as error:
        http_server(**{"name": "a", "handler": Echo(), **wrong})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("mode", ["off", "scrape", "push"])
@pytest.mark.parametrize("host", ["127.0.0.1", "http://127.0.0.1", "http://push.example/", "https://[::1]"])
def test_the_arguments_of_the_first_virtex_are_taken(host, mode):
    app = http_server("a", Echo(), 512, 0.005, host, 9090, mode, 0.01)
    assert app.max_queue_size == 2048
    prom = http_server(name="a", handler=Echo(), prom_host=host, prom_mode=mode, prom_push_interval=0.05).options.prom
    assert (prom.mode, prom.interval) == (mode, 0.05)
    assert prom.host == host.split("//")[-1].strip("/[]")
    assert prom.scheme == ("https" if host.startswith("https") else "http")
