/* Grid blocks (IQ1, IQ2, IQ3), for dequant_x86.h: grid entries are gathered 32 elements at a time. */
#pragma once

#include "kernels/dequant_x86.h"

/* Gives grid magnitudes their signs. They are below 128 and never 0, so a signed byte holds them, and the product's
 * sign comes out as blocks.h has it. */
X86_FN __m256i grid_signs(__m256i grid, uint32_t signs)
{
    return _mm256_sign_epi8(grid, _mm256_or_si256(bits32(signs), _mm256_set1_epi8(1)));
}

/* Four 7-bit sign indexes to four bytes of signs: the eighth bit makes the number of set bits even. */
X86_FN uint32_t signs_from_indexes(uint32_t w)
{
    return (uint32_t)ksigns_iq2xs[w & 127] | (uint32_t)ksigns_iq2xs[w >> 7 & 127] << 8 |
           (uint32_t)ksigns_iq2xs[w >> 14 & 127] << 16 | (uint32_t)ksigns_iq2xs[w >> 21 & 127] << 24;
}

X86_FN __m256i grid32(uint64_t g0, uint64_t g1, uint64_t g2, uint64_t g3)
{
    return _mm256_setr_epi64x((long long)g0, (long long)g1, (long long)g2, (long long)g3);
}

/* Eight entries of four bytes. Not vpgatherdd: it is no faster, and on some processors far slower. */
X86_FN __m256i grid8x4(const uint32_t *grid, const uint32_t indexes[8])
{
    return _mm256_setr_epi32((int)grid[indexes[0]], (int)grid[indexes[1]], (int)grid[indexes[2]], (int)grid[indexes[3]],
                             (int)grid[indexes[4]], (int)grid[indexes[5]], (int)grid[indexes[6]],
                             (int)grid[indexes[7]]);
}

/* d / 8 times the odd number of each of two 4-bit codes, lower nibble first. */
X86_FN __m256 iq2_scales(float d, unsigned codes)
{
    const float scales[2] = {d * (float)(int)(2 * (codes & 15) + 1), d * (float)(int)(2 * (codes >> 4) + 1)};
    return scale_pair(scales);
}

X86_FN void iq2_xxs_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b) * 0.125f;
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *p = b + 2 + 8 * k;
        const uint32_t w = u32_at(p + 4);
        const __m256i grid = grid32(iq2xxs_grid[p[0]], iq2xxs_grid[p[1]], iq2xxs_grid[p[2]], iq2xxs_grid[p[3]]);
        const float scale = d * (float)(int)(2 * (w >> 28) + 1);
        out32_scaled(out, grid_signs(grid, signs_from_indexes(w)), _mm256_set1_ps(scale), 43, form);
    }
}

X86_FN void iq2_xs_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b) * 0.125f;
    for (unsigned k = 0; k < 8; k++) {
        const uint64_t q = u64_at(b + 2 + 8 * k);
        const unsigned scale = b[66 + k];
        const __m256i grid = grid32(iq2xs_grid[q & 511], iq2xs_grid[q >> 16 & 511], iq2xs_grid[q >> 32 & 511],
                                    iq2xs_grid[q >> 48 & 511]);
        const uint32_t signs = (uint32_t)ksigns_iq2xs[q >> 9 & 127] | (uint32_t)ksigns_iq2xs[q >> 25 & 127] << 8 |
                               (uint32_t)ksigns_iq2xs[q >> 41 & 127] << 16 | (uint32_t)ksigns_iq2xs[q >> 57] << 24;
        out32_scaled(out, grid_signs(grid, signs), iq2_scales(d, scale), 43, form);
    }
}

X86_FN void iq2_s_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b) * 0.125f;
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 4 * k;
        const unsigned high = b[66 + k];
        const unsigned scale = b[74 + k];
        const __m256i grid = grid32(iq2s_grid[qs[0] | (high << 8 & 0x300)], iq2s_grid[qs[1] | (high << 6 & 0x300)],
                                    iq2s_grid[qs[2] | (high << 4 & 0x300)], iq2s_grid[qs[3] | (high << 2 & 0x300)]);
        out32_scaled(out, grid_signs(grid, u32_at(b + 34 + 4 * k)), iq2_scales(d, scale), 43, form);
    }
}

X86_FN void iq3_xxs_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b) * 0.25f;
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 8 * k;
        const uint32_t w = u32_at(b + 66 + 4 * k);
        const uint32_t indexes[8] = {qs[0], qs[1], qs[2], qs[3], qs[4], qs[5], qs[6], qs[7]};
        const float scale = d * (float)(int)(2 * (w >> 28) + 1);
        out32_scaled(out, grid_signs(grid8x4(iq3xxs_grid, indexes), signs_from_indexes(w)), _mm256_set1_ps(scale), 62,
                     form);
    }
}

X86_FN void iq3_s_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b);
    const uint32_t scales = u32_at(b + 106);
    const __m256i shifts = _mm256_setr_epi32(8, 7, 6, 5, 4, 3, 2, 1);
    const __m256i bit8 = _mm256_set1_epi32(256);
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 8 * k;
        const unsigned high = b[66 + k];
        /* The ninth bit of index i is bit i of `high`. */
        const __m256i ninth = _mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32((int)high), shifts), bit8);
        const __m256i low = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)qs));
        uint32_t indexes[8];
        _mm256_storeu_si256((__m256i *)indexes, _mm256_or_si256(low, ninth));
        const float scale = d * (float)(int)(2 * (scales >> (4 * k) & 15) + 1);
        out32_scaled(out, grid_signs(grid8x4(iq3s_grid, indexes), u32_at(b + 74 + 4 * k)), _mm256_set1_ps(scale), 15,
                     form);
    }
}

/* Eight elements of IQ1 are the grid's -1, 0 or 1 and an eighth more or less. Codes are eight times that. */
X86_FN __m256i iq1_codes(__m256i grid, __m256i ones)
{
    /* Shifted in 16 bits, what comes over from the lower byte goes. */
    const __m256i eights = _mm256_and_si256(_mm256_slli_epi16(grid, 3), _mm256_set1_epi8((char)0xf8));
    return _mm256_add_epi8(eights, ones);
}

X86_FN void iq1_s_x86(struct out *out, const uint8_t *b, enum form form)
{
    const float d = f16_at(b) * 0.125f;
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 2 + 4 * k;
        const unsigned w = block_u16(b + 34 + 2 * k);
        const __m256i grid = grid32(iq1s_grid[qs[0] | (w << 8 & 0x700)], iq1s_grid[qs[1] | (w << 5 & 0x700)],
                                    iq1s_grid[qs[2] | (w << 2 & 0x700)], iq1s_grid[qs[3] | (w >> 1 & 0x700)]);
        const __m256 scale = _mm256_set1_ps(d * (float)(int)(2 * (w >> 12 & 7) + 1));
        out32_scaled(out, iq1_codes(grid, _mm256_set1_epi8(w >> 15 ? -1 : 1)), scale, 9, form);
    }
}

X86_FN void iq1_m_x86(struct out *out, const uint8_t *b, enum form form)
{
    static const uint64_t ones[2] = {0x0101010101010101, 0xffffffffffffffff};
    const float d = f16_from_bits(iq1_m_d(b + 48)) * 0.125f;
    for (unsigned k = 0; k < 8; k++) {
        const uint8_t *qs = b + 4 * k;
        const unsigned n = block_u16(b + 32 + 2 * k);
        const unsigned codes = block_u16(b + 48 + 2 * (k / 2)) >> (6 * (k % 2));
        const __m256i grid = grid32(iq1s_grid[qs[0] | (n << 8 & 0x700)], iq1s_grid[qs[1] | (n << 4 & 0x700)],
                                    iq1s_grid[qs[2] | (n & 0x700)], iq1s_grid[qs[3] | (n >> 4 & 0x700)]);
        const __m256i delta = grid32(ones[n >> 3 & 1], ones[n >> 7 & 1], ones[n >> 11 & 1], ones[n >> 15]);
        const float scales[2] = {d * (float)(int)(2 * (codes & 7) + 1), d * (float)(int)(2 * (codes >> 3 & 7) + 1)};
        out32_scaled(out, iq1_codes(grid, delta), scale_pair(scales), 9, form);
    }
}
