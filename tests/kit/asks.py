"""Requests put to a Server by either of its two shells' calls, without sockets; and a handler that does nothing."""

from __future__ import annotations

import asyncio
import time

import orjson

from virtex import RequestHandler
from virtex.service.seam import Head, Response


class Echo(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, item):
        return item


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = dict(headers)
        self.body = body

    @property
    def json(self):
        return orjson.loads(self.body)

    @property
    def error(self):
        assert self.headers[b"content-type"] == b"application/json"
        assert self.json.get("data", []) == []  # of V2, the error is all
        return self.json["error"]


def pieces_of(body):
    return body if isinstance(body, list) else [body]


async def ask_asgi(app, body=b"", method="POST", path="/", headers=(), peer=None, **scope):
    """Put the request as an ASGI server would; a body that is a list comes in that many messages."""
    pieces = pieces_of(body)
    messages = [{"type": "http.request", "body": p, "more_body": True} for p in pieces[:-1]]
    messages.append({"type": "http.request", "body": pieces[-1]})
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", b"%d" % sum(map(len, pieces))), *headers]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": peer, **scope}
    await app(scope, receive, send)
    start, end = sent
    assert dict(start["headers"])[b"content-length"].isdigit()
    return Answer(start["status"], start["headers"], end["body"])


async def ask_direct(app, body=b"", method="POST", path="/", headers=(), peer=None):
    """Put the request as connection.py does."""
    pieces = pieces_of(body)
    clock = getattr(app, "_clock", time.perf_counter_ns)
    opened = app.open(Head(method, path, list(headers), sum(map(len, pieces)), peer), clock())
    if not isinstance(opened, Response):
        for piece in pieces:
            opened.write(piece)
        opened = opened.complete()
    response = opened if isinstance(opened, Response) else await opened
    return Answer(response.status, response.headers, b"".join(response.buffers))


def run(app, *asks, serve=True):
    """Start the app, put the requests at the same time, shut it down; gives the answers in order."""

    async def main():
        if serve:
            await app.startup()
        try:
            return await asyncio.wait_for(asyncio.gather(*asks), 20)
        finally:
            await app.shutdown()

    return asyncio.run(main())
