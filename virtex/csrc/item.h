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

/* Bytes that `chars` characters (a multiple of 4) say they hold; whether they are base64, the decoder finds out. */
static inline size_t vx_claimed(const uint8_t *text, size_t chars)
{
    if (chars == 0)
        return 0;
    return chars / 4 * 3 - (text[chars - 1] == '=') - (text[chars - 1] == '=' && text[chars - 2] == '=');
}

/* dst[0, n) from the bytes [skip, skip + n) of the text's skip + n bytes. Returns VX_CHARS(skip + n), or the offset of the
 * first bad character from the quantum on in which byte `skip` lies. */
static inline size_t vx_decode_after(const vx_base64 *kernel, uint8_t *dst, const uint8_t *text, size_t skip, size_t n)
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

/* NumPy and torch take a bool's byte for 0 or 1 and compute nonsense from others. */
static inline int vx_are_bools(const uint8_t *data, size_t n)
{
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++)
        all |= data[i];
    return all <= 1;
}

#endif
