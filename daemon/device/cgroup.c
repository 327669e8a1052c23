#include "daemon/device/cgroup.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is read from each group. */
struct visit {
    void (*group)(struct visit *visit, const char *folder, bool unified);
    struct cgroup_limit limit; /* the smallest so far */
    uint64_t free;             /* the least so far */
};

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

static void visit_limit(struct visit *visit, const char *folder, bool unified)
{
    consider_limits(folder, unified, &visit->limit);
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

static void visit_free(struct visit *visit, const char *folder, bool unified)
{
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
    if (left < visit->free)
        visit->free = left;
}

/* Reads the group and all groups above it, up to the mount point. In a container the mount point may be the group
 * itself; then the path from /proc/self/cgroup is one of the host, and nothing is there. */
static void visit_all(const char *mount, const char *group, bool unified, struct visit *visit)
{
    char folder[PATH_MAX];
    const bool outside = strcmp(group, "/") == 0 || strstr(group, "/..");
    int n = snprintf(folder, sizeof(folder), "%s%s", mount, outside ? "" : group);
    if (n < 0 || (size_t)n >= sizeof(folder))
        return;
    for (;;) {
        visit->group(visit, folder, unified);
        char *slash = strrchr(folder, '/');
        if (!slash || slash < folder + strlen(mount))
            return;
        *slash = '\0';
    }
}

/* Whether "memory" is among controllers, "cpu,cpuacct". */
static bool has_memory(const char *controllers, size_t size)
{
    static const char name[] = "memory";
    const char *end = controllers + size;
    while (controllers < end) {
        size_t n = strcspn(controllers, ",:");
        if (n == strlen(name) && strncmp(controllers, name, n) == 0)
            return true;
        controllers += n + 1;
    }
    return false;
}

static void visit_groups(const char *groups, const char *root, struct visit *visit)
{
    FILE *file = fopen(groups, "re");
    if (!file)
        return;
    char version_1[PATH_MAX], line[PATH_MAX + 256];
    int n = snprintf(version_1, sizeof(version_1), "%s/memory", root);
    while (n > 0 && (size_t)n < sizeof(version_1) && fgets(line, sizeof(line), file)) {
        /* "0::/user.slice" of version 2, "4:memory:/user" of version 1 */
        line[strcspn(line, "\n")] = '\0';
        const char *controllers = strchr(line, ':');
        const char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        controllers++;
        if (controllers == group)
            visit_all(root, group + 1, true, visit);
        else if (has_memory(controllers, (size_t)(group - controllers)))
            visit_all(version_1, group + 1, false, visit);
    }
    fclose(file);
}

void cgroup_memory_limit(const char *groups, const char *root, struct cgroup_limit *ret)
{
    struct visit visit = {.group = visit_limit, .limit = {.bytes = UINT64_MAX}};
    visit_groups(groups, root, &visit);
    *ret = visit.limit;
}

uint64_t cgroup_memory_free(const char *groups, const char *root)
{
    struct visit visit = {.group = visit_free, .limit = {.bytes = UINT64_MAX}, .free = UINT64_MAX};
    visit_groups(groups, root, &visit);
    return visit.free;
}
