/* What the x86 decoders share: how they read fields and codes, make f32 values of the codes, and write those in each
 * form.
 *
 * Included by a .c file that defines X86_TARGET, the instruction sets to compile for. So the same source becomes
 * dequant_avx2.c, dequant_avx512.c and dequant_avx512_bf16.c. X86_TARGET does not have to include fma.
 *
 * X86_AVX512 says whether X86_TARGET has AVX-512. X86_BF16 says whether it has an instruction that rounds to bf16.
 *
 * A decoder is `X86_FN void x_x86(struct out *out, const uint8_t *block, enum form form)`. It makes 32 codes at a time:
 * bytes in the order of the elements, so that elements 0..15 are the lower 128 bits. One of the out32_ functions then
 * makes numbers of them, rounds them and writes them:
 *
 *   out32_scaled(out, codes, scale, most, form)        code * scale; no code has a greater magnitude than `most`
 *   out32_affine(out, codes, scale, add, most, form)   code * scale + add: only the addition rounds
 *   out32_tiny(out, codes, scale, most, form)          as out32_scaled, but with scales below 2^-60
 *   out32_few(out, codes, few, scale, most, form)      as out32_scaled; `few` says how to look the results up
 *
 * A `struct scale` is one scale for all 32 elements, or one for each half: scale_both(), scale_pair(). A NaN scale has
 * no payload that rounding could carry out of (see f16_at), and no bf16 overflows: no finite product or sum of a
 * quantised type is large enough. Products are exact in f32 (see kernels/blocks.h), so scales are multiplied in the
 * cheapest order. `form` is a constant at each call, so each decoder becomes three functions without branches on it.
 *
 * A header with such functions ends with a list of them. The reference decodes all types that are in no list. */
#pragma once

#include "kernels/blocks.h"
#include "kernels/dequant_isa.h"

#include <immintrin.h>

#define X86_FN __attribute__((target(X86_TARGET), always_inline)) static inline

/* Where the next values are written, and how many finite values have become infinite so far. `past_caches` is a
 * constant at each use; if it is set, `at` is a multiple of 32. */
struct out {
    uint8_t *at;
    uint64_t overflows;
    bool past_caches;
};

/* Codes with so few different values that it may be faster to multiply and round each value once for a scale, and to
 * look the results up. A code is values[index], with `index` from 0 to 7; the upper bits of `signs` change its sign.
 * `four`: indexes are below 4, and values[4] to [7] repeat the first four. */
struct few {
    __m256i index, signs;
    __m256 values;
    bool four; /* a constant */
};

/* The smallest magnitudes that overflow, as in narrow.h. */
#define F16_LIMIT  0x477ff000
#define BF16_LIMIT 0x7f7f8000

/* Fields, at any alignment. */

X86_FN uint32_t u32_at(const uint8_t *p)
{
    uint32_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

X86_FN uint64_t u64_at(const uint8_t *p)
{
    uint64_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

X86_FN __m128i bytes16_at(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

X86_FN __m256i bytes32_at(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* A NaN loses its payload except for the quiet bit, unless there is an instruction that rounds to bf16. Then the
 * code that rounds to bf16 needs no special case for NaN, because its addition cannot carry into the sign. For
 * computed NaNs the result depends on the processor anyway. */
X86_FN float f16_from_bits(unsigned h)
{
    return _cvtsh_ss((uint16_t)(!X86_BF16 && (h & 0x7fff) > 0x7c00 ? 0x7e00 : h));
}

X86_FN float f16_at(const uint8_t *p)
{
    return f16_from_bits(block_u16(p));
}

#if X86_AVX512
#include "kernels/dequant_x86_out512.h"
#else
#include "kernels/dequant_x86_out256.h"
#endif

/* The 32 codes in 16 bytes; low nibbles come first. */
X86_FN __m256i nibbles32(const uint8_t *p)
{
    const __m128i q = bytes16_at(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
}

/* Byte j is all ones if bit j is set, else zero. */
X86_FN __m256i bits32(uint32_t bits)
{
    const __m256i spread =
        _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i select = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), spread);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, select), select);
}
