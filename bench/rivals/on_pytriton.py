"""The two models of bench/v2.py on PyTriton, by Triton: python on_pytriton.py identity or mean, and a port.

Its own example for speed: functions that take batches, Triton's dynamic batcher, one process for the model.
"""

import signal
import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def identity(input):  # noqa: A002 (the name of the tensor)
    return {"output": input}


@batch
def mean(input):  # noqa: A002
    return {"output": input.mean((1, 2, 3)).reshape(-1, 1)}


MODELS = {"identity": (identity, (32,), (32,)), "mean": (mean, (3, 224, 224), (1,))}


def main(name, port):
    function, taken, given = MODELS[name]
    settings = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=settings) as triton:
        triton.bind(
            model_name=name,
            infer_func=function,
            inputs=[Tensor(name="input", dtype=np.float32, shape=taken)],
            outputs=[Tensor(name="output", dtype=np.float32, shape=given)],
            config=ModelConfig(max_batch_size=512, batcher=DynamicBatcher(max_queue_delay_microseconds=5000)),
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        triton.run()
        signal.pause()


main(sys.argv[1], int(sys.argv[2]))
