#include "proto/model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

static void parts_have_names_of_their_own(void **state)
{
    (void)state;
    char name[MODEL_NAME_MAX + 1] = "m";
    model_name_part(name, 0, 1);
    assert_string_equal(name, "m");
    model_name_part(name, 0, 2);
    assert_string_equal(name, "m.tp0of2");
    memset(name, 'n', MODEL_NAME_MAX);
    name[MODEL_NAME_MAX] = '\0';
    model_name_part(name, 1023, 1024);
    assert_int_equal(strlen(name), MODEL_NAME_MAX);
    assert_string_equal(strstr(name, "n.tp"), "n.tp1023of1024");
    memset(name, 'n', MODEL_NAME_MAX);
    model_name_part(name, UINT32_MAX, UINT32_MAX);
    assert_int_equal(strlen(name), MODEL_NAME_MAX);
}

static char folder[] = "/tmp/test_model_file.XXXXXX";

static int folder_make(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

/* "": no name is derived. */
static void check_link(const char *path, const char *expected)
{
    char name[MODEL_NAME_MAX + 1] = "";
    if (model_name_of_link(path, name) != (expected[0] != '\0'))
        fail_msg("%s: %s", path, name);
    assert_string_equal(name, expected);
}

static void names_of_links_and_folders(void **state)
{
    (void)state;
    static const char *const folders[] = {"models--org--tiny", "models--org--tiny/snapshots",
                                          "models--org--tiny/snapshots/0a1b", "plain"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
        assert_int_equal(mkdir(path_of(folders[i]), 0700), 0);
    const int fd = open(path_of("plain/0123"), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(symlink("plain/0123", path_of("llama.gguf")), 0);
    assert_int_equal(symlink("../../../plain/0123", path_of("models--org--tiny/snapshots/0a1b/model.safetensors")), 0);
    assert_int_equal(symlink("models--org--tiny/snapshots/0a1b", path_of("link")), 0);
    assert_int_equal(symlink("nowhere", path_of("dangling.gguf")), 0);

    check_link(path_of("plain/0123"), "");
    check_link(path_of("none"), "");
    check_link(path_of("llama.gguf"), "llama");
    check_link(path_of("dangling.gguf"), "dangling");
    check_link(path_of("plain"), "plain");
    check_link(path_of("plain/"), "plain");
    check_link(path_of("plain/../plain/."), "plain");
    check_link(path_of("models--org--tiny/snapshots/0a1b"), "tiny");
    check_link(path_of("link"), "tiny");
    check_link(path_of("models--org--tiny/snapshots/0a1b/model.safetensors"), "tiny");
    assert_int_equal(chdir(path_of("link")), 0);
    check_link("model.safetensors", "tiny");
    check_link(".", "tiny");
    check_link("..", "snapshots");
    char descriptor[64];
    snprintf(descriptor, sizeof(descriptor), "/proc/self/fd/%d", fd);
    check_link(descriptor, "");
    snprintf(descriptor, sizeof(descriptor), "/dev/fd/%d", fd);
    check_link(descriptor, "");
    assert_int_equal(chdir("/"), 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(every_byte_of_a_name),
        cmocka_unit_test(derived_names),
        cmocka_unit_test(derived_names_are_good_whatever_comes),
        cmocka_unit_test(parts_have_names_of_their_own),
        cmocka_unit_test_setup_teardown(names_of_links_and_folders, folder_make, folder_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
