"""The three jobs on BentoML: bentoml serve on_bentoml:Echo, :Matrix or :Image."""

import bentoml
import numpy as np
import pybase64

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)
SETTINGS = {"workers": 1, "logging": {"access": {"enabled": False}}}
BATCHES = {"route": "/", "batchable": True, "max_batch_size": 64}


@bentoml.service(**SETTINGS)
class Echo:
    @bentoml.api(**BATCHES)
    async def answer(self, data: list[str]) -> list[str]:
        return data


@bentoml.service(**SETTINGS)
class Matrix:
    @bentoml.api(**BATCHES)
    async def answer(self, data: list[list[float]]) -> list[list[float]]:
        return (np.asarray(data, np.float32) @ WEIGHTS).tolist()


@bentoml.service(**SETTINGS)
class Image:
    @bentoml.api(**BATCHES)
    async def answer(self, data: list[str]) -> list[float]:
        images = [np.frombuffer(pybase64.b64decode(item, validate=True), np.float32) for item in data]
        return np.stack(images).mean(axis=1).tolist()
