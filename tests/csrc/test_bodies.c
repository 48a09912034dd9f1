/* Whole bodies: the walk and the kernels, as _codec.pyx calls them, against a plain recursive reader of JSON that looks at every
 * byte and asks strtod. Bodies are made by a grammar: of every dtype, nested, of one array an item or of named ones, numbers
 * and base64, whitespace anywhere; with slips: ragged, text, null, booleans, members that are missing, twice or others; then
 * edited, and cut at every byte. Each ends at a page that faults, and so do the rows. By every kernel that this CPU allows:
 *   what the reader takes whole is taken, with the same bytes; nothing else is;
 *   of what is JSON, the same item of a column is the first that is wrong; and the shape of the first is the same.
 * test_bodies [COUNT [SECONDS [SEED]]] ends at so many bodies or after so long. Prints what it ran; exits 1 at a difference.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "half.h"
#include "item.h"
#include "numbers.h"

enum { ROOM = 8192, NODES = ROOM + 2, COLUMNS = 3, MOST_ITEMS = 512, MOST_DIMS = 8, ROW = 1024 };

static uint64_t state = 88172645463325252u;
static uint8_t *body_fence, *rows_fence, body[ROOM];
static unsigned long long bodies, readings, taken, wrong_items, no_json;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

/* ---- what a body is read as */

static const uint8_t *const names[] = {(const uint8_t *)"a", (const uint8_t *)"bc", (const uint8_t *)"data"};
static const size_t name_sizes[] = {1, 2, 4};
static const uint8_t header[] = {0x93, 'N', 'U', 'M', 'P'};
static vx_form form;
static intptr_t dims[MOST_DIMS];
static int columns, named;
static size_t row_size, header_size;
static vx_key key;
static uint8_t key_text[16];

static void draw_form(void)
{
    static const uint64_t most[] = {UINT64_MAX, UINT64_MAX, (1ull << 53) - 1, (1 << 24) - 1, (1 << 11) - 1, 255};
    form.kind = (int)draw(draw(3) ? VX_KINDS : 1) + (draw(2) ? 0 : VX_F32);
    form.kind = form.kind < VX_KINDS ? form.kind : VX_F64;
    form.ndim = (int)draw(draw(4) ? 3 : 5);
    form.dims = dims;
    form.most = most[draw(6)];
    form.odd = draw(3) ? form.most : 0;
    row_size = vx_widths[form.kind];
    for (int i = 0; i < form.ndim; i++)
        row_size *= (size_t)(dims[i] = (intptr_t)(row_size > ROW / 5 ? draw(2) : draw(6) ? 1 + draw(3) : draw(5)));
    named = draw(3) == 0;
    columns = named ? 1 + (int)draw(COLUMNS) : 1;
    header_size = 3 + draw(3);
    size_t more = header_size % 3;
    vx_kernels[0].encode(key_text, header, header_size);
    key = (vx_key){key_text, header_size / 3 * 4 + more, VX_CHARS(header_size + row_size), more ? more == 1 ? 0xb0 : 0xbc : 0, 0};
    if (more)
        key.bits = more == 1 ? (header[header_size - 1] & 3) << 4 : (header[header_size - 1] & 15) << 2;
}

/* ---- bodies */

static uint8_t *to;
static int spaces, slips;

static void put(const char *text)
{
    size_t n = strlen(text);
    if (to + n < body + ROOM - 64)
        memcpy(to, text, n), to += n;
}

static void space(void)
{
    if (!spaces || draw((uint64_t)(spaces > 1 ? 2 : 9)))
        return;
    for (int n = 1 + (int)draw(spaces > 1 ? 4 : 1); n--;)
        put((const char *[]){" ", "\n", "\r", "\t", " "}[draw(5)]);
}

static int slip(void)
{
    return slips && draw(12) == 0;
}

static void token(const char *text)
{
    space();
    put(text);
    space();
}

static void digits(size_t n)
{
    char text[64];
    n = n < 60 ? n : 60;
    for (size_t i = 0; i < n; i++)
        text[i] = (char)('0' + draw(10));
    text[n] = 0;
    put(text);
}

static void integer(void)
{
    static const char *const edges[] = {
        "0", "-0", "1", "-1", "127", "128", "-128", "-129", "255", "256", "32767", "32768", "-32768", "65535", "65536",
        "2147483647", "2147483648", "-2147483648", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808",
        "-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616", "16777216",
        "16777217", "9007199254740992", "9007199254740993", "9007199254740994", "2047", "2048", "2049", "4096", "01", "-",
        "65504", "65520", "10000000000000000000", "99999999999999999999", "100000000", "12345678", "123456789012345678"};
    if (draw(6) == 0) {
        put(edges[draw(sizeof edges / sizeof *edges)]);
        return;
    }
    if (draw(4) == 0 && (form.kind < VX_U8 || form.kind >= VX_F16))
        put("-");
    put((const char *[]){"1", "2", "3", "7", "9"}[draw(5)]);
    digits(draw(5) ? draw(form.kind == VX_I8 || form.kind == VX_U8 ? 2 : 4) : draw(20));
}

static void number(void)
{
    static const char *const edges[] = {
        "1e23", "8.5e22", "5e-324", "2.4703282292062327e-324", "2.4703282292062328e-324", "2.2250738585072014e-308",
        "1.7976931348623157e308", "1.7976931348623159e308", "1e309", "3.4028234663852886e38", "3.4028235677973366e38",
        "1.401298464324817e-45", "7.006492321624085e-46", "65519.99", "65520.0", "65504.0", "5.9604644775390625e-08",
        "2.98023223876953125e-08", "9007199254740992.99999999999999999999", "9007199254740993.0", "0.1", "-0.0", "0e0", "1E+5",
        "1e-400", "1.", ".5", "-.5", "1e", "1e+", "00.5", "1.5e3.5", "NaN", "-Infinity", "16777217.0000000001", "0e999999999999"};
    if (form.kind == VX_BOOL) {
        put(draw(2) ? "true" : "false");
    } else if (form.kind < VX_F16 || draw(3) == 0) {
        integer();
    } else if (draw(8) == 0) {
        put(edges[draw(sizeof edges / sizeof *edges)]);
    } else {
        put(draw(3) ? "" : "-");
        put((const char *[]){"0", "1", "5", "23", "980", "7654321"}[draw(6)]);
        put(".");
        digits(1 + draw(draw(3) ? 8 : 50));
        if (draw(5) == 0) {
            char power[16];
            sprintf(power, "%c%s%d", "eE"[draw(2)], (const char *[]){"", "+", "-"}[draw(3)], (int)draw(draw(3) ? 12 : 330));
            put(power);
        }
    }
}

static void base64(void)
{
    uint8_t raw[ROW + 8], text[VX_CHARS(ROW + 8) + 1];
    memcpy(raw, header, header_size);
    for (size_t i = 0; i < row_size; i++)
        raw[header_size + i] = (uint8_t)draw(form.kind == VX_BOOL ? 2 : 256);
    if (slip())
        raw[draw(header_size)] ^= 1;
    size_t n = header_size + row_size + (slip() ? draw(3) : 0);
    vx_kernels[0].encode(text, raw, n);
    n = VX_CHARS(n);
    if (slip())
        text[draw(n)] = "\"\\ =/A\x7f\xc3\n"[draw(9)];
    text[n] = 0;
    put("\"");
    put((char *)text);
    put("\"");
}

static void odd_value(void)
{
    put((const char *[]){"null", "true", "false", "\"\"", "\"1\"", "[]", "{}", "[1]", "1", "0.5", "nul", "\"\\u0031\"", "[[]]",
                         "-1", "{\"a\":1}", "1 2", "\"k\\u00F6\""}[draw(17)]);
}

static void lists(int depth)
{
    space();
    if (slip()) {
        odd_value();
    } else if (depth == form.ndim) {
        number();
    } else {
        put("[");
        for (intptr_t i = 0, n = dims[depth] + (slip() ? (intptr_t)draw(3) - 1 : 0); i < n; i++) {
            if (i)
                put(",");
            lists(depth + 1);
        }
        space();
        put("]");
    }
    space();
}

static void item(uint32_t texts)
{
    int order[COLUMNS + 1] = {0, 1, 2, 0}, n = columns;
    if (!named) {
        texts & 1 ? (space(), base64(), space()) : lists(0);
        return;
    }
    int swap = (int)draw((uint64_t)columns);
    order[swap] = 0;
    order[0] = swap;
    if (slip())
        n += (int)draw(3) - 1;
    token("{");
    for (int i = 0; i < n; i++) {
        char quoted[8];
        if (i)
            token(",");
        sprintf(quoted, "\"%s\"", slip() ? draw(2) ? "x" : "a" : (const char *)names[order[i]]);
        token(quoted);
        token(":");
        (texts >> order[i] & 1) != (uint32_t)slip() ? (space(), base64(), space()) : lists(0);
    }
    token("}");
}

static void member(const char *name, const char *value)
{
    token(name);
    token(":");
    token(value);
}

static size_t make(void)
{
    to = body;
    spaces = (int)draw(3);
    slips = draw(3) == 0;
    uint32_t texts = draw(4) ? 0 : (uint32_t)draw(8);
    token("{");
    if (slip())
        member(draw(2) ? "\"data\"" : "\"id\"", "[1]"), token(",");
    token(slip() ? "\"dat\\u0061\"" : "\"data\"");
    token(":");
    token("[");
    for (int i = 0, n = (int)draw(draw(20) ? 4 : 20); i < n; i++) {
        if (i)
            token(",");
        if (slip())
            odd_value();
        else
            item(slip() ? ~texts : texts);
    }
    token("]");
    if (draw(4) == 0)
        token(","), member(slip() ? "\"data\"" : "\"error\"", slip() ? "[1]" : "null");
    token("}");
    if (slip())
        put((const char *[]){"x", "{}", ",", "\xef\xbb\xbf", "]"}[draw(5)]);
    return (size_t)(to - body);
}

static size_t edit(size_t n)
{
    static const char *const pieces[] = {"[", "]", ",", "\"", "{", "}", ":", "0", "-", ".", "e", " ", "\n", "null", "true", "\"data\"",
                                         "\\", "[]", "1e5", "00", "\t", "\xff", "\x0b", "],[", "0."};
    for (int i = 1 + (int)draw(3); i-- && n > 1;) {
        size_t at = draw(n), cut = draw(3) ? 1 : draw(n - at) % 9;
        const char *piece = draw(4) ? pieces[draw(sizeof pieces / sizeof *pieces)] : "";
        size_t more = strlen(piece);
        if (n + more >= ROOM || at + cut > n)
            continue;
        memmove(body + at + more, body + at + cut, n - at - cut);
        memcpy(body + at, piece, more);
        n += more - cut;
    }
    return n;
}

/* ---- the plain reader: a tree of all values, or no JSON */

typedef struct {
    int type; /* one of { [ " 0 t f n */
    const uint8_t *at, *end;
    int first, next, count;
} node; /* of an object: its names, each of which has its value for its first */

static node nodes[NODES];
static int used, is_strange; /* whether there are escapes, or bytes above 0x7f: whether these are good isn't known here */
static const uint8_t *here, *stop;

static int fresh(int type)
{
    nodes[used] = (node){type, here, NULL, -1, -1, 0};
    return used++; /* each has a byte of its own */
}

static void pass(void)
{
    while (here < stop && (*here == ' ' || *here == '\n' || *here == '\r' || *here == '\t'))
        here++;
}

static int next_is(char c)
{
    pass();
    if (here == stop || *here != (uint8_t)c)
        return 0;
    here++;
    return 1;
}

static int read_value(void);

static int read_string(void)
{
    int found = fresh('"');
    for (here++; here < stop && *here != '"'; here++) {
        if (*here < ' ')
            return -1;
        if (*here == '\\')
            here++;
        is_strange |= here < stop && (here[-1] == '\\' || *here > 0x7f);
    }
    if (here >= stop)
        return -1;
    here++;
    return found;
}

static int read_digits(void)
{
    const uint8_t *first = here;
    while (here < stop && *here >= '0' && *here <= '9')
        here++;
    return here > first;
}

static int read_number(void)
{
    int found = fresh('0');
    here += *here == '-';
    if (here < stop && *here == '0')
        here++;
    else if (!read_digits())
        return -1;
    if (here < stop && *here == '.' && (here++, !read_digits()))
        return -1;
    if (here < stop && (*here == 'e' || *here == 'E')) {
        here++;
        here += here < stop && (*here == '+' || *here == '-');
        if (!read_digits())
            return -1;
    }
    return found;
}

static int read_word(const char *word)
{
    int found = fresh(*word);
    size_t n = strlen(word);
    if ((size_t)(stop - here) < n || memcmp(here, word, n))
        return -1;
    here += n;
    return found;
}

static int read_many(int type, char close)
{
    int found = fresh(type), last = -1;
    here++;
    if (found < 0 || next_is(close))
        return found;
    do {
        pass();
        int one = type == '[' ? read_value() : here < stop && *here == '"' ? read_string() : -1;
        if (one < 0)
            return -1;
        if (type == '{') {
            nodes[one].end = here;
            if (!next_is(':') || (nodes[one].first = read_value()) < 0)
                return -1;
        }
        *(last < 0 ? &nodes[found].first : &nodes[last].next) = one;
        last = one;
        nodes[found].count++;
    } while (next_is(','));
    return next_is(close) ? found : -1;
}

static int read_value(void)
{
    pass();
    if (here == stop)
        return -1;
    int c = *here, found = c == '{'   ? read_many('{', '}')
                           : c == '[' ? read_many('[', ']')
                           : c == '"' ? read_string()
                           : c == 't' ? read_word("true")
                           : c == 'f' ? read_word("false")
                           : c == 'n' ? read_word("null")
                                      : (c == '-' || (c >= '0' && c <= '9') ? read_number() : -1);
    if (found >= 0 && c != '{' && c != '[')
        nodes[found].end = here;
    return found;
}

static int is_string(int i, const void *text, size_t n)
{
    return (size_t)(nodes[i].end - nodes[i].at) == n + 2 && memcmp(nodes[i].at + 1, text, n) == 0;
}

/* ---- what a value is in a row, by its definition */

static int float_into(double d, uint8_t **row)
{
    float f = (float)d;
    uint16_t h;
    if (!isfinite(d) || (form.kind == VX_F32 && !isfinite(f)))
        return 0;
    if (form.kind == VX_F16 && (h = half_of(d)) == 0xffff)
        return 0;
    memcpy(*row, form.kind == VX_F64 ? (void *)&d : form.kind == VX_F32 ? (void *)&f : (void *)&h, vx_widths[form.kind]);
    *row += vx_widths[form.kind];
    return 1;
}

static int is_exact(uint64_t size)
{
    uint64_t odd = size;
    while (odd && odd % 2 == 0)
        odd /= 2;
    return size <= form.most || odd <= form.odd;
}

static int integer_into(const char *text, uint8_t **row)
{
    int negative = *text == '-', width = vx_widths[form.kind];
    const char *edge = negative ? "9223372036854775808" : "18446744073709551615";
    size_t n = strlen(text + negative), most = strlen(edge);
    if (n > most || (n == most && strcmp(text + negative, edge) > 0))
        return 0;
    uint64_t size = strtoull(text + negative, NULL, 10), value = negative ? 0 - size : size;
    if (form.kind >= VX_F16)
        return is_exact(size) && float_into(size ? strtod(text, NULL) : 0.0, row);
    long double exact = negative ? -(long double)size : (long double)size;
    int is_signed = form.kind < VX_U8;
    long double top = ldexpl(1, 8 * width - is_signed), bottom = is_signed ? -top : 0;
    if (exact < bottom || exact >= top)
        return 0;
    for (int i = 0; i < width; i++)
        *(*row)++ = (uint8_t)(value >> 8 * i);
    return 1;
}

static int number_into(int i, uint8_t **row)
{
    char text[128];
    size_t n = (size_t)(nodes[i].end - nodes[i].at);
    if (form.kind == VX_BOOL)
        return (nodes[i].type == 't' || nodes[i].type == 'f') && ((*(*row)++ = nodes[i].type == 't'), 1);
    if (nodes[i].type != '0' || n >= sizeof text)
        return 0;
    memcpy(text, nodes[i].at, n);
    text[n] = 0;
    if (!strpbrk(text, ".eE"))
        return integer_into(text, row);
    return form.kind >= VX_F16 && float_into(strtod(text, NULL), row);
}

static int lists_into(int i, int depth, uint8_t **row)
{
    if (depth == form.ndim)
        return number_into(i, row);
    if (nodes[i].type != '[' || nodes[i].count != dims[depth])
        return 0;
    for (int one = nodes[i].first; one >= 0; one = nodes[one].next)
        if (!lists_into(one, depth + 1, row))
            return 0;
    return 1;
}

static int text_into(int i, uint8_t *row)
{
    uint8_t raw[ROW + 8], again[VX_CHARS(ROW + 8)];
    size_t n = (size_t)(nodes[i].end - nodes[i].at) - 2, size = header_size + row_size;
    if (n != VX_CHARS(size) || vx_decode_scalar(raw, nodes[i].at + 1, size) != n || memcmp(raw, header, header_size))
        return 0;
    vx_kernels[0].encode(again, raw, size);
    for (size_t k = 0; k < row_size; k++)
        if (form.kind == VX_BOOL && raw[header_size + k] > 1)
            return 0;
    memcpy(row, raw + header_size, row_size);
    return memcmp(again, nodes[i].at + 1, n) == 0;
}

/* ---- the two readings, and where they differ */

static uint8_t expected[COLUMNS][MOST_ITEMS * 64];
static int count, is_plain, first_bad[COLUMNS], first_item;

/* The value of one column; -1 where the item is not an object of these members. */
static int member_of(int i, int column)
{
    int found = -1;
    if (!named)
        return i;
    if (nodes[i].type != '{' || nodes[i].count != columns)
        return -1;
    for (int one = nodes[i].first; one >= 0; one = nodes[one].next)
        if (is_string(one, names[column], name_sizes[column]))
            found = found < 0 ? nodes[one].first : -1;
    return found;
}

static void read_column(int data, int column)
{
    int at = 0, are_texts = -1;
    first_bad[column] = count;
    for (int i = nodes[data].first; i >= 0; i = nodes[i].next, at++) {
        int value = member_of(i, column), is_text = value >= 0 && nodes[value].type == '"';
        uint8_t *row = expected[column] + (size_t)at * row_size;
        is_plain &= value >= 0 && (are_texts < 0 || are_texts == is_text);
        are_texts = is_text;
        if (value >= 0 && (is_text ? text_into(value, row) : lists_into(value, 0, &row)))
            continue;
        first_bad[column] = at;
        return;
    }
}

/* Whether the body is JSON; is_plain, whether it is of the form that the walk takes. */
static int read_plainly(const uint8_t *at, const uint8_t *end)
{
    here = at;
    stop = end;
    used = is_strange = is_plain = 0;
    count = 0;
    int root = read_value();
    pass();
    if (root < 0 || here != stop)
        return 0;
    int data = nodes[root].first, error;
    if (nodes[root].type != '{' || data < 0 || !is_string(data, "data", 4) || nodes[nodes[data].first].type != '[')
        return 1;
    error = nodes[data].next;
    if (error >= 0 && (!is_string(error, "error", 5) || nodes[nodes[error].first].type != 'n' || nodes[error].next >= 0))
        return 1;
    data = nodes[data].first;
    count = nodes[data].count;
    first_item = nodes[data].first;
    is_plain = count < MOST_ITEMS && (size_t)count * row_size <= sizeof expected[0];
    for (int i = 0; is_plain && i < columns; i++)
        read_column(data, i);
    return 1;
}

static void fail(const char *what, const vx_kernel *kernel, const uint8_t *at, size_t n)
{
    printf("%s by %s: kind %d, %d dimensions:", what, kernel->name, form.kind, form.ndim);
    for (int i = 0; i < form.ndim; i++)
        printf(" %d", (int)dims[i]);
    printf(", %d columns (%d), header %d, most %llx %llx, %d items (first bad %d %d %d), after %llu bodies\n%.*s\n", columns, named,
           (int)header_size, (unsigned long long)form.most, (unsigned long long)form.odd, count, first_bad[0], first_bad[1],
           first_bad[2], bodies, (int)n, (const char *)at);
    exit(1);
}

/* How many items of a column are good, in parts as they go into buffers. */
static size_t take_column(vx_walk *w, const vx_kernel *kernel, int column, uint8_t *rows)
{
    const uint8_t *next_at = w->begin + w->starts[0];
    size_t next = 0, good = 0, step = (size_t)w->columns;
    while (good < w->count) {
        size_t start = good, n = 1 + draw(w->count - start), found;
        uint8_t *part = rows + start * row_size;
        const size_t *starts = w->starts + start * step + (size_t)column;
        if (!(w->numeric >> column & 1))
            found = vx_decode_rows(kernel, part, w->begin, starts, step, n, header_size, row_size, form.kind ? VX_ANY : 1);
        else if (named)
            found = vx_take_members(&form, w->begin, w->end, starts, step, part, row_size, n);
        else
            found = vx_take_rows(&form, w->begin, &next_at, w->end, part, start - next, n, start + n == w->count);
        next = found == n ? start + n : next;
        good += found;
        if (found < n)
            break;
    }
    return good;
}

static void check_shape(vx_walk *w, const vx_kernel *kernel, size_t n)
{
    intptr_t found[MOST_DIMS];
    int ndim = vx_shape_of(w->begin, w->begin + w->starts[0], w->end, MOST_DIMS, found), depth = 0, at = first_item;
    for (; at >= 0 && nodes[at].type == '['; at = nodes[at].first, depth++)
        if (depth < MOST_DIMS && ndim > depth && found[depth] != nodes[at].count)
            fail("another shape", kernel, w->begin, n);
    if (ndim != (depth > MOST_DIMS ? -1 : depth))
        fail("another number of dimensions", kernel, w->begin, n);
}

static void read_fast(const vx_kernel *kernel, const uint8_t *at, size_t n, int is_json)
{
    static size_t starts[ROOM];
    vx_walk w = {.begin = at, .at = at, .end = at + n, .columns = columns, .starts = starts, .room = 1 + draw(3)};
    int outcome, asked = 0, whole = is_json && is_plain && !is_strange, all = 1;
    w.names = named ? names : NULL;
    w.name_sizes = name_sizes;
    vx_active = kernel;
    while ((outcome = vx_walk_on(&w)) == VX_ASK && asked++ < 8) {
        if (w.column < 0)
            w.room = ROOM / COLUMNS;
        else if (vx_has_key(&key, w.text, (size_t)(w.end - w.text)))
            w.keys[w.column] = key;
        else
            break;
    }
    if (outcome == VX_ASK && w.column < 0)
        fail("asked again", kernel, at, n);
    int wanted = whole, are_numbers = w.numeric == (1u << columns) - 1;
    size_t first_good = ROOM, first_plain = ROOM; /* of all columns: a quote in a text may move all items behind it */
    for (int i = 0; i < columns; i++)
        wanted &= whole && first_bad[i] == count;
    if (outcome == VX_DONE && whole && are_numbers && (int)w.count != count)
        fail("another number of items", kernel, at, n);
    for (int i = 0; outcome == VX_DONE && i < columns && w.count; i++) {
        uint8_t *rows = rows_fence - w.count * row_size;
        if (w.count * row_size > ROOM * 8)
            return;
        size_t good = take_column(&w, kernel, i, rows);
        size_t plain = (size_t)first_bad[i];
        first_good = good < first_good ? good : first_good;
        first_plain = plain < first_plain ? plain : first_plain;
        if (whole && are_numbers && good != plain)
            fail("another item is wrong", kernel, at, n);
        if (whole && memcmp(rows, expected[i], (good < plain ? good : plain) * row_size))
            fail("other values", kernel, at, n);
        all &= good == w.count;
    }
    if (outcome == VX_DONE && whole && first_good != first_plain)
        fail("another item is the first that is wrong", kernel, at, n);
    if ((outcome == VX_DONE && all) != wanted)
        fail(wanted ? "refused" : "taken", kernel, at, n);
    if (outcome == VX_DONE && is_json && is_plain && !named && (w.numeric & 1))
        check_shape(&w, kernel, n);
    taken += wanted;
    wrong_items += outcome == VX_DONE && whole && !wanted;
    readings++;
}

static void check(const uint8_t *text, size_t n)
{
    uint8_t *at = body_fence - n;
    memmove(at, text, n);
    int is_json = read_plainly(at, body_fence);
    bodies++;
    no_json += !is_json;
    for (size_t k = 0; k < VX_KERNELS; k++)
        if (vx_allowed(&vx_kernels[k]))
            read_fast(&vx_kernels[k], at, n, is_json);
}

static uint8_t *fence(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (size + page - 1) / page * page;
    uint8_t *all = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + room, page, PROT_NONE))
        exit(2);
    return all + room;
}

int main(int argc, char **argv)
{
    unsigned long long most = argc > 1 ? strtoull(argv[1], NULL, 10) : 300000;
    time_t until = argc > 2 && atoi(argv[2]) ? time(NULL) + atoi(argv[2]) : 0;
    state ^= (argc > 3 ? strtoull(argv[3], NULL, 10) : 0) * 0x9e3779b97f4a7c15u;
    body_fence = fence(ROOM);
    rows_fence = fence(ROOM * 8);
    vx_choose(NULL);
    while (bodies < most && !(until && time(NULL) >= until)) {
        draw_form();
        size_t n = make();
        check(body, n);
        for (int i = (int)draw(4); i--;)
            check(body, edit(n));
        if (draw(64) == 0)
            for (n = make(); n--;)
                check(body, n);
    }
    printf("bodies: %llu (%llu no JSON), %llu readings, %llu taken whole, %llu with a wrong item; no difference\n", bodies,
           no_json, readings, taken, wrong_items);
    return 0;
}
