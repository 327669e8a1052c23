/* What the x86 decoders share: how eight or sixteen f32 values are made from codes, and how they leave in each form.
 *
 * Included by a .c file that has defined X86_TARGET, the instruction sets to compile for: the same source becomes
 * dequant_avx2.c, dequant_avx512.c and dequant_avx512_bf16.c. No fma in X86_TARGET is needed or wanted.
 *
 * X86_AVX512 says whether X86_TARGET has AVX-512, X86_BF16 whether it has an instruction that rounds to bf16.
 *
 * A decoder is `X86_FN void x_x86(struct out *out, const uint8_t *block, enum form form)`; `form` is a constant at each
 * call, so that each becomes three straight functions. Products are exact in f32 (see kernels/blocks.h), so scales are
 * multiplied in whatever order is cheapest.
 *
 * A header that has such functions ends with the list of them. A type in no list is decoded by the reference. */
#pragma once

#include "kernels/blocks.h"
#include "kernels/dequant_isa.h"

#include <immintrin.h>

#define X86_FN __attribute__((target(X86_TARGET), always_inline)) static inline

/* Where the next values go, and how many finite ones have become infinite so far. `past_caches` is a constant at each
 * use; with it, `at` is a multiple of 32. */
struct out {
    uint8_t *at;
    uint64_t overflows;
    bool past_caches;
};

X86_FN __m256 magnitudes(__m256 x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

/* The least magnitudes that overflow, as narrow.h has them. */
#define F16_LIMIT  0x477ff000
#define BF16_LIMIT 0x7f7f8000

/* Whether a bound of magnitudes allows for an f16 overflow. A NaN bound does not: nothing made with it is finite. */
X86_FN bool f16_suspicious(__m256 bound)
{
    const __m256 limit = _mm256_castsi256_ps(_mm256_set1_epi32(F16_LIMIT));
    return __builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(bound, limit, _CMP_GE_OQ)) != 0, 0);
}

/* How many of eight are finite, at or above the limit. */
X86_FN unsigned overflows8(__m256 x, int limit)
{
    const __m256i u = _mm256_castps_si256(magnitudes(x));
    const __m256i reached = _mm256_cmpgt_epi32(u, _mm256_set1_epi32(limit - 1));
    const __m256i finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), u);
    const __m256 both = _mm256_castsi256_ps(_mm256_and_si256(reached, finite));
    return (unsigned)__builtin_popcount((unsigned)_mm256_movemask_ps(both));
}

/* Overflows are looked for only where a bound of the magnitudes says that there can be some: in weights, next to never.
 */
X86_FN void out32_count(struct out *out, const __m256 x[4], __m256 bound)
{
    if (f16_suspicious(bound)) {
        for (unsigned k = 0; k < 4; k++)
            out->overflows += overflows8(x[k], F16_LIMIT);
    }
}

/* Unaligned fields. */

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

/* A NaN loses its payload but for the quiet bit, unless an instruction rounds to bf16: that then needs no thought for
 * it, since the sum cannot run over into the sign. What computed NaN look like is up to the processor anyway. */
X86_FN float f16_from_bits(unsigned h)
{
    return _cvtsh_ss((uint16_t)(!X86_BF16 && (h & 0x7fff) > 0x7c00 ? 0x7e00 : h));
}

X86_FN float f16_at(const uint8_t *p)
{
    return f16_from_bits(block_u16(p));
}

/* Codes. A decoder makes 32 of them as bytes in natural order, so that elements 0..15 are the lower 128 bits, and
 * out32_* makes numbers of them. Only shuffles within 128 bits are used: those across are twice as slow or worse. Each
 * shuffle moves four bytes of each half to the tops of eight 32-bit lanes, which multiplies the codes by 2^24. */

#define OUT32_SHUFFLE(e0, e1, e2, e3)                                                                                  \
    _mm256_setr_epi8(-1, -1, -1, e0, -1, -1, -1, e1, -1, -1, -1, e2, -1, -1, -1, e3, -1, -1, -1, e0, -1, -1, -1, e1,   \
                     -1, -1, -1, e2, -1, -1, -1, e3)

/* The bf16 of numbers given as upper and lower halves: adds the carry of lower + 0x7fff + the last bit of upper. */
X86_FN __m256i bf16_halves(__m256i upper, __m256i lower)
{
    const __m256i last = _mm256_and_si256(upper, _mm256_set1_epi16(1));
    /* The sum, halved so that it fits 16 bits. */
    const __m256i sum = _mm256_avg_epu16(lower, _mm256_add_epi16(last, _mm256_set1_epi16(0x7ffe)));
    return _mm256_add_epi16(upper, _mm256_srli_epi16(sum, 15));
}

/* Whether out32() takes even and odd elements apart. */
X86_FN bool in_even_and_odd(enum form form)
{
    return form == FORM_BF16 && !X86_BF16;
}

/* Two vectors of out32() to their sixteen bf16, the elements of the lower halves first. The instruction takes subnormal
 * numbers for zero: whoever can make some must not come here with it. */
X86_FN __m256i bf16_16(__m256 a, __m256 b)
{
#if X86_BF16
    return _mm256_permute4x64_epi64((__m256i)_mm256_cvtne2ps_pbh(b, a), _MM_SHUFFLE(3, 1, 2, 0));
#else
    const __m256i even = _mm256_castps_si256(a), odd = _mm256_castps_si256(b);
    const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
    const __m256i lower = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
    return bf16_halves(upper, lower);
#endif
}

/* 32 values, x[k] holding elements 4k to 4k + 3 and 16 + 4k to 16 + 4k + 3; for bf16 without an instruction, where that
 * costs less, of each pair of vectors the first has the even and the second the odd ones. NaN have no payload that
 * rounding could carry out of (see f16_at), and no bf16 overflows: no finite product or sum of a quantised type comes
 * near. */
X86_FN void out32(struct out *out, const __m256 x[4], enum form form)
{
    __m128i *const to = (__m128i *)out->at;
    if (form == FORM_F32) {
        float *const floats = (float *)out->at;
        for (unsigned k = 0; k < 4; k++) {
            _mm_storeu_ps(floats + 4 * k, _mm256_castps256_ps128(x[k]));
            _mm_storeu_ps(floats + 16 + 4 * k, _mm256_extractf128_ps(x[k], 1));
        }
        out->at += 128;
        return;
    }
    for (unsigned k = 0; k < 2; k++) {
        if (form == FORM_F16) {
            const __m128i a = _mm256_cvtps_ph(x[2 * k], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            const __m128i b = _mm256_cvtps_ph(x[2 * k + 1], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            _mm_storeu_si128(to + k, _mm_unpacklo_epi64(a, b));
            _mm_storeu_si128(to + k + 2, _mm_unpackhi_epi64(a, b));
        } else {
            const __m256i rounded = bf16_16(x[2 * k], x[2 * k + 1]);
            _mm_storeu_si128(to + k, _mm256_castsi256_si128(rounded));
            _mm_storeu_si128(to + k + 2, _mm256_extracti128_si256(rounded, 1));
        }
    }
    out->at += 64;
}

/* Codes times 2^24, in out32()'s order. */
X86_FN void lanes32(__m256i lanes[4], __m256i codes, enum form form)
{
    if (in_even_and_odd(form)) {
        lanes[0] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(0, 2, 4, 6));
        lanes[1] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(1, 3, 5, 7));
        lanes[2] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(8, 10, 12, 14));
        lanes[3] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(9, 11, 13, 15));
    } else {
        lanes[0] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(0, 1, 2, 3));
        lanes[1] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(4, 5, 6, 7));
        lanes[2] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(8, 9, 10, 11));
        lanes[3] = _mm256_shuffle_epi8(codes, OUT32_SHUFFLE(12, 13, 14, 15));
    }
}

/* Signed codes, none of greater magnitude than `most`, times a scale, which is that of elements 0..15 in the lower and
 * of 16..31 in the upper half. Scales are 2^-60 at least, so dividing by 2^24 keeps them exact, and products are normal
 * numbers. */
X86_FN void out32_scaled(struct out *out, __m256i codes, __m256 scale, float most, enum form form)
{
    const __m256 scale24 = _mm256_mul_ps(scale, _mm256_set1_ps(0x1p-24f));
    __m256i lanes[4];
    __m256 x[4];
    lanes32(lanes, codes, form);
    for (unsigned k = 0; k < 4; k++)
        x[k] = _mm256_mul_ps(_mm256_cvtepi32_ps(lanes[k]), scale24);
    if (form == FORM_F16)
        out32_count(out, x, magnitudes(_mm256_mul_ps(scale, _mm256_set1_ps(most))));
    out32(out, x, form);
}

/* The same, and an addend: one rounding, in the addition. */
X86_FN void out32_affine(struct out *out, __m256i codes, __m256 scale, __m256 add, float most, enum form form)
{
    const __m256 scale24 = _mm256_mul_ps(scale, _mm256_set1_ps(0x1p-24f));
    __m256i lanes[4];
    __m256 x[4];
    lanes32(lanes, codes, form);
    for (unsigned k = 0; k < 4; k++)
        x[k] = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(lanes[k]), scale24), add);
    if (form == FORM_F16)
        out32_count(out, x, _mm256_add_ps(magnitudes(_mm256_mul_ps(scale, _mm256_set1_ps(most))), magnitudes(add)));
    out32(out, x, form);
}

/* Two scales side by side in memory, each for a half. */
X86_FN __m256 scale_pair(const float *scales)
{
    double both;
    memcpy(&both, scales, sizeof both);
    const __m256 pairs = _mm256_castpd_ps(_mm256_set1_pd(both));
    return _mm256_permutevar_ps(pairs, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

/* The 32 codes of 16 bytes, low nibbles first. */
X86_FN __m256i nibbles32(const uint8_t *p)
{
    const __m128i q = bytes16_at(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
}

/* Bytes of all ones where bits are set. */
X86_FN __m256i bits32(uint32_t bits)
{
    const __m256i spread =
        _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i select = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), spread);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, select), select);
}
