/* The control groups that this process is in: their folders, from its own group up to the mount point.
 *
 * May block; any thread. */
#pragma once

#include <stdbool.h>

/* What is done with a group. unified: it is one of version 2. */
typedef void cgroup_visit_fn(void *context, const char *folder, bool unified);

/* Calls `visit` for each group, a process's own one before those above it. `groups` is the path /proc/self/cgroup;
 * `root` is the folder of the cgroup file systems, /sys/fs/cgroup. controller: for groups of version 1, which are in a
 * folder of this name there: "memory"; NULL: only those of version 2. */
void cgroup_walk(const char *groups, const char *root, const char *controller, cgroup_visit_fn *visit, void *context);
