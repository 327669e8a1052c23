/* The decoders of K blocks, for dequant_x86.h. All scales of a block are computed first, into a small array. */
#pragma once

#include "kernels/dequant_x86.h"

X86_FN __m128i low_nibbles(__m128i q)
{
    return _mm_and_si128(q, _mm_set1_epi8(15));
}

X86_FN __m128i high_nibbles(__m128i q)
{
    return _mm_and_si128(_mm_srli_epi16(q, 4), _mm_set1_epi8(15));
}

X86_FN __m256 floats_from_u8(__m128i bytes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

/* Sixteen signed bytes, each multiplied by d. */
X86_FN void scales16(float scales[16], __m128i codes, float d)
{
    const __m256i low = _mm256_cvtepi8_epi32(codes);
    const __m256i high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes));
    _mm256_storeu_ps(scales, _mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_set1_ps(d)));
    _mm256_storeu_ps(scales + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(d)));
}

X86_FN void q2_k_x86(struct out *out, const uint8_t *b, enum form form)
{
    float scales[16], mins[16];
    const __m128i packed = bytes16_at(b);
    scales16(scales, low_nibbles(packed), f16_at(b + 80));
    scales16(mins, high_nibbles(packed), -f16_at(b + 82)); /* negative, because they are added */
    for (unsigned half = 0; half < 2; half++) {
        __m256i q = bytes32_at(b + 16 + 32 * half);
        for (unsigned k = 8 * half; k < 8 * half + 8; k += 2, q = _mm256_srli_epi16(q, 2)) {
            const __m256i codes = _mm256_and_si256(q, _mm256_set1_epi8(3));
            out32_affine(out, codes, scale_pair(scales + k), scale_pair(mins + k), 3, form);
        }
    }
}

X86_FN __m128i q3_k_scales(const uint8_t *p)
{
    const __m128i packed = _mm_loadl_epi64((const __m128i *)p);
    const __m128i low = _mm_unpacklo_epi64(low_nibbles(packed), high_nibbles(packed));
    /* Bits of the neighbouring byte, above the two that are wanted, are removed. */
    const __m128i four = _mm_set1_epi32((int)u32_at(p + 8));
    const __m128i high = _mm_and_si128(_mm_srlv_epi32(four, _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
    return _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), _mm_set1_epi8(32));
}

X86_FN void q3_k_x86(struct out *out, const uint8_t *b, enum form form)
{
    float scales[16];
    scales16(scales, q3_k_scales(b + 96), f16_at(b + 108));
    __m256i hmask = bytes32_at(b);
    for (unsigned half = 0; half < 2; half++) {
        __m256i q = bytes32_at(b + 32 + 32 * half);
        for (unsigned k = 8 * half; k < 8 * half + 8; k += 2) {
            const __m256i low = _mm256_and_si256(q, _mm256_set1_epi8(3));
            const __m256i third = _mm256_and_si256(_mm256_slli_epi16(hmask, 2), _mm256_set1_epi8(4));
            const __m256i codes = _mm256_sub_epi8(_mm256_or_si256(low, third), _mm256_set1_epi8(4));
            const struct few few = {
                .index = _mm256_and_si256(codes, _mm256_set1_epi8(7)),
                .signs = _mm256_setzero_si256(),
                .values = _mm256_setr_ps(0, 1, 2, 3, -4, -3, -2, -1),
            };
            out32_few(out, codes, few, scale_pair(scales + k), 4, form);
            q = _mm256_srli_epi16(q, 2);
            hmask = _mm256_srli_epi16(hmask, 1);
        }
    }
}

/* The eight scales and minima of Q4_K and Q5_K. The minima are negative, because they are added. */
X86_FN void k4_scales(float scales[8], float mins[8], const uint8_t *b)
{
    const uint32_t p0 = u32_at(b + 4), p4 = u32_at(b + 8), p8 = u32_at(b + 12);
    const uint32_t scale_high = (p8 & 0x0f0f0f0f) | (p0 >> 2 & 0x30303030);
    const uint32_t min_high = (p8 >> 4 & 0x0f0f0f0f) | (p4 >> 2 & 0x30303030);
    const uint64_t scale = (p0 & 0x3f3f3f3f) | (uint64_t)scale_high << 32;
    const uint64_t min = (p4 & 0x3f3f3f3f) | (uint64_t)min_high << 32;
    const __m256 d = _mm256_set1_ps(f16_at(b));
    const __m256 dmin = _mm256_set1_ps(-f16_at(b + 2));
    _mm256_storeu_ps(scales, _mm256_mul_ps(floats_from_u8(_mm_cvtsi64_si128((long long)scale)), d));
    _mm256_storeu_ps(mins, _mm256_mul_ps(floats_from_u8(_mm_cvtsi64_si128((long long)min)), dmin));
}

X86_FN void q4_k_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i mask = _mm256_set1_epi8(15);
    float scales[8], mins[8];
    k4_scales(scales, mins, b);
    for (unsigned k = 0; k < 8; k += 2) {
        const __m256i q = bytes32_at(b + 16 + 16 * k);
        out32_affine(out, _mm256_and_si256(q, mask), scale_both(scales[k]), scale_both(mins[k]), 15, form);
        out32_affine(out, _mm256_and_si256(_mm256_srli_epi16(q, 4), mask), scale_both(scales[k + 1]),
                     scale_both(mins[k + 1]), 15, form);
    }
}

X86_FN void q5_k_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i sixteen = _mm256_set1_epi8(16);
    float scales[8], mins[8];
    k4_scales(scales, mins, b);
    __m256i fifth = bytes32_at(b + 16);
    for (unsigned k = 0; k < 8; k += 2) {
        const __m256i q = bytes32_at(b + 48 + 16 * k);
        const __m256i low = _mm256_and_si256(q, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(q, 4), mask);
        const __m256i low5 = _mm256_and_si256(_mm256_slli_epi16(fifth, 4), sixteen);
        const __m256i high5 = _mm256_and_si256(_mm256_slli_epi16(fifth, 3), sixteen);
        out32_affine(out, _mm256_or_si256(low, low5), scale_both(scales[k]), scale_both(mins[k]), 31, form);
        out32_affine(out, _mm256_or_si256(high, high5), scale_both(scales[k + 1]), scale_both(mins[k + 1]), 31, form);
        fifth = _mm256_srli_epi16(fifth, 2);
    }
}

/* 32 elements: `low` has the low four bits, `high` the two bits above them, already in place. */
X86_FN void q6_k_32(struct out *out, __m256i low, __m256i high, const float scales[2], enum form form)
{
    const __m256i low4 = _mm256_and_si256(low, _mm256_set1_epi8(0x0f));
    const __m256i high2 = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
    const __m256i codes = _mm256_sub_epi8(_mm256_or_si256(low4, high2), _mm256_set1_epi8(32));
    out32_scaled(out, codes, scale_pair(scales), 32, form);
}

X86_FN void q6_k_x86(struct out *out, const uint8_t *b, enum form form)
{
    float scales[16];
    scales16(scales, bytes16_at(b + 192), f16_at(b + 208));
    for (unsigned half = 0; half < 2; half++) {
        const __m256i first = bytes32_at(b + 64 * half);
        const __m256i second = bytes32_at(b + 64 * half + 32);
        const __m256i high = bytes32_at(b + 128 + 32 * half);
        const float *s = scales + 8 * half;
        q6_k_32(out, first, _mm256_slli_epi16(high, 4), s, form);
        q6_k_32(out, second, _mm256_slli_epi16(high, 2), s + 2, form);
        q6_k_32(out, _mm256_srli_epi16(first, 4), high, s + 4, form);
        q6_k_32(out, _mm256_srli_epi16(second, 4), _mm256_srli_epi16(high, 2), s + 6, form);
    }
}

#define X86_K_TYPES(type) type(q2_k) type(q3_k) type(q4_k) type(q5_k) type(q6_k)
