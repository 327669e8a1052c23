/* kernels/types.c and kernels/types.def: the table against the format's own facts. */
#include "kernels/dequant_isa.h"
#include "kernels/types.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

struct row {
    uint32_t id;
    const char *name;
    enum type_kind kind;
};

static const struct row rows[] = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               {id, name, TYPE_PLAIN},
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) {id, name, TYPE_QUANTISED},
#define TYPE_INTERNAL_DEF(id, ident, name, elements, bytes)  {id, name, TYPE_INTERNAL},
#define TYPE_REMOVED_DEF(id, name)                           {id, name, TYPE_REMOVED},
#include "kernels/types.def"
};

static const struct {
    uint32_t id;
    const char *name;
    uint32_t elements, bytes;
} kept[] = {
#define TYPE_KEPT_DEF(id, name, elements, bytes) {id, name, elements, bytes},
#include "kernels/types.def"
};

#define ROWS (sizeof rows / sizeof rows[0])

static void ids_are_complete_and_ascend(void **state)
{
    (void)state;
    assert_int_equal(ROWS, DEQUANT_TYPES);
    for (size_t i = 0; i < ROWS; i++) {
        assert_int_equal(rows[i].id, i);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(rows[i].name, rows[j].name);
    }
}

/* Their ids are above all of GGUF, follow each other, and no decoder is looked for behind its table's end. */
static void types_that_gguf_has_not(void **state)
{
    (void)state;
    const size_t n = sizeof kept / sizeof kept[0];
    assert_int_equal(n, 14);
    for (size_t i = 0; i < n; i++) {
        const struct tensor_type *type = tensor_type_find(kept[i].id);
        assert_int_equal(kept[i].id, TYPE_KEPT_FIRST + i);
        assert_non_null(type);
        assert_int_equal(type->id, kept[i].id);
        assert_int_equal(type->kind, TYPE_KEPT);
        assert_string_equal(type->name, kept[i].name);
        assert_int_equal(type->block_elements, kept[i].elements);
        assert_int_equal(type->block_bytes, kept[i].bytes);
        for (size_t j = 0; j < ROWS; j++)
            assert_string_not_equal(rows[j].name, kept[i].name);
        for (enum form form = FORM_NATIVE; form < FORM_COUNT; form++)
            assert_null(dequant_find(type->id, form));
    }
    assert_null(tensor_type_find(TYPE_KEPT_FIRST + (uint32_t)n));
    assert_null(tensor_type_find(TYPE_KEPT_FIRST - 1));
}

static void find_gives_each_row(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        const struct tensor_type *type = tensor_type_find(rows[i].id);
        assert_non_null(type);
        assert_int_equal(type->id, rows[i].id);
        assert_string_equal(type->name, rows[i].name);
        assert_int_equal(type->kind, rows[i].kind);
        if (type->kind == TYPE_REMOVED) {
            assert_int_equal(type->block_elements, 0);
            assert_int_equal(type->block_bytes, 0);
        } else {
            assert_int_not_equal(type->block_elements, 0);
            assert_int_not_equal(type->block_bytes, 0);
            assert_int_equal(type->block_elements == 1, type->kind == TYPE_PLAIN);
        }
        if (type->kind == TYPE_QUANTISED)
            assert_int_equal(type->block_elements % 8, 0);
    }
}

/* One of each size, from the format's description rather than from types.def. */
static void sizes_are_the_formats(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t id, elements, bytes;
    } known[] = {
        {"f32", 0, 1, 4},         {"f16", 1, 1, 2},         {"q4_0", 2, 32, 18},      {"q4_1", 3, 32, 20},
        {"q5_0", 6, 32, 22},      {"q5_1", 7, 32, 24},      {"q8_0", 8, 32, 34},      {"q8_1", 9, 32, 36},
        {"q2_K", 10, 256, 84},    {"q3_K", 11, 256, 110},   {"q4_K", 12, 256, 144},   {"q5_K", 13, 256, 176},
        {"q6_K", 14, 256, 210},   {"q8_K", 15, 256, 292},   {"iq2_xxs", 16, 256, 66}, {"iq2_xs", 17, 256, 74},
        {"iq3_xxs", 18, 256, 98}, {"iq1_s", 19, 256, 50},   {"iq4_nl", 20, 32, 18},   {"iq3_s", 21, 256, 110},
        {"iq2_s", 22, 256, 82},   {"iq4_xs", 23, 256, 136}, {"i8", 24, 1, 1},         {"i16", 25, 1, 2},
        {"i32", 26, 1, 4},        {"i64", 27, 1, 8},        {"f64", 28, 1, 8},        {"iq1_m", 29, 256, 56},
        {"bf16", 30, 1, 2},       {"tq1_0", 34, 256, 54},   {"tq2_0", 35, 256, 66},   {"mxfp4", 39, 32, 17},
        {"nvfp4", 40, 64, 36},    {"q1_0", 41, 128, 18},    {"q2_0", 42, 64, 18},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const struct tensor_type *type = tensor_type_find(known[i].id);
        assert_non_null(type);
        assert_string_equal(type->name, known[i].name);
        assert_int_equal(type->block_elements, known[i].elements);
        assert_int_equal(type->block_bytes, known[i].bytes);
    }
}

static void refused_types_have_their_kind(void **state)
{
    (void)state;
    static const uint32_t removed[] = {4, 5, 31, 32, 33, 36, 37, 38};
    for (size_t i = 0; i < sizeof removed / sizeof removed[0]; i++)
        assert_int_equal(tensor_type_find(removed[i])->kind, TYPE_REMOVED);
    assert_int_equal(tensor_type_find(9)->kind, TYPE_INTERNAL);
    assert_int_equal(tensor_type_find(15)->kind, TYPE_INTERNAL);
    assert_null(tensor_type_find(DEQUANT_TYPES));
    assert_null(tensor_type_find(0x80000000u));
    assert_null(tensor_type_find(UINT32_MAX));
}

static void forms_round_trip(void **state)
{
    (void)state;
    static const char *const names[FORM_COUNT] = {"native", "f32", "f16", "bf16"};
    for (int i = 0; i < FORM_COUNT; i++) {
        enum form form = FORM_COUNT;
        assert_string_equal(form_name((enum form)i), names[i]);
        assert_int_equal(form_parse(names[i], &form), 0);
        assert_int_equal(form, i);
    }
    enum form untouched = FORM_COUNT;
    static const char *const bad[] = {"", "auto", "F16", "f16 ", "f", "f322", "bf"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(form_parse(bad[i], &untouched), -EINVAL);
    assert_int_equal(untouched, FORM_COUNT);
    assert_int_equal(form_element_bytes(FORM_F32), 4);
    assert_int_equal(form_element_bytes(FORM_F16), 2);
    assert_int_equal(form_element_bytes(FORM_BF16), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_complete_and_ascend),   cmocka_unit_test(types_that_gguf_has_not),
        cmocka_unit_test(find_gives_each_row),           cmocka_unit_test(sizes_are_the_formats),
        cmocka_unit_test(refused_types_have_their_kind), cmocka_unit_test(forms_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
