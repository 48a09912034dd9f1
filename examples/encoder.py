"""A text encoder of BERT-base's shape with random weights: 10 token ids in, a vector of 768 out, up to 144 a batch.

    python examples/embed.py 8080 8081 --device cuda

It stands for a model whose weights you have. Its memory is that of BERT-base: 0.4 GB in float32, half of it on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from virtex import Tensor, TensorHandler

WORDS, LENGTH, WIDTH, HEADS, LAYERS, BATCH = 30522, 10, 768, 12, 12, 144


class Bert(nn.Module):
    """Token ids (n, LENGTH) to vectors (n, WIDTH)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.layers(self.norm(self.words(ids) + self.places.weight))
        return torch.tanh(self.pooler(hidden[:, 0]))


class Encoder(TensorHandler):
    inputs = Tensor("int32", (LENGTH,))
    outputs = Tensor("float32", (WIDTH,))

    def __init__(self, device: str, layers: int = LAYERS) -> None:
        self.device = device
        self.layers = layers

    def setup(self, worker: Any) -> None:
        torch.manual_seed(0)
        model = Bert(self.layers).to(self.device).eval()
        self.model = model if torch.device(self.device or "cpu").type == "cpu" else model.half()

    def run_inference(self, batch: torch.Tensor) -> torch.Tensor:
        ids = batch.clamp(0, WORDS - 1)  # an id beyond the words would be an assertion on the device
        return self.model(ids).float()
