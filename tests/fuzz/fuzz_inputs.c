/* Where the lists of numbers stand, on any bytes: it must end, read nothing outside its input, and what it gives are lists,
 * one behind the other. Of what is JSON, they are those that a grammar which looks at every byte finds. The first byte
 * chooses how many there may be. Compile with -fsanitize=fuzzer,address,undefined. */
#include <stdlib.h>

#include "cpu.h"
#include "inputs.h"

enum { MOST = 4, DEEP = 100 };

static void expect(int promise)
{
    if (!promise)
        abort();
}

/* The plain reading. count: of the lists in "data", or -1 where a parser has the whole body. */
typedef struct {
    const uint8_t *begin, *at, *end;
    vx_list lists[MOST];
    int count, most;
} reader;

static int skip(reader *r)
{
    while (r->at < r->end && *r->at && strchr(" \n\r\t", *r->at))
        r->at++;
    return r->at < r->end ? *r->at : -1;
}

/* A text, whatever stands in it behind a backslash. Gives whether it is that word, 2 where nobody can tell, -1 for no text. */
static int text(reader *r, const char *word)
{
    size_t n = word ? strlen(word) : 0;
    const uint8_t *start = r->at + 1;
    int escaped = 0;
    for (r->at++; r->at < r->end && *r->at != '"'; r->at++)
        if (*r->at == '\\') {
            escaped = 1;
            if (++r->at == r->end)
                return -1;
        }
    if (r->at++ >= r->end)
        return -1;
    return escaped ? 2 : word && (size_t)(r->at - start) == n + 1 && memcmp(start, word, n) == 0;
}

static int value(reader *r, int depth, int inside);

static int members(reader *r, int depth, int inside)
{
    do {
        int is_word, is_list;
        if (skip(r) != '"' || (is_word = text(r, depth == 1 ? "inputs" : "data")) < 0 || skip(r) != ':')
            return 0;
        if ((depth == 1 || (depth == 3 && inside)) && is_word == 2)
            r->count = -1;
        r->at++;
        is_list = depth == 3 && inside && is_word == 1 && skip(r) == '[';
        size_t start = (size_t)(r->at - r->begin);
        if (!value(r, depth, depth == 1 ? is_word == 1 : inside))
            return 0;
        if (!is_list || r->count < 0)
            continue;
        size_t stop = (size_t)(r->at - r->begin);
        if (memchr(r->begin + start, '"', stop - start) || r->count == r->most)
            r->count = -1;
        else
            r->lists[r->count++] = (vx_list){start, stop};
    } while (skip(r) == ',' && r->at++);
    return skip(r) == '}' && r->at++;
}

static int elements(reader *r, int depth, int inside)
{
    do
        if (!value(r, depth, inside))
            return 0;
    while (skip(r) == ',' && r->at++);
    return skip(r) == ']' && r->at++;
}

/* Numbers and words are whatever has no mark of JSON in it. */
static int value(reader *r, int depth, int inside)
{
    int c = skip(r);
    if (c == '"')
        return text(r, NULL) >= 0;
    if (c == '{' || c == '[') {
        r->at++;
        if (depth == DEEP)
            return 0;
        if (skip(r) == (c == '{' ? '}' : ']'))
            return r->at++, 1;
        return c == '{' ? members(r, depth + 1, inside) : elements(r, depth + 1, inside);
    }
    const uint8_t *start = r->at;
    while (r->at < r->end && *r->at > ' ' && !memchr(",]}[{\":", *r->at, 7))
        r->at++;
    return r->at > start;
}

static void check_lists(const uint8_t *body, size_t n, const vx_list *lists, int count)
{
    size_t last = 0;
    for (int i = 0; i < count; i++) {
        long depth = 0;
        expect(last <= lists[i].start && lists[i].start < lists[i].end && lists[i].end <= n);
        for (size_t at = last = lists[i].start; at < lists[i].end; at++) {
            depth += (body[at] == '[') - (body[at] == ']');
            expect(body[at] != '"' && (depth > 0) == (at + 1 < lists[i].end));
        }
        last = lists[i].end;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    vx_list lists[MOST];
    if (n-- < 1)
        return 0;
    vx_choose(NULL);
    int most = 1 + *data++ % MOST;
    uint8_t *body = malloc(n); /* so that a read beyond the body is one beyond the allocation */
    memcpy(body, data, n);
    int count = vx_find_data(body, body + n, lists, most);
    expect(count >= -1 && count <= most);
    check_lists(body, n, lists, count);
    reader plain = {.begin = body, .at = body, .end = body + n, .most = most};
    if (value(&plain, 0, 0) && skip(&plain) < 0) {
        expect(count == plain.count);
        expect(count < 1 || memcmp(lists, plain.lists, (size_t)count * sizeof *lists) == 0);
    }
    free(body);
    return 0;
}
