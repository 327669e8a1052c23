#include "kernels/dequant_isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool avx2_runs(void)
{
    /* clang 14 has no name for F16C. The check for AVX2 includes that the operating system saves the wide registers. */
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool avx512_runs(void)
{
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool avx512_bf16_runs(void)
{
    return avx512_runs() && __builtin_cpu_supports("avx512bf16");
}
#endif

const struct dequant_isa dequant_isas[] = {
#if defined(__x86_64__)
    {"avx512-bf16", avx512_bf16_runs, &dequant_avx512_bf16},
    {"avx512", avx512_runs, &dequant_avx512},
    {"avx2", avx2_runs, &dequant_avx2},
#endif
#if defined(__aarch64__)
    {"neon", always, &dequant_reference}, /* every aarch64 has it, and the compiler uses it */
#else
    {"baseline", always, &dequant_reference},
#endif
};

const size_t dequant_isa_count = sizeof dequant_isas / sizeof dequant_isas[0];

/* The processor is asked only once, because that takes microseconds in a virtual machine. Two threads may both ask:
 * they get the same answer, so either may store it. */
static const struct dequant_isa *isa_choose(void)
{
    static _Atomic(const struct dequant_isa *) chosen;
    const struct dequant_isa *isa = chosen;
    if (isa)
        return isa;
    isa = dequant_isas;
    while (!isa->runs_here())
        isa++;
    chosen = isa;
    return isa;
}

static dequant_fn *table_find(dequant_table *table, uint32_t type_id, enum form form)
{
    if (type_id >= DEQUANT_TYPES || (unsigned)form >= FORM_COUNT)
        return NULL;
    return (*table)[type_id][form];
}

dequant_fn *dequant_find_reference(uint32_t type_id, enum form form)
{
    return table_find(&dequant_reference, type_id, form);
}

dequant_fn *dequant_find(uint32_t type_id, enum form form)
{
    dequant_fn *fn = table_find(isa_choose()->table, type_id, form);
    return fn ? fn : dequant_find_reference(type_id, form);
}

const char *dequant_isa(void)
{
    return isa_choose()->name;
}
