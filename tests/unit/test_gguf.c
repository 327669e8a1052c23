/* What the GGUF parser takes and refuses, and where it says the fault is. Files are built in memory, one field after
 * another; a case marks the field that the parser has to blame. */
#include "daemon/gguf.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define NO_FAULT UINT64_MAX

enum { F32 = 0, F16 = 1, Q4_0 = 2, REMOVED = 4, Q8_1 = 9, Q4_K = 12, Q8_K = 15, I8 = 24, UNKNOWN = 43 };

struct file {
    uint8_t bytes[1 << 18];
    size_t size;
    uint64_t fault; /* of the field to blame */
};

/* --- Building --- */

static void put(struct file *f, const void *bytes, size_t size)
{
    assert_true(f->size + size <= sizeof f->bytes);
    memcpy(f->bytes + f->size, bytes, size);
    f->size += size;
}

static void put_u8(struct file *f, uint8_t value)
{
    put(f, &value, 1);
}

static void put_u32(struct file *f, uint32_t value)
{
    put(f, &value, 4);
}

static void put_u64(struct file *f, uint64_t value)
{
    put(f, &value, 8);
}

static void put_bytes(struct file *f, const char *text, size_t size)
{
    put_u64(f, size);
    put(f, text, size);
}

static void put_string(struct file *f, const char *text)
{
    put_bytes(f, text, strlen(text));
}

static void put_zeros(struct file *f, size_t size)
{
    for (size_t i = 0; i < size; i++)
        put_u8(f, 0);
}

/* The next field is the faulty one. */
static void mark(struct file *f)
{
    f->fault = f->size;
}

static void put_header(struct file *f, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    put(f, "GGUF", 4);
    put_u32(f, version);
    put_u64(f, n_tensors);
    put_u64(f, n_kv);
}

static void put_key(struct file *f, const char *key, uint32_t type)
{
    put_string(f, key);
    put_u32(f, type);
}

static void put_info(struct file *f, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset)
{
    put_string(f, name);
    put_u32(f, 2);
    put_u64(f, ne0);
    put_u64(f, ne1);
    put_u32(f, type);
    put_u64(f, offset);
}

static void put_padding(struct file *f, size_t alignment)
{
    while (f->size % alignment != 0)
        put_u8(f, 0);
}

static void put_alignment(struct file *f, uint32_t value)
{
    put_key(f, "general.alignment", GGUF_U32);
    put_u32(f, value);
}

/* --- Reading --- */

static int memfd(const void *bytes, size_t size)
{
    int fd = memfd_create("test.gguf", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), (ssize_t)size);
    return fd;
}

static int parse_bytes(const void *bytes, size_t size, struct gguf **ret, struct gguf_fault *ret_fault)
{
    int fd = memfd(bytes, size);
    int error = gguf_read(fd, size, ret, ret_fault);

    close(fd);
    return error;
}

static struct gguf *parse(const struct file *f)
{
    struct gguf_fault fault = {0};
    struct gguf *model = NULL;
    int error = parse_bytes(f->bytes, f->size, &model, &fault);

    if (error)
        fail_msg("refused at %llu: %s", (unsigned long long)fault.offset, fault.reason);
    return model;
}

/* --- What is taken, what is refused --- */

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
    put_header(f, 3, GGUF_TENSORS_MAX + 1, 0);
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
    put_u64(f, GGUF_KEY_MAX);
    for (unsigned i = 0; i < GGUF_KEY_MAX; i++)
        put_u8(f, 'k');
    put_u32(f, GGUF_U8);
    put_u8(f, 1);
}

static void key_too_long(struct file *f)
{
    put_header(f, 3, 0, 1);
    mark(f);
    put_u64(f, GGUF_KEY_MAX + 1);
    put_zeros(f, GGUF_KEY_MAX + 1 + 5);
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

static void array_nested(struct file *f)
{
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_ARRAY);
    mark(f);
    put_u32(f, GGUF_ARRAY);
    put_u64(f, 0);
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

static void dims_0(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_string(f, "scalar");
    put_u32(f, 0);
    put_u32(f, F32);
    put_u64(f, 0);
    put_padding(f, 32);
    put_zeros(f, 4);
}

static void dims_5(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_string(f, "t");
    mark(f);
    put_u32(f, 5);
    put_zeros(f, 100);
}

static void dims_wrap(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_string(f, "t");
    mark(f);
    put_u32(f, UINT32_MAX);
    put_zeros(f, 100);
}

static void dimension_0(struct file *f)
{
    put_header(f, 3, 2, 0);
    put_info(f, "empty", 0, 7, F32, 0);
    put_info(f, "huge but empty", UINT64_C(1) << 53, 0, Q4_0, 0);
    put_padding(f, 32);
}

static void dimension_negative(struct file *f)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4 + 8;
    put_info(f, "t", 1, UINT64_C(1) << 63, F32, 0);
    put_zeros(f, 100);
}

/* Our own bound, lower than that of ggml: what the wire can tell exactly. */
static void dimension_too_large(struct file *f)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4;
    put_info(f, "t", (UINT64_C(1) << 53) + 1, 0, I8, 0);
    put_zeros(f, 100);
}

static void rows_not_whole(struct file *f)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4;
    put_info(f, "t", 128, 2, Q4_K, 0);
    put_zeros(f, 1000);
}

static void type_case(struct file *f, uint32_t type)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4 + 16;
    put_info(f, "t", 256, 1, type, 0);
    put_zeros(f, 1000);
}

static void type_removed(struct file *f)
{
    type_case(f, REMOVED);
}

static void type_unknown(struct file *f)
{
    type_case(f, UNKNOWN);
}

static void type_negative(struct file *f)
{
    type_case(f, UINT32_MAX);
}

/* ggml takes these two; they are not made for files. */
static void type_q8_1(struct file *f)
{
    type_case(f, Q8_1);
}

static void type_q8_k(struct file *f)
{
    type_case(f, Q8_K);
}

/* ggml takes this; nobody could ask for such a tensor. */
static void name_empty(struct file *f)
{
    put_header(f, 3, 1, 0);
    mark(f);
    put_info(f, "", 1, 1, F32, 0);
    put_zeros(f, 100);
}

static void name_case(struct file *f, const char *name, size_t size, bool good)
{
    put_header(f, 3, 1, 0);
    if (!good)
        mark(f);
    put_bytes(f, name, size);
    put_u32(f, 0);
    put_u32(f, F32);
    put_u64(f, 0);
    put_padding(f, 32);
    put_zeros(f, 4);
}

static void name_63(struct file *f)
{
    name_case(f, "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz01234567890", 63, true);
}

static void name_64(struct file *f)
{
    name_case(f, "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz012345678901", 64, false);
}

static void name_with_nul(struct file *f)
{
    name_case(f, "a\0b", 3, false);
}

static void name_utf8(struct file *f)
{
    name_case(f, "gr\xc3\xb6\xc3\x9f\x65 \xe2\x82\xac \xf0\x9f\x90\xa7", 16, true);
}

static void name_stray_byte(struct file *f)
{
    name_case(f, "a\x80", 2, false);
}

static void name_overlong(struct file *f)
{
    name_case(f, "\xc0\xaf", 2, false);
}

static void name_surrogate(struct file *f)
{
    name_case(f, "\xed\xa0\x80", 3, false);
}

static void name_cut_short(struct file *f)
{
    name_case(f, "a\xe2\x82", 3, false);
}

static void name_beyond_unicode(struct file *f)
{
    name_case(f, "\xf4\x90\x80\x80", 4, false);
}

static void name_twice(struct file *f)
{
    put_header(f, 3, 3, 0);
    put_info(f, "t", 1, 1, F32, 0);
    put_info(f, "u", 1, 1, F32, 0);
    mark(f);
    put_info(f, "t", 1, 1, F32, 32);
    put_zeros(f, 200);
}

/* ggml wants tensors packed and in order. The format does not, and nothing here depends on it. */
static void layout_free(struct file *f)
{
    put_header(f, 3, 4, 0);
    put_info(f, "last first", 8, 1, F32, 64);
    put_info(f, "first last", 8, 1, F32, 32);
    put_info(f, "overlapping", 24, 1, F32, 32);
    put_info(f, "after a gap", 8, 1, F32, 256);
    put_padding(f, 32);
    put_zeros(f, 256 + 32);
}

static void offset_not_aligned(struct file *f)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4 + 16 + 4;
    put_info(f, "t", 1, 1, F32, 16);
    put_zeros(f, 100);
}

static void offset_case(struct file *f, uint64_t ne0, uint64_t offset)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4 + 16 + 4;
    put_info(f, "t", ne0, 1, F32, offset);
    put_padding(f, 32);
    put_zeros(f, 64);
}

static void offset_past_the_end(struct file *f)
{
    offset_case(f, 0, 96);
}

static void offset_wraps(struct file *f)
{
    offset_case(f, 1, UINT64_MAX - 31);
}

static void data_short(struct file *f)
{
    offset_case(f, 9, 32);
}

static void data_missing(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_info(f, "t", 8, 1, F32, 0);
    mark(f);
    f->fault -= 8;
    put_padding(f, 32);
}

static void padding_cut_short(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_info(f, "t", 0, 1, F32, 0);
    mark(f);
    put_padding(f, 32);
    f->size--;
}

static void last_padding_missing(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_info(f, "t", 1, 1, F32, 0);
    put_padding(f, 32);
    put_zeros(f, 4);
}

static void bytes_after_the_data(struct file *f)
{
    last_padding_missing(f);
    put_zeros(f, 1000);
}

/* Sizes that wrap to something harmless in 64 bits, which ggml takes. The second dimension is where it goes wrong. */
static void size_case(struct file *f, uint64_t ne0, uint64_t ne1, uint32_t type, unsigned field)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + field;
    put_info(f, "t", ne0, ne1, type, 0);
    put_padding(f, 32);
    put_zeros(f, 64);
}

#define FIELD_NE0    4
#define FIELD_NE1    12
#define FIELD_OFFSET 24

static void size_wraps_f32(struct file *f)
{
    size_case(f, UINT64_C(1) << 32, UINT64_C(1) << 32, F32, FIELD_NE1);
}

static void size_wraps_f32_uneven(struct file *f)
{
    size_case(f, UINT64_C(1) << 61, UINT64_C(1) << 3, F32, FIELD_NE0);
}

static void size_wraps_i8(struct file *f)
{
    size_case(f, UINT64_C(1) << 62, 2, I8, FIELD_NE0);
}

static void size_of_i8_at_the_bound(struct file *f)
{
    size_case(f, UINT64_C(1) << 53, UINT64_C(1) << 10, I8, FIELD_NE1);
}

static void size_wraps_q4_0(struct file *f)
{
    size_case(f, UINT64_C(1) << 32, UINT64_C(1) << 32, Q4_0, FIELD_NE1);
}

/* The elements fit 63 bits, the bytes do not fit 64. */
static void bytes_wrap(struct file *f)
{
    size_case(f, UINT64_C(1) << 40, UINT64_C(1) << 22, F32, FIELD_NE0);
}

/* Everything fits 64 bits; the file is not that long. */
static void bytes_huge(struct file *f)
{
    size_case(f, UINT64_C(1) << 40, UINT64_C(1) << 20, F32, FIELD_OFFSET);
}

struct row {
    const char *name;
    void (*build)(struct file *f);
    const char *reason; /* a part of it; NULL: the file is taken */
};

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
    {"nested array, though empty", array_nested, "array of arrays"},
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
    {"n_dims 0", dims_0, NULL},
    {"n_dims 5", dims_5, "5 dimensions"},
    {"n_dims 2^32 - 1", dims_wrap, "4294967295 dimensions"},
    {"a dimension 0", dimension_0, NULL},
    {"a dimension of 2^63", dimension_negative, "larger than 2^53"},
    {"a dimension over 2^53", dimension_too_large, "larger than 2^53"},
    {"ne0 not whole blocks", rows_not_whole, "rows of 128 elements are not whole q4_K blocks of 256"},
    {"type removed", type_removed, "tensor type q4_2 was removed"},
    {"type 43", type_unknown, "tensor type 43 is not known"},
    {"type negative", type_negative, "tensor type 4294967295 is not known"},
    {"type Q8_1", type_q8_1, "tensor type q8_1 is internal"},
    {"type Q8_K", type_q8_k, "tensor type q8_K is internal"},
    {"empty tensor name", name_empty, "name is empty"},
    {"name of 63 bytes", name_63, NULL},
    {"name of 64 bytes", name_64, "name is longer than 63"},
    {"name with NUL", name_with_nul, "NUL"},
    {"name in UTF-8", name_utf8, NULL},
    {"name with a stray byte", name_stray_byte, "not UTF-8"},
    {"name with an overlong form", name_overlong, "not UTF-8"},
    {"name with a surrogate", name_surrogate, "not UTF-8"},
    {"name cut in a character", name_cut_short, "not UTF-8"},
    {"name beyond Unicode", name_beyond_unicode, "not UTF-8"},
    {"tensor name twice", name_twice, "two tensors are called t"},
    {"gap, overlap, other order", layout_free, NULL},
    {"offset not aligned", offset_not_aligned, "offset 16 is not a multiple of 32"},
    {"offset past the end", offset_past_the_end, "t begins past the end"},
    {"offset wraps", offset_wraps, "t begins past the end"},
    {"data short", data_short, "t reaches past the end"},
    {"data missing", data_missing, "t reaches past the end"},
    {"padding cut short", padding_cut_short, "ends before its tensor data"},
    {"padding after the last tensor missing", last_padding_missing, NULL},
    {"bytes after the data", bytes_after_the_data, NULL},
    {"F32 (2^32, 2^32)", size_wraps_f32, "product of a tensor's dimensions"},
    {"F32 (2^61, 2^3)", size_wraps_f32_uneven, "larger than 2^53"},
    {"I8 (2^62, 2)", size_wraps_i8, "larger than 2^53"},
    {"I8 (2^53, 2^10)", size_of_i8_at_the_bound, "product of a tensor's dimensions"},
    {"Q4_0 (2^32, 2^32)", size_wraps_q4_0, "product of a tensor's dimensions"},
    {"F32 (2^40, 2^22)", bytes_wrap, "larger than 2^64 bytes"},
    {"F32 (2^40, 2^20)", bytes_huge, "t reaches past the end"},
};
/* clang-format on */

static void test_row(void **state)
{
    const struct row *row = *state;
    struct file *f = calloc(1, sizeof *f);
    struct gguf_fault fault = {0};
    struct gguf *model = NULL;

    f->fault = NO_FAULT;
    row->build(f);
    int error = parse_bytes(f->bytes, f->size, &model, &fault);
    if (!row->reason) {
        if (error)
            fail_msg("refused at %llu: %s", (unsigned long long)fault.offset, fault.reason);
        assert_non_null(model);
    } else {
        assert_int_equal(error, -EBADMSG);
        assert_null(model);
        if (!strstr(fault.reason, row->reason))
            fail_msg("the reason is: %s", fault.reason);
        assert_int_equal(fault.offset, f->fault);
    }
    gguf_free(model);
    free(f);
}

/* --- A whole model --- */

/* Remembers where each field begins: a file cut inside a field is blamed there. */
static size_t fields[64], n_fields;

static void field(struct file *f)
{
    fields[n_fields++] = f->size;
}

static void build_valid(struct file *f)
{
    n_fields = 0;
    field(f);
    put(f, "GGUF", 4);
    field(f);
    put_u32(f, 3);
    field(f);
    put_u64(f, 2);
    field(f);
    put_u64(f, 3);
    field(f);
    put_string(f, "general.architecture");
    field(f);
    put_u32(f, GGUF_STRING);
    field(f);
    put_string(f, "llama");
    field(f);
    put_string(f, "general.alignment");
    field(f);
    put_u32(f, GGUF_U32);
    field(f);
    put_u32(f, 64);
    field(f);
    put_string(f, "tokens");
    field(f);
    put_u32(f, GGUF_ARRAY);
    field(f);
    put_u32(f, GGUF_STRING);
    field(f);
    put_u64(f, 2);
    field(f);
    put_string(f, "<s>");
    field(f);
    put_string(f, "</s>");
    for (unsigned i = 0; i < 2; i++) {
        field(f);
        put_string(f, i == 0 ? "token_embd.weight" : "output_norm.weight");
        field(f);
        put_u32(f, 2);
        field(f);
        put_u64(f, i == 0 ? 64 : 3);
        field(f);
        put_u64(f, i == 0 ? 2 : 1);
        field(f);
        put_u32(f, i == 0 ? Q4_0 : F32);
        field(f);
        put_u64(f, i == 0 ? 0 : 128);
    }
    field(f);
    put_padding(f, 64);
    put_zeros(f, 128 + 12);
}

static void test_valid(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct gguf_string string;
    uint64_t number;

    (void)state;
    build_valid(f);
    struct gguf *model = parse(f);
    assert_int_equal(model->version, 3);
    assert_int_equal(model->alignment, 64);
    assert_int_equal(model->data_start, f->size - 140);
    assert_int_equal(model->file_size, f->size);

    assert_int_equal(model->n_kv, 3);
    const struct gguf_kv *kv = gguf_find(model, "general.architecture");
    assert_ptr_equal(kv, &model->kv[0]);
    assert_int_equal(gguf_kv_string(kv, &string), 0);
    assert_int_equal(string.size, 5);
    assert_memory_equal(string.bytes, "llama", 5);
    assert_int_equal(gguf_kv_u64(gguf_find(model, "general.alignment"), &number), 0);
    assert_int_equal(number, 64);
    kv = gguf_find(model, "tokens");
    assert_int_equal(kv->type, GGUF_ARRAY);
    assert_int_equal(kv->element_type, GGUF_STRING);
    assert_int_equal(kv->count, 2);
    assert_int_equal(kv->data_size, 8 + 3 + 8 + 4);
    assert_null(gguf_find(model, "token"));
    assert_null(gguf_find(model, "general.alignment2"));

    assert_int_equal(model->n_tensors, 2);
    const struct gguf_tensor *tensor = gguf_tensor_find(model, "token_embd.weight");
    assert_ptr_equal(tensor, &model->tensors[0]);
    assert_string_equal(tensor->type->name, "q4_0");
    assert_int_equal(tensor->n_dims, 2);
    assert_int_equal(tensor->ne[0], 64);
    assert_int_equal(tensor->ne[1], 2);
    assert_int_equal(tensor->ne[2], 1);
    assert_int_equal(tensor->elements, 128);
    assert_int_equal(tensor->bytes, 72);
    assert_int_equal(tensor->offset, model->data_start);
    tensor = gguf_tensor_find(model, "output_norm.weight");
    assert_int_equal(tensor->offset, model->data_start + 128);
    assert_int_equal(tensor->bytes, 12);
    assert_null(gguf_tensor_find(model, "output_norm"));
    gguf_free(model);
    gguf_free(NULL);
    free(f);
}

/* Cut anywhere, the file is refused. Inside the header, counts that no longer fit may be blamed before the end is met;
 * else it is the field in which the file ends. */
static void test_truncation(void **state)
{
    struct file *f = calloc(1, sizeof *f);

    (void)state;
    build_valid(f);
    for (size_t size = 0; size < f->size; size++) {
        struct gguf_fault fault = {0};
        struct gguf *model = NULL;
        size_t cut = 0;

        assert_int_equal(parse_bytes(f->bytes, size, &model, &fault), -EBADMSG);
        assert_null(model);
        assert_non_null(strstr(fault.reason, "the file"));
        for (size_t i = 0; i < n_fields && fields[i] <= size; i++)
            cut = fields[i];
        bool count = strstr(fault.reason, "do not fit") && (fault.offset == 8 || fault.offset == 16);
        bool data = size >= fields[n_fields - 1] && strstr(fault.reason, "the file");
        bool array = strstr(fault.reason, "array of 2 elements") && fault.offset == fields[13];
        if (fault.offset != cut && !count && !data && !array)
            fail_msg("cut at %zu: refused at %llu: %s", size, (unsigned long long)fault.offset, fault.reason);
    }
    free(f);
}

/* The file is shorter than fstat() said: not a fault of the file, but a change of it. */
static void test_shrunk(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct gguf_fault fault;
    struct gguf *model = NULL;

    (void)state;
    build_valid(f);
    int fd = memfd(f->bytes, 100);
    assert_int_equal(gguf_read(fd, f->size, &model, &fault), -ENODATA);
    close(fd);
    assert_int_equal(gguf_read(-1, f->size, &model, &fault), -EBADF);
    assert_null(model);
    free(f);
}

/* Says it has a header of 2 GiB, and really has it, in a file without blocks. */
static void test_header_too_large(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct gguf_fault fault;
    struct gguf *model = NULL;

    (void)state;
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_STRING);
    mark(f);
    put_u64(f, UINT64_C(2) << 30);
    int fd = memfd(f->bytes, f->size);
    assert_int_equal(ftruncate(fd, INT64_C(3) << 30), 0);
    assert_int_equal(gguf_read(fd, UINT64_C(3) << 30, &model, &fault), -EBADMSG);
    assert_string_equal(fault.reason, "the header is larger than 128 MiB");
    assert_int_equal(fault.offset, f->fault);
    close(fd);

    assert_int_equal(gguf_read(-1, (UINT64_C(1) << 53) + 1, &model, &fault), -EBADMSG);
    assert_string_equal(fault.reason, "the file is larger than 2^53 bytes");
    free(f);
}

/* As many names as there may be, which a search through all earlier ones would take a minute for. */
static void test_many_names(void **state)
{
    enum { N = GGUF_TENSORS_MAX, INFO = 8 + 7 + 4 + 4 + 8 };
    size_t size = 24 + (size_t)N * INFO;
    size_t aligned = (size + 31) & ~(size_t)31;
    uint8_t *bytes = calloc(1, aligned + 4);
    struct gguf_fault fault;
    struct gguf *model = NULL;
    char name[16];

    (void)state;
    struct file *head = calloc(1, sizeof *head);
    put_header(head, 3, N, 0);
    memcpy(bytes, head->bytes, 24);
    for (unsigned i = 0; i < N; i++) {
        uint8_t *info = bytes + 24 + (size_t)i * INFO;

        snprintf(name, sizeof name, "t%06x", i);
        info[0] = 7;
        memcpy(info + 8, name, 7);
    }
    assert_int_equal(parse_bytes(bytes, aligned + 4, &model, &fault), 0);
    assert_int_equal(model->n_tensors, N);
    assert_string_equal(model->tensors[N - 1].name, "t00ffff");
    gguf_free(model);
    model = NULL;

    memcpy(bytes + 24 + (size_t)(N - 1) * INFO + 8, "t000000", 7);
    assert_int_equal(parse_bytes(bytes, aligned + 4, &model, &fault), -EBADMSG);
    assert_string_equal(fault.reason, "two tensors are called t000000");
    assert_int_equal(fault.offset, 24 + (size_t)(N - 1) * INFO);
    free(head);
    free(bytes);
}

/* --- Values --- */

struct value {
    enum gguf_value_type type;
    const char *bytes;
    size_t size;
    const char *json;
};

#define BYTES(text) text, sizeof(text) - 1

static const struct value values[] = {
    {GGUF_U8, BYTES("\xff"), "255"},
    {GGUF_I8, BYTES("\x80"), "-128"},
    {GGUF_U16, BYTES("\xfe\xff"), "65534"},
    {GGUF_I16, BYTES("\xfe\xff"), "-2"},
    {GGUF_U32, BYTES("\xff\xff\xff\xff"), "4294967295"},
    {GGUF_I32, BYTES("\x00\x00\x00\x80"), "-2147483648"},
    {GGUF_U64, BYTES("\xff\xff\xff\xff\xff\xff\xff\xff"), "18446744073709551615"},
    {GGUF_I64, BYTES("\x00\x00\x00\x00\x00\x00\x00\x80"), "-9223372036854775808"},
    {GGUF_BOOL, BYTES("\x00"), "false"},
    {GGUF_BOOL, BYTES("\x02"), "true"},
    {GGUF_F32, BYTES("\x00\x00\x80\x3f"), "1"},
    {GGUF_F32, BYTES("\x00\x00\x00\x80"), "-0"},
    {GGUF_F32, BYTES("\xcd\xcc\xcc\x3d"), "0.1"},
    {GGUF_F32, BYTES("\xac\xc5\x27\x37"), "1e-05"},
    {GGUF_F32, BYTES("\xff\xff\x7f\x7f"), "3.4028235e+38"},
    {GGUF_F32, BYTES("\x01\x00\x00\x00"), "1e-45"},
    {GGUF_F32, BYTES("\x00\x00\x80\x7f"), "\"Infinity\""},
    {GGUF_F32, BYTES("\x00\x00\x80\xff"), "\"-Infinity\""},
    {GGUF_F32, BYTES("\x00\x00\xc0\x7f"), "\"NaN\""},
    {GGUF_F64, BYTES("\x9a\x99\x99\x99\x99\x99\xb9\x3f"), "0.1"},
    {GGUF_F64, BYTES("\x55\x55\x55\x55\x55\x55\xd5\x3f"), "0.3333333333333333"},
    {GGUF_STRING, BYTES("\x03\0\0\0\0\0\0\0a\"\\"), "\"a\\\"\\\\\""},
    {GGUF_STRING, BYTES("\x04\0\0\0\0\0\0\0\n\0\x1f\x7f"), "\"\\u000a\\u0000\\u001f\\u007f\""},
    {GGUF_STRING, BYTES("\x03\0\0\0\0\0\0\0a\xff\x62"), "\"a\xef\xbf\xbd\x62\""},
    {GGUF_STRING, BYTES("\x02\0\0\0\0\0\0\0\xe2\x82"), "\"\xef\xbf\xbd\xef\xbf\xbd\""},
    {GGUF_STRING, BYTES("\x07\0\0\0\0\0\0\0\xe2\x82\xac\xf0\x9f\x90\xa7"), "\"\xe2\x82\xac\xf0\x9f\x90\xa7\""},
    {GGUF_STRING, BYTES("\x00\0\0\0\0\0\0\0"), "\"\""},
};

/* Each value stands alone, and as both elements of an array. */
static void test_values(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    char *json, twice[256];

    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        const struct value *value = &values[i];

        f->size = 0;
        put_header(f, 3, 0, 2);
        put_key(f, "one", value->type);
        put(f, value->bytes, value->size);
        put_key(f, "two", GGUF_ARRAY);
        put_u32(f, value->type);
        put_u64(f, 2);
        put(f, value->bytes, value->size);
        put(f, value->bytes, value->size);
        struct gguf *model = parse(f);

        assert_int_equal(model->kv[0].data_size, value->size);
        assert_memory_equal(model->kv[0].data, value->bytes, value->size);
        assert_int_equal(gguf_kv_json(&model->kv[0], 16, 4096, &json), 0);
        assert_string_equal(json, value->json);
        free(json);
        snprintf(twice, sizeof twice, "[%s,%s]", value->json, value->json);
        assert_int_equal(gguf_kv_json(&model->kv[1], 16, 4096, &json), 0);
        assert_string_equal(json, twice);
        free(json);
        gguf_free(model);
    }
    free(f);
}

static void test_json_limits(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    char *json;

    (void)state;
    put_header(f, 3, 0, 2);
    put_key(f, "array", GGUF_ARRAY);
    put_u32(f, GGUF_U8);
    put_u64(f, 4);
    put(f, "\1\2\3\4", 4);
    put_key(f, "string", GGUF_STRING);
    put_string(f, "ab\xe2\x82\xac!");
    struct gguf *model = parse(f);
    assert_int_equal(gguf_kv_json(&model->kv[0], 3, 4096, &json), 0);
    assert_string_equal(json, "[1,2,3]");
    free(json);
    assert_int_equal(gguf_kv_json(&model->kv[0], 0, 4096, &json), 0);
    assert_string_equal(json, "[]");
    free(json);
    for (size_t most = 0; most <= 7; most++) {
        static const char *const cut[] = {"\"\"",   "\"a\"",   "\"ab\"",   "\"ab\"",
                                          "\"ab\"", "\"ab€\"", "\"ab€!\"", "\"ab€!\""};

        assert_int_equal(gguf_kv_json(&model->kv[1], 16, most, &json), 0);
        assert_string_equal(json, cut[most]);
        free(json);
    }
    gguf_free(model);
    free(f);
}

static void test_getters(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct gguf_string string;
    uint64_t u;
    int64_t i;
    double d;

    (void)state;
    put_header(f, 3, 0, 6);
    put_key(f, "negative", GGUF_I16);
    put(f, "\xfe\xff", 2);
    put_key(f, "large", GGUF_U64);
    put_u64(f, UINT64_MAX);
    put_key(f, "true", GGUF_BOOL);
    put_u8(f, 7);
    put_key(f, "half", GGUF_F32);
    put(f, "\0\0\0\x3f", 4);
    put_key(f, "string", GGUF_STRING);
    put_string(f, "text");
    put_key(f, "array", GGUF_ARRAY);
    put_u32(f, GGUF_U8);
    put_u64(f, 1);
    put_u8(f, 1);
    struct gguf *model = parse(f);
    const struct gguf_kv *negative = &model->kv[0], *large = &model->kv[1], *yes = &model->kv[2], *half = &model->kv[3],
                         *text = &model->kv[4], *array = &model->kv[5];

    assert_int_equal(gguf_kv_i64(negative, &i), 0);
    assert_int_equal(i, -2);
    assert_int_equal(gguf_kv_u64(negative, &u), -EINVAL);
    assert_int_equal(gguf_kv_u64(large, &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(gguf_kv_i64(large, &i), -EINVAL);
    assert_int_equal(gguf_kv_u64(yes, &u), 0);
    assert_int_equal(u, 1);
    assert_int_equal(gguf_kv_f64(half, &d), 0);
    assert_true(d == 0.5);
    assert_int_equal(gguf_kv_f64(yes, &d), -EINVAL);
    assert_int_equal(gguf_kv_u64(half, &u), -EINVAL);
    assert_int_equal(gguf_kv_string(text, &string), 0);
    assert_int_equal(string.size, 4);
    assert_int_equal(gguf_kv_string(half, &string), -EINVAL);
    assert_int_equal(gguf_kv_u64(array, &u), -EINVAL);
    assert_int_equal(gguf_kv_i64(array, &i), -EINVAL);
    assert_int_equal(gguf_kv_u64(NULL, &u), -ENOENT);
    assert_int_equal(gguf_kv_i64(NULL, &i), -ENOENT);
    assert_int_equal(gguf_kv_f64(NULL, &d), -ENOENT);
    assert_int_equal(gguf_kv_string(NULL, &string), -ENOENT);
    for (unsigned type = 0; type < GGUF_VALUE_TYPE_COUNT; type++)
        assert_non_null(gguf_value_type_name((enum gguf_value_type)type));
    gguf_free(model);
    free(f);
}

int main(void)
{
    enum { ROWS = sizeof rows / sizeof rows[0] };
    struct CMUnitTest row_tests[ROWS];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),       cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_shrunk),      cmocka_unit_test(test_header_too_large),
        cmocka_unit_test(test_many_names),  cmocka_unit_test(test_values),
        cmocka_unit_test(test_json_limits), cmocka_unit_test(test_getters),
    };

    for (size_t i = 0; i < ROWS; i++)
        row_tests[i] = (struct CMUnitTest){rows[i].name, test_row, NULL, NULL, (void *)&rows[i]};
    int failed = cmocka_run_group_tests_name("what is taken and refused", row_tests, NULL, NULL);
    return failed + cmocka_run_group_tests_name("the parser", tests, NULL, NULL);
}
