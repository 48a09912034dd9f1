"""The three jobs on Virtex: gunicorn bench.rivals.on_virtex:echo, :matrix or :image."""

import numpy as np

from virtex import RequestHandler, Tensor, TensorHandler, http_server

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)


class Echo(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, item):
        return item


class Matrix(TensorHandler):
    inputs = Tensor("float32", (32,))
    outputs = Tensor("float32", (4,))

    def run_inference(self, batch):
        return batch @ WEIGHTS


class Image(TensorHandler):
    inputs = Tensor("float32", (3, 224, 224))

    def run_inference(self, batch):
        return batch.mean(axis=(1, 2, 3))


echo = http_server(name="echo", handler=Echo, max_batch_size=64)
matrix = http_server(name="matrix", handler=Matrix, max_batch_size=64)
image = http_server(name="image", handler=Image, max_batch_size=64)
