/* daemon/model.c: names, and who may see and end what. */
#include "daemon/model.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void names(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "llama-3.1", "A_b.c:d@e+f", "0", ".", "-"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(model_name_check(good[i]), 0);
    static const char *const bad[] = {"", " ", "a b", "a/b", "a\n", "\xc3\xa9", "a\"", "a\\", "a*", "a\x7f"};
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
        {"/models/", "model"},
        {"", "model"},
        {NULL, "model"},
        {"/models/a.gguf.gguf", "a.gguf"},
        {"/models/big-00001-of-00003.gguf", "big-00001-of-00003"},
        {"/memfd:x (deleted)", "memfd:x__deleted_"},
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

static void every_state_has_its_own_name(void **state)
{
    (void)state;
    for (enum model_state a = 0; a < MODEL_STATE_COUNT; a++)
        for (enum model_state b = 0; b <= MODEL_STATE_COUNT; b++)
            assert_true((a == b) == (strcmp(model_state_name(a), model_state_name(b)) == 0));
}

static void who_sees_it(void **state)
{
    (void)state;
    struct model model = {.uid = 1000};
    assert_true(model_visible(&model, 1000) && model_visible(&model, 1001) && model_visible(&model, 0));
    model.private = true;
    assert_true(model_visible(&model, 1000) && model_visible(&model, 0));
    assert_false(model_visible(&model, 1001));
}

static void what_keeps_it(void **state)
{
    (void)state;
    struct model model = {0};
    assert_false(model_in_use(&model));
    model_hold(&model);
    model_hold(&model);
    model_release(&model);
    assert_true(model_in_use(&model));
    model_release(&model);
    assert_false(model_in_use(&model));
    model.n_leases = 1;
    assert_true(model_in_use(&model));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(every_byte_of_a_name),
        cmocka_unit_test(derived_names),
        cmocka_unit_test(derived_names_are_good_whatever_comes),
        cmocka_unit_test(every_state_has_its_own_name),
        cmocka_unit_test(who_sees_it),
        cmocka_unit_test(what_keeps_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
