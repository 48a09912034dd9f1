/* Base64 with NEON on 64-bit Arm: the loads and stores that deal bytes out to 3 or 4 registers do the shuffling, the
 * 64-byte table lookups do the rest. */
#ifndef VX_BASE64_NEON_H
#define VX_BASE64_NEON_H

#include "base64.h"

#if defined(__aarch64__)
#include <arm_neon.h>

static inline uint8x16x4_t vx_load_64(const uint8_t *table)
{
    return (uint8x16x4_t){{vld1q_u8(table), vld1q_u8(table + 16), vld1q_u8(table + 32), vld1q_u8(table + 48)}};
}

/* The value of each character: an index beyond a table looks up nothing, so the second lookup fills in what the first
 * left (TBX keeps the old lane). A character beyond ASCII finds neither table: *bad collects its own top bit. */
static inline uint8x16_t vx_values_16(uint8x16_t text, uint8x16x4_t first, uint8x16x4_t second, uint8x16_t *bad)
{
    uint8x16_t value = vqtbx4q_u8(vqtbl4q_u8(first, text), second, veorq_u8(text, vdupq_n_u8(64)));
    *bad = vorrq_u8(*bad, vorrq_u8(value, text));
    return value;
}

/* 64 characters at `at` -> 48 bytes; false if one is bad. */
static inline int vx_decode_neon_64(uint8_t *dst, const uint8_t *src, size_t at, uint8x16x4_t first, uint8x16x4_t second)
{
    uint8x16_t bad = vdupq_n_u8(0);
    uint8x16x4_t text = vld4q_u8(src + at);
    uint8x16_t a = vx_values_16(text.val[0], first, second, &bad), b = vx_values_16(text.val[1], first, second, &bad);
    uint8x16_t c = vx_values_16(text.val[2], first, second, &bad), d = vx_values_16(text.val[3], first, second, &bad);
    uint8x16x3_t bytes;
    bytes.val[0] = vorrq_u8(vshlq_n_u8(a, 2), vshrq_n_u8(b, 4));
    bytes.val[1] = vorrq_u8(vshlq_n_u8(b, 4), vshrq_n_u8(c, 2));
    bytes.val[2] = vorrq_u8(vshlq_n_u8(c, 6), d);
    vst3q_u8(dst + at / 4 * 3, bytes);
    return vmaxvq_u8(bad) < VX_BAD;
}

static size_t vx_decode_neon(uint8_t *dst, const uint8_t *src, size_t n)
{
    const uint8x16x4_t first = vx_load_64(vx_value), second = vx_load_64(vx_value + 64);
    size_t whole = n / 3 * 4, at = 0;
    while (whole - at >= 64 && vx_decode_neon_64(dst, src, at, first, second))
        at += 64;
    /* The last block overlaps the one before: same bytes, written twice. */
    if (whole - at < 64 && whole > at && whole >= 64 && vx_decode_neon_64(dst, src, whole - 64, first, second))
        at = whole;
    return vx_decode_from(dst, src, n, at);
}

/* 48 bytes at `at` -> 64 characters. */
static inline void vx_encode_neon_48(uint8_t *dst, const uint8_t *src, size_t at, uint8x16x4_t alphabet)
{
    const uint8x16_t six = vdupq_n_u8(63);
    uint8x16x3_t bytes = vld3q_u8(src + at);
    uint8x16x4_t text;
    text.val[0] = vqtbl4q_u8(alphabet, vshrq_n_u8(bytes.val[0], 2));
    text.val[1] = vqtbl4q_u8(alphabet, vandq_u8(vorrq_u8(vshlq_n_u8(bytes.val[0], 4), vshrq_n_u8(bytes.val[1], 4)), six));
    text.val[2] = vqtbl4q_u8(alphabet, vandq_u8(vorrq_u8(vshlq_n_u8(bytes.val[1], 2), vshrq_n_u8(bytes.val[2], 6)), six));
    text.val[3] = vqtbl4q_u8(alphabet, vandq_u8(bytes.val[2], six));
    vst4q_u8(dst + at / 3 * 4, text);
}

static void vx_encode_neon(uint8_t *dst, const uint8_t *src, size_t n)
{
    const uint8x16x4_t alphabet = vx_load_64(vx_alphabet);
    size_t whole = n / 3 * 3, at = 0;
    for (; whole - at >= 48; at += 48)
        vx_encode_neon_48(dst, src, at, alphabet);
    if (whole > at && whole >= 48) {
        vx_encode_neon_48(dst, src, whole - 48, alphabet);
        at = whole;
    }
    vx_encode_from(dst, src, n, at);
}

/* True if all of 16 bytes are plain: as signed bytes, 0x20 and above but '"' and '\\'. */
static inline int vx_are_plain_16(const uint8_t *src)
{
    uint8x16_t text = vld1q_u8(src);
    uint8x16_t marks = vorrq_u8(vceqq_u8(text, vdupq_n_u8('"')), vceqq_u8(text, vdupq_n_u8('\\')));
    uint8x16_t range = vcltq_s8(vreinterpretq_s8_u8(text), vdupq_n_s8(0x20));
    return vmaxvq_u8(vorrq_u8(marks, range)) == 0;
}

static size_t vx_plain_neon(const uint8_t *src, size_t n)
{
    size_t at = 0;
    while (n - at >= 16 && vx_are_plain_16(src + at))
        at += 16;
    return vx_plain_from(src, n, at);
}

#endif
#endif
