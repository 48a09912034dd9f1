/* Numbers of JSON against the C library's strtod and a grammar written from RFC 8259, not from the kernels:
 *   texts of all lengths and exponents, close to half way between doubles, cut, damaged; each as float64, float32, float16,
 *   int64, uint8 and bool, where it ends at a page that faults: a byte read outside kills us;
 *   lists in lists, measured by every kernel this CPU allows, cut at every byte;
 *   numbers written, into memory that ends at such a page: read back as the same, and no text of printf that does is shorter,
 *   or as short and nearer. Every float16 and bfloat16.
 * test_numbers [ROUNDS [SEED]]. Prints what it ran; exits 1 at the first difference.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu.h"
#include "half.h"
#include "numbers.h"
#include "shortest.h"

enum { ROOM = 8192 };

static uint64_t state = 88172645463325252u;
static unsigned long long cases;
static uint8_t *fence;
static const vx_form any_integer = {.most = UINT64_MAX};

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void fail(const char *what, const char *text)
{
    printf("%s: %s\n", what, text);
    exit(1);
}

/* ---- the grammar of RFC 8259 section 6: 0 for no number, 1 for an integer, 2 for a float */
static int grammar(const char *s)
{
    int kind = 1;
    s += *s == '-';
    if (*s == '0')
        s++;
    else if (*s >= '1' && *s <= '9')
        s += strspn(s, "0123456789");
    else
        return 0;
    if (*s == '.') {
        size_t digits = strspn(s + 1, "0123456789");
        if (!digits)
            return 0;
        s += 1 + digits;
        kind = 2;
    }
    if (*s == 'e' || *s == 'E') {
        s++;
        s += *s == '+' || *s == '-';
        size_t digits = strspn(s, "0123456789");
        if (!digits)
            return 0;
        s += digits;
        kind = 2;
    }
    return *s ? 0 : kind;
}

static int is_64(const char *text)
{
    int negative = *text == '-';
    const char *digits = text + negative, *most = negative ? "9223372036854775808" : "18446744073709551615";
    size_t n = strlen(digits), width = strlen(most);
    return n < width || (n == width && strcmp(digits, most) <= 0);
}

/* Whether the text, alone at the end of readable memory, was taken whole. */
static int take(int kind, const char *text, void *to)
{
    size_t n = strlen(text);
    uint8_t *place = fence - n;
    const uint8_t *at = place;
    memcpy(place, text, n);
    cases++;
    return vx_takers[kind](&any_integer, &at, fence, to, 1) == 1 && vx_space(at, fence) == fence;
}

static void check_float(const char *text, int kind)
{
    double d, expected = strtod(text, NULL);
    float f, single = (float)expected;
    uint16_t h, half;
    if (kind == 1 && expected == 0)
        expected = single = 0; /* -0, the integer */
    int good = kind == 2 || (kind == 1 && is_64(text));
    if (take(VX_F64, text, &d) != (good && isfinite(expected)) || (good && isfinite(expected) && memcmp(&d, &expected, 8)))
        fail("float64", text);
    if (take(VX_F32, text, &f) != (good && isfinite(single)) || (good && isfinite(single) && memcmp(&f, &single, 4)))
        fail("float32", text);
    half = good && isfinite(expected) ? half_of(expected) : 0xffff;
    if (take(VX_F16, text, &h) != (half != 0xffff) || (half != 0xffff && h != half))
        fail("float16", text);
}

static void check(const char *text)
{
    int kind = grammar(text);
    int64_t i;
    uint64_t u;
    uint8_t byte;
    check_float(text, kind);
    int whole = kind == 1 && is_64(text), negative = *text == '-';
    unsigned long long size = whole ? strtoull(text + negative, NULL, 10) : 0;
    if (take(VX_I64, text, &i) != (whole && (negative || size <= INT64_MAX)))
        fail("int64", text);
    if (whole && (negative || size <= INT64_MAX) && i != (int64_t)(negative ? 0 - size : size))
        fail("int64's value", text);
    int positive = whole && !(negative && size);
    if (take(VX_U64, text, &u) != positive || (positive && u != size))
        fail("uint64", text);
    if (take(VX_U8, text, &byte) != (positive && size < 256) || (positive && size < 256 && byte != size))
        fail("uint8", text);
    int word = strcmp(text, "true") == 0 || strcmp(text, "false") == 0;
    if (take(VX_BOOL, text, &byte) != word || (word && byte != (*text == 't')))
        fail("bool", text);
}

/* ---- texts */

static char *digits(char *to, size_t n)
{
    for (; n; n--)
        *to++ = (char)('0' + draw(10));
    return to;
}

static void near_half(char *text)
{
    uint64_t bits = draw(5) ? draw(0x7fe) << 52 | draw((uint64_t)1 << 52) : draw((uint64_t)1 << 52);
    double low = vx_double_of(bits), high = vx_double_of(bits + 1);
    if (draw(3) == 0) { /* of floats */
        float f = (float)low;
        low = isfinite(f) ? f : 1;
        high = nextafterf((float)low, INFINITY);
    }
    long double half = (long double)low + ((long double)high - low) / 2;
    sprintf(text, "%.*Le", (int)(draw(4) ? draw(60) : draw(1100)), isfinite(half) ? half : 1.0L);
    if (draw(2))
        strchr(text, 'e')[-1] = (char)('0' + draw(10));
}

static void any(char *text)
{
    char *to = text;
    if (draw(3) == 0)
        *to++ = '-';
    to = draw(4) ? digits(to, 1 + draw(draw(4) ? 4 : 25)) : (*to = '0', to + 1);
    if (draw(4)) {
        *to++ = '.';
        to = digits(to, 1 + draw(draw(4) ? 19 : 45));
    }
    if (draw(4) == 0)
        to += sprintf(to, "%c%s%d", "eE"[draw(2)], (const char *[]){"", "+", "-"}[draw(3)], (int)draw(draw(2) ? 30 : 340));
    *to = 0;
}

static void damage(char *text)
{
    size_t n = strlen(text);
    static const char bytes[] = "0123456789.-+eEx,]tf\x01\xff";
    if (n)
        text[draw(n)] = bytes[draw(sizeof bytes - 1)];
    if (n && draw(3) == 0)
        text[draw(n)] = 0;
}

/* ---- lists */

static char *lists(char *to, const intptr_t *dims, int ndim, uint8_t *value)
{
    if (!ndim)
        return to + sprintf(to, "%s%d%s", draw(4) ? "" : " \n", *value += 7, draw(4) ? "" : "\t");
    *to++ = '[';
    for (intptr_t i = 0; i < dims[0]; i++) {
        if (i)
            *to++ = ',';
        to = lists(to, dims + 1, ndim - 1, value);
    }
    *to++ = ']';
    return to;
}

/* The plain reading. */
static long list_end(const uint8_t *text, size_t n)
{
    long depth = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"')
            return -1;
        depth += text[i] == '[' ? 1 : text[i] == ']' ? -1 : 0;
        if (!depth)
            return (long)i + 1;
    }
    return -1;
}

static void check_lists(void)
{
    static char text[ROOM];
    static uint8_t rows[ROOM], expected;
    intptr_t dims[4];
    int ndim = 1 + (int)draw(4);
    size_t count = 1;
    for (int i = 0; i < ndim; i++)
        count *= (size_t)(dims[i] = (intptr_t)draw(i ? 5 : 9));
    expected = 0;
    char *stop = lists(text, dims, ndim, &expected);
    size_t n = (size_t)(stop - text);
    memset(stop, 'x', draw(40));
    const vx_form form = {.kind = VX_U8, .ndim = ndim, .dims = dims};
    for (size_t cut = n + 3; cut-- > 0;) {
        uint8_t *place = fence - cut;
        memcpy(place, text, cut);
        if (cut > 3 && draw(20) == 0)
            place[1 + draw(cut - 1)] = "\"[],"[draw(4)];
        long end = cut ? list_end(place, cut) : -1;
        for (size_t k = 0; k < VX_KERNELS && cut; k++) {
            cases++;
            if (!vx_allowed(&vx_kernels[k]))
                continue;
            const uint8_t *found = vx_kernels[k].skip(place, place + 1, fence);
            if ((found ? found - place : -1) != end)
                fail(vx_kernels[k].name, text);
        }
        const uint8_t *taken = vx_take_form(&form, place, fence, rows);
        if (taken && taken - place != end)
            fail("an item's end", text);
        if (memcmp(place, text, cut) == 0 && (taken != NULL) != (cut >= n))
            fail("an item", text);
        if (taken && memcmp(place, text, cut) == 0 && count && rows[count - 1] != expected)
            fail("an item's value", text);
    }
}

/* ---- numbers out */

static double widened(int kind, uint64_t bits)
{
    float f;
    uint32_t four = (uint32_t)(kind == VX_BF16 ? bits << 16 : bits);
    if (kind == VX_F64)
        return vx_double_of(bits);
    if (kind == VX_F16) {
        int e = (int)(bits >> 10 & 31), c = (int)(bits & 1023);
        double size = e == 31 ? INFINITY : e ? ldexp(1024 + c, e - 25) : ldexp(c, -24);
        return bits >> 15 ? -size : size;
    }
    memcpy(&f, &four, sizeof f);
    return f;
}

/* The bits of the value of a kind nearest to the text. */
static uint64_t read_back(int kind, const char *text)
{
    double d = strtod(text, NULL);
    float f = strtof(text, NULL);
    uint64_t eight;
    uint32_t four;
    memcpy(&eight, &d, sizeof eight);
    if (kind == VX_F64)
        return eight;
    if (kind == VX_F16)
        return half_of(d);
    if (kind == VX_BF16) {
        f = (float)d;
        memcpy(&four, &f, sizeof four);
        return (four + 0x7fff + (four >> 16 & 1)) >> 16; /* ties to even */
    }
    memcpy(&four, &f, sizeof four);
    return four;
}

static size_t significant(const char *text, char *digits)
{
    size_t n = 0, last = 0;
    for (; *text && *text != 'e'; text++)
        if (*text >= '0' && *text <= '9' && (n || *text != '0')) {
            digits[n++] = *text;
            if (*text != '0')
                last = n;
        }
    digits[last] = 0;
    return last;
}

static void check_written(int kind, uint64_t bits)
{
    static char text[ROOM], tried[64], own[64], other[64];
    size_t most = vx_written[kind].most + 1u;
    uint8_t *place = fence - most - VX_SLACK, from[8];
    double value = widened(kind, bits);
    cases++;
    memcpy(from, &bits, vx_written[kind].size);
    uint8_t *end = vx_written[kind].put(place, from, 1);
    if ((end != NULL) != (isfinite(value) != 0))
        fail("written", "what isn't finite");
    if (!end)
        return;
    if (end[-1] != ',' || end > place + most)
        fail("written", "the length");
    memcpy(text, place, (size_t)(end - place - 1));
    text[end - place - 1] = 0;
    if (grammar(text) != 2 || read_back(kind, text) != bits)
        fail("written, and not read back", text);
    size_t n = significant(text, own);
    for (int p = 1; p <= (int)n && value != 0; p++) {
        snprintf(tried, sizeof tried, "%.*e", p - 1, value);
        if (read_back(kind, tried) != bits)
            continue;
        if (significant(tried, other) < n || strcmp(own, other))
            fail("written, not the shortest or nearest", text);
        return;
    }
}

static void check_whole(uint64_t n)
{
    char expected[32];
    uint8_t *place = fence - vx_written[VX_I64].most - 1 - VX_SLACK;
    cases++;
    sprintf(expected, "%lld,", (long long)n);
    uint8_t *end = vx_written[VX_I64].put(place, (const uint8_t *)&n, 1);
    if ((size_t)(end - place) != strlen(expected) || memcmp(place, expected, strlen(expected)))
        fail("int64 written", expected);
    sprintf(expected, "%llu,", (unsigned long long)n);
    end = vx_written[VX_U64].put(place, (const uint8_t *)&n, 1);
    if ((size_t)(end - place) != strlen(expected) || memcmp(place, expected, strlen(expected)))
        fail("uint64 written", expected);
}

/* Lists written, and read again. */
static void check_rows(void)
{
    static uint8_t rows[ROOM], back[ROOM];
    intptr_t dims[3];
    int kind = (int)draw(VX_KINDS), ndim = (int)draw(4);
    size_t numbers = 1, size = 0, count = draw(5);
    for (int i = 0; i < ndim; i++)
        numbers *= (size_t)(dims[i] = (intptr_t)draw(4));
    const vx_form form = {kind, ndim, dims, UINT64_MAX, 0};
    size_t most = vx_most_text(&form, &size) * count;
    for (size_t i = 0; i < count * size; i++) /* of which no float is infinite */
        rows[i] = (uint8_t)(kind == VX_BOOL ? draw(2) : draw(kind >= VX_F16 ? 60 : 256));
    uint8_t *place = fence - most - VX_SLACK;
    uint8_t *end = vx_put_forms(&form, place, rows, count);
    const uint8_t *at = place;
    cases++;
    if (!end || end > place + most || size != numbers * vx_written[kind].size)
        fail("rows written", "the length");
    if (vx_take_forms(&form, &at, end, back, count) != count || memcmp(rows, back, count * size))
        fail("rows written", "and not read back");
    if (count && (at + 1 != end || *at != ','))
        fail("rows written", "the end");
}

static void check_all_written(unsigned long long rounds)
{
    for (uint64_t bits = 0; bits < 65536; bits++) {
        check_written(VX_F16, bits);
        check_written(VX_BF16, bits);
    }
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t bits = draw(UINT64_MAX), shift = draw(64);
        check_written(VX_F64, bits);
        check_written(VX_F32, bits >> 32);
        check_written(VX_F64, (uint64_t)draw(2047) << 52 | draw(3));
        check_written(VX_F32, (uint64_t)draw(255) << 23 | draw(3));
        check_written(VX_F64, bits >> shift);
        check_whole(bits >> shift);
        check_rows();
    }
}

static void set_fence(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (ROOM + page - 1) / page * page;
    uint8_t *all = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + room, page, PROT_NONE))
        exit(2);
    fence = all + room;
    vx_choose(NULL);
}

int main(int argc, char **argv)
{
    unsigned long long rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;
    static char text[ROOM];
    set_fence();
    state ^= (argc > 2 ? strtoull(argv[2], NULL, 10) : 0) * 0x9e3779b97f4a7c15u;
    for (unsigned long long i = 0; i < rounds; i++) {
        if (draw(8) == 0)
            near_half(text);
        else
            any(text);
        if (draw(8) == 0)
            damage(text);
        check(text);
        if (i % 64 == 0)
            check_lists();
    }
    check_all_written(rounds / 2);
    check("true");
    check("false");
    printf("numbers: %llu cases, no difference\n", cases);
    return 0;
}
