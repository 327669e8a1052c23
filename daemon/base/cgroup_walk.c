#include "daemon/base/cgroup_walk.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* In a container the mount point may be the group itself; then the path from /proc/self/cgroup is one of the host, and
 * nothing is there. */
static void walk_up(const char *mount, const char *group, bool unified, cgroup_visit_fn *visit, void *context)
{
    char folder[PATH_MAX];
    const bool outside = strcmp(group, "/") == 0 || strstr(group, "/..");
    int n = snprintf(folder, sizeof(folder), "%s%s", mount, outside ? "" : group);
    if (n < 0 || (size_t)n >= sizeof(folder))
        return;
    for (;;) {
        visit(context, folder, unified);
        char *slash = strrchr(folder, '/');
        if (!slash || slash < folder + strlen(mount))
            return;
        *slash = '\0';
    }
}

/* Whether this one is among controllers, "cpu,cpuacct". */
static bool has_controller(const char *controllers, size_t size, const char *name)
{
    const char *end = controllers + size;
    while (controllers < end) {
        size_t n = strcspn(controllers, ",:");
        if (n == strlen(name) && strncmp(controllers, name, n) == 0)
            return true;
        controllers += n + 1;
    }
    return false;
}

void cgroup_walk(const char *groups, const char *root, const char *controller, cgroup_visit_fn *visit, void *context)
{
    FILE *file = fopen(groups, "re");
    if (!file)
        return;
    char version_1[PATH_MAX], line[PATH_MAX + 256];
    int n = snprintf(version_1, sizeof(version_1), "%s/%s", root, controller ? controller : "");
    while (n > 0 && (size_t)n < sizeof(version_1) && fgets(line, sizeof(line), file)) {
        /* "0::/user.slice" of version 2, "4:memory:/user" of version 1 */
        line[strcspn(line, "\n")] = '\0';
        const char *controllers = strchr(line, ':');
        const char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        controllers++;
        if (controllers == group)
            walk_up(root, group + 1, true, visit, context);
        else if (controller && has_controller(controllers, (size_t)(group - controllers), controller))
            walk_up(version_1, group + 1, false, visit, context);
    }
    fclose(file);
}
