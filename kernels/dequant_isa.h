/* What dequant.c, which chooses an instruction set, knows of the files that have the decoders of one instruction
 * set. Tests use dequant_isas[] to reach all sets that the machine can run, not only the chosen one. */
#pragma once

#include "kernels/dequant.h"

#include <stdbool.h>

/* The ids of kernels/types.def by their C names. They ascend, so DEQUANT_TYPES is greater than all of them. */
enum {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               TYPE_ID_##ident = id,
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) TYPE_ID_##ident = id,
#define TYPE_INTERNAL_DEF(id, ident, name, elements, bytes)  TYPE_ID_##ident = id,
#include "kernels/types.def"
    DEQUANT_TYPES,
};

/* A call with at least this much output may write around the caches. Smaller outputs, such as the chunks of a load,
 * are likely to be read again soon, by write() or by a copy to a device, and should stay in the caches. */
#define DEQUANT_STREAM_BYTES ((size_t)32 << 20)

/* Indexed by type id and form. NULL where the set has no decoder of its own, and for FORM_NATIVE. */
typedef dequant_fn *const dequant_table[DEQUANT_TYPES][FORM_COUNT];

extern dequant_table dequant_reference;

#if defined(__x86_64__)
/* Only for processors that have what dequant.c checks for. */
extern dequant_table dequant_avx2;
extern dequant_table dequant_avx512;
extern dequant_table dequant_avx512_bf16;
#endif

struct dequant_isa {
    const char *name;
    bool (*runs_here)(void);
    dequant_table *table;
};

/* The best one first. The last one is the reference, which runs everywhere. */
extern const struct dequant_isa dequant_isas[];
extern const size_t dequant_isa_count;
