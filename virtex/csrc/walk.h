/* Walks {"data": [...]} in the shapes that need no JSON parser, without looking at most of its bytes.
 *
 *   body   = { "data" : [ items ] }       with JSON whitespace (20 09 0a 0d) between tokens, and nothing else but
 *                                          , "error" : null after the items, which HttpMessage writes
 *   item   = value                         or, with names, an object of exactly these members, in any order
 *   value  = "text" or numbers             of an item or column always the same: all texts have one header
 *
 * An array's text tells its own length in its first characters: where it must end is computed, and one look proves that a
 * quote is there. That no quote, backslash or control character hides in between is proved later, by the strict decoder,
 * which refuses them all. Numbers, one or lists of them, are measured by their brackets and commas, and proved later too
 * (numbers.h). Whatever else comes (escapes, other members, another header) ends the walk: a JSON parser
 * has the word, and nothing was lost but nanoseconds. Never recurses.
 */
#ifndef VX_WALK_H
#define VX_WALK_H

#include "base64.h"
#include "cpu.h"

enum {
    VX_DONE,      /* the whole body was taken */
    VX_SURPRISE,  /* not a body for this walk */
    VX_ASK,       /* `text` begins an item of `column` whose header isn't known yet: set its key, and walk again */
    VX_MAX_COLUMNS = 16,
};

/* How the base64 of one header begins: `size` characters in full, and of the next one only the bits under `mask`, where
 * header and data share it. `chars` is the length of the whole text, data included. */
typedef struct {
    const uint8_t *text;
    size_t size, chars;
    uint8_t mask, bits;
} vx_key;

typedef struct {
    const uint8_t *begin, *at, *end; /* the body; `at` is before the next item (of `text` after VX_ASK) */
    int columns;                     /* texts per item */
    const uint8_t *const *names;     /* of members, as they stand between quotes; NULL if items are texts */
    const size_t *name_sizes;
    vx_key keys[VX_MAX_COLUMNS];
    int column;                      /* VX_ASK: which key is missing */
    const uint8_t *text;             /* VX_ASK: where the item begins that has it */
    size_t *starts;                  /* offsets of texts: `columns` for each item; the caller's, of room texts */
    size_t room, count;              /* VX_ASK also comes when room ran out (column is -1) */
    int opened;
    uint32_t numeric;                /* a bit for each column that is numbers. Without names, only the first start is kept */
} vx_walk;

static inline const uint8_t *vx_space(const uint8_t *at, const uint8_t *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
        at++;
    return at;
}

/* After any spaces and then `byte`; NULL if it isn't there. */
static inline const uint8_t *vx_take(const uint8_t *at, const uint8_t *end, char byte)
{
    at = vx_space(at, end);
    return at < end && *at == (uint8_t)byte ? at + 1 : NULL;
}

/* After `word`; NULL if it isn't there. */
static inline const uint8_t *vx_take_word(const uint8_t *at, const uint8_t *end, const char *word)
{
    size_t n = strlen(word);
    at = vx_space(at, end);
    return (size_t)(end - at) >= n && memcmp(at, word, n) == 0 ? at + n : NULL;
}

/* After {"data": [ with any spaces; NULL if that isn't how the body begins. */
static inline const uint8_t *vx_open(const uint8_t *at, const uint8_t *end)
{
    at = vx_take(at, end, '{');
    at = at ? vx_take_word(at, end, "\"data\"") : NULL;
    at = at ? vx_take(at, end, ':') : NULL;
    return at ? vx_take(at, end, '[') : NULL;
}

/* After the array's ']': is the rest a '}' and spaces, or first , "error" : null? */
static inline int vx_closes(const uint8_t *at, const uint8_t *end)
{
    const uint8_t *more = vx_take(at, end, ',');
    if (more && !((at = vx_take_word(more, end, "\"error\"")) && (at = vx_take(at, end, ':')) &&
                  (at = vx_take_word(at, end, "null"))))
        return 0;
    at = vx_take(at, end, '}');
    return at && vx_space(at, end) == end;
}

static inline int vx_has_key(const vx_key *key, const uint8_t *text, size_t left)
{
    return key->chars && left >= key->size + (key->mask != 0) && memcmp(text, key->text, key->size) == 0 &&
           (key->mask == 0 || (vx_value[text[key->size]] & key->mask) == key->bits);
}

/* Takes the text of one column, after its quote. Returns what follows its closing quote, or NULL with *outcome. */
static inline const uint8_t *vx_take_text(vx_walk *w, int column, const uint8_t *at, int *outcome)
{
    const vx_key *key = &w->keys[column];
    size_t left = (size_t)(w->end - at);
    if (!key->chars) {
        w->column = column;
        w->text = at;
        *outcome = VX_ASK;
        return NULL;
    }
    *outcome = VX_SURPRISE;
    if (left <= key->chars || at[key->chars] != '"' || !vx_has_key(key, at, left))
        return NULL;
    w->starts[w->count * (size_t)w->columns + (size_t)column] = (size_t)(at - w->begin);
    return at + key->chars + 1;
}

static inline int vx_begins_numbers(uint8_t c)
{
    return c == '[' || c == '-' || (c >= '0' && c <= '9') || c == 't' || c == 'f';
}

/* After a number or a word, as far as the bytes that end one tell. */
static inline const uint8_t *vx_skip_word(const uint8_t *at, const uint8_t *end)
{
    while (at < end && *at > ' ' && *at != ',' && *at != ']' && *at != '}' && *at != '[' && *at != '"')
        at++;
    return at;
}

/* After numbers, which stand at `at`; NULL if they don't end. */
static inline const uint8_t *vx_skip_numbers(const uint8_t *begin, const uint8_t *at, const uint8_t *end)
{
    return *at == '[' ? vx_active->skip(begin, at + 1, end) : vx_skip_word(at, end);
}

/* Takes the value of one column. Returns what follows it, or NULL with *outcome. */
static inline const uint8_t *vx_take_value(vx_walk *w, int column, const uint8_t *at, int *outcome)
{
    at = vx_space(at, w->end);
    *outcome = VX_SURPRISE;
    if (at == w->end)
        return NULL;
    if (*at == '"')
        return w->numeric >> column & 1 ? NULL : vx_take_text(w, column, at + 1, outcome);
    if (!vx_begins_numbers(*at) || w->keys[column].chars)
        return NULL;
    w->numeric |= 1u << column;
    w->starts[w->count * (size_t)w->columns + (size_t)column] = (size_t)(at - w->begin);
    return vx_skip_numbers(w->begin, at, w->end);
}

/* Which column's name, in quotes, is at *at? It must be one that *seen has not. */
static inline int vx_take_name(vx_walk *w, const uint8_t **at, uint32_t *seen)
{
    size_t left = (size_t)(w->end - *at);
    for (int i = 0; i < w->columns; i++)
        if (!(*seen & 1u << i) && left > w->name_sizes[i] && (*at)[w->name_sizes[i]] == '"' &&
            memcmp(*at, w->names[i], w->name_sizes[i]) == 0) {
            *seen |= 1u << i;
            *at += w->name_sizes[i] + 1;
            return i;
        }
    return -1;
}

/* One object of the named members; returns what follows its '}', or NULL with *outcome. */
static inline const uint8_t *vx_take_object(vx_walk *w, const uint8_t *at, int *outcome)
{
    uint32_t seen = 0;
    int column;
    *outcome = VX_SURPRISE;
    for (int i = 0; i < w->columns; i++) {
        if (!(at = vx_take(at, w->end, i ? ',' : '{')) || !(at = vx_take(at, w->end, '"')))
            return NULL;
        if ((column = vx_take_name(w, &at, &seen)) < 0)
            return NULL;
        if (!(at = vx_take(at, w->end, ':')) || !(at = vx_take_value(w, column, at, outcome)))
            return NULL;
        *outcome = VX_SURPRISE;
    }
    return vx_take(at, w->end, '}');
}

static inline const uint8_t *vx_take_item(vx_walk *w, const uint8_t *at, int *outcome)
{
    *outcome = VX_SURPRISE;
    if (w->names)
        return vx_take_object(w, at, outcome);
    at = vx_take(at, w->end, '"');
    return at ? vx_take_text(w, 0, at, outcome) : NULL;
}

/* The items that are lists of numbers, or each a number: counts them, and says whether the body ends behind them. */
static inline int vx_count_items(vx_walk *w, const uint8_t *at)
{
    int lists = *at == '[';
    w->numeric = 1;
    w->starts[0] = (size_t)(at - w->begin);
    for (;;) {
        if (!(at = vx_skip_numbers(w->begin, at, w->end)))
            return VX_SURPRISE;
        w->count++;
        at = vx_space(at, w->end);
        if (at == w->end || *at != ',')
            break;
        at = vx_space(at + 1, w->end);
        if (at == w->end || (*at == '[') != lists || !vx_begins_numbers(*at))
            return VX_SURPRISE;
    }
    return at < w->end && *at == ']' && vx_closes(at + 1, w->end) ? VX_DONE : VX_SURPRISE;
}

/* Walks from w->at, which moves past each item that was taken. */
static inline int vx_walk_on(vx_walk *w)
{
    int outcome = VX_SURPRISE;
    const uint8_t *at = w->at, *next;
    if (!w->opened) {
        if (!(at = vx_open(at, w->end)))
            return VX_SURPRISE;
        w->opened = 1;
        if ((next = vx_take(at, w->end, ']')))
            return vx_closes(next, w->end) ? VX_DONE : VX_SURPRISE;
        w->at = at = vx_space(at, w->end);
        if (!w->names && at < w->end && vx_begins_numbers(*at))
            return vx_count_items(w, at);
    }
    for (;;) {
        if (w->count == w->room) {
            w->column = -1;
            return VX_ASK;
        }
        if (!(at = vx_take_item(w, w->at, &outcome)))
            return outcome;
        w->count++;
        w->at = at;
        if ((next = vx_take(at, w->end, ']')))
            return vx_closes(next, w->end) ? VX_DONE : VX_SURPRISE;
        if (!(w->at = vx_take(at, w->end, ',')))
            return VX_SURPRISE;
    }
}

/* A list of plain ASCII strings: at *at, after '[' or a comma, stands a string of *size bytes, and a comma or ']' follows
 * it. Returns the string and moves *at past comma or bracket; NULL if it isn't so. */
static inline const uint8_t *vx_take_string(const vx_kernel *kernel, const uint8_t **at, const uint8_t *end, size_t *size,
                                            int *last)
{
    const uint8_t *text = vx_take(*at, end, '"');
    if (!text)
        return NULL;
    *size = kernel->plain(text, (size_t)(end - text));
    if (text + *size == end || text[*size] != '"')
        return NULL;
    const uint8_t *after = vx_space(text + *size + 1, end);
    if (after == end || (*after != ',' && *after != ']'))
        return NULL;
    *last = *after == ']';
    *at = after + 1;
    return text;
}

#endif
