/* The x86 decoders for processors that also have an instruction that rounds to bf16. */
#if defined(__x86_64__)

#define X86_TARGET "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#define X86_TABLE  dequant_avx512_bf16
#define X86_AVX512 1
#define X86_BF16   1
#include "kernels/dequant_x86_loops.h"

#endif
