/* How the kernels of kernels/dequant.hip are called: what the device module, and whoever stands in for a GPU in tests,
 * need to know of them.
 *
 * A kernel is named "dequant_<ident>_<form>" (kernels/types.def has the idents; the forms are f32, f16 and bf16) and
 * takes the parameters below, in this order, as hipModuleLaunchKernel() passes them.
 *
 *   const uint8_t *src      `blocks` blocks, at any alignment; much quicker at a multiple of 16. Up to 15 bytes after
 *                           them are read as well: those that share 16 aligned bytes with the last
 *   void *dst               at any alignment for plain types; at a multiple of 16 for quantised ones
 *   uint64_t blocks
 *   uint64_t *overflows     in device memory: finite f32 values that became infinite are added to it
 *   uint64_t counted        what it holds before the first of all launches whose values are counted together
 *   uint32_t *overflowed    in memory that the host reads: set to 1 when something was added to `counted`
 *
 * The grid is one-dimensional: DEQUANT_THREADS threads a block, and so many blocks that DEQUANT_TILE elements for each
 * cover the whole. */
#pragma once

#define DEQUANT_THREADS 256u
#define DEQUANT_TILE    8192u
