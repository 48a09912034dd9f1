"""HttpClient.predict: what goes out and what is made of every kind of answer, against real services and odd ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
import uvloop
from kit.peer import FACES, Face, Link, answering, reply

from virtex import HttpMessage, RequestHandler, Tensor, TensorHandler, http_server, serve
from virtex.client import HttpClient
from virtex.errors import ClientError
from virtex.serial import decode_numpy, encode_numpy

NPY = "application/x-npy"


@pytest.fixture(params=FACES.values(), ids=FACES.keys())
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


class Double(TensorHandler):
    inputs = Tensor("float32", (2, 3))

    def run_inference(self, batch: Any) -> Any:
        return batch * 2


class Named(TensorHandler):
    inputs = {"a": Tensor("float32", (2,)), "b": Tensor("int64")}

    def run_inference(self, batch: Any) -> Any:
        return {"sum": batch["a"].sum(axis=1), "b": batch["b"]}


class Decoded(RequestHandler):
    """A list handler that is sent base64 or .npy, and gives numbers."""

    def process_request(self, data: list[Any]) -> Any:
        return [decode_numpy(item) if isinstance(item, str) else item for item in data]

    def run_inference(self, batch: Any) -> Any:
        return [float(item.sum()) for item in batch]

    def process_response(self, row: Any) -> Any:
        return row


def served(handler: Any, use: Callable[[HttpClient], Any], **options: Any) -> Any:
    """Run `use`, a coroutine function of a client, beside the service."""

    async def main() -> Any:
        async with (
            await serve(http_server("it", handler, **options), "127.0.0.1", 0) as listener,
            HttpClient(f"http://127.0.0.1:{listener.port}") as client,
        ):
            return await use(client)

    return uvloop.run(main())


def test_an_array_comes_back_as_one_and_a_list_as_a_list() -> None:
    rows = np.arange(24, dtype="f4").reshape(4, 2, 3)

    async def use(client: HttpClient) -> Any:
        return (
            await client.predict_async(rows),
            await client.predict_async(list(rows)),
            await client.predict_async(rows[:0]),
        )

    stacked, listed, none = served(Double, use)
    assert stacked.dtype == np.float32 and np.array_equal(stacked, rows * 2)
    assert isinstance(listed, list) and all(np.array_equal(got, row * 2) for got, row in zip(listed, rows, strict=True))
    assert len(none) == 0


def test_named_inputs_and_outputs_are_dicts_of_arrays() -> None:
    a, b = np.ones((3, 2), "f4"), np.arange(3)

    async def use(client: HttpClient) -> Any:
        return await client.predict_async({"a": a, "b": b})

    got = served(Named, use)
    assert got["sum"].tolist() == [2, 2, 2]
    assert got["b"].tolist() == [0, 1, 2]


def test_a_list_handler_gets_each_item_as_a_document_and_its_numbers_become_an_array() -> None:
    async def use(client: HttpClient) -> Any:
        return await client.predict_async([np.ones(2), np.ones((2, 2)), np.float64(7)]), await client.predict_async(
            np.ones((3, 2))
        )

    ragged, stacked = served(Decoded, use)
    assert [row.item() for row in ragged] == [2.0, 4.0, 7.0]
    assert stacked.tolist() == [2.0, 2.0, 2.0]


def test_a_refused_item_is_an_error_with_status_index_and_id(face: Face) -> None:
    async def use(client: HttpClient) -> Any:
        with pytest.raises(ClientError) as caught:
            await client.predict_async([np.zeros((2, 3), "f4"), np.zeros((2, 2), "f4")])
        return caught.value

    error = served(Double, use)
    assert (error.status, error.index) == (422, 1)
    assert error.request_id
    assert "expected float32 (2, 3)" in str(error)


class Service:
    """Says what it takes, keeps what it gets, and answers as it is told."""

    def __init__(
        self, *answers: bytes, accepts: tuple[str, ...] = ("application/json", NPY), root_only: bool = False
    ) -> None:
        self.answers = list(answers)
        self.told = reply({"name": "it", "accepts": accepts, "answers": accepts})
        self.root_only = root_only
        self.asked: list[str] = []
        self.got: list[tuple[str, bytes]] = []

    def __call__(self, link: Link) -> None:
        while (request := link.read()) is not None:
            head, body = request
            method, path, _ = head.decode().split(" ", 2)
            if method == "GET":
                self.asked.append(path)
                link.send(reply(b"", "405 Method Not Allowed") if self.root_only and path != "/" else self.told)
            else:
                kind = head.decode().lower().split("content-type: ")[1].split("\r\n")[0]
                self.got.append((kind, body))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                link.send(answer)
                if b"connection: close" in answer:
                    return


def test_get_is_asked_once_for_each_url_and_at_the_root_where_the_url_has_no_answer(face: Face) -> None:
    service = Service(reply({"data": [1.5, 2.5], "error": None}), root_only=True)
    with answering(service) as peer, HttpClient(peer.url("/model")) as client:
        for _ in range(2):
            assert face(client, "predict", np.ones((2, 3))).tolist() == [1.5, 2.5]
        assert face(client, "predict", peer.url(), np.ones((2, 3))).tolist() == [1.5, 2.5]
    assert service.asked == ["/model", "/", "/"]
    assert {kind for kind, _ in service.got} == {NPY}


def test_base64_goes_to_a_service_that_takes_nothing_else(face: Face) -> None:
    service = Service(reply({"data": [encode_numpy(np.ones(2))] * 2}), accepts=("application/json",))
    with answering(service) as peer, HttpClient(peer.url()) as client:
        assert face(client, "predict", np.ones((2, 3), "i2")).tolist() == [[1, 1], [1, 1]]
    ((kind, body),) = service.got
    assert kind == "application/json"
    assert [decode_numpy(text).dtype for text in orjson.loads(body)["data"]] == [np.int16] * 2


def test_a_service_that_takes_npy_no_more_gets_base64_and_is_asked_again(face: Face) -> None:
    refused = reply({"data": [], "error": "send JSON"}, "415 Unsupported Media Type")
    service = Service(refused, reply({"data": [1, 2]}))
    with answering(service) as peer, HttpClient(peer.url()) as client:
        for _ in range(2):
            assert face(client, "predict", np.ones((2, 3))).tolist() == [1, 2]
    assert [kind for kind, _ in service.got] == [NPY, "application/json", NPY]
    assert service.asked == ["/", "/"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply({"data": [1]}), "expected 2 rows, one for each item, got 1"),
        (reply({"data": ["a", "b"]}), "base64"),
        (reply({"data": [None, 1]}), "expected numbers"),
        (reply({"data": [[1], [1, 2]]}), "inhomogeneous"),
        (reply({"data": [{"a": 1}, {"b": 1}]}), "expected the same outputs of each item"),
        (reply({"data": [encode_numpy(np.ones(1)), encode_numpy(np.ones(2))]}), "give a list to get a list"),
        (reply(b"no npy", headers=f"content-type: {NPY}\r\n"), "npy"),
        (reply(b"<html>"), "expected a message, got status 200"),
        (reply({"data": [], "error": "no"}, "500 Internal Server Error", "x-request-id: abc\r\n"), "500: no"),
        (reply(b"", "302 Found", "location: /there\r\n"), "a redirect to /there"),
        (
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 50\r\n\r\n{",
            "without sending complete message body",
        ),
    ],
)
def test_an_answer_that_is_no_arrays_is_an_error_that_says_why(face: Face, answer: bytes, words: str) -> None:
    with (
        answering(Service(answer)) as peer,
        HttpClient(peer.url()) as client,
        pytest.raises(ClientError, match=words) as caught,
    ):
        face(client, "predict", np.ones((2, 3)))
    assert caught.value.request_id == ("abc" if b"abc" in answer else None)


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ("abc", TypeError, "expected an array, a list or a dict of them, got NoneType"),
        (HttpMessage(data=[1]), (TypeError, ValueError), "expected"),
        (3, TypeError, "got int"),
        (np.float32(3), TypeError, "without dimensions"),
        ({"a": np.ones(2), "b": np.ones(3)}, ValueError, r"expected inputs of one length, got \[2, 3\] items"),
        ({}, ValueError, "expected inputs of one length"),
        (np.array([object()]), TypeError, "holds Python objects"),
    ],
    ids=["text", "message", "number", "scalar", "lengths", "nothing", "objects"],
)
def test_what_are_no_arrays_is_refused_by_name(face: Face, arrays: Any, error: Any, words: str) -> None:
    with (
        answering(Service(reply({"data": [1]}))) as peer,
        HttpClient(peer.url()) as client,
        pytest.raises(error, match=words),
    ):
        face(client, "predict", arrays)


def test_a_service_that_is_not_there_is_an_error_of_the_client(face: Face) -> None:
    with (
        HttpClient("http://127.0.0.1:1/", retry="never") as client,
        pytest.raises(ClientError, match="no reply") as caught,
    ):
        face(client, "predict", np.ones((2, 3)))
    assert caught.value.status == 0
