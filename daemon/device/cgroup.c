#include "daemon/device/cgroup.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number in a file, if it is smaller: "max" is none. */
static void consider(const char *folder, const char *name, struct cgroup_limit *limit)
{
    char path[sizeof(limit->file)], line[32];
    int n = snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = n > 0 && (size_t)n < sizeof(path) ? fopen(path, "re") : NULL;
    if (!file)
        return;
    if (fgets(line, sizeof(line), file) && line[0] >= '0' && line[0] <= '9') {
        errno = 0;
        unsigned long long bytes = strtoull(line, NULL, 10);
        if (errno == 0 && bytes < limit->bytes) {
            limit->bytes = bytes;
            strcpy(limit->file, path);
        }
    }
    fclose(file);
}

/* The group and all above it, up to where its file system is mounted. In a container that may be the group itself, and
 * the path that the kernel tells, which nothing is at then, is the host's. */
static void consider_all(const char *mount, const char *group, bool unified, struct cgroup_limit *limit)
{
    char folder[sizeof(limit->file)];
    const bool outside = strcmp(group, "/") == 0 || strstr(group, "/..");
    int n = snprintf(folder, sizeof(folder), "%s%s", mount, outside ? "" : group);
    if (n < 0 || (size_t)n >= sizeof(folder))
        return;
    for (;;) {
        if (unified) {
            consider(folder, "memory.max", limit);
            consider(folder, "memory.high", limit);
        } else
            consider(folder, "memory.limit_in_bytes", limit);
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

void cgroup_memory_limit(const char *groups, const char *root, struct cgroup_limit *ret)
{
    *ret = (struct cgroup_limit){.bytes = UINT64_MAX};
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
            consider_all(root, group + 1, true, ret);
        else if (has_memory(controllers, (size_t)(group - controllers)))
            consider_all(version_1, group + 1, false, ret);
    }
    fclose(file);
}
