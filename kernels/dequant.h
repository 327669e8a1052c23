/* Decodes blocks of a tensor type into f32, f16 or bf16 on the CPU, with the fastest code that this machine can run.
 *
 * The result is the same to the last bit on every machine and on a GPU. The f32 value is what the type's formula in
 * kernels/blocks.h gives. f16 and bf16 are that f32 value, rounded to nearest even; subnormals are kept.
 *
 * Any bytes are valid input. Functions read exactly `blocks * block_bytes` bytes and write exactly `blocks *
 * block_elements * form_element_bytes(form)` bytes. Neither pointer needs alignment. There is no state: any thread
 * may call any function. */
#pragma once

#include "kernels/types.h"

#include <stddef.h>
#include <stdint.h>

/* Decodes `blocks` blocks from `src` to `dst`, which do not overlap. Returns how many finite f32 values became
 * infinite in a narrower form; for f32 this is always 0. */
typedef uint64_t dequant_fn(void *restrict dst, const void *restrict src, size_t blocks);

/* The fastest decoder on this machine for this type and form. NULL if there is none: for FORM_NATIVE, and for
 * internal, removed and unknown types. The choice depends on the processor only, so the result never changes. */
dequant_fn *dequant_find(uint32_t type_id, enum form form);

/* The plain decoder, compiled from kernels/blocks.h. Tests compare all others with it. NULL as above. */
dequant_fn *dequant_find_reference(uint32_t type_id, enum form form);

/* Name of the instruction set that dequant_find() uses: "baseline", "avx2", "avx512", "avx512-bf16", "neon". */
const char *dequant_isa(void);
