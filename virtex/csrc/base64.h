/* Base64 of RFC 4648 section 4, strict: padded (3.2), nothing outside the alphabet (3.3), canonical (3.5).
 *
 * Rules of this folder: no Python.h, no allocation, no state but vx_active (cpu.h); everything is static, so that
 * the extension, the fuzz targets and the test driver each include what they use. One file per instruction set, each
 * with the same functions (skip: lists.h):
 *
 *   decode  writes dst[0, n) from the VX_CHARS(n) characters at src and returns VX_CHARS(n); or returns the offset of
 *           the first bad character, and dst[0, n) is rubbish. Never touches a byte outside these two ranges.
 *   encode  writes the VX_CHARS(n) characters at dst from src[0, n). Never touches a byte outside these two ranges.
 *   plain   says how many bytes from src[0] on may stand in a JSON string as they are and are ASCII: none of '"', '\\',
 *           below 0x20 (RFC 8259 section 7), above 0x7f. Reads nothing outside src[0, n).
 *
 * dst and src must not overlap. Neither is constant-time: don't use them on secrets.
 */
#ifndef VX_BASE64_H
#define VX_BASE64_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VX_CHARS(n) (((n) + 2) / 3 * 4)

typedef struct {
    const char *name;
    size_t (*decode)(uint8_t *dst, const uint8_t *src, size_t n);
    void (*encode)(uint8_t *dst, const uint8_t *src, size_t n);
    size_t (*plain)(const uint8_t *src, size_t n);
    const uint8_t *(*skip)(const uint8_t *begin, const uint8_t *at, const uint8_t *end);
} vx_kernel;

static const uint8_t vx_alphabet[64] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#define VX_BAD 0x80 /* no value of the alphabet has this bit, so that one OR tells whether any of many is bad */

#define XX VX_BAD
static const uint8_t vx_value[256] = {
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, 62, XX, XX, XX, 63,
    52, 53, 54, 55, 56, 57, 58, 59, 60, 61, XX, XX, XX, XX, XX, XX,
    XX,  0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14,
    15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, XX, XX, XX, XX, XX,
    XX, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40,
    41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
    XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX, XX,
};
#undef XX

/* The last quantum, which holds 1 or 2 bytes: "xx==" or "xxx=". Returns 4, or the offset of its first bad character;
 * a character whose unused low bits are not zero is bad (RFC 4648, 3.5). */
static inline size_t vx_decode_last(uint8_t *dst, const uint8_t *src, size_t n)
{
    uint8_t a = vx_value[src[0]], b = vx_value[src[1]], c = vx_value[src[2]];
    if (a & VX_BAD)
        return 0;
    if (b & (n == 1 ? VX_BAD | 15 : VX_BAD))
        return 1;
    if (n == 1 ? src[2] != '=' : (c & (VX_BAD | 3)) != 0)
        return 2;
    if (src[3] != '=')
        return 3;
    dst[0] = (uint8_t)(a << 2 | b >> 4);
    if (n == 2)
        dst[1] = (uint8_t)(b << 4 | c >> 2);
    return 4;
}

#ifndef VX_LEFT_OVER
#define VX_LEFT_OVER(chars) /* lets the test driver see how much the vectors left to plain C */
#endif

/* Decodes from character `at` (a multiple of 4) to the end: what the vectors left over, and the one place that finds
 * which character of a block was bad. */
static inline size_t vx_decode_from(uint8_t *dst, const uint8_t *src, size_t n, size_t at)
{
    size_t whole = n / 3 * 4;
    VX_LEFT_OVER(whole - at);
    dst += at / 4 * 3;
    for (; at < whole; at += 4, dst += 3) {
        uint32_t a = vx_value[src[at]], b = vx_value[src[at + 1]], c = vx_value[src[at + 2]], d = vx_value[src[at + 3]];
        if ((a | b | c | d) & VX_BAD)
            return at + (a & VX_BAD ? 0 : b & VX_BAD ? 1 : c & VX_BAD ? 2 : 3);
        dst[0] = (uint8_t)(a << 2 | b >> 4);
        dst[1] = (uint8_t)(b << 4 | c >> 2);
        dst[2] = (uint8_t)(c << 6 | d);
    }
    return n % 3 ? at + vx_decode_last(dst, src + at, n % 3) : at;
}

/* Encodes from byte `at` (a multiple of 3) to the end. */
static inline void vx_encode_from(uint8_t *dst, const uint8_t *src, size_t n, size_t at)
{
    dst += at / 3 * 4;
    for (; n - at >= 3; at += 3, dst += 4) {
        dst[0] = vx_alphabet[src[at] >> 2];
        dst[1] = vx_alphabet[(src[at] & 3) << 4 | src[at + 1] >> 4];
        dst[2] = vx_alphabet[(src[at + 1] & 15) << 2 | src[at + 2] >> 6];
        dst[3] = vx_alphabet[src[at + 2] & 63];
    }
    if (n == at)
        return;
    uint8_t second = n - at == 2 ? src[at + 1] : 0;
    dst[0] = vx_alphabet[src[at] >> 2];
    dst[1] = vx_alphabet[(src[at] & 3) << 4 | second >> 4];
    dst[2] = n - at == 2 ? vx_alphabet[(second & 15) << 2] : '=';
    dst[3] = '=';
}

static inline int vx_is_plain(uint8_t c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

static inline size_t vx_plain_from(const uint8_t *src, size_t n, size_t at)
{
    while (at < n && vx_is_plain(src[at]))
        at++;
    return at;
}

static size_t vx_plain_scalar(const uint8_t *src, size_t n)
{
    return vx_plain_from(src, n, 0);
}

static size_t vx_decode_scalar(uint8_t *dst, const uint8_t *src, size_t n)
{
    return vx_decode_from(dst, src, n, 0);
}

static void vx_encode_scalar(uint8_t *dst, const uint8_t *src, size_t n)
{
    vx_encode_from(dst, src, n, 0);
}

#endif
