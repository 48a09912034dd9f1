/* Has a JSON body an integer that may not fit 64 bits? orjson turns such a one into a float without a word, so the
 * server must know which bodies to look at closely; most are base64, and may be skipped through.
 */
#ifndef VX_DIGITS_H
#define VX_DIGITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    VX_BIG_INT = 19, /* digits of 2**63, the shortest that may not fit */
    VX_STRIDE = 16,  /* any VX_BIG_INT bytes in a row hold all of a 4-byte window at a multiple of 16: 15 + 4 = 19 */
};

static inline int vx_is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

/* Are at least VX_BIG_INT digits in a row around body[at]? */
static inline int vx_long_run(const uint8_t *body, size_t n, size_t at)
{
    size_t begin = at, end = at;
    while (begin > 0 && end - begin < VX_BIG_INT && vx_is_digit(body[begin - 1]))
        begin--;
    while (end < n && end - begin < VX_BIG_INT && vx_is_digit(body[end]))
        end++;
    return end - begin >= VX_BIG_INT;
}

/* Reads a quarter of the body, and of base64 looks twice at one window in 1 700 ((10/64)**4: four digits in a row). */
static inline int vx_has_big_int(const uint8_t *body, size_t n)
{
    for (size_t at = 0; at + 4 <= n; at += VX_STRIDE) {
        uint32_t window;
        memcpy(&window, body + at, 4);
        if ((window & 0xf0f0f0f0) == 0x30303030 && vx_long_run(body, n, at))
            return 1;
    }
    return 0;
}

#endif
