"""What the engine costs: ring, batcher and ticket, without sockets or model: make bench, or see --help.

Requests of one item each, of as many connections as a batch has items, are admitted in one turn of a uvloop loop; the
batch is cut in the next, answered at once, and every request gets its row. Three depths of it:

  engine   company, ring, batcher and ticket; the rows are there already
  list     the same with the three methods of a RequestHandler that does nothing
  rows     the same with a TensorHandler that does nothing; items are put into rows by a decoder that writes nothing

And one request of one item, from the bytes on its connection to the bytes of its answer, on transports that are lists:

  1, 2 or 64 connections   each sends again when all were answered; a batch has as many items

Beside them: a call of a Python function that does nothing. Every number is the median of several runs, interleaved.
"""

from __future__ import annotations

import argparse
import gc
import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from virtex import HttpProtocol, http_server
from virtex.batch.batcher import Batcher
from virtex.batch.company import Peer
from virtex.batch.executors import InlineExecutor
from virtex.batch.ring import Batch, Ring, Ticket
from virtex.batch.row_steps import TensorSteps
from virtex.batch.rows import RowRing
from virtex.batch.steps import Steps
from virtex.handler import RequestHandler, TensorHandler
from virtex.tensor import Tensor

from .host import conclude, machine, table

TARGET = 2.0  # us per item of "engine", at most
ONE_TARGET = 4.5  # us per request on one connection, at most
CONNECTIONS = (1, 2, 64)
BODY = b'{"data":[1]}'
REQUEST = b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n" + BODY
ROUNDS = 2000  # batches per run
WINDOW = 0.005  # seconds; as http_server's default


class Nothing(RequestHandler):
    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        return model_input

    def process_response(self, item: Any) -> Any:
        return item


class NoRows(TensorHandler):
    inputs = Tensor("int64")

    def run_inference(self, batch: Any) -> Any:
        return batch


class Ready:
    """An executor that answers each request with its own items, at once."""

    depth = 1

    def start(self, batch: Batch, steps: Steps, done: Callable[[Batch], None]) -> None:
        batch.outcomes = list(batch.work)
        done(batch)


class Undecoded(list[Any]):
    """The items of a request that is put into a row by one assignment."""

    def into(self, rows: Any, start: int, stop: int) -> None:
        rows[:] = self[start:stop]


class Request(Ticket):
    """One request of one item."""

    __slots__ = ("engine", "number", "peer")

    def __init__(self, engine: Engine, peer: Peer, items: list[Any]) -> None:
        super().__init__()
        self.engine = engine
        self.peer = peer
        self.items = items
        self.number = items[0]

    def deliver(self, rows: Any, error: Exception | None) -> None:
        engine = self.engine
        if engine.checks or error is not None:
            self.compare(rows, error)
        engine.answered(self.peer)

    def compare(self, rows: Any, error: Exception | None) -> None:
        expected: Any = [self.number]
        if not isinstance(rows, list):
            rows, expected = rows.json(), b'{"data":[%d],"error":null}' % self.number
        if error is not None or rows != expected:
            raise SystemExit(f"{self.engine.kind}: expected {expected!r}, got {rows!r}, {error!r}")


class Engine:
    """A batcher on a uvloop loop, and clients that send again when all of them were answered."""

    def __init__(self, loop: Any, size: int, kind: str) -> None:
        self.loop = loop
        self.kind = kind
        self.checks = True
        self.batcher = Batcher(loop, size, WINDOW, 4 * size)
        self.peers = [Peer() for _ in range(size)]
        self.items = Undecoded if kind == "rows" else list
        self.left = self.open = 0
        if kind == "engine":
            self.batcher.run_with(Ready(), Steps(Nothing()))
        elif kind == "list":
            self.batcher.run_with(InlineExecutor(), Steps(Nothing()))
        else:
            ring: Ring = RowRing(NoRows.inputs, size, 4 * size, 1 << 20)
            self.batcher.run_with(InlineExecutor(), TensorSteps(NoRows(), False), ring)

    def run(self, rounds: int) -> float:
        """CPU seconds per item: others on the machine do not count."""
        self.left = rounds
        self.loop.call_soon(self.send)
        started = time.thread_time()
        self.loop.run_forever()
        if self.left:
            raise SystemExit(f"{self.kind}: {self.left} of {rounds} batches were never answered")
        return (time.thread_time() - started) / rounds / len(self.peers)

    def send(self) -> None:
        """Every client sends a request, as the server takes it: its headers, its body, its admission."""
        batcher, company, items = self.batcher, self.batcher.company, self.items
        self.open = len(self.peers)
        for i, peer in enumerate(self.peers):
            company.arrives(peer)
            batcher.admit(Request(self, peer, items((i,))), time.perf_counter_ns())

    def answered(self, peer: Peer) -> None:
        self.batcher.company.settled(peer, time.perf_counter_ns())
        self.open -= 1
        if not self.open:
            self.left -= 1
            if self.left:
                self.loop.call_soon(self.send)
            else:
                self.loop.stop()


class Sink:
    """What a connection needs of its transport; each write is an answer."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written = data
        self.front.answered()

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self, "peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        pass


class Front:
    """A service with its connections, whose clients send again when all of them were answered."""

    def __init__(self, loop: Any, connections: int) -> None:
        self.loop = loop
        self.kind = f"{connections} connection{'s' * (connections > 1)}"
        self.checks = True
        app = http_server("nothing", Nothing(), max_batch_size=64)
        loop.run_until_complete(app.startup())
        self.protocols = [HttpProtocol(app, loop=loop) for _ in range(connections)]
        self.sinks = [Sink(self) for _ in self.protocols]
        for protocol, sink in zip(self.protocols, self.sinks, strict=True):
            protocol.connection_made(sink)  # type: ignore[arg-type]
        self.left = self.open = 0

    def run(self, rounds: int) -> float:
        """CPU seconds per request: others on the machine do not count."""
        self.left = rounds
        self.loop.call_soon(self.send)
        started = time.thread_time()
        self.loop.run_forever()
        spent = time.thread_time() - started
        for sink in self.sinks:
            if not sink.written.startswith(b"HTTP/1.1 200") or not sink.written.endswith(b'{"data":[1],"error":null}'):
                raise SystemExit(f"{self.kind}: got {sink.written!r}")
        return spent / rounds / len(self.protocols)

    def send(self) -> None:
        self.open = len(self.protocols)
        for protocol in self.protocols:
            protocol.data_received(REQUEST)

    def answered(self) -> None:
        self.open -= 1
        if not self.open:
            self.left -= 1
            if self.left:
                self.loop.call_soon(self.send)
            else:
                self.loop.stop()


def empty() -> None:
    pass


def call_seconds() -> float:
    """Seconds per call of a function that does nothing, without the loop around it."""
    count = 200_000
    calls = timeit.timeit("f()", timer=time.thread_time, globals={"f": empty}, number=count)
    return (calls - timeit.timeit("pass", timer=time.thread_time, number=count)) / count


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All kinds, interleaved; each is checked first."""
    loop = uvloop.new_event_loop()
    engines: list[Engine | Front] = [Engine(loop, arguments.size, kind) for kind in ("engine", "list", "rows")]
    engines += [Front(loop, connections) for connections in CONNECTIONS]
    for engine in engines:
        engine.run(100)
        engine.checks = False
    spent: dict[str, list[float]] = {"empty call": [], **{engine.kind: [] for engine in engines}}
    gc.collect()
    gc.freeze()
    for _ in range(arguments.runs):
        spent["empty call"].append(call_seconds())
        for engine in engines:
            spent[engine.kind].append(engine.run(ROUNDS))
    loop.close()
    return [
        {"what": what, "us": round(1e6 * median(times), 3), "runs": [round(1e6 * one, 3) for one in times]}
        for what, times in spent.items()
    ]


def report(saved: dict[str, Any]) -> str:
    rows = [("", "us/item", "empty calls")]
    call = saved["rows"][0]["us"]
    rows += [(row["what"], f"{row['us']:.3f}", f"{row['us'] / call:.0f}") for row in saved["rows"]]
    came = next(row["us"] for row in saved["rows"] if row["what"] == "engine")
    verdict = "met" if came <= TARGET else "MISSED"
    one = next(row["us"] for row in saved["rows"] if row["what"] == "1 connection")
    alone = "met" if one <= ONE_TARGET else "MISSED"
    return (
        f"{table(rows)}\nengine: {came:.2f} us per item, at most {TARGET:g}: {verdict}"
        f"\none connection: {one:.2f} us per request, at most {ONE_TARGET:g}: {alone}"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="items per batch (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/engine.json"), help="where the figures go")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    saved = {
        "what": f"one item through the engine, in batches of {arguments.size}",
        "machine": machine("uvloop", "numpy"),
        "target": TARGET,
        "rows": measure(arguments),
    }
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    main()
