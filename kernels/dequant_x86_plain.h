/* The decoders of plain types, for dequant_x86.h: sixteen elements at a time. */
#pragma once

#include "kernels/dequant_x86.h"

/* Which values a plain type can have as f32. That decides what the conversion to a narrower form has to handle. */
enum range {
    RANGE_SMALL,   /* integers that fit into an f16 */
    RANGE_INTEGER, /* integers that may be too large for an f16 */
    RANGE_F16,     /* the values of an f16: may be infinite or NaN, but is never subnormal as an f32 */
    RANGE_ANY,
};

#if X86_AVX512

X86_FN __m512 joined(__m256 a, __m256 b)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

X86_FN void out16_count(struct out *out, __m256 a, __m256 b, int limit)
{
    out->overflows += (unsigned)__builtin_popcount(overflows16(joined(a, b), limit));
}

/* The bf16 of a, then b. */
X86_FN __m256i bf16_narrowed(struct out *out, __m256 a, __m256 b, enum range range)
{
    if (range == RANGE_ANY)
        out16_count(out, a, b, BF16_LIMIT);
#if X86_BF16
    /* For NaN the instruction does what narrow.h does. It treats subnormal numbers as zero. */
    else
        return (__m256i)_mm256_cvtne2ps_pbh(b, a);
#endif
    __m512i u = _mm512_castps_si512(joined(a, b));
    if (range == RANGE_F16 || range == RANGE_ANY) {
        /* A NaN becomes quiet, and the bits that a bf16 does not keep are cleared: rounding must not carry out of
         * it. */
        const __m512i quiet = _mm512_set1_epi32(0x00400000), upper = _mm512_set1_epi32((int)0xffff0000);
        const __mmask16 nan = _mm512_cmp_ps_mask(_mm512_castsi512_ps(u), _mm512_castsi512_ps(u), _CMP_UNORD_Q);
        u = _mm512_mask_ternarylogic_epi32(u, nan, quiet, upper, 0xa8); /* (u | quiet) & upper */
    }
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_upper(u), 16));
}

#else

/* Makes signalling NaNs quiet. Conversion instructions do that; rounding with integers does not. */
X86_FN __m256 quieted_f32(__m256 x)
{
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_or_ps(x, _mm256_and_ps(nan, _mm256_castsi256_ps(_mm256_set1_epi32(0x00400000))));
}

/* In a NaN, clears the bits that a bf16 does not keep, so that rounding cannot carry out of it. Other values stay as
 * they are. */
X86_FN __m256 nan_cut(__m256 x)
{
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_srli_epi32(nan, 16), _mm256_castps_si256(x)));
}

/* For values whose bf16 is finite, and for infinities. Works on the upper and the lower halves of all sixteen at
 * once. */
X86_FN __m256i bf16_packed(__m256 x, __m256 y)
{
    const __m256i a = _mm256_castps_si256(x), b = _mm256_castps_si256(y), zero = _mm256_setzero_si256();
    const __m256i upper = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    const __m256i lower = _mm256_packus_epi32(_mm256_blend_epi16(a, zero, 0xaa), _mm256_blend_epi16(b, zero, 0xaa));
    return _mm256_permute4x64_epi64(bf16_halves(upper, lower), _MM_SHUFFLE(3, 1, 2, 0));
}

/* Whether one of sixteen magnitudes is at least the limit. Infinity and NaN are. In weights this is almost never so. */
X86_FN bool any_reaches(__m256 a, __m256 b, int limit)
{
    const __m256i most = _mm256_max_epi32(_mm256_castps_si256(magnitudes(a)), _mm256_castps_si256(magnitudes(b)));
    const __m256i reached = _mm256_cmpgt_epi32(most, _mm256_set1_epi32(limit - 1));
    return __builtin_expect(!_mm256_testz_si256(reached, reached), 0);
}

X86_FN void out16_count(struct out *out, __m256 a, __m256 b, int limit)
{
    if (any_reaches(a, b, limit))
        out->overflows += overflows8(a, limit) + overflows8(b, limit);
}

/* The bf16 of a, then b. */
X86_FN __m256i bf16_narrowed(struct out *out, __m256 a, __m256 b, enum range range)
{
    if (range == RANGE_ANY && any_reaches(a, b, BF16_LIMIT)) {
        out16_count(out, a, b, BF16_LIMIT);
        return bf16_packed(nan_cut(quieted_f32(a)), nan_cut(quieted_f32(b)));
    }
    return range == RANGE_F16 ? bf16_packed(nan_cut(a), nan_cut(b)) : bf16_packed(a, b);
}

#endif

X86_FN void out_bytes32(struct out *out, __m256i bytes)
{
    if (out->past_caches)
        _mm256_stream_si256((__m256i *)out->at, bytes);
    else
        _mm256_storeu_si256((__m256i *)out->at, bytes);
    out->at += 32;
}

/* Writes 16 values: a, then b. */
X86_FN void out16(struct out *out, __m256 a, __m256 b, enum range range, enum form form)
{
    if (form == FORM_F32) {
        out_bytes32(out, _mm256_castps_si256(a));
        out_bytes32(out, _mm256_castps_si256(b));
    } else if (form == FORM_F16) {
        const __m128i low = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m128i high = _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (range != RANGE_SMALL)
            out16_count(out, a, b, F16_LIMIT);
        out_bytes32(out, _mm256_set_m128i(high, low));
    } else {
        out_bytes32(out, bf16_narrowed(out, a, b, range));
    }
}

/* The low eight bytes, as signed numbers. */
X86_FN __m256 numbers8(__m128i bytes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

/* Sets the quiet bit of each NaN, as a conversion to f32 and back would. `infinity` is the type's pattern for
 * infinity. */
X86_FN __m256i quieted(__m256i halves, int infinity, int quiet_bit)
{
    const __m256i magnitude = _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff));
    const __m256i nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16((short)infinity));
    return _mm256_or_si256(halves, _mm256_and_si256(nan, _mm256_set1_epi16((short)quiet_bit)));
}

X86_FN void f32_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, _mm256_loadu_ps((const float *)p), _mm256_loadu_ps((const float *)(p + 32)), RANGE_ANY, form);
}

X86_FN void f16_x86(struct out *out, const uint8_t *p, enum form form)
{
    if (form == FORM_F16)
        out_bytes32(out, quieted(bytes32_at(p), 0x7c00, 0x0200));
    else
        out16(out, _mm256_cvtph_ps(bytes16_at(p)), _mm256_cvtph_ps(bytes16_at(p + 16)), RANGE_F16, form);
}

X86_FN __m256 bf16_8(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bytes16_at(p)), 16));
}

X86_FN void bf16_x86(struct out *out, const uint8_t *p, enum form form)
{
    if (form == FORM_BF16)
        out_bytes32(out, quieted(bytes32_at(p), 0x7f80, 0x0040));
    else
        out16(out, bf16_8(p), bf16_8(p + 16), RANGE_ANY, form);
}

X86_FN void i8_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, numbers8(_mm_loadl_epi64((const __m128i *)p)), numbers8(_mm_loadl_epi64((const __m128i *)(p + 8))),
          RANGE_SMALL, form);
}

X86_FN void i16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(bytes16_at(p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(bytes16_at(p + 16))), RANGE_SMALL, form);
}

X86_FN void i32_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, _mm256_cvtepi32_ps(bytes32_at(p)), _mm256_cvtepi32_ps(bytes32_at(p + 32)), RANGE_INTEGER, form);
}

X86_FN __m256 i64_8(const uint8_t *p)
{
#if X86_AVX512
    return _mm512_cvtepi64_ps(_mm512_loadu_si512(p));
#else
    /* There is no vector instruction for this, and a conversion through double would round twice. */
    return _mm256_setr_ps((float)(int64_t)u64_at(p), (float)(int64_t)u64_at(p + 8), (float)(int64_t)u64_at(p + 16),
                          (float)(int64_t)u64_at(p + 24), (float)(int64_t)u64_at(p + 32),
                          (float)(int64_t)u64_at(p + 40), (float)(int64_t)u64_at(p + 48),
                          (float)(int64_t)u64_at(p + 56));
#endif
}

X86_FN void i64_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, i64_8(p), i64_8(p + 64), RANGE_INTEGER, form);
}

X86_FN __m256 f64_8(const uint8_t *p)
{
#if X86_AVX512
    return _mm512_cvtpd_ps(_mm512_loadu_pd(p));
#else
    const __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd((const double *)p));
    const __m128 high = _mm256_cvtpd_ps(_mm256_loadu_pd((const double *)(p + 32)));
    return _mm256_set_m128(high, low);
#endif
}

X86_FN void f64_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, f64_8(p), f64_8(p + 64), RANGE_ANY, form);
}

#define X86_PLAIN_TYPES(type) type(f32) type(f16) type(bf16) type(f64) type(i8) type(i16) type(i32) type(i64)
