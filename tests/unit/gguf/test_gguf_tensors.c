/* Which tensors the GGUF parser takes and refuses, and where it says the fault is. */
#include "gguf_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

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

static void dims_8(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_string(f, "t");
    put_u32(f, 8);
    for (unsigned i = 0; i < 8; i++)
        put_u64(f, i < 3 ? 2 : 1);
    put_u32(f, F32);
    put_u64(f, 0);
    put_padding(f, 32);
    put_zeros(f, 32);
}

static void dims_9(struct file *f)
{
    put_header(f, 3, 1, 0);
    put_string(f, "t");
    mark(f);
    put_u32(f, 9);
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

/* Types that nothing here decodes are kept as they are. */
static void type_removed(struct file *f)
{
    type_case(f, REMOVED);
}

static void type_unknown(struct file *f)
{
    type_case(f, UNKNOWN);
}

static void type_largest(struct file *f)
{
    type_case(f, GGUF_TYPE_MAX);
}

static void type_too_large(struct file *f)
{
    type_case(f, GGUF_TYPE_MAX + 1);
}

static void type_negative(struct file *f)
{
    type_case(f, UINT32_MAX);
}

static void type_q8_1(struct file *f)
{
    type_case(f, Q8_1);
}

static void type_q8_k(struct file *f)
{
    type_case(f, Q8_K);
}

static void types_case(struct file *f, unsigned n)
{
    put_header(f, 3, n, 0);
    for (unsigned i = 0; i < n; i++) {
        char name[16];

        snprintf(name, sizeof name, "t%u", i);
        if (i == HEADER_FOREIGN_MAX) {
            mark(f);
            f->fault += 8 + strlen(name) + 4 + 16;
        }
        put_info(f, name, 1, 1, 1000 + i, 0);
    }
    put_padding(f, 32);
    put_zeros(f, 32);
}

static void types_unknown(struct file *f)
{
    types_case(f, HEADER_FOREIGN_MAX);
}

static void types_unknown_too_many(struct file *f)
{
    types_case(f, HEADER_FOREIGN_MAX + 1);
}

/* There is no byte that could be its. */
static void type_unknown_at_the_end(struct file *f)
{
    put_header(f, 3, 1, 0);
    mark(f);
    f->fault += 8 + 1 + 4 + 16 + 4;
    put_info(f, "t", 256, 1, UNKNOWN, 64);
    put_padding(f, 32);
    put_zeros(f, 64);
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

static void name_64(struct file *f)
{
    name_case(f, "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz012345678901", 64, true);
}

static void name_long(struct file *f, size_t size, bool good)
{
    char name[HEADER_NAME_MAX + 1];

    memset(name, 'n', sizeof name);
    name_case(f, name, size, good);
}

static void name_longest(struct file *f)
{
    name_long(f, HEADER_NAME_MAX, true);
}

static void name_too_long(struct file *f)
{
    name_long(f, HEADER_NAME_MAX + 1, false);
}

/* A sentence has room for the beginning of it. */
static void name_long_twice(struct file *f)
{
    char name[HEADER_NAME_MAX + 1] = "";

    memset(name, 'n', HEADER_NAME_MAX);
    put_header(f, 3, 2, 0);
    put_info(f, name, 1, 1, F32, 0);
    mark(f);
    put_info(f, name, 1, 1, F32, 0);
    put_padding(f, 32);
    put_zeros(f, 32);
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

/* clang-format off */
static const struct row rows[] = {
    {"n_dims 0", dims_0, NULL},
    {"n_dims 8", dims_8, NULL},
    {"n_dims 9", dims_9, "9 dimensions; 8 are the most"},
    {"n_dims 2^32 - 1", dims_wrap, "4294967295 dimensions"},
    {"a dimension 0", dimension_0, NULL},
    {"a dimension of 2^63", dimension_negative, "larger than 2^53"},
    {"a dimension over 2^53", dimension_too_large, "larger than 2^53"},
    {"ne0 not whole blocks", rows_not_whole, "rows of 128 elements are not whole q4_K blocks of 256"},
    {"type removed", type_removed, NULL},
    {"type 43", type_unknown, NULL},
    {"type 65535", type_largest, NULL},
    {"type 65536", type_too_large, "65536 is no number of a tensor type"},
    {"type negative", type_negative, "4294967295 is no number of a tensor type"},
    {"type Q8_1", type_q8_1, NULL},
    {"type Q8_K", type_q8_k, NULL},
    {"64 unknown types", types_unknown, NULL},
    {"65 unknown types", types_unknown_too_many, "more than 64 tensor types are not known"},
    {"unknown type at the end", type_unknown_at_the_end, "t reaches past the end"},
    {"empty tensor name", name_empty, "name is empty"},
    {"name of 64 bytes", name_64, NULL},
    {"name of 4095 bytes", name_longest, NULL},
    {"name of 4096 bytes", name_too_long, "name is longer than 4095"},
    {"name of 4095 bytes, twice", name_long_twice, "two tensors are called nnn"},
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

/* Tensors of types that nobody knows end where the next one begins, in whatever order they are told, and the last of
 * them with the file. */
static void unknown_sizes(void **state)
{
    struct file *f = calloc(1, sizeof *f);

    (void)state;
    put_header(f, 3, 6, 0);
    put_info(f, "last", 1000, 1, 137, 96);
    put_info(f, "first", 256, 2, 137, 0);
    put_info(f, "known", 8, 1, F32, 64);
    put_info(f, "removed", 7, 1, REMOVED, 32);
    put_info(f, "shares", 7, 1, 140, 32);
    put_info(f, "empty", 0, 1, 140, 0);
    put_padding(f, 32);
    put_zeros(f, 96 + 33);
    struct model_header *model = parse(f);
    static const struct {
        const char *type;
        uint64_t bytes;
    } want[] = {{"type137", 33}, {"type137", 32}, {"f32", 32}, {"q4_2", 32}, {"type140", 32}, {"type140", 0}};
    for (size_t i = 0; i < 6; i++) {
        assert_string_equal(model->tensors[i].type->name, want[i].type);
        assert_int_equal(model->tensors[i].bytes, want[i].bytes);
    }
    assert_ptr_equal(model->tensors[0].type, model->tensors[1].type);
    model_header_free(model);
    free(f);
}

int main(void)
{
    enum { ROWS = sizeof(rows) / sizeof(rows[0]) };
    struct CMUnitTest tests[ROWS + 1];
    rows_tests(rows, ROWS, tests);
    tests[ROWS] = (struct CMUnitTest)cmocka_unit_test(unknown_sizes);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
