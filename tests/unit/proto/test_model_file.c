#include "proto/frame.h"
#include "proto/model_file.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void names(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "llama-3.1", "A_b.c:d@e+f", "0", ".", "a-", "_-"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(model_name_check(good[i]), 0);
    static const char *const bad[] = {"",    " ",  "a b",   "a/b", "a\n", "\xc3\xa9", "a\"",
                                      "a\\", "a*", "a\x7f", "-",   "-x",  "--pin"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(model_name_check(bad[i]), -EINVAL);
    char name[MODEL_NAME_MAX + 2];
    memset(name, 'x', sizeof(name));
    name[MODEL_NAME_MAX] = '\0';
    assert_int_equal(model_name_check(name), 0);
    name[MODEL_NAME_MAX] = 'x';
    name[MODEL_NAME_MAX + 1] = '\0';
    assert_int_equal(model_name_check(name), -EINVAL);
}

static void every_byte_of_a_name(void **state)
{
    (void)state;
    for (int c = 1; c < 256; c++) {
        char name[] = {'a', (char)c, 'b', '\0'};
        bool good = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                    (c < 128 && strchr("._-:@+", c));
        assert_int_equal(model_name_check(name), good ? 0 : -EINVAL);
    }
}

static void derived_names(void **state)
{
    (void)state;
    static const struct {
        const char *path, *name;
    } cases[] = {
        {"/models/llama.gguf", "llama"},
        {"/models/llama.GGUF", "llama"},
        {"llama.gguf", "llama"},
        {"/models/llama", "llama"},
        {"/models/my model (1).gguf", "my_model__1_"},
        {"/models/caf\xc3\xa9.gguf", "caf__"},
        {"/models/.gguf", ".gguf"},
        {"/models/a.safetensors", "a"},
        {"/models/Qwen2-0.5B/model.safetensors", "Qwen2-0.5B"},
        {"Qwen2/model-00001-of-00003.safetensors", "Qwen2"},
        {"/models/model.gguf", "model"},
        {"/models/models.safetensors", "models"},
        {"model.safetensors", "model"},
        {"/model.safetensors", "model"},
        {"//model.safetensors", "model"},
        {"a/model.SAFETENSORS", "a"},
        {"/h/models--org--a-b--c/snapshots/0123ab/model.safetensors", "c"},
        {"/h/models--/snapshots/0123ab/model.safetensors", "0123ab"},
        {"/h/snapshots/0123ab/model.safetensors", "0123ab"},
        {"snapshots/0123ab/model.safetensors", "0123ab"},
        {"/models/", "model"},
        {"", "model"},
        {NULL, "model"},
        {"/models/a.gguf.gguf", "a.gguf"},
        {"/models/big-00001-of-00003.gguf", "big-00001-of-00003"},
        {"/memfd:x (deleted)", "memfd:x__deleted_"},
        {"/models/-x.gguf", "_x"},
        {"--pin.gguf", "_-pin"},
        {"-", "_"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char name[MODEL_NAME_MAX + 1];
        model_name_derive(cases[i].path, name);
        assert_string_equal(name, cases[i].name);
        assert_int_equal(model_name_check(name), 0);
    }
}

static void derived_names_are_good_whatever_comes(void **state)
{
    (void)state;
    srandom(1);
    for (int round = 0; round < 20000; round++) {
        char path[300];
        size_t n = (size_t)random() % (sizeof(path) - 1);
        for (size_t i = 0; i < n; i++)
            path[i] = (char)(1 + random() % 255);
        path[n] = '\0';
        char name[MODEL_NAME_MAX + 1];
        memset(name, 0x55, sizeof(name));
        model_name_derive(path, name);
        assert_int_equal(model_name_check(name), 0);
    }
}

static void numbers_of_shards(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        unsigned n;
    } cases[] = {
        {"m-00001-of-00003.gguf", 3},
        {"/models/m-00001-of-00003.gguf", 3},
        {"-00001-of-00002.gguf", 2},
        {"x-00001-of-00009.gguf-00001-of-00002.gguf", 2},
        {"m-00001-of-00253.gguf", FRAME_FDS_MAX},
        {"m-00001-of-00254.gguf", 1},
        {"m-00001-of-99999.gguf", 1},
        {"m-00001-of-00001.gguf", 1},
        {"m-00001-of-00000.gguf", 1},
        {"m-00002-of-00003.gguf", 1},
        {"m-00001-of-3.gguf", 1},
        {"m-00001-of-000003.gguf", 1},
        {"m-00001-of-00003.gguf.x", 1},
        {"m-00001-of-00003.GGUF", 1},
        {"m-00001-of-0000a.gguf", 1},
        {"m-00001-of--0003.gguf", 1},
        {"m-00001-of-+0003.gguf", 1},
        {"m-00001-of-0001/.gguf", 1},
        {"m-00001-of-.gguf", 1},
        {"00001-of-00003.gguf", 1},
        {"m.gguf", 1},
        {"", 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (shard_count(cases[i].path) != cases[i].n)
            fail_msg("%s: %u", cases[i].path, shard_count(cases[i].path));
}

static void indexes_of_shards(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        unsigned index;
    } cases[] = {
        {"m-00001-of-00003.gguf", 0},
        {"/models/m-00002-of-00003.gguf", 1},
        {"-00003-of-00003.gguf", 2},
        {"m-00300-of-00300.gguf", 299}, /* more than a message can carry */
        {"m-00004-of-00003.gguf", 0},
        {"m-00000-of-00003.gguf", 0},
        {"m-0000a-of-00003.gguf", 0},
        {"m-00002-of-0000a.gguf", 0},
        {"m-00002-or-00003.gguf", 0},
        {"m_00002-of-00003.gguf", 0},
        {"the-lord-of-rings.gguf", 0},
        {"the-longest-lord-of-rings.gguf", 0},
        {"m-00002-of-00003.GGUF", 0},
        {"m.gguf", 0},
        {"", 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (shard_index(cases[i].path) != cases[i].index)
            fail_msg("%s: %u", cases[i].path, shard_index(cases[i].path));
}

static void paths_of_shards(void **state)
{
    (void)state;
    static const char first[] = "/a-00001-of-00007/m-00001-of-00012.gguf";
    char path[sizeof(first)];
    assert_int_equal(shard_path(first, 0, 12, path, sizeof(path)), 0);
    assert_string_equal(path, first);
    assert_int_equal(shard_path(first, 11, 12, path, sizeof(path)), 0);
    assert_string_equal(path, "/a-00001-of-00007/m-00012-of-00012.gguf");
    assert_int_equal(shard_path(first, 1, 12, path, sizeof(path) - 1), -ENAMETOOLONG);
    assert_int_equal(shard_path("m.gguf", 0, 1, path, sizeof(path)), 0);
    assert_string_equal(path, "m.gguf");
    assert_int_equal(shard_path("m.gguf", 0, 1, path, 6), -ENAMETOOLONG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(every_byte_of_a_name),
        cmocka_unit_test(derived_names),
        cmocka_unit_test(derived_names_are_good_whatever_comes),
        cmocka_unit_test(numbers_of_shards),
        cmocka_unit_test(indexes_of_shards),
        cmocka_unit_test(paths_of_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
