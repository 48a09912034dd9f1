"""The three jobs on mosec: python on_mosec.py with JOB=echo, matrix or image, and mosec's own arguments."""

import os

import numpy as np
import orjson
import pybase64
from mosec import Server, Worker

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)


class Echo(Worker):
    def deserialize(self, data):
        return orjson.loads(data)["data"][0]

    def forward(self, data):
        return data

    def serialize(self, data):
        return orjson.dumps({"data": [data]})


class Matrix(Echo):
    def forward(self, data):
        return (np.asarray(data, np.float32) @ WEIGHTS).tolist()


class Image(Echo):
    def deserialize(self, data):
        return np.frombuffer(pybase64.b64decode(super().deserialize(data), validate=True), np.float32)

    def forward(self, data):
        return np.stack(data).mean(axis=1).tolist()


if __name__ == "__main__":
    server = Server()
    worker = {"echo": Echo, "matrix": Matrix, "image": Image}[os.environ["JOB"]]
    server.append_worker(worker, max_batch_size=64, max_wait_time=1)
    server.run()
