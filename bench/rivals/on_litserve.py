"""The three jobs on LitServe: python on_litserve.py echo, matrix or image, and a port."""

import sys

import litserve
import numpy as np
import pybase64

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["data"][0]

    def batch(self, inputs):
        return inputs

    def predict(self, batch):
        return batch

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"data": [output]}


class Matrix(Echo):
    def batch(self, inputs):
        return np.asarray(inputs, np.float32)

    def predict(self, batch):
        return (batch @ WEIGHTS).tolist()


class Image(Echo):
    def decode_request(self, request):
        return np.frombuffer(pybase64.b64decode(request["data"][0], validate=True), np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, batch):
        return batch.mean(axis=1).tolist()


if __name__ == "__main__":
    api = {"echo": Echo, "matrix": Matrix, "image": Image}[sys.argv[1]]
    server = litserve.LitServer(
        api(max_batch_size=64, batch_timeout=0.001, api_path="/"), accelerator="cpu", fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
