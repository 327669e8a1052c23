/* How codes become numbers and are written, with vectors of 512 bits. dequant_x86.h describes the functions. All
 * vectors keep the order of the elements. */
#pragma once

struct scale {
    __m512 low, high; /* for elements 0..15, for 16..31 */
    bool differ;      /* a constant */
};

X86_FN struct scale scale_both(float scale)
{
    return (struct scale){_mm512_set1_ps(scale), _mm512_set1_ps(scale), false};
}

/* Two scales, neighbours in memory. */
X86_FN struct scale scale_pair(const float *scales)
{
    return (struct scale){_mm512_set1_ps(scales[0]), _mm512_set1_ps(scales[1]), true};
}

/* Which of sixteen are finite and at least the limit. */
X86_FN __mmask16 overflows16(__m512 x, int limit)
{
    const __m512i u = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    const __m512i above = _mm512_sub_epi32(u, _mm512_set1_epi32(limit));
    return _mm512_cmplt_epu32_mask(above, _mm512_set1_epi32(0x7f800000 - limit));
}

/* The bf16 of each number, in the upper half of its lane. */
X86_FN __m512i bf16_upper(__m512i u)
{
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
}

/* The upper 16 bits of each lane of two vectors. */
X86_FN __m512i upper_halves(__m512i a, __m512i b)
{
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                         23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(a, odd, b);
}

/* The instruction treats subnormal numbers as zero. So this is not for numbers that may be subnormal. */
X86_FN __m512i bf16_32(__m512 low, __m512 high)
{
#if X86_BF16
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
    return upper_halves(bf16_upper(_mm512_castps_si512(low)), bf16_upper(_mm512_castps_si512(high)));
#endif
}

/* Overflows are counted only if a bound of the magnitudes allows them, which is almost never so in weights; counting
 * takes a fifth of the time. A NaN bound does not allow any: no product with it is finite. */
X86_FN void out32_count(struct out *out, __m512 low, __m512 high, __m512 bound)
{
    const __m512 limit = _mm512_castsi512_ps(_mm512_set1_epi32(F16_LIMIT));
    if (__builtin_expect(_mm512_cmp_ps_mask(bound, limit, _CMP_GE_OQ) != 0, 0))
        out->overflows += (unsigned)__builtin_popcount(overflows16(low, F16_LIMIT)) +
                          (unsigned)__builtin_popcount(overflows16(high, F16_LIMIT));
}

/* The greatest magnitude of a scale times a code. Of two scales either both are finite or neither is: they have a
 * factor in common. */
X86_FN __m512 scale_bound(struct scale scale, float most)
{
    const __m512 low = _mm512_abs_ps(scale.low);
    const __m512 greater = scale.differ ? _mm512_max_ps(low, _mm512_abs_ps(scale.high)) : low;
    return _mm512_mul_ps(greater, _mm512_set1_ps(most));
}

X86_FN void out32(struct out *out, __m512 low, __m512 high, enum form form)
{
    if (form == FORM_F32) {
        _mm512_storeu_ps(out->at, low);
        _mm512_storeu_ps(out->at + 64, high);
        out->at += 128;
        return;
    }
    if (form == FORM_F16) {
        _mm256_storeu_si256((__m256i *)out->at, _mm512_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm256_storeu_si256((__m256i *)(out->at + 32),
                            _mm512_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
        _mm512_storeu_si512(out->at, bf16_32(low, high));
    }
    out->at += 64;
}

X86_FN __m512 codes16(__m128i codes)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

X86_FN void out32_scaled(struct out *out, __m256i codes, struct scale scale, float most, enum form form)
{
    const __m512 low = _mm512_mul_ps(codes16(_mm256_castsi256_si128(codes)), scale.low);
    const __m512 high = _mm512_mul_ps(codes16(_mm256_extracti128_si256(codes, 1)), scale.high);
    if (form == FORM_F16)
        out32_count(out, low, high, scale_bound(scale, most));
    out32(out, low, high, form);
}

X86_FN void out32_tiny(struct out *out, __m256i codes, struct scale scale, float most, enum form form)
{
    out32_scaled(out, codes, scale, most, form);
}

X86_FN void out32_affine(struct out *out, __m256i codes, struct scale scale, struct scale add, float most,
                         enum form form)
{
    const __m512 low = _mm512_mul_ps(codes16(_mm256_castsi256_si128(codes)), scale.low);
    const __m512 high = _mm512_mul_ps(codes16(_mm256_extracti128_si256(codes, 1)), scale.high);
    const __m512 low_sum = _mm512_add_ps(low, add.low), high_sum = _mm512_add_ps(high, add.high);
    if (form == FORM_F16)
        out32_count(out, low_sum, high_sum, _mm512_add_ps(scale_bound(scale, most), scale_bound(add, 1)));
    out32(out, low_sum, high_sum, form);
}

/* With AVX-512 a lookup is no faster. */
X86_FN void out32_few(struct out *out, __m256i codes, struct few few, struct scale scale, float most, enum form form)
{
    (void)few;
    out32_scaled(out, codes, scale, most, form);
}
