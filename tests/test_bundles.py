"""How many messages of a bundle are under way, and who goes first after a refusal: services with little room."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest
import uvloop
from kit.peer import FACES, Face, Link, answering, echo, message, reply
from kit.servers import serving

from virtex.client import HttpClient
from virtex.posting.bundles import Pace, in_threads


@pytest.fixture(params=FACES.values(), ids=FACES.keys())
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


def test_after_a_refusal_as_many_are_under_way_as_found_room_and_none_begins_until_it_has_its_answer() -> None:
    pace = Pace(8)
    places = [pace.begin() for _ in range(8)]
    assert not pace.is_open
    places[0].refuse()
    places[1].refuse()
    places[1].refuse()
    assert pace.limit == 6
    for place in places[2:]:
        place.end()
    assert not pace.is_open  # two wait to be posted again
    places[0].end()
    assert not pace.is_open
    places[1].end()
    assert pace.is_open
    assert 6 < pace.limit < 8


def test_where_none_found_room_in_all_the_time_of_one_the_rest_does_not_wait_until_one_finds_room() -> None:
    pace = Pace(2)
    first, second = pace.begin(), pace.begin()
    assert first.refuse()
    first.give_up()
    assert not second.refuse()
    first.end()
    second.end()
    third = pace.begin()
    assert not third.refuse()
    third.end()
    pace.begin().end()  # this one finds room
    fourth = pace.begin()
    assert fourth.refuse()
    pace.end(refused=False, given_up=False)  # as another does in the fourth's time
    fourth.give_up()
    assert pace.has_hope


def test_one_is_always_under_way_and_the_limit_grows_back() -> None:
    pace = Pace(4)
    places = [pace.begin() for _ in range(4)]
    for place in places:
        place.refuse()
    assert pace.limit == 1
    for place in places:
        place.end()
    for _ in range(20):
        pace.begin().end()
    assert pace.limit == 4


def test_a_failure_in_a_thread_is_raised_when_the_others_are_done() -> None:
    def post(number: int, place: Any) -> int:
        if number == 3:
            raise RuntimeError("three")
        return number

    with pytest.raises(RuntimeError, match="three"):
        in_threads(range(20), 4, post, lambda: None)


def with_room_for(count: int, seen: list[int]) -> Any:
    """A service that refuses all but so many at a time, and lets the first of them wait until others were refused."""
    lock, inside = threading.Lock(), [0]
    refused = threading.Event()

    def run(link: Link) -> None:
        while (request := link.read()) is not None:
            with lock:
                inside[0] += 1
                is_full = inside[0] > count
                seen.append(503 if is_full else 200)
            if is_full:
                refused.set()
                answer = reply({"data": [], "error": "full"}, "503 Service Unavailable", "retry-after: 0\r\n")
            else:
                refused.wait(10.0)
                answer = reply({"data": [int(request[1].split(b"[")[1].split(b"]")[0])]})
            with lock:
                inside[0] -= 1
            link.send(answer)

    return run


def test_a_bundle_against_little_room_is_answered_whole_with_few_refusals(face: Face) -> None:
    seen: list[int] = []
    with answering(with_room_for(4, seen)) as peer, HttpClient(peer.url(), max_connections=16) as client:
        answers = face(client, "post_bundle", [message(n) for n in range(100)])
    assert [answer.data for answer in answers] == [[n] for n in range(100)]
    assert 0 < seen.count(503) <= 100


def test_without_tokens_a_bundle_still_ends_in_answers(face: Face) -> None:
    with answering(with_room_for(2, [])) as peer, HttpClient(peer.url(), max_connections=8) as client:
        client._retries.budget.tokens = 0.0
        answers = face(client, "post_bundle", [message(n) for n in range(20)])
    assert [answer.data for answer in answers] == [[n] for n in range(20)]


SLOW = """
import time
from virtex import RequestHandler, http_server

class Slow(RequestHandler):
    def process_request(self, data):
        return data
    def run_inference(self, batch):
        time.sleep(0.02)
        return batch
    def process_response(self, row):
        return row

app = http_server("slow", Slow(), max_batch_size=8, max_queue_size=32, executor="thread")
"""


def test_a_bundle_of_300_against_a_queue_of_32_ends_in_300_answers(face: Face) -> None:
    with serving("serve", SLOW) as server, HttpClient(f"http://127.0.0.1:{server.port}") as client:
        answers = face(client, "post_bundle", [message(n) for n in range(300)])
    assert [answer.error for answer in answers] == [None] * 300
    assert [answer.data for answer in answers] == [[n] for n in range(300)]


def test_a_bar_shows_the_progress_when_asked(face: Face, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(echo) as peer, HttpClient(peer.url()) as client:
        call = client.post_bundle if face is FACES["plain"] else client.post_bundle_async
        bundle = [message(n) for n in range(10)]
        answers = call(bundle, progress=True)
        if asyncio.iscoroutine(answers):
            answers = (asyncio.run if face is FACES["asyncio"] else uvloop.run)(answers)
    assert len(answers) == 10
    assert "10/10" in capsys.readouterr().err


def test_a_bar_without_tqdm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtex.extras import library

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with (
        HttpClient("http://127.0.0.1:1/") as client,
        pytest.raises(ImportError, match=r"install the extra \[loadtest\]"),
    ):
        client.post_bundle([message(1)], progress=True)
    library.cache_clear()
