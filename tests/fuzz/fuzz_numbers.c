/* Any bytes as one number of JSON, of each kind, against strtod and a grammar: the checks of tests/csrc/test_numbers.c, led by
 * what they reach. Compile with -fsanitize=fuzzer,address,undefined. */
#define main test_main
#include "../csrc/test_numbers.c"
#undef main

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static char text[ROOM];
    if (!fence)
        set_fence();
    if (n >= ROOM / 2)
        return 0;
    for (size_t i = 0; i < n; i++) {
        if (!data[i] || strchr(" \n\r\t", data[i]))
            return 0;
        text[i] = (char)data[i];
    }
    text[n] = 0;
    check(text);
    return 0;
}
