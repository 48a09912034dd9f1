"""What several test files need: a loop that is stepped by hand, and an executor that finishes when told."""

from __future__ import annotations

import asyncio
import gc
import heapq
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import needs
from kit.wire import StubServer, Wire

from virtex.batch.executors import compute, fail
from virtex.batch.ring import Batch
from virtex.service.register import REGISTER

PACKAGE = Path(__file__).parent.parent / "virtex"

# Not for the uncompiled lane: what compiles; what needs nothing compiled but the codec or the counters; a client's or a
# load test's alone; what takes long
COMPILED_ONLY = {
    f"test_{name}.py"
    for group in (
        "package readme docs codec codec_rows client serial_torch serial_tf serial_mx cases worker start",
        "mounted proxies foreign examples example_models embed recycling status log_lines tracing deploy",
        "container prometheus compat first_page example_servers load load_faults load_test histogram modes payloads",
        "bundles retries predict cli info report document command fit trial tuning",
        "starting wrong greeting check written warmup numbers layout peers exposition push",
        "serial serial_pandas serial_pickle serial_pillow serial_safety serial_tables",
        "k8s k8s_schemas deploy_pages systemd deployed ray ray_serve policy grpc_port grpc_tls bench_gpu",
    )
    for name in group.split()
}

# What takes longest, begun first: the processes of make test end together
LONGEST = [
    f"test_{name}.py"
    for group in (
        "ray_serve worker status example_servers mounted package deployed load prometheus docs services cases start",
        "starting listener codec tuning k8s systemd log_lines examples scrape readme bundles proxies command client",
        "peers serial_torch load_faults grpc_port grpc_tls deploy document recycling fleet k8s_schemas first_page",
        "export load_test embed trial v2_clients bench_gpu numbers",
    )
    for name in group.split()
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="test the modules uncompiled: make test-plain")
    parser.addoption("--all-libraries", action="store_true", help="a library that is missing is an error, not a skip")


def pytest_configure(config: pytest.Config) -> None:
    needs.every = config.option.all_libraries


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.option.plain and collection_path.name in COMPILED_ONLY else None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Nobody is to test what was compiled before the last change, or another tree, or what they take for uncompiled."""
    for pxd in PACKAGE.rglob("*.pxd"):
        name = ".".join(pxd.relative_to(PACKAGE.parent).with_suffix("").parts)
        spec = importlib.util.find_spec(name)  # not imported: where there is no grpcio, that of rpc can't be
        built = Path((spec and spec.origin) or "")
        sources = [path for path in pxd.parent.glob(f"{pxd.stem}.p[xy]*") if path.suffix != ".pyi"]
        if not built.parent.samefile(pxd.parent):
            pytest.exit(f"{name} is that of {built.parent}: expected {pxd.parent}", returncode=3)
        if built.suffix == ".so" and max(path.stat().st_mtime for path in sources) > built.stat().st_mtime:
            pytest.exit(f"{built.name} is older than its source: make build", returncode=3)
        if session.config.option.plain and built.suffix == ".so" and not pxd.stem.startswith("_"):
            pytest.exit(f"{name} is compiled: expected {pxd.stem}.py", returncode=3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """What thousands of tests and their libraries hold is no garbage: a pass of the collector would look through it."""
    gc.collect()
    gc.freeze()


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """The part of an event loop that the batcher uses, with a clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 10**12
        self.ready: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._timers: list[tuple[int, int, Timer, Callable[[], Any]]] = []
        self._order = itertools.count()

    def clock(self) -> int:
        return self.now

    def call_soon(self, f: Callable[..., Any], *args: Any) -> None:
        self.ready.append((f, args))

    def call_later(self, seconds: float, f: Callable[[], Any]) -> Timer:
        timer = Timer()
        heapq.heappush(self._timers, (self.now + round(seconds * 1e9), next(self._order), timer, f))
        return timer

    @property
    def timers(self) -> int:
        """Timers that will still fire."""
        return sum(not timer.cancelled for _, _, timer, _ in self._timers)

    def step(self) -> int:
        """One iteration: what is ready now runs, what that makes ready waits for the next."""
        ready, self.ready = self.ready, []
        for f, args in ready:
            f(*args)
        return len(ready)

    def settle(self) -> None:
        for _ in range(1000):
            if not self.step():
                return
        raise AssertionError("the loop never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass; timers fire in order, each at its own time."""
        end = self.now + round(seconds * 1e9)
        while self._timers and self._timers[0][0] <= end:
            at, _, timer, f = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.now = max(self.now, at)
                f()
                self.settle()
        self.now = end


class ScriptedExecutor:
    """Takes batches and gives them back when told, with the rows that `answer` makes of the items."""

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self.works: list[Any] = []
        self.sizes: list[int] = []
        self._running: list[tuple[Batch, Any, Callable[[Batch], None]]] = []

    def start(self, batch: Batch, steps: Any, done: Callable[[Batch], None]) -> None:
        self.works.append(batch.work)
        self.sizes.append(batch.size)
        self._running.append((batch, steps, done))

    @property
    def running(self) -> int:
        return len(self._running)

    def finish(self, answer: Callable[[list[Any]], Any] = lambda items: [("row of", item) for item in items]) -> None:
        batch, _, done = self._running.pop(0)
        batch.outcomes = [answer(items) for items in batch.work]
        done(batch)

    def run(self) -> None:
        """Give the oldest batch back as its own steps compute it."""
        batch, steps, done = self._running.pop(0)
        compute(batch, steps)
        done(batch)

    def fail(self, error: BaseException) -> None:
        batch, _, done = self._running.pop(0)
        fail(batch, error)
        done(batch)


@pytest.fixture(autouse=True, scope="module")
def _nothing_to_look_through() -> None:
    """A load test within this process has undone what the end of the collection did."""
    if not gc.get_freeze_count():
        gc.freeze()


@pytest.fixture(autouse=True)
def _of_this_test() -> Iterator[None]:
    """What a test leaves in memory is no service of the next one's application."""
    before = REGISTER.services()
    yield
    for service in REGISTER.services():
        if service not in before:
            del REGISTER._services[service]


@pytest.fixture
def server(event_loop: asyncio.AbstractEventLoop) -> StubServer:
    return StubServer(event_loop)


@pytest.fixture
def wire(server: StubServer, event_loop: asyncio.AbstractEventLoop) -> Wire:
    """A connection to it."""
    return Wire(server, loop=event_loop)


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A real loop that runs when told; tasks that a test leaves are cancelled."""
    loop = asyncio.new_event_loop()
    yield loop
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
