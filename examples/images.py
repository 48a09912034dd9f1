"""Reads handwritten digits in image files: a small network of torch, trained on scikit-learn's digits at the start.

`make images` sends it the digits that it was not trained on, as PNG files. To ask it yourself, from another shell:

    python examples/images.py --serve
    PYTHONPATH=examples python -c 'from images import *; draw(split()[1][0]).save("digit.jpg")'
    curl localhost:8000 -F file=@digit.jpg
    curl localhost:8000 -H 'Content-Type: image/jpeg' --data-binary @digit.jpg
    echo '{"data": ["'$(base64 <digit.jpg | tr -d '[:space:]')'"]}' | curl localhost:8000 -d @-

Each answer is {"data":[2],"error":null}. In this folder `gunicorn images:app -k virtex.VirtexWorker` serves it, too.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import torch
from digits import SHAPE, split
from PIL import Image
from serving import run

from virtex import HttpClient, HttpMessage, RequestHandler, http_server
from virtex.serial import decode_pil_from_bytes, encode_bytes

DEPTH = 16  # of a pixel, from paper to ink, as the network was trained


def train() -> torch.nn.Sequential:
    """A network that has learned; the same one in every worker."""
    images, _, digits, _ = split()
    pixels, labels = torch.from_numpy(images / np.float32(DEPTH)), torch.from_numpy(digits)
    torch.set_num_threads(1)  # so small a network is slower with more; workers are how it grows
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    weights = list(net.parameters())
    for _ in range(300):  # torch.optim would load a compiler first, for seconds
        loss = torch.nn.functional.cross_entropy(net(pixels), labels)
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= slope
    return net.eval()


class Labels(RequestHandler):
    """Takes image files (PNG, JPEG, ...), as they are or by encode_bytes, dark ink on light paper; answers digits."""

    accepts = ("image/*", "multipart/form-data")
    decode_item = decode_pil_from_bytes
    encode_item = int

    def setup(self, worker: Any) -> None:
        self.net = train()

    def process_request(self, images: list[Image.Image]) -> torch.Tensor:
        small = [image.convert("L").resize(SHAPE, Image.Resampling.BOX) for image in images]
        return 1 - torch.from_numpy(np.stack([np.asarray(image) for image in small])) / 255

    def run_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.net(pixels).argmax(1)


app = http_server(name="images", handler=Labels, executor="thread", max_batch_size=64)


def draw(digit: np.ndarray) -> Image.Image:
    """A digit of split() on paper, 64 x 64 pixels."""
    paper = 255 - digit * np.float32(255 / DEPTH)
    return Image.fromarray(paper.astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)


def png(digit: np.ndarray) -> bytes:
    file = io.BytesIO()
    draw(digit).save(file, "PNG")
    return file.getvalue()


def show(client: HttpClient) -> None:
    """Send the held-out digits, and print how they were read."""
    _, images, _, digits = split()
    message = HttpMessage(data=[png(image) for image in images])
    message.encode(encode_bytes)
    labels = client.post(message).data
    print("drawn    " + " ".join(map(str, digits[:20])))
    print("read     " + " ".join(map(str, labels[:20])))
    print(f"accuracy {np.mean(np.array(labels) == digits):.3f} ({len(labels)} PNG files)")


def load() -> list[HttpMessage]:
    messages = [HttpMessage(data=[png(image)]) for image in split()[1]]
    for message in messages:
        message.encode(encode_bytes)
    return messages


if __name__ == "__main__":
    sys.exit(run("images:app", __doc__, show, load, rate=200, serve=app.run))
