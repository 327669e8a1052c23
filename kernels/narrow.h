/* f16 and bf16: widening to f32 and rounding from it, one text for C, HIP and CUDA, so that a CPU and a GPU give the
 * same bits whatever conversion instructions they have.
 *
 * Rounding is to nearest, ties to even; subnormals are kept; a finite value at or above the midpoint between the
 * largest finite number and the next power of two becomes infinite, and f16_overflows() or bf16_overflows() says so. A
 * NaN stays one: sign and the upper bits of its payload are kept and the quiet bit is set (what x86 vcvtps2ph does), so
 * a signalling NaN becomes quiet and none turns into an infinity. Hence f16 -> f32 -> f16 and bf16 -> f32 -> bf16 give
 * back every pattern except that signalling NaNs come back quiet.
 *
 * Compile without contraction and without flushing to zero: -ffp-contract=off, for nvcc -fmad=false. */
#pragma once

#include <stdint.h>

#if defined(__FAST_MATH__)
#error "results are exact, which -ffast-math (-Ofast) does not leave them"
#endif

/* HIP and CUDA have their own way to look at a float's bits; C has memcpy. */
#if defined(__CUDACC__) || defined(__HIPCC__)
#define BLOCK_FN static __device__ __forceinline__
#else
#include <string.h>
#define BLOCK_FN __attribute__((unused, always_inline)) static inline
#endif

/* a if `condition` (0 or 1), else b. In C by masks: gcc makes branches of ?: round a float sum, which random data
 * defeats and which keep loops from becoming vectors. A GPU has an instruction for ?:. */
BLOCK_FN uint32_t pick(uint32_t condition, uint32_t a, uint32_t b)
{
#if defined(__CUDACC__) || defined(__HIPCC__)
    return condition ? a : b;
#else
    return b ^ ((a ^ b) & (0u - condition));
#endif
}

BLOCK_FN uint32_t f32_bits(float x)
{
#if defined(__CUDACC__) || defined(__HIPCC__)
    return __float_as_uint(x);
#else
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
#endif
}

BLOCK_FN float f32_from_bits(uint32_t u)
{
#if defined(__CUDACC__) || defined(__HIPCC__)
    return __uint_as_float(u);
#else
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
#endif
}

/* Bits of the f32 with the value of these f16 bits; for a NaN the payload with the quiet bit set. All arms are computed
 * and one is picked, so that loops over this vectorise. */
BLOCK_FN uint32_t f16_widen_bits(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t subnormal = f32_bits((float)(int32_t)magnitude * 5.9604644775390625e-8f); /* 2^-24, exact */
    const uint32_t special = 0x7f800000u | (magnitude << 13) | (uint32_t)(magnitude > 0x7c00u) << 22;
    return sign | pick(magnitude < 0x400u, subnormal, pick(magnitude < 0x7c00u, normal, special));
}

BLOCK_FN float f16_to_f32(uint16_t h)
{
    return f32_from_bits(f16_widen_bits(h));
}

/* Bits of the f16 nearest to the f32 with these bits. */
BLOCK_FN uint16_t f16_narrow_bits(uint32_t u)
{
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    /* Below 2^-14 the result counts in units of 2^-24. That is the last place of numbers in [0.5, 1), so adding 0.5
     * rounds to it, and the sum's low bits are the result (1024, the smallest normal f16, included). */
    const uint32_t small = a < 0x38800000u;
    const uint32_t subnormal = f32_bits(f32_from_bits(pick(small, a, 0)) + 0.5f) - 0x3f000000u;
    /* Wraps for the other arms, which then do not use it. Rounding up from 65520 on would give 0x7c00 by itself, but
     * beyond 2^17 it would not stop there. */
    const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    const uint32_t nan = 0x7e00u | ((a >> 13) & 0x3ffu);
    const uint32_t h = pick(small, subnormal, pick(a < 0x477ff000u, normal, pick(a <= 0x7f800000u, 0x7c00u, nan)));
    return (uint16_t)(sign | h);
}

BLOCK_FN uint16_t f32_to_f16(float x)
{
    return f16_narrow_bits(f32_bits(x));
}

/* 1 if x is finite and its f16 is not: |x| at or above 65520. */
BLOCK_FN uint32_t f16_overflows(float x)
{
    return (f32_bits(x) & 0x7fffffffu) - 0x477ff000u < 0x7f800000u - 0x477ff000u;
}

BLOCK_FN float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* Bits of the bf16 nearest to the f32 with these bits. */
BLOCK_FN uint16_t bf16_narrow_bits(uint32_t u)
{
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t nan = (u >> 16) | 0x40u;
    return (uint16_t)pick((u & 0x7fffffffu) > 0x7f800000u, nan, rounded);
}

BLOCK_FN uint16_t f32_to_bf16(float x)
{
    return bf16_narrow_bits(f32_bits(x));
}

/* 1 if x is finite and its bf16 is not. */
BLOCK_FN uint32_t bf16_overflows(float x)
{
    return (f32_bits(x) & 0x7fffffffu) - 0x7f7f8000u < 0x8000u;
}
