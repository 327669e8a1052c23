/* The x86 decoders for processors with AVX2 and F16C: almost all since 2013. */
#if defined(__x86_64__)

#define X86_TARGET "avx2,f16c"
#define X86_TABLE  dequant_avx2
#define X86_AVX512 0
#define X86_BF16   0
#include "kernels/dequant_x86_loops.h"

#endif
