/* How much memory the control groups that this process is in let it have.
 *
 * libuv's uv_get_constrained_memory() looks only at the root of version 1, or at the group itself, not at those above.
 *
 * May block; any thread. */
#pragma once

#include <limits.h>
#include <stdint.h>

/* The smallest limit. */
struct cgroup_limit {
    uint64_t bytes;      /* UINT64_MAX: there is none */
    char file[PATH_MAX]; /* that says so; empty: none does */
};

/* `groups` is /proc/self/cgroup, `root` where the file systems are, /sys/fs/cgroup; version 1 has its own in `memory`
 * there. What cannot be read is no limit. */
void cgroup_memory_limit(const char *groups, const char *root, struct cgroup_limit *ret);
