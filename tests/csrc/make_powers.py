"""Writes virtex/csrc/powers.h: `python tests/csrc/make_powers.py > virtex/csrc/powers.h`. Exact: whole numbers only.

For each q the leading 128 bits of 5**q, truncated for q >= 0; for q < 0 those of its reciprocal's next number above, as
"Number Parsing at a Gigabyte per Second" (D. Lemire, arXiv 2101.11408, section 5) needs them.
"""

# Of a number of 19 digits that is read: below, it is less than half of the least double; above, infinite.
LOWEST, HIGHEST = -342, 308
WRITTEN = 324  # what the least double is multiplied by, to be written


def power(q):
    """Between 2**127 and 2**128."""
    if q >= 0:
        five = 5**q
        shift = five.bit_length() - 128
        return five >> shift if shift > 0 else five << -shift
    five = 5**-q
    bits = (five - 1).bit_length()
    if q >= -27:
        return 2 ** (bits + 127) // five + 1
    found = 2 ** (2 * bits + 128) // five + 1
    return found >> (found.bit_length() - 128)


def text():
    lines = [
        "/* The leading 128 bits of powers of five, high half first. Written by tests/csrc/make_powers.py. */",
        "#ifndef VX_POWERS_H",
        "#define VX_POWERS_H",
        "",
        "#include <stdint.h>",
        "",
        f"enum {{ VX_LOWEST_POWER = {LOWEST}, VX_HIGHEST_POWER = {HIGHEST} }}; /* read; written: {WRITTEN} */",
        "",
        f"static const uint64_t vx_powers[{WRITTEN - LOWEST + 1}][2] = {{",
    ]
    for q in range(LOWEST, WRITTEN + 1):
        high, low = divmod(power(q), 2**64)
        lines.append(f"    {{0x{high:016x}, 0x{low:016x}}},")
    return "\n".join([*lines, "};", "", "#endif", ""])


if __name__ == "__main__":
    print(text(), end="")
