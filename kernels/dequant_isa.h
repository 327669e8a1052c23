/* Between dequant.c, which chooses, and the files that hold the decoders of one instruction set. Tests go through
 * dequant_isas[] to reach every set that the machine runs, not only the chosen one. */
#pragma once

#include "kernels/dequant.h"

#include <stdbool.h>

/* Ids run below this; see kernels/types.def. */
#define DEQUANT_TYPES 43

/* Indexed by type id and form; NULL where the set has no decoder of its own, and always for FORM_NATIVE. */
typedef dequant_fn *const dequant_table[DEQUANT_TYPES][FORM_COUNT];

extern dequant_table dequant_reference;

#if defined(__x86_64__)
/* Only for processors that have what dequant.c asks for. */
extern dequant_table dequant_avx2;
extern dequant_table dequant_avx512;
extern dequant_table dequant_avx512_bf16;
#endif

struct dequant_isa {
    const char *name;
    bool (*runs_here)(void);
    dequant_table *table;
};

/* Best first; the last is the reference and runs everywhere. */
extern const struct dequant_isa dequant_isas[];
extern const size_t dequant_isa_count;
