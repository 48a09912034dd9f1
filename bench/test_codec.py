"""The ways of bench/codec.py under pytest-benchmark, to compare one state of the code with another's.

pytest bench/test_codec.py --benchmark-enable --benchmark-autosave, and then with --benchmark-compare. With
--benchmark-disable every way is only checked to bring the same numbers back.
"""

import numpy as np
import pytest

from virtex import codec_info

from .codec import NUMBERS, PARSED, SIZES, WAYS, number_ways, way, written_ways


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("step", ["encode", "decode"])
def test_codec(benchmark, step, name, size):
    benchmark.group = f"{step} {size} B, isa={codec_info()['isa']}"
    encode, decode = way(name, np.random.default_rng(1).random(size // 4, "f4"))
    benchmark(encode if step == "encode" else decode)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("how", ["virtex", PARSED])
def test_numbers(benchmark, name, how):
    body, ways = number_ways(name)
    benchmark.group = f"numbers, {name}: {len(body)} B"
    benchmark(ways[how])


@pytest.mark.parametrize("how", written_ways())
def test_rows_out(benchmark, how):
    benchmark.group = "64 x 4 float32 into numbers of JSON"
    benchmark(written_ways()[how])
