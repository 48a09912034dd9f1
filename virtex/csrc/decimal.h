/* Decimal text to the nearest double, ties to even: exact for any number of digits, and of no locale.
 *
 *   w * 10^q, w below 2^53, q within 22      one multiplication or division of doubles, which rounds once (W. Clinger, 1990)
 *   w of 19 digits, any q                    the leading 64 bits of w * 5^q from a table of 128 bits: "Number Parsing at a
 *                                            Gigabyte per Second", arXiv 2101.11408; that it needs no way out: "Fast Number
 *                                            Parsing Without Fallback", arXiv 2212.06644
 *   more digits                              both w and w + 1, cut at 19 digits; where they differ, whole numbers decide
 */
#ifndef VX_DECIMAL_H
#define VX_DECIMAL_H

#include <stddef.h>
#include <string.h>

#include "powers.h"

typedef unsigned __int128 vx_wide;

enum { VX_INFINITE = 0x7ff };

static inline double vx_double_of(uint64_t bits)
{
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

/* The bits of w * 10^q, w > 0, rounded once. */
static inline uint64_t vx_nearest_bits(uint64_t w, int64_t q)
{
    if (q < VX_LOWEST_POWER)
        return 0;
    if (q > VX_HIGHEST_POWER)
        return (uint64_t)VX_INFINITE << 52;
    int lz = __builtin_clzll(w);
    w <<= lz;
    const uint64_t *five = vx_powers[q - VX_LOWEST_POWER];
    vx_wide product = (vx_wide)w * five[0];
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    if ((high & 0x1ff) == 0x1ff) { /* the low half of the power may carry into the bits that count */
        uint64_t more = (uint64_t)((vx_wide)w * five[1] >> 64);
        low += more;
        high += low < more;
    }
    int upper = (int)(high >> 63), shift = upper + 64 - 52 - 3;
    uint64_t m = high >> shift;
    int64_t exponent = ((217706 * q) >> 16) + 63 + upper - lz + 1023;
    if (exponent <= 0) { /* below the normal numbers; ties can't be there */
        if (-exponent + 1 >= 64)
            return 0;
        m >>= -exponent + 1;
        return (m + (m & 1)) >> 1; /* the carry into bit 52 makes it normal */
    }
    if (low <= 1 && q >= -4 && q <= 23 && (m & 3) == 1 && m << shift == high)
        m &= ~(uint64_t)1; /* a tie, to even */
    m = (m + (m & 1)) >> 1;
    if (m >= (uint64_t)2 << 52) {
        m = (uint64_t)1 << 52;
        exponent++;
    }
    if (exponent >= VX_INFINITE)
        return (uint64_t)VX_INFINITE << 52;
    return (uint64_t)exponent << 52 | (m & (((uint64_t)1 << 52) - 1));
}

static const double vx_tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* w * 10^q, rounded once. */
static inline double vx_nearest(uint64_t w, int64_t q)
{
    if (w <= (uint64_t)1 << 53 && q >= -22 && q <= 22)
        return q < 0 ? (double)w / vx_tens[-q] : (double)w * vx_tens[q];
    return w ? vx_double_of(vx_nearest_bits(w, q)) : 0.0;
}

/* ---- whole numbers, for what 19 digits can't decide
 *
 * A double and its half way to the next are m * 2^e. Whether D * 10^q is above it is asked with whole numbers on both sides.
 * 770 digits decide: no half way has more of them that are not zero; of what follows, only whether it is zero counts. */
enum { VX_MOST_DIGITS = 770, VX_LIMBS = 64 }; /* 10^771 takes 41 of 64 bits, 5^1095 * 2^55 the same */

typedef struct {
    uint64_t limb[VX_LIMBS]; /* the lowest first */
    int size;
} vx_whole;

static void vx_multiply(vx_whole *a, uint64_t by, uint64_t add)
{
    for (int i = 0; i < a->size; i++) {
        vx_wide product = (vx_wide)a->limb[i] * by + add;
        a->limb[i] = (uint64_t)product;
        add = (uint64_t)(product >> 64);
    }
    if (add && a->size < VX_LIMBS)
        a->limb[a->size++] = add;
}

static void vx_times_five(vx_whole *a, int64_t power)
{
    static const uint64_t five27 = 7450580596923828125u; /* 5^27, the highest of 64 bits */
    for (; power >= 27; power -= 27)
        vx_multiply(a, five27, 0);
    uint64_t rest = 1;
    for (; power > 0; power--)
        rest *= 5;
    vx_multiply(a, rest, 0);
}

static void vx_shift(vx_whole *a, int64_t bits)
{
    int limbs = (int)(bits / 64);
    if (a->size + limbs > VX_LIMBS)
        return; /* never: see VX_LIMBS */
    memmove(a->limb + limbs, a->limb, (size_t)a->size * sizeof a->limb[0]);
    memset(a->limb, 0, (size_t)limbs * sizeof a->limb[0]);
    a->size += limbs;
    vx_multiply(a, (uint64_t)1 << bits % 64, 0);
}

static int vx_compare(const vx_whole *a, const vx_whole *b)
{
    if (a->size != b->size)
        return a->size < b->size ? -1 : 1;
    for (int i = a->size; i-- > 0;)
        if (a->limb[i] != b->limb[i])
            return a->limb[i] < b->limb[i] ? -1 : 1;
    return 0;
}

/* digits * 10^q against m * 2^e: -1, 0 or 1. */
static int vx_compare_half(const vx_whole *digits, int64_t q, uint64_t m, int64_t e)
{
    vx_whole left, right;
    memcpy(left.limb, digits->limb, (size_t)digits->size * sizeof left.limb[0]);
    left.size = digits->size;
    right.limb[0] = m;
    right.size = m != 0;
    vx_times_five(q > 0 ? &left : &right, q > 0 ? q : -q);
    int64_t twos = q - e;
    vx_shift(twos > 0 ? &left : &right, twos > 0 ? twos : -twos);
    return vx_compare(&left, &right);
}

/* The double nearest to digits * 10^q, which is in doubt between `bits` and its neighbours. */
static uint64_t vx_settle(uint64_t bits, const vx_whole *digits, int64_t q)
{
    for (;;) {
        uint64_t exponent = bits >> 52, m = bits & (((uint64_t)1 << 52) - 1);
        int64_t e = (exponent ? (int64_t)exponent : 1) - 1075;
        m |= (uint64_t)(exponent != 0) << 52;
        int above = vx_compare_half(digits, q, 2 * m + 1, e - 1);
        if (above > 0 || (above == 0 && (m & 1))) {
            bits++;
            if (bits >> 52 == VX_INFINITE)
                return bits;
            continue;
        }
        if (!bits)
            return bits;
        /* the half way to the number below: nearer where m is a power of two, but for the lowest exponent */
        int edge = exponent > 1 && m == (uint64_t)1 << 52;
        int below = vx_compare_half(digits, q, edge ? 4 * m - 1 : 2 * m - 1, edge ? e - 2 : e - 1);
        if (below > 0 || (below == 0 && !(m & 1)))
            return bits;
        bits--;
    }
}

/* Digits, with a point among them or none, as a whole number and the power of ten that *q becomes; a digit that isn't zero
 * behind the last one that counts becomes a 1. */
static void vx_read_digits(vx_whole *digits, const uint8_t *at, const uint8_t *end, int64_t *q)
{
    uint64_t part = 0, ten = 1;
    int kept = 0, behind = 0, rest = 0;
    digits->size = 0;
    for (; at < end; at++) {
        unsigned digit = *at - (unsigned)'0';
        if (*at == '.') {
            behind = 1;
        } else if (kept == VX_MOST_DIGITS) {
            rest |= digit != 0;
            *q += !behind;
        } else {
            *q -= behind;
            kept += kept || digit;
            part = part * 10 + digit;
            ten *= 10;
            if (ten < (uint64_t)1000000000000000000)
                continue;
            vx_multiply(digits, ten, part);
            part = 0;
            ten = 1;
        }
    }
    *q -= rest;
    vx_multiply(digits, rest ? ten * 10 : ten, rest ? part * 10 + 1 : part);
}

/* The number whose digits, with a point among them or none, are at [at, end), times 10^q. */
static double vx_nearest_long(const uint8_t *at, const uint8_t *end, int64_t q)
{
    uint64_t first = 0;
    int64_t kept = 0, behind = 0, power = q;
    for (const uint8_t *p = at; p < end; p++) {
        if (*p == '.') {
            behind = 1;
            continue;
        }
        kept += kept || *p != '0';
        if (kept <= 19)
            first = first * 10 + (uint64_t)(*p - '0');
        power += kept > 19 ? !behind : -behind;
    }
    if (!first)
        return 0.0;
    uint64_t bits = vx_nearest_bits(first, power);
    if (kept <= 19 || bits == vx_nearest_bits(first + 1, power))
        return vx_double_of(bits);
    vx_whole digits;
    vx_read_digits(&digits, at, end, &q);
    return vx_double_of(vx_settle(bits, &digits, q));
}

#endif
