#include "daemon/device/cgroup.h"

#include "daemon/base/cgroup_walk.h"
#include "proto/min.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *open_in(const char *folder, const char *name, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%s/%s", folder, name);
    return n > 0 && n < PATH_MAX ? fopen(path, "re") : NULL;
}

/* A number at the beginning of a text. False if there is none: "max". */
static bool parse(const char *text, uint64_t *ret)
{
    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    const unsigned long long bytes = strtoull(text, NULL, 10);
    if (errno != 0)
        return false;
    *ret = bytes;
    return true;
}

/* The number in a file, whose path is written to `path`. */
static bool read_number(const char *folder, const char *name, char path[PATH_MAX], uint64_t *ret)
{
    char line[32];
    FILE *file = open_in(folder, name, path);
    if (!file)
        return false;
    const bool there = fgets(line, sizeof(line), file) && parse(line, ret);
    fclose(file);
    return there;
}

static void consider(const char *folder, const char *name, struct cgroup_limit *limit)
{
    char path[PATH_MAX];
    uint64_t bytes;
    if (read_number(folder, name, path, &bytes) && bytes < limit->bytes) {
        limit->bytes = bytes;
        strcpy(limit->file, path);
    }
}

static void consider_limits(const char *folder, bool unified, struct cgroup_limit *limit)
{
    if (unified) {
        consider(folder, "memory.max", limit);
        consider(folder, "memory.high", limit);
    } else
        consider(folder, "memory.limit_in_bytes", limit);
}

/* context: the smallest limit so far. */
static void visit_limit(void *context, const char *folder, bool unified)
{
    consider_limits(folder, unified, context);
}

/* Page cache of files, in the group and the groups below it, which the kernel frees when memory is needed. Version 1
 * has the sums as total_*. */
static uint64_t reclaimable(const char *folder, bool unified)
{
    static const char *const keys[2][2] = {{"total_active_file ", "total_inactive_file "},
                                           {"active_file ", "inactive_file "}};
    char path[PATH_MAX], line[128];
    uint64_t sum = 0;
    FILE *file = open_in(folder, "memory.stat", path);
    while (file && fgets(line, sizeof(line), file))
        for (size_t i = 0; i < 2; i++) {
            const char *key = keys[unified][i];
            uint64_t bytes;
            if (strncmp(line, key, strlen(key)) == 0 && parse(line + strlen(key), &bytes))
                sum = sum + bytes < sum ? UINT64_MAX : sum + bytes;
        }
    if (file)
        fclose(file);
    return sum;
}

/* context: the least so far, a uint64_t. */
static void visit_free(void *context, const char *folder, bool unified)
{
    uint64_t *least = context;
    struct cgroup_limit limit = {.bytes = UINT64_MAX};
    char path[PATH_MAX];
    uint64_t taken = 0;
    consider_limits(folder, unified, &limit);
    if (limit.bytes == UINT64_MAX ||
        !read_number(folder, unified ? "memory.current" : "memory.usage_in_bytes", path, &taken))
        return;
    const uint64_t back = reclaimable(folder, unified);
    taken = taken > back ? taken - back : 0;
    const uint64_t left = limit.bytes > taken ? limit.bytes - taken : 0;
    *least = min_u64(left, *least);
}

void cgroup_memory_limit(const char *groups, const char *root, struct cgroup_limit *ret)
{
    *ret = (struct cgroup_limit){.bytes = UINT64_MAX};
    cgroup_walk(groups, root, "memory", visit_limit, ret);
}

uint64_t cgroup_memory_free(const char *groups, const char *root)
{
    uint64_t least = UINT64_MAX;
    cgroup_walk(groups, root, "memory", visit_free, &least);
    return least;
}
