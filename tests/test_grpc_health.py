"""grpc.health.v1: what probes and balancers ask, and what they are told when it changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvloop
from kit import needs
from kit.asks import Echo
from kit.servers import eventually

needs.library("grpc")

import grpc  # noqa: E402
from kit.grpc import Client, Told  # noqa: E402

from virtex import Limits, Services, http_server  # noqa: E402
from virtex.rpc.health import Health  # noqa: E402
from virtex.rpc.serving import GrpcServer, serve_grpc  # noqa: E402

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    b"\x08\x01",
    b"\x08\x02",
    b"\x08\x03",
)  # the one field of the answer, as it travels
WHOLE = "inference.GRPCInferenceService"


def named(service: str) -> bytes:
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


class Asker:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def check(self, service: str = "") -> bytes | str:
        """What Check gives: a status, or the name of the code that it ended with."""
        told = await self.told(named(service))
        return told.message if told.code == "OK" else told.code

    async def told(self, message: bytes) -> Told:
        call = self._client.channel.unary_unary(CHECK)(message, timeout=20)
        try:
            return Told("OK", "", {}, await call)
        except grpc.aio.AioRpcError as error:
            return Told(error.code().name, error.details() or "", {})

    def watch(self, service: str = "") -> Any:
        return self._client.channel.unary_stream(WATCH)(named(service), timeout=20)

    def half(self, method: str) -> Any:
        """A call that sends no message."""
        return self._client.channel.stream_stream(method)(timeout=20)


@contextlib.asynccontextmanager
async def asked(app: Any) -> AsyncIterator[tuple[Any, Asker]]:
    async with await serve_grpc(app, port=0) as server:
        client = Client(server.port)
        try:
            yield server, Asker(client)
        finally:
            await client.close()
            await app.shutdown()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """grpc.aio has one poller in a process, which had better see one loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


class Loading(Echo):
    """Its start waits until it is let."""

    last: Loading
    gate: asyncio.Event

    async def setup(self, worker: Any) -> None:
        self.gate = asyncio.Event()
        Loading.last = self
        await self.gate.wait()


def test_the_process_and_each_model_is_ready_or_not_and_what_there_is_not_is_not_found(runner: asyncio.Runner) -> None:
    one, two = http_server("one", Echo), http_server("two", Echo, api_key="of-sixteen-letters")

    async def main() -> None:
        async with asked(Services(one, two)) as (_, asker):
            for service in ("", WHOLE, "one", "two"):
                assert await asker.check(service) == SERVING
            told = await asker.told(named("three"))
            assert told.code == "NOT_FOUND"
            assert told.details == f"there is no service three: expected '', {WHOLE} or a model's name"  # no names
            two.drain()
            assert [await asker.check(service) for service in ("one", "two", "", WHOLE)] == [
                *(SERVING, NOT_SERVING),
                *(NOT_SERVING, NOT_SERVING),
            ]
            for message in (b"\x0a\x7f", b"\x0a\x01\xff"):
                assert (await asker.told(message)).code == "INVALID_ARGUMENT"
            assert await asker.check("y" * 100) == "NOT_FOUND"
            assert (await asker.told(b"\x12\x01x" + named("one"))).message == SERVING  # a field of a later version

    runner.run(asyncio.wait_for(main(), 30))


def test_who_watches_is_told_at_once_when_it_changes(runner: asyncio.Runner) -> None:
    one, two = http_server("one", Echo), http_server("two", Echo)

    async def main() -> None:
        async with asked(Services(one, two)) as (server, asker):
            watches = {service: asker.watch(service) for service in ("", "one", "two", "three")}
            told = {service: await call.read() for service, call in watches.items()}
            assert told == {"": SERVING, "one": SERVING, "two": SERVING, "three": SERVICE_UNKNOWN}
            two.drain()
            assert [await watches[service].read() for service in ("", "two")] == [NOT_SERVING] * 2
            await server.stop()
            assert await watches["one"].read() == NOT_SERVING
            for call in watches.values():  # each is told no more, and ends well
                assert await call.read() is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK

    runner.run(asyncio.wait_for(main(), 30))


def test_who_begins_to_watch_does_not_wake_the_others(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """6,000 that came at once held the loop for 28 s."""
    woken = []
    changed = Health._changed
    monkeypatch.setattr(Health, "_changed", lambda self, _=None: [woken.append(self), changed(self)])

    async def main() -> None:
        async with asked(http_server("one", Echo)) as (_, asker):
            for _ in range(5):
                assert await asker.watch().read() == SERVING
            assert len(woken) <= 1  # when the service had begun, which the first one asks for

    runner.run(asyncio.wait_for(main(), 30))


def test_no_more_watch_than_leave_room_for_other_calls(runner: asyncio.Runner) -> None:
    """Nobody needs a key for it, and a watch has no end."""

    async def main() -> None:
        async with asked(http_server("one", Echo, limits=Limits(connections=4))) as (_, asker):
            watches = [asker.watch() for _ in range(2)]
            assert [await watch.read() for watch in watches] == [SERVING] * 2
            more = asker.watch()
            assert await more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "2 calls watch already, half of limits.connections" in await more.details()
            assert await asker.check() == SERVING
            watches[0].cancel()  # one that leaves makes room
            while (status := await asker.watch().read()) != SERVING:
                assert status is grpc.aio.EOF

    runner.run(asyncio.wait_for(main(), 30))


def test_while_it_stops_nothing_is_ready_and_who_watches_is_let_go_behind_the_delay(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with asked(http_server("one", Echo)) as (server, asker):
            watch = asker.watch()
            assert await watch.read() == SERVING
            stopping = asyncio.create_task(server.stop(30, delay=30))
            assert await watch.read() == NOT_SERVING and await asker.check() == NOT_SERVING and not watch.done()
            stopping.cancel()
            await server.stop()
            assert await watch.read() is grpc.aio.EOF

    runner.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize(("hands_over", "says"), [(True, SERVING), (False, NOT_SERVING)])
def test_a_check_that_was_taken_finds_whoever_serves_on(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, hands_over: bool, says: bytes
) -> None:
    """In a reload another worker does; and who watches is let go, to ask that one."""

    async def main() -> None:
        async with asked(http_server("one", Echo)) as (server, asker):
            watch = asker.watch()
            assert await watch.read() == SERVING
            arriving, taken = server.calls.arriving, asyncio.Event()
            message = arriving.message
            monkeypatch.setattr(arriving, "message", lambda context: taken.set() or message(context))
            check = asker.half(CHECK)
            await taken.wait()
            stopping = asyncio.ensure_future(server.stop(20, 0, hands_over))
            assert await watch.read() == (grpc.aio.EOF if hands_over else NOT_SERVING)
            await check.write(named("one"))
            assert await check.read() == says
            await check.done_writing()
            await stopping

    runner.run(asyncio.wait_for(main(), 60))


def test_a_model_that_loads_is_not_ready_until_it_has(runner: asyncio.Runner) -> None:
    """As one that begins with its first request: serve_grpc() waits for all others."""
    app = http_server("one", Loading)

    async def main() -> None:
        starting = asyncio.create_task(serve_grpc(app, port=0))
        await eventually(lambda: hasattr(Loading, "last"))
        async with GrpcServer(app, ["127.0.0.1:0"], shares=False) as server:
            await server.start()
            asker = Asker(client := Client(server.port))
            watch = asker.watch("one")
            assert await watch.read() == NOT_SERVING == await asker.check()
            Loading.last.gate.set()
            assert await watch.read() == SERVING == await asker.check()
            await client.close()
            await (await starting).stop()
        await app.shutdown()

    runner.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_a_call_without_a_message_is_not_waited_for_without_an_end(runner: asyncio.Runner, method: str) -> None:
    async def main() -> None:
        async with asked(http_server("one", Echo, limits=Limits(answer_seconds=0.05))) as (_, asker):
            call = asker.half(method)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "within 0.05 s (limits.answer_seconds)" in await call.details()

    runner.run(asyncio.wait_for(main(), 30))
