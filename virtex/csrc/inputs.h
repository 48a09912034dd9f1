/* Where the numbers stand in a request of the Open Inference Protocol, V2:
 *
 *   { ... "inputs": [ { ... "data": [ numbers ] ... }, ... ] ... }
 *
 * This is no parser: it knows strings, brackets, and at which depth it is. What is left when each such list is cut out goes
 * to a parser, which has the word on it; a list is proved when it is read (numbers.h). So a body that is no JSON may pass
 * here, but not both of those.
 */
#ifndef VX_INPUTS_H
#define VX_INPUTS_H

#include "walk.h"

typedef struct {
    size_t start, end; /* of the list, with its brackets */
} vx_list;

/* Behind the closing quote of the text that begins at `at`; NULL if it doesn't end. *escaped: whether a backslash is in it. */
static inline const uint8_t *vx_skip_text(const uint8_t *at, const uint8_t *end, int *escaped)
{
    for (*escaped = 0; at < end; at++) {
        if (*at == '"')
            return at + 1;
        if (*at == '\\') {
            *escaped = 1;
            at++;
        }
    }
    return NULL;
}

static inline int vx_is_word(const uint8_t *at, const uint8_t *after, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(after - at) == n + 1 && memcmp(at, word, n) == 0;
}

/* How many lists there are. -1 for a body that is a parser's as a whole: with text in a list, with escapes in a name where
 * "data" or "inputs" may stand, with more than `most` lists. */
static inline int vx_find_data(const uint8_t *begin, const uint8_t *end, vx_list *lists, int most)
{
    int depth = 0, count = 0, inside = 0, escaped;
    const uint8_t *at = begin, *text, *next;
    while (at < end) {
        uint8_t c = *at++;
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (c != '"')
            continue;
        if (!(at = vx_skip_text(text = at, end, &escaped)))
            return -1;
        if (!(depth == 1 || (inside && depth == 3)) || !(next = vx_take(at, end, ':')))
            continue;
        if (escaped)
            return -1;
        if (depth == 1)
            inside = vx_is_word(text, at, "inputs");
        next = vx_space(next, end);
        if (depth == 1 || next == end || *next != '[' || !vx_is_word(text, at, "data"))
            continue;
        if (count == most || !(at = vx_active->skip(begin, next + 1, end)))
            return -1;
        lists[count].start = (size_t)(next - begin);
        lists[count++].end = (size_t)(at - begin);
    }
    return count;
}

#endif
