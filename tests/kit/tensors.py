"""Handlers of declared inputs, and requests to them."""

import asyncio

import numpy as np
import orjson

from kit.asks import ask_direct, run
from virtex import Tensor, TensorHandler, http_server
from virtex._codec import encode_numpy

VECTOR = Tensor("float32", (3,))


class Identity(TensorHandler):
    inputs = VECTOR

    def run_inference(self, batch):
        return batch


class Kept(Identity):
    """Keeps every batch it gets."""

    def __init__(self):
        self.kept = []

    def run_inference(self, batch):
        self.kept.append((batch, batch.copy()))
        return batch


class Views(Identity):
    """Answers views of its batch that run backwards through memory and back."""

    def run_inference(self, batch):
        return batch[::-1][::-1]


class Writes(Identity):
    """Computes in place."""

    def run_inference(self, batch):
        batch *= 2
        return batch


class AsyncIdentity(Identity):
    async def run_inference(self, batch):
        await asyncio.sleep(0)
        return batch


def vector(*values):
    return np.array(values or (1, 2, 3), "float32")


def body(*arrays):
    return orjson.dumps({"data": [encode_numpy(array) for array in arrays]})


def served(handler, *bodies, headers=(), **kw):
    app = http_server("tensor", handler, **kw)
    return run(app, *(ask_direct(app, body, headers=headers) for body in bodies))


class Tokens(TensorHandler):
    inputs = {"ids": Tensor("int64", (2,)), "mask": Tensor("bool", (2,))}
    outputs = {"sum": Tensor("int64"), "ids": Tensor("int64", (2,))}

    def run_inference(self, batch):
        return {"sum": (batch["ids"] * batch["mask"]).sum(axis=1), "ids": batch["ids"]}
