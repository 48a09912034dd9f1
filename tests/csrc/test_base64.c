/* Every kernel this CPU allows against an oracle written from the RFC's words, not from the kernels' tables:
 *   lengths 0 to two unrolled iterations plus four vectors, at all 64 misalignments of both buffers;
 *   every byte value at every position (chars and padding), so that every bad character is refused at its own offset;
 *   good text is decoded by vectors, not by the plain C that looks for the bad character;
 *   every buffer once ends at a page that faults and once begins after one: a byte read or written outside kills us.
 * Prints what it ran; exits 1 at the first difference, and if a kernel named on the command line isn't there.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t left_over;
#define VX_LEFT_OVER(chars) (left_over = (chars))
#include "cpu.h"

enum {
    MAX_BYTES = 2 * 192 + 4 * 48 + 3, /* AVX-512 and AVX2 both take 192 bytes per unrolled iteration */
    MAX_CHARS = VX_CHARS(MAX_BYTES),
    MISALIGNMENTS = 64,
    ROOM = 8192,
};

static unsigned long long cases;
static uint32_t seed = 12345;

static uint8_t random_byte(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (uint8_t)(seed >> 24);
}

static void fail(const vx_kernel *kernel, const char *what, size_t n, size_t at)
{
    printf("%s: %s, n=%zu, at=%zu\n", kernel->name, what, n, at);
    exit(1);
}

/* ROOM bytes between two pages that fault. */
static uint8_t *fenced(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (ROOM + page - 1) / page * page;
    uint8_t *all = mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all, page, PROT_NONE) || mprotect(all + page + room, page, PROT_NONE))
        exit(2);
    return all + page;
}

static uint8_t *raw_room, *text_room;

/* n bytes that end at the fence less `back`, or that begin `back` after the other fence. */
static uint8_t *place(uint8_t *room, size_t n, size_t back, int at_end)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (ROOM + page - 1) / page * page;
    return at_end ? room + size - n - back : room + back;
}

static int oracle_value(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static void oracle_encode(char *text, const uint8_t *raw, size_t n)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t bit = 0, i = 0; i < VX_CHARS(n); i++, bit += 6) {
        int value = 0;
        for (size_t b = bit; b < bit + 6; b++)
            value = value * 2 + (b / 8 < n ? raw[b / 8] >> (7 - b % 8) & 1 : 0);
        text[i] = bit < 8 * n ? alphabet[value] : '=';
    }
}

/* May `c` stand at position i of the text of n bytes? */
static int oracle_allows(uint8_t c, size_t i, size_t n)
{
    size_t bits = 8 * n, first = 6 * i;
    if (first >= bits)
        return c == '=';
    size_t unused = first + 6 > bits ? first + 6 - bits : 0;
    return oracle_value(c) >= 0 && (oracle_value(c) & ((1 << unused) - 1)) == 0;
}

static void check_round(const vx_kernel *kernel, const uint8_t *raw, const char *text, size_t n, size_t back, int at_end)
{
    size_t chars = VX_CHARS(n);
    uint8_t *r = place(raw_room, n, back, at_end), *t = place(text_room, chars, back * 7 % MISALIGNMENTS, at_end);
    uint8_t before = t[-1 + (t == text_room)], before_raw = r[-1 + (r == raw_room)];
    memcpy(r, raw, n);
    kernel->encode(t, r, n);
    if (memcmp(t, text, chars) != 0 || t[-1 + (t == text_room)] != (t == text_room ? t[0] : before))
        fail(kernel, "encode differs", n, back);
    memset(r, 0xa5, n);
    if (kernel->decode(r, t, n) != chars || memcmp(r, raw, n) != 0)
        fail(kernel, "decode differs", n, back);
    if (left_over >= 64 && kernel != &vx_kernels[0]) /* right, but slowly: a good character was taken for a bad one */
        fail(kernel, "good text was left to plain C", n, left_over);
    if (r != raw_room && r[-1] != before_raw)
        fail(kernel, "decode wrote before the row", n, back);
    for (size_t i = 0; i < back; i++) /* the bytes between the row and the fence are another row's */
        if (at_end && r[n + i] != 0x5a)
            fail(kernel, "decode wrote past the row", n, i);
    cases += 2;
}

static void check_lengths(const vx_kernel *kernel)
{
    static uint8_t raw[MAX_BYTES];
    static char text[MAX_CHARS];
    for (size_t n = 0; n <= MAX_BYTES; n++) {
        for (size_t i = 0; i < n; i++)
            raw[i] = random_byte();
        oracle_encode(text, raw, n);
        for (size_t back = 0; back < MISALIGNMENTS; back++)
            for (int at_end = 0; at_end < 2; at_end++) {
                memset(raw_room, 0x5a, ROOM);
                check_round(kernel, raw, text, n, back, at_end);
            }
    }
}

static void check_every_byte(const vx_kernel *kernel, size_t n)
{
    static uint8_t raw[MAX_BYTES];
    size_t chars = VX_CHARS(n);
    for (size_t i = 0; i < n; i++)
        raw[i] = random_byte();
    uint8_t *t = place(text_room, chars, 0, 1), *r = place(raw_room, n, 0, 1);
    oracle_encode((char *)t, raw, n);
    for (size_t at = 0; at < chars; at++) {
        uint8_t good = t[at];
        for (int c = 0; c < 256; c++) {
            t[at] = (uint8_t)c;
            if (kernel->decode(r, t, n) != (oracle_allows((uint8_t)c, at, n) ? chars : at))
                fail(kernel, "wrong verdict or offset", n, at);
            cases++;
        }
        t[at] = good;
    }
}

/* The lowest of several bad characters is the one that is named. */
static void check_first_of_many(const vx_kernel *kernel, size_t n)
{
    size_t chars = VX_CHARS(n);
    uint8_t *t = place(text_room, chars, 0, 1), *r = place(raw_room, n, 0, 1);
    memset(t, 'A', chars);
    if (n % 3)
        t[chars - 1] = '=';
    if (n % 3 == 1)
        t[chars - 2] = '=';
    for (size_t at = chars; at-- > 0; cases++) {
        t[at] = '!';
        if (kernel->decode(r, t, n) != at)
            fail(kernel, "not the first bad character", n, at);
    }
}

/* Each byte value at each position of a plain string, whose end and then whose beginning lies at the fence. */
static void check_plain(const vx_kernel *kernel, size_t n, int at_end)
{
    uint8_t *t = place(text_room, n, 0, at_end);
    memset(t, 'p', n);
    for (size_t at = 0; at < n; at++) {
        for (int c = 0; c < 256; c++, cases++) {
            int plain = c >= 0x20 && c <= 0x7f && c != 0x22 && c != 0x5c;
            t[at] = (uint8_t)c;
            if (kernel->plain(t, n) != (plain ? n : at))
                fail(kernel, "wrong end of plain text", n, at);
        }
        t[at] = 'p';
    }
    if (kernel->plain(t, n) != n)
        fail(kernel, "plain text cut short", n, n);
}

int main(int argc, char **argv)
{
    raw_room = fenced();
    text_room = fenced();
    for (int i = 1; i < argc; i++)
        if (!vx_choose(argv[i])) {
            printf("this CPU doesn't offer %s\n", argv[i]);
            return 1;
        }
    for (size_t k = 0; k < VX_KERNELS; k++) {
        if (!vx_allowed(&vx_kernels[k]))
            continue;
        cases = 0;
        check_lengths(&vx_kernels[k]);
        for (size_t n = 0; n <= MAX_BYTES; n += n < 200 ? 1 : 37)
            check_every_byte(&vx_kernels[k], n);
        for (size_t n = 0; n <= MAX_BYTES; n++)
            check_first_of_many(&vx_kernels[k], n);
        for (size_t n = 0; n <= 4 * 64 + 3; n++)
            for (int at_end = 0; at_end < 2; at_end++)
                check_plain(&vx_kernels[k], n, at_end);
        printf("%s: %llu cases, no difference\n", vx_kernels[k].name, cases);
    }
    return 0;
}
