/* Memory for very large arrays. glibc takes blocks of 32 MB and more from the system each time, and gives them back: their
 * pages are fresh, and touching them one by one costs several times what decoding does. */
#ifndef VX_PAGES_H
#define VX_PAGES_H

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

/* Asks for huge pages where a block is that large; no more than a wish, so a refusal doesn't matter. */
static inline void vx_huge_pages(void *block, size_t size)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t fresh = 32 << 20, page = 2 << 20;
    uintptr_t first = ((uintptr_t)block + page - 1) / page * page, last = ((uintptr_t)block + size) / page * page;
    if (size >= fresh && last > first)
        (void)madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)block, (void)size;
#endif
}

#endif
