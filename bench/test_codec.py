"""What the codec costs beside the recipes that people know: `pytest bench/test_codec.py --benchmark-enable`.

Sizes are bytes of float32 data; 602112 is an image of 3 x 224 x 224. Every recipe is checked to give the same
array.
"""

import base64
import pickle

import numpy as np
import orjson
import pybase64
import pytest

from virtex import codec_info
from virtex.serial import decode_numpy, encode_numpy

SIZES = [64, 1024, 65536, 602112, 4 << 20]


def stdlib_encode(array):
    return base64.b64encode(array.tobytes()).decode()


def stdlib_decode(text):
    return np.frombuffer(base64.b64decode(text, validate=True), "f4")


def pybase64_orjson_encode(array):
    return orjson.dumps({"data": [pybase64.b64encode_as_string(array.data)]})


def pybase64_orjson_decode(body):
    return np.frombuffer(pybase64.b64decode(orjson.loads(body)["data"][0], validate=True), "f4")


def pickle_encode(array):
    return base64.encodebytes(pickle.dumps(array)).decode()


def pickle_decode(text):
    return pickle.loads(base64.decodebytes(text.encode()))


RECIPES = {
    "virtex": (encode_numpy, decode_numpy),
    "stdlib base64": (stdlib_encode, stdlib_decode),
    "pybase64 + orjson": (pybase64_orjson_encode, pybase64_orjson_decode),
    "pickle + base64": (pickle_encode, pickle_decode),
}


@pytest.fixture(params=SIZES)
def array(request):
    return np.random.default_rng(0).random(request.param // 4, "f4")


@pytest.fixture(params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


def note(benchmark, array, kind):
    benchmark.group = f"{kind} {array.nbytes} B, isa={codec_info()['isa']}"
    benchmark.extra_info |= {"bytes": array.nbytes, **codec_info()}


def test_encode(benchmark, array, recipe):
    encode, decode = recipe
    note(benchmark, array, "encode")
    text = benchmark(encode, array)
    assert (decode(text) == array).all()


def test_decode(benchmark, array, recipe):
    encode, decode = recipe
    note(benchmark, array, "decode")
    back = benchmark(decode, encode(array))
    assert (back == array).all()
    assert back.dtype == array.dtype


def test_memcpy(benchmark, array):
    note(benchmark, array, "copy")
    copy = np.empty_like(array)
    benchmark(np.copyto, copy, array)
    assert (copy == array).all()
