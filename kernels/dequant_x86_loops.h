/* Makes functions of the decoders in dequant_x86_*.h, and a table of these functions, for X86_TARGET. dequant_avx2.c,
 * dequant_avx512.c and dequant_avx512_bf16.c include it once each, as the last header.
 *
 * A call that writes more than any cache can hold writes around the caches, as memcpy() does for such sizes. An
 * ordinary store would first read the memory that it overwrites. Plain types write directly from registers. Blocks
 * are not decoded in the order of their elements; so they are decoded in chunks into a buffer in the first-level
 * cache, and the buffer is then written around the caches. */
#pragma once

#include "kernels/dequant_x86_grid.h"
#include "kernels/dequant_x86_k.h"
#include "kernels/dequant_x86_plain.h"
#include "kernels/dequant_x86_small.h"

/* In elements: at most 8 KiB of output. A multiple of the elements of every block. */
#define CHUNK_ELEMENTS 2048

/* Decodes whole blocks. Returns how many values overflowed. */
typedef uint64_t x86_chunk_fn(uint8_t *dst, const uint8_t *src, size_t blocks);

/* Sizes of a block, in bytes and elements. */
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
    if (blocks * sizes->dst_bytes < DEQUANT_STREAM_BYTES)
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

/* Bytes of a block, or of an element, as in types.def. */
enum {
/* clang-format off */
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               TYPE_BYTES_##ident = bytes,
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) TYPE_BYTES_##ident = bytes, TYPE_ELEMENTS_##ident = elements,
/* clang-format on */
#include "kernels/types.def"
};

#define FORM_BYTES(form) (form == FORM_F32 ? 4 : 2)

/* Decoders of a plain type, sixteen elements at a time. `past` writes around the caches and needs dst at a multiple
 * of 32. */
struct x86_plain {
    uint32_t id;
    enum form form;
    size_t src_bytes, dst_bytes; /* of one element */
    x86_chunk_fn *stay, *past;
};

/* The reference decodes the elements before the first aligned one, and those that are left at the end. If dst is not
 * even a multiple of the size of its elements, the output goes through the caches, whatever its size. */
__attribute__((target(X86_TARGET), noinline)) static uint64_t x86_sixteens(uint8_t *dst, const uint8_t *src,
                                                                           size_t elements,
                                                                           const struct x86_plain *type)
{
    dequant_fn *const few = dequant_reference[type->id][type->form];
    const bool past = elements * type->dst_bytes >= DEQUANT_STREAM_BYTES && (uintptr_t)dst % type->dst_bytes == 0;
    const size_t head = past ? -(uintptr_t)dst % 64 / type->dst_bytes : 0;
    uint64_t overflows = few(dst, src, head);
    dst += head * type->dst_bytes;
    src += head * type->src_bytes;
    const size_t sixteens = (elements - head) / 16;
    overflows += (past ? type->past : type->stay)(dst, src, sixteens);
    if (past)
        _mm_sfence();
    const size_t done = 16 * sixteens;
    return overflows + few(dst + done * type->dst_bytes, src + done * type->src_bytes, elements - head - done);
}

#define X86_LOOP(name, ident, src_bytes, form, past_caches)                                                            \
    __attribute__((target(X86_TARGET))) static uint64_t name(uint8_t *dst, const uint8_t *src, size_t count)           \
    {                                                                                                                  \
        struct out out = {dst, 0, past_caches};                                                                        \
        for (size_t i = 0; i < count; i++)                                                                             \
            ident##_x86(&out, src + i * (src_bytes), form);                                                            \
        return out.overflows;                                                                                          \
    }

#define X86_QUANTISED_FORM(ident, suffix, form)                                                                        \
    X86_LOOP(ident##_##suffix##_chunk, ident, TYPE_BYTES_##ident, form, false)                                         \
    static uint64_t ident##_##suffix(void *restrict dst, const void *restrict src, size_t blocks)                      \
    {                                                                                                                  \
        static const struct x86_sizes sizes = {TYPE_ELEMENTS_##ident, TYPE_BYTES_##ident,                              \
                                               TYPE_ELEMENTS_##ident * FORM_BYTES(form)};                              \
        return x86_chunks(dst, src, blocks, &sizes, ident##_##suffix##_chunk);                                         \
    }

#define X86_QUANTISED(ident)                                                                                           \
    X86_QUANTISED_FORM(ident, f32, FORM_F32)                                                                           \
    X86_QUANTISED_FORM(ident, f16, FORM_F16)                                                                           \
    X86_QUANTISED_FORM(ident, bf16, FORM_BF16)

#define X86_PLAIN_FORM(ident, suffix, to)                                                                              \
    X86_LOOP(ident##_##suffix##_stay, ident, 16 * TYPE_BYTES_##ident, to, false)                                       \
    X86_LOOP(ident##_##suffix##_past, ident, 16 * TYPE_BYTES_##ident, to, true)                                        \
    static uint64_t ident##_##suffix(void *restrict dst, const void *restrict src, size_t blocks)                      \
    {                                                                                                                  \
        static const struct x86_plain plain = {                                                                        \
            .id = TYPE_ID_##ident,                                                                                     \
            .form = to,                                                                                                \
            .src_bytes = TYPE_BYTES_##ident,                                                                           \
            .dst_bytes = FORM_BYTES(to),                                                                               \
            .stay = ident##_##suffix##_stay,                                                                           \
            .past = ident##_##suffix##_past,                                                                           \
        };                                                                                                             \
        return x86_sixteens(dst, src, blocks, &plain);                                                                 \
    }

#define X86_PLAIN(ident)                                                                                               \
    X86_PLAIN_FORM(ident, f32, FORM_F32)                                                                               \
    X86_PLAIN_FORM(ident, f16, FORM_F16)                                                                               \
    X86_PLAIN_FORM(ident, bf16, FORM_BF16)

X86_PLAIN_TYPES(X86_PLAIN)
X86_SMALL_TYPES(X86_QUANTISED)
X86_K_TYPES(X86_QUANTISED)
X86_GRID_TYPES(X86_QUANTISED)

#define X86_ENTRY(ident) [TYPE_ID_##ident] = {NULL, ident##_f32, ident##_f16, ident##_bf16},

/* clang-format off */
dequant_table X86_TABLE = {
    X86_PLAIN_TYPES(X86_ENTRY)
    X86_SMALL_TYPES(X86_ENTRY)
    X86_K_TYPES(X86_ENTRY)
    X86_GRID_TYPES(X86_ENTRY)
};
/* clang-format on */
