/* daemon/model/source.c: which file it is, and its bytes. */
#include "daemon/model/source.h"
#include "daemon/model/source_compare.h"
#include "daemon/model/source_look.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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

static char folder[] = "/tmp/rfsourceXXXXXX";

static const char *in_folder(const char *name)
{
    static char paths[4][PATH_MAX];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, PATH_MAX, "%s/%s", folder, name);
    return path;
}

static const char *write_file(const char *name, const char *text)
{
    const char *path = in_folder(name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs(text, file) >= 0, 1);
    assert_int_equal(fclose(file), 0);
    return path;
}

static struct source *open_path(const char *path)
{
    struct source *source = NULL;
    struct device_fault fault = {0};
    assert_int_equal(source_open_path(path, &source, &(struct shard_paths){0}, &fault), 0);
    return source;
}

static int refused(const char *path, struct device_fault *ret_fault)
{
    struct source *source = NULL;
    int r = source_open_path(path, &source, &(struct shard_paths){0}, ret_fault);
    assert_true(r < 0);
    assert_null(source);
    return r;
}

static int folder_make(void **state)
{
    (void)state;
    return mkdtemp(folder) && chmod(folder, 0755) == 0 ? 0 : -1;
}

static int folder_remove(void **state)
{
    (void)state;
    char command[PATH_MAX];
    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

static void identity(void **state)
{
    (void)state;
    const char *path = write_file("a", "0123456789");
    struct source *a = open_path(path);
    assert_int_equal(a->n_files, 1);
    assert_int_equal(a->size, 10);
    assert_string_equal(a->path, path);
    assert_int_equal(link(path, in_folder("hard")), 0);
    assert_int_equal(symlink(path, in_folder("soft")), 0);
    struct source *hard = open_path(in_folder("hard")), *soft = open_path(in_folder("soft"));
    assert_true(source_equal(a, hard) && source_equal(a, soft));
    struct source *copy = open_path(write_file("copy", "0123456789"));
    assert_false(source_equal(a, copy));
    const struct timespec then[2] = {{1, 0}, {1, 1}};
    assert_int_equal(utimensat(AT_FDCWD, path, then, 0), 0);
    struct source *touched = open_path(path);
    assert_false(source_equal(a, touched));
    source_free(a);
    source_free(hard);
    source_free(soft);
    source_free(copy);
    source_free(touched);
}

static void change_is_seen(void **state)
{
    (void)state;
    struct device_fault fault = {0};
    const char *path = write_file("changes", "0123456789");
    struct source *source = open_path(path);
    assert_int_equal(source_check(source, &fault), 0);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "x", 1, 0), 1);
    const struct timespec then[2] = {
        {0, source->files[0].identity.mtime_ns % 1000000000},
        {source->files[0].identity.mtime_ns / 1000000000, source->files[0].identity.mtime_ns % 1000000000}};
    assert_int_equal(source_check(source, &fault), -ESTALE);
    assert_int_equal(futimens(fd, then), 0); /* and hidden, but for the time of that */
    assert_int_equal(source_check(source, &fault), 0);
    assert_int_equal(source_check_untouched(source, &fault), -ESTALE);
    close(fd);
    source_free(source);
}

static void read_whole_or_not_at_all(void **state)
{
    (void)state;
    struct device_fault fault = {0};
    struct source *source = open_path(write_file("read", "0123456789"));
    char bytes[16] = {0};
    assert_int_equal(source_read(source, 0, 2, bytes, 5, &fault), 0);
    assert_string_equal(bytes, "23456");
    assert_int_equal(source_read(source, 0, 10, bytes, 0, &fault), 0);
    assert_int_equal(source_read(source, 0, 8, bytes, 3, &fault), -ESTALE);
    assert_int_equal(source_read(source, 0, 100, bytes, 1, &fault), -ESTALE);
    source_free(source);
}

static void not_a_regular_file(void **state)
{
    (void)state;
    struct device_fault fault = {0};
    assert_int_equal(refused(in_folder("none"), &fault), -ENOENT);
    assert_string_equal(fault.call, "open");
    assert_int_equal(refused(folder, &fault), -EINVAL);
    assert_int_equal(refused("/dev/null", &fault), -EINVAL);
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    assert_int_equal(refused(in_folder("pipe"), &fault), -EINVAL);
    static char path[PATH_MAX + 10];
    memset(path, 'x', sizeof(path) - 1);
    path[0] = '/';
    assert_int_equal(refused(path, &fault), -ENAMETOOLONG);
}

static void descriptors(void **state)
{
    (void)state;
    struct device_fault fault = {0};
    struct source *source = NULL;
    const char *path = write_file("fd", "0123456789");
    const int flags[] = {O_WRONLY, O_PATH};
    for (size_t i = 0; i < 2; i++) {
        int fd = open(path, flags[i]);
        assert_int_equal(source_open_fds(&fd, 1, &source, &fault), -EBADF);
        assert_int_equal(fcntl(fd, F_GETFD), -1); /* taken over all the same */
    }
    int fds[] = {open(path, O_RDONLY), open(path, O_RDWR), open("/dev/null", O_RDONLY)};
    assert_int_equal(source_open_fds(fds, 3, &source, &fault), -EINVAL);
    assert_int_equal(fcntl(fds[0], F_GETFD), -1);
    int two[] = {open(path, O_RDONLY), open(path, O_RDWR)};
    assert_int_equal(source_open_fds(two, 2, &source, &fault), 0);
    assert_int_equal(source->n_files, 2);
    assert_int_equal(source->size, 20);
    struct source *one = open_path(path);
    assert_false(source_equal(source, one));
    source_free(one);
    source_free(source);
    source_free(NULL);
}

static void split_names(void **state)
{
    (void)state;
    for (unsigned i = 1; i <= 3; i++) {
        char name[64];
        snprintf(name, sizeof(name), "m-%05u-of-00003.gguf", i);
        write_file(name, i == 1 ? "a" : i == 2 ? "bb" : "ccc");
    }
    struct device_fault fault = {0};
    struct source *source = open_path(in_folder("m-00001-of-00003.gguf"));
    assert_int_equal(source->n_files, 3);
    assert_int_equal(source->size, 6);
    char bytes[4] = {0};
    assert_int_equal(source_read(source, 2, 0, bytes, 3, &fault), 0);
    assert_string_equal(bytes, "ccc");
    int fds[3];
    for (size_t i = 0; i < 3; i++) /* in another order they are the same files */
        assert_true((fds[i] = dup(source->files[(i + 1) % 3].fd)) >= 0);
    struct source *other;
    assert_int_equal(source_open_fds(fds, 3, &other, &fault), 0);
    assert_true(source_equal(source, other) && source_equal(other, source));
    other->files[1].identity.mtime_ns++;
    assert_false(source_equal(source, other));
    source_free(other);
    source_free(source);
    source = open_path(in_folder("m-00002-of-00003.gguf")); /* no GGUF file: its name alone tells of the others */
    assert_int_equal(source->n_files, 3);
    source_free(source);
    static const char *const single[] = {"x-00002-of-00003.gguf", "x-00001-of-00001.gguf", "x-00001-of-00000.gguf",
                                         "x-00001-of-.gguf",      "x-00001-of--0003.gguf", "x-00001-of-+0003.gguf"};
    for (size_t i = 0; i < sizeof(single) / sizeof(single[0]); i++) {
        write_file(single[i], "GGUF");
        source = open_path(in_folder(single[i]));
        assert_int_equal(source->n_files, 1);
        source_free(source);
    }
    assert_int_equal(unlink(in_folder("m-00002-of-00003.gguf")), 0);
    assert_int_equal(refused(in_folder("m-00001-of-00003.gguf"), &fault), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity),
        cmocka_unit_test(change_is_seen),
        cmocka_unit_test(read_whole_or_not_at_all),
        cmocka_unit_test(not_a_regular_file),
        cmocka_unit_test(descriptors),
        cmocka_unit_test(split_names),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
