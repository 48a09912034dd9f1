"""Messages of gRPC that are not all there: waited for, but no more of them than fit into limits.max_bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from kit import needs
from kit.asks import Echo

needs.library("grpc")

import grpc  # noqa: E402
from kit.grpc import SERVICE, Client  # noqa: E402

from virtex import Limits, http_server, limits  # noqa: E402
from virtex.errors import RequestError  # noqa: E402
from virtex.resident import Memory  # noqa: E402
from virtex.rpc.arriving import Arriving  # noqa: E402
from virtex.rpc.serving import GrpcServer, serve_grpc  # noqa: E402
from virtex.service.model import retrieve  # noqa: E402

BOUNDED = Limits(max_bytes=2000, body=1000, body_grace_seconds=0.05, answer_seconds=60.0)  # room for two slow ones

BOUNDED_BY_SECONDS = Limits(body_grace_seconds=5.0, answer_seconds=60.0)


class Context:
    """Of a call whose message comes when it is let."""

    def __init__(self) -> None:
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        return await self.message


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def test_slow_messages_have_so_many_places_as_fit_into_max_bytes(runner: asyncio.Runner) -> None:
    async def main() -> None:
        arriving = Arriving(BOUNDED)
        contexts = [Context() for _ in range(5)]
        tasks = [asyncio.create_task(arriving.message(context)) for context in contexts]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        while len(done) < 3:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert done == set(tasks[2:]) and arriving.slow == 2
        for task in done:
            error = task.exception()
            assert isinstance(error, RequestError) and (error.status, error.dropped) == (503, "full")
            assert error.reason == ("no room for a message that is not all there beside 2 such ones (limits.max_bytes)")
        contexts[0].message.set_result(b"one")
        assert await tasks[0] == b"one" and arriving.slow == 1  # one that is there makes room
        another = asyncio.create_task(arriving.message(last := Context()))
        while arriving.slow < 2:
            await asyncio.sleep(0)
        tasks[1].cancel()  # and so does a client that leaves
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert arriving.slow == 1
        last.message.set_result(b"last")
        assert await another == b"last" and arriving.slow == 0

    runner.run(asyncio.wait_for(main(), 30))


def test_messages_that_come_at_once_are_not_counted_however_many_they_are(told: asyncio.Runner) -> None:
    async def main() -> None:
        arriving = Arriving(BOUNDED)
        contexts = [Context() for _ in range(1000)]
        tasks = [asyncio.create_task(arriving.message(context)) for context in contexts]
        await asyncio.sleep(0)
        for context in contexts:
            context.message.set_result(b"x")
        assert await asyncio.gather(*tasks) == [b"x"] * 1000 and arriving.slow == 0

    told.run(main())


class Told(asyncio.SelectorEventLoop):
    """Its time goes on when it is told."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def go(self, seconds: float) -> None:
        for more in (0, seconds):
            self.now += more
            for _ in range(5):
                await asyncio.sleep(0)


@pytest.fixture
def told() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=Told) as runner:
        yield runner


@pytest.mark.parametrize(("grace", "slow"), [(5.0, 1), (60.0, 0), (90.0, 0)])
def test_one_that_does_not_come_in_the_time_of_an_answer_is_late(told: asyncio.Runner, grace: float, slow: int) -> None:
    async def main(loop: Any) -> None:
        arriving = Arriving(Limits(answer_seconds=60.0, body_grace_seconds=grace, max_bytes=1000, body=1000))
        for _ in range(1 - slow):  # none of them takes a place
            asyncio.create_task(arriving.message(Context())).add_done_callback(retrieve)
        task = asyncio.create_task(arriving.message(Context()))
        await loop.go(4)
        assert arriving.slow == 0
        await loop.go(1.25)
        assert arriving.slow == slow
        await loop.go(54.5)
        assert not task.done()  # 59.75 s
        await loop.go(1)
        with pytest.raises(
            RequestError, match=r"no message was all there within 60 s \(limits.answer_seconds\)"
        ) as late:
            task.result()
        assert late.value.status == 408 and arriving.slow == 0

    told.run(main(told.get_loop()))


@pytest.mark.parametrize("seconds", [0, 6])
def test_a_call_whose_message_has_come_takes_its_time(told: asyncio.Runner, seconds: float) -> None:
    async def main(loop: Any) -> None:
        arriving, context = Arriving(BOUNDED_BY_SECONDS), Context()
        answered = loop.create_future()

        async def call() -> Any:
            return await arriving.message(context), await answered

        task = asyncio.create_task(call())
        await loop.go(seconds)
        context.message.set_result(b"x")
        await loop.go(100)
        assert arriving.slow == 0
        answered.set_result(1)
        assert await task == (b"x", 1)

    told.run(main(told.get_loop()))


@pytest.mark.parametrize("leaves", [False, True])
def test_a_client_that_leaves_as_its_message_is_late_has_left(told: asyncio.Runner, leaves: bool) -> None:
    async def main(loop: Any) -> None:
        arriving = Arriving(BOUNDED_BY_SECONDS)
        refused: list[int] = []

        async def call() -> None:
            try:
                await arriving.message(Context())
            except RequestError:
                task = asyncio.current_task()
                assert task is not None
                refused.append(task.cancelling())  # nobody has cancelled it

        task = asyncio.create_task(call())
        await loop.go(5.25)
        loop.call_later(54, lambda: leaves and loop.call_soon(task.cancel))  # ahead of what it wakes up for
        loop.now += 56
        await asyncio.wait([task])
        assert (task.cancelled(), refused) == ((True, []) if leaves else (False, [0]))

    told.run(main(told.get_loop()))


@pytest.mark.parametrize("of", ["the app", "the worker"])
def test_calls_of_every_kind_share_the_places(runner: asyncio.Runner, of: str) -> None:
    """A call that sends no message holds a place; the third is refused, with when to come again."""
    methods = [SERVICE + "ModelStreamInfer", "/grpc.health.v1.Health/Check", SERVICE + "ModelInfer"]

    async def main() -> None:
        app = http_server("one", Echo, limits=BOUNDED if of == "the app" else None)
        await app.startup()
        async with GrpcServer(app, ["127.0.0.1:0"], False, None if of == "the app" else BOUNDED) as server:
            await server.start()
            client = Client(server.port)
            calls: list[Any] = []
            for held, method in enumerate(methods):
                calls.append(client.channel.stream_stream(method)(timeout=30))
                while server.calls.arriving.slow <= held < 2:
                    await asyncio.sleep(0)
            assert await calls[2].code() is grpc.StatusCode.UNAVAILABLE
            assert "beside 2 such ones (limits.max_bytes)" in await calls[2].details()
            assert dict(await calls[2].trailing_metadata())["retry-after"]
            for call in calls:
                call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calls[0].code()
            while server.calls.arriving.slow:
                await asyncio.sleep(0)
            await client.close()
        await app.shutdown()

    runner.run(asyncio.wait_for(main(), 30))


def test_messages_are_bounded_by_what_fits_where_nobody_says_max_bytes(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of HTTP gets half of it at most, and so does a message; as many slow ones have a place as fit."""
    monkeypatch.setattr(limits, "memory", lambda: Memory(1 << 20, "a cgroup"))  # so 256 KiB are for requests

    async def main() -> None:
        app = http_server("one", Echo)
        async with await serve_grpc(app, port=0) as server:
            client = Client(server.port)
            told = await client.ask(bytes(130 << 10), timeout=30)
            assert told.code == "RESOURCE_EXHAUSTED" and "131072" in told.details
            calls = [client.channel.stream_stream(SERVICE + "ModelInfer")(timeout=30) for _ in range(3)]
            over = [asyncio.ensure_future(call.code()) for call in calls]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            assert [code.result() for code in over if code.done()] == [grpc.StatusCode.UNAVAILABLE]
            assert server.calls.arriving.slow == 2
            for call in calls:
                call.cancel()
            await asyncio.wait(over)
            await client.close()
        await app.shutdown()

    runner.run(asyncio.wait_for(main(), 30))
