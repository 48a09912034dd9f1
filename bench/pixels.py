"""The services of bench/images.py on Virtex: an image in, its first number out; left to measure is the way in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from virtex import RequestHandler, Tensor, TensorHandler, http_server
from virtex.serial.numpy import decode_numpy

IMAGE = (3, 224, 224)


class Pixel(TensorHandler):
    """Declares its input: requests are decoded into the rows of the batch."""

    inputs = Tensor("float32", IMAGE)

    def run_inference(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return batch[:, 0, 0, 0]


class Stacked(RequestHandler):
    """Decodes each item and stacks them, as a handler without declared inputs does."""

    def process_request(self, data: list[Any]) -> npt.NDArray[Any]:
        return np.stack([item if isinstance(item, np.ndarray) else decode_numpy(item) for item in data])

    def run_inference(self, model_input: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return model_input[:, 0, 0, 0]

    def process_response(self, item: Any) -> Any:
        return item


tensor = http_server(name="tensor", handler=Pixel)
stacked = http_server(name="stacked", handler=Stacked)
