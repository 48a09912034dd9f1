/* Where a JSON list of numbers ends, from its brackets alone. One function per instruction set, as in base64.h:
 *
 *   skip  at stands behind a '[': returns what follows the ']' that closes it; NULL if a '"' stands before that, for text may
 *         hold brackets, or if none does. Reads nothing outside [begin, end), which holds at.
 */
#ifndef VX_LISTS_H
#define VX_LISTS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static inline const uint8_t *vx_skip_from(const uint8_t *at, const uint8_t *end, size_t depth)
{
    for (; at < end; at++) {
        if (*at == '"')
            return NULL;
        depth += *at == '[';
        if (*at == ']' && !--depth)
            return at + 1;
    }
    return NULL;
}

static const uint8_t *vx_skip_scalar(const uint8_t *begin, const uint8_t *at, const uint8_t *end)
{
    (void)begin;
    return vx_skip_from(at, end, 1);
}

/* Which bytes of a block are brackets and quotes: a bit for each, the lowest for the first. */
typedef struct {
    uint64_t open, close, quote;
} vx_marks;

/* The bit of the ']' that ends the list in this block, or 0; *depth lists are open, then and afterwards. */
static inline __attribute__((always_inline)) uint64_t vx_last_bracket(vx_marks marks, size_t *depth)
{
    size_t closes = (size_t)__builtin_popcountll(marks.close);
    if (closes < *depth) {
        *depth += (size_t)__builtin_popcountll(marks.open) - closes;
        return 0;
    }
    for (; marks.close; marks.close &= marks.close - 1) {
        uint64_t bit = marks.close & (0 - marks.close), before = marks.open & (bit - 1);
        *depth += (size_t)__builtin_popcountll(before) - 1;
        marks.open ^= before;
        if (!*depth)
            return bit;
    }
    *depth += (size_t)__builtin_popcountll(marks.open);
    return 0;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) static inline uint32_t vx_equal_32(__m256i text, char c)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(text, _mm256_set1_epi8(c)));
}

/* Of 32 bytes at a time; the last block overlaps the one before, whose bits are masked. */
__attribute__((target("avx2,popcnt"))) static const uint8_t *vx_skip_avx2(const uint8_t *begin, const uint8_t *at,
                                                                        const uint8_t *end)
{
    size_t depth = 1;
    if (end - begin < 32)
        return vx_skip_from(at, end, depth);
    for (const uint8_t *block = at; at < end; at = block += 32) {
        uint64_t from = ~(uint64_t)0;
        if (end - block < 32) {
            block = end - 32;
            from <<= at - block;
        }
        __m256i text = _mm256_loadu_si256((const __m256i *)block);
        vx_marks marks = {vx_equal_32(text, '[') & from, vx_equal_32(text, ']') & from, vx_equal_32(text, '"') & from};
        if (!(marks.open | marks.close | marks.quote))
            continue;
        uint64_t quote = marks.quote & (0 - marks.quote), last;
        marks.open &= quote - 1; /* of no quote, all bits */
        marks.close &= quote - 1;
        if ((last = vx_last_bracket(marks, &depth)))
            return block + __builtin_ctzll(last) + 1;
        if (quote)
            return NULL;
    }
    return NULL;
}

#elif defined(__aarch64__)

/* Four bits for each of 16 bytes, of which one is kept. */
static inline uint64_t vx_equal_16(uint8x16_t text, uint8_t c)
{
    uint8x8_t narrow = vshrn_n_u16(vreinterpretq_u16_u8(vceqq_u8(text, vdupq_n_u8(c))), 4);
    return vget_lane_u64(vreinterpret_u64_u8(narrow), 0) & 0x1111111111111111;
}

static const uint8_t *vx_skip_neon(const uint8_t *begin, const uint8_t *at, const uint8_t *end)
{
    size_t depth = 1;
    (void)begin;
    for (; end - at >= 16; at += 16) {
        uint8x16_t text = vld1q_u8(at);
        vx_marks marks = {vx_equal_16(text, '['), vx_equal_16(text, ']'), vx_equal_16(text, '"')};
        uint64_t quote = marks.quote & (0 - marks.quote), last;
        marks.open &= quote - 1;
        marks.close &= quote - 1;
        if ((last = vx_last_bracket(marks, &depth)))
            return at + (__builtin_ctzll(last) >> 2) + 1;
        if (quote)
            return NULL;
    }
    return vx_skip_from(at, end, depth);
}

#endif
#endif
