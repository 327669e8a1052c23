/* How the kernels of kernels/dequant.hip are called. The device module uses this, and so do tests that replace a GPU.
 *
 * A kernel is named "dequant_<ident>_<form>": the idents are in kernels/types.def, the forms are f32, f16 and bf16. It
 * takes these parameters, in this order, as hipModuleLaunchKernel() passes them:
 *
 *   const uint8_t *src      `blocks` blocks, at any alignment; much faster at a multiple of 16. Up to 15 bytes after
 *                           them are read too, up to the next multiple of 16
 *   void *dst               plain types: at any alignment; quantised types: at a multiple of 16
 *   uint64_t blocks
 *   uint64_t *overflows     in device memory: the number of finite f32 values that became infinite is added to it
 *   uint64_t counted        the value of *overflows before the first launch of those that are counted together
 *   uint32_t *overflowed    in memory that the host can read: set to 1 if *overflows was `counted` and grew
 *
 * The grid is one-dimensional. A thread block has DEQUANT_THREADS threads and decodes DEQUANT_TILE elements; the
 * caller launches as many as the elements need. */
#pragma once

#define DEQUANT_THREADS 256u
#define DEQUANT_TILE    8192u
