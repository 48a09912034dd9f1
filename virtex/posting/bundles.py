"""How a bundle is posted: its messages in order, many at a time, and fewer where the service has no room.

Rules: numbers, threads and tasks; what a message is, it does not know. The number under way follows additive increase
and multiplicative decrease (D. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
Avoidance in Computer Networks", 1989), but for the decrease: a refusal tells how many found room.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..extras import library

T = TypeVar("T")


class Pace:
    """How many messages of a bundle may be under way. most: at most.

    While one that was refused waits to be posted again, none begins that has not been: else the younger ones would take
    its room each time.

    Where one is given up, and none found room in all its time, none of them is worth a wait until one finds room: else
    a service that refuses all would be waited for once for each message, one after the other.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.under_way = 0
        self.waiting = 0  # of them, after a refusal
        self.found_room = 0
        self.has_hope = True
        self.lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether another may begin."""
        return not self.waiting and self.under_way < int(self.limit)

    def begin(self) -> Place:
        """One begins."""
        self.under_way += 1
        return Place(self)

    def refuse(self) -> None:
        """One under way found no room: as many as did may be under way from now on."""
        self.waiting += 1
        self.limit = max(1.0, min(self.limit, float(self.under_way - self.waiting)))

    def give_up(self, found_room_before: int) -> None:
        """One is given up that began when so many had found room."""
        self.has_hope = self.found_room > found_room_before

    def end(self, refused: bool, given_up: bool) -> None:
        """One under way is over."""
        self.under_way -= 1
        if not given_up:
            self.found_room += 1
            self.has_hope = True
        if refused:
            self.waiting -= 1
        else:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)


class Place:
    """The place of one message that is under way."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._found_room_before = pace.found_room
        self.refused = self.given_up = False

    def refuse(self) -> bool:
        """The service had no room for it; gives whether there is hope that it will."""
        with self._pace.lock:
            if not self.refused:
                self.refused = True
                self._pace.refuse()
            self.given_up = not self._pace.has_hope
        return not self.given_up

    def give_up(self) -> None:
        """It would have to wait beyond its time."""
        self.given_up = True
        with self._pace.lock:
            self._pace.give_up(self._found_room_before)

    def end(self) -> None:
        """It is over."""
        with self._pace.lock:
            self._pace.end(self.refused, self.given_up)


def in_threads(messages: Sequence[Any], most: int, post: Callable[[Any, Place], T], done: Callable[[], Any]) -> list[T]:
    """What `post` gave for each message, in order. done: called for each that is over, one at a time."""
    pace = Pace(most)
    open_again = threading.Condition(pace.lock)
    answers: list[Any] = [None] * len(messages)
    numbers = iter(range(len(messages)))

    def work() -> None:
        while True:
            with open_again:
                open_again.wait_for(lambda: pace.is_open)
                number = next(numbers, None)
                if number is None:
                    return
                place = pace.begin()
            try:
                answers[number] = post(messages[number], place)
            finally:
                place.end()
                with open_again:
                    done()
                    open_again.notify_all() if place.refused else open_again.notify(2)

    count = min(most, len(messages))
    with ThreadPoolExecutor(count or 1) as threads:
        for ended in [threads.submit(work) for _ in range(count)]:
            ended.result()
    return answers


async def in_tasks(
    messages: Sequence[Any], most: int, post: Callable[[Any, Place], Awaitable[T]], done: Callable[[], Any]
) -> list[T]:
    """As in_threads(), on the running loop."""
    pace = Pace(most)
    open_again = asyncio.Condition()
    answers: list[Any] = [None] * len(messages)
    numbers = iter(range(len(messages)))

    async def work() -> None:
        while True:
            async with open_again:
                await open_again.wait_for(lambda: pace.is_open)
                number = next(numbers, None)
                if number is None:
                    return
                place = pace.begin()
            try:
                answers[number] = await post(messages[number], place)
            finally:
                place.end()
            done()
            async with open_again:
                open_again.notify_all() if place.refused else open_again.notify(2)

    tasks = [asyncio.create_task(work()) for _ in range(min(most, len(messages)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return answers


class Bar:
    """A progress bar of so many messages, where one is asked for: a context manager."""

    def __init__(self, count: int, is_wanted: bool) -> None:
        self._bar = library("tqdm", "progress=True", "loadtest").tqdm(total=count, unit="msg") if is_wanted else None

    def __enter__(self) -> Callable[[], Any]:
        return (lambda: None) if self._bar is None else self._bar.update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
