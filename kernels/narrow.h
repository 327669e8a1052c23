/* Conversion between f32 and f16 or bf16. One source for C, HIP and CUDA, so that CPUs and GPUs give the same bits,
 * whatever conversion instructions they have.
 *
 * Rounding is to nearest, ties to even; subnormals are kept. A finite value becomes infinite if its magnitude is at
 * least the midpoint between the largest finite number and the next power of two; f16_overflows() and bf16_overflows()
 * tell that. A NaN stays a NaN: its sign and the upper bits of its payload are kept and the quiet bit is set, as the
 * x86 instruction vcvtps2ph does. So f16 -> f32 -> f16 and bf16 -> f32 -> bf16 give back the same bits, but for
 * signalling NaNs, which become quiet.
 *
 * Compile without contraction and without flushing subnormals to zero: -ffp-contract=off, for nvcc -fmad=false. */
#pragma once

#include <stdint.h>

#if defined(__FAST_MATH__)
#error "results are exact, which -ffast-math (-Ofast) does not leave them"
#endif

/* To look at a float's bits, HIP and CUDA have functions, and C has memcpy(). */
#if defined(__CUDACC__) || defined(__HIPCC__)
#define BLOCK_FN static __device__ __forceinline__
#else
#include <string.h>
#define BLOCK_FN __attribute__((unused, always_inline)) static inline
#endif

/* a if `condition` is 1, b if it is 0. C uses masks: for ?: gcc makes branches, which are predicted badly on random
 * data and keep a loop from being vectorised. A GPU has an instruction for ?:. */
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

/* The f32, as bits, with the value of this f16; a NaN gets the quiet bit. All cases are computed and one is picked,
 * so that loops over this can be vectorised. */
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

/* The f16 nearest to this f32, both as bits. */
BLOCK_FN uint16_t f16_narrow_bits(uint32_t u)
{
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    /* Below 2^-14 the result is a multiple of 2^-24. That is also the last bit of numbers in [0.5, 1). So adding 0.5
     * rounds correctly, and the low bits of the sum are the result. This includes 1024, the smallest normal f16. */
    const uint32_t small = a < 0x38800000u;
    const uint32_t subnormal = f32_bits(f32_from_bits(pick(small, a, 0)) + 0.5f) - 0x3f000000u;
    /* Wraps around for smaller values, where it is not used. Rounding up gives 0x7c00 by itself from 65520 on, but
     * wrong values beyond 2^17. */
    const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    const uint32_t nan = 0x7e00u | ((a >> 13) & 0x3ffu);
    const uint32_t h = pick(small, subnormal, pick(a < 0x477ff000u, normal, pick(a <= 0x7f800000u, 0x7c00u, nan)));
    return (uint16_t)(sign | h);
}

BLOCK_FN uint16_t f32_to_f16(float x)
{
    return f16_narrow_bits(f32_bits(x));
}

/* 1 if x is finite and its f16 is not: if |x| is at least 65520. */
BLOCK_FN uint32_t f16_overflows(float x)
{
    return (f32_bits(x) & 0x7fffffffu) - 0x477ff000u < 0x7f800000u - 0x477ff000u;
}

BLOCK_FN float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* The bf16 nearest to this f32, both as bits. */
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
