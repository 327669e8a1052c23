/* How codes become numbers and are written, with vectors of 256 bits. dequant_x86.h describes the functions. */
#pragma once

struct scale {
    __m256 of;   /* the lower half is for elements 0..15, the upper half for 16..31 */
    bool differ; /* a constant */
};

X86_FN struct scale scale_both(float scale)
{
    return (struct scale){_mm256_set1_ps(scale), false};
}

/* Two scales, neighbours in memory. */
X86_FN struct scale scale_pair(const float *scales)
{
    double both;
    memcpy(&both, scales, sizeof both);
    const __m256 pairs = _mm256_castpd_ps(_mm256_set1_pd(both));
    return (struct scale){_mm256_permutevar_ps(pairs, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)), true};
}

X86_FN __m256 magnitudes(__m256 x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

/* Whether a bound of the magnitudes allows an f16 overflow. A NaN bound does not: no product with it is finite. */
X86_FN bool f16_suspicious(__m256 bound)
{
    const __m256 limit = _mm256_castsi256_ps(_mm256_set1_epi32(F16_LIMIT));
    return __builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(bound, limit, _CMP_GE_OQ)) != 0, 0);
}

/* How many of eight are finite and at least the limit. */
X86_FN unsigned overflows8(__m256 x, int limit)
{
    const __m256i u = _mm256_castps_si256(magnitudes(x));
    const __m256i reached = _mm256_cmpgt_epi32(u, _mm256_set1_epi32(limit - 1));
    const __m256i finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), u);
    const __m256 both = _mm256_castsi256_ps(_mm256_and_si256(reached, finite));
    return (unsigned)__builtin_popcount((unsigned)_mm256_movemask_ps(both));
}

/* Overflows are counted only if a bound of the magnitudes allows them, which is almost never so in weights. */
X86_FN void out32_count(struct out *out, const __m256 x[4], __m256 bound)
{
    if (f16_suspicious(bound)) {
        for (unsigned k = 0; k < 4; k++)
            out->overflows += overflows8(x[k], F16_LIMIT);
    }
}

/* Codes are shuffled only within 128 bits, because shuffles across them are slower. Each shuffle moves four bytes of
 * each half to the tops of eight 32-bit lanes, which multiplies the codes by 2^24. */

#define OUT32_SHUFFLE(e0, e1, e2, e3)                                                                                  \
    _mm256_setr_epi8(-1, -1, -1, e0, -1, -1, -1, e1, -1, -1, -1, e2, -1, -1, -1, e3, -1, -1, -1, e0, -1, -1, -1, e1,   \
                     -1, -1, -1, e2, -1, -1, -1, e3)

/* The bf16 of numbers, given as upper and lower halves: adds the carry of lower + 0x7fff + the last bit of upper. */
X86_FN __m256i bf16_halves(__m256i upper, __m256i lower)
{
    const __m256i last = _mm256_and_si256(upper, _mm256_set1_epi16(1));
    /* Half of the sum, which fits into 16 bits. */
    const __m256i sum = _mm256_avg_epu16(lower, _mm256_add_epi16(last, _mm256_set1_epi16(0x7ffe)));
    return _mm256_add_epi16(upper, _mm256_srli_epi16(sum, 15));
}

/* Whether out32() takes even and odd elements in separate vectors. */
X86_FN bool in_even_and_odd(enum form form)
{
    return form == FORM_BF16;
}

/* The sixteen bf16 of the even and the odd elements; those of the lower halves come first. */
X86_FN __m256i bf16_16(__m256 evens, __m256 odds)
{
    const __m256i even = _mm256_castps_si256(evens), odd = _mm256_castps_si256(odds);
    const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
    const __m256i lower = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
    return bf16_halves(upper, lower);
}

/* Writes 32 values: x[k] has elements 4k to 4k + 3 and 16 + 4k to 16 + 4k + 3. For bf16, where in_even_and_odd()
 * says so, the first vector of each pair has the even elements and the second the odd ones. */
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

/* Codes times 2^24, in the order that out32() takes. */
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

/* Scales are at least 2^-60. So they stay exact when divided by 2^24, and the products are normal numbers. */
X86_FN void out32_scaled(struct out *out, __m256i codes, struct scale scale, float most, enum form form)
{
    const __m256 scale24 = _mm256_mul_ps(scale.of, _mm256_set1_ps(0x1p-24f));
    __m256i lanes[4];
    __m256 x[4];
    lanes32(lanes, codes, form);
    for (unsigned k = 0; k < 4; k++)
        x[k] = _mm256_mul_ps(_mm256_cvtepi32_ps(lanes[k]), scale24);
    if (form == FORM_F16)
        out32_count(out, x, magnitudes(_mm256_mul_ps(scale.of, _mm256_set1_ps(most))));
    out32(out, x, form);
}

X86_FN void out32_affine(struct out *out, __m256i codes, struct scale scale, struct scale add, float most,
                         enum form form)
{
    const __m256 scale24 = _mm256_mul_ps(scale.of, _mm256_set1_ps(0x1p-24f));
    __m256i lanes[4];
    __m256 x[4];
    lanes32(lanes, codes, form);
    for (unsigned k = 0; k < 4; k++)
        x[k] = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(lanes[k]), scale24), add.of);
    if (form == FORM_F16)
        out32_count(out, x,
                    _mm256_add_ps(magnitudes(_mm256_mul_ps(scale.of, _mm256_set1_ps(most))), magnitudes(add.of)));
    out32(out, x, form);
}

/* The scale is too small to be divided, so the codes are shifted down instead. */
X86_FN void out32_tiny(struct out *out, __m256i codes, struct scale scale, float most, enum form form)
{
    __m256i lanes[4];
    __m256 x[4];
    lanes32(lanes, codes, form);
    for (unsigned k = 0; k < 4; k++)
        x[k] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(lanes[k], 24)), scale.of);
    if (form == FORM_F16)
        out32_count(out, x, magnitudes(_mm256_mul_ps(scale.of, _mm256_set1_ps(most))));
    out32(out, x, form);
}

/* Products, rounded to bf16, in the upper half of each lane. */
X86_FN __m256i few_rounded(__m256 values, __m256 scale)
{
    const __m256i u = _mm256_castps_si256(_mm256_mul_ps(values, scale));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
}

/* The bf16 of the values times the scale. For each half of the elements: eight lower bytes, then eight upper bytes. */
X86_FN __m256i few_table(struct few few, struct scale scale)
{
    const __m256i bytes = _mm256_setr_epi8(2, 6, 10, 14, -1, -1, -1, -1, 3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1,
                                           2, 6, 10, 14, -1, -1, -1, -1, 3, 7, 11, 15);
    if (few.four) {
        const __m256i four = _mm256_broadcastsi128_si256(_mm256_castsi256_si128(bytes));
        return _mm256_shuffle_epi8(few_rounded(few.values, scale.of), four);
    }
    const __m256i low =
        _mm256_shuffle_epi8(few_rounded(few.values, _mm256_permute2f128_ps(scale.of, scale.of, 0x00)), bytes);
    if (!scale.differ)
        return _mm256_or_si256(low, _mm256_permute2x128_si256(low, low, 0x01));
    const __m256i high =
        _mm256_shuffle_epi8(few_rounded(few.values, _mm256_permute2f128_ps(scale.of, scale.of, 0x11)), bytes);
    return _mm256_or_si256(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

X86_FN void out32_few(struct out *out, __m256i codes, struct few few, struct scale scale, float most, enum form form)
{
    if (form != FORM_BF16) {
        out32_scaled(out, codes, scale, most, form);
        return;
    }
    const __m256i table = few_table(few, scale);
    const __m256i lower = _mm256_shuffle_epi8(table, few.index);
    const __m256i upper = _mm256_shuffle_epi8(table, _mm256_or_si256(few.index, _mm256_set1_epi8(8)));
    const __m256i upper_signed = _mm256_xor_si256(upper, _mm256_and_si256(few.signs, _mm256_set1_epi8((char)0x80)));
    const __m256i a = _mm256_unpacklo_epi8(lower, upper_signed), b = _mm256_unpackhi_epi8(lower, upper_signed);
    __m128i *const to = (__m128i *)out->at;
    _mm_storeu_si128(to, _mm256_castsi256_si128(a));
    _mm_storeu_si128(to + 1, _mm256_castsi256_si128(b));
    _mm_storeu_si128(to + 2, _mm256_extracti128_si256(a, 1));
    _mm_storeu_si128(to + 3, _mm256_extracti128_si256(b, 1));
    out->at += 64;
}
