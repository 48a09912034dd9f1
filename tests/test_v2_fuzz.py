"""Infer requests of V2 that are wrong in any way: each is answered, none of them by a 500, and all that was charged for
them is given back.

python tests/test_v2_fuzz.py [seconds] [seed]    runs for longer than the test does, and says how to repeat a failure
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import numpy as np
import pytest
from kit.asks import Echo, ask_asgi, ask_direct
from kit.v2 import body_of, error_of, outputs_of, sent, tensor
from numpy.typing import NDArray

from virtex import Limits, RequestHandler, Tensor, TensorHandler, http_server

SHOTS = 80  # at once
OTHERS = (501, 503, 504)  # a datatype that V2 has not; a timeout that is too short, or was
LIMITS = Limits(body=100_000, values=5000, max_bytes=50 << 20)


class Texts(Echo):
    def process_response(self, item):
        return item.hex() if isinstance(item, bytes) else item


class Lists(Echo):
    def process_response(self, item):
        return np.array(item)  # a list may have a NaN, of which JSON has none


class Arrays(Echo):
    def process_request(self, data: NDArray[np.float32]):
        return data


class Named(TensorHandler):
    inputs = {"a": Tensor("f4", (2,)), "b": Tensor("i8"), "s": Tensor("str"), "t": Tensor("bytes", (2,))}
    outputs = inputs

    def run_inference(self, model_input):
        return model_input


class Floats(TensorHandler):
    inputs = Tensor("f4", (3, 2))

    def run_inference(self, model_input):
        return model_input


HANDLERS: dict[str, type[RequestHandler]] = {
    "texts": Texts,
    "numbers": Lists,
    "arrays": Arrays,
    "named": Named,
    "floats": Floats,
}
ODD = [
    0,
    1,
    -1,
    2,
    3,
    255,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 61,
    1 << 62,
    1 << 63,
    10**19,
    1.5,
    True,
    None,
    "a",
    [],
    {},
]
VALUES = [
    b"NaN",
    b"Infinity",
    b"1e999",
    b"null",
    b"true",
    b'"a"',
    b"[[[[",
    b"]",
    b'"',
    b"{}",
    b"\\",
    b"\xff",
    b"\0",
    b"-",
]


def tensors_of(rng: random.Random, kind: str, n: int):
    def is_binary():
        return rng.random() < 0.5

    def texts(count):
        return [rng.choice([b"", b"a", "ä\0".encode(), b"x" * 40]) for _ in range(count)]

    numbers = np.random.default_rng(rng.randrange(1 << 30))
    if kind == "texts":
        return [tensor("any", texts(n), is_binary())]
    if kind == "floats":
        return [tensor("input", numbers.standard_normal((n, 3, 2), "f4"), is_binary(), is_binary())]
    if kind in ("numbers", "arrays"):
        dtype = rng.choice(["f4", "f8", "i1", "u2", "i8", "f2", "?"])
        shape = rng.choice([(n,), (n, 2), (n, 2, 1)])
        return [tensor("x", numbers.integers(0, 2, shape).astype(dtype), is_binary(), is_binary())]
    pairs, blob = tensor("t", texts(2 * n), is_binary())
    said = [tensor("a", numbers.standard_normal((n, 2), "f4"), is_binary()), tensor("b", np.arange(n), is_binary())]
    return [*said, tensor("s", texts(n), is_binary()), ({**pairs, "shape": [n, 2]}, blob)]


def with_a_wrong_member(rng, given):
    """A tensor of which one member is something else, or missing."""
    said, blob = given
    said = dict(said)
    member = rng.choice(["name", "datatype", "shape", "data", "parameters", "size", "axis"])
    if member == "size" and "parameters" in said:
        said["parameters"] = {"binary_data_size": rng.choice([*ODD, len(blob) + rng.choice([-4, -1, 1, 4])])}
    elif member == "axis":
        said["shape"] = [rng.choice([length, *ODD]) for length in said["shape"]]
    elif member == "datatype":
        said["datatype"] = rng.choice(["FP32", "FP64", "BYTES", "INT8", "BOOL", "BF16", "FP16", "fp32", "", 7])
    elif rng.random() < 0.3:
        said.pop(member, None)
    else:
        said[member] = rng.choice(ODD)
    return said, blob


def with_wrong_bytes(rng, data, words):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        action = rng.randrange(4)
        if action == 0:
            data[at:at] = rng.choice(words)
        elif action == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif action == 2:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\0\0\xc0\x7f", b"\1\0\0\0"])
        else:
            del data[at:]
    return bytes(data)


def request(rng, kind):
    """The head, what is behind it, and headers; wrong in one way, in several, or in none."""
    given = tensors_of(rng, kind, rng.choice([1, 2, 7]))
    if rng.random() < 0.4:
        at = rng.randrange(len(given))
        given[at] = with_a_wrong_member(rng, given[at])
    if rng.random() < 0.1:
        given = rng.choice([[], given[:-1], given + given[:1], given[::-1]])
    members = {}
    if rng.random() < 0.4:
        members["parameters"] = rng.choice(
            [{"binary_data_output": True}, {"binary_data_output": 7}, {"timeout": rng.choice(ODD)}, *ODD]
        )
    if rng.random() < 0.2:
        members["outputs"] = rng.choice([[{"name": rng.choice(["a", "data", "output", "no", 7])}], *ODD])
    if rng.random() < 0.2:
        members["id"] = rng.choice(["x", "é\0", *ODD])
    head, blob = body_of(*given, **members)
    if rng.random() < 0.3:
        head = with_wrong_bytes(rng, head, VALUES)
    if rng.random() < 0.3:
        blob = with_wrong_bytes(rng, blob, VALUES)
    headers = []
    if rng.random() < 0.2:
        lies = [0, 1, len(head) - 1, len(head) + 1, len(head) + len(blob), len(head) + len(blob) + 1, 10**17, -1]
        headers = [(b"inference-header-content-length", b"%d" % rng.choice(lies))]
        head, blob = head + blob, b""
    return head, blob, headers


def check(answer, what):
    assert answer.status == 200 or 400 <= answer.status < 500 or answer.status in OTHERS, (answer.status, what)
    if answer.status == 200:
        outputs_of(answer)
    else:
        error_of(answer)
    return answer.status == 200


async def shoot(kind, rng, shots):
    app = http_server("a", HANDLERS[kind](), max_batch_size=4, max_time_on_queue=0, limits=LIMITS)
    await app.startup()
    good, rows = 0, app.budget.held
    for start in range(0, shots, SHOTS):
        asked = [request(rng, kind) for _ in range(min(SHOTS, shots - start))]
        asks = [
            sent(app, head, blob, ask=rng.choice([ask_direct, ask_asgi]), headers=headers)
            for head, blob, headers in asked
        ]
        answers = await asyncio.wait_for(asyncio.gather(*asks), 60)
        for answer, what in zip(answers, asked, strict=True):
            good += check(answer, what)
        assert app.model.admission.unsettled == 0
        assert app.budget.held == rows
    await app.shutdown()
    return good


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_wrong_is_a_4xx_and_all_that_was_charged_is_given_back(kind, seed):
    good = asyncio.run(shoot(kind, random.Random(f"{kind} {seed}"), 400))
    assert 20 < good < 380, "requests of both kinds"


def main(seconds=60.0, seed=None):
    seed = random.randrange(1 << 30) if seed is None else seed
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for kind in HANDLERS:
            try:
                asyncio.run(shoot(kind, random.Random(f"{kind} {seed}"), 400))
            except BaseException:
                print(f"repeat with: python tests/test_v2_fuzz.py 1 {seed}", file=sys.stderr)
                raise
        seed += 1
        rounds += 1
    print(f"{rounds} rounds")


if __name__ == "__main__":
    main(*(kind(argument) for kind, argument in zip((float, int), sys.argv[1:], strict=False)))
