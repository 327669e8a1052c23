/* Faster decoders for NVIDIA GPUs, of those types whose decoder in kernels/blocks.h needs more time than the memory.
 * They give the same values with the same operations. But they take codes out of whole words, four at a time, and
 * convert them to floats byte by byte. Only kernels/dequant.hip includes this file, after kernels/blocks.h.
 *
 * Unlike those, these decoders need the block at the alignment that it has in an array of blocks that begins at a
 * multiple of 16. */
#pragma once

/* Eight bytes at a multiple of `alignment`, which divides the size of the block too. With alignment 1, up to 11
 * bytes are read, from the multiple of 4 before them. */
template <unsigned alignment> static __device__ __forceinline__ uint2 bytes8_at(const uint8_t *p)
{
    static_assert(alignment == 1 || alignment == 2 || alignment == 4 || alignment == 8, "");
    if (alignment == 8)
        return *reinterpret_cast<const uint2 *>(p);
    if (alignment == 4)
        return uint2{reinterpret_cast<const uint32_t *>(p)[0], reinterpret_cast<const uint32_t *>(p)[1]};
    if (alignment == 1) {
        const uint32_t *w = reinterpret_cast<const uint32_t *>(p - (uintptr_t)p % 4);
        const unsigned shift = (unsigned)((uintptr_t)p % 4) * 8;
        return uint2{__funnelshift_r(w[0], w[1], shift), __funnelshift_r(w[1], w[2], shift)};
    }
    const uint16_t *h = reinterpret_cast<const uint16_t *>(p);
    return uint2{h[0] | (uint32_t)h[1] << 16, h[2] | (uint32_t)h[3] << 16};
}

/* Byte j of a word, minus `bias`, as a float. 0x4b000000 is the float 2^23, whose lowest bit counts ones. Exact. */
template <unsigned bias> static __device__ __forceinline__ float code_float(uint32_t word, unsigned j)
{
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | j)) - (8388608.0f + (float)bias);
}

template <unsigned bias> static __device__ __forceinline__ void codes_float(uint2 codes, float y[8])
{
    BLOCK_UNROLL
    for (unsigned j = 0; j < 4; j++) {
        y[j] = code_float<bias>(codes.x, j);
        y[4 + j] = code_float<bias>(codes.y, j);
    }
}

/* The bits of `mask` in each byte, from bit `shift` on. */
static __device__ __forceinline__ uint2 fields(uint2 w, unsigned shift, uint32_t mask)
{
    return uint2{w.x >> shift & mask * 0x01010101u, w.y >> shift & mask * 0x01010101u};
}

/* Puts fields of other bytes above these, at bit `shift`. */
static __device__ __forceinline__ uint2 above(uint2 codes, uint2 upper, unsigned shift)
{
    return uint2{codes.x | upper.x << shift, codes.y | upper.y << shift};
}

/* Bit j of `bits` becomes the lowest bit of byte j. */
static __device__ __forceinline__ uint2 bits_spread(unsigned bits)
{
    return uint2{(bits & 15) * 0x00204081u & 0x01010101u, (bits >> 4) * 0x00204081u & 0x01010101u};
}

static __device__ __forceinline__ void scaled(float y[8], float d)
{
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = y[j] * d;
}

static __device__ __forceinline__ void scaled_plus(float y[8], float d, float m)
{
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = y[j] * d + m;
}

static __device__ __forceinline__ void scaled_minus(float y[8], float d, float min)
{
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++)
        y[j] = y[j] * d - min;
}

static __device__ __forceinline__ float f16_at(const uint8_t *p)
{
    return scale_to_f32(*reinterpret_cast<const uint16_t *>(p));
}

static __device__ __forceinline__ void q4_0_words8(const uint8_t *b, unsigned group, float y[8])
{
    codes_float<8>(fields(bytes8_at<2>(b + 2 + 8 * (group % 2)), 4 * (group / 2), 15), y);
    scaled(y, f16_at(b));
}

static __device__ __forceinline__ void q4_1_words8(const uint8_t *b, unsigned group, float y[8])
{
    codes_float<0>(fields(bytes8_at<4>(b + 4 + 8 * (group % 2)), 4 * (group / 2), 15), y);
    scaled_plus(y, f16_at(b), f16_at(b + 2));
}

static __device__ __forceinline__ void q5_0_words8(const uint8_t *b, unsigned group, float y[8])
{
    const uint2 low = fields(bytes8_at<2>(b + 6 + 8 * (group % 2)), 4 * (group / 2), 15);
    codes_float<16>(above(low, bits_spread(b[2 + group]), 4), y);
    scaled(y, f16_at(b));
}

static __device__ __forceinline__ void q5_1_words8(const uint8_t *b, unsigned group, float y[8])
{
    const uint2 low = fields(bytes8_at<8>(b + 8 + 8 * (group % 2)), 4 * (group / 2), 15);
    codes_float<0>(above(low, bits_spread(b[4 + group]), 4), y);
    scaled_plus(y, f16_at(b), f16_at(b + 2));
}

static __device__ __forceinline__ void q8_0_words8(const uint8_t *b, unsigned group, float y[8])
{
    const uint2 w = bytes8_at<2>(b + 2 + 8 * group);
    codes_float<128>(uint2{w.x ^ 0x80808080u, w.y ^ 0x80808080u}, y);
    scaled(y, f16_at(b));
}

static __device__ __forceinline__ void q2_k_words8(const uint8_t *b, unsigned group, float y[8])
{
    const int scale = b[group / 2];
    const float d = f16_at(b + 80) * (float)(scale & 15);
    const float min = f16_at(b + 82) * (float)(scale >> 4);
    codes_float<0>(fields(bytes8_at<4>(b + 16 + k_half_offset(group)), k_half_shift(group), 3), y);
    scaled_minus(y, d, min);
}

static __device__ __forceinline__ void q3_k_words8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned k = group / 2;
    const uint8_t *scales = b + 96;
    const int low = scales[k % 8] >> (k / 8 * 4) & 15;
    const int high = scales[8 + k % 4] >> (2 * (k / 4)) & 3;
    const float d = f16_at(b + 108) * (float)((low | high << 4) - 32);
    const uint2 codes = fields(bytes8_at<2>(b + 32 + k_half_offset(group)), k_half_shift(group), 3);
    codes_float<4>(above(codes, fields(bytes8_at<2>(b + 8 * (group % 4)), group / 4, 1), 2), y);
    scaled(y, d);
}

static __device__ __forceinline__ const uint8_t *k_nibbles(const uint8_t *qs, unsigned group)
{
    return qs + 32 * (group / 8) + 8 * (group % 4);
}

static __device__ __forceinline__ void q4_k_words8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = f16_at(b) * (float)k4_scale(b + 4, group / 4);
    const float min = f16_at(b + 2) * (float)k4_min(b + 4, group / 4);
    codes_float<0>(fields(bytes8_at<8>(k_nibbles(b + 16, group)), 4 * (group / 4 % 2), 15), y);
    scaled_minus(y, d, min);
}

static __device__ __forceinline__ void q5_k_words8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = f16_at(b) * (float)k4_scale(b + 4, group / 4);
    const float min = f16_at(b + 2) * (float)k4_min(b + 4, group / 4);
    const uint2 low = fields(bytes8_at<8>(k_nibbles(b + 48, group)), 4 * (group / 4 % 2), 15);
    codes_float<0>(above(low, fields(bytes8_at<8>(b + 16 + 8 * (group % 4)), group / 4, 1), 4), y);
    scaled_minus(y, d, min);
}

static __device__ __forceinline__ void q6_k_words8(const uint8_t *b, unsigned group, float y[8])
{
    const float d = f16_at(b + 208) * (float)(int8_t)b[192 + group / 2];
    const uint2 low = fields(bytes8_at<2>(b + 64 * (group / 16) + 8 * (group % 8)), 4 * (group % 16 / 8), 15);
    const uint2 high = fields(bytes8_at<2>(b + 128 + k_half_offset(group)), k_half_shift(group), 3);
    codes_float<32>(above(low, high, 4), y);
    scaled(y, d);
}

static __device__ __forceinline__ void tq2_0_words8(const uint8_t *b, unsigned group, float y[8])
{
    codes_float<1>(fields(bytes8_at<2>(b + k_half_offset(group)), k_half_shift(group), 3), y);
    scaled(y, f16_at(b + 64));
}

/* A table of sixteen signed bytes; 128 is added to each. In four words. */
struct words4 {
    uint32_t w[4];
};

static __device__ __forceinline__ uint32_t looked_up(const words4 &table, uint32_t codes)
{
    /* The lower three bits of each code as neighbouring nibbles: the selector of a byte permute. */
    const uint32_t low = codes & 0x07070707u;
    const uint32_t pairs = (low | low >> 4) & 0x00ff00ffu;
    const uint32_t choice = (pairs | pairs >> 8) & 0xffffu;
    const uint32_t first = __byte_perm(table.w[0], table.w[1], choice);
    const uint32_t second = __byte_perm(table.w[2], table.w[3], choice);
    const uint32_t upper = (codes >> 3 & 0x01010101u) * 255u;
    return (first & ~upper) | (second & upper);
}

static __device__ __forceinline__ void table_float(const words4 &table, uint2 codes, float y[8])
{
    codes_float<128>(uint2{looked_up(table, codes.x), looked_up(table, codes.y)}, y);
}

/* kvalues_iq4nl: -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113 */
static __device__ __forceinline__ words4 iq4nl_words(void)
{
    return words4{{0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u}};
}

/* kvalues_fp4: 0 1 2 3, 4 6 8 12, and the same values negative */
static __device__ __forceinline__ words4 fp4_words(void)
{
    return words4{{0x83828180u, 0x8c888684u, 0x7d7e7f80u, 0x74787a7cu}};
}

static __device__ __forceinline__ void iq4_nl_words8(const uint8_t *b, unsigned group, float y[8])
{
    table_float(iq4nl_words(), fields(bytes8_at<2>(b + 2 + 8 * (group % 2)), 4 * (group / 2), 15), y);
    scaled(y, f16_at(b));
}

static __device__ __forceinline__ void iq4_xs_words8(const uint8_t *b, unsigned group, float y[8])
{
    const unsigned k = group / 4;
    const int low = b[4 + k / 2] >> (4 * (k % 2)) & 15;
    const int high = *reinterpret_cast<const uint16_t *>(b + 2) >> (2 * k) & 3;
    const float d = f16_at(b) * (float)((low | high << 4) - 32);
    const uint2 qs = bytes8_at<8>(b + 8 + 16 * k + 8 * (group % 2));
    table_float(iq4nl_words(), fields(qs, 4 * (group % 4 / 2), 15), y);
    scaled(y, d);
}

static __device__ __forceinline__ void mxfp4_words8(const uint8_t *b, unsigned group, float y[8])
{
    table_float(fp4_words(), fields(bytes8_at<1>(b + 1 + 8 * (group % 2)), 4 * (group / 2), 15), y);
    scaled(y, e8m0_half(b[0]));
}

static __device__ __forceinline__ void nvfp4_words8(const uint8_t *b, unsigned group, float y[8])
{
    table_float(fp4_words(), fields(bytes8_at<4>(b + 4 + 8 * (group / 2)), 4 * (group % 2), 15), y);
    scaled(y, ue4m3_half(b[group / 2]));
}

#define iq4_nl_decode8 iq4_nl_words8
#define iq4_xs_decode8 iq4_xs_words8
#define mxfp4_decode8  mxfp4_words8
#define nvfp4_decode8  nvfp4_words8
#define q4_0_decode8   q4_0_words8
#define q4_1_decode8   q4_1_words8
#define q5_0_decode8   q5_0_words8
#define q5_1_decode8   q5_1_words8
#define q8_0_decode8   q8_0_words8
#define q2_k_decode8   q2_k_words8
#define q3_k_decode8   q3_k_words8
#define q4_k_decode8   q4_k_words8
#define q5_k_decode8   q5_k_words8
#define q6_k_decode8   q6_k_words8
#define tq2_0_decode8  tq2_0_words8
