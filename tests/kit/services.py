"""Handlers and an observer that tests of a service share."""

import asyncio
import threading
import time
from dataclasses import replace

from virtex import Observer, RequestHandler, http_server
from virtex.errors import ItemError


class Echo(RequestHandler):
    """Gives back what it gets; the item "no" is refused, "bug" raises."""

    def process_request(self, data):
        if any(isinstance(item, str) and item == "no" for item in data):
            raise ItemError("expected anything but no")
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        if isinstance(model_output_item, str) and model_output_item == "bug":
            raise ZeroDivisionError("secret")
        return model_output_item


class AsyncEcho(Echo):
    async def run_inference(self, model_input):
        await asyncio.sleep(0)
        return model_input


EXECUTORS = {
    "inline": lambda **kw: http_server("echo", Echo(), **kw),
    "thread": lambda **kw: http_server("echo", Echo(), executor="thread", **kw),
    "async": lambda **kw: http_server("echo", AsyncEcho(), **kw),
}


BODY = b'{"data":[1]}'


class Life(Echo):
    """Records in which thread its methods ran."""

    def __init__(self):
        self.threads = {}
        self.worker = None
        self.go = threading.Event()
        self.go.set()

    def setup(self, worker):
        self.go.wait(60)
        self.worker = worker
        self.threads["setup"] = threading.current_thread()

    def process_request(self, data):
        self.threads["process"] = threading.current_thread()
        return data

    def teardown(self):
        self.threads["teardown"] = threading.current_thread()


class AsyncLife(Life):
    async def setup(self, worker):
        await asyncio.sleep(0)
        Life.setup(self, worker)

    async def teardown(self):
        await asyncio.sleep(0)
        Life.teardown(self)


class Gate(Echo):
    """A model that waits until it is let through."""

    def __init__(self):
        self.calls = []
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run_inference(self, model_input):
        self.calls.append(list(model_input))
        self.entered.set()
        await self.go.wait()
        return model_input


class Hand:
    """A service's clock that stands still but for what a test adds: how slow the machine is does not matter."""

    def __init__(self, app):
        self.now = time.perf_counter_ns()
        app.options = replace(app.options, clock=self)
        app._clock = self

    def __call__(self):
        return self.now

    def add(self, seconds):
        self.now += round(seconds * 1e9)


class Watching(Observer):
    def __init__(self):
        self.requests = []
        self.drops = []
        self.batches = []

    def request_done(self, status, items, seconds):
        self.requests.append((status, items))

    def dropped(self, reason, items):
        self.drops.append((reason, items))

    def batch_done(self, batch):
        self.batches.append(batch.size)
