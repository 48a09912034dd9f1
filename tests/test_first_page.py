"""The blocks of code on the page of Virtex 0.1, as its users have them, run: tests/compat/page/.

The page is that of chrislarson1/virtex, under the Apache License. A line of a block that could not run as it stood is
repaired, and says so; docs/migrating.md lists these lines. Its ports are others here, and services listen on the
loopback interface.
"""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import needs
from kit.pages import PORT, running
from kit.prom import get, needs_pushgateway, pushgateway, total
from kit.servers import ROOT, free_port, until

from virtex import HttpClient, HttpMessage
from virtex.serial import decode_numpy, encode_pil

Image = needs.library("PIL.Image")
PAGE = ROOT / "tests" / "compat" / "page"
COLOR = (250, 20, 3)
IMAGE = Image.new("RGB", (4, 6), COLOR)
GUNICORN = (
    "gunicorn server:app --workers 10 --worker-class virtex.VirtexWorker --bind 127.0.0.1:8081 "
    "--worker-connections 100000 --timeout 120 --log-level CRITICAL"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, and the image that it opens."""
    shutil.copytree(PAGE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "path" / "to").mkdir(parents=True)
    IMAGE.save(tmp_path / "path" / "to" / "image_file", "PNG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path, was: str, now: str) -> None:
    """Change a block where the page could not know better."""
    code = path.read_text()
    assert was in code
    path.write_text(code.replace(was, now))


def post(port: int) -> list[Any]:
    """What a service of the page answers for an image."""
    message = HttpMessage(data=[IMAGE])
    message.encode(encode_pil)
    answer = HttpClient(f"http://127.0.0.1:{port}", raise_errors=True).post(message)
    answer.decode(decode_numpy)
    return list(answer.data)


def test_a_message_is_encoded_and_recovered(folder: Path) -> None:
    names = runpy.run_path(str(folder / "message.py"))
    assert isinstance(names["msg_str"], bytes)
    np.testing.assert_array_equal(names["req1_decoded"], names["req1"])
    np.testing.assert_array_equal(names["req2_decoded"], names["req2"])


@pytest.mark.parametrize("size", [1, 128])
def test_a_handler_is_validated_with_one_item_and_with_as_many_as_a_batch_may_have(folder: Path, size: int) -> None:
    message = HttpMessage(data=[IMAGE] * size)
    message.encode(encode_pil)
    answer = runpy.run_path(str(folder / "handler.py"))["request_handler_x"].validate(message)
    answer.decode(decode_numpy)
    np.testing.assert_array_equal(answer.data, [COLOR] * size)


def test_the_client_gets_arrays_for_images_from_ten_workers(folder: Path) -> None:
    port = free_port()
    put(folder / "client.py", PORT, str(port))
    with running(GUNICORN.replace(PORT, str(port)), port, folder) as server:
        until(lambda: len(server.workers()) == 10, "ten workers", server)
        names = runpy.run_path(str(folder / "client.py"))
    (prediction,) = names["prediction"]
    np.testing.assert_array_equal(prediction, np.float32(COLOR))


def test_the_client_of_the_page_unrepaired_says_what_it_lacks(folder: Path) -> None:
    put(folder / "client.py", 'HttpClient("http://127.0.0.1:8081")', "HttpClient()")
    with pytest.raises(ValueError, match=r"HttpClient\(url\)"):
        runpy.run_path(str(folder / "client.py"))


def test_a_service_is_scraped(folder: Path) -> None:
    port, scraped = free_port(), free_port()
    put(folder / "scrape.py", "9090", str(scraped))
    with running(f"gunicorn scrape:app -k virtex.VirtexWorker --bind 127.0.0.1:{port}", port, folder):
        np.testing.assert_array_equal(post(port), [COLOR])
        text = get(f"http://127.0.0.1:{scraped}/metrics")
    assert total(text, "virtex_queries_total", service="service_x") == 1


@needs_pushgateway
def test_a_service_pushes_to_a_gateway(folder: Path) -> None:
    port, pushed = free_port(), free_port()
    put(folder / "push.py", "9091", str(pushed))
    with (
        pushgateway(folder, pushed) as gateway,
        running(f"gunicorn push:app -k virtex.VirtexWorker --bind 127.0.0.1:{port}", port, folder) as server,
    ):
        np.testing.assert_array_equal(post(port), [COLOR])
        until(lambda: total(get(f"{gateway}/metrics"), "virtex_queries_total", job="service_x") == 1, "a push", server)


def test_the_notes_on_migration_name_each_line_that_was_repaired() -> None:
    repaired = [line for path in PAGE.glob("*.py") for line in path.read_text().splitlines() if "# repaired: " in line]
    notes = (ROOT / "docs" / "migrating.md").read_text()
    for line in repaired:
        code, _, was = line.partition("  # repaired: was ")
        assert f"`{code.partition(' = ')[2] or code}`" in notes, line
        assert was == "not said" or re.search(rf"`[^`\n]*{re.escape(was)}[^`\n]*`", notes), line
