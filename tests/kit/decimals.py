"""Decimal texts that are hard to read as doubles, made by exact rational arithmetic."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from fractions import Fraction


def _words(text: str) -> list[str]:
    return text.split()


KNOWN = _words(
    """
    2.2250738585072014e-308 2.2250738585072011e-308 2.2250738585072012e-308 2.22507385850720113605740979670913197593481
    954635164564802342610972482222202107694551652952390813508e-308 5e-324 4.9e-324 2.4703282292062327e-324
    2.4703282292062328e-324 2.47e-324 1e-400 1e-99999999999999999999 0e99999999999999999999 1e23 8.5e22 1e22 1e-22 1e-23
    9007199254740993 9007199254740993.0 9007199254740992.99999999999999999999 9007199254740993.00000000000000000001
    9007199254740994.9 1.7976931348623157e308 1.7976931348623158e308 1.797693134862315807e308 179769313486231570000e289
    0.1 0.3 2.5 -0.0 -0 0 0.0 -0e0 0e0 0E-5 1E5 1e+5 1e-5 1.0 -1.5 123456789012345678901234567890.5
    18446744073709551615 9223372036854775808 -9223372036854775808 9223372036854775807 10000000000000000000
    18446744073709551614.5 6.02214076e23 6.103515625e-05 5.9604644775390625e-08 2.98023223876953125e-08
    2.9802322387695313e-08 65504 65519.99 3.4028234663852886e38 3.4028235677973366e38 3.40282356779733623858e38
    1.401298464324817e-45 7.006492321624085e-46 7.0064923216240862e-46 16777217 16777217.0000000001 1152921573326323713
    1.00000005960464477539062501 0.000000000000000000000000000000000000001 1000000000000000000000000000000000000000.0
    7.2057594037927933e16 9.5e-320 1234567890123456789 12345678901234567890
    """
)


def float_of(bits: int) -> Fraction:
    return Fraction(struct.unpack("<d", struct.pack("<Q", bits))[0])


def digits_of(value: Fraction) -> str:
    """A positive number of a power of two as all of its decimals."""
    twos = value.denominator.bit_length() - 1
    digits = str(value.numerator * 5**twos)
    return f"{digits}e-{twos}" if twos else f"{digits}e0"


def halfways(rng: random.Random, count: int) -> Iterator[str]:
    """Half way between neighbouring doubles, a digit above and below, and cut to 17 to 800 digits."""
    for _ in range(count):
        bits = rng.getrandbits(63) if rng.random() < 0.7 else rng.getrandbits(rng.randint(1, 53))
        if bits >> 52 >= 0x7FE:
            continue
        half = (float_of(bits) + float_of(bits + 1)) / 2
        digits, _, power = digits_of(half).partition("e")
        yield f"{digits}e{power}"
        yield f"{digits}1e{int(power) - 1}"
        yield f"{int(digits) - 1}e{power}"
        cut = rng.randint(17, 800)
        if len(digits) > cut:
            yield f"{digits[0]}.{digits[1:cut]}e{int(power) + len(digits) - 1}"


def any_of(rng: random.Random, count: int) -> Iterator[str]:
    """Numbers of all lengths and exponents, with and without a point."""
    for _ in range(count):
        sign = rng.choice(["", "", "-"])
        whole = str(rng.getrandbits(rng.choice([1, 4, 10, 30, 63])))
        if rng.random() < 0.3:
            yield sign + whole
            continue
        part = "".join(rng.choices("0123456789", k=rng.choice([1, 2, 4, 6, 7, 8, 9, 15, 16, 17, 18, 19, 20, 40])))
        power = rng.choice(["", "", f"e{rng.randint(-30, 30)}", f"E{rng.randint(-345, 290):+}"])
        yield f"{sign}{whole}.{part}{power}"


# What RFC 8259 does not take for a number, after the cases of JSONTestSuite; and what it takes for another value.
NO_NUMBERS = _words(
    """
    -01 01 00 -00 012 1. .5 -.5 2.e3 2.e+3 2.e-3 1e 1e+ 1e- 1eE2 1E+ 1e1.5 0.3e 0.3e+ 0e 0e+ 0E 0E+ 1.0e 1.0e- 1.0e+ +1
    ++1234 - -1x 1x 000.0 0x1 0x42 -Infinity Infinity -NaN NaN inf 1+2 1_000 1a -2. -foo 1.2a-3 9.e+ 0.1.2 -1.0. 1..2
    1.8011670033376514H-308 1e1e1 1-1 1,,2 ,1 1, 1:2 tru True TRUE falsey truefalse nul nan 1\x00 \uff11 1\x1f 18446744073709551616
    -9223372036854775809 1e309 -1e999 123456789012345678901
    """
) + ["- 1", "1 000", "1\u00a0", "1 2", ""]
