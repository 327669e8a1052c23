/* Makes the decoders of dequant_x86_*.h into functions and a table of them, for X86_TARGET. Included once by each of
 * dequant_avx2.c and dequant_avx512.c, last.
 *
 * A call is worked off in chunks that fit the first-level cache. A chunk notes whether its scales could make
 * a number too large for a 16-bit form; only then is it decoded again, to f32, and the overflows are counted there. And
 * a call that writes more than any cache would keep decodes each chunk to a buffer and copies that out past the caches,
 * as memcpy does for such sizes: a plain store would first read what it overwrites. */
#pragma once

#include "kernels/dequant_x86_grid.h"
#include "kernels/dequant_x86_k.h"
#include "kernels/dequant_x86_plain.h"
#include "kernels/dequant_x86_small.h"

/* Elements, so up to 8 KiB of output; a multiple of every block. */
#define CHUNK_ELEMENTS 2048

/* From this size on, a call's output goes past the caches. Smaller outputs (a loader's chunks) are likely to be read
 * again soon, by a write or by a copy to a device, and had better stay. */
#define STREAM_BYTES ((size_t)32 << 20)

/* Decodes whole blocks; returns whether an overflow is possible. */
typedef bool x86_chunk_fn(uint8_t *dst, const uint8_t *src, size_t blocks);

/* A type and a form: sizes of a block, and the chunk decoders. */
struct x86_loop {
    size_t elements, src_bytes, dst_bytes;
    x86_chunk_fn *decode, *decode_f32;
    uint32_t limit; /* bits of the least f32 that overflows */
};

X86_FN void x86_stream(uint8_t *dst, const uint8_t *src, size_t size)
{
    const size_t head = -(uintptr_t)dst % 64;
    if (head >= size) {
        memcpy(dst, src, size);
        return;
    }
    memcpy(dst, src, head);
    size_t i = head;
    for (; i + 64 <= size; i += 64) {
        const __m256i a = bytes32_at(src + i);
        const __m256i b = bytes32_at(src + i + 32);
        _mm256_stream_si256((__m256i *)(dst + i), a);
        _mm256_stream_si256((__m256i *)(dst + i + 32), b);
    }
    memcpy(dst + i, src + i, size - i);
}

/* How many of `count` f32 values, a multiple of 8, are finite and at or above the limit. */
X86_FN uint64_t x86_count_overflows(const uint8_t *values, size_t count, uint32_t limit)
{
    const __m256i below = _mm256_set1_epi32((int)limit - 1);
    const __m256i infinity = _mm256_set1_epi32(0x7f800000);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < count; i += 8) {
        const __m256i a = _mm256_and_si256(bytes32_at(values + 4 * i), _mm256_set1_epi32(0x7fffffff));
        const __m256i over = _mm256_and_si256(_mm256_cmpgt_epi32(a, below), _mm256_cmpgt_epi32(infinity, a));
        sum = _mm256_sub_epi32(sum, over);
    }
    uint32_t lanes[8];
    _mm256_storeu_si256((__m256i *)lanes, sum);
    uint64_t total = 0;
    for (unsigned i = 0; i < 8; i++)
        total += lanes[i];
    return total;
}

__attribute__((target(X86_TARGET), noinline)) static uint64_t x86_chunks(uint8_t *dst, const uint8_t *src,
                                                                         size_t blocks, const struct x86_loop *loop)
{
    _Alignas(64) uint8_t buffer[4 * CHUNK_ELEMENTS];
    const bool streams = blocks * loop->dst_bytes >= STREAM_BYTES;
    const size_t step = CHUNK_ELEMENTS / loop->elements;
    uint64_t overflows = 0;
    for (size_t n; blocks > 0; blocks -= n, src += n * loop->src_bytes, dst += n * loop->dst_bytes) {
        n = blocks < step ? blocks : step;
        const bool suspicious = loop->decode(streams ? buffer : dst, src, n);
        if (streams)
            x86_stream(dst, buffer, n * loop->dst_bytes);
        if (suspicious) {
            loop->decode_f32(buffer, src, n);
            overflows += x86_count_overflows(buffer, n * loop->elements, loop->limit);
        }
    }
    if (streams)
        _mm_sfence();
    return overflows;
}

X86_FN bool x86_suspicious(__m256 worst, uint32_t limit)
{
    const __m256 reached = _mm256_cmp_ps(worst, _mm256_set1_ps(f32_from_bits(limit)), _CMP_GE_OQ);
    return _mm256_movemask_ps(reached) != 0;
}

/* `limit` has the bits of the least f32 that overflows. */
#define X86_LOOP(ident, elements, bytes, suffix, form, limit)                                                          \
    __attribute__((target(X86_TARGET))) static bool ident##_##suffix##_chunk(uint8_t *dst, const uint8_t *src,         \
                                                                             size_t blocks)                            \
    {                                                                                                                  \
        struct out out = {dst, _mm256_setzero_ps()};                                                                   \
        for (size_t i = 0; i < blocks; i++)                                                                            \
            ident##_x86(&out, src + i * bytes, form);                                                                  \
        return form != FORM_F32 && x86_suspicious(out.worst, limit);                                                   \
    }                                                                                                                  \
    static uint64_t ident##_##suffix(void *restrict dst, const void *restrict src, size_t blocks)                      \
    {                                                                                                                  \
        static const struct x86_loop loop =                                                                            \
            {                                                                                                          \
                elements,          bytes, elements * (form == FORM_F32 ? 4 : 2), ident##_##suffix##_chunk,             \
                ident##_f32_chunk, limit,                                                                              \
            };                                                                                                         \
        return x86_chunks(dst, src, blocks, &loop);                                                                    \
    }

/* f32 first: the others count with it. */
#define X86_LOOPS(ident, elements, bytes)                                                                              \
    X86_LOOP(ident, elements, bytes, f32, FORM_F32, 0)                                                                 \
    X86_LOOP(ident, elements, bytes, f16, FORM_F16, 0x477ff000)                                                        \
    X86_LOOP(ident, elements, bytes, bf16, FORM_BF16, 0x7f7f8000)

/* Sixteen elements of a plain type are its block here, and the reference does what is left. */
#define X86_REST(id, ident, bytes, suffix, form)                                                                       \
    static uint64_t ident##_##suffix(void *restrict dst, const void *restrict src, size_t blocks)                      \
    {                                                                                                                  \
        const size_t whole = blocks / 16 * 16;                                                                         \
        const uint64_t overflows = ident##_16_##suffix(dst, src, whole / 16);                                          \
        return overflows + dequant_reference[id][form]((uint8_t *)dst + whole * (form == FORM_F32 ? 4 : 2),            \
                                                       (const uint8_t *)src + whole * bytes, blocks - whole);          \
    }

#define TYPE_PLAIN_DEF(id, ident, name, bytes)                                                                         \
    X86_LOOPS(ident##_16, 16, (16 * bytes))                                                                            \
    X86_REST(id, ident, bytes, f32, FORM_F32)                                                                          \
    X86_REST(id, ident, bytes, f16, FORM_F16)                                                                          \
    X86_REST(id, ident, bytes, bf16, FORM_BF16)
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) X86_LOOPS(ident, elements, bytes)
#include "kernels/types.def"

dequant_table X86_TABLE = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               [id] = {NULL, ident##_f32, ident##_f16, ident##_bf16},
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) [id] = {NULL, ident##_f32, ident##_f16, ident##_bf16},
#include "kernels/types.def"
};
