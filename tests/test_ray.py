"""A replica of Ray Serve without Ray: how it is started, checked, asked, measured and ended; and Ray's absence."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from virtex import ItemError, RequestHandler, Services, http_server
from virtex.errors import HandlerError, RequestError
from virtex.handler import Worker
from virtex.metrics.schema import CELLS, PLACES
from virtex.metrics.totals import Totals
from virtex.ray.command import check_free, check_resources, target_of, traceback_in
from virtex.ray.gauges import Gauges
from virtex.ray.replica import Application, Behind, Replica


class Doubles(RequestHandler):
    """Doubles numbers, and keeps what happened to it."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.worker: Any = None

    def setup(self, worker: Any) -> None:
        self.worker = worker
        self.happened.append((worker.index, worker.count))

    def teardown(self) -> None:
        self.happened.append("teardown")

    def process_request(self, data: list[Any]) -> Any:
        if "bad" in data:
            raise ItemError("expected a number")
        return data

    def run_inference(self, model_input: Any) -> Any:
        return [2 * item for item in model_input]

    def process_response(self, model_output_item: Any) -> Any:
        return model_output_item


class Broken(Doubles):
    def setup(self, worker: Any) -> None:
        raise OSError("no weights at /models/x")


def replica_of(factory: Any, *args: Any, **kwargs: Any) -> Replica:
    class Deployed(Replica):
        app_factory = staticmethod(factory)

    return Deployed(*args, **kwargs)


@contextlib.asynccontextmanager
async def living(replica: Replica, worker: Worker | None = None) -> AsyncIterator[Application]:
    """Its application, with the lifespan that Ray runs behind begin()."""
    app = await replica.begin(worker or Worker())
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    yield app
    await inbox.put({"type": "lifespan.shutdown"})
    assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
    await task


async def ask(app: Any, body: Any, path: str = "/", **more: Any) -> tuple[int, list[Any], Any]:
    """What a POST is answered, as Ray's proxy calls it."""
    sent: list[Any] = []
    came = [{"type": "http.request", "body": orjson.dumps(body)}]

    async def receive() -> Any:
        return came.pop() if came else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"x-request-id", b"mine")], **more}
    await app(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"], orjson.loads(sent[1]["body"])


def test_setup_gets_the_rank_requests_are_answered_and_the_end_tears_down_once() -> None:
    handler = Doubles()

    async def main() -> None:
        replica = replica_of(lambda: http_server("doubles", handler))
        async with living(replica, Worker(1, 3)) as app:
            assert (await ask(app, {"data": [1, 2]}))[2] == {"data": [2, 4], "error": None}
            assert (await ask(app, {"data": [1]}, "/below/x", root_path="/below"))[0] == 200
            await replica.check_health()
            assert handler.happened == [(1, 3)]

    asyncio.run(main())
    assert handler.happened == [(1, 3), "teardown"]


def test_what_was_taken_is_answered_ahead_of_the_teardown() -> None:
    class Slow(Doubles):
        async def run_inference(self, model_input: Any) -> Any:
            for _ in range(50):
                await asyncio.sleep(0)
            self.happened.append("ran")
            return model_input

    handler = Slow()

    async def main() -> None:
        async with living(replica_of(lambda: http_server("slow", handler))) as app:
            asked = asyncio.ensure_future(ask(app, {"data": [1]}))
            await asyncio.sleep(0)
        assert (await asked)[0] == 200

    asyncio.run(main())
    assert handler.happened == [(0, 1), "ran", "teardown"]


def test_what_is_bound_goes_to_the_factory() -> None:
    def make(one: int, *, other: int) -> Any:
        class Adds(Doubles):
            def run_inference(self, model_input: Any) -> Any:
                return [item + one + other for item in model_input]

        return http_server("adds", Adds)

    async def main() -> None:
        async with living(replica_of(make, 10, other=5)) as app:
            assert (await ask(app, {"data": [1]}))[2]["data"] == [16]

    asyncio.run(main())


def test_a_setup_that_raises_is_what_ray_is_told() -> None:
    async def main() -> None:
        with pytest.raises(OSError, match="no weights"):
            await replica_of(lambda: http_server("broken", Broken)).begin(Worker())

    asyncio.run(main())


def test_of_several_services_one_that_does_not_start_ends_the_others() -> None:
    handler = Doubles()

    async def main() -> None:
        services = Services(http_server("doubles", handler), http_server("broken", Broken))
        with pytest.raises(OSError, match="no weights"):
            await replica_of(lambda: services).begin(Worker())

    asyncio.run(main())
    assert handler.happened[-1] == "teardown"


@pytest.mark.parametrize(
    ("made", "kind"), [(Doubles(), "Doubles"), (7, "int"), (None, "NoneType")], ids=["a handler", "7", "None"]
)
def test_what_is_no_application_is_refused_by_name(made: Any, kind: str) -> None:
    def make() -> Any:
        return made

    with pytest.raises(TypeError, match=rf"expected .*make to make an application, .* it made a {kind}$"):
        asyncio.run(replica_of(make).begin(Worker()))


def test_a_replica_that_is_not_live_fails_its_check_until_it_is_again() -> None:
    handler = Doubles()

    async def main() -> None:
        replica = replica_of(lambda: http_server("doubles", handler))
        async with living(replica):
            await replica.check_health()
            handler.worker.unhealthy("the GPU is gone")
            with pytest.raises(RuntimeError, match="/health/live of 'doubles': .*the GPU is gone"):
                await replica.check_health()
            handler.worker.healthy()
            await replica.check_health()

    asyncio.run(main())


def test_the_services_inside_another_application_live_as_it_does() -> None:
    handler = Doubles()
    seen: list[Any] = []

    def make() -> Any:
        inner = http_server("inner", handler)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                scope["state"]["of"] = "the lifespan"
                for kind in ("startup", "shutdown"):
                    await receive()
                    seen.append(kind)
                    await send({"type": f"lifespan.{kind}.complete"})
            else:
                seen.append(scope["state"]["of"])
                await inner(scope, receive, send)

        return app

    async def main() -> None:
        replica = replica_of(make)
        async with living(replica, Worker(2, 4)) as app:
            assert (await ask(app, {"data": [1]}))[2]["data"] == [2]
            assert await replica.submit([4], "inner") == [8]
            handler.worker.unhealthy("no")
            with pytest.raises(RuntimeError, match="inner"):
                await replica.check_health()

    asyncio.run(main())
    assert seen == ["startup", "the lifespan", "shutdown"]
    assert handler.happened == [(2, 4), "teardown"]


def test_an_answer_bears_its_id_once_for_ray_adds_it() -> None:
    async def main() -> None:
        async with living(replica_of(lambda: http_server("doubles", Doubles))) as app:
            status, headers, _ = await ask(app, {"data": [1]})
            names = [name for name, _ in headers]
            assert status == 200 and b"x-request-id" not in names and b"content-length" in names

    asyncio.run(main())


def test_others_submit_to_the_service_and_get_its_errors() -> None:
    async def main() -> None:
        replica = replica_of(lambda: Services(http_server("a", Doubles), http_server("b", Doubles)))
        async with living(replica):
            assert await replica.submit([1, 2], "b") == [2, 4]
            with pytest.raises(ItemError, match="item 0: expected a number"):
                await replica.submit(["bad"], "a")
            for wrong in (None, "c"):
                with pytest.raises(ValueError, match="expected one of 'a', 'b'"):
                    await replica.submit([1], wrong)
        only = replica_of(lambda: http_server("one", Doubles))
        async with living(only):
            assert await only.submit([3]) == [6]

    asyncio.run(main())


def test_a_deployment_behind_others_lives_without_http() -> None:
    handler = Doubles()

    class Deployed(Behind):
        app_factory = staticmethod(lambda: http_server("behind", handler))

        async def __serve_build_asgi_app__(self) -> Application:
            return await self.begin(Worker(1, 2))

    async def main() -> None:
        replica = Deployed.__new__(Deployed)
        await replica.__init__()  # as Ray does
        assert await replica.submit([1]) == [2]
        await replica.__del__()

    asyncio.run(main())
    assert handler.happened == [(1, 2), "teardown"]


@pytest.mark.parametrize(
    "error",
    [ItemError("no", 3, status=404), RequestError(503, "full", ((b"retry-after", b"1"),)), HandlerError("failed", 1)],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: Any) -> None:
    moved = pickle.loads(pickle.dumps(error))
    assert (type(moved), str(moved), vars(moved)) == (type(error), str(error), vars(error))


# ---- what a replica says of its load


class Counted:
    """Totals that are set by hand, and the clock."""

    def __init__(self) -> None:
        self.now = 10**9
        self.cells = [0] * CELLS
        self.gauges = Gauges(lambda: self.now, lambda: {"one": Totals(list(self.cells))})

    def cut(self, items: int, wait: float, busy: float) -> None:
        at = PLACES["virtex_queue_wait_seconds", ""]
        self.cells[at] += items
        self.cells[at + self._buckets] += round(items * wait * 1e9)
        self.cells[PLACES["virtex_executor_busy_seconds_total", ""]] += round(busy * 1e9)

    @property
    def _buckets(self) -> int:
        return len(Totals(self.cells).histogram("virtex_queue_wait_seconds").counts)

    def after(self, seconds: float, waiting: int = 0) -> dict[str, float]:
        self.now += round(seconds * 1e9)
        self.cells[PLACES["virtex_queue_items", ""]] = waiting
        return self.gauges.take()


def test_a_reading_is_of_the_time_since_the_last_one() -> None:
    counted = Counted()
    counted.cut(4, 0.5, 1.0)
    assert counted.after(2.0) == pytest.approx({"queue_wait": 0.5, "busy": 0.5, "queue_items": 0})
    counted.cut(6, 0.1, 0.5)
    assert counted.after(1.0, waiting=3) == pytest.approx({"queue_wait": 0.1, "busy": 0.5, "queue_items": 3})
    assert counted.after(1.0) == pytest.approx({"queue_wait": 0.0, "busy": 0.0, "queue_items": 0})


def test_items_that_wait_for_a_batch_which_does_not_come_back_wait_longer_and_longer() -> None:
    counted = Counted()
    counted.cut(1, 0.0, 0.0)
    assert counted.after(1.0, waiting=5)["queue_wait"] == 0.0
    assert counted.after(2.0, waiting=5)["queue_wait"] == pytest.approx(2.0)
    assert counted.after(2.0, waiting=5)["queue_wait"] == pytest.approx(4.0)
    counted.cut(5, 4.5, 4.0)
    assert counted.after(1.0)["queue_wait"] == pytest.approx(4.5)
    assert counted.after(1.0)["queue_wait"] == 0.0


def test_two_readings_at_once_divide_by_nothing() -> None:
    counted = Counted()
    assert counted.after(0.0) == {"queue_wait": 0.0, "busy": 0.0, "queue_items": 0}


def test_a_replica_reads_its_own_services() -> None:
    async def main() -> None:
        replica = replica_of(lambda: http_server("of gauges", Doubles))
        async with living(replica) as app:
            await ask(app, {"data": [1]})
            said = await replica.record_autoscaling_stats()
            assert said["queue_items"] == 0 and 0 < said["queue_wait"] < 1 and said["busy"] > 0

    asyncio.run(main())


# ---- without Ray, and what it says


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_the_extra_is_named() -> None:
    from virtex.ray import deployment

    with pytest.raises(ImportError, match=r"virtex.ray.deployment\(\) needs ray.serve: install the extra \[ray\]"):
        deployment(lambda: None)
    command = [sys.executable, "-m", "virtex", "ray", "server:make"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("virtex: virtex ray needs ray.serve: install the extra [ray] (pip install '.[ray]'")


def test_importing_it_loads_no_ray() -> None:
    script = "import sys, virtex.ray; virtex.ray.deployment; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:make", "there is no module 'nowhere' here"),
        ("made:nothing", "made has no nothing"),
        ("made.more:make", "there is no module 'made.more' here"),
    ],
    ids=["module", "name", "submodule"],
)
def test_a_factory_that_can_not_be_imported_is_refused_by_name(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made.py").write_text("make = 7")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(argparse.ArgumentError, match=said):
        target_of(name)
    assert target_of("made:make") == 7


def test_a_module_that_raises_is_shown_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raises.py").write_text("import nothing_of_the_kind")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="raises could not be imported from"):
        target_of("raises:make")
    assert "No module named 'nothing_of_the_kind'" in capsys.readouterr().err


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(argparse.ArgumentError, match=f"--port {port}: expected a port from 1 to 65535"):
        check_free("127.0.0.1", port)


def test_a_port_that_is_taken_is_refused_ahead_of_ray() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match="can't listen on"):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("each", "replicas", "said"),
    [
        ({"num_cpus": 1.0, "num_gpus": 0.0}, 3, "3 x --cpus 1 take 3 CPUs, and there are 2"),
        ({"num_cpus": 0.5, "num_gpus": 1.0}, 1, "1 x --gpus 1 take 1 GPUs, and there are 0"),
    ],
    ids=["CPUs", "GPUs"],
)
def test_what_the_machine_has_not_is_refused_by_name(each: Any, replicas: int, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        check_resources({"CPU": 2.0}, each, replicas)


def test_what_the_machine_has_is_taken() -> None:
    check_resources({"CPU": 2.0, "GPU": 1.0}, {"num_cpus": 0.5, "num_gpus": 0.25}, 4)


def test_of_what_ray_says_the_traceback_is_shown_without_its_own_frames() -> None:
    said = (
        "The deployment failed to start 1 times in a row. Error:\n"
        "ray::ServeReplica.initialize_and_get_metadata()\n"
        "RuntimeError: Traceback (most recent call last):\n"
        '  File "/x/ray/serve/_private/replica.py", line 1, in initialize\n'
        "    await it()\n"
        "          ^^^\n"
        '  File "/home/server.py", line 8, in setup\n'
        "    raise OSError\n"
        "OSError: no weights\n"
    )
    assert traceback_in(said) == (
        "Traceback (most recent call last):\n"
        '  File "/home/server.py", line 8, in setup\n'
        "    raise OSError\n"
        "OSError: no weights\n"
    )
    assert traceback_in("worker died") == "worker died"
