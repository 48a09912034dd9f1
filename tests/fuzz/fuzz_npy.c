/* The header grammar on any bytes: it must end, read nothing outside its input, and what it accepts must keep the promises
 * that the decoder builds on. Compile with -fsanitize=fuzzer,address,undefined. */
#include <stdlib.h>

#include "npy.h"

static void expect(int promise)
{
    if (!promise)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const char *expected = NULL;
    size_t at = 0, size = vx_npy_size(data, n, &expected, &at);
    vx_npy npy;
    expect(size ? size >= 10 && size <= VX_NPY_MAX_HEADER : expected != NULL && at <= n);
    if (size == 0 || size > n)
        return 0;
    uint8_t *exact = malloc(size); /* so that a read beyond the header is one beyond the allocation */
    memcpy(exact, data, size);
    expected = NULL;
    int taken = vx_npy_parse(exact, size, &npy, &expected, &at);
    expect(taken == (expected == NULL) && at <= size);
    if (taken) {
        __int128 count = 1, reach = 1;
        for (int i = 0; i < npy.ndim; i++) {
            expect(npy.shape[i] >= 0);
            count *= npy.shape[i];
            reach *= npy.shape[i] ? npy.shape[i] : 1;
            expect(reach <= INT64_MAX);
        }
        expect(count == npy.count && reach == npy.reach && npy.ndim <= VX_NPY_MAX_DIMS);
        expect(npy.size == size && npy.descr < npy.descr_end && npy.descr_end <= size);
        expect(npy.itemsize ? !npy.named && !npy.fields : npy.named != npy.fields);
        expect((__int128)npy.itemsize * reach <= INT64_MAX);
    }
    free(exact);
    return 0;
}
