/* Where a JSON text holds an integer that 64 bits can't. JSON readers differ on those (RFC 8259 section 6): orjson makes
 * floats of them without a word. The text must be valid JSON: this looks at digits and quotes, at nothing else. */
#ifndef VX_BIG_INT_H
#define VX_BIG_INT_H

#include <stddef.h>
#include <string.h>

/* The closing quote of the string that begins at p, or end. memchr runs at memory speed over base64. */
static const char *vx_string_end(const char *p, const char *end)
{
    while (p < end && (p = memchr(p, '"', (size_t)(end - p))) != NULL) {
        const char *q = p;
        while (q[-1] == '\\')  /* stops at the opening quote at the latest */
            q--;
        if ((p - q) % 2 == 0)
            return p;
        p++;
    }
    return end;
}

/* Whether digits[0..n) (no leading zero) is beyond uint64, or beyond int64 when negative. */
static int vx_is_big(const char *digits, size_t n, int negative)
{
    const char *most = negative ? "9223372036854775808" : "18446744073709551615";
    size_t width = negative ? 19 : 20;
    return n > width || (n == width && memcmp(digits, most, width) > 0);
}

/* Offset of the first such integer outside strings, -1 if there is none. O(n). */
static ptrdiff_t vx_big_int(const char *text, size_t size)
{
    const char *p = text, *end = text + size;
    while (p < end) {
        if (*p == '"') {
            p = vx_string_end(p + 1, end) + 1;
        } else if (*p == '-' || (*p >= '0' && *p <= '9')) {
            const char *start = p;
            int negative = *p == '-';
            p += negative;
            const char *digits = p;
            while (p < end && *p >= '0' && *p <= '9')
                p++;
            int whole = p == end || (*p != '.' && *p != 'e' && *p != 'E');
            if (whole && vx_is_big(digits, (size_t)(p - digits), negative))
                return start - text;
            while (p < end && ((*p >= '0' && *p <= '9') || *p == '.' || *p == 'e' || *p == 'E' || *p == '+' || *p == '-'))
                p++;
        } else {
            p++;
        }
    }
    return -1;
}

#endif
