/* What a JSON text will become, from its bytes alone: how many values, how wide its texts; and where it holds an integer that
 * 64 bits can't.
 *
 * A value is counted where a comma, '[' or '{' stands, and a ':' counts three more: a member of an object is its value, its
 * key and its place in a table. No JSON text becomes more Python objects than that, but for one or two. */
#ifndef VX_VALUES_H
#define VX_VALUES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { VX_MEMBER = 3 }; /* what a ':' counts */

/* One pass at the speed of memory, without a look at what is inside strings: *values may be too many, never too few. *width
 * is how many bytes a character of any str may take (CPython gives every character of a str what its widest one needs). */
static inline void vx_weigh(const uint8_t *text, size_t size, size_t *values, int *width)
{
    enum { LANES = 64, ROUNDS = 255 / VX_MEMBER }; /* as many as a byte can count */
    size_t at = 0, found = 0;
    uint8_t highest = 0, escaped = 0;
    while (size - at > LANES) { /* so that there is one byte more to look at */
        uint8_t counts[LANES] = {0}, high[LANES] = {0}, unicode[LANES] = {0};
        for (int round = 0; round < ROUNDS && size - at > LANES; round++, at += LANES)
            for (int i = 0; i < LANES; i++) {
                uint8_t c = text[at + i];
                counts[i] += (uint8_t)((c == ',') | ((c & 0xdf) == '[')) + (c == ':' ? VX_MEMBER : 0);
                high[i] = c > high[i] ? c : high[i];
                unicode[i] |= (c == '\\') & (text[at + i + 1] == 'u');
            }
        for (int i = 0; i < LANES; i++) {
            found += counts[i];
            highest = high[i] > highest ? high[i] : highest;
            escaped |= unicode[i];
        }
    }
    for (; at < size; at++) {
        uint8_t c = text[at];
        found += (c == ',' || c == '[' || c == '{') + (c == ':' ? VX_MEMBER : 0);
        highest = c > highest ? c : highest;
        escaped |= c == '\\';
    }
    *values = found;
    *width = highest >= 0xf0 || escaped ? 4 : highest >= 0xc4 ? 2 : 1; /* the first bytes of U+10000 and of U+0100 */
}

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

/* The values of a text, those that stand in strings not counted; or a number above `most`, as soon as there are more. */
static size_t vx_count_values(const char *text, size_t size, size_t most)
{
    const char *p = text, *end = text + size;
    size_t found = 0;
    for (; p < end && found <= most; p++) {
        if (*p == '"')
            p = vx_string_end(p + 1, end);
        else if (*p == ',' || *p == '[' || *p == '{')
            found++;
        else if (*p == ':')
            found += VX_MEMBER;
        if (p == end)
            break;
    }
    return found;
}

/* Whether digits[0..n) (no leading zero) is beyond uint64, or beyond int64 when negative. */
static int vx_is_big(const char *digits, size_t n, int negative)
{
    const char *most = negative ? "9223372036854775808" : "18446744073709551615";
    size_t width = negative ? 19 : 20;
    return n > width || (n == width && memcmp(digits, most, width) > 0);
}

/* Whether the string between quotes is data, with any of its letters escaped or none. */
static int vx_says_data(const char *p, const char *end)
{
    static const char letters[4] = "data", escapes[4][7] = {"\\u0064", "\\u0061", "\\u0074", "\\u0061"};
    for (int i = 0; i < 4; i++) {
        if (p < end && *p == letters[i])
            p++;
        else if (end - p >= 6 && memcmp(p, escapes[i], 6) == 0)
            p += 6;
        else
            return 0;
    }
    return p == end;
}

/* Offset of the first integer in the member "data" that 64 bits can't hold, -1 if there is none: JSON readers differ on
 * those (RFC 8259 section 6), orjson makes floats of them without a word. Of members of that name the last one counts, as
 * with orjson. The text must be valid JSON: this looks at digits, brackets and quotes, at nothing else. O(n). */
static ptrdiff_t vx_big_int(const char *text, size_t size)
{
    const char *p = text, *end = text + size;
    ptrdiff_t found = -1, depth = 0;
    int is_data = 0;
    while (p < end) {
        if (*p == '"') {
            const char *begin = p + 1, *close = vx_string_end(begin, end);
            p = close + (close < end);
            if (depth != 1)
                continue;
            while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r'))
                p++;
            if (p == end || *p != ':')
                continue;
            is_data = vx_says_data(begin, close);
            found = is_data ? -1 : found;
        } else if (*p == '-' || (*p >= '0' && *p <= '9')) {
            const char *start = p;
            int negative = *p == '-';
            p += negative;
            const char *digits = p;
            while (p < end && *p >= '0' && *p <= '9')
                p++;
            int whole = p == end || (*p != '.' && *p != 'e' && *p != 'E');
            if (whole && is_data && found < 0 && vx_is_big(digits, (size_t)(p - digits), negative))
                found = start - text;
            while (p < end && ((*p >= '0' && *p <= '9') || *p == '.' || *p == 'e' || *p == 'E' || *p == '+' || *p == '-'))
                p++;
        } else {
            depth += (*p == '{') + (*p == '[') - (*p == '}') - (*p == ']');
            p++;
        }
    }
    return found;
}

#endif
