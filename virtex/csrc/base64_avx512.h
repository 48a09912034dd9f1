/* Base64 with AVX-512 VBMI: W. Muła and D. Lemire, "Base64 encoding and decoding at almost the speed of a memory copy",
 * Software: Practice and Experience 50 (2020), arXiv:1910.05109. Masked loads and stores touch nothing that is masked
 * out, so the rest of a row is one more vector.
 */
#ifndef VX_BASE64_AVX512_H
#define VX_BASE64_AVX512_H

#include "base64.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define VX_AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi,avx2,bmi2")))

/* 64 characters -> 48 bytes. The two halves of vx_value that are ASCII fill two registers; a bad character's value has
 * the top bit, and so does a character beyond ASCII: *bad collects both. */
VX_AVX512 static inline __m512i vx_decode_64(__m512i text, __m512i *bad)
{
    const __m512i first = _mm512_loadu_si512(vx_value), second = _mm512_loadu_si512(vx_value + 64);
    const __m512i pack = _mm512_setr_epi32(0x06000102, 0x090a0405, 0x0c0d0e08, 0x16101112, 0x191a1415, 0x1c1d1e18, 0x26202122,
                                           0x292a2425, 0x2c2d2e28, 0x36303132, 0x393a3435, 0x3c3d3e38, 0, 0, 0, 0);
    __m512i values = _mm512_permutex2var_epi8(first, text, second);
    *bad = _mm512_ternarylogic_epi32(*bad, values, text, 0xfe); /* a | b | c */
    __m512i pairs = _mm512_maddubs_epi16(values, _mm512_set1_epi32(0x01400140));
    return _mm512_permutexvar_epi8(pack, _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00011000)));
}

/* Up to 64 characters of whole quanta at `at`; false if one of them is bad. */
VX_AVX512 static inline int vx_decode_some(uint8_t *dst, const uint8_t *src, size_t at, size_t chars)
{
    __m512i bad = _mm512_setzero_si512();
    __mmask64 in = _bzhi_u64(~0ULL, (unsigned)chars), out = _bzhi_u64(~0ULL, (unsigned)(chars / 4 * 3));
    __m512i text = _mm512_mask_loadu_epi8(_mm512_set1_epi8('A'), in, src + at);
    _mm512_mask_storeu_epi8(dst + at / 4 * 3, out, vx_decode_64(text, &bad));
    return _mm512_movepi8_mask(bad) == 0;
}

VX_AVX512 static size_t vx_decode_avx512(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t whole = n / 3 * 4, at = 0, good = 1;
    /* Each store writes 64 bytes for 48: only where 16 more bytes of the row follow. */
    for (; whole - at >= 256 + 24; at += 256) {
        __m512i bad = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            _mm512_storeu_si512(dst + at / 4 * 3 + 48 * i, vx_decode_64(_mm512_loadu_si512(src + at + 64 * i), &bad));
        good = _mm512_movepi8_mask(bad) == 0;
        if (!good)
            break;
    }
    while (good && at < whole) {
        size_t chars = whole - at < 64 ? whole - at : 64;
        good = (size_t)vx_decode_some(dst, src, at, chars);
        at += good ? chars : 0;
    }
    _mm256_zeroupper();
    return vx_decode_from(dst, src, n, at);
}

/* 48 bytes -> 64 characters. Per 64 bits b1 b0 b2 b1 b4 b3 b5 b4 (from bytes b0..b5), eight shifts bring each 6-bit value
 * to the bottom of its byte; the lookup ignores the two bits above it. */
VX_AVX512 static inline __m512i vx_encode_48(__m512i bytes)
{
    const __m512i alphabet = _mm512_loadu_si512(vx_alphabet);
    const __m512i shifts = _mm512_set1_epi64(0x3036242a1016040a);
    const __m512i spread = _mm512_setr_epi32(0x01020001, 0x04050304, 0x07080607, 0x0a0b090a, 0x0d0e0c0d, 0x10110f10, 0x13141213,
                                             0x16171516, 0x191a1819, 0x1c1d1b1c, 0x1f201e1f, 0x22232122, 0x25262425,
                                             0x28292728, 0x2b2c2a2b, 0x2e2f2d2e);
    bytes = _mm512_permutexvar_epi8(spread, bytes);
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shifts, bytes), alphabet);
}

VX_AVX512 static void vx_encode_avx512(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t whole = n / 3 * 3, at = 0;
    /* Each load reads 64 bytes for 48: only where 16 more bytes follow. */
    for (; n - at >= 192 + 16; at += 192)
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            _mm512_storeu_si512(dst + at / 3 * 4 + 64 * i, vx_encode_48(_mm512_loadu_si512(src + at + 48 * i)));
    while (at < whole) {
        size_t bytes = whole - at < 48 ? whole - at : 48;
        __m512i some = _mm512_maskz_loadu_epi8(_bzhi_u64(~0ULL, (unsigned)bytes), src + at);
        _mm512_mask_storeu_epi8(dst + at / 3 * 4, _bzhi_u64(~0ULL, (unsigned)(bytes / 3 * 4)), vx_encode_48(some));
        at += bytes;
    }
    _mm256_zeroupper();
    vx_encode_from(dst, src, n, at);
}

/* As signed bytes, what is below 0x20 and what is above 0x7f are one range: less than 0x20. */
VX_AVX512 static inline __mmask64 vx_not_plain_64(__m512i text)
{
    return _mm512_cmplt_epi8_mask(text, _mm512_set1_epi8(0x20)) | _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8('"')) |
           _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8('\\'));
}

VX_AVX512 static size_t vx_plain_avx512(const uint8_t *src, size_t n)
{
    __mmask64 found = 0;
    size_t at = 0;
    while (n - at >= 64 && !(found = vx_not_plain_64(_mm512_loadu_si512(src + at))))
        at += 64;
    if (!found) /* a masked-out byte counts as a quote, so that the end is found */
        found = vx_not_plain_64(_mm512_mask_loadu_epi8(_mm512_set1_epi8('"'), _bzhi_u64(~0ULL, (unsigned)(n - at)), src + at));
    _mm256_zeroupper();
    return at + (size_t)__builtin_ctzll(found);
}

#endif
#endif
