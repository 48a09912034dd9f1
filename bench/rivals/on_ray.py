"""The three jobs on Ray Serve: python on_ray.py echo, matrix or image; the port comes from Ray's own environment."""

import signal
import sys

import numpy as np
import orjson
import pybase64
import ray
from ray import serve
from starlette.responses import Response

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)
batches = serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
deployment = serve.deployment(max_ongoing_requests=256, logging_config={"enable_access_log": False})


class Service:
    async def __call__(self, request):
        item = orjson.loads(await request.body())["data"][0]
        return Response(orjson.dumps({"data": [await self.answer(item)]}), media_type="application/json")


@deployment
class Echo(Service):
    @batches
    async def answer(self, items):
        return items


@deployment
class Matrix(Service):
    @batches
    async def answer(self, items):
        return (np.asarray(items, np.float32) @ WEIGHTS).tolist()


@deployment
class Image(Service):
    @batches
    async def answer(self, items):
        images = [np.frombuffer(pybase64.b64decode(item, validate=True), np.float32) for item in items]
        return np.stack(images).mean(axis=1).tolist()


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 0})
    serve.run({"echo": Echo, "matrix": Matrix, "image": Image}[sys.argv[1]].bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
