/* What the bytes of each tensor type mean: for each type of kernels/types.def one function that decodes elements of a
 * block to f32. One source for C, HIP and CUDA, so that the decoders of CPUs and GPUs give the same values.
 *
 * A plain type has `float x_decode(const uint8_t *element)`. A quantised type has `void x_decode8(const uint8_t *block,
 * unsigned group, float y[8])`, which decodes elements 8*group to 8*group + 7. Blocks have no alignment, so fields are
 * read byte by byte. Any bytes are valid. Nothing outside the block is read.
 *
 * Exactness: codes and scales are computed with integers. Each float operation is one IEEE operation, in the order
 * written. All products are exact in f32. Only the last addition, in types with a minimum, rounds. So a fused
 * multiply-add would not change a finite result; compile without contraction all the same (-ffp-contract=off,
 * -fmad=false). Flushing subnormals to zero does change results.
 *
 * Every loop over eight elements has constant bounds and is unrolled, so that a GPU keeps y[] in registers. */
#pragma once

#include "kernels/narrow.h"
#include "kernels/tables.h"

#include <stdint.h>

#if defined(__CUDACC__) || defined(__HIPCC__) || defined(__clang__)
#define BLOCK_UNROLL _Pragma("unroll")
#else
#define BLOCK_UNROLL _Pragma("GCC unroll 8")
#endif

/* Fields: little-endian, at any alignment. */

BLOCK_FN uint16_t block_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

BLOCK_FN uint32_t block_u32(const uint8_t *p)
{
    return (uint32_t)block_u16(p) | (uint32_t)block_u16(p + 2) << 16;
}

BLOCK_FN uint64_t block_u64(const uint8_t *p)
{
    return (uint64_t)block_u32(p) | (uint64_t)block_u32(p + 4) << 32;
}

BLOCK_FN float block_f16(const uint8_t *p)
{
    return f16_to_f32(block_u16(p));
}

/* Plain types. Integers are rounded to nearest even, as C does. */

BLOCK_FN float f32_decode(const uint8_t *p)
{
    return f32_from_bits(block_u32(p));
}

BLOCK_FN float f16_decode(const uint8_t *p)
{
    return block_f16(p);
}

BLOCK_FN float bf16_decode(const uint8_t *p)
{
    return bf16_to_f32(block_u16(p));
}

BLOCK_FN float f64_decode(const uint8_t *p)
{
    const uint64_t u = block_u64(p);
#if defined(__CUDACC__) || defined(__HIPCC__)
    return (float)__longlong_as_double((long long)u);
#else
    double x;
    memcpy(&x, &u, sizeof x);
    return (float)x;
#endif
}

BLOCK_FN float i8_decode(const uint8_t *p)
{
    return (float)(int8_t)p[0];
}

BLOCK_FN float i16_decode(const uint8_t *p)
{
    return (float)(int16_t)block_u16(p);
}

BLOCK_FN float i32_decode(const uint8_t *p)
{
    return (float)(int32_t)block_u32(p);
}

BLOCK_FN float i64_decode(const uint8_t *p)
{
    return (float)(int64_t)block_u64(p);
}

/* Blocks of 32 elements with 4-bit codes: elements 0..15 are the low nibbles of 16 bytes, 16..31 the high nibbles. */

BLOCK_FN int nibble32(const uint8_t *qs, unsigned group, unsigned j)
{
    return (qs[8 * (group % 2) + j] >> (4 * (group / 2))) & 15;
}

/* d f16, qs[16] */
BLOCK_FN void q4_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)(nibble32(b + 2, group, j) - 8) * d;
}

/* d f16, m f16, qs[16] */
BLOCK_FN void q4_1_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    const float m = block_f16(b + 2);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)nibble32(b + 4, group, j) * d + m;
}

/* d f16, qh[4]: bit e is bit 4 of element e, qs[16] */
BLOCK_FN void q5_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    const unsigned qh = b[2 + group];
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)((nibble32(b + 6, group, j) | (int)((qh >> j) & 1) << 4) - 16) * d;
}

/* d f16, m f16, qh[4], qs[16] */
BLOCK_FN void q5_1_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    const float m = block_f16(b + 2);
    const unsigned qh = b[4 + group];
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)(nibble32(b + 8, group, j) | (int)((qh >> j) & 1) << 4) * d + m;
}

/* d f16, qs[32] signed */
BLOCK_FN void q8_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)(int8_t)b[2 + 8 * group + j] * d;
}

/* d f16, qs[16]: a set bit is d, a clear one -d */
BLOCK_FN void q1_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const uint32_t d = f16_widen_bits(block_u16(b));
    const uint32_t clear = ~(uint32_t)b[2 + group];
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = f32_from_bits(d ^ ((clear >> j) & 1u) << 31);
}

/* d f16, qs[16]: 2-bit codes, -1..2 */
BLOCK_FN void q2_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    const unsigned q = block_u16(b + 2 + 2 * group);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)((int)((q >> (2 * j)) & 3) - 1) * d;
}

/* K blocks: 256 elements. The 2-bit fields of a half (128 elements) are in 32 bytes: element e of the half is bits
 * 2*(e/32) and the next one of byte e%32. For groups of 8: half = group/16, shift = 2*(group%16/4), bytes from
 * 32*half + 8*(group%4). */

BLOCK_FN unsigned k_half_offset(unsigned group)
{
    return 32 * (group / 16) + 8 * (group % 4);
}

BLOCK_FN unsigned k_half_shift(unsigned group)
{
    return 2 * (group % 16 / 4);
}

/* The 4-bit fields of 64 elements are in 32 bytes; the first 32 elements are the low nibbles. */
BLOCK_FN int k_nibble(const uint8_t *qs, unsigned group, unsigned j)
{
    return (qs[32 * (group / 8) + 8 * (group % 4) + j] >> (4 * (group / 4 % 2))) & 15;
}

/* scales[16]: the low nibble is the scale of 16 elements, the high nibble their minimum; qs[64], d f16, dmin f16 */
BLOCK_FN void q2_k_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const int scale = b[group / 2];
    const float d = block_f16(b + 80) * (float)(scale & 15);
    const float min = block_f16(b + 82) * (float)(scale >> 4);
    const uint8_t *qs = b + 16 + k_half_offset(group);
    const unsigned shift = k_half_shift(group);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)((qs[j] >> shift) & 3) - min;
}

/* hmask[32]: bit 4*half + shift/2 of byte e%32, qs[64], scales[12], d f16 */
BLOCK_FN void q3_k_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned k = group / 2;
    const uint8_t *scales = b + 96;
    const int low = k < 8 ? scales[k] & 15 : scales[k - 8] >> 4;
    const int high = (scales[8 + k % 4] >> (2 * (k / 4))) & 3;
    const float d = block_f16(b + 108) * (float)((low | high << 4) - 32);
    const uint8_t *qs = b + 32 + k_half_offset(group);
    const uint8_t *hmask = b + 8 * (group % 4);
    const unsigned shift = k_half_shift(group);
    const unsigned bit = group / 4;
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)((((qs[j] >> shift) & 3) | ((hmask[j] >> bit) & 1) << 2) - 4);
}

/* Eight pairs of a 6-bit scale and a 6-bit minimum, in 12 bytes. */
BLOCK_FN int k4_scale(const uint8_t *p, unsigned k)
{
    return k < 4 ? p[k] & 63 : (p[k + 4] & 15) | (p[k - 4] >> 6) << 4;
}

BLOCK_FN int k4_min(const uint8_t *p, unsigned k)
{
    return k < 4 ? p[k + 4] & 63 : p[k + 4] >> 4 | (p[k] >> 6) << 4;
}

/* d f16, dmin f16, scales[12], qs[128] */
BLOCK_FN void q4_k_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b) * (float)k4_scale(b + 4, group / 4);
    const float min = block_f16(b + 2) * (float)k4_min(b + 4, group / 4);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)k_nibble(b + 16, group, j) - min;
}

/* d f16, dmin f16, scales[12], qh[32]: bit e/32 of byte e%32, qs[128] */
BLOCK_FN void q5_k_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b) * (float)k4_scale(b + 4, group / 4);
    const float min = block_f16(b + 2) * (float)k4_min(b + 4, group / 4);
    const uint8_t *qh = b + 16 + 8 * (group % 4);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)(k_nibble(b + 48, group, j) | ((qh[j] >> (group / 4)) & 1) << 4) - min;
}

/* ql[128], qh[64], scales[16] signed, d f16. Of each half, the low nibbles of 64 bytes of ql are elements 0..63. */
BLOCK_FN void q6_k_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b + 208) * (float)(int8_t)b[192 + group / 2];
    const uint8_t *ql = b + 64 * (group / 16) + 8 * (group % 8);
    const uint8_t *qh = b + 128 + k_half_offset(group);
    const unsigned low_shift = 4 * (group % 16 / 8);
    const unsigned high_shift = k_half_shift(group);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)((((ql[j] >> low_shift) & 15) | ((qh[j] >> high_shift) & 3) << 4) - 32);
}

/* Grid blocks: an index selects the magnitudes of 8 (or 4) elements from a table, and a byte holds their signs. The
 * tables hold no zero. So the sign of a product is the exclusive or of both signs, for any d. */

BLOCK_FN float grid_signed(float magnitude, unsigned signs, unsigned j)
{
    return f32_from_bits(f32_bits(magnitude) ^ ((uint32_t)signs >> j & 1u) << 31);
}

BLOCK_FN void grid8(uint64_t grid, unsigned signs, float d, float y[8])
{
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = grid_signed(d * (float)(int)(grid >> (8 * j) & 255), signs, j);
}

BLOCK_FN void grid4x2(uint32_t grid0, uint32_t grid1, unsigned signs, float d, float y[8])
{
    grid8((uint64_t)grid0 | (uint64_t)grid1 << 32, signs, d, y);
}

/* d f16; for each 32 elements: 4 grid indexes, then u32: four 7-bit sign indexes and a 4-bit scale */
BLOCK_FN void iq2_xxs_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const uint8_t *p = b + 2 + 8 * (group / 4);
    const uint32_t w = block_u32(p + 4);
    const float d = block_f16(b) * (0.5f + (float)(int)(w >> 28)) * 0.25f;
    grid8(iq2xxs_grid[p[group % 4]], ksigns_iq2xs[w >> (7 * (group % 4)) & 127], d, y);
}

/* d f16, qs u16[32]: 9 bits of grid index, 7 of sign index; scales[8]: a nibble for each 16 */
BLOCK_FN void iq2_xs_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned q = block_u16(b + 2 + 2 * group);
    const int scale = b[66 + group / 4] >> (4 * (group / 2 % 2)) & 15;
    const float d = block_f16(b) * (0.5f + (float)scale) * 0.25f;
    grid8(iq2xs_grid[q & 511], ksigns_iq2xs[q >> 9], d, y);
}

/* d f16, qs[32], signs[32], qh[8]: two more index bits for each group, scales[8] */
BLOCK_FN void iq2_s_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned high = b[66 + group / 4] >> (2 * (group % 4)) & 3;
    const int scale = b[74 + group / 4] >> (4 * (group / 2 % 2)) & 15;
    const float d = block_f16(b) * (0.5f + (float)scale) * 0.25f;
    grid8(iq2s_grid[b[2 + group] | high << 8], b[34 + group], d, y);
}

/* d f16, qs[64]: a grid index for each 4; for each 32 elements a u32 as in iq2_xxs */
BLOCK_FN void iq3_xxs_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const uint8_t *qs = b + 2 + 2 * group;
    const uint32_t w = block_u32(b + 66 + 4 * (group / 4));
    const float d = block_f16(b) * (0.5f + (float)(int)(w >> 28)) * 0.5f;
    grid4x2(iq3xxs_grid[qs[0]], iq3xxs_grid[qs[1]], ksigns_iq2xs[w >> (7 * (group % 4)) & 127], d, y);
}

/* d f16, qs[64], qh[8]: the ninth bit of each index, signs[32], scales[4]: a nibble for each 32 */
BLOCK_FN void iq3_s_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const uint8_t *qs = b + 2 + 2 * group;
    const unsigned high = b[66 + group / 4] >> (2 * (group % 4));
    const int scale = b[106 + group / 8] >> (4 * (group / 4 % 2)) & 15;
    const float d = block_f16(b) * (float)(1 + 2 * scale);
    grid4x2(iq3s_grid[qs[0] | (high & 1) << 8], iq3s_grid[qs[1] | (high & 2) << 7], b[74 + group], d, y);
}

/* IQ1: the bytes of the table are -1, 0 or 1. An eighth is added or subtracted, so no sum is zero. */
BLOCK_FN void grid_ternary8(uint64_t grid, unsigned negative, float d, float y[8])
{
    const float delta = negative ? -0.125f : 0.125f;
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * ((float)(int8_t)(grid >> (8 * j) & 255) + delta);
}

/* d f16, qs[32], qh u16[8]: three more index bits for each group, 3-bit scale, sign of the eighth */
BLOCK_FN void iq1_s_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned w = block_u16(b + 34 + 2 * (group / 4));
    const unsigned high = w >> (3 * (group % 4)) & 7;
    const float d = block_f16(b) * (float)(int)(2 * (w >> 12 & 7) + 1);
    grid_ternary8(iq1s_grid[b[2 + group] | high << 8], w >> 15, d, y);
}

/* The f16 bits of d are the upper nibbles of the four scale words. */
BLOCK_FN uint16_t iq1_m_d(const uint8_t *scales)
{
    return (uint16_t)(scales[1] >> 4 | (scales[3] & 0xf0) | (scales[5] & 0xf0) << 4 | (scales[7] & 0xf0) << 8);
}

/* qs[32], qh[16]: for each group a nibble, three index bits and the sign of the eighth; u16[4]: four scales each */
BLOCK_FN void iq1_m_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned n = b[32 + group / 2] >> (4 * (group % 2)) & 15;
    const unsigned scale = block_u16(b + 48 + 2 * (group / 8)) >> (3 * (group / 2 % 4)) & 7;
    const float d = f16_to_f32(iq1_m_d(b + 48)) * (float)(int)(2 * scale + 1);
    grid_ternary8(iq1s_grid[b[group] | (n & 7) << 8], n >> 3, d, y);
}

/* 4-bit codes that select a value from a table. */

/* d f16, qs[16] */
BLOCK_FN void iq4_nl_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)kvalues_iq4nl[nibble32(b + 2, group, j)];
}

/* d f16, scales_h u16: two bits a scale, scales_l[4]: a nibble a scale, qs[128]: 16 bytes for each 32 elements */
BLOCK_FN void iq4_xs_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned k = group / 4;
    const int low = b[4 + k / 2] >> (4 * (k % 2)) & 15;
    const int high = block_u16(b + 2) >> (2 * k) & 3;
    const float d = block_f16(b) * (float)((low | high << 4) - 32);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = d * (float)kvalues_iq4nl[nibble32(b + 8 + 16 * k, group % 4, j)];
}

/* Ternary. */

/* qs[48]: five base-3 digits in each byte; qh[4]: four digits in each; d f16. A byte is the number 0.digits in base
 * 3, times 256, rounded up. Multiplying it by 3^n modulo 256 makes digit n the first one; multiplying that by 3
 * moves the digit into the bits above the lowest 8. */
BLOCK_FN void tq1_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b + 52);
    const unsigned first = group < 20 ? 8 * (group % 4) : group < 30 ? 32 + 8 * (group % 2) : 48;
    const unsigned digit = group < 20 ? group / 4 : group < 30 ? (group - 20) / 2 : 2 * (group - 30);
    const unsigned whole = group < 30; /* if not: the same four bytes twice, the second time with the next digit */
    const unsigned power = (unsigned)(0x511b090301ull >> (8 * digit)) & 255; /* 3^digit */
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        const unsigned shifted = b[first + (whole ? j : j % 4)] * (whole || j < 4 ? power : 3 * power) & 255;
        y[j] = (float)((int)(shifted * 3 >> 8) - 1) * d;
    }
}

/* qs[64] as in K blocks, d f16 */
BLOCK_FN void tq2_0_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = block_f16(b + 64);
    const uint8_t *qs = b + k_half_offset(group);
    const unsigned shift = k_half_shift(group);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)(((qs[j] >> shift) & 3) - 1) * d;
}

/* FP4: the table holds the doubled values, and the scales here are halved. */

/* Half of the E8M0 scale: 2^(x - 128). 255 is a number, not NaN; a product with it may overflow. */
BLOCK_FN float e8m0_half(unsigned x)
{
    return f32_from_bits(x < 2 ? 0x00200000u << x : (uint32_t)(x - 1) << 23);
}

/* Half of the UE4M3 scale. 0x7f is zero. Otherwise bit 7 is ignored, so 0xff is 240. Never NaN or infinite. */
BLOCK_FN float ue4m3_half(unsigned x)
{
    const uint32_t exponent = x >> 3 & 15;
    const uint32_t mantissa = x & 7;
    const uint32_t normal = (exponent + 119) << 23 | mantissa << 20;
    const uint32_t subnormal = f32_bits((float)(int)mantissa * 0.0009765625f); /* 2^-10 */
    return f32_from_bits(x == 0x7f ? 0 : exponent ? normal : subnormal);
}

/* x E8M0, qs[16] */
BLOCK_FN void mxfp4_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = e8m0_half(b[0]);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)kvalues_fp4[nibble32(b + 1, group, j)] * d;
}

/* x[4] UE4M3, one for each 16 elements; qs[32]: 8 bytes for each 16 */
BLOCK_FN void nvfp4_decode8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = ue4m3_half(b[group / 2]);
    const uint8_t *qs = b + 4 + 8 * (group / 2);
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = (float)kvalues_fp4[(qs[j] >> (4 * (group % 2))) & 15] * d;
}
