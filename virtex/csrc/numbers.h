/* Numbers of JSON (RFC 8259 section 6, to the letter) into memory, eight digits at a time: no object for any of them.
 *
 * What is taken means what orjson and then NumPy make of it: an integer beyond 64 bits or beyond its dtype, a fraction for
 * an integer, a float that would become infinite are not taken, nor is anything that isn't JSON. Then NULL comes back, and a
 * parser has the word. Every function takes [at, end), reads nothing outside, and returns where the rest begins.
 */
#ifndef VX_NUMBERS_H
#define VX_NUMBERS_H

#include "decimal.h"
#include "walk.h"

enum { /* of a number in a row */
    VX_BOOL, VX_I8, VX_I16, VX_I32, VX_I64, VX_U8, VX_U16, VX_U32, VX_U64, VX_F16, VX_F32, VX_F64,
    VX_KINDS,
};

#define VX_EACH(byte) (0x0101010101010101u * (byte))
#define VX_ALWAYS static inline __attribute__((always_inline))

/* ---- digits */

/* Up to eight bytes as a number, the first one lowest. */
VX_ALWAYS uint64_t vx_eight(const uint8_t *at, const uint8_t *end)
{
    uint64_t eight = 0;
    if (__builtin_expect(end - at >= 8, 1))
        memcpy(&eight, at, 8);
    else
        memcpy(&eight, at, (size_t)(end - at));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    return eight;
}

/* A bit in the first byte that is no digit. What that carries into those behind it is of no matter. */
VX_ALWAYS uint64_t vx_no_digits(uint64_t eight)
{
    return ((eight + VX_EACH(0x46)) | (eight - VX_EACH('0'))) & VX_EACH(0x80);
}

/* The value of eight digits less '0': neighbours are added up in pairs. */
VX_ALWAYS uint64_t vx_value_of(uint64_t eight)
{
    eight = eight * 10 + (eight >> 8);
    uint64_t even = eight & 0x000000ff000000ff, odd = eight >> 16 & 0x000000ff000000ff;
    return (even * (100 + (1000000ull << 32)) + odd * (1 + (10000ull << 32))) >> 32;
}

static const uint32_t vx_ten_to[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};

/* Appends the digits that are there to *w, modulo 2^64. */
VX_ALWAYS const uint8_t *vx_take_digits(const uint8_t *at, const uint8_t *end, uint64_t *w)
{
    uint64_t eight, others;
    for (; !(others = vx_no_digits(eight = vx_eight(at, end))); at += 8)
        *w = *w * 100000000 + vx_value_of(eight - VX_EACH('0'));
    int bits = __builtin_ctzll(others) & 0x38;
    if (bits) { /* those in front become leading zeros */
        *w = *w * vx_ten_to[bits >> 3] + vx_value_of((eight - VX_EACH('0')) << (64 - bits));
        at += bits >> 3;
    }
    return at;
}

/* After 'e': [+-] digits. Beyond 10^17 it is far enough. */
static inline const uint8_t *vx_take_exponent(const uint8_t *at, const uint8_t *end, int64_t *power)
{
    int64_t found = 0;
    int negative = at < end && *at == '-';
    at += negative || (at < end && *at == '+');
    const uint8_t *first = at;
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        if (found < 100000000000000000)
            found = found * 10 + (*at - '0');
    *power += negative ? -found : found;
    return at > first ? at : NULL;
}

/* ---- one number */

/* What an item is: lists in lists, `ndim` deep, of so many numbers of a kind; or one number. An integer for a float may have
 * any value up to `most`; a larger one goes up to `odd` once its lowest bits that are 0 are left out. */
typedef struct {
    int kind, ndim;
    const intptr_t *dims;
    uint64_t most, odd;
} vx_form;

/* An integer's digits and no more; *w below 2^64. */
VX_ALWAYS const uint8_t *vx_take_whole(const uint8_t *at, const uint8_t *end, uint64_t *w)
{
    const uint8_t *first = at;
    *w = 0;
    at = vx_take_digits(at, end, w);
    size_t digits = (size_t)(at - first);
    if (!digits || (*first == '0' && digits > 1) || digits > 20)
        return NULL;
    if (digits == 20 && (*first != '1' || *w < 10000000000000000000u)) /* 2^64 has 20 digits: it went round */
        return NULL;
    return at;
}

VX_ALWAYS int vx_goes_on(const uint8_t *at, const uint8_t *end)
{
    return at < end && (*at == '.' || *at == 'e' || *at == 'E');
}

VX_ALWAYS const uint8_t *vx_take_int(const uint8_t *at, const uint8_t *end, int bits, int64_t *to)
{
    uint64_t w, most = ((uint64_t)1 << (bits - 1)) - 1;
    int negative = at < end && *at == '-';
    at = vx_take_whole(at + negative, end, &w);
    if (!at || w > most + (uint64_t)negative || vx_goes_on(at, end))
        return NULL;
    *to = (int64_t)(negative ? 0 - w : w);
    return at;
}

VX_ALWAYS const uint8_t *vx_take_unsigned(const uint8_t *at, const uint8_t *end, int bits, uint64_t *to)
{
    int negative = at < end && *at == '-';
    at = vx_take_whole(at + negative, end, to);
    if (!at || (bits < 64 && *to >> (bits & 63)) || (negative && *to) || vx_goes_on(at, end))
        return NULL;
    return at;
}

/* w * 10^q rounded once, or, for a float32, so that rounding it again gives the same: two roundings miss the nearest double
 * by less than two of its last bits, which matters only close to half way between two floats. */
VX_ALWAYS double vx_nearest_for(int kind, uint64_t w, int64_t q)
{
    if (kind != VX_F32 || w >> 63 || q < -22 || q > 0)
        return vx_nearest(w, q);
    double near = (double)(int64_t)w / vx_tens[-q];
    uint64_t bits;
    memcpy(&bits, &near, sizeof bits);
    int64_t from_half = (int64_t)(bits & 0x1fffffff) - 0x10000000;
    return (from_half > 4 || from_half < -4) && near > 1e-37 ? near : vx_nearest(w, q);
}

/* What is left of a number, once its digits before the point are in w. */
VX_ALWAYS const uint8_t *vx_take_scaled(int kind, const uint8_t *first, const uint8_t *at, const uint8_t *end, uint64_t w,
                                        double *to)
{
    size_t digits = (size_t)(at - first) - (*first == '0');
    int64_t power = 0, behind = 0;
    const uint8_t *point = at;
    if (*at == '.') {
        at = vx_take_digits(at + 1, end, &w);
        behind = at - point - 1;
        if (!behind)
            return NULL;
        digits += (size_t)behind;
    }
    const uint8_t *last = at;
    if (at < end && (*at | 0x20) == 'e' && !(at = vx_take_exponent(at + 1, end, &power)))
        return NULL;
    *to = digits > 19 ? vx_nearest_long(first, last, power) : vx_nearest_for(kind, w, power - behind);
    return at;
}

VX_ALWAYS const uint8_t *vx_take_double(int kind, const vx_form *form, const uint8_t *at, const uint8_t *end, double *to)
{
    uint64_t w = 0;
    int negative = at < end && *at == '-';
    const uint8_t *first = at += negative;
    if (at < end && *at == '0') /* often one that a point follows */
        at++;
    else
        at = vx_take_digits(at, end, &w);
    if (at == first)
        return NULL;
    if (vx_goes_on(at, end)) {
        if (!(at = vx_take_scaled(kind, first, at, end, w, to)) || !(*to <= 1.7976931348623157e308))
            return NULL;
        uint64_t bits, sign = (uint64_t)negative << 63; /* without a branch that half of the signs would miss */
        memcpy(&bits, to, sizeof bits);
        bits |= sign;
        memcpy(to, &bits, sizeof bits);
        return at;
    }
    if (at - first > 19 && !(at = vx_take_whole(first, end, &w)))
        return NULL;
    if (negative && w > (uint64_t)1 << 63)
        return NULL;
    if (w > form->most && w >> __builtin_ctzll(w) > form->odd)
        return NULL;
    *to = negative && w ? -(double)w : (double)w; /* -0 is the integer 0 */
    return at;
}

/* The bits of the float16 nearest to d, ties to even; 0x7c00 and more if that is infinite. */
VX_ALWAYS uint16_t vx_half(double d)
{
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 48 & 0x8000);
    int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    uint64_t m = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
    if (exponent > 15)
        return sign | 0x7c00;
    if (exponent < -26)
        return sign;
    int shift = exponent < -14 ? 42 - 14 - exponent : 42; /* below the normal numbers, fewer bits */
    uint64_t kept = m >> shift, rest = m & (((uint64_t)1 << shift) - 1), tie = (uint64_t)1 << (shift - 1);
    kept += rest > tie || (rest == tie && (kept & 1));
    return (uint16_t)(sign | (exponent < -14 ? kept : kept + ((uint64_t)(exponent + 14) << 10)));
}

VX_ALWAYS const uint8_t *vx_take_bool(const uint8_t *at, const uint8_t *end, uint8_t *to)
{
    size_t left = (size_t)(end - at);
    *to = left >= 4 && memcmp(at, "true", 4) == 0;
    return *to ? at + 4 : left >= 5 && memcmp(at, "false", 5) == 0 ? at + 5 : NULL;
}

/* One number of a kind, written at `to`. */
VX_ALWAYS const uint8_t *vx_take_number(int kind, const vx_form *form, const uint8_t *at, const uint8_t *end, uint8_t *to)
{
    double d;
    float f;
    uint16_t h;
    int64_t i;
    uint64_t u;
    switch (kind) {
    case VX_BOOL:
        return vx_take_bool(at, end, to);
#define VX_SIGNED(KIND, bits, type)                                                                                            \
    case KIND: {                                                                                                               \
        if ((at = vx_take_int(at, end, bits, &i))) {                                                                           \
            type exact = (type)i;                                                                                              \
            memcpy(to, &exact, sizeof exact);                                                                                  \
        }                                                                                                                      \
        return at;                                                                                                             \
    }
#define VX_UNSIGNED(KIND, bits, type)                                                                                          \
    case KIND: {                                                                                                               \
        if ((at = vx_take_unsigned(at, end, bits, &u))) {                                                                      \
            type exact = (type)u;                                                                                              \
            memcpy(to, &exact, sizeof exact);                                                                                  \
        }                                                                                                                      \
        return at;                                                                                                             \
    }
        VX_SIGNED(VX_I8, 8, int8_t)
        VX_SIGNED(VX_I16, 16, int16_t)
        VX_SIGNED(VX_I32, 32, int32_t)
        VX_SIGNED(VX_I64, 64, int64_t)
        VX_UNSIGNED(VX_U8, 8, uint8_t)
        VX_UNSIGNED(VX_U16, 16, uint16_t)
        VX_UNSIGNED(VX_U32, 32, uint32_t)
        VX_UNSIGNED(VX_U64, 64, uint64_t)
    case VX_F16:
        if (!(at = vx_take_double(kind, form, at, end, &d)) || ((h = vx_half(d)) & 0x7fff) >= 0x7c00)
            return NULL;
        memcpy(to, &h, sizeof h);
        return at;
    case VX_F32:
        if (!(at = vx_take_double(kind, form, at, end, &d)))
            return NULL;
        f = (float)d;
        if (!(f >= -3.4028235e38f && f <= 3.4028235e38f))
            return NULL;
        memcpy(to, &f, sizeof f);
        return at;
    default:
        if (!(at = vx_take_double(kind, form, at, end, &d)))
            return NULL;
        memcpy(to, &d, sizeof d);
        return at;
    }
}

/* ---- many of them */

static const uint8_t vx_widths[VX_KINDS] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8};

/* n numbers with commas between them, to rows of their kind. At *at, which moves past each that was taken; how many were. */
VX_ALWAYS size_t vx_take_all(int kind, const vx_form *form, const uint8_t **at, const uint8_t *end, uint8_t *to, size_t n)
{
    const uint8_t *p = *at;
    for (size_t i = 0; i < n; i++, to += vx_widths[kind]) {
        if (i) {
            p = vx_space(p, end);
            if (p == end || *p++ != ',')
                return i;
        }
        if (!(p = vx_take_number(kind, form, vx_space(p, end), end, to)))
            return i;
        *at = p;
    }
    return n;
}

typedef size_t (*vx_taker)(const vx_form *form, const uint8_t **at, const uint8_t *end, uint8_t *to, size_t n);

#define VX_TAKER(KIND)                                                                                                         \
    static size_t vx_take_all_##KIND(const vx_form *form, const uint8_t **at, const uint8_t *end, uint8_t *to, size_t n)       \
    {                                                                                                                          \
        return vx_take_all(KIND, form, at, end, to, n);                                                                        \
    }
VX_TAKER(VX_BOOL)
VX_TAKER(VX_I8)
VX_TAKER(VX_I16)
VX_TAKER(VX_I32)
VX_TAKER(VX_I64)
VX_TAKER(VX_U8)
VX_TAKER(VX_U16)
VX_TAKER(VX_U32)
VX_TAKER(VX_U64)
VX_TAKER(VX_F16)
VX_TAKER(VX_F32)
VX_TAKER(VX_F64)

static const vx_taker vx_takers[VX_KINDS] = {
    vx_take_all_VX_BOOL, vx_take_all_VX_I8,  vx_take_all_VX_I16, vx_take_all_VX_I32, vx_take_all_VX_I64, vx_take_all_VX_U8,
    vx_take_all_VX_U16,  vx_take_all_VX_U32, vx_take_all_VX_U64, vx_take_all_VX_F16, vx_take_all_VX_F32, vx_take_all_VX_F64,
};

/* The lists from one dimension on. *to moves behind what they hold. As deep as the service declared, no deeper. */
static const uint8_t *vx_take_lists(const vx_form *form, int depth, const uint8_t *at, const uint8_t *end, uint8_t **to)
{
    size_t n = (size_t)form->dims[depth];
    if (!(at = vx_take(at, end, '[')))
        return NULL;
    if (depth == form->ndim - 1) {
        if (vx_takers[form->kind](form, &at, end, *to, n) != n)
            return NULL;
        *to += n * vx_widths[form->kind];
    } else {
        for (size_t i = 0; i < n; i++)
            if ((i && !(at = vx_take(at, end, ','))) || !(at = vx_take_lists(form, depth + 1, at, end, to)))
                return NULL;
    }
    return vx_take(at, end, ']');
}

/* One item. */
static const uint8_t *vx_take_form(const vx_form *form, const uint8_t *at, const uint8_t *end, uint8_t *to)
{
    if (form->ndim)
        return vx_take_lists(form, 0, at, end, &to);
    return vx_takers[form->kind](form, &at, end, to, 1) ? at : NULL;
}

/* Where the item stands that is `count` items further on; NULL if there is none. */
static inline const uint8_t *vx_skip_items(const uint8_t *begin, const uint8_t *at, const uint8_t *end, size_t count)
{
    for (; count && at < end; count--) {
        at = vx_skip_numbers(begin, at, end);
        if (!at || !(at = vx_take(at, end, ',')))
            return NULL;
        at = vx_space(at, end);
    }
    return at < end ? at : NULL;
}

/* Items with commas between them into rows. At *at, which moves past each good one; how many are. */
static inline size_t vx_take_forms(const vx_form *form, const uint8_t **at, const uint8_t *end, uint8_t *rows, size_t count)
{
    if (!form->ndim)
        return vx_takers[form->kind](form, at, end, rows, count);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *p = *at;
        if ((i && !(p = vx_take(p, end, ','))) || !(p = vx_take_lists(form, 0, p, end, &rows)))
            return i;
        *at = p;
    }
    return count;
}

/* `count` items into rows, the first of them `skip` items behind *at, the last of them the body's last or not. How many are
 * good; *at moves behind them if all are. */
static inline size_t vx_take_rows(const vx_form *form, const uint8_t *begin, const uint8_t **at, const uint8_t *end,
                                  uint8_t *rows, size_t skip, size_t count, int last)
{
    const uint8_t *p = vx_skip_items(begin, *at, end, skip);
    size_t good = p ? vx_take_forms(form, &p, end, rows, count) : 0;
    if (!p || good < count)
        return good;
    if (!(p = vx_take(p, end, last ? ']' : ',')))
        return count - 1; /* more follows what looked like a number */
    *at = vx_space(p, end);
    return count;
}

/* Members of as many objects, at offsets `step` apart in `starts`, into rows of `size` bytes. How many are good. */
static inline size_t vx_take_members(const vx_form *form, const uint8_t *begin, const uint8_t *end, const size_t *starts,
                                     size_t step, uint8_t *rows, size_t size, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = vx_take_form(form, begin + starts[i * step], end, rows + i * size);
        if (!at || !(vx_take(at, end, ',') || vx_take(at, end, '}')))
            return i;
    }
    return count;
}

/* ---- what they may be */

/* How many bytes are c. */
static inline size_t vx_count(const uint8_t *at, const uint8_t *end, uint8_t c)
{
    enum { LANES = 64 };
    size_t found = 0;
    while (end - at >= LANES) {
        uint8_t counts[LANES] = {0};
        for (int round = 0; round < 255 && end - at >= LANES; round++, at += LANES)
            for (int i = 0; i < LANES; i++)
                counts[i] += at[i] == c;
        for (int i = 0; i < LANES; i++)
            found += counts[i];
    }
    for (; at < end; at++)
        found += *at == c;
    return found;
}

/* Behind the list whose first element stands at `at`, with its commas in *commas; NULL if it doesn't end. */
static inline const uint8_t *vx_measure(const uint8_t *begin, const uint8_t *at, const uint8_t *end, intptr_t *commas)
{
    while (at && at < end && *at != ']') {
        *commas += *at == ',';
        at = *at == '[' ? vx_active->skip(begin, at + 1, end) : at + 1;
    }
    return at && at < end ? at + 1 : NULL;
}

/* The same for a list that has none in it, as most of the innermost; NULL for others. */
static inline const uint8_t *vx_measure_flat(const uint8_t *begin, const uint8_t *at, const uint8_t *end, intptr_t *commas)
{
    const uint8_t *close = vx_active->skip(begin, at, end);
    if (!close || memchr(at, '[', (size_t)(close - at)))
        return NULL;
    *commas += (intptr_t)vx_count(at, close, ',');
    return close;
}

/* The shape of numbers at `at`, as far as the first lists tell. How many dimensions; -1 for more than `most`. */
static inline int vx_shape_of(const uint8_t *begin, const uint8_t *at, const uint8_t *end, int most, intptr_t *dims)
{
    int ndim = 0;
    while ((at = vx_space(at, end)) < end && *at == '[') {
        if (ndim == most)
            return -1;
        dims[ndim++] = 1;
        at++;
    }
    if (!ndim)
        return 0;
    int depth = ndim - 1;
    dims[depth] = at < end && *at != ']';
    const uint8_t *after = vx_measure_flat(begin, at, end, &dims[depth]);
    for (at = after ? after : vx_measure(begin, at, end, &dims[depth]); at && depth > 0;)
        at = vx_measure(begin, at, end, &dims[--depth]);
    return at ? ndim : -1;
}

#endif
