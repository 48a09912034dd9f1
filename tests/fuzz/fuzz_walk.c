/* The walk on any bytes: it must end, read nothing outside its input, and what it takes must be what a grammar of JSON that
 * looks at every byte finds. The first two bytes choose the key's length and whether items are objects.
 * Compile with -fsanitize=fuzzer,address,undefined. */
#include <stdlib.h>

#include "cpu.h"
#include "walk.h"

enum { ROOM = 64 };

static void expect(int promise)
{
    if (!promise)
        abort();
}

/* The plain reading: texts of exactly `chars` characters that begin with the key, found byte by byte. */
typedef struct {
    const uint8_t *at, *end;
    int ok;
} reader;

static void skip(reader *r)
{
    while (r->at < r->end && strchr(" \n\r\t", *r->at) && *r->at)
        r->at++;
}

static int next_is(reader *r, const char *token)
{
    skip(r);
    size_t n = strlen(token);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, token, n) != 0)
        return 0;
    r->at += n;
    return 1;
}

static int text_is(reader *r, const vx_key *key)
{
    if (!next_is(r, "\"") || (size_t)(r->end - r->at) <= key->chars)
        return 0;
    if (memcmp(r->at, key->text, key->size) != 0 || r->at[key->chars] != '"')
        return 0;
    r->at += key->chars + 1;
    return 1;
}

/* Numbers, as far as the walk tells: lists by their brackets, without text in them; or what ends where a number must. */
static int numbers_are(reader *r, int *lists)
{
    skip(r);
    if (r->at == r->end || !memchr("[-0123456789tf", *r->at, 14))
        return 0;
    long depth = 0;
    if (lists && *lists >= 0 && *lists != (*r->at == '['))
        return 0;
    if (lists)
        *lists = *r->at == '[';
    if (*r->at != '[') {
        while (r->at < r->end && *r->at > ' ' && !memchr(",]}[\"", *r->at, 5))
            r->at++;
        return 1;
    }
    for (; r->at < r->end; r->at++) {
        if (*r->at == '"')
            return 0;
        depth += (*r->at == '[') - (*r->at == ']');
        if (!depth)
            return r->at++, 1;
    }
    return 0;
}

/* kind: what the column's values are so far: -1 nobody knows, 0 texts, 1 numbers. */
static int value_is(reader *r, const vx_key *key, int *kind)
{
    skip(r);
    int text = r->at < r->end && *r->at == '"';
    if (*kind == text)
        return 0;
    *kind = !text;
    return text ? text_is(r, key) : numbers_are(r, NULL);
}

static int object_is(reader *r, const vx_key *keys, int *kinds)
{
    int seen[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        if (!next_is(r, i ? "," : "{"))
            return 0;
        int column = next_is(r, "\"a\"") ? 0 : next_is(r, "\"bc\"") ? 1 : -1;
        if (column < 0 || seen[column]++ || !next_is(r, ":") || !value_is(r, &keys[column], &kinds[column]))
            return 0;
    }
    return next_is(r, "}");
}

static long plain_count(const uint8_t *body, size_t n, const vx_key *keys, int objects)
{
    reader r = {body, body + n, 1};
    long count = 0;
    int kinds[2] = {-1, -1}, lists = -1;
    if (!next_is(&r, "{") || !next_is(&r, "\"data\"") || !next_is(&r, ":") || !next_is(&r, "["))
        return -1;
    if (!next_is(&r, "]"))
        do {
            skip(&r);
            int text = r.at < r.end && *r.at == '"';
            if (!objects && kinds[0] == text)
                return -1;
            if (!objects)
                kinds[0] = !text;
            if (!(objects ? object_is(&r, keys, kinds) : text ? text_is(&r, keys) : numbers_are(&r, &lists)))
                return -1;
            count++;
        } while (next_is(&r, ",") || (next_is(&r, "]") ? 0 : (count = -1, 0)));
    if (next_is(&r, ",") && !(next_is(&r, "\"error\"") && next_is(&r, ":") && next_is(&r, "null")))
        return -1;
    if (count < 0 || !next_is(&r, "}"))
        return -1;
    skip(&r);
    return r.at == r.end ? count : -1;
}

static void check_strings(const uint8_t *body, size_t n)
{
    const uint8_t *end = body + n, *at = vx_open(body, end), *text;
    size_t size = 0;
    int last = 0;
    while (at && !last) {
        if (!(text = vx_take_string(vx_active, &at, end, &size, &last)))
            break;
        expect(text > body && text + size < end && text[size] == '"' && at <= end);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint8_t *const names[] = {(const uint8_t *)"a", (const uint8_t *)"bc"};
    static const size_t name_sizes[] = {1, 2};
    size_t starts[ROOM];
    if (n < 2)
        return 0;
    vx_choose(NULL);
    int objects = data[0] & 1, asked = 0, outcome;
    const vx_key key = {(const uint8_t *)"AB", data[1] % 3, 4 + 4 * (data[1] % 5), 0, 0};
    vx_walk w = {.begin = data + 2, .at = data + 2, .end = data + n, .columns = objects ? 2 : 1, .starts = starts};
    w.names = objects ? names : NULL;
    w.name_sizes = name_sizes;
    w.room = ROOM / 2;
    while ((outcome = vx_walk_on(&w)) == VX_ASK) {
        expect(++asked < 4);
        if (w.column < 0)
            return 0; /* more items than there is room for */
        expect(w.text > w.begin && w.text <= w.end);
        w.keys[w.column] = key;
    }
    const vx_key keys[] = {key, key};
    long count = plain_count(data + 2, n - 2, keys, objects);
    expect((outcome == VX_DONE) == (count >= 0));
    for (size_t i = 0; outcome == VX_DONE && i < w.count * (size_t)w.columns; i++)
        expect(w.numeric >> i % (size_t)w.columns & 1 || starts[i] + key.chars < n - 2 && data[2 + starts[i] + key.chars] == '"');
    expect(outcome != VX_DONE || (long)w.count == count);
    check_strings(data + 2, n - 2);
    return 0;
}
