/* client/model_metadata.c, client/metadata.c: what an attached model's file says of itself. */
#include "attach_rig.h"
#include "client/metadata.h"
#include "tests/unit/gguf/gguf_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void build(struct file *f)
{
    put_header(f, 3, 1, 7);
    put_key(f, "general.architecture", GGUF_STRING);
    put_string(f, "llama");
    put_key(f, "tokens", GGUF_ARRAY);
    put_u32(f, GGUF_STRING);
    put_u64(f, 3);
    put_string(f, "<s>");
    put_bytes(f, "a\0b", 3);
    put_string(f, "");
    put_key(f, "negative", GGUF_I16);
    put(f, "\xfe\xff", 2);
    put_key(f, "half", GGUF_F32);
    put(f, "\0\0\0\x3f", 4);
    put_key(f, "yes", GGUF_BOOL);
    put_u8(f, 7);
    put_key(f, "large", GGUF_U64);
    put_u64(f, UINT64_MAX);
    put_key(f, "nested", GGUF_ARRAY);
    put_u32(f, GGUF_ARRAY);
    put_u64(f, 2);
    put_u32(f, GGUF_U16);
    put_u64(f, 2);
    put(f, "\1\0\2\0", 4);
    put_u32(f, GGUF_STRING);
    put_u64(f, 0);
    put_info(f, "t", 1, 1, F32, 0);
}

static rf_value value_of(const rf_model *model, const char *key)
{
    rf_value value;
    assert_int_equal(rf_model_metadata_find(model, key, &value), 0);
    assert_int_equal(value.key_size, strlen(key));
    assert_memory_equal(value.key, key, value.key_size);
    return value;
}

static void check_text(const rf_value *value, const char *text, size_t size)
{
    assert_int_equal(value->type, RF_STRING);
    assert_int_equal(value->bytes, size);
    assert_memory_equal(value->data, text, size);
}

static void check_tokens(const rf_model *model)
{
    rf_value tokens = value_of(model, "tokens"), token;
    uint64_t position = 0;
    assert_int_equal(tokens.type, RF_ARRAY);
    assert_int_equal(tokens.element_type, RF_STRING);
    assert_int_equal(tokens.count, 3);
    static const struct {
        const char *text;
        size_t size;
    } want[] = {{"<s>", 3}, {"a\0b", 3}, {"", 0}};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(rf_model_metadata_next(model, &tokens, &position, &token), 1);
        check_text(&token, want[i].text, want[i].size);
        assert_null(token.key);
    }
    assert_int_equal(rf_model_metadata_next(model, &tokens, &position, &token), 0);
    assert_int_equal(rf_model_metadata_next(model, &tokens, &position, &token), 0);
    position = tokens.bytes + 1;
    assert_int_equal(rf_model_metadata_next(model, &tokens, &position, &token), -EINVAL);
}

static void check_nested(const rf_model *model)
{
    rf_value nested = value_of(model, "nested"), inner, number;
    uint64_t position = 0, within = 0, value;
    assert_int_equal(nested.element_type, RF_ARRAY);
    assert_int_equal(rf_model_metadata_next(model, &nested, &position, &inner), 1);
    assert_int_equal(inner.type, RF_ARRAY);
    assert_int_equal(inner.element_type, RF_U16);
    assert_int_equal(inner.count, 2);
    for (uint64_t i = 1; i <= 2; i++) {
        assert_int_equal(rf_model_metadata_next(model, &inner, &within, &number), 1);
        assert_int_equal(rf_value_u64(&number, &value), 0);
        assert_int_equal(value, i);
    }
    assert_int_equal(rf_model_metadata_next(model, &inner, &within, &number), 0);
    assert_int_equal(rf_model_metadata_next(model, &nested, &position, &inner), 1);
    assert_int_equal(inner.count, 0);
    assert_int_equal(rf_model_metadata_next(model, &nested, &position, &inner), 0);
}

static void check_numbers(const rf_model *model)
{
    rf_value negative = value_of(model, "negative"), half = value_of(model, "half"), yes = value_of(model, "yes"),
             large = value_of(model, "large"), text = value_of(model, "general.architecture");
    int64_t i;
    uint64_t u;
    double d;
    assert_int_equal(rf_value_i64(&negative, &i), 0);
    assert_int_equal(i, -2);
    assert_int_equal(rf_value_u64(&negative, &u), -EINVAL);
    assert_int_equal(rf_value_f64(&half, &d), 0);
    assert_true(d == 0.5);
    assert_int_equal(rf_value_u64(&half, &u), -EINVAL);
    assert_int_equal(rf_value_u64(&yes, &u), 0);
    assert_int_equal(u, 1);
    assert_int_equal(rf_value_u64(&large, &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(rf_value_i64(&large, &i), -EINVAL);
    assert_int_equal(rf_value_f64(&large, &d), -EINVAL);
    assert_int_equal(rf_value_i64(&text, &i), -EINVAL);
}

static void test_all(void **state)
{
    (void)state;
    struct file *f = calloc(1, sizeof(*f));
    build(f);
    struct attach attach = {GOOD_ATTACH, .header = f->bytes, .header_size = f->size, .header_seals = SEALS};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *model;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    size_t size, n;
    const void *header = rf_model_header(model, &size);
    assert_int_equal(size, f->size);
    assert_memory_equal(header, f->bytes, f->size);
    assert_int_equal(rf_model_metadata_count(model, &n), 0);
    assert_int_equal(n, 7);
    rf_value value = value_of(model, "general.architecture"), at;
    check_text(&value, "llama", 5);
    assert_int_equal(rf_model_metadata_at(model, 0, &at), 0);
    assert_ptr_equal(at.data, value.data);
    assert_int_equal(rf_model_metadata_at(model, 7, &at), -ERANGE);
    assert_says(client, "7 keys");
    assert_int_equal(rf_model_metadata_find(model, "general.architectur", &at), -ENOENT);
    assert_says(client, "'general.architectur'");
    check_tokens(model);
    check_nested(model);
    check_numbers(model);
    uint64_t position = 0;
    assert_int_equal(rf_model_metadata_next(model, &value, &position, &at), -EINVAL); /* no array */
    at = value_of(model, "tokens");
    at.data = f->bytes; /* of somebody else */
    assert_int_equal(rf_model_metadata_next(model, &at, &position, &at), -EINVAL);
    assert_int_equal(rf_detach(model), 0);
    rig_stop(fake, client);
    free(table);
    free(f);
}

static void test_no_header(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *model;
    rf_value value;
    size_t n = 1;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    assert_int_equal(rf_model_metadata_count(model, &n), -ENODATA);
    assert_int_equal(rf_model_metadata_find(model, "a", &value), -ENODATA);
    assert_says(client, "no header");
    assert_null(rf_model_header(model, &n));
    assert_int_equal(n, 0);
    rig_stop(fake, client);
    free(table);
}

/* A header that is none costs nobody the tensors. */
static void header_fails(struct attach *attach, const char *says)
{
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, attach, &table);
    rf_model *model;
    rf_tensor tensor;
    size_t n;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    assert_int_equal(rf_model_find(model, "b", &tensor), 0);
    assert_int_equal(rf_model_metadata_count(model, &n), -EPROTO);
    assert_says(client, says);
    rig_stop(fake, client);
    free(table);
}

static void test_bad_header(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH, .header = "GGUF\3\0\0\0", .header_size = 8, .header_seals = SEALS};
    header_fails(&attach, "a header that is not valid");
}

static void test_header_not_sealed(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH, .header = "GGUF\3\0\0\0", .header_size = 8};
    header_fails(&attach, "a header that is not sealed");
}

/* Cut anywhere before the last entry's end, it is refused. */
static void test_cut(void **state)
{
    (void)state;
    struct file *f = calloc(1, sizeof(*f));
    struct metadata *metadata;
    build(f);
    const size_t infos = 8 + 1 + 4 + 16 + 4 + 8;
    for (size_t size = 0; size <= f->size; size++) {
        void *cut = malloc(size ? size : 1);
        assert_non_null(cut);
        memcpy(cut, f->bytes, size);
        if (size < f->size - infos)
            assert_int_equal(metadata_read(cut, size, &metadata), -EBADMSG);
        else {
            assert_int_equal(metadata_read(cut, size, &metadata), 0);
            metadata_free(metadata);
        }
        free(cut);
    }
    free(f);
}

/* Counts that no header could have the bytes for cost nothing. */
static void test_counts(void **state)
{
    (void)state;
    static const uint64_t counts[] = {UINT64_MAX, UINT64_MAX / 2, UINT64_MAX / 8 + 1, 1u << 30, 5};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        for (uint32_t type = 0; type <= GGUF_VALUE_TYPE_COUNT; type++) {
            struct file *f = calloc(1, sizeof(*f));
            struct metadata *metadata;
            put_header(f, 3, 0, 1);
            put_key(f, "key", GGUF_ARRAY);
            put_u32(f, type);
            put_u64(f, counts[i]);
            put_zeros(f, 4);
            assert_int_equal(metadata_read(f->bytes, f->size, &metadata), -EBADMSG);
            f->size = 0;
            put_header(f, 3, 0, counts[i]);
            put_zeros(f, 60);
            assert_int_equal(metadata_read(f->bytes, f->size, &metadata), -EBADMSG);
            free(f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),        cmocka_unit_test(test_no_header),
        cmocka_unit_test(test_bad_header), cmocka_unit_test(test_header_not_sealed),
        cmocka_unit_test(test_cut),        cmocka_unit_test(test_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
