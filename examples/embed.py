"""Virtex beside another protocol in one event loop: HTTP on one port, a line of text per item on another.

    python examples/embed.py 8080 8081
    curl -d '{"data": ["some text"]}' localhost:8080
    echo some text | nc -N localhost 8081
    python examples/embed.py 8080 8081 --loadtest

Both answer the number of words. The lines go straight to the model; the HTTP requests come in batches.
With --loadtest it sends itself such requests, prints how it did, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

import uvloop
from loadtest import HELP, load_test

from virtex import HttpMessage, RequestHandler, http_server, serve

MESSAGES = [HttpMessage(data=["some text", "and a little more"])] * 500  # of --loadtest


class WordCount(RequestHandler):
    """Counts words; stands for a model."""

    def process_request(self, data: list[str]) -> list[list[str]]:
        return [text.split() for text in data]

    def run_inference(self, model_input: list[list[str]]) -> list[int]:
        return [len(words) for words in model_input]

    def process_response(self, model_output_item: int) -> int:
        return model_output_item


clients: set[asyncio.StreamWriter] = set()


async def answer_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The other protocol: each line is answered by one line."""
    model = WordCount()
    clients.add(writer)
    with contextlib.suppress(ConnectionError, ValueError):  # the client is gone; a line of more than 64 KB
        async for line in reader:
            (count,) = model.run_inference(model.process_request([line.decode(errors="replace")]))
            writer.write(b"%d\n" % count)
            await writer.drain()
    clients.discard(writer)
    writer.close()


async def main(http_port: int, line_port: int, loadtest: bool) -> None:
    """Serve both until SIGTERM or Ctrl-C, or for the load test; answer what was taken before leaving."""
    stop = asyncio.Event()
    for number in signal.SIGTERM, signal.SIGINT:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = http_server(name="word_count", handler=WordCount())
    lines = await asyncio.start_server(answer_lines, "127.0.0.1", line_port)
    async with lines, await serve(app, port=http_port):
        if loadtest:
            await asyncio.to_thread(load_test, f"http://127.0.0.1:{http_port}/", MESSAGES, rate=500)
        else:
            await stop.wait()
        for writer in clients:  # else its task would be cancelled when the loop ends, and say so
            writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count words over HTTP, and over lines of text.")
    parser.add_argument("http_port", type=int)
    parser.add_argument("line_port", type=int)
    parser.add_argument("--loadtest", action="store_true", help=HELP)
    uvloop.run(main(**vars(parser.parse_args())))
