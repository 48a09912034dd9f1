/* Every kernel this CPU allows against the scalar one, on any bytes in buffers of exact size; and a round trip.
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    expect(vx_choose(NULL));
    ptrdiff_t offset = vx_big_int((const char *)data, n);
    expect(offset >= -1 && offset < (ptrdiff_t)n);
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
