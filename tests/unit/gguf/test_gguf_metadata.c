/* Which headers and metadata the GGUF parser takes and refuses, and where it says the fault is. */
#include "gguf_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void version_2(struct file *f)
{
    put_header(f, 2, 0, 0);
}

static void version_3(struct file *f)
{
    put_header(f, 3, 0, 0);
}

static void version_0(struct file *f)
{
    f->fault = 4;
    put_header(f, 0, 0, 0);
}

static void version_1(struct file *f)
{
    f->fault = 4;
    put_header(f, 1, 0, 0);
}

static void version_4(struct file *f)
{
    f->fault = 4;
    put_header(f, 4, 0, 0);
}

static void version_swapped(struct file *f)
{
    f->fault = 4;
    put_header(f, 0x03000000, 0, 0);
}

static void magic_other(struct file *f)
{
    f->fault = 0;
    put(f, "FUGG", 4);
    put_zeros(f, 40);
}

static void tensors_negative(struct file *f)
{
    f->fault = 8;
    put_header(f, 3, UINT64_C(1) << 63, 0);
}

static void tensors_too_many(struct file *f)
{
    f->fault = 8;
    put_header(f, 3, HEADER_TENSORS_MAX + 1, 0);
}

static void tensors_beyond_the_file(struct file *f)
{
    f->fault = 8;
    put_header(f, 3, 3, 0);
    put_zeros(f, 66);
}

static void keys_negative(struct file *f)
{
    f->fault = 16;
    put_header(f, 3, 0, UINT64_MAX);
}

static void keys_beyond_the_file(struct file *f)
{
    f->fault = 16;
    put_header(f, 3, 0, 2);
    put_zeros(f, 27);
}

static void key_empty(struct file *f)
{
    put_header(f, 3, 0, 1);
    mark(f);
    put_key(f, "", GGUF_U32);
    put_u32(f, 1);
}

static void key_twice(struct file *f)
{
    put_header(f, 3, 0, 3);
    put_key(f, "a", GGUF_U32);
    put_u32(f, 1);
    put_key(f, "b", GGUF_U32);
    put_u32(f, 1);
    mark(f);
    put_key(f, "a", GGUF_STRING);
    put_string(f, "other");
}

static void key_longest(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_u64(f, HEADER_KEY_MAX);
    for (unsigned i = 0; i < HEADER_KEY_MAX; i++)
        put_u8(f, 'k');
    put_u32(f, GGUF_U8);
    put_u8(f, 1);
}

static void key_too_long(struct file *f)
{
    put_header(f, 3, 0, 1);
    mark(f);
    put_u64(f, HEADER_KEY_MAX + 1);
    put_zeros(f, HEADER_KEY_MAX + 1 + 5);
}

static void key_wraps(struct file *f)
{
    put_header(f, 3, 0, 1);
    mark(f);
    put_u64(f, UINT64_MAX - 7);
    put_zeros(f, 20);
}

static void key_with_spaces(struct file *f)
{
    put_header(f, 3, 0, 2);
    put_key(f, "a key with spaces", GGUF_U8);
    put_u8(f, 1);
    put_key(f, "sch\xc3\xb6n \xff", GGUF_U8);
    put_u8(f, 1);
}

static void value_type_unknown(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_string(f, "key");
    mark(f);
    put_u32(f, GGUF_VALUE_TYPE_COUNT);
    put_u64(f, 0);
}

static void array_nested_empty(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_ARRAY);
    put_u64(f, 0);
}

/* Arrays of two arrays each, the innermost of so many bytes. */
static void put_nested(struct file *f, unsigned depth, unsigned marked)
{
    if (depth == marked)
        mark(f);
    put_u32(f, depth == 0 ? GGUF_U8 : GGUF_ARRAY);
    put_u64(f, depth == 0 ? 3 : 2);
    if (depth == 0)
        put(f, "abc", 3);
    for (unsigned i = 0; i < 2 && depth > 0; i++)
        put_nested(f, depth - 1, i == 0 ? marked : UINT32_MAX);
}

static void array_nested(struct file *f)
{
    put_header(f, 3, 0, 2);
    put_key(f, "key", GGUF_ARRAY);
    put_nested(f, GGUF_NESTING_MAX - 1, UINT32_MAX);
    put_key(f, "behind", GGUF_U8);
    put_u8(f, 1);
}

static void array_nested_deep(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_nested(f, GGUF_NESTING_MAX, 1);
}

static void array_nested_past_the_end(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_ARRAY);
    put_u64(f, 1);
    put_u32(f, GGUF_U64);
    mark(f);
    put_u64(f, UINT64_MAX / 8);
    put_zeros(f, 32);
}

static void array_nested_too_many(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_ARRAY);
    mark(f);
    put_u64(f, 3);
    put_zeros(f, 35);
}

static void array_of_unknown(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    mark(f);
    put_u32(f, 99);
    put_u64(f, 0);
}

static void array_empty(struct file *f)
{
    put_header(f, 3, 0, 2);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_STRING);
    put_u64(f, 0);
    put_key(f, "empty", GGUF_STRING);
    put_string(f, "");
}

static void array_wraps(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_U64);
    mark(f);
    put_u64(f, (UINT64_C(1) << 61) + 1); /* times 8 is 8 */
    put_zeros(f, 64);
}

static void array_of_strings_too_many(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_STRING);
    mark(f);
    put_u64(f, 9);
    put_zeros(f, 64);
}

static void array_string_too_long(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    put_u32(f, GGUF_STRING);
    put_u64(f, 2);
    put_string(f, "first");
    mark(f);
    put_u64(f, 9);
    put_zeros(f, 8);
}

static void bool_of_2(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_BOOL);
    put_u8(f, 2);
}

static void string_too_long(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_STRING);
    mark(f);
    put_u64(f, 100);
    put_zeros(f, 99);
}

static void string_wraps(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_STRING);
    mark(f);
    put_u64(f, UINT64_MAX);
    put_zeros(f, 99);
}

static void alignment_0(struct file *f)
{
    put_header(f, 3, 0, 1);
    f->fault = f->size + 8 + strlen("general.alignment") + 4;
    put_alignment(f, 0);
}

static void alignment_24(struct file *f)
{
    put_header(f, 3, 0, 1);
    f->fault = f->size + 8 + strlen("general.alignment") + 4;
    put_alignment(f, 24);
}

static void alignment_u64(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_string(f, "general.alignment");
    mark(f);
    put_u32(f, GGUF_U64);
    put_u64(f, 32);
}

static void alignment_array(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_string(f, "general.alignment");
    mark(f);
    put_u32(f, GGUF_ARRAY);
    put_u32(f, GGUF_U32);
    put_u64(f, 1);
    put_u32(f, 32);
}

static void alignment_1(struct file *f)
{
    put_header(f, 3, 1, 1);
    put_alignment(f, 1);
    put_info(f, "t", 1, 1, F32, 3);
    put_zeros(f, 7);
}

static void alignment_past_the_end(struct file *f)
{
    put_header(f, 3, 1, 1);
    put_alignment(f, 1u << 31);
    put_info(f, "t", 0, 1, F32, 0);
    mark(f);
    put_zeros(f, 1000);
}

/* clang-format off */
static const struct row rows[] = {
    {"version 2", version_2, NULL},
    {"version 3", version_3, NULL},
    {"version 0", version_0, "version 0 is not known"},
    {"version 1", version_1, "GGUF version 1 is not supported: convert it"},
    {"version 4", version_4, "version 4 is not known"},
    {"byte-swapped version", version_swapped, "big-endian file"},
    {"other magic", magic_other, "not a GGUF file"},
    {"n_tensors negative", tensors_negative, "tensors are more than"},
    {"n_tensors over our bound", tensors_too_many, "tensors are more than"},
    {"n_tensors beyond the file", tensors_beyond_the_file, "3 tensors do not fit"},
    {"n_kv negative", keys_negative, "keys are more than"},
    {"n_kv beyond the file", keys_beyond_the_file, "2 keys do not fit"},
    {"key empty", key_empty, "a key is empty"},
    {"key twice", key_twice, "a key stands twice"},
    {"key of 65535 bytes", key_longest, NULL},
    {"key of 65536 bytes", key_too_long, "a key is longer than 65535"},
    {"key's length wraps", key_wraps, "a key is longer than 65535"},
    {"key with spaces and other bytes", key_with_spaces, NULL},
    {"value type 13", value_type_unknown, "value type 13 is not known"},
    {"nested array, empty", array_nested_empty, NULL},
    {"arrays in arrays", array_nested, NULL},
    {"arrays in arrays, too deep", array_nested_deep, "more than 8 deep"},
    {"nested array past the end", array_nested_past_the_end, "reaches past the end"},
    {"nested arrays that do not fit", array_nested_too_many, "reaches past the end"},
    {"array of an unknown type", array_of_unknown, "value type 99 is not known"},
    {"empty array, empty string", array_empty, NULL},
    {"array's bytes wrap", array_wraps, "past the end of the file"},
    {"array of more strings than fit", array_of_strings_too_many, "array of 9 elements reaches past"},
    {"array's string too long", array_string_too_long, "a string of 9 bytes reaches past"},
    {"bool byte 2", bool_of_2, NULL},
    {"string beyond the file", string_too_long, "a string of 100 bytes reaches past"},
    {"string's length wraps", string_wraps, "reaches past the end of the file"},
    {"general.alignment 0", alignment_0, "general.alignment is 0"},
    {"general.alignment 24", alignment_24, "general.alignment is 24"},
    {"general.alignment as u64", alignment_u64, "general.alignment is not a u32"},
    {"general.alignment as an array", alignment_array, "general.alignment is not a u32"},
    {"general.alignment 1", alignment_1, NULL},
    {"general.alignment past the end", alignment_past_the_end, "ends before its tensor data"},
};
/* clang-format on */

int main(void)
{
    enum { ROWS = sizeof(rows) / sizeof(rows[0]) };
    struct CMUnitTest tests[ROWS];
    rows_tests(rows, ROWS, tests);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
