/* Memory of devices that have modules of their own. */
#include "attach_rig.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void test_no_module(void **state)
{
    (void)state;
    static const char *const kinds[] = {"cuda", "..", "a/b", "", "CUDA", "kindsofverylongnames"};
    assert_int_equal(setenv("ROCMFORGE_MODULE_DIR", ":/nowhere::/nor/here:", 1), 0);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char device[128], reply[512], message[128];
        snprintf(device, sizeof(device), "\"device\":{\"id\":\"x\",\"kind\":\"%s\"}", kinds[i]);
        snprintf(reply, sizeof(reply), "{\"parameters\":{\"lease\":5,\"model\":" MODEL ",%s," REST "}}", device);
        snprintf(message, sizeof(message), "this machine has no module for '%s' devices", kinds[i]);
        struct attach attach = {GOOD_ATTACH, .reply = reply};
        attach_fails(&attach, -ENOTSUP, message, 1);
    }
    assert_int_equal(unsetenv("ROCMFORGE_MODULE_DIR"), 0);
}

/* A file of a module's name that is none. */
static void test_bad_module(void **state)
{
    (void)state;
    char folder[] = "/tmp/rocmforge-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/import-bad.so", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("not an object", file);
    fclose(file);
    assert_int_equal(setenv("ROCMFORGE_MODULE_DIR", folder, 1), 0);
    struct attach attach = {GOOD_ATTACH, .reply = ATTACH_REPLY(MODEL, ATTACH_DEVICE("bad"), REST)};
    attach_fails(&attach, -ENOTSUP, "the module for 'bad' devices cannot be loaded", 1);
    assert_int_equal(unsetenv("ROCMFORGE_MODULE_DIR"), 0);
    unlink(path);
    rmdir(folder);
}

/* import-fake.so lies beside the test program. */
static void use_modules_here(void)
{
    char path[PATH_MAX], folders[PATH_MAX + 16];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    assert_true(n > 0);
    path[n] = '\0';
    snprintf(folders, sizeof(folders), "/nowhere:%s", dirname(path));
    assert_int_equal(setenv("ROCMFORGE_MODULE_DIR", folders, 1), 0);
}

#define HANDLE(text) "\"fd\":null,\"table\":1,\"handle\":\"" text "\""

static void test_module(void **state)
{
    (void)state;
    use_modules_here();
    struct attach attach = {GOOD_ATTACH, .reply = ATTACH_REPLY(MODEL, ATTACH_DEVICE("fake"), HANDLE("eA=="))};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *model, *second;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    assert_int_equal(rf_attach(client, "m", &second), 0);
    rf_tensor tensor;
    assert_int_equal(rf_model_find(model, "b", &tensor), 0);
    assert_int_equal(*(const char *)tensor.data, 'x');
    char byte = 0;
    assert_int_equal(rf_model_read(model, 2, &byte, 1), 0);
    assert_int_equal(byte, 'x');
    assert_int_equal(rf_model_read(model, 1, &byte, 1), -EIO);
    assert_says(client, "fakeMemcpy: no (1)");
    assert_int_equal(rf_detach(model), 0);
    rig_stop(fake, client);
    free(table);

    struct attach bad = {GOOD_ATTACH, .reply = ATTACH_REPLY(MODEL, ATTACH_DEVICE("fake"), HANDLE("eHg="))};
    attach_fails(&bad, -EPROTO, "a handle of 2 bytes", 1);
    struct attach none = {
        GOOD_ATTACH,
        .reply = ATTACH_REPLY(MODEL, "\"device\":{\"id\":\"fake:0\",\"kind\":\"fake\",\"uuid\":null}", HANDLE("eA=="))};
    attach_fails(&none, -ENODEV, "no device", 1);
    assert_int_equal(unsetenv("ROCMFORGE_MODULE_DIR"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_no_module),
        RIG_TEST(test_bad_module),
        RIG_TEST(test_module),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
