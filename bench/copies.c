/* Counts what a server copies: preloaded into it by bench/images.py, beside the timed runs.
 *
 * memcpy and memmove, and memset, of LARGE bytes or more are added up in a file that the processes share; the name is
 * in VIRTEX_BENCH_COPIES. What the kernel copies, and what a decoder writes by stores of its own, is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define LARGE 4096 /* bytes; below it are headers and Python's small objects */

static uint64_t none[2], *counters = none; /* copied, set */
static void *(*copy)(void *, const void *, size_t), *(*move)(void *, const void *, size_t);
static void *(*set)(void *, int, size_t);

__attribute__((constructor)) static void begin(void)
{
    copy = (void *(*)(void *, const void *, size_t))dlsym(RTLD_NEXT, "memcpy");
    set = (void *(*)(void *, int, size_t))dlsym(RTLD_NEXT, "memset");
    move = (void *(*)(void *, const void *, size_t))dlsym(RTLD_NEXT, "memmove");
    const char *name = getenv("VIRTEX_BENCH_COPIES");
    int fd = name ? open(name, O_RDWR) : -1;
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED)
        counters = shared;
}

static inline void count(int which, size_t n)
{
    if (n >= LARGE)
        __atomic_fetch_add(&counters[which], n, __ATOMIC_RELAXED);
}

/* Before begin() has run there is no other memmove to call; volatile keeps the loops from becoming calls of it. */
void *memmove(void *to, const void *from, size_t n)
{
    count(0, n);
    if (move)
        return move(to, from, n);
    volatile char *d = to;
    const volatile char *s = from;
    if (d < s)
        for (size_t i = 0; i < n; i++)
            d[i] = s[i];
    else
        while (n--)
            d[n] = s[n];
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    if (!copy)
        return memmove(to, from, n);
    count(0, n);
    return copy(to, from, n);
}

void *memset(void *to, int c, size_t n)
{
    count(1, n);
    if (set)
        return set(to, c, n);
    volatile char *d = to;
    for (size_t i = 0; i < n; i++)
        d[i] = (char)c;
    return to;
}
