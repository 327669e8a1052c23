/* Between dequant.c, which chooses, and the files that hold the decoders of one instruction set. Tests go through
 * dequant_isas[] to reach every set that the machine runs, not only the chosen one. */
#pragma once

#include "kernels/dequant.h"

#include <stdbool.h>

/* The ids of kernels/types.def by their C names. They ascend there, so what follows the last of them is their bound. */
enum {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               TYPE_ID_##ident = id,
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) TYPE_ID_##ident = id,
#define TYPE_INTERNAL_DEF(id, ident, name, elements, bytes)  TYPE_ID_##ident = id,
#include "kernels/types.def"
    DEQUANT_TYPES,
};

/* From this size on, a call's output may go past the caches. Smaller outputs (a loader's chunks) are likely to be read
 * again soon, by a write or by a copy to a device, and had better stay. */
#define DEQUANT_STREAM_BYTES ((size_t)32 << 20)

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
