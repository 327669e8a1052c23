/* What the reader of safetensors makes of right and wrong files. */
#include "daemon/safetensors/safetensors.h"

#include <endian.h>
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

/* A file with this JSON and so many bytes of tensors. The caller closes it. */
static struct header_file file_of(const char *json, size_t data)
{
    const uint64_t length = htole64(strlen(json));
    struct header_file file = {memfd_create("model", MFD_CLOEXEC), 8 + strlen(json) + data};
    assert_true(file.fd >= 0);
    assert_int_equal(pwrite(file.fd, &length, 8, 0), 8);
    assert_int_equal(pwrite(file.fd, json, strlen(json), 8), strlen(json));
    assert_int_equal(ftruncate(file.fd, (off_t)file.size), 0);
    return file;
}

static int read_json(const char *json, size_t data, struct model_header **ret, struct header_fault *fault)
{
    struct header_file file = file_of(json, data);
    size_t which = 7;
    int r = safetensors_read(&file, 1, ret, fault, &which);
    assert_int_equal(which, 0);
    close(file.fd);
    return r;
}

static struct model_header *read_valid(const char *json, size_t data)
{
    struct header_fault fault = {0};
    struct model_header *model = NULL;
    if (read_json(json, data, &model, &fault) != 0)
        fail_msg("%s was refused: %s, at %llu", json, fault.reason, (unsigned long long)fault.offset);
    return model;
}

static void a_file_is_read(void **state)
{
    (void)state;
    struct model_header *model =
        read_valid("{\"__metadata__\":{\"format\":\"pt\",\"k\\u00e9y\":\"a\\nb\"},"
                   "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3,4],\"data_offsets\":[4,52]},"
                   "\"a\\/x\":{\"shape\":[],\"data_offsets\":[0,4],\"later\":[{}],\"dtype\":\"F32\"}}   ",
                   52);
    assert_string_equal(model->format, "safetensors");
    assert_int_equal(model->n_tensors, 2);
    const struct header_tensor *scalar = &model->tensors[0], *cube = &model->tensors[1];
    assert_string_equal(scalar->name, "a/x"); /* in the order of the bytes */
    assert_string_equal(scalar->type->name, "f32");
    assert_int_equal(scalar->n_dims, 0);
    assert_int_equal(scalar->elements, 1);
    assert_int_equal(scalar->bytes, 4);
    assert_int_equal(scalar->offset, model->data_start);
    assert_string_equal(cube->name, "b");
    assert_string_equal(cube->type->name, "bf16");
    assert_int_equal(cube->n_dims, 3);
    assert_int_equal(cube->ne[0], 4);
    assert_int_equal(cube->ne[1], 3);
    assert_int_equal(cube->ne[2], 2);
    assert_int_equal(cube->ne[3], 1);
    assert_int_equal(cube->bytes, 48);
    assert_int_equal(cube->offset, model->data_start + 4);
    assert_int_equal(model->n_kv, 2);
    struct header_string value;
    assert_int_equal(header_kv_string(model_header_find(model, "format"), &value), 0);
    assert_int_equal(value.size, 2);
    assert_memory_equal(value.bytes, "pt", 2);
    assert_int_equal(header_kv_string(model_header_find(model, "k\xc3\xa9y"), &value), 0);
    assert_memory_equal(value.bytes, "a\nb", value.size);
    model_header_free(model);
    model_header_free(read_valid("{}", 0));
    model_header_free(read_valid("{\"__metadata__\":null}", 0));
}

static void the_header_is_written_as_it_was(void **state)
{
    static const char json[] = "{\"a\\u0062\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}} ";
    uint8_t bytes[sizeof(json) + 16];
    (void)state;
    struct model_header *model = read_valid(json, 3);
    int fd = memfd_create("header", MFD_CLOEXEC);
    assert_string_equal(model->tensors[0].name, "ab");
    assert_int_equal(model_header_write(model, fd), 0);
    assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), 8 + strlen(json));
    assert_int_equal(bytes[0], strlen(json));
    assert_memory_equal(bytes + 8, json, strlen(json));
    close(fd);
    model_header_free(model);
}

static void every_dtype_has_its_size(void **state)
{
    static const struct {
        const char *dtype, *type;
        size_t bits;
        bool exempt;
    } types[] = {
        {"BOOL", "bool", 8, true},       {"F4", "f4", 4, true},
        {"F6_E2M3", "f6_e2m3", 6, true}, {"F6_E3M2", "f6_e3m2", 6, true},
        {"F8_E4M3", "f8_e4m3", 8, true}, {"F8_E4M3FNUZ", "f8_e4m3fnuz", 8, true},
        {"F8_E5M2", "f8_e5m2", 8, true}, {"F8_E5M2FNUZ", "f8_e5m2fnuz", 8, true},
        {"F8_E8M0", "f8_e8m0", 8, true}, {"I8", "i8", 8, true},
        {"U8", "u8", 8, true},           {"I16", "i16", 16, true},
        {"U16", "u16", 16, true},        {"I32", "i32", 32, true},
        {"U32", "u32", 32, true},        {"I64", "i64", 64, true},
        {"U64", "u64", 64, true},        {"F16", "f16", 16, false},
        {"BF16", "bf16", 16, false},     {"F32", "f32", 32, false},
        {"F64", "f64", 64, false},       {"C64", "c64", 64, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        char json[128];
        const size_t bytes = 4 * types[i].bits / 8;
        snprintf(json, sizeof(json), "{\"t\":{\"dtype\":\"%s\",\"shape\":[4,1],\"data_offsets\":[0,%zu]}}",
                 types[i].dtype, bytes);
        struct model_header *model = read_valid(json, bytes);
        assert_string_equal(model->tensors[0].type->name, types[i].type);
        assert_int_equal(model->tensors[0].exempt, types[i].exempt);
        model_header_free(model);
    }
}

/* The tensor "t" of four bytes; what may stand around it. */
#define INFO "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}"
#define T    "\"t\":" INFO

static void wrong_files_are_refused_at_their_place(void **state)
{
    static const struct {
        const char *json;
        size_t data;
        size_t at; /* in the JSON */
        const char *reason;
    } wrong[] = {
        {"", 0, 0, "not an object"},
        {" {}", 0, 0, "does not begin"},
        {"[]", 0, 0, "does not begin"},
        {"{} x", 0, 3, "something follows"},
        {"{" T "," T "}", 4, 54, "two tensors are called t"},
        {"{" T ",\"\\u0074\":" INFO "}", 4, 54, "two tensors are called t"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, 19, "twice"},
        {"{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, 24, "twice in the metadata"},
        {"{\"__metadata__\":{\"a\":1}}", 0, 21, "not a string"},
        {"{\"__metadata__\":[]}", 0, 16, "not an object"},
        {"{\"\":" INFO "}", 4, 1, "name is empty"},
        {"{\"t\":[]}", 0, 5, "not an object"},
        {"{\"t\":{}}", 0, 1, "lacks its dtype"},
        {"{\"t\":{\"dtype\":\"F32\"}}", 0, 1, "lacks its shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, 1, "lacks its data_offsets"},
        {"{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, 20,
         "twice in a tensor"},
        {"{\"t\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, 14, "'f32' is not known"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, 30, "not an integer"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, 29, "number from 0"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, 49, "two numbers"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,5]}}", 4, 51, "two numbers"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, 1, "by its shape and dtype 8"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, 1, "before it begins"},
        {"{\"t\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, 1, "end on a byte"},
        {"{\"t\":{\"dtype\":\"F6_E2M3\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1, 1, "end on a byte"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[9007199254740993],\"data_offsets\":[0,4]}}", 4, 29, "2^53"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, 40, "2^63"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, 45, "more than 8"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, 1, "begins at byte 4"},
        {"{" T ",\"u\":" INFO "}", 4, 54, "begins at byte 0"},
        {"{" T "}", 5, 1, "end at byte 4"},
        {"{" T "}", 3, 1, "past the end"},
        {"{}", 1, 0, "end at byte 0"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct header_fault fault = {0};
        struct model_header *model = NULL;
        if (read_json(wrong[i].json, wrong[i].data, &model, &fault) != -EBADMSG)
            fail_msg("%s was taken", wrong[i].json);
        assert_null(model);
        if (!strstr(fault.reason, wrong[i].reason))
            fail_msg("%s: %s", wrong[i].json, fault.reason);
        if (fault.offset != 8 + wrong[i].at)
            fail_msg("%s: %s, at %llu, not %zu", wrong[i].json, fault.reason, (unsigned long long)fault.offset,
                     8 + wrong[i].at);
    }
}

static void the_length_is_held_against_the_file(void **state)
{
    static const uint64_t lengths[] = {3, 100000000, 100000001, UINT64_MAX};
    (void)state;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct header_file file = file_of("{}", 0);
        struct header_fault fault = {0};
        struct model_header *model = NULL;
        const uint64_t length = htole64(lengths[i]);
        size_t which;
        assert_int_equal(pwrite(file.fd, &length, 8, 0), 8);
        assert_int_equal(safetensors_read(&file, 1, &model, &fault, &which), -EBADMSG);
        assert_int_equal(fault.offset, 0);
        assert_non_null(
            strstr(fault.reason, lengths[i] > SAFETENSORS_HEADER_MAX ? "larger than 100000000" : "past the end"));
        close(file.fd);
    }
    for (size_t size = 0; size < 8; size++) { /* shorter than the length */
        struct header_file file = file_of("{}", 0);
        struct header_fault fault = {0};
        struct model_header *model = NULL;
        size_t which;
        file.size = size;
        assert_int_equal(safetensors_read(&file, 1, &model, &fault, &which), -EBADMSG);
        close(file.fd);
    }
}

static void files_are_joined(void **state)
{
    struct header_file files[] = {
        file_of("{\"__metadata__\":{\"a\":\"1\"},\"x\":" INFO "}", 4),
        file_of("{\"y\":" INFO ",\"__metadata__\":{\"b\":\"1\"}}", 4),
        file_of("{\"x\":" INFO "}", 4),
        file_of("{", 0),
    };
    struct header_fault fault = {0};
    struct model_header *model = NULL;
    size_t which = 9;
    (void)state;
    assert_int_equal(safetensors_read(files, 2, &model, &fault, &which), 0);
    assert_int_equal(model->n_tensors, 2);
    assert_string_equal(model->tensors[1].name, "y");
    assert_int_equal(model->tensors[1].shard, 1);
    assert_int_equal(model->n_kv, 1);
    model_header_free(model);
    model = NULL;
    assert_int_equal(safetensors_read(files, 3, &model, &fault, &which), -EBADMSG);
    assert_string_equal(fault.reason, "tensor 'x' stands in two files");
    assert_int_equal(which, 3); /* all together */
    const struct header_file wrong[] = {files[0], files[3]};
    assert_int_equal(safetensors_read(wrong, 2, &model, &fault, &which), -EBADMSG);
    assert_int_equal(which, 1);
    assert_null(model);
    for (size_t i = 0; i < 4; i++)
        close(files[i].fd);
}

static void scales_stay_beside_small_numbers(void **state)
{
    static const char scale[] = "\"m.weight_scale_inv\":" INFO;
    char json[256];
    (void)state;
    snprintf(json, sizeof(json), "{%s,\"m.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[4,8]}}",
             scale);
    struct model_header *model = read_valid(json, 8);
    assert_true(model->tensors[0].exempt);
    assert_true(model->tensors[1].exempt);
    model_header_free(model);
    snprintf(json, sizeof(json), "{%s,\"m.weight\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[4,8]}}", scale);
    model = read_valid(json, 8);
    assert_false(model->tensors[0].exempt);
    model_header_free(model);
}

/* A long header costs memory of its own size, and little time. */
static void a_long_header_is_read(void **state)
{
    const size_t n = 20000;
    char *json = NULL;
    size_t size;
    FILE *out = open_memstream(&json, &size);
    (void)state;
    fputc('{', out);
    for (size_t i = 0; i < n; i++)
        fprintf(out, "%s\"layer.%zu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}", i ? "," : "", n - i,
                n - i - 1, n - i);
    fputc('}', out);
    fclose(out);
    struct model_header *model = read_valid(json, n);
    assert_int_equal(model->n_tensors, n);
    assert_string_equal(model->tensors[0].name, "layer.1");
    assert_string_equal(model->tensors[n - 1].name, "layer.20000");
    model_header_free(model);
    free(json);
}

static void the_start_tells_the_format(void **state)
{
    uint8_t start[16] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    (void)state;
    assert_true(safetensors_starts(start, sizeof(start)));
    assert_true(safetensors_starts(start, SAFETENSORS_START));
    assert_false(safetensors_starts(start, SAFETENSORS_START - 1));
    start[8] = ' ';
    assert_false(safetensors_starts(start, sizeof(start)));
    memcpy(start, "GGUF\3\0\0\0{", 9); /* 123 tensors */
    assert_false(safetensors_starts(start, sizeof(start)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_read),
        cmocka_unit_test(the_header_is_written_as_it_was),
        cmocka_unit_test(every_dtype_has_its_size),
        cmocka_unit_test(wrong_files_are_refused_at_their_place),
        cmocka_unit_test(the_length_is_held_against_the_file),
        cmocka_unit_test(the_start_tells_the_format),
        cmocka_unit_test(files_are_joined),
        cmocka_unit_test(scales_stay_beside_small_numbers),
        cmocka_unit_test(a_long_header_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
