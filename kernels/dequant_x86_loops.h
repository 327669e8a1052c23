/* Makes the decoders of dequant_x86_*.h into functions and a table of them, for X86_TARGET. Included once by each of
 * dequant_avx2.c, dequant_avx512.c and dequant_avx512_bf16.c, last.
 *
 * A call that writes more than any cache would keep is worked off in chunks that fit the first-level one: each goes to
 * a buffer and from there past the caches, as memcpy does for such sizes. A plain store would first read what it
 * overwrites. */
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

/* Decodes whole blocks, returns how many values overflowed. */
typedef uint64_t x86_chunk_fn(uint8_t *dst, const uint8_t *src, size_t blocks);

/* Sizes of a block. */
struct x86_sizes {
    size_t elements, src_bytes, dst_bytes;
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

__attribute__((target(X86_TARGET), noinline)) static uint64_t x86_chunks(uint8_t *dst, const uint8_t *src,
                                                                         size_t blocks, const struct x86_sizes *sizes,
                                                                         x86_chunk_fn *decode)
{
    _Alignas(64) uint8_t buffer[4 * CHUNK_ELEMENTS];
    if (blocks * sizes->dst_bytes < STREAM_BYTES)
        return decode(dst, src, blocks);
    const size_t step = CHUNK_ELEMENTS / sizes->elements;
    uint64_t overflows = 0;
    for (size_t n; blocks > 0; blocks -= n, src += n * sizes->src_bytes, dst += n * sizes->dst_bytes) {
        n = blocks < step ? blocks : step;
        overflows += decode(buffer, src, n);
        x86_stream(dst, buffer, n * sizes->dst_bytes);
    }
    _mm_sfence();
    return overflows;
}

#define X86_LOOP(ident, elements, bytes, suffix, form)                                                                 \
    __attribute__((target(X86_TARGET))) static uint64_t ident##_##suffix##_chunk(uint8_t *dst, const uint8_t *src,     \
                                                                                 size_t blocks)                        \
    {                                                                                                                  \
        struct out out = {dst, 0};                                                                                     \
        for (size_t i = 0; i < blocks; i++)                                                                            \
            ident##_x86(&out, src + i * bytes, form);                                                                  \
        return out.overflows;                                                                                          \
    }                                                                                                                  \
    static uint64_t ident##_##suffix(void *restrict dst, const void *restrict src, size_t blocks)                      \
    {                                                                                                                  \
        static const struct x86_sizes sizes = {elements, bytes, elements * (form == FORM_F32 ? 4 : 2)};                \
        return x86_chunks(dst, src, blocks, &sizes, ident##_##suffix##_chunk);                                         \
    }

#define X86_LOOPS(ident, elements, bytes)                                                                              \
    X86_LOOP(ident, elements, bytes, f32, FORM_F32)                                                                    \
    X86_LOOP(ident, elements, bytes, f16, FORM_F16)                                                                    \
    X86_LOOP(ident, elements, bytes, bf16, FORM_BF16)

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
