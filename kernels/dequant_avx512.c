/* The x86 decoders for processors with AVX-512: sixteen codes at a time become numbers. */
#if defined(__x86_64__)

#define X86_TARGET "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define X86_TABLE  dequant_avx512
#define X86_AVX512 1
#define X86_BF16   0
#include "kernels/dequant_x86_loops.h"

#endif
