/* Every kernel this CPU allows against the scalar one, on any bytes in buffers of exact size; and a round trip. What counts
 * the values of JSON and what checks the bits of decoded data, against plain loops.
 * Compile with -fsanitize=fuzzer,address,undefined. */
#include <stdlib.h>

#include "cpu.h"
#include "values.h"
#include "item.h"

static void expect(int promise)
{
    if (!promise)
        abort();
}

static void check_decode(const vx_kernel *kernel, const uint8_t *text, size_t n)
{
    uint8_t *a = malloc(n + 1), *b = malloc(n + 1);
    a[n] = b[n] = 0xa5;
    size_t good = vx_decode_scalar(a, text, n);
    expect(kernel->decode(b, text, n) == good && b[n] == 0xa5);
    expect(good != VX_CHARS(n) || memcmp(a, b, n) == 0);
    free(a);
    free(b);
}

static void check_encode(const vx_kernel *kernel, const uint8_t *data, size_t n)
{
    uint8_t *a = malloc(VX_CHARS(n) + 1), *b = malloc(VX_CHARS(n) + 1), *back = malloc(n + 1);
    a[VX_CHARS(n)] = b[VX_CHARS(n)] = 0xa5;
    vx_encode_scalar(a, data, n);
    kernel->encode(b, data, n);
    expect(memcmp(a, b, VX_CHARS(n) + 1) == 0);
    expect(kernel->decode(back, b, n) == VX_CHARS(n) && memcmp(back, data, n) == 0);
    for (size_t skip = 0; skip <= n; skip += 1 + n / 7) {
        expect(vx_decode_after(kernel, back, b, skip, n - skip) == VX_CHARS(n));
        expect(memcmp(back, data + skip, n - skip) == 0);
    }
    free(a);
    free(b);
    free(back);
}

static void check_values(const uint8_t *data, size_t n)
{
    size_t values, expected = 0, exact;
    int width, highest = 0;
    for (size_t i = 0; i < n; i++) {
        expected += data[i] == ',' || data[i] == '[' || data[i] == '{' ? 1 : data[i] == ':' ? VX_MEMBER : 0;
        highest = data[i] > highest ? data[i] : highest;
    }
    vx_weigh(data, n, &values, &width);
    expect(values == expected && width >= (highest >= 0xf0 ? 4 : highest >= 0xc4 ? 2 : 1));
    exact = vx_count_values((const char *)data, n, SIZE_MAX);
    expect(exact <= values && (memchr(data, '"', n) || exact == values));
    expect(vx_count_values((const char *)data, n, exact / 2) >= exact / 2);
}

static void check_patterns(const uint8_t *data, size_t n)
{
    int text[2] = {1, 1}, all = 0;
    for (size_t i = 0; i < n; i++)
        all |= data[i];
    for (size_t i = 0; i + 4 <= n; i += 4)
        for (int swapped = 0; swapped < 2; swapped++) {
            uint32_t c = 0;
            for (size_t k = 0; k < 4; k++)
                c |= (uint32_t)data[i + (swapped ? 3 - k : k)] << 8 * k;
            text[swapped] &= c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
        }
    expect(vx_is_sound(data, n / 4 * 4, VX_TEXT) == text[0] && vx_is_sound(data, n / 4 * 4, VX_SWAPPED_TEXT) == text[1]);
    for (int mask = 1; mask <= VX_ANY; mask = 2 * mask + 1)
        expect(vx_is_sound(data, n, mask) == ((all & ~mask) == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    expect(vx_choose(NULL));
    ptrdiff_t offset = vx_big_int((const char *)data, n);
    expect(offset >= -1 && offset < (ptrdiff_t)n);
    check_values(data, n);
    check_patterns(data, n);
    for (size_t k = 0; k < VX_KERNELS; k++) {
        if (!vx_allowed(&vx_kernels[k]))
            continue;
        check_encode(&vx_kernels[k], data, n);
        expect(vx_kernels[k].plain(data, n) == vx_plain_scalar(data, n));
        if (n % 4 == 0 && n)
            for (size_t less = 0; less < 3; less++)
                check_decode(&vx_kernels[k], data, n / 4 * 3 - less);
    }
    return 0;
}
