#include "daemon/base/cpu_cache.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LINE 64u /* of every processor that has the instruction */

/* Found out once: CPUID takes microseconds in a virtual machine. Two threads that find out at the same time come to the
 * same answer. */
static bool has_clwb(void)
{
    static atomic_int answer; /* 1: no, 2: yes */
    int known = atomic_load_explicit(&answer, memory_order_relaxed);
    if (known == 0) {
        unsigned a, b, c, d;
        known = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_CLWB) ? 2 : 1;
        atomic_store_explicit(&answer, known, memory_order_relaxed);
    }
    return known == 2;
}

__attribute__((target("clwb"))) static void write_back(const void *bytes, size_t n)
{
    const uintptr_t end = (uintptr_t)bytes + n;
    for (uintptr_t line = (uintptr_t)bytes / LINE * LINE; line < end; line += LINE)
        _mm_clwb((void *)line);
}

void cpu_cache_write_back(const void *bytes, size_t n)
{
    if (has_clwb())
        write_back(bytes, n);
}
#else
void cpu_cache_write_back(const void *bytes, size_t n)
{
    (void)bytes;
    (void)n;
}
#endif
