"""The services that the benchmarks ask, each made when it is first asked for: gunicorn ... bench.apps:echo.

CPU time, memory and imports are measured, so no app brings what only another one needs: what it imports stands in the
function that makes it. The plain ASGI callables are what one would write without Virtex, each written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in APPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = globals()[name] = APPS[name]()
    return app


# Echo: bench/serve.py, bench/edges.py, tests/soak


def make_echo() -> Any:
    """Gives back what it gets: what is left to measure is the server."""
    from virtex import RequestHandler, http_server

    class Echo(RequestHandler):
        def process_request(self, data: list[Any]) -> list[Any]:
            return data

        def run_inference(self, model_input: list[Any]) -> list[Any]:
            return model_input

        def process_response(self, item: Any) -> Any:
            return item

    return http_server(name="echo", handler=Echo)


def make_plain_echo() -> Any:
    """The same without Virtex: no batches, no limits, no checks."""
    import orjson

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"scope type {scope['type']!r}: this echo serves http")
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client left
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = orjson.dumps({"data": orjson.loads(body)["data"], "error": None})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


# Numbers in, numbers out: bench/numbers.py

NUMBERS, SCORES = 32, 4  # of an item, of its answer


def make_numbers() -> Any:
    """Declares its input, and answers the first few of each item's numbers."""
    from virtex import Tensor, TensorHandler, http_server

    class Numbers(TensorHandler):
        inputs = Tensor("float32", (NUMBERS,))

        def run_inference(self, batch: Any) -> Any:
            return batch[:, :SCORES]

    return http_server(name="numbers", handler=Numbers)


def make_listed_numbers() -> Any:
    """The same of a list handler that says it takes an array."""
    import numpy as np

    from virtex import RequestHandler, http_server

    class Listed(RequestHandler):
        def process_request(self, data: np.ndarray) -> Any:
            return data

        def run_inference(self, model_input: Any) -> Any:
            return model_input[:, :SCORES]

        def process_response(self, row: Any) -> Any:
            return row

    # The annotation is text here, and np is this function's own.
    Listed.process_request.__annotations__["data"] = np.ndarray
    return http_server(name="listed", handler=Listed)


def make_plain_numbers() -> Any:
    """The same without Virtex or batches, with care: shape and dtype are checked, and orjson reads and writes."""
    import numpy as np
    import orjson

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"scope type {scope['type']!r}: this service serves http")
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client left
            body += message.get("body", b"")
            more = message.get("more_body", False)
        batch = np.asarray(orjson.loads(body)["data"], np.float32)
        if batch.shape[1:] == (NUMBERS,):
            rows = np.ascontiguousarray(batch[:, :SCORES])
            status, answer = 200, orjson.dumps({"data": rows, "error": None}, option=orjson.OPT_SERIALIZE_NUMPY)
        else:
            status, answer = 422, orjson.dumps({"data": [], "error": f"expected {NUMBERS} numbers an item"})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


# 10 MB: bench/edges.py


def make_sizes() -> Any:
    """Answers the size of each array."""
    from virtex import RequestHandler, http_server

    class Sizes(RequestHandler):
        def process_request(self, data: list[Any]) -> list[Any]:
            return data

        def run_inference(self, model_input: list[Any]) -> list[Any]:
            return [item.nbytes for item in model_input]

        def process_response(self, item: Any) -> Any:
            return item

    return http_server(name="bulk", handler=Sizes)


def make_plain_sizes() -> Any:
    """Gather the pieces, join them once, and load the array; 422 for what is none."""
    from io import BytesIO

    import numpy as np

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pieces = []
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client left
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(pieces)
        try:
            status, answer = 200, b'{"data":[%d],"error":null}' % np.load(BytesIO(body)).nbytes
        except ValueError:
            status, answer = 422, b'{"data":[],"error":"not .npy"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


# An image in, its first number out: bench/images.py

IMAGE = (3, 224, 224)


def make_pixel() -> Any:
    """Declares its input: requests are decoded into the rows of the batch."""
    from virtex import Tensor, TensorHandler, http_server

    class Pixel(TensorHandler):
        inputs = Tensor("float32", IMAGE)

        def run_inference(self, batch: Any) -> Any:
            return batch[:, 0, 0, 0]

    return http_server(name="tensor", handler=Pixel)


def make_stacked_pixel() -> Any:
    """Decodes each item and stacks them, as a handler without declared inputs does."""
    import numpy as np

    from virtex import RequestHandler, http_server
    from virtex.serial.numpy import decode_numpy

    class Stacked(RequestHandler):
        def process_request(self, data: list[Any]) -> Any:
            return np.stack([item if isinstance(item, np.ndarray) else decode_numpy(item) for item in data])

        def run_inference(self, model_input: Any) -> Any:
            return model_input[:, 0, 0, 0]

        def process_response(self, item: Any) -> Any:
            return item

    return http_server(name="stacked", handler=Stacked)


def plain_pixel(decode: Callable[[bytes], list[Any]]) -> Any:
    """An ASGI callable that reads a body, decodes its arrays, stacks them, and answers the first number of each."""
    import numpy as np
    import orjson

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"scope type {scope['type']!r}: this service serves http")
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        batch = np.stack(decode(body))
        answer = orjson.dumps({"data": batch[:, 0, 0, 0].tolist(), "error": None})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def make_plain_pixel_json() -> Any:
    """Base64 of .npy, by the fastest libraries at hand."""
    import io

    import numpy as np
    import orjson
    import pybase64

    def decode(body: bytes) -> list[Any]:
        items = orjson.loads(body)["data"]
        return [np.load(io.BytesIO(pybase64.b64decode(item, validate=True))) for item in items]

    return plain_pixel(decode)


def make_plain_pixel_npy() -> Any:
    import io

    import numpy as np

    return plain_pixel(lambda body: [np.load(io.BytesIO(body))])


def make_plain_pixel_pickle() -> Any:
    """As Virtex 0.1 did it, but for its queues, threads and polling: base64 of a pickle, in lines of 76 characters."""
    import base64
    import pickle

    import orjson

    def decode(body: bytes) -> list[Any]:
        return [pickle.loads(base64.b64decode(item.encode())) for item in orjson.loads(body)["data"]]

    return plain_pixel(decode)


# A synthetic accelerator: bench/batching.py

MAX_BATCH_SIZE = 64
WINDOW = 0.005  # seconds; max_time_on_queue
QUEUE = 100_000  # more than ever wait here: what is refused has no latency
BASE_NS, ITEM_NS = 5_000_000, 100_000


def busy_ns(size: int) -> int:
    """How long the accelerator takes for a batch of so many items: 5 ms, and 0.1 ms for each."""
    return BASE_NS + ITEM_NS * size


def make_accelerator() -> Any:
    """Answers each item with itself and the size of its batch.

    It sleeps, and so holds neither a core nor the interpreter's lock, as a GPU behind a thread looks to a server.
    """
    import time

    from virtex import RequestHandler, http_server

    class Accelerator(RequestHandler):
        def process_request(self, data: list[Any]) -> list[Any]:
            return data

        def run_inference(self, model_input: list[Any]) -> list[Any]:
            deadline = time.perf_counter_ns() + busy_ns(len(model_input))
            while (left := deadline - time.perf_counter_ns()) > 0:
                time.sleep(left / 1e9)
            return [(item, len(model_input)) for item in model_input]

        def process_response(self, item: Any) -> Any:
            return item

    return http_server(
        name="accelerator",
        handler=Accelerator,
        executor="thread",
        max_batch_size=MAX_BATCH_SIZE,
        max_time_on_queue=WINDOW,
        max_queue_size=QUEUE,
    )


# A worker of a fleet: bench/fleet.py

REPLICA_BASE_NS, REPLICA_ITEM_NS, REPLICA_BATCH = 20_000_000, 2_000_000, 16


def make_replica() -> Any:
    """Answers each item with the size of its batch, its worker's index, and the ns that the batch took.

    A batch takes 20 ms, and 2 ms for each item. It sleeps as the accelerator does, and is slow enough that one core has
    time for four of it and their requests.
    """
    import time

    from virtex import RequestHandler, http_server

    class Replica(RequestHandler):
        def setup(self, worker: Any) -> None:
            self.index = worker.index

        def process_request(self, data: list[Any]) -> list[Any]:
            return data

        def run_inference(self, model_input: list[Any]) -> list[tuple[int, int, int]]:
            size, began = len(model_input), time.perf_counter_ns()
            deadline = began + REPLICA_BASE_NS + REPLICA_ITEM_NS * size
            while (left := deadline - time.perf_counter_ns()) > 0:
                time.sleep(left / 1e9)
            return [(size, self.index, time.perf_counter_ns() - began)] * size

        def process_response(self, item: Any) -> Any:
            return item

    return http_server(
        name="replica",
        handler=Replica,
        executor="thread",
        max_batch_size=REPLICA_BATCH,
        max_time_on_queue=WINDOW,
        max_queue_size=QUEUE,
    )


APPS: dict[str, Callable[[], Any]] = {
    "echo": make_echo,
    "plain_echo": make_plain_echo,
    "numbers": make_numbers,
    "listed_numbers": make_listed_numbers,
    "plain_numbers": make_plain_numbers,
    "sizes": make_sizes,
    "plain_sizes": make_plain_sizes,
    "pixel": make_pixel,
    "stacked_pixel": make_stacked_pixel,
    "plain_pixel_json": make_plain_pixel_json,
    "plain_pixel_npy": make_plain_pixel_npy,
    "plain_pixel_pickle": make_plain_pixel_pickle,
    "accelerator": make_accelerator,
    "replica": make_replica,
}
