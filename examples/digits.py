"""Reads handwritten digits: scikit-learn's bundled images, a classifier trained when the worker starts.

Run it with `gunicorn digits:app -k virtex.VirtexWorker` in this folder, or with `make demo` and `make serve`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from virtex import ItemError, RequestHandler, http_server
from virtex.serial import decode_numpy

SHAPE = (8, 8)  # of an image; its pixels are 0 (paper) to 16 (ink)
HELD_OUT = 360  # images that the classifier is not trained on


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images to train on and held out, uint8 (n, 8, 8), then the digits of both; always the same split."""
    digits = load_digits()
    parts = train_test_split(digits.images.astype(np.uint8), digits.target, test_size=HELD_OUT, random_state=0)
    return tuple(parts)


def train() -> SVC:
    """A classifier of rows of 64 pixels; the same one in every worker."""
    images, _, digits, _ = split()
    return SVC(gamma=0.001).fit(images.reshape(-1, 64), digits)


class Digits(RequestHandler):
    """Takes images by encode_numpy; answers {"digit": 7, "batch": 24}, batch saying how many were read at once."""

    def setup(self, worker: Any) -> None:
        self.model = train()

    def process_request(self, data: list[Any]) -> np.ndarray:
        images = [decode_numpy(item) for item in data]
        for index, image in enumerate(images):
            if image.shape != SHAPE:
                raise ItemError(f"expected an image of shape {SHAPE}, got {image.shape}", index)
        return np.stack(images).reshape(-1, 64)

    def run_inference(self, model_input: np.ndarray) -> list[tuple[int, int]]:
        return [(digit, len(model_input)) for digit in self.model.predict(model_input)]

    def process_response(self, item: tuple[int, int]) -> dict[str, int]:
        digit, batch = item
        return {"digit": digit, "batch": batch}


app = http_server(name="digits", handler=Digits, max_batch_size=64)
