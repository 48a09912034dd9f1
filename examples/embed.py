"""Virtex beside another protocol in one event loop: HTTP on one port, a line of text per item on another.

    python examples/embed.py 8080 8081
    curl -d '{"data": ["some text"]}' localhost:8080
    echo some text | nc -N localhost 8081
    python examples/embed.py 8080 8081 --loadtest

Both answer the number of words. The lines go straight to the model; the HTTP requests come in batches.
With --loadtest it sends itself such requests, prints how it did, and ends.

    python examples/embed.py 8080 8081 --device cuda
    curl -d '{"data": [[101, 7592, 2088, 102, 0, 0, 0, 0, 0, 0]]}' localhost:8080
    echo 101 7592 2088 102 0 0 0 0 0 0 | nc -N localhost 8081

With --device both answer the vector that encoder.py makes of 10 token ids; lines go into the batches of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop
from loadtest import HELP, load_test

from virtex import HttpMessage, ItemError, RequestHandler, http_server, serve

TEXTS = HttpMessage(data=["some text", "and a little more"])  # of --loadtest, 500 times
IDS = HttpMessage(data=[[101, 7592, 2088, 102, 0, 0, 0, 0, 0, 0]])
Answer = Callable[[str], Awaitable[str]]


class WordCount(RequestHandler):
    """Counts words; stands for a model."""

    def process_request(self, data: list[str]) -> list[list[str]]:
        return [text.split() for text in data]

    def run_inference(self, model_input: list[list[str]]) -> list[int]:
        return [len(words) for words in model_input]

    def process_response(self, model_output_item: int) -> int:
        return model_output_item


clients: set[asyncio.StreamWriter] = set()


async def count_words(text: str) -> str:
    model = WordCount()
    (count,) = model.run_inference(model.process_request([text]))
    return str(count)


async def encode(app: http_server, text: str) -> str:
    try:
        (vector,) = await app.submit([[int(word) for word in text.split()]])
    except (ItemError, ValueError) as error:
        return f"error: {error}"
    return " ".join(f"{value:.6g}" for value in vector)


async def answer_lines(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The other protocol: each line is answered by one line."""
    clients.add(writer)
    with contextlib.suppress(ConnectionError, ValueError):  # the client is gone; a line of more than 64 KB
        async for line in reader:
            writer.write((await answer(line.decode(errors="replace"))).encode() + b"\n")
            await writer.drain()
    clients.discard(writer)
    writer.close()


def services(device: str | None, layers: int) -> tuple[http_server, Answer]:
    """What answers requests, and what answers lines."""
    if device is None:
        return http_server(name="word_count", handler=WordCount()), count_words
    from encoder import BATCH, Encoder  # and torch, which word_count needs not

    app = http_server("encoder", Encoder(device, layers), executor="thread", max_batch_size=BATCH, warmup=True)
    return app, partial(encode, app)


async def main(http_port: int, line_port: int, loadtest: bool, device: str | None, layers: int) -> None:
    """Serve both until SIGTERM or Ctrl-C, or for the load test; answer what was taken before leaving."""
    stop = asyncio.Event()
    for number in signal.SIGTERM, signal.SIGINT:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app, answer = services(device, layers)
    lines = await asyncio.start_server(partial(answer_lines, answer), "127.0.0.1", line_port)
    async with lines, await serve(app, port=http_port):
        if loadtest:
            messages = [TEXTS if device is None else IDS] * 500
            await asyncio.to_thread(load_test, f"http://127.0.0.1:{http_port}/", messages, rate=500)
        else:
            await stop.wait()
        for writer in clients:  # else its task would be cancelled when the loop ends, and say so
            writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count words over HTTP, and over lines of text.")
    parser.add_argument("http_port", type=int)
    parser.add_argument("line_port", type=int)
    parser.add_argument("--loadtest", action="store_true", help=HELP)
    parser.add_argument("--device", help="a torch device: encode token ids there instead")
    parser.add_argument("--layers", type=int, default=12, help="of the encoder (default: %(default)s, BERT-base's)")
    uvloop.run(main(**vars(parser.parse_args())))
