"""What a started service says of itself: its lines, and the one for curl."""

import json
import shlex
import socket
import subprocess

import pytest

from virtex import Tensor, TensorHandler, http_server
from virtex.workers.greeting import curl, lines, url_of

LIMITS = {"body": 64 << 20, "max_bytes": 4 << 30}
INFO = {"name": "x", "limits": LIMITS, "max_batch_size": 8, "max_queue_size": 32, "accepts": ["application/json"]}


class Asks(TensorHandler):
    inputs = Tensor("float32")

    def run_inference(self, batch):
        return batch


def sent(**info):
    """The message that the line sends, made by the very shell that a reader would paste it to."""
    line = curl(INFO | info, "", "http://h/")
    assert "\n" not in line and "'http://h/'" not in line
    echo = 'curl() { while [ $# -gt 1 ]; do shift; done; if [ "$1" = @- ]; then cat; else printf %s "$1"; fi; }; '
    done = subprocess.run(["bash", "-c", echo + line], capture_output=True, check=True, text=True)
    return json.loads(done.stdout)["data"]


@pytest.mark.parametrize(
    ("info", "item"),
    [
        ({"inputs": {"dtype": "float32", "shape": [3]}}, [0.0, 0.0, 0.0]),
        ({"inputs": {"dtype": "float32", "shape": [2, 2]}, "example": ["k05VTVBZ"]}, [[0.0, 0.0], [0.0, 0.0]]),
        ({"inputs": {"dtype": "float8_e4m3fn", "shape": []}}, 0.0),
        ({"inputs": {"dtype": "bool", "shape": [1]}}, [False]),
        ({"inputs": {"dtype": "uint8", "shape": [200, 3]}}, [[0] * 3] * 200),
        (
            {"inputs": {"a": {"dtype": "int8", "shape": [2]}, "it's": {"dtype": "bfloat16", "shape": []}}},
            {"a": [0, 0], "it's": 0.0},
        ),
        (
            {"inputs": {"a": {"dtype": "int8", "shape": [20, 20]}, "b": {"dtype": "int8", "shape": []}}},
            {"a": [[0] * 20] * 20, "b": 0},
        ),
        ({"inputs": {"dtype": "float32", "shape": [2]}, "example": [[1.5, 2]]}, [1.5, 2]),
        ({"inputs": {"dtype": "<U4", "shape": [2]}, "example": ["k05VTVBZ"]}, "k05VTVBZ"),
        ({"inputs": {"dtype": "int64", "shape": None}, "example": [[1]]}, [1]),
        ({"example": ["it's", "b"]}, "it's"),
    ],
    ids=range(11),
)
def test_the_line_sends_an_item_that_fits(info, item):
    assert sent(**info) == [item]


def test_a_long_example_is_fetched_and_none_is_said():
    line = curl(INFO | {"example": ["x" * 1000]}, "-k ", "https://h/")
    assert line.startswith("curl -s -k https://h/ | python3 -c ") and line.endswith(" | curl -k https://h/ -d @-")
    assert curl(INFO, "", "http://h/").endswith("with an ITEM of yours")
    assert curl(INFO | {"accepts": ["multipart/form-data"]}, "", "http://h/") == "curl http://h/ -F file=@FILE"


def test_lines_say_where_and_how_much():
    where, limits, _ = lines(INFO, [("", "http://h:1"), ("", "http://[::1]:2")], "/a%20b", False)
    assert where == "serving 'x' at http://h:1/a%20b and http://[::1]:2/a%20b"
    assert limits.startswith(
        "limits: 67.1 MB a body, 4.29 GB all requests, batches of 8, 32 items waiting; memory now:"
    )


def test_the_line_leaves_room_for_the_key_of_a_service_that_has_one(monkeypatch):
    monkeypatch.delenv("VIRTEX_API_KEY", raising=False)
    assert not http_server("x", Asks).has_key and not http_server("x", Asks, authorize=bool).has_key
    assert http_server("x", Asks, api_key="swordfish", authorize=bool).has_key
    monkeypatch.setenv("VIRTEX_API_KEY", "swordfish")
    assert http_server("x", Asks).has_key
    *_, line = lines(INFO | {"example": [1]}, [("-k ", "https://h:1")], "/", True)
    assert line == """try it: curl -k -H 'Authorization: Bearer KEY' https://h:1/ -d '{"data": [1]}'"""


def test_every_kind_of_socket_has_its_url(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as sock:
        assert url_of(sock, False) == ("", f"http://127.0.0.1:{sock.getsockname()[1]}")
        assert url_of(sock, True) == ("-k ", f"https://127.0.0.1:{sock.getsockname()[1]}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "a b"))
        assert url_of(sock, False) == (f"--unix-socket {shlex.quote(str(tmp_path / 'a b'))} ", "http://localhost")
