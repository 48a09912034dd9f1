"""What messages, arrays, files and shapes become, and what is said of those that can't be sent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kit.peer import message

from virtex.load.payloads import Payload, payloads_of
from virtex.serial.numpy import decode_numpy


def data_of(payload: Payload) -> list[Any]:
    assert payload.content_type == "application/json"
    data: list[Any] = orjson.loads(payload.body)["data"]
    assert len(data) == payload.items
    return data


def test_a_message_is_its_json() -> None:
    assert payloads_of(message(1, "zwei")) == [Payload(b'{"data":[1,"zwei"],"error":null}', 2, "application/json")]


def test_several_sources_follow_each_other() -> None:
    assert [data_of(one) for one in payloads_of([message(1), message(2, 3)])] == [[1], [2, 3]]


def test_an_array_is_an_item_in_base64_or_a_document() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (payload,) = payloads_of(array, items=2)
    for item in data_of(payload):
        np.testing.assert_array_equal(decode_numpy(item), array)
    (payload,) = payloads_of(array, items=2, binary=True)
    assert (payload.items, payload.content_type) == (2, "application/x-npy")
    documents = io.BytesIO(payload.body)
    for _ in range(2):
        np.testing.assert_array_equal(np.load(documents), array)
    assert not documents.read()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int64", "bool", "complex64"])
@pytest.mark.parametrize(("text", "shape"), [("3,2,4", (3, 2, 4)), ("5", (5,)), ("", ()), ("0,3", (0, 3))])
def test_a_dtype_and_a_shape_are_an_array_of_random_numbers(dtype: str, text: str, shape: tuple[int, ...]) -> None:
    (payload,) = payloads_of(f"{dtype}:{text}")
    array = decode_numpy(data_of(payload)[0])
    assert (array.dtype, array.shape) == (np.dtype(dtype), shape)
    assert payloads_of(f"{dtype}:{text}") == [payload]
    if array.size > 4:
        assert len(np.unique(array)) > 1
        assert payloads_of(f"{dtype}:{text}", seed=1) != [payload]


def test_a_npy_file_is_an_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3))
    for source in (path, str(path)):
        assert decode_numpy(data_of(payloads_of(source)[0])[0]).tolist() == [0, 1, 2]
    assert payloads_of(path, binary=True)[0].body == path.read_bytes()


FILES = {
    "a message": ("x.json", b'{"data": [1, 2], "x": 3}', [[1, 2]]),
    "a list of messages": ("x.json", b'[{"data": [1]}, {"data": []}]', [[1], []]),
    "a message in each line": ("x.jsonl", b'{"data": [1]}\n\n{"data": [2, 3]}\n', [[1], [2, 3]]),
    "lines of text": ("x.txt", "eins\n\nzwei \u00fc\r\ndrei".encode(), [["eins"], ["zwei \u00fc"], ["drei"]]),
    "text of any name": ("words", b"a\nb", [["a"], ["b"]]),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_what_its_name_says(kind: str, tmp_path: Path) -> None:
    name, content, data = FILES[kind]
    (tmp_path / name).write_bytes(content)
    assert [data_of(payload) for payload in payloads_of(tmp_path / name)] == data


def test_lines_share_requests(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\nb\nc\n")
    assert [data_of(payload) for payload in payloads_of(tmp_path / "x.txt", items=2)] == [["a", "b"], ["c"]]


def test_a_file_is_taken_before_a_shape_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "int8:3").write_text("words")
    assert data_of(payloads_of("int8:3")[0]) == ["words"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", b"{", "x.json: expected JSON"),
        ("x.json", b'{"data": 1}', r"x.json, message 0: expected a message"),
        ("x.json", b"[1]", r"x.json, message 0: expected a message"),
        ("x.json", b"[]", "expected something to send"),
        ("x.jsonl", b'{"data": []}\n{]', r"x.jsonl, line 2: expected JSON"),
        ("x.jsonl", b"\n[]", r"x.jsonl, line 2: expected a message"),
        ("x.txt", b"\n \n", "expected something to send"),
    ],
)
def test_a_file_that_can_not_be_sent_is_refused_by_name(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        payloads_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npy", b"no array", "x.npy: expected an array as numpy.save writes it"),
        ("x.npy", b"", "x.npy: expected an array as numpy.save writes it"),
        ("x.txt", b"\xff\xfe", "x.txt: expected text in UTF-8"),
    ],
    ids=["not an array", "empty", "not UTF-8"],
)
def test_a_file_of_something_else_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        payloads_of(tmp_path / name)


def test_a_pickle_in_a_npy_file_is_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], object))
    with pytest.raises(ValueError, match="pickle"):
        payloads_of(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing.json", "expected a file, or a shape like float32:3,224,224, got 'nothing.json'"),
        ("float31:3", "expected a dtype like float32, got 'float31'"),
        ("str:3", "expected a dtype of numbers"),
        ("float64:1000000,1000000", "a GiB at most"),
        ("float32:3,,4", "expected a file, or a shape"),
    ],
)
def test_what_is_neither_a_file_nor_a_shape_is_refused(source: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        payloads_of(source)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected an HttpMessage, an array, a file or a shape, got int"):
        payloads_of([3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"message.data: expected a list of items, got int"):
        bad = message()
        bad.data = 3  # type: ignore[assignment]
        payloads_of(bad)
    with pytest.raises(ValueError, match="items: expected 1 or more, got 0"):
        payloads_of(message(1), items=0)
