/* Values of the metadata, as numbers and as JSON. */
#include "tests/unit/gguf/gguf_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

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
        struct model_header *model = parse(f);

        assert_int_equal(model->kv[0].data_size, value->size);
        assert_memory_equal(model->kv[0].data, value->bytes, value->size);
        assert_int_equal(header_kv_json(&model->kv[0], 16, 4096, &json, NULL), 0);
        assert_string_equal(json, value->json);
        free(json);
        snprintf(twice, sizeof twice, "[%s,%s]", value->json, value->json);
        assert_int_equal(header_kv_json(&model->kv[1], 16, 4096, &json, NULL), 0);
        assert_string_equal(json, twice);
        free(json);
        model_header_free(model);
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
    struct model_header *model = parse(f);
    assert_int_equal(header_kv_json(&model->kv[0], 3, 4096, &json, NULL), 0);
    assert_string_equal(json, "[1,2,3]");
    free(json);
    assert_int_equal(header_kv_json(&model->kv[0], 0, 4096, &json, NULL), 0);
    assert_string_equal(json, "[]");
    free(json);
    for (size_t most = 0; most <= 7; most++) {
        static const char *const cut[] = {"\"\"",   "\"a\"",   "\"ab\"",   "\"ab\"",
                                          "\"ab\"", "\"ab€\"", "\"ab€!\"", "\"ab€!\""};

        assert_int_equal(header_kv_json(&model->kv[1], 16, most, &json, NULL), 0);
        assert_string_equal(json, cut[most]);
        free(json);
    }
    model_header_free(model);
    free(f);
}

/* Arrays in arrays: told as they stand, and no more of them than is asked for. */
static void test_json_nested(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    char *json;
    bool cut;

    (void)state;
    put_header(f, 3, 0, 2);
    put_key(f, "nested", GGUF_ARRAY);
    put_u32(f, GGUF_ARRAY);
    put_u64(f, 3);
    put_u32(f, GGUF_STRING);
    put_u64(f, 2);
    put_string(f, "a");
    put_string(f, "bc");
    put_u32(f, GGUF_U8);
    put_u64(f, 0);
    put_u32(f, GGUF_U16);
    put_u64(f, 1);
    put(f, "\1\1", 2);
    put_key(f, "behind", GGUF_U8);
    put_u8(f, 9);
    struct model_header *model = parse(f);
    assert_int_equal(model->kv[0].count, 3);
    assert_int_equal(model->kv[0].element_type, GGUF_ARRAY);
    assert_string_equal(gguf_value_type_name(model->kv[0].element_type), "array");
    static const char *const told[] = {"[]",
                                       "[[]]",
                                       "[[\"a\"]]",
                                       "[[\"a\",\"bc\"]]",
                                       "[[\"a\",\"bc\"],[]]",
                                       "[[\"a\",\"bc\"],[],[]]",
                                       "[[\"a\",\"bc\"],[],[257]]"};
    for (size_t most = 0; most < sizeof told / sizeof told[0]; most++) {
        assert_int_equal(header_kv_json(&model->kv[0], most, 4096, &json, &cut), 0);
        assert_string_equal(json, told[most]);
        assert_int_equal(cut, most < 6);
        free(json);
    }
    assert_int_equal(header_kv_json(&model->kv[0], 6, 1, &json, &cut), 0);
    assert_string_equal(json, "[[\"a\",\"b\"],[],[257]]");
    assert_true(cut);
    free(json);
    assert_int_equal(header_kv_json(&model->kv[1], 0, 0, &json, &cut), 0);
    assert_string_equal(json, "9");
    assert_false(cut);
    free(json);
    model_header_free(model);
    free(f);
}

static void test_getters(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct header_string string;
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
    struct model_header *model = parse(f);
    const struct header_kv *negative = &model->kv[0], *large = &model->kv[1], *yes = &model->kv[2],
                           *half = &model->kv[3], *text = &model->kv[4], *array = &model->kv[5];

    assert_int_equal(header_kv_i64(negative, &i), 0);
    assert_int_equal(i, -2);
    assert_int_equal(header_kv_u64(negative, &u), -EINVAL);
    assert_int_equal(header_kv_u64(large, &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(header_kv_i64(large, &i), -EINVAL);
    assert_int_equal(header_kv_u64(yes, &u), 0);
    assert_int_equal(u, 1);
    assert_int_equal(header_kv_f64(half, &d), 0);
    assert_true(d == 0.5);
    assert_int_equal(header_kv_f64(yes, &d), -EINVAL);
    assert_int_equal(header_kv_u64(half, &u), -EINVAL);
    assert_int_equal(header_kv_string(text, &string), 0);
    assert_int_equal(string.size, 4);
    assert_int_equal(header_kv_string(half, &string), -EINVAL);
    assert_int_equal(header_kv_u64(array, &u), -EINVAL);
    assert_int_equal(header_kv_i64(array, &i), -EINVAL);
    assert_int_equal(header_kv_u64(NULL, &u), -ENOENT);
    assert_int_equal(header_kv_i64(NULL, &i), -ENOENT);
    assert_int_equal(header_kv_f64(NULL, &d), -ENOENT);
    assert_int_equal(header_kv_string(NULL, &string), -ENOENT);
    for (unsigned type = 0; type < GGUF_VALUE_TYPE_COUNT; type++)
        assert_non_null(gguf_value_type_name((enum gguf_value_type)type));
    model_header_free(model);
    free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_json_limits),
        cmocka_unit_test(test_json_nested),
        cmocka_unit_test(test_getters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
