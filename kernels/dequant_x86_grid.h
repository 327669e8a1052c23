/* The decoders of grid blocks (IQ1, IQ2, IQ3), for dequant_x86.h. They look up grid entries for 32 elements at a
 * time. */
#pragma once

#include "kernels/dequant_x86_k.h"

/* Gives the magnitudes of a grid their signs. They are below 128 and never 0, so a signed byte holds them, and the
 * sign of the product is as in blocks.h. */
X86_FN __m256i grid_signs(__m256i grid, uint32_t signs)
{
    return _mm256_sign_epi8(grid, _mm256_or_si256(bits32(signs), _mm256_set1_epi8(1)));
}

/* Makes four bytes of signs of four 7-bit sign indexes: the eighth bit makes the number of set bits even. */
X86_FN uint32_t signs_from_indexes(uint32_t w)
{
    return (uint32_t)ksigns_iq2xs[w & 127] | (uint32_t)ksigns_iq2xs[w >> 7 & 127] << 8 |
           (uint32_t)ksigns_iq2xs[w >> 14 & 127] << 16 | (uint32_t)ksigns_iq2xs[w >> 21 & 127] << 24;
}

/* IQ2 has the magnitudes 8, 25 and 43. Their last two bits differ. */
X86_FN void iq2_out32(struct out *out, __m256i grid, uint32_t signs, struct scale scale, enum form form)
{
    const struct few few = {
        .index = _mm256_and_si256(grid, _mm256_set1_epi8(3)),
        .signs = bits32(signs),
        .values = _mm256_setr_ps(8, 25, 0, 43, 8, 25, 0, 43),
        .four = true,
    };
    out32_few(out, grid_signs(grid, signs), few, scale, 43, form);
}

/* IQ3 has eight magnitudes, in ascending order. They differ in three bits from `shift` on. */
X86_FN void iq3_out32(struct out *out, __m256i grid, uint32_t signs, __m256 values, int shift, struct scale scale,
                      float most, enum form form)
{
    const struct few few = {
        .index = _mm256_and_si256(_mm256_srli_epi16(grid, shift), _mm256_set1_epi8(7)),
        .signs = bits32(signs),
        .values = values,
    };
    out32_few(out, grid_signs(grid, signs), few, scale, most, form);
}

X86_FN __m256i grid32(uint64_t g0, uint64_t g1, uint64_t g2, uint64_t g3)
{
    return _mm256_setr_epi64x((long long)g0, (long long)g1, (long long)g2, (long long)g3);
}

/* Eight entries of four bytes. The instruction vpgatherdd is no faster, and on some processors much slower. */
X86_FN __m256i grid8x4(const uint32_t *grid, const uint16_t indexes[8])
{
    return _mm256_setr_epi32((int)grid[indexes[0]], (int)grid[indexes[1]], (int)grid[indexes[2]], (int)grid[indexes[3]],
                             (int)grid[indexes[4]], (int)grid[indexes[5]], (int)grid[indexes[6]],
                             (int)grid[indexes[7]]);
}

/* Scales are (2 * code + 1) * d. Three functions: for eight codes in 32-bit lanes, for sixteen codes in bytes, and
 * for the sixteen codes in the nibbles of eight bytes. */
X86_FN void odd_scales8(float scales[8], __m256i codes, float d)
{
    const __m256i odd = _mm256_add_epi32(_mm256_add_epi32(codes, codes), _mm256_set1_epi32(1));
    _mm256_storeu_ps(scales, _mm256_mul_ps(_mm256_cvtepi32_ps(odd), _mm256_set1_ps(d)));
}

X86_FN void odd_scales16(float scales[16], __m128i codes, float d)
{
    scales16(scales, _mm_add_epi8(_mm_add_epi8(codes, codes), _mm_set1_epi8(1)), d);
}

X86_FN void iq2_scales(float scales[16], const uint8_t *p, float d)
{
    const __m128i codes = _mm_loadl_epi64((const __m128i *)p);
    odd_scales16(scales, _mm_unpacklo_epi8(low_nibbles(codes), high_nibbles(codes)), d);
}

X86_FN void iq2_xxs_x86(struct out *out, const uint8_t *b, enum form form)
{
    /* Every second 32-bit word; after the shuffle they are in the order 0, 1, 4, 5, 2, 3, 6, 7. */
    const __m256 words =
        _mm256_shuffle_ps(_mm256_castsi256_ps(bytes32_at(b + 2)), _mm256_castsi256_ps(bytes32_at(b + 34)), 0xdd);
    const __m256i ordered = _mm256_permute4x64_epi64(_mm256_castps_si256(words), _MM_SHUFFLE(3, 1, 2, 0));
    float scales[8];
    odd_scales8(scales, _mm256_srli_epi32(ordered, 28), f16_at(b) * 0.125f);
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *p = b + 2 + 8 * k;
        const uint32_t w = u32_at(p + 4);
        const __m256i grid = grid32(iq2xxs_grid[p[0]], iq2xxs_grid[p[1]], iq2xxs_grid[p[2]], iq2xxs_grid[p[3]]);
        iq2_out32(out, grid, signs_from_indexes(w), scale_both(scales[k]), form);
    }
}

X86_FN void iq2_xs_x86(struct out *out, const uint8_t *b, enum form form)
{
    float scales[16];
    iq2_scales(scales, b + 66, f16_at(b) * 0.125f);
    for (unsigned k = 0; k < 8; k++) {
        const uint64_t q = u64_at(b + 2 + 8 * k);
        const __m256i grid = grid32(iq2xs_grid[q & 511], iq2xs_grid[q >> 16 & 511], iq2xs_grid[q >> 32 & 511],
                                    iq2xs_grid[q >> 48 & 511]);
        const uint32_t signs = (uint32_t)ksigns_iq2xs[q >> 9 & 127] | (uint32_t)ksigns_iq2xs[q >> 25 & 127] << 8 |
                               (uint32_t)ksigns_iq2xs[q >> 41 & 127] << 16 | (uint32_t)ksigns_iq2xs[q >> 57] << 24;
        iq2_out32(out, grid, signs, scale_pair(scales + 2 * k), form);
    }
}

X86_FN void iq2_s_x86(struct out *out, const uint8_t *b, enum form form)
{
    float scales[16];
    iq2_scales(scales, b + 74, f16_at(b) * 0.125f);
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 4 * k;
        const unsigned high = b[66 + k];
        const __m256i grid = grid32(iq2s_grid[qs[0] | (high << 8 & 0x300)], iq2s_grid[qs[1] | (high << 6 & 0x300)],
                                    iq2s_grid[qs[2] | (high << 4 & 0x300)], iq2s_grid[qs[3] | (high << 2 & 0x300)]);
        iq2_out32(out, grid, u32_at(b + 34 + 4 * k), scale_pair(scales + 2 * k), form);
    }
}

X86_FN void iq3_xxs_x86(struct out *out, const uint8_t *b, enum form form)
{
    float scales[8];
    odd_scales8(scales, _mm256_srli_epi32(bytes32_at(b + 66), 28), f16_at(b) * 0.25f);
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 8 * k;
        const uint32_t w = u32_at(b + 66 + 4 * k);
        const uint64_t q = u64_at(qs);
        const uint16_t indexes[8] = {q & 255,       q >> 8 & 255,  q >> 16 & 255, q >> 24 & 255,
                                     q >> 32 & 255, q >> 40 & 255, q >> 48 & 255, q >> 56};
        iq3_out32(out, grid8x4(iq3xxs_grid, indexes), signs_from_indexes(w),
                  _mm256_setr_ps(4, 12, 20, 28, 36, 44, 52, 62), 3, scale_both(scales[k]), 62, form);
    }
}

/* 32 indexes of nine bits: eight bits come from a byte each, the ninth from four more bytes. */
X86_FN void iq3_s_indexes(uint16_t indexes[32], const uint8_t *qs, const uint8_t *qh)
{
    const __m256i low = bytes32_at(qs);
    const __m256i ninth = _mm256_and_si256(bits32(u32_at(qh)), _mm256_set1_epi8(1));
    const __m256i a = _mm256_unpacklo_epi8(low, ninth);
    const __m256i b = _mm256_unpackhi_epi8(low, ninth);
    _mm256_storeu_si256((__m256i *)indexes, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i *)(indexes + 16), _mm256_permute2x128_si256(a, b, 0x31));
}

X86_FN void iq3_s_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i nibbles =
        _mm256_srlv_epi32(_mm256_set1_epi32((int)u32_at(b + 106)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    float scales[8];
    odd_scales8(scales, _mm256_and_si256(nibbles, _mm256_set1_epi32(15)), f16_at(b));
    uint16_t indexes[64];
    iq3_s_indexes(indexes, b + 2, b + 66);
    iq3_s_indexes(indexes + 32, b + 34, b + 70);
    for (unsigned k = 0; k < 8; k++) {
        const __m256i grid = grid8x4(iq3s_grid, indexes + 8 * k);
        iq3_out32(out, grid, u32_at(b + 74 + 4 * k), _mm256_setr_ps(1, 3, 5, 7, 9, 11, 13, 15), 1,
                  scale_both(scales[k]), 15, form);
    }
}

/* An element of IQ1 is -1, 0 or 1 from the grid, plus or minus an eighth; `ones` is 1 for plus and -1 for minus. A
 * code here is eight times the element, so it is eight times the grid's value, plus or minus 1. */
X86_FN void iq1_out32(struct out *out, __m256i grid, __m256i ones, struct scale scale, enum form form)
{
    /* The shift works on 16 bits; bits that come from the lower byte are removed. */
    const __m256i eights = _mm256_and_si256(_mm256_slli_epi16(grid, 3), _mm256_set1_epi8((char)0xf8));
    const struct few few = {
        .index = _mm256_and_si256(_mm256_sign_epi8(grid, ones), _mm256_set1_epi8(3)),
        .signs = ones,
        .values = _mm256_setr_ps(1, 9, 0, -7, 1, 9, 0, -7),
        .four = true,
    };
    out32_few(out, _mm256_add_epi8(eights, ones), few, scale, 9, form);
}

X86_FN void iq1_s_x86(struct out *out, const uint8_t *b, enum form form)
{
    const __m256i codes = _mm256_srli_epi32(_mm256_cvtepu16_epi32(bytes16_at(b + 34)), 12);
    float scales[8];
    odd_scales8(scales, _mm256_and_si256(codes, _mm256_set1_epi32(7)), f16_at(b) * 0.125f);
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 4 * k;
        const unsigned w = block_u16(b + 34 + 2 * k);
        const __m256i grid = grid32(iq1s_grid[qs[0] | (w << 8 & 0x700)], iq1s_grid[qs[1] | (w << 5 & 0x700)],
                                    iq1s_grid[qs[2] | (w << 2 & 0x700)], iq1s_grid[qs[3] | (w >> 1 & 0x700)]);
        iq1_out32(out, grid, _mm256_set1_epi8(w >> 15 ? -1 : 1), scale_both(scales[k]), form);
    }
}

/* The sixteen scale codes: three bits each, in the lower twelve bits of four words. A multiplication moves each code
 * to the top of its lane. */
X86_FN __m128i iq1_m_codes(const uint8_t *p)
{
    const __m128i words = _mm_loadl_epi64((const __m128i *)p);
    const __m128i twice = _mm_unpacklo_epi16(words, words);
    const __m128i to_top = _mm_setr_epi16(1 << 13, 1 << 10, 1 << 7, 1 << 4, 1 << 13, 1 << 10, 1 << 7, 1 << 4);
    const __m128i first = _mm_mullo_epi16(_mm_unpacklo_epi32(twice, twice), to_top);
    const __m128i second = _mm_mullo_epi16(_mm_unpackhi_epi32(twice, twice), to_top);
    return _mm_packus_epi16(_mm_srli_epi16(first, 13), _mm_srli_epi16(second, 13));
}

X86_FN void iq1_m_x86(struct out *out, const uint8_t *b, enum form form)
{
    static const uint64_t ones[2] = {0x0101010101010101, 0xffffffffffffffff};
    float scales[16];
    odd_scales16(scales, iq1_m_codes(b + 48), f16_from_bits(iq1_m_d(b + 48)) * 0.125f);
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 4 * k;
        const unsigned n = block_u16(b + 32 + 2 * k);
        const __m256i grid = grid32(iq1s_grid[qs[0] | (n << 8 & 0x700)], iq1s_grid[qs[1] | (n << 4 & 0x700)],
                                    iq1s_grid[qs[2] | (n & 0x700)], iq1s_grid[qs[3] | (n >> 4 & 0x700)]);
        const __m256i delta = grid32(ones[n >> 3 & 1], ones[n >> 7 & 1], ones[n >> 11 & 1], ones[n >> 15]);
        iq1_out32(out, grid, delta, scale_pair(scales + 2 * k), form);
    }
}

#define X86_GRID_TYPES(type) type(iq2_xxs) type(iq2_xs) type(iq2_s) type(iq3_xxs) type(iq3_s) type(iq1_s) type(iq1_m)
