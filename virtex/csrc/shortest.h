/* Numbers of memory as JSON: floats in the fewest digits that read back as the same value of their kind, of those the
 * nearest; and rows of them as nested lists. No object for any of them.
 *
 * The digits: R. Giulietti, "The Schubfach way to render doubles" (2020). All that reads back as c * 2^q lies within half
 * a 2^q of it. For the k with 10^k <= 2^q < 10^(k+1) this interval holds a multiple of 10^k, and at most one of 10^(k+1),
 * which is shorter. All three, the value and both ends, are whole multiples of one product with a power of ten: so that
 * one multiplication is enough. The power is rounded up in its last bit; the paper shows that what isn't a whole number
 * differs from one by far more than that (for 32 bits and fewer: tests/fuzz/every_float.py, which tries them all).
 *
 * The text is laid out as orjson does it: 0.001, 12.0, 1.5e+16, 1e-7. Every writer may write VX_SLACK bytes too far.
 */
#ifndef VX_SHORTEST_H
#define VX_SHORTEST_H

#include "numbers.h"

enum { VX_BF16 = VX_KINDS, VX_WRITTEN_KINDS }; /* one more than what is read without NumPy */

enum { VX_SLACK = 64 };

/* ---- digits */

typedef struct {
    uint64_t digits;
    int power; /* of ten */
} vx_decimal;

VX_ALWAYS int vx_log10_of_two(int q, int edge) /* floor(log10(2^q)), or of 3/4 of that */
{
    return (q * 1262611 - (edge ? 524031 : 0)) >> 22;
}

VX_ALWAYS int vx_log2_of_ten(int k) /* floor(log2(10^k)) */
{
    return (k * 1741647) >> 19;
}

/* What is left to choose, once value and interval are known in multiples of 10^k: the value's whole part; whether it is
 * nearer to the next one, and it alone, or both; and the lowest and highest whole number of the interval. */
VX_ALWAYS uint64_t vx_choose_digits(uint64_t whole, unsigned nearer, uint64_t lowest, uint64_t highest)
{
    uint64_t tens = whole / 10 * 10;
    uint64_t down = tens >= lowest, up = (tens + 10 <= highest) & (tens > 0); /* 10 is no shorter than 9 */
    uint64_t near = whole + ((whole < lowest) | ((whole < highest) & nearer));
    uint64_t is_short = 0 - (down | up); /* without branches, half of which would be missed */
    return ((tens + 10 * up) & is_short) | (near & ~is_short);
}

enum { VX_BIAS = 2, VX_WHOLE = 8 }; /* in the last bit: less than is lost by rounding down, and what a whole number has left */

/* c * 2^q, c below 2^24, in 2^-36 of 10^k. edge: the number below is only half as far as the one above. */
VX_ALWAYS vx_decimal vx_shortest_single(uint32_t c, int q, int edge)
{
    enum { POINT = 36 };
    const uint64_t ones = ((uint64_t)1 << POINT) - 1;
    int k = vx_log10_of_two(q, edge), up = q + vx_log2_of_ten(-k);
    uint64_t ten = vx_powers[-k - VX_LOWEST_POWER][0] + 1, odd = c & 1;
    uint64_t value = (uint64_t)((vx_wide)ten * ((uint64_t)c << (POINT + 1 + up)) >> 64) + VX_BIAS;
    uint64_t half = ten >> (64 - POINT - up), low = value - (half >> edge), high = value + half;
    uint64_t whole = value >> POINT, behind = (value & ones) - (ones / 2 + 1);
    unsigned nearer = ((int64_t)behind >= 0) & ((behind >= VX_WHOLE) | (whole & 1));
    return (vx_decimal){vx_choose_digits(whole, nearer, (low >> POINT) + (odd | ((low & ones) >= VX_WHOLE)),
                                         (high >> POINT) - (odd & ((high & ones) < VX_WHOLE))),
                        k};
}

/* The same, c below 2^53; in 2^-71 of 10^k. */
VX_ALWAYS vx_decimal vx_shortest_double(uint64_t c, int q, int edge)
{
    enum { POINT = 71 };
    const vx_wide ones = ((vx_wide)1 << POINT) - 1;
    int k = vx_log10_of_two(q, edge), up = q + vx_log2_of_ten(-k);
    const uint64_t *power = vx_powers[-k - VX_LOWEST_POWER];
    vx_wide ten = ((vx_wide)power[0] << 64 | power[1]) + 1;
    uint64_t m = c << (POINT - 64 + 1 + up), odd = c & 1;
    vx_wide value = (vx_wide)(uint64_t)(ten >> 64) * m + (uint64_t)((vx_wide)(uint64_t)ten * m >> 64) + VX_BIAS;
    vx_wide half = ten >> (128 - POINT - 3) >> (3 - up), low = value - (half >> edge), high = value + half;
    uint64_t whole = (uint64_t)(value >> POINT);
    vx_wide behind = (value & ones) - (ones / 2 + 1);
    unsigned nearer = ((int64_t)(behind >> 64) >= 0) & ((behind >= VX_WHOLE) | (whole & 1));
    return (vx_decimal){vx_choose_digits(whole, nearer, (uint64_t)(low >> POINT) + (odd | ((low & ones) >= VX_WHOLE)),
                                         (uint64_t)(high >> POINT) - (odd & ((high & ones) < VX_WHOLE))),
                        k};
}

/* ---- text */

VX_ALWAYS void vx_put_eight(uint8_t *to, uint64_t eight)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    memcpy(to, &eight, 8);
}

/* The eight digits of a number below 10^8, one in each byte, the first one lowest: halved three times. */
VX_ALWAYS uint64_t vx_digits_of(uint64_t n)
{
    uint64_t fours = n / 10000;
    fours |= (n - 10000 * fours) << 32;
    uint64_t twos = (fours * 10486) >> 20 & 0x0000007f0000007f;
    twos |= (fours - 100 * twos) << 16;
    uint64_t ones = (twos * 103) >> 10 & 0x000f000f000f000f;
    return ones | (twos - 10 * ones) << 8;
}

static const uint64_t vx_powers_of_ten[] = {
    1ull,
    10ull,
    100ull,
    1000ull,
    10000ull,
    100000ull,
    1000000ull,
    10000000ull,
    100000000ull,
    1000000000ull,
    10000000000ull,
    100000000000ull,
    1000000000000ull,
    10000000000000ull,
    100000000000000ull,
    1000000000000000ull,
    10000000000000000ull,
    100000000000000000ull,
};

VX_ALWAYS int vx_bytes_of(uint64_t n) /* up to the last one that isn't zero; without a branch */
{
    return (64 - __builtin_clzll(n | 1) - (n == 0) + 7) >> 3;
}

VX_ALWAYS int vx_length_of(uint64_t n) /* in digits, of 0 to 10^18 - 1 */
{
    int length = ((64 - __builtin_clzll(n | 1)) * 1233) >> 12;
    return length + ((n | 1) >= vx_powers_of_ten[length]);
}

VX_ALWAYS uint8_t *vx_put_exponent(uint8_t *to, int e)
{
    memcpy(to, e < 0 ? "e-" : "e+", 2);
    to += 2;
    e = e < 0 ? -e : e;
    if (e >= 100)
        *to++ = (uint8_t)('0' + e / 100);
    if (e >= 10)
        *to++ = (uint8_t)('0' + e / 10 % 10);
    *to++ = (uint8_t)('0' + e % 10);
    return to;
}

VX_ALWAYS void vx_put_rest(uint8_t *to, vx_wide text, int width)
{
    vx_put_eight(to, (uint64_t)text);
    if (width > 8)
        vx_put_eight(to + 8, (uint64_t)(text >> 64));
}

/* width: 8 for at most 9 digits, 16 for at most 17; there are `fewest` at least. Below 10^most and from 10^least on, no
 * exponent is written. */
VX_ALWAYS uint8_t *vx_put_decimal(uint8_t *to, vx_decimal d, int width, int fewest, int most, int least)
{
    const uint64_t full = vx_powers_of_ten[width];
    uint64_t digits = d.digits;
    int point = width + 1 + d.power; /* how many digits stand before the point */
    if (fewest > 1) {
        for (int i = fewest; i <= width; i++) {
            int is_less = digits < full; /* without a branch */
            point -= is_less;
            digits *= (uint64_t)(1 + 9 * is_less);
        }
    } else {
        int length = vx_length_of(digits);
        point -= width + 1 - length;
        digits *= vx_powers_of_ten[width + 1 - length];
    }
    uint64_t first = digits / full, rest = digits - first * full, high = width == 8 ? rest : rest / 100000000;
    uint64_t left = vx_digits_of(high), right = width == 8 ? 0 : vx_digits_of(rest - high * 100000000);
    int count = vx_bytes_of(left), more = vx_bytes_of(right);
    count += 1 + ((8 + more - count) & -(more > 0));
    vx_wide text = (vx_wide)(right | VX_EACH('0')) << 64 | left | VX_EACH('0');
    if (point > 0 && point <= most) {
        *to = (uint8_t)('0' + first);
        vx_put_rest(to + 1, text, 16);
        to[point] = '.';
        if (count > point) {
            vx_put_rest(to + point + 1, width > 8 ? text >> (8 * (point - 1)) : (uint64_t)text >> (8 * (point - 1)), width);
            return to + count + 1;
        }
        to[point + 1] = '0';
        return to + point + 2;
    }
    int is_small = point <= 0 && point > least;
    if (is_small) {
        vx_put_eight(to, VX_EACH('0') + ((uint64_t)('.' - '0') << 8));
        to += 2 - point;
    }
    *to = (uint8_t)('0' + first);
    to[1] = '.';
    to += !is_small;
    vx_put_rest(to + 1, text, width);
    return is_small ? to + count : vx_put_exponent(to + (count > 1 ? count : 0), point - 1);
}

VX_ALWAYS uint8_t *vx_put_up_to_eight(uint8_t *to, uint64_t n)
{
    uint64_t digits = vx_digits_of(n);
    int leading = digits ? __builtin_ctzll(digits) >> 3 : 7;
    vx_put_eight(to, (digits | VX_EACH('0')) >> (8 * leading));
    return to + 8 - leading;
}

VX_ALWAYS uint8_t *vx_put_unsigned(uint8_t *to, uint64_t n)
{
    enum { EIGHT = 100000000 };
    if (__builtin_expect(n < EIGHT, 1))
        return vx_put_up_to_eight(to, n);
    uint64_t high = n / EIGHT, top = high / EIGHT;
    to = vx_put_up_to_eight(to, top ? top : high);
    if (top) {
        vx_put_eight(to, vx_digits_of(high - top * EIGHT) | VX_EACH('0'));
        to += 8;
    }
    vx_put_eight(to, vx_digits_of(n - high * EIGHT) | VX_EACH('0'));
    return to + 8;
}

VX_ALWAYS uint8_t *vx_put_signed(uint8_t *to, int64_t n)
{
    *to = '-';
    return vx_put_unsigned(to + (n < 0), n < 0 ? 0 - (uint64_t)n : (uint64_t)n);
}

VX_ALWAYS uint8_t *vx_put_bool(uint8_t *to, uint8_t one)
{
    memcpy(to, one ? "true" : "false", 5);
    return to + (one ? 4 : 5);
}

/* A float of so many bits of mantissa and exponent; NULL if it isn't finite. float32 is laid out as orjson lays it out,
 * others as the float64 of the same digits. is_plain: neither zero nor subnormal, and no power of two. */
VX_ALWAYS uint8_t *vx_put_float(uint8_t *to, uint64_t bits, int mantissa, int exponents, int is_plain)
{
    const uint64_t one = (uint64_t)1 << mantissa;
    int infinite = (1 << exponents) - 1, exponent = (int)(bits >> mantissa) & infinite;
    uint64_t c = bits & (one - 1);
    *to = '-';
    to += bits >> (mantissa + exponents);
    if (!is_plain && exponent == infinite)
        return NULL;
    if (!is_plain && exponent + c == 0) {
        memcpy(to, "0.0", 3);
        return to + 3;
    }
    int edge = !is_plain && c == 0 && exponent > 1, least = !is_plain && exponent == 0;
    int q = exponent + least + 1 - (1 << (exponents - 1)) - mantissa;
    c |= least ? 0 : one;
    if (mantissa == 52)
        return vx_put_decimal(to, vx_shortest_double(c, q, edge), 16, is_plain ? 16 : 1, 16, -5);
    vx_decimal d = vx_shortest_single((uint32_t)c, q, edge);
    return vx_put_decimal(to, d, 8, is_plain && mantissa == 23 ? 7 : 1, mantissa == 23 ? 13 : 16, mantissa == 23 ? -6 : -5);
}

static __attribute__((noinline)) uint8_t *vx_put_rare_single(uint8_t *to, uint64_t bits)
{
    return vx_put_float(to, bits, 23, 8, 0);
}

static __attribute__((noinline)) uint8_t *vx_put_rare_double(uint8_t *to, uint64_t bits)
{
    return vx_put_float(to, bits, 52, 11, 0);
}

VX_ALWAYS uint8_t *vx_put_half(uint8_t *to, uint16_t bits)
{
    return vx_put_float(to, bits, 10, 5, 0);
}

VX_ALWAYS uint8_t *vx_put_bfloat(uint8_t *to, uint16_t bits)
{
    return vx_put_float(to, bits, 7, 8, 0);
}

VX_ALWAYS uint8_t *vx_put_single(uint8_t *to, uint32_t bits)
{
    int is_plain = (bits & 0x7fffff) && (bits >> 23 & 0xff) - 1 < 0xfe;
    return __builtin_expect(is_plain, 1) ? vx_put_float(to, bits, 23, 8, 1) : vx_put_rare_single(to, bits);
}

VX_ALWAYS uint8_t *vx_put_double(uint8_t *to, uint64_t bits)
{
    int is_plain = (bits & 0xfffffffffffff) && (bits >> 52 & 0x7ff) - 1 < 0x7fe;
    return __builtin_expect(is_plain, 1) ? vx_put_float(to, bits, 52, 11, 1) : vx_put_rare_double(to, bits);
}

/* ---- many of them */

/* n numbers of a kind, each with a comma behind it; NULL if one isn't finite. */
VX_ALWAYS uint8_t *vx_put_all(int kind, uint8_t *to, const uint8_t *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        switch (kind) {
#define VX_PUT(KIND, type, put)                                                                                                \
    case KIND: {                                                                                                               \
        type one;                                                                                                              \
        memcpy(&one, from + i * sizeof one, sizeof one);                                                                       \
        to = put(to, one);                                                                                                     \
        break;                                                                                                                 \
    }
            VX_PUT(VX_BOOL, uint8_t, vx_put_bool)
            VX_PUT(VX_I8, int8_t, vx_put_signed)
            VX_PUT(VX_I16, int16_t, vx_put_signed)
            VX_PUT(VX_I32, int32_t, vx_put_signed)
            VX_PUT(VX_I64, int64_t, vx_put_signed)
            VX_PUT(VX_U8, uint8_t, vx_put_unsigned)
            VX_PUT(VX_U16, uint16_t, vx_put_unsigned)
            VX_PUT(VX_U32, uint32_t, vx_put_unsigned)
            VX_PUT(VX_U64, uint64_t, vx_put_unsigned)
            VX_PUT(VX_F16, uint16_t, vx_put_half)
            VX_PUT(VX_BF16, uint16_t, vx_put_bfloat)
            VX_PUT(VX_F32, uint32_t, vx_put_single)
            VX_PUT(VX_F64, uint64_t, vx_put_double)
#undef VX_PUT
        }
        if (!to)
            return NULL;
        *to++ = ',';
    }
    return to;
}

typedef uint8_t *(*vx_putter)(uint8_t *to, const uint8_t *from, size_t n);

#define VX_PUTTER(KIND)                                                                                                        \
    static uint8_t *vx_put_all_##KIND(uint8_t *to, const uint8_t *from, size_t n)                                              \
    {                                                                                                                          \
        return vx_put_all(KIND, to, from, n);                                                                                  \
    }
VX_PUTTER(VX_BOOL)
VX_PUTTER(VX_I8)
VX_PUTTER(VX_I16)
VX_PUTTER(VX_I32)
VX_PUTTER(VX_I64)
VX_PUTTER(VX_U8)
VX_PUTTER(VX_U16)
VX_PUTTER(VX_U32)
VX_PUTTER(VX_U64)
VX_PUTTER(VX_F16)
VX_PUTTER(VX_F32)
VX_PUTTER(VX_F64)
VX_PUTTER(VX_BF16)

/* By kind: the writer, the bytes of a number in a row, and the most characters of its text: of float16 -0.000011111, of
 * bfloat16 -1111000000000000.0, of float32 -0.00000123456789, of float64 -2.2250738585072014e-308. */
static const struct {
    vx_putter put;
    uint8_t size, most;
} vx_written[VX_WRITTEN_KINDS] = {
    [VX_BOOL] = {vx_put_all_VX_BOOL, 1, 5},  [VX_I8] = {vx_put_all_VX_I8, 1, 4},    [VX_I16] = {vx_put_all_VX_I16, 2, 6},
    [VX_I32] = {vx_put_all_VX_I32, 4, 11},   [VX_I64] = {vx_put_all_VX_I64, 8, 20}, [VX_U8] = {vx_put_all_VX_U8, 1, 3},
    [VX_U16] = {vx_put_all_VX_U16, 2, 5},    [VX_U32] = {vx_put_all_VX_U32, 4, 10}, [VX_U64] = {vx_put_all_VX_U64, 8, 20},
    [VX_F16] = {vx_put_all_VX_F16, 2, 19},   [VX_F32] = {vx_put_all_VX_F32, 4, 17}, [VX_F64] = {vx_put_all_VX_F64, 8, 24},
    [VX_BF16] = {vx_put_all_VX_BF16, 2, 19},
};

/* The most bytes of an item's text and a comma, and in *size those it has in memory; 0 if they are too many to count. */
static inline size_t vx_most_text(const vx_form *form, size_t *size)
{
    size_t lists = 0, numbers = 1;
    for (int i = 0; i < form->ndim; i++) {
        lists += numbers;
        numbers *= (size_t)form->dims[i];
        if (numbers >> 32 || lists >> 32)
            return 0;
    }
    *size = numbers * vx_written[form->kind].size;
    return 3 * lists + numbers * (vx_written[form->kind].most + 1u);
}

/* The lists from one dimension on, with a comma behind. *from moves behind what they hold. */
static uint8_t *vx_put_lists(const vx_form *form, int depth, uint8_t *to, const uint8_t **from)
{
    size_t n = depth < form->ndim ? (size_t)form->dims[depth] : 1;
    uint8_t *begin = to;
    to += depth < form->ndim;
    if (depth + 1 >= form->ndim) {
        to = vx_written[form->kind].put(to, *from, n);
        *from += n * vx_written[form->kind].size;
    } else {
        for (size_t i = 0; to && i < n; i++)
            to = vx_put_lists(form, depth + 1, to, from);
    }
    if (!to || depth == form->ndim)
        return to;
    *begin = '[';
    to -= n > 0; /* the last comma */
    memcpy(to, "],", 2);
    return to + 2;
}

/* Items, each with a comma behind it. Returns where the text ends, or NULL if a number isn't finite. */
static inline uint8_t *vx_put_forms(const vx_form *form, uint8_t *to, const uint8_t *from, size_t count)
{
    if (!form->ndim)
        return vx_written[form->kind].put(to, from, count);
    for (size_t i = 0; to && i < count; i++)
        to = vx_put_lists(form, 0, to, &from);
    return to;
}

#endif
