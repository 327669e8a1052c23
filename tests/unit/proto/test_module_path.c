/* proto/module_path.c: the first folder that has the file, whatever the others are. */
#include "proto/module_path.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void first_folder_that_has_it(void **state)
{
    (void)state;
    char folder[] = "/tmp/module_path_XXXXXX", file[PATH_MAX], folders[PATH_MAX], path[PATH_MAX] = "untouched";
    assert_non_null(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/device-hip.so", folder);
    FILE *made = fopen(file, "w");
    assert_non_null(made);
    fclose(made);

    unsetenv("ROCMFORGE_MODULE_DIR");
    snprintf(folders, sizeof(folders), ":/nonexistent:%s:", folder);
    assert_int_equal(module_path_find(folders, "device", "hip", path), 0);
    assert_string_equal(path, file);
    assert_int_equal(module_path_find(folders, "device", "cuda", path), -ENOENT);
    assert_string_equal(path, file); /* written only on success */
    assert_int_equal(module_path_find("", "device", "hip", path), -ENOENT);
    assert_int_equal(module_file_find(folders, "device-hip.so", path), 0);
    assert_int_equal(module_file_find(folders, "libother.so", path), -ENOENT);
    assert_int_equal(path_list_find(folders, "device-hip.so", R_OK, path), 0);
    assert_int_equal(path_list_find(folders, "device-hip.so", X_OK, path), -ENOENT); /* it is no program */

    setenv("ROCMFORGE_MODULE_DIR", folder, 1);
    assert_int_equal(module_path_find("/nonexistent", "device", "hip", path), 0);
    setenv("ROCMFORGE_MODULE_DIR", "/nonexistent", 1);
    assert_int_equal(module_path_find(folders, "device", "hip", path), -ENOENT);
    setenv("ROCMFORGE_MODULE_DIR", "", 1); /* as if it were not set */
    assert_int_equal(module_path_find(folders, "device", "hip", path), 0);

    unlink(file);
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_folder_that_has_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
