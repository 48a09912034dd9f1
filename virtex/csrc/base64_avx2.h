/* Base64 with AVX2: W. Muła and D. Lemire, "Faster Base64 Encoding and Decoding using AVX2 Instructions",
 * ACM Transactions on the Web 12 (2018), arXiv:1704.00605.
 *
 * Trap: a tail call out of an AVX2 function is compiled without vzeroupper, and the SSE code that runs next (the whole
 * interpreter) stalls on the dirty upper halves: hence the explicit _mm256_zeroupper() before the scalar rest.
 */
#ifndef VX_BASE64_AVX2_H
#define VX_BASE64_AVX2_H

#include "base64.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define VX_AVX2 __attribute__((target("avx2")))
#define VX_BOTH_LANES(...) _mm256_setr_epi8(__VA_ARGS__, __VA_ARGS__)

/* 32 characters -> 24 bytes, 12 at the bottom of each lane. A character is bad when the bits of its low and its high
 * nibble meet: *bad collects them, and the caller looks once per block. The offset from character to value depends on
 * the high nibble alone, but for '/' (0x2f), which shares one with '+'. */
VX_AVX2 static inline __m256i vx_decode_lanes(__m256i text, __m256i *bad)
{
    const __m256i low_bits = VX_BOTH_LANES(0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1a, 0x1b,
                                           0x1b, 0x1b, 0x1a);
    const __m256i high_bits = VX_BOTH_LANES(0x10, 0x10, 0x01, 0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10, 0x10,
                                            0x10, 0x10, 0x10);
    const __m256i offsets = VX_BOTH_LANES(0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m256i pack = VX_BOTH_LANES(2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1);
    const __m256i slash = _mm256_set1_epi8(0x2f);

    __m256i high = _mm256_and_si256(_mm256_srli_epi32(text, 4), slash);
    __m256i low = _mm256_and_si256(text, slash);
    __m256i is_slash = _mm256_cmpeq_epi8(text, slash);
    *bad = _mm256_or_si256(*bad, _mm256_and_si256(_mm256_shuffle_epi8(low_bits, low), _mm256_shuffle_epi8(high_bits, high)));
    text = _mm256_add_epi8(text, _mm256_shuffle_epi8(offsets, _mm256_add_epi8(is_slash, high)));

    /* 00aaaaaa 00bbbbbb 00cccccc 00dddddd -> bbbb'aaaaaabb'... -> one 24-bit number per 32 bits -> its 3 bytes */
    __m256i pairs = _mm256_maddubs_epi16(text, _mm256_set1_epi32(0x01400140));
    return _mm256_shuffle_epi8(_mm256_madd_epi16(pairs, _mm256_set1_epi32(0x00011000)), pack);
}

/* Writes 28 bytes for 24: only where 4 more bytes of the row follow. */
VX_AVX2 static inline void vx_store_28(uint8_t *dst, __m256i lanes)
{
    _mm_storeu_si128((__m128i *)dst, _mm256_castsi256_si128(lanes));
    _mm_storeu_si128((__m128i *)(dst + 12), _mm256_extracti128_si256(lanes, 1));
}

VX_AVX2 static inline void vx_store_24(uint8_t *dst, __m256i lanes)
{
    lanes = _mm256_permutevar8x32_epi32(lanes, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7));
    _mm_storeu_si128((__m128i *)dst, _mm256_castsi256_si128(lanes));
    _mm_storel_epi64((__m128i *)(dst + 16), _mm256_extracti128_si256(lanes, 1));
}

/* One exact vector at character `at`; false if a character of it is bad. */
VX_AVX2 static inline int vx_decode_32(uint8_t *dst, const uint8_t *src, size_t at)
{
    __m256i bad = _mm256_setzero_si256();
    __m256i lanes = vx_decode_lanes(_mm256_loadu_si256((const __m256i *)(src + at)), &bad);
    vx_store_24(dst + at / 4 * 3, lanes);
    return _mm256_testz_si256(bad, bad);
}

VX_AVX2 static size_t vx_decode_avx2(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t whole = n / 3 * 4, at = 0, good = 1;
    for (; good && whole - at >= 256 + 8; at += 256) {
        __m256i bad = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            vx_store_28(dst + at / 4 * 3 + 24 * i,
                        vx_decode_lanes(_mm256_loadu_si256((const __m256i *)(src + at + 32 * i)), &bad));
        good = (size_t)_mm256_testz_si256(bad, bad);
        if (!good)
            break;
    }
    while (good && whole - at >= 32 && (good = (size_t)vx_decode_32(dst, src, at)))
        at += 32;
    /* The last vector ends with the last whole quantum and overlaps the one before: same bytes, written twice. */
    if (good && whole > at && whole >= 32 && vx_decode_32(dst, src, whole - 32))
        at = whole;
    _mm256_zeroupper();
    return vx_decode_from(dst, src, n, at);
}

/* Per 32 bits b1 b0 b2 b1 (shuffled from bytes b0 b1 b2) -> four 6-bit values -> four characters. The offset from value
 * to character depends on its range: A-Z (0..25), a-z (26..51), each digit, '+', '/': 14 ranges of a 16-entry table. */
VX_AVX2 static inline __m256i vx_encode_lanes(__m256i bytes)
{
    const __m256i offsets = VX_BOTH_LANES(65, 71, -4, -4, -4, -4, -4, -4, -4, -4, -4, -4, -19, -16, 0, 0);
    __m256i ac = _mm256_and_si256(bytes, _mm256_set1_epi32(0x0fc0fc00));
    __m256i bd = _mm256_and_si256(bytes, _mm256_set1_epi32(0x003f03f0));
    __m256i values = _mm256_or_si256(_mm256_mulhi_epu16(ac, _mm256_set1_epi32(0x04000040)),
                                     _mm256_mullo_epi16(bd, _mm256_set1_epi32(0x01000010)));
    __m256i not_upper = _mm256_cmpgt_epi8(values, _mm256_set1_epi8(25)); /* which is -1 where it holds */
    __m256i range = _mm256_sub_epi8(_mm256_subs_epu8(values, _mm256_set1_epi8(51)), not_upper);
    return _mm256_add_epi8(values, _mm256_shuffle_epi8(offsets, range));
}

/* 24 bytes at src -> 32 characters, from one load that begins 4 bytes early, so that no byte crosses a lane:
 * it reads src[-4, 28). */
VX_AVX2 static inline void vx_encode_24(uint8_t *dst, const uint8_t *src)
{
    const __m256i spread = _mm256_setr_epi8(5, 4, 6, 5, 8, 7, 9, 8, 11, 10, 12, 11, 14, 13, 15, 14,
                                            1, 0, 2, 1, 4, 3, 5, 4, 7, 6, 8, 7, 10, 9, 11, 10);
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(src - 4));
    _mm256_storeu_si256((__m256i *)dst, vx_encode_lanes(_mm256_shuffle_epi8(bytes, spread)));
}

/* 12 bytes -> 16 characters. It reads 16 bytes: src[0, 16), or with `late` src[-4, 12). */
VX_AVX2 static inline void vx_encode_12(uint8_t *dst, const uint8_t *src, int late)
{
    const __m128i spread = _mm_setr_epi8(1, 0, 2, 1, 4, 3, 5, 4, 7, 6, 8, 7, 10, 9, 11, 10);
    __m128i bytes = _mm_loadu_si128((const __m128i *)(late ? src - 4 : src));
    bytes = _mm_shuffle_epi8(bytes, late ? _mm_add_epi8(spread, _mm_set1_epi8(4)) : spread);
    _mm_storeu_si128((__m128i *)dst, _mm256_castsi256_si128(vx_encode_lanes(_mm256_castsi128_si256(bytes))));
}

VX_AVX2 static void vx_encode_avx2(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t whole = n / 3 * 3, at = 0;
    if (whole >= 16) {
        vx_encode_12(dst, src, 0);
        at = 12;
        for (; n - at >= 192 + 4; at += 192)
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++)
                vx_encode_24(dst + at / 3 * 4 + 32 * i, src + at + 24 * i);
        for (; n - at >= 24 + 4; at += 24)
            vx_encode_24(dst + at / 3 * 4, src + at);
        for (; whole - at >= 12; at += 12)
            vx_encode_12(dst + at / 3 * 4, src + at, 1);
        /* The last vector overlaps the one before: same characters, written twice. */
        vx_encode_12(dst + whole / 3 * 4 - 16, src + whole - 12, 1);
        at = whole;
    }
    _mm256_zeroupper();
    vx_encode_from(dst, src, n, at);
}

/* As signed bytes, what is below 0x20 and what is above 0x7f are one range: less than 0x20. */
VX_AVX2 static inline uint32_t vx_not_plain_32(const uint8_t *src)
{
    __m256i text = _mm256_loadu_si256((const __m256i *)src);
    __m256i quote = _mm256_cmpeq_epi8(text, _mm256_set1_epi8('"')), slash = _mm256_cmpeq_epi8(text, _mm256_set1_epi8('\\'));
    __m256i range = _mm256_cmpgt_epi8(_mm256_set1_epi8(0x20), text);
    return (uint32_t)_mm256_movemask_epi8(_mm256_or_si256(range, _mm256_or_si256(quote, slash)));
}

VX_AVX2 static size_t vx_plain_avx2(const uint8_t *src, size_t n)
{
    size_t at = 0;
    uint32_t found = 0;
    while (n - at >= 32 && !(found = vx_not_plain_32(src + at)))
        at += 32;
    if (!found && at < n && n >= 32) { /* the last vector overlaps the one before */
        at = n - 32;
        found = vx_not_plain_32(src + at);
        at = found ? at : n;
    }
    _mm256_zeroupper();
    return found ? at + (size_t)__builtin_ctz(found) : vx_plain_from(src, n, at);
}

#endif
#endif
