/* One item: the base64 of a .npy document. Joins base64.h and npy.h.
 *
 * A header of `skip` bytes ends within a quantum unless skip is a multiple of 3 (np.save's 128 is not, Virtex's 192 is):
 *
 *   bytes       ... h h h | h h d | d d d | ...        h: header, d: data
 *   characters  ... xxxx    xxxx    xxxx
 */
#ifndef VX_ITEM_H
#define VX_ITEM_H

#include "base64.h"

/* memcpy, but in pieces where glibc's goes through `rep movsb` at the distances at which Zen 3 and 4 execute that ten times
 * slower (glibc bug 30994: the destination 1 to 31 bytes ahead within its page). Below 2 KB glibc uses vectors. */
static inline void vx_copy(uint8_t *dst, const uint8_t *src, size_t n)
{
    enum { PAGE = 4096, TRAP = 32, LARGE = 512 * 1024 };
    size_t ahead = (size_t)(dst - src) % PAGE, piece = 2048;
    __asm__("" : "+r"(piece)); /* of a known size, the compiler itself writes rep movsq */
    for (; ahead > 0 && ahead < TRAP && n > piece && n < LARGE; dst += piece, src += piece, n -= piece)
        memcpy(dst, src, piece);
    memcpy(dst, src, n);
}

/* Bytes that `chars` characters (a multiple of 4) say they hold; whether they are base64, the decoder finds out. */
static inline size_t vx_claimed(const uint8_t *text, size_t chars)
{
    if (chars == 0)
        return 0;
    return chars / 4 * 3 - (text[chars - 1] == '=') - (text[chars - 1] == '=' && text[chars - 2] == '=');
}

/* dst[0, n) from the bytes [skip, skip + n) of the text's skip + n bytes. Returns VX_CHARS(skip + n), or the offset of the
 * first bad character from the quantum on in which byte `skip` lies. */
static inline size_t vx_decode_after(const vx_kernel *kernel, uint8_t *dst, const uint8_t *text, size_t skip, size_t n)
{
    size_t at = skip / 3 * 4, header = skip % 3;
    if (header) {
        uint8_t quantum[3];
        size_t have = header + n < 3 ? header + n : 3, good = kernel->decode(quantum, text + at, have);
        if (good != 4)
            return at + good;
        memcpy(dst, quantum + header, have - header);
        dst += have - header;
        n -= have - header;
        at += 4;
    }
    return at + kernel->decode(dst, text + at, n);
}

/* The first `size` bytes of a document from its text, of which `chars` characters are at hand: all bytes but those of the
 * last quantum are decoded strictly; the last one's are taken as they come, since data may follow them in it. Returns
 * 0, or 1 + the offset of the first bad character. dst has room for size + 2 bytes. */
static inline size_t vx_decode_header(const vx_kernel *kernel, uint8_t *dst, const uint8_t *text, size_t chars, size_t size)
{
    size_t whole = size / 3 * 3, at = whole / 3 * 4, more = size - whole, good;
    if (chars < at + (more ? more + 1 : 0))
        return 1 + chars;
    good = kernel->decode(dst, text, whole);
    if (good != at)
        return 1 + good;
    for (size_t i = 0; more && i <= more; i++)
        if (vx_value[text[at + i]] & VX_BAD)
            return 1 + at + i;
    if (more)
        dst[whole] = (uint8_t)(vx_value[text[at]] << 2 | vx_value[text[at + 1]] >> 4);
    if (more == 2)
        dst[whole + 1] = (uint8_t)(vx_value[text[at + 1]] << 4 | vx_value[text[at + 2]] >> 2);
    return 0;
}

/* Which patterns of bits the values of a dtype may have. NumPy and torch take a bool's byte for 0 or 1 and compute nonsense
 * from others, ml_dtypes looks at the low bits of a float4 alone; and CPython makes a str of any code points, whose later
 * encoding writes beyond its memory. */
enum {
    VX_TEXT = 0x100,         /* Unicode code points in 4 bytes each, in this machine's order */
    VX_SWAPPED_TEXT = 0x101, /* in the other one */
    VX_ANY = 0xff,           /* this and less: a mask of the bits that each byte may have */
};

static inline int vx_has_bits(const uint8_t *data, size_t n, uint8_t mask)
{
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++)
        all |= data[i];
    return (all & ~mask) == 0;
}

/* Code points up to 0x10ffff but for the surrogates, 0xd800 to 0xdfff (Unicode 3.4, D76). Compiled to vectors: no branch. */
static inline int vx_is_text(const uint8_t *data, size_t n, int swapped)
{
    int bad = 0;
    for (size_t i = 0; i < n / 4; i++) {
        uint32_t point;
        memcpy(&point, data + 4 * i, 4);
        if (swapped)
            point = point >> 24 | (point >> 8 & 0xff00) | (point << 8 & 0xff0000) | point << 24;
        bad |= (int)(point >> 16) > 0x10;
        bad |= (point >> 11) == 0x1b;
    }
    return !bad;
}

static inline int vx_is_sound(const uint8_t *data, size_t n, int patterns)
{
    if (patterns == VX_ANY)
        return 1;
    return patterns < VX_ANY ? vx_has_bits(data, n, (uint8_t)patterns) : vx_is_text(data, n, patterns == VX_SWAPPED_TEXT);
}

/* Many texts of one signature into rows of `size` bytes each, one after another. Returns `count`, or which one is bad. */
static inline size_t vx_decode_rows(const vx_kernel *kernel, uint8_t *rows, const uint8_t *body, const size_t *starts,
                                    size_t step, size_t count, size_t skip, size_t size, int patterns)
{
    for (size_t i = 0; i < count; i++, rows += size) {
        if (vx_decode_after(kernel, rows, body + starts[i * step], skip, size) != VX_CHARS(skip + size))
            return i;
        if (!vx_is_sound(rows, size, patterns))
            return i;
    }
    return count;
}

/* Rows of `size` bytes each, one after another, as the strings of a JSON list: "header text","header text",... Returns what
 * follows the last quote. */
static inline uint8_t *vx_encode_rows(const vx_kernel *kernel, uint8_t *dst, const uint8_t *rows, size_t count, size_t size,
                                      const uint8_t *header, size_t header_chars)
{
    for (size_t i = 0; i < count; i++, rows += size) {
        if (i)
            *dst++ = ',';
        *dst++ = '"';
        memcpy(dst, header, header_chars);
        kernel->encode(dst + header_chars, rows, size);
        dst += header_chars + VX_CHARS(size);
        *dst++ = '"';
    }
    return dst;
}

#endif
