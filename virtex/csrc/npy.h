/* The header of a .npy document, by a strict grammar (numpy.lib.format, "Format Version 1.0" to 3.0): a subset of what
 * NumPy reads, with the same meaning. NumPy itself evaluates the header as Python, which costs a hostile client little
 * and the server up to 50 ms; this is O(n), does not recurse and allocates nothing.
 *
 *   document = magic major minor length header data    length: 2 bytes, little-endian; 4 from version 2.0
 *   header   = { 'descr': descr, 'fortran_order': True|False, 'shape': shape, } in any order, each once
 *   descr    = '<f4' and the like, or a dtype name ('bfloat16')
 *   shape    = () or (3,) or (3, 224, 224): digits only, no leading zero
 *
 * Structured and void dtypes are refused: NumPy adds the sizes of their fields in an int, which overflows, and then reads
 * and writes beside the array. So are datetimes of several units (25 seconds), on which JSON writers abort.
 */
#ifndef VX_NPY_H
#define VX_NPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    VX_NPY_MAX_HEADER = 4096, /* security limit: bytes before the data; np.save writes 128 */
    VX_NPY_MAX_DIMS = 32,     /* NumPy 1's limit; nobody's model has more */
    /* Security limit: lists that tolist() makes of an array. Rows of nothing, (1000000, 0), and dimensions of one,
     * (1000000, 1, 1, ...), are many lists of few bytes: no byte of a body bounds what iterating over them takes. */
    VX_NPY_LISTS = 128,
    VX_NPY_LISTS_EACH = 8,    /* for each element, as many more */
};

typedef struct {
    uint32_t size;              /* bytes before the data */
    uint8_t major;              /* version: 1, 2 (text is Latin-1) or 3 (UTF-8) */
    uint8_t fortran;            /* data in column-major order */
    uint8_t named;              /* descr is a dtype's name */
    uint32_t descr, descr_end;  /* where it lies, without quotes */
    int64_t itemsize;           /* 0: not to be known here (a name) */
    int ndim;
    int64_t shape[VX_NPY_MAX_DIMS];
    int64_t count;              /* elements: the product of shape */
    int64_t reach;              /* the same with every 0 taken for 1: what NumPy's strides must be able to span */
} vx_npy;

/* A cursor never passes `end`; the first thing it did not find stays in `expected`, and `at` stays there. */
typedef struct {
    const uint8_t *begin, *at, *end;
    const char *expected;
} vx_cursor;

static inline int vx_refuse(vx_cursor *c, const char *expected)
{
    if (!c->expected)
        c->expected = expected;
    return 0;
}

static inline void vx_spaces(vx_cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r'))
        c->at++;
}

/* Takes `byte` after any spaces; says whether it was there. */
static inline int vx_next_is(vx_cursor *c, char byte)
{
    vx_spaces(c);
    if (c->at == c->end || *c->at != (uint8_t)byte)
        return 0;
    c->at++;
    return 1;
}

static inline int vx_word(vx_cursor *c, const char *word)
{
    size_t n = strlen(word);
    vx_spaces(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n) != 0)
        return 0;
    c->at += n;
    return 1;
}

/* A string without escapes: NumPy needs none for dtypes. */
static inline int vx_string(vx_cursor *c, vx_cursor *inside)
{
    vx_spaces(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"'))
        return vx_refuse(c, "a quoted string");
    uint8_t quote = *c->at++;
    const uint8_t *begin = c->at;
    for (; c->at < c->end && *c->at != quote; c->at++)
        if (*c->at < ' ' || *c->at == '\\' || *c->at == 127)
            return vx_refuse(c, "a string without escapes or control characters");
    if (c->at == c->end)
        return vx_refuse(c, "the end of the string");
    *inside = (vx_cursor){c->begin, begin, c->at++, NULL};
    return 1;
}

/* A number up to `most`, digits only. */
static inline int vx_number(vx_cursor *c, int64_t most, int64_t *value)
{
    const uint8_t *begin = c->at;
    for (*value = 0; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        int digit = *c->at - '0';
        if (*value > (most - digit) / 10)
            return vx_refuse(c, "a smaller number");
        *value = *value * 10 + digit;
    }
    if (c->at == begin)
        return vx_refuse(c, "a number");
    if (*begin == '0' && c->at > begin + 1) {
        c->at = begin;
        return vx_refuse(c, "a number without leading zeros");
    }
    return 1;
}

/* The span of one dimension more; false if the product of all, zeros taken for ones, leaves 63 bits. */
static inline int vx_times(int64_t *product, int64_t factor)
{
    return factor == 0 || !__builtin_mul_overflow(*product, factor, product);
}

/* Whether tolist() makes no more lists of such an array than VX_NPY_LISTS and VX_NPY_LISTS_EACH allow. */
static inline int vx_lists_are_few(const int64_t *shape, int ndim, int64_t count)
{
    int64_t lists = 0, level = 1, most;
    if (__builtin_mul_overflow(count, (int64_t)VX_NPY_LISTS_EACH, &most) || most > INT64_MAX - VX_NPY_LISTS)
        return 1; /* no document has so many bytes */
    for (int i = 0; i < ndim && level; level *= shape[i++])
        if (__builtin_add_overflow(lists, level, &lists) || lists > most + VX_NPY_LISTS)
            return 0;
    return 1;
}

static inline int vx_shape(vx_cursor *c, vx_npy *npy)
{
    if (!vx_next_is(c, '('))
        return vx_refuse(c, "a tuple of dimensions");
    const uint8_t *open = c->at - 1;
    npy->ndim = 0;
    npy->count = npy->reach = 1;
    while (!vx_next_is(c, ')')) {
        int64_t n;
        const uint8_t *begin = c->at;
        if (npy->ndim == VX_NPY_MAX_DIMS)
            return vx_refuse(c, "at most 32 dimensions");
        if (!vx_number(c, INT64_MAX, &n))
            return 0;
        npy->shape[npy->ndim++] = n;
        if (!vx_times(&npy->reach, n)) {
            c->at = begin;
            return vx_refuse(c, "a shape of less than 2**63 elements");
        }
        npy->count = n ? npy->count * n : 0;
        if (!vx_next_is(c, ',')) {
            if (npy->ndim == 1)
                return vx_refuse(c, "a comma (a tuple of one)");
            if (!vx_next_is(c, ')'))
                return vx_refuse(c, "a comma or the end of the shape");
            break;
        }
    }
    if (vx_lists_are_few(npy->shape, npy->ndim, npy->count))
        return 1;
    c->at = open;
    return vx_refuse(c, "a shape of at most 128 nested rows, and 8 more for each element");
}

/* [s], [us] and so on, the units of NumPy's datetimes: one of a unit, and not none. */
static inline int vx_unit(vx_cursor c)
{
    static const char *const units[] = {"[Y]", "[M]", "[W]", "[D]", "[h]", "[m]", "[s]", "[ms]", "[us]", "[ns]", "[ps]",
                                        "[fs]", "[as]"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if ((size_t)(c.end - c.at) == strlen(units[i]) && memcmp(c.at, units[i], strlen(units[i])) == 0)
            return 1;
    return 0;
}

static inline int vx_size_is_known(uint8_t kind, int64_t size)
{
    switch (kind) {
    case 'b': return size == 1;
    case 'i': case 'u': return size == 1 || size == 2 || size == 4 || size == 8;
    case 'f': return size == 2 || size == 4 || size == 8 || size == 12 || size == 16;
    case 'c': return size == 8 || size == 16 || size == 24 || size == 32;
    case 'm': case 'M': return size == 8;
    case 'S': case 'U': return size > 0;
    default: return 0;
    }
}

/* '<f4': byte order, kind, size. Order '|' is for what has none. Native order ('=' or nothing) means another thing on
 * another machine, so it is refused. */
static inline int64_t vx_simple_dtype(vx_cursor c)
{
    int64_t size;
    if (c.end - c.at < 3 || !strchr("<>|", *c.at))
        return 0;
    uint8_t order = *c.at++, kind = *c.at++;
    if (kind == 0 || !strchr("biufcmMSU", kind) || !vx_number(&c, INT32_MAX / 4, &size) || !vx_size_is_known(kind, size))
        return 0;
    if (order == '|' && kind != 'S' && (size > 1 || kind == 'U'))
        return 0;
    if (kind == 'm' || kind == 'M' ? !vx_unit(c) : c.at != c.end)
        return 0;
    return kind == 'U' ? 4 * size : size;
}

static inline int vx_is_name(vx_cursor c)
{
    size_t n = (size_t)(c.end - c.at);
    if (n < 4 || n > 32 || *c.at < 'a' || *c.at > 'z')
        return 0;
    for (; c.at < c.end; c.at++)
        if (!((*c.at >= 'a' && *c.at <= 'z') || (*c.at >= '0' && *c.at <= '9') || *c.at == '_'))
            return 0;
    return 1;
}

/* What to expect in place of a string that is no dtype. */
static inline const char *vx_expected_dtype(vx_cursor c)
{
    if (c.at < c.end && memchr(c.at, 'O', (size_t)(c.end - c.at)))
        return "a dtype without Python objects (they would have to be unpickled)";
    if (c.at < c.end && strchr("<>|=", *c.at))
        c.at++;
    if (c.at < c.end && *c.at == 'V')
        return "a plain dtype, not a void one (an array for each part can be sent, as named inputs)";
    if (c.end - c.at > 1 && (*c.at == 'M' || *c.at == 'm') && c.at[1] == '8')
        return "a datetime or timedelta of one unit, such as '<M8[s]'";
    return "a dtype such as '<f4' or '|u1', with byte order and size";
}

static inline int vx_descr(vx_cursor *c, vx_npy *npy)
{
    vx_cursor inside;
    vx_spaces(c);
    const uint8_t *begin = c->at;
    if (c->at < c->end && (*c->at == '[' || *c->at == '('))
        return vx_refuse(c, "a plain dtype, not a structured one (an array for each field can be sent, as named inputs)");
    if (!vx_string(c, &inside))
        return 0;
    npy->itemsize = vx_simple_dtype(inside);
    npy->named = npy->itemsize == 0 && vx_is_name(inside);
    npy->descr = (uint32_t)(inside.at - c->begin);
    npy->descr_end = (uint32_t)(inside.end - c->begin);
    if (npy->itemsize || npy->named)
        return 1;
    c->at = begin;
    return vx_refuse(c, vx_expected_dtype(inside));
}

static inline int vx_fortran_order(vx_cursor *c, vx_npy *npy)
{
    npy->fortran = (uint8_t)vx_word(c, "True");
    return npy->fortran || vx_word(c, "False") ? 1 : vx_refuse(c, "True or False");
}

/* One member of the dict; `seen` has a bit for each that came. */
static inline int vx_member(vx_cursor *c, vx_npy *npy, unsigned *seen)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    vx_cursor inside;
    unsigned key = 0;
    vx_spaces(c);
    const uint8_t *begin = c->at;
    if (!vx_string(c, &inside))
        return 0;
    size_t n = (size_t)(inside.end - inside.at);
    while (key < 3 && (n != strlen(keys[key]) || memcmp(inside.at, keys[key], n) != 0))
        key++;
    if (key == 3 || *seen & 1u << key) {
        c->at = begin;
        return vx_refuse(c, "each of the keys 'descr', 'fortran_order' and 'shape' once");
    }
    *seen |= 1u << key;
    if (!vx_next_is(c, ':'))
        return vx_refuse(c, "a colon");
    return key == 0 ? vx_descr(c, npy) : key == 1 ? vx_fortran_order(c, npy) : vx_shape(c, npy);
}

static inline int vx_dict(vx_cursor *c, vx_npy *npy)
{
    unsigned seen = 0;
    if (c->at == c->end || *c->at != '{')
        return vx_refuse(c, "a dict");
    c->at++;
    while (!vx_next_is(c, '}')) {
        if (!vx_member(c, npy, &seen))
            return 0;
        if (!vx_next_is(c, ',')) {
            if (!vx_next_is(c, '}'))
                return vx_refuse(c, "a comma or the end of the dict");
            break;
        }
    }
    if (seen != 7)
        return vx_refuse(c, "the keys 'descr', 'fortran_order' and 'shape'");
    while (c->at < c->end && *c->at == ' ')
        c->at++;
    if (c->at < c->end && *c->at == '\n') /* the last byte: to NumPy, a space after it is an indentation */
        c->at++;
    return c->at == c->end ? 1 : vx_refuse(c, "nothing but spaces and one newline after the dict");
}

enum { VX_NPY_PREFIX = 12 }; /* as many bytes as it takes to know how long the header is */

/* Bytes before the data, told by the first bytes; 0 if they begin no document that is taken (see *expected, *at). */
static inline size_t vx_npy_size(const uint8_t *doc, size_t n, const char **expected, size_t *at)
{
    static const uint8_t magic[6] = "\x93NUMPY";
    for (*at = 0; *at < 6; ++*at)
        if (*at >= n || doc[*at] != magic[*at])
            return *expected = "the magic string \\x93NUMPY", 0;
    if (n < 8 || doc[6] < 1 || doc[6] > 3 || doc[7] != 0)
        return *expected = "format version 1.0, 2.0 or 3.0", 0;
    size_t prefix = doc[6] == 1 ? 10 : 12;
    *at = 8;
    if (n < prefix)
        return *expected = "the length of the header", 0;
    size_t size = prefix + doc[8] + 256u * doc[9];
    if (prefix == 12)
        size += 65536u * doc[10] + ((size_t)doc[11] << 24);
    if (size > VX_NPY_MAX_HEADER)
        return *expected = "a header of at most 4096 bytes", 0;
    return size;
}

/* Parses a header, given all of its vx_npy_size() bytes. True, or false with *expected and *at. */
static inline int vx_npy_parse(const uint8_t *doc, size_t size, vx_npy *npy, const char **expected, size_t *at)
{
    memset(npy, 0, offsetof(vx_npy, shape));
    npy->major = doc[6];
    npy->size = (uint32_t)size;
    vx_cursor c = {doc, doc + (npy->major == 1 ? 10 : 12), doc + size, NULL};
    if (vx_dict(&c, npy) && npy->itemsize && !vx_times(&(int64_t){npy->itemsize}, npy->reach))
        vx_refuse(&c, "an array of less than 2**63 bytes");
    *expected = c.expected;
    *at = (size_t)(c.at - doc);
    return c.expected == NULL;
}

#endif
