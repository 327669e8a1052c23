/* The values in a GGUF file's metadata: their types, how many bytes they take, and the bounds within which daemon,
 * library and rfctl read them.
 *
 * Any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The most bytes that a model's headers may have: everything before the tensor data, in all its files together. Headers
 * of real models are much smaller. */
#define HEADER_BYTES_MAX (128ull << 20)

#define HEADER_KV_MAX    (1u << 16) /* keys */
#define GGUF_NESTING_MAX 8u         /* arrays in arrays */

/* Bytes of a string's length, which precedes the string in the file. */
#define GGUF_STRING_LENGTH 8u

/* The numbers are those that the file uses. */
enum gguf_value_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_VALUE_TYPE_COUNT,
};

/* Bytes of a value of fixed size; 0 for strings, arrays, and numbers that are no type. */
static inline size_t gguf_scalar_bytes(uint64_t type)
{
    static const uint8_t bytes[GGUF_VALUE_TYPE_COUNT] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_U64] = 8, [GGUF_BOOL] = 1, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };
    return type < GGUF_VALUE_TYPE_COUNT ? bytes[type] : 0;
}
