/* Which instruction sets this CPU and its operating system allow, and which one is in use: chosen once, when the
 * extension is imported, before any thread can decode. */
#ifndef VX_CPU_H
#define VX_CPU_H

#include "base64_avx2.h"
#include "base64_avx512.h"
#include "base64_neon.h"
#include "lists.h"

/* Slowest first. */
static const vx_kernel vx_kernels[] = {
    {"scalar", vx_decode_scalar, vx_encode_scalar, vx_plain_scalar, vx_skip_scalar},
#if defined(__x86_64__)
    {"avx2", vx_decode_avx2, vx_encode_avx2, vx_plain_avx2, vx_skip_avx2},
    {"avx512", vx_decode_avx512, vx_encode_avx512, vx_plain_avx512, vx_skip_avx2},
#elif defined(__aarch64__)
    {"neon", vx_decode_neon, vx_encode_neon, vx_plain_neon, vx_skip_neon},
#endif
};

#define VX_KERNELS (sizeof vx_kernels / sizeof vx_kernels[0])

static const vx_kernel *vx_active = &vx_kernels[0];

/* __builtin_cpu_supports also asks XGETBV whether the operating system saves the wide registers. */
static int vx_allowed(const vx_kernel *kernel)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (strcmp(kernel->name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
    if (strcmp(kernel->name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
#endif
    return strcmp(kernel->name, "scalar") == 0 || strcmp(kernel->name, "neon") == 0;
}

/* Makes the named kernel the active one, or the fastest allowed one if name is NULL; false if it can't be had. */
static int vx_choose(const char *name)
{
    for (size_t i = VX_KERNELS; i-- > 0;) {
        if (!vx_allowed(&vx_kernels[i]) || (name && strcmp(name, vx_kernels[i].name) != 0))
            continue;
        vx_active = &vx_kernels[i];
        return 1;
    }
    return 0;
}

#endif
