"""The pairs of server and client of virtex-benchmarks, started by their own script and settings; make compat.

tests/compat/ holds pairs that make the same calls in our own words, for virtex-benchmarks has no licence to copy it
by. With BENCHMARKS=<a checkout of it> its own run too, as they are. What no test may fetch is made here: a vocabulary,
images, texts. A pair runs in a copy, of which nothing is changed.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import needs
from kit.prom import get, needs_pushgateway, pushgateway, total
from kit.servers import ROOT, Running, free_port, listens, until

from virtex import HttpClient, HttpMessage
from virtex.serial import decode_pickle, encode_bytes

START_SECONDS = 240.0  # two workers import torch and transformers, and build BERT, on two busy cores
OURS = ROOT / "tests" / "compat"
TREES = {"ours": OURS} | ({"theirs": Path(path).resolve()} if (path := os.environ.get("BENCHMARKS")) else {})
NAMES = {"echo": "echo_service", "bert": "bert_embedding_service", "resnet": "resnet_50_v2_service"}
NEEDS = {"echo": (), "bert": ("torch", "transformers"), "resnet": ("torch", "torchvision", "PIL")}
QUERIES = {"echo": 600, "bert": 24, "resnet": 8}
SIZES = {"bert": 768, "resnet": 1000}  # of an answer, float32
SETTINGS = {
    "LOG_LEVEL": "critical",
    "VIRTEX_SVC_NAME": "http://127.0.0.1",
    "PROMETHEUS_HOST": "http://127.0.0.1",
    "PROMETHEUS_INTERVAL": "0.05",
    "MAX_CONCURRENT_CONNECTIONS": "100000",
    "NUM_VIRTEX_WORKERS": "2",
    "MAX_BATCH_SIZE": "2000",
    "MAX_TIME_ON_QUEUE": "0.01",
    "MAX_SEQUENCE_LENGTH": "12",
    "CONTENT_LENGTH": "1000",
    "REQUEST_BATCH_SIZE": "6",
}
# The server of resnet is sent MAX_BATCH_SIZE images before it starts: 2000 of them take more memory than there is.
OF_PAIR = {
    "echo": {"CLIENT_REQUESTS_PER_SECOND": "500"},
    "bert": {"CLIENT_REQUESTS_PER_SECOND": "4"},
    "resnet": {"CLIENT_REQUESTS_PER_SECOND": "2", "MAX_BATCH_SIZE": "4", "REQUEST_BATCH_SIZE": "2"},
}


@pytest.fixture(params=[*TREES])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the pairs, with what they read."""
    copy = tmp_path / "pairs"
    shutil.copytree(TREES[request.param], copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    make_texts(copy / "data" / "tweets.txt")
    make_images(copy / "data" / "tiny-imagenet-200" / "test" / "images")
    make_vocabulary(tmp_path / "hub" / "models--bert-base-uncased")
    return copy


def make_texts(path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text("My phone is on its latest update!\nWho is at the concert tonight? http://example.com/a\n" * 30)


def make_images(folder: Path) -> None:
    """Files of 64 x 64 pixels, as those of Tiny ImageNet, of which the third is grey, as some of them are."""
    with contextlib.suppress(ImportError):  # then resnet is skipped
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        for n in range(4):
            Image.effect_noise((64, 64), 50).convert("L" if n == 2 else "RGB").save(folder / f"test_{n}.JPEG")


def make_vocabulary(folder: Path) -> None:
    """A model in the layout of the hub's cache, that consists of a vocabulary of single characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    words = [*special, *letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    for name, text in {"refs/main": "local", "snapshots/local/vocab.txt": "\n".join(words)}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)


def environment(pair: str, side: str, folder: Path, port: int, **more: str) -> dict[str, str]:
    """Of run.sh: the settings of virtex-benchmarks, and what stands in for the rest."""
    paths = [str(ROOT), *(str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(":") if path)]
    if side == "server" and NEEDS[pair]:
        paths.insert(0, str(OURS / "stand_ins"))
    return (
        os.environ
        | SETTINGS
        | OF_PAIR[pair]
        | {
            "TASK": f"{pair}-{side}",
            "VIRTEX_TARGET_PORT": str(port),
            "VIRTEX_SVC_PORT": str(port),
            "NUM_QUERIES": str(QUERIES[pair]),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GUNICORN_CMD_ARGS": "--no-control-socket",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(folder / "hub"),
            "OMP_NUM_THREADS": "1",
        }
        | more
    )


@contextlib.contextmanager
def serving(pair: str, tree: Path, **more: str) -> Iterator[Running]:
    """The server of a pair, all of whose workers are ready; at the end it is asked to end, and does."""
    port, folder = free_port(), tree.parent
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(tree / "run.sh")],
            env=environment(pair, "server", folder, port, **more),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Running(process, port, folder)
    try:
        until(lambda: states(server) == ["ready", "ready"], "two workers to be ready", server, START_SECONDS)
        yield server
        os.killpg(process.pid, signal.SIGTERM)  # the shells between us and gunicorn pass no signal on
        until(lambda: not listens(port), "the server to end")
    finally:
        server.stop()


def live(server: Running) -> dict[str, Any]:
    return dict(json.loads(server.request("GET", "/metrics/live")[1]))


def states(server: Running) -> list[str]:
    try:
        return sorted(worker["state"] for worker in live(server)["workers"])
    except OSError:
        return []


def load_tested(pair: str, tree: Path, port: int) -> dict[str, Any]:
    """Run the client of a pair; gives the metrics that it printed."""
    ended = subprocess.run(
        [str(tree / "run.sh")],
        env=environment(pair, "client", tree.parent, port),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(pair, ended.stdout)
    return dict(ast.literal_eval(ended.stdout))


def check_load_test(pair: str, tree: Path, server: Running) -> None:
    """Every query is answered, and the client says how fast."""
    metrics = load_tested(pair, tree, server.port)
    count = QUERIES[pair]
    requests = count // int((SETTINGS | OF_PAIR[pair])["REQUEST_BATCH_SIZE"])
    assert (metrics["num_requests"], metrics["num_queries"]) == (requests, count)
    assert 0 < metrics["server_latency_p50_seconds"] <= metrics["server_latency_p99_seconds"]
    counted = live(server)["metrics"]
    assert counted["virtex_queries_total"] >= count  # and those of the warm-up
    assert {code for code, n in counted["virtex_requests_total"].items() if n} == {"200"}


def check_answer(pair: str, tree: Path, port: int) -> None:
    """An answer is what the pair says that it gives."""
    items: list[Any] = ["some text", "another, which is longer"]
    if pair == "resnet":
        items = [encode_bytes(path.read_bytes()) for path in sorted((tree / "data").rglob("*.JPEG"))[:3]]
    answer = HttpClient(f"http://127.0.0.1:{port}", raise_errors=True).post(HttpMessage(data=items))
    if pair == "echo":
        assert answer.data == items
        return
    answer.decode(decode_pickle, trusted=True)
    assert [(row.shape, row.dtype.name) for row in answer.data] == [((SIZES[pair],), "float32")] * len(items)


@pytest.mark.parametrize("mode", ["off", pytest.param("push", marks=needs_pushgateway)])
@pytest.mark.parametrize("pair", list(NAMES))
def test_a_pair_of_virtex_benchmarks_runs(pair: str, mode: str, tree: Path) -> None:
    needs.found(*NEEDS[pair])
    if pair != "echo":
        needs.time()
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(pushgateway(tree.parent, free_port())) if mode == "push" else "http://:9"
        with serving(pair, tree, PROMETHEUS_MODE=mode, PROMETHEUS_PORT=gateway.rpartition(":")[2]) as server:
            check_load_test(pair, tree, server)
            check_answer(pair, tree, server.port)
            if mode == "push":
                until(lambda: pushed(gateway, pair) == queries(server), "every query to be pushed", server)


def queries(server: Running) -> int:
    return int(live(server)["metrics"]["virtex_queries_total"])


def pushed(gateway: str, pair: str) -> float:
    return total(get(f"{gateway}/metrics"), "virtex_queries_total", job=NAMES[pair])
