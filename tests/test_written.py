"""Numbers of replies as orjson writes them; and that the arithmetic behind their digits is exact enough."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import orjson
import pytest

from virtex._codec import encode_numbers, number_texts
from virtex.serial._json import as_numbers, decimals


def texts_of(values):
    return encode_numbers(values[None], 0, 1)[len(b'{"data":[[') : -len(b']],"error":null}')].split(b",")


def by_orjson(values):
    return orjson.dumps(values, None, orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def hard_floats(dtype):
    """Bits at random, decimals, powers of two and of ten, and the neighbours of those, of either sign."""
    rng = np.random.default_rng(0)
    bits, info = np.dtype(dtype).itemsize * 8, np.finfo(dtype)
    powers = np.ldexp(np.ones(1, dtype), np.arange(info.minexp - info.nmant, info.maxexp))
    with np.errstate(over="ignore", under="ignore"):
        tens = np.array([float(f"{digit}e{e}") for e in range(-324, 309) for digit in (1, 15, 9)]).astype(dtype)
        decimals = np.round(rng.random(5000) * 10.0 ** rng.integers(0, 12, 5000), 3).astype(dtype)
    edges = np.concatenate([powers, tens, decimals, np.arange(1000, dtype=dtype), np.zeros(1, dtype)])
    near = [np.nextafter(edges, dtype(end)) for end in (-np.inf, np.inf)]
    drawn = rng.integers(0, 2**bits, 50000, f"u{bits // 8}").view(dtype)
    values = np.concatenate([edges, *near, drawn])
    values = values[np.isfinite(values)]
    return np.concatenate([values, -values])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_written_as_orjson_writes_them(dtype):
    values = hard_floats(dtype)
    assert texts_of(values) == by_orjson(values)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_integers_are_written_as_orjson_writes_them(dtype):
    info = np.iinfo(dtype)
    ends = [10**k + d for k in range(20) for d in (-1, 0, 1)] + [info.min, info.max, info.min + 1]
    values = np.array([sign * n for n in ends for sign in (1, -1) if info.min <= sign * n <= info.max], dtype)
    assert texts_of(values) == by_orjson(values)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_float_of_16_bits_is_written_as_the_number_of_64_bits_that_has_its_shortest_text(dtype):
    bits = np.arange(1 << 16, dtype="u2")
    with np.errstate(invalid="ignore"):  # which bfloat16 says of its NaN
        finite = np.isfinite(bits.view(dtype))
    values = bits[finite].view(dtype)
    assert texts_of(values) == by_orjson(as_numbers(values))


def test_no_table_of_all_values_is_built_for_them():
    decimals.cache_clear()
    encode_numbers(np.ones((1, 3), "e"), 0, 1), number_texts(np.ones((1, 3), ml_dtypes.bfloat16))
    assert decimals.cache_info().currsize == 0


@pytest.mark.parametrize("count", [1, 200, 200_000], ids=["on the stack", "more", "without the GIL"])
def test_rows_that_lie_otherwise_are_written_all_the_same(count):
    plain = np.arange(6.0 * count).reshape(count, 2, 3)
    body = b'{"data":%b,"error":null}' % orjson.dumps(plain, None, orjson.OPT_SERIALIZE_NUMPY)
    for rows in (plain, np.asfortranarray(plain), plain.astype(">f8"), np.repeat(plain, 2, 2)[:, :, ::2]):
        assert encode_numbers(rows, 0, count) == body
    assert encode_numbers(plain, count, count) == b'{"data":[],"error":null}'


def test_what_is_not_finite_or_too_many_lists_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        encode_numbers(np.array([[1, np.inf]]), 0, 1)
    assert encode_numbers(np.array([[1, np.inf], [2, 3]]), 1, 2) == b'{"data":[[2.0,3.0]],"error":null}'
    with pytest.raises(MemoryError, match="as JSON"):
        encode_numbers(np.empty((1, 2**33, 0)), 0, 1)


def one_sided(step, most):
    """The least that m * step is above a whole number, but for such itself, and below one; 1 <= m <= most."""
    above, below = step % 1, 1 - step % 1
    above_m = below_m = 1
    while above and below < 1:
        times = min((below / above).__ceil__() - 1, (most - below_m) // above_m)
        more = min((above / below).__ceil__() - 1, (most - above_m) // below_m)
        if above < below and times:
            below, below_m = below - times * above, below_m + times * above_m
        elif below <= above and more:
            above, above_m = above - more * below, above_m + more * below_m
        else:
            break
    return above or Fraction(1), below


@pytest.mark.parametrize(("bits", "lowest", "highest", "point"), [(24, -149, 104, 36), (53, -1074, 971, 71)])
def test_what_is_no_whole_number_differs_from_one_by_more_than_the_arithmetic_loses(bits, lowest, highest, point):
    """VX_WHOLE of shortest.h. Value and ends of the interval are multiples of a quarter of 2^q / 10^k."""
    for q in range(lowest, highest + 1):
        for less in (0, 524031):
            k = (q * 1262611 - less) >> 22
            above, below = one_sided(Fraction(2) ** (q - 2) / Fraction(10) ** k, 2 ** (bits + 2) + 2)
            assert min(above, below) * 2**point > 8 + 4
