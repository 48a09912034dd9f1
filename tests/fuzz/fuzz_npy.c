/* The header grammar on any bytes: it must end, read nothing outside its input, and what it accepts must keep the promises
 * that the decoder builds on. Compile with -fsanitize=fuzzer,address,undefined. */
#include <stdlib.h>

#include "npy.h"

static void expect(int promise)
{
    if (!promise)
        abort();
}

/* Neither structured nor void, nor of several units: those that NumPy or a JSON writer reads beyond their memory. */
static void check_descr(const uint8_t *descr, size_t n, int named, int64_t itemsize)
{
    expect(!memchr(descr, '\'', n) && !memchr(descr, '(', n) && !memchr(descr, 'O', n) && !memchr(descr, 'V', n));
    if (named)
        return;
    expect(n >= 3 && strchr("<>|", descr[0]) && strchr("biufcmMSU", descr[1]) && itemsize > 0);
    expect(itemsize <= INT32_MAX);
    if (descr[1] == 'm' || descr[1] == 'M')
        expect(itemsize == 8 && n >= 6 && descr[2] == '8' && descr[3] == '[' && descr[n - 1] == ']' &&
               !memchr("0123456789", descr[4], 10));
    else
        expect(!memchr(descr, '[', n));
}

/* What tolist() makes of such an array is in proportion to its elements. */
static void check_lists(const vx_npy *npy)
{
    unsigned __int128 lists = 0, level = 1;
    for (int i = 0; i < npy->ndim; i++) {
        lists += level;
        level *= (unsigned __int128)npy->shape[i];
    }
    expect(lists <= VX_NPY_LISTS + (unsigned __int128)VX_NPY_LISTS_EACH * (unsigned __int128)npy->count ||
           npy->count > INT64_MAX / VX_NPY_LISTS_EACH - VX_NPY_LISTS);
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
        expect(npy.itemsize ? !npy.named : npy.named);
        expect((__int128)npy.itemsize * reach <= INT64_MAX);
        check_descr(exact + npy.descr, npy.descr_end - npy.descr, npy.named, npy.itemsize);
        check_lists(&npy);
    }
    free(exact);
    return 0;
}
