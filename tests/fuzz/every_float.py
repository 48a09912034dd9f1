"""Every float32 as JSON, against orjson: python tests/fuzz/every_float.py [FIRST [STOP]], of 4096 parts of 2**20 each.

Takes some minutes. And as many doubles as there are parts times 2**16: any bits, decimals, powers of two and their
neighbours. Prints the first difference, and exits 1.
"""

import sys

import numpy as np
import orjson

from virtex._codec import encode_numbers

PART, SOME, ALL = 1 << 20, 1 << 14, 4096
HEAD, TAIL = b'{"data":[', b'],"error":null}'


def check(values):
    values = values[np.isfinite(values)]
    came = encode_numbers(values[None], 0, 1)
    expected = orjson.dumps(values, None, orjson.OPT_SERIALIZE_NUMPY)
    if came == HEAD + expected + TAIL:
        return
    texts = zip(came[len(HEAD) + 1 : -len(TAIL) - 1].split(b","), expected[1:-1].split(b","), strict=True)
    sys.exit(next(f"{values.dtype}: orjson writes {text}, we {own}" for own, text in texts if own != text))


def doubles(rng):
    yield rng.integers(0, 2**64, SOME, "u8").view("f8")
    yield np.round(rng.random(SOME) * 10.0 ** rng.integers(0, 12, SOME), rng.integers(0, 9))
    yield rng.integers(1, 10**4, SOME) * 10.0 ** rng.integers(-300, 300, SOME)
    powers = 2.0 ** rng.integers(-1074, 1024, SOME)
    yield np.nextafter(powers, rng.choice([0, 1, np.inf], SOME) * powers)


def main():
    first, stop = (*map(int, sys.argv[1:3]), *(0, ALL)[len(sys.argv) - 1 :])
    for part in range(first, stop):
        check(np.arange(part * PART, (part + 1) * PART, dtype="u4").view("f4"))
        for values in doubles(np.random.default_rng(part)):
            check(values)
        if part % 256 == 255:
            print(f"{part + 1} of {ALL} parts", flush=True)


if __name__ == "__main__":
    main()
