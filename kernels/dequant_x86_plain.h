/* Plain types, sixteen elements at a time, for dequant_x86.h. */
#pragma once

#include "kernels/dequant_x86.h"

/* Signalling NaN become quiet; what a conversion does by itself, and a rounding by integers does not. */
X86_FN __m256 quieted_f32(__m256 x)
{
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_or_ps(x, _mm256_and_ps(nan, _mm256_castsi256_ps(_mm256_set1_epi32(0x00400000))));
}

/* For any values at all. */
X86_FN __m256i bf16_rounded(__m256 x)
{
    const __m256i u = _mm256_castps_si256(quieted_f32(x));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    /* A NaN must not be rounded up past infinity; it is cut, and stays one because it is quiet. */
    const __m256i ordered = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));
    return _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_and_si256(up, ordered)), 16);
}

/* For finite values whose bf16 is finite. Works on the upper and lower halves of all sixteen at once. */
X86_FN __m256i bf16_packed(__m256i a, __m256i b)
{
    const __m256i zero = _mm256_setzero_si256();
    const __m256i upper = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    const __m256i lower = _mm256_packus_epi32(_mm256_blend_epi16(a, zero, 0xaa), _mm256_blend_epi16(b, zero, 0xaa));
    return bf16_halves(upper, lower);
}

/* Whether any magnitude of the sixteen is at or above the limit; infinity and NaN are. */
X86_FN bool any_reaches(__m256 a, __m256 b, int limit)
{
    const __m256i most = _mm256_max_epi32(_mm256_castps_si256(magnitudes(a)), _mm256_castps_si256(magnitudes(b)));
    const __m256i reached = _mm256_cmpgt_epi32(most, _mm256_set1_epi32(limit - 1));
    return !_mm256_testz_si256(reached, reached);
}

X86_FN void out16_bf16(struct out *out, __m256 a, __m256 b)
{
    __m256i packed;
    if (__builtin_expect(!any_reaches(a, b, BF16_LIMIT), 1)) {
        packed = bf16_packed(_mm256_castps_si256(a), _mm256_castps_si256(b));
    } else {
        out->overflows += overflows8(a, BF16_LIMIT) + overflows8(b, BF16_LIMIT);
        packed = _mm256_packus_epi32(bf16_rounded(a), bf16_rounded(b));
    }
    _mm256_storeu_si256((__m256i *)out->at, _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0)));
    out->at += 32;
}

/* The next 16 values: a then b. */
X86_FN void out16(struct out *out, __m256 a, __m256 b, enum form form)
{
    if (form == FORM_F32) {
        _mm256_storeu_ps((float *)out->at, a);
        _mm256_storeu_ps((float *)(out->at + 32), b);
        out->at += 64;
    } else if (form == FORM_F16) {
        const __m128i low = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m128i high = _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (__builtin_expect(any_reaches(a, b, F16_LIMIT), 0))
            out->overflows += overflows8(a, F16_LIMIT) + overflows8(b, F16_LIMIT);
        _mm256_storeu_si256((__m256i *)out->at, _mm256_set_m128i(high, low));
        out->at += 32;
    } else {
        out16_bf16(out, a, b);
    }
}

/* The low eight bytes, signed, as numbers. */
X86_FN __m256 numbers8(__m128i bytes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

/* Sets the quiet bit of every NaN, where `infinity` is the type's pattern for that; what the detour by f32 would do. */
X86_FN __m256i quieted(__m256i halves, int infinity, int quiet_bit)
{
    const __m256i magnitude = _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff));
    const __m256i nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16((short)infinity));
    return _mm256_or_si256(halves, _mm256_and_si256(nan, _mm256_set1_epi16((short)quiet_bit)));
}

/* Halves that need no rounding and are written as they are: none of them can be a new infinity. */
X86_FN void out_as_is(struct out *out, __m256i halves)
{
    _mm256_storeu_si256((__m256i *)out->at, halves);
    out->at += 32;
}

X86_FN void f32_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, _mm256_loadu_ps((const float *)p), _mm256_loadu_ps((const float *)(p + 32)), form);
}

X86_FN void f16_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    if (form == FORM_F16)
        out_as_is(out, quieted(bytes32_at(p), 0x7c00, 0x0200));
    else
        out16(out, _mm256_cvtph_ps(bytes16_at(p)), _mm256_cvtph_ps(bytes16_at(p + 16)), form);
}

X86_FN __m256 bf16_8(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bytes16_at(p)), 16));
}

X86_FN void bf16_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    if (form == FORM_BF16)
        out_as_is(out, quieted(bytes32_at(p), 0x7f80, 0x0040));
    else
        out16(out, bf16_8(p), bf16_8(p + 16), form);
}

X86_FN void i8_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, numbers8(_mm_loadl_epi64((const __m128i *)p)), numbers8(_mm_loadl_epi64((const __m128i *)(p + 8))),
          form);
}

X86_FN void i16_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(bytes16_at(p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(bytes16_at(p + 16))), form);
}

X86_FN void i32_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, _mm256_cvtepi32_ps(bytes32_at(p)), _mm256_cvtepi32_ps(bytes32_at(p + 32)), form);
}

/* There is no vector instruction for this before AVX-512, and doubles would round twice. */
X86_FN __m256 i64_8(const uint8_t *p)
{
    return _mm256_setr_ps((float)(int64_t)u64_at(p), (float)(int64_t)u64_at(p + 8), (float)(int64_t)u64_at(p + 16),
                          (float)(int64_t)u64_at(p + 24), (float)(int64_t)u64_at(p + 32),
                          (float)(int64_t)u64_at(p + 40), (float)(int64_t)u64_at(p + 48),
                          (float)(int64_t)u64_at(p + 56));
}

X86_FN void i64_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, i64_8(p), i64_8(p + 64), form);
}

X86_FN __m256 f64_8(const uint8_t *p)
{
    const __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd((const double *)p));
    const __m128 high = _mm256_cvtpd_ps(_mm256_loadu_pd((const double *)(p + 32)));
    return _mm256_set_m128(high, low);
}

X86_FN void f64_16_x86(struct out *out, const uint8_t *p, enum form form)
{
    out16(out, f64_8(p), f64_8(p + 64), form);
}
