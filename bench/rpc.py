"""What an infer request over gRPC costs the server, beside a bare grpc.aio echo: make bench, or see --help.

Both get the same ModelInfer of 1024 float32 as raw bytes, 4 KB, over one channel on which so many calls are always
under way, and both give the tensor back: the echo the message as it came, Virtex by a batch of an identity. Turns are
short and interleaved; what counts is the CPU time of the server's process in a turn, of all its threads, and of the
turns the median. The ratio says how many requests a second of CPU serves, of those that grpc alone would.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from .host import PYTHON, Running, conclude, cpus_apart, fine_cpu_seconds, machine, need_proc, running, table

AIM = 0.7  # of the echo's requests per second of CPU
METHOD = "/inference.GRPCInferenceService/ModelInfer"
SIZE = 1024


def request() -> bytes:
    """What is asked."""
    from virtex.rpc.messages import InferRequest

    asked = InferRequest(model_name="identity", raw_input_contents=[bytes(range(256)) * (SIZE // 64)])
    asked.inputs.add(name="input", datatype="FP32", shape=[1, SIZE])
    said: bytes = asked.SerializeToString()
    return said


# The servers


async def bare(port: int) -> None:
    """Bytes in, the same bytes out."""
    import grpc

    async def echo(message: bytes, context: Any) -> bytes:
        return message

    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def virtex(port: int) -> None:
    """A batch of an identity."""
    from virtex import Tensor, TensorHandler, http_server
    from virtex.rpc.serving import serve_grpc

    class Identity(TensorHandler):
        inputs = outputs = Tensor("f4", (SIZE,))

        def run_inference(self, model_input: Any) -> Any:
            return model_input

    async with await serve_grpc(http_server("identity", Identity), port=port):
        await asyncio.get_running_loop().create_future()


SERVERS = {"virtex": virtex, "bare": bare}


# The load


def check(port: int) -> str | None:
    """Whether the tensor comes back."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer: bytes = channel.unary_unary(METHOD)(request(), timeout=10)
        except grpc.RpcError as error:
            return None if error.code() is grpc.StatusCode.UNAVAILABLE else error.details()
    return "" if answer.endswith(request()[-4 * SIZE :]) else "the answer is not the tensor that was sent"


async def turn(infer: Any, message: bytes, count: int, at_once: int) -> None:
    """So many calls, so many of them under way at a time."""
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await infer(message)

    await asyncio.gather(*(client() for _ in range(at_once)))


async def turns(servers: dict[str, Running], arguments: argparse.Namespace, at_once: int) -> dict[str, float]:
    """Microseconds of the server's CPU that a request takes."""
    import grpc

    message, took = request(), {name: list[float]() for name in servers}
    channels = {name: grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") for name, server in servers.items()}
    for round_ in range(arguments.turns + 1):  # the first one warms up
        for name, server in servers.items():
            before = fine_cpu_seconds(server.pid)
            await turn(channels[name].unary_unary(METHOD), message, arguments.requests, at_once)
            if round_:
                took[name].append((fine_cpu_seconds(server.pid) - before) / arguments.requests * 1e6)
    for channel in channels.values():
        await channel.close()
    return {name: round(median(each), 1) for name, each in took.items()}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both servers, interleaved, with one call under way and with many."""
    serving, _ = cpus_apart()
    figures = {}
    with ExitStack() as stack:
        servers = {}
        for name in SERVERS:
            command = lambda port, name=name: [*PYTHON, "-m", "bench.rpc", "--serve", name, port]  # noqa: E731
            servers[name] = stack.enter_context(running(name, command, check, serving))
        for at_once in arguments.at_once:
            figures[at_once] = asyncio.run(turns(servers, arguments, at_once))
    return {
        "what": f"ModelInfer of {SIZE} float32, CPU time of the server",
        "machine": machine("grpcio", "protobuf", "uvloop"),
        "turns": arguments.turns,
        "requests": arguments.requests,
        "cpu_microseconds": figures,
        "of_bare": {at_once: round(took["bare"] / took["virtex"], 3) for at_once, took in figures.items()},
    }


def report(saved: dict[str, Any]) -> str:
    """The figures as a table, and the ratio."""
    rows = [("calls under way", "virtex, CPU us", "bare grpc.aio, CPU us", "requests per CPU second, of bare")]
    for at_once, took in saved["cpu_microseconds"].items():
        rows.append((str(at_once), f"{took['virtex']:.1f}", f"{took['bare']:.1f}", f"{saved['of_bare'][at_once]:.2f}"))
    worst = min(saved["of_bare"].values())
    return table(rows) + f"\n{'reached' if worst >= AIM else 'missed'}: {worst:.2f}, the aim is {AIM}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.rpc", description=__doc__, allow_abbrev=False)
    parser.add_argument("--turns", type=int, default=15, help="of each server (15)")
    parser.add_argument("--requests", type=int, default=1000, help="in a turn (1000)")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 32], help="calls under way (1 32)")
    parser.add_argument("--json", type=Path, default=Path("build/rpc.json"), help="where the figures go")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    if arguments.serve:
        import uvloop

        name, port = arguments.serve
        uvloop.run(SERVERS[name](int(port)))
        return
    need_proc("bench.rpc")
    saved = measure(arguments)
    conclude(saved, arguments.json, report(saved))


if __name__ == "__main__":
    sys.exit(main())
