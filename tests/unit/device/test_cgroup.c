/* daemon/device/cgroup.c, on a folder that stands for /sys/fs/cgroup. */
#include "daemon/device/cgroup.h"

#include <ftw.h>
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

static char root[] = "/tmp/test_cgroup.XXXXXX";

static int begin(void **state)
{
    (void)state;
    strcpy(root + strlen(root) - 6, "XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

static int end(void **state)
{
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A file below the root, with the folders that it is in. */
static void put(const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", root, name);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        mkdir(path, 0700);
        *at = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* `file`: below the root, NULL where there is no limit. */
static void expect(const char *groups, uint64_t bytes, const char *file)
{
    char path[512], wanted[512] = "";
    struct cgroup_limit limit;
    put("groups", groups);
    snprintf(path, sizeof(path), "%s/groups", root);
    if (file)
        snprintf(wanted, sizeof(wanted), "%s/%s", root, file);
    cgroup_memory_limit(path, root, &limit);
    assert_int_equal(limit.bytes, bytes);
    assert_string_equal(limit.file, wanted);
}

static void version_2(void **state)
{
    (void)state;
    put("a.slice/b.service/memory.max", "max\n");
    put("a.slice/b.service/memory.high", "max\n");
    expect("0::/a.slice/b.service\n", UINT64_MAX, NULL);
    put("a.slice/b.service/memory.max", "629145600\n");
    expect("0::/a.slice/b.service\n", 629145600, "a.slice/b.service/memory.max");
    put("a.slice/b.service/memory.high", "500000000\n");
    expect("0::/a.slice/b.service\n", 500000000, "a.slice/b.service/memory.high");
    expect("0::/a.slice\n", UINT64_MAX, NULL);
}

/* A slice's limit is that of all in it, and so is a container's, which is where the file system is mounted. */
static void above(void **state)
{
    (void)state;
    put("a.slice/b.service/memory.max", "4000\n");
    put("a.slice/memory.max", "3000\n");
    put("memory.high", "5000\n");
    expect("0::/a.slice/b.service\n", 3000, "a.slice/memory.max");
    put("memory.high", "2000\n");
    expect("0::/a.slice/b.service\n", 2000, "memory.high");
    expect("0::/\n", 2000, "memory.high");
    expect("0::/not/here\n", 2000, "memory.high");
    expect("0::/../elsewhere\n", 2000, "memory.high");
}

static void version_1(void **state)
{
    (void)state;
    put("memory/docker/1/memory.limit_in_bytes", "1000\n");
    put("memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("memory/docker/1/memory.max", "1\n"); /* there is none of that name */
    put("memory.limit_in_bytes", "2\n");
    expect("9:name=systemd:/\n4:cpu,memory:/docker/1\n0::/\n", 1000, "memory/docker/1/memory.limit_in_bytes");
    expect("4:memory:/docker/2\n", 9223372036854771712u, "memory/memory.limit_in_bytes");
    expect("4:cpu,memory2,amemory:/docker/1\n", UINT64_MAX, NULL);
}

static void nothing_to_read(void **state)
{
    (void)state;
    struct cgroup_limit limit;
    put("memory.max", "x\n");
    put("memory.high", "99999999999999999999999\n");
    expect("0::/\n", UINT64_MAX, NULL);
    expect("", UINT64_MAX, NULL);
    expect("0\n0:\n:\n0::\n::\n", UINT64_MAX, NULL);
    cgroup_memory_limit("/nowhere", root, &limit);
    assert_int_equal(limit.bytes, UINT64_MAX);
    assert_string_equal(limit.file, "");
}

static uint64_t left(const char *groups)
{
    char path[512];
    put("groups", groups);
    snprintf(path, sizeof(path), "%s/groups", root);
    return cgroup_memory_free(path, root);
}

/* What is left of the limits, where the kernel's copies of files count as free. */
static void what_is_left(void **state)
{
    (void)state;
    put("a/b/memory.max", "1000\n");
    put("a/b/memory.current", "600\n");
    assert_int_equal(left("0::/a/b\n"), 400);
    put("a/b/memory.stat", "anon 300\nfile 250\nshmem 100\ninactive_file 100\nactive_file 50\nunevictable 7\n");
    assert_int_equal(left("0::/a/b\n"), 550);
    put("a/b/memory.high", "500\n");
    assert_int_equal(left("0::/a/b\n"), 50);
    put("a/b/memory.current", "2000\n");
    assert_int_equal(left("0::/a/b\n"), 0);
    put("a/b/memory.current", "100\n"); /* less than is said of files: they were not read at the same moment */
    assert_int_equal(left("0::/a/b\n"), 500);
    put("a/memory.max", "3000\n"); /* others below the same group take of this */
    put("a/memory.current", "2990\n");
    assert_int_equal(left("0::/a/b\n"), 10);
    assert_int_equal(left("0::/a\n"), 10);
    assert_int_equal(left("0::/c\n"), UINT64_MAX);
    put("c/memory.max", "max\n");
    put("c/memory.current", "77\n");
    assert_int_equal(left("0::/c\n"), UINT64_MAX);
}

static void what_is_left_of_version_1(void **state)
{
    (void)state;
    put("memory/d/memory.limit_in_bytes", "1000\n");
    put("memory/d/memory.usage_in_bytes", "900\n");
    put("memory/d/memory.stat", "inactive_file 1\nactive_file 2\ntotal_inactive_file 30\ntotal_active_file 70\n");
    put("memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("memory/memory.usage_in_bytes", "5000\n");
    assert_int_equal(left("4:memory:/d\n"), 200);
    assert_int_equal(left("4:memory:/\n"), 9223372036854771712u - 5000);
    assert_int_equal(left("4:cpu:/d\n"), UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(version_2, begin, end),
        cmocka_unit_test_setup_teardown(above, begin, end),
        cmocka_unit_test_setup_teardown(version_1, begin, end),
        cmocka_unit_test_setup_teardown(nothing_to_read, begin, end),
        cmocka_unit_test_setup_teardown(what_is_left, begin, end),
        cmocka_unit_test_setup_teardown(what_is_left_of_version_1, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
