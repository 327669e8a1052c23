/* The decoders of blocks of 32 to 128 elements, of ternary types, and of types with a table of sixteen values, for
 * dequant_x86.h. */
#pragma once

#include "kernels/dequant_x86.h"

X86_FN void q4_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i codes = _mm256_sub_epi8(nibbles32(b + 2), _mm256_set1_epi8(8));
    out32_scaled(out, codes, scale_both(f16_at(b)), 8, form);
}

X86_FN void q4_1_x86(struct out *out, const uint8_t *b, enum form form)
{
    out32_affine(out, nibbles32(b + 4), scale_both(f16_at(b)), scale_both(f16_at(b + 2)), 15, form);
}

X86_FN void q5_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    /* If the fifth bit is clear, 16 is subtracted. If it is set, 16 is added and subtracted, which changes nothing. */
    const __m256i less = _mm256_andnot_si256(bits32(u32_at(b + 2)), _mm256_set1_epi8(16));
    out32_scaled(out, _mm256_sub_epi8(nibbles32(b + 6), less), scale_both(f16_at(b)), 16, form);
}

X86_FN void q5_1_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i fifth = _mm256_and_si256(bits32(u32_at(b + 4)), _mm256_set1_epi8(16));
    out32_affine(out, _mm256_or_si256(nibbles32(b + 8), fifth), scale_both(f16_at(b)), scale_both(f16_at(b + 2)), 31,
                 form);
}

X86_FN void q8_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    out32_scaled(out, bytes32_at(b + 2), scale_both(f16_at(b)), 128, form);
}

/* Codes from -1 to 2. Their last two bits differ. */
X86_FN void out32_two_bits(struct out *out, __m256i codes, struct scale scale, enum form form)
{
    const struct few few = {
        .index = _mm256_and_si256(codes, _mm256_set1_epi8(3)),
        .signs = _mm256_setzero_si256(),
        .values = _mm256_setr_ps(0, 1, 2, -1, 0, 1, 2, -1),
        .four = true,
    };
    out32_few(out, codes, few, scale, 2, form);
}

X86_FN void q1_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    const struct scale d = scale_both(f16_at(b));
    for (unsigned i = 0; i < 16; i += 4) {
        const __m256i clear = bits32(~u32_at(b + 2 + i));
        out32_two_bits(out, _mm256_or_si256(clear, _mm256_set1_epi8(1)), d, form);
    }
}

X86_FN void q2_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    const struct scale d = scale_both(f16_at(b));
    /* Each byte four times. Of each four, the first two have the lower nibble and the others the upper. Of each
     * nibble, the first has the lower code and the second the upper code, which is multiplied by four. */
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6,
                                            6, 6, 6, 7, 7, 7, 7);
    const __m256i values = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0));
    for (unsigned i = 0; i < 16; i += 8) {
        const __m256i q = _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)u64_at(b + 2 + i)), spread);
        const __m256i nibbles = _mm256_blend_epi16(q, _mm256_srli_epi16(q, 4), 0xaa);
        const __m256i codes = _mm256_and_si256(nibbles, _mm256_set1_epi16(0x0c03));
        out32_two_bits(out, _mm256_shuffle_epi8(values, codes), d, form);
    }
}

/* A byte is a fraction in base-3 digits. The next digit is how many thirds it holds; the type subtracts 1. */
X86_FN __m256i tq1_0_codes(__m256i t)
{
    const __m256i one = _mm256_cmpeq_epi8(_mm256_max_epu8(t, _mm256_set1_epi8(86)), t);
    const __m256i two = _mm256_cmpeq_epi8(_mm256_max_epu8(t, _mm256_set1_epi8((char)171)), t);
    return _mm256_sub_epi8(_mm256_sub_epi8(_mm256_set1_epi8(-1), one), two);
}

X86_FN __m256i tripled(__m256i t)
{
    return _mm256_add_epi8(t, _mm256_add_epi8(t, t));
}

X86_FN void tq1_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    const struct scale d = scale_both(f16_at(b + 52));
    __m256i t = bytes32_at(b);
    for (unsigned digit = 0; digit < 5; digit++, t = tripled(t))
        out32_two_bits(out, tq1_0_codes(t), d, form);
    /* Sixteen bytes, used five times: twice two digits in two lanes, and once the fifth digit beside the last four
     * bytes. These four bytes are there four times; each copy is multiplied by 3 once more than the one before. */
    t = _mm256_broadcastsi128_si256(bytes16_at(b + 32));
    t = _mm256_blend_epi32(t, tripled(t), 0xf0);
    out32_two_bits(out, tq1_0_codes(t), d, form);
    t = tripled(tripled(t));
    out32_two_bits(out, tq1_0_codes(t), d, form);
    t = tripled(tripled(t));
    __m256i last = _mm256_set1_epi32((int)u32_at(b + 48));
    last = _mm256_blend_epi32(last, tripled(last), 0xee);
    last = _mm256_blend_epi32(last, tripled(last), 0xcc);
    last = _mm256_blend_epi32(last, tripled(last), 0x88);
    out32_two_bits(out, tq1_0_codes(_mm256_blend_epi32(t, last, 0xf0)), d, form);
}

X86_FN void tq2_0_x86(struct out *out, const uint8_t *b, enum form form)
{
    const struct scale d = scale_both(f16_at(b + 64));
    for (unsigned half = 0; half < 64; half += 32) {
        __m256i q = bytes32_at(b + half);
        for (unsigned i = 0; i < 4; i++, q = _mm256_srli_epi16(q, 2)) {
            const __m256i codes = _mm256_and_si256(q, _mm256_set1_epi8(3));
            out32_two_bits(out, _mm256_sub_epi8(codes, _mm256_set1_epi8(1)), d, form);
        }
    }
}

/* A table of sixteen signed bytes, copied to both lanes. */
X86_FN __m256i table16(const int8_t *table)
{
    return _mm256_broadcastsi128_si256(bytes16_at((const uint8_t *)table));
}

X86_FN void iq4_nl_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i codes = _mm256_shuffle_epi8(table16(kvalues_iq4nl), nibbles32(b + 2));
    out32_scaled(out, codes, scale_both(f16_at(b)), 127, form);
}

X86_FN void iq4_xs_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b);
    const unsigned high = block_u16(b + 2);
    const uint32_t low = u32_at(b + 4);
    for (unsigned k = 0; k < 8; k++) {
        const int scale = (int)((low >> (4 * k) & 15) | (high >> (2 * k) & 3) << 4) - 32;
        const __m256i codes = _mm256_shuffle_epi8(table16(kvalues_iq4nl), nibbles32(b + 8 + 16 * k));
        out32_scaled(out, codes, scale_both(d * (float)scale), 127, form);
    }
}

/* The only type whose scales may be as small as 2^-128. With the smallest two, products are subnormal. */
X86_FN void mxfp4_x86(struct out *out, const uint8_t *b, enum form form)
{
    if (X86_BF16 && form == FORM_BF16 && __builtin_expect(b[0] < 2, 0)) {
        dequant_reference[TYPE_ID_mxfp4][form](out->at, b, 1);
        out->at += 64;
        return;
    }
    const __m256i codes = _mm256_shuffle_epi8(table16(kvalues_fp4), nibbles32(b + 1));
    out32_tiny(out, codes, scale_both(e8m0_half(b[0])), 12, form);
}

X86_FN void nvfp4_x86(struct out *out, const uint8_t *b, enum form form)
{
    for (unsigned k = 0; k < 4; k += 2) {
        /* Puts the low nibbles of eight bytes before their high nibbles, then those of the next eight bytes. */
        const __m256i q = _mm256_permute4x64_epi64(_mm256_castsi128_si256(bytes16_at(b + 4 + 8 * k)), 0x50);
        const __m256i nibbles = _mm256_blend_epi32(q, _mm256_srli_epi16(q, 4), 0xcc);
        const __m256i codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        const float scales[2] = {ue4m3_half(b[k]), ue4m3_half(b[k + 1])};
        out32_scaled(out, _mm256_shuffle_epi8(table16(kvalues_fp4), codes), scale_pair(scales), 12, form);
    }
}

#define X86_SMALL_TYPES(type)                                                                                          \
    type(q4_0) type(q4_1) type(q5_0) type(q5_1) type(q8_0) type(q1_0) type(q2_0) type(tq1_0) type(tq2_0) type(iq4_nl)  \
        type(iq4_xs) type(mxfp4) type(nvfp4)
