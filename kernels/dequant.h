/* Decodes blocks of a tensor type into f32, f16 or bf16, on the CPU, with the fastest code that this machine runs.
 *
 * The result is the same to the last bit on every machine and on a GPU: the f32 value is the one that the type's
 * formula in kernels/blocks.h gives, and f16 and bf16 are that f32 value rounded to nearest even, subnormals kept.
 *
 * Any bytes are valid input. Functions read exactly `blocks * block_bytes` bytes and write exactly
 * `blocks * block_elements * form_element_bytes(form)`; neither pointer needs alignment. No state: any thread may call
 * anything. */
#pragma once

#include "kernels/types.h"

#include <stddef.h>
#include <stdint.h>

/* Decodes `blocks` blocks at `src` to `dst`. Returns how many finite f32 values became infinite in a narrower form
 * (always 0 for f32). src and dst do not overlap. */
typedef uint64_t dequant_fn(void *restrict dst, const void *restrict src, size_t blocks);

/* The fastest decoder on this machine for a type and a form other than FORM_NATIVE, or NULL if there is none (internal,
 * removed and unknown types). The choice is made once, by the processor's features; the result never changes. */
dequant_fn *dequant_find(uint32_t type_id, enum form form);

/* The plain decoder, straight from kernels/blocks.h, that every other one is tested against. NULL as above. */
dequant_fn *dequant_find_reference(uint32_t type_id, enum form form);

/* The instruction set that dequant_find() chose for: "baseline", "avx2", "avx512", "avx512-bf16", "neon". */
const char *dequant_isa(void);
