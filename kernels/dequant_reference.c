/* The plain decoders: loops that call the functions of kernels/blocks.h. Processors without special instructions run
 * them, and tests compare all other decoders with them.
 *
 * The benchmark compiles this file again, under another name and for the machine that it runs on. */
#include "kernels/blocks.h"
#include "kernels/dequant_isa.h"

/* How many elements are decoded before they are written. Decoding and rounding are then separate loops, which the
 * compiler can vectorise. A multiple of the elements of every block. */
#define BATCH 256

/* Writes values in a form, at any alignment. Returns how many values overflowed. */

BLOCK_FN uint64_t put_f32(uint8_t *dst, const float *y, size_t count)
{
    memcpy(dst, y, 4 * count);
    return 0;
}

BLOCK_FN uint64_t put_f16(uint8_t *dst, const float *y, size_t count)
{
    uint16_t h[BATCH];
    uint32_t overflows = 0;
    for (size_t i = 0; i < count; i++) {
        h[i] = f32_to_f16(y[i]);
        overflows += f16_overflows(y[i]);
    }
    // cppcheck-suppress uninitvar ; the first `count` were set
    memcpy(dst, h, 2 * count);
    return overflows;
}

BLOCK_FN uint64_t put_bf16(uint8_t *dst, const float *y, size_t count)
{
    uint16_t h[BATCH];
    uint32_t overflows = 0;
    for (size_t i = 0; i < count; i++) {
        h[i] = f32_to_bf16(y[i]);
        overflows += bf16_overflows(y[i]);
    }
    // cppcheck-suppress uninitvar ; the first `count` were set
    memcpy(dst, h, 2 * count);
    return overflows;
}

#define PLAIN_LOOP(ident, bytes, form, form_bytes)                                                                     \
    static uint64_t ident##_##form(void *restrict dst, const void *restrict src, size_t blocks)                        \
    {                                                                                                                  \
        uint8_t *d = dst;                                                                                              \
        const uint8_t *s = src;                                                                                        \
        uint64_t overflows = 0;                                                                                        \
        for (size_t n; blocks > 0; blocks -= n, s += n * bytes, d += n * form_bytes) {                                 \
            float y[BATCH];                                                                                            \
            n = blocks < BATCH ? blocks : BATCH;                                                                       \
            for (size_t i = 0; i < n; i++)                                                                             \
                y[i] = ident##_decode(s + i * bytes);                                                                  \
            overflows += put_##form(d, y, n);                                                                          \
        }                                                                                                              \
        return overflows;                                                                                              \
    }

#define QUANTISED_LOOP(ident, elements, bytes, form, form_bytes)                                                       \
    static uint64_t ident##_##form(void *restrict dst, const void *restrict src, size_t blocks)                        \
    {                                                                                                                  \
        uint8_t *d = dst;                                                                                              \
        const uint8_t *s = src;                                                                                        \
        uint64_t overflows = 0;                                                                                        \
        for (size_t i = 0; i < blocks; i++, s += bytes, d += elements * form_bytes) {                                  \
            float y[elements];                                                                                         \
            for (unsigned group = 0; group < elements / 8; group++)                                                    \
                ident##_decode8(s, group, y + 8 * group);                                                              \
            overflows += put_##form(d, y, elements);                                                                   \
        }                                                                                                              \
        return overflows;                                                                                              \
    }

#define TYPE_PLAIN_DEF(id, ident, name, bytes)                                                                         \
    PLAIN_LOOP(ident, bytes, f32, 4)                                                                                   \
    PLAIN_LOOP(ident, bytes, f16, 2)                                                                                   \
    PLAIN_LOOP(ident, bytes, bf16, 2)
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes)                                                           \
    QUANTISED_LOOP(ident, elements, bytes, f32, 4)                                                                     \
    QUANTISED_LOOP(ident, elements, bytes, f16, 2)                                                                     \
    QUANTISED_LOOP(ident, elements, bytes, bf16, 2)
#include "kernels/types.def"

dequant_table dequant_reference = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               [id] = {NULL, ident##_f32, ident##_f16, ident##_bf16},
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) [id] = {NULL, ident##_f32, ident##_f16, ident##_bf16},
#include "kernels/types.def"
};
