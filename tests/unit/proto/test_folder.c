/* Which files of a folder a model has. */
#include "proto/folder.h"
#include "proto/shards.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static char folder[] = "/tmp/rf-folder-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static void write_index(const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/" FOLDER_INDEX, folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void remove_index(void)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/" FOLDER_INDEX, folder);
    unlink(path);
}

static int files(size_t most, struct shard_paths *ret)
{
    *ret = (struct shard_paths){0};
    return folder_files(folder, shard_open_regular, most, &ret->paths, &ret->n);
}

static void each_file_comes_once(void **state)
{
    struct shard_paths found;
    char path[128];
    (void)state;
    write_index(
        "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"x\":\"b\",\"y\":\"a\",\"z\":\"b\",\"u\":\"\\u0061\"}}");
    assert_int_equal(files(2, &found), 0);
    assert_int_equal(found.n, 2);
    snprintf(path, sizeof(path), "%s/a", folder);
    assert_string_equal(found.paths[0], path);
    snprintf(path, sizeof(path), "%s/b", folder);
    assert_string_equal(found.paths[1], path);
    shard_paths_free(&found);
    assert_int_equal(files(1, &found), -E2BIG);
    remove_index();
}

static void without_an_index_there_is_one_file(void **state)
{
    struct shard_paths found;
    char path[128];
    (void)state;
    assert_int_equal(files(1, &found), -ENOTDIR);
    snprintf(path, sizeof(path), "%s/" FOLDER_FILE, folder);
    assert_int_equal(symlink("/dev/null", path), 0);
    assert_int_equal(files(1, &found), 0);
    unlink(path);
    assert_int_equal(found.n, 1);
    assert_string_equal(strrchr(found.paths[0], '/'), "/" FOLDER_FILE);
    shard_paths_free(&found);
}

static void others_are_refused(void **state)
{
    struct shard_paths found = {0};
    char path[128];
    (void)state;
    assert_int_equal(folder_files("/dev/null", shard_open_regular, 9, &found.paths, &found.n), -ENOTDIR);
    assert_int_equal(folder_files("/dev/null/x", shard_open_regular, 9, &found.paths, &found.n), -ENOTDIR);
    assert_int_equal(folder_files("/nothing/there", shard_open_regular, 9, &found.paths, &found.n), -ENOENT);
    write_index("{\"weight_map\":{\"x\":\"a/b\"}}");
    assert_int_equal(files(9, &found), -EBADMSG);
    remove_index();
    snprintf(path, sizeof(path), "%s/" FOLDER_INDEX, folder);
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody waits at it */
    assert_int_equal(files(9, &found), -EINVAL);
    remove_index();
    write_index("");
    assert_int_equal(truncate(path, (off_t)FOLDER_INDEX_MAX + 1), 0);
    assert_int_equal(files(9, &found), -E2BIG);
    remove_index();
    assert_null(found.paths);
}

static int files_with(const char *name, struct shard_paths *ret)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    *ret = (struct shard_paths){0};
    return folder_files_with(path, shard_open_regular, 9, &ret->paths, &ret->n, &ret->number);
}

static void a_file_stands_for_those_of_its_index(void **state)
{
    struct shard_paths found;
    (void)state;
    assert_int_equal(files_with("a", &found), -ENODATA);
    write_index("{\"weight_map\":{\"x\":\"b\",\"y\":\"a\"}}");
    assert_int_equal(files_with("b", &found), 0);
    assert_int_equal(found.n, 2);
    assert_int_equal(found.number, 2);
    assert_string_equal(strrchr(found.paths[0], '/'), "/a");
    shard_paths_free(&found);
    assert_int_equal(files_with("c", &found), -ENODATA);
    remove_index();
    write_index("{\"weight_map\":{\"x\":\"a\"}}"); /* with no other */
    assert_int_equal(files_with("a", &found), -ENODATA);
    remove_index();
    write_index("{");
    assert_int_equal(files_with("a", &found), -ENODATA);
    remove_index();
    assert_null(found.paths);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_file_comes_once),
        cmocka_unit_test(without_an_index_there_is_one_file),
        cmocka_unit_test(others_are_refused),
        cmocka_unit_test(a_file_stands_for_those_of_its_index),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
