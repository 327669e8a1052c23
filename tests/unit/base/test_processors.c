/* daemon/base/processors.c, with files as the kernel has them. */
#include "daemon/base/processors.h"

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

static char root[] = "/tmp/rfXXXXXX";

/* Writes a file below `root`, and makes its folders. */
static void put(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof(whole), "%s/%s", root, path);
    for (char *at = whole + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        (void)mkdir(whole, 0700);
        *at = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void put_cache(unsigned cpu, unsigned index, const char *level, const char *type, const char *size,
                      const char *shared)
{
    const struct {
        const char *name, *text;
    } files[] = {{"level", level}, {"type", type}, {"size", size}, {"shared_cpu_list", shared}};
    for (size_t i = 0; i < 4; i++) {
        char path[128], line[64];
        snprintf(path, sizeof(path), "cpu/cpu%u/cache/index%u/%s", cpu, index, files[i].name);
        snprintf(line, sizeof(line), "%s\n", files[i].text);
        put(path, line);
    }
}

static uint64_t cache_of(const char *list)
{
    cpu_set_t set;
    char folder[64];
    CPU_ZERO(&set);
    for (; *list; list++)
        CPU_SET((size_t)(*list - '0'), &set);
    snprintf(folder, sizeof(folder), "%s/cpu", root);
    return processors_cache(folder, &set);
}

/* Two sockets with a shared cache each, whose processors are not numbered in a row; processor 6 has no third level, and
 * the system tells nothing of processor 7. */
static void caches(void **state)
{
    (void)state;
    for (unsigned cpu = 0; cpu < 6; cpu++) {
        char own[8];
        snprintf(own, sizeof(own), "%u", cpu);
        put_cache(cpu, 0, "1", "Data", "48K", own);
        put_cache(cpu, 1, "1", "Instruction", "32K", own);
        put_cache(cpu, 2, "2", "Unified", "2048K", own);
        put_cache(cpu, 3, "3", "Unified", "32768K", cpu % 2 ? "1,3,5" : "0,2,4");
    }
    put_cache(6, 0, "1", "Data", "48K", "6");
    put_cache(6, 1, "2", "Unified", "4M", "6");
    put_cache(6, 2, "4", "Instruction", "64K", "6");
    assert_int_equal(cache_of("012345"), 64u << 20);
    assert_int_equal(cache_of("024"), 32u << 20);
    assert_int_equal(cache_of("24"), 32u << 20); /* the first of those that share it is not ours */
    assert_int_equal(cache_of("5"), 32u << 20);
    assert_int_equal(cache_of("56"), 36u << 20);
    assert_int_equal(cache_of("7"), 0);
    assert_int_equal(cache_of("057"), 64u << 20);
}

static unsigned usable(void)
{
    char groups[64], folder[64];
    snprintf(groups, sizeof(groups), "%s/groups", root);
    snprintf(folder, sizeof(folder), "%s/cg", root);
    return processors_usable(groups, folder);
}

static void quotas(void **state)
{
    (void)state;
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
    const unsigned all = (unsigned)CPU_COUNT(&set);
    assert_int_equal(usable(), all); /* no groups */
    put("groups", "4:memory:/x\n0::/a/b\n");
    put("cg/a/b/cpu.max", "max 100000\n");
    assert_int_equal(usable(), all);
    put("cg/a/cpu.max", "50000 100000\n"); /* of the group above; rounded up */
    assert_int_equal(usable(), 1);
    put("cg/a/cpu.max", "150000 100000\n");
    assert_int_equal(usable(), all < 2 ? all : 2);
    put("cg/cpu.max", "1000 100000\n");
    assert_int_equal(usable(), 1);
    put("cg/cpu.max", "nonsense\n");
    put("cg/a/cpu.max", "100000 0\n");
    assert_int_equal(usable(), all);
    put("groups", "0::/\n");
    put("cg/cpu.max", "1 100000\n");
    assert_int_equal(usable(), 1);
}

static void affinity(void **state)
{
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(processors_usable("/nowhere", "/nowhere"), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(caches), cmocka_unit_test(quotas), cmocka_unit_test(affinity)};
    if (!mkdtemp(root))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command) == 0 ? failed : 1;
}
